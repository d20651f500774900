"""The whole journey, as it is typed: a checkpoint on the Hub is compressed, pushed, loaded from Python and measured.

    python -m tests.hub.journey

Against a Hub on this machine, with a mini ViM of random weights in the place of vim-ti: what is shown is that each step
takes what the one before it made. Every command is a process of its own.
"""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from PIL import Image

from stm.hub.aliases import ALIASES, ARCHIVES
from tests.hang import HANG
from tests.hub.server import Hub, Repo

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / "tests" / "golden" / "dense-mini" / "vim_mini_stride8.pth"
LOGIN = "hf_OfTheJourney"
SMALL = "me/vim-ti-stm40"


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch, Hub() as hub:
        here = Path(scratch)
        vim_ti, v2 = ALIASES["vim-ti"], ARCHIVES["imagenet-v2"]
        hub.logins[LOGIN] = "me"
        hub.repos[vim_ti.repo] = Repo({vim_ti.file: MINI.read_bytes(), "README.md": b"---\nlicense: apache-2.0\n---\n"})
        hub.repos[f"datasets/{v2.repo}"] = Repo({v2.file: _pictures()})
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        online = inherited | hub.environment(here / "hf") | {"PYTHONPATH": str(ROOT), "HF_TOKEN": LOGIN}

        def run(*words: str, **more: str) -> str:
            done = subprocess.run(
                [sys.executable, *words], cwd=here, env=online | more, capture_output=True, text=True, timeout=HANG
            )
            assert done.returncode == 0, f"{words}: {done.stderr}"
            assert LOGIN not in done.stdout + done.stderr
            return done.stdout

        def stm(*words: str, **more: str) -> dict[str, object]:
            found: dict[str, object] = json.loads(run("-m", "stm_cli", *words, "--json", **more))
            return found

        compressed = stm("compress", "vim-ti", "--rate", "0.4", "--data", "imagenet-v2", "--push-to", SMALL)
        measured, pushed = compressed["eval"], compressed["push"]
        assert isinstance(measured, dict) and isinstance(pushed, dict)
        assert pushed["url"] == f"{hub.url}/{SMALL}"
        files = hub.repos[SMALL].files
        assert sorted(files) == [
            ".eval_results/stm.yaml",
            ".gitattributes",
            "README.md",
            "config.json",
            "model.safetensors",
        ]
        source = json.loads(files["config.json"])["source"]
        assert (source["repo"], source["revision"], source["license"]) == (
            vim_ti.repo,
            hub.repos[vim_ti.repo].refs["main"],
            "apache-2.0",
        )

        (snippet,) = re.findall(r"```python\n(.*?)```", files["README.md"].decode(), re.DOTALL)
        Image.effect_noise((90, 80), 60).save(here / "photo.jpg")
        shape = run("-c", f"{snippet}\nprint(tuple(logits.shape), model.config.source.repo)")
        *guesses, last = shape.splitlines()
        assert last == f"(1, 10) {vim_ti.repo}" and len(guesses) == 5, shape

        found = stm("eval", SMALL, "--data", "imagenet-v2", HF_HUB_OFFLINE="1")  # all of it is in the cache by now
        same = ("data", "n", "top1", "top5", "agreement", "kl", "drop")
        assert {key: found[key] for key in same} == {key: measured[key] for key in same}

        again = stm("compress", "vim-ti", "--recipe", SMALL, "--data", "imagenet-v2", "--out", "again")
        assert again["output"] == "again"
        for name in ("config.json", "model.safetensors"):
            assert (here / "again" / name).read_bytes() == files[name], f"{name} from the recipe"
        print(f"{vim_ti.repo} -> {SMALL}: n = {found['n']}, top-1 {found['top1']}, loaded, measured and made again")


def _pictures() -> bytes:
    """An archive as imagenet-v2's, of ten classes."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for number in range(20):
            image = io.BytesIO()
            Image.effect_mandelbrot((90, 80), (-2.0, -1.0, 0.5 + number / 10, 1.0), 20 + number).convert("RGB").save(
                image, "JPEG"
            )
            info = tarfile.TarInfo(f"imagenetv2-matched-frequency-format-val/{number % 10}/{number}.jpeg")
            info.size = image.tell()
            image.seek(0)
            tar.addfile(info, image)
    return stream.getvalue()


if __name__ == "__main__":
    main()
