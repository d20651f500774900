"""The commands that write, each with what is there before, and how to see that all is whole after a fault."""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stm.hub.aliases import ARCHIVES
from tests.export.small import small
from tests.faults.fault import Engine
from tests.hub.client import SECRET
from tests.hub.server import Hub, Repo
from tests.hub.test_samples import archive, picture
from tests.pictures import labelled

MINI = Path(__file__).resolve().parents[1] / "golden" / "dense-mini" / "vim_mini_stride8.pth"
SIZE = ("--image-size", "64")
COMPRESS = ("compress", "mini.pth", *SIZE, "--method", "staged", "--no-eval")
TINY = ("export", "tiny")
GRID = ("--rates", "0.2", "--sides", "both", "--schedules", "staged", "--no-peers")
IMAGES = ("--data", "images", "--device", "cpu")
DRAFT = re.compile(r"\.stm-(tmp|old)-[0-9a-f]{8}")
RANDOM = re.compile(r"(?<=[./_])([0-9a-f]{8}(-[0-9a-f-]{27})?|tmp\w{8})(?=[./ ])")  # as huggingface_hub names parts
SWEEP = ("sweep", "mini.pth", *SIZE, *IMAGES, *GRID, "--out", "out")
V2 = ARCHIVES["imagenet-v2"]
V2_FILE = archive(
    {f"imagenetv2-matched-frequency-format-val/{index}/a.jpeg": picture(20 * index) for index in range(3)}
)
Tree = dict[str, bytes | None]  # from each path to its content; None is a folder


@dataclass(frozen=True)
class Job:
    """A command that writes.

    Args:
        argv: what is run, and what is run again after the fault; with `force`, --force is added then.
        before: commands that make what is there before.
        grows: names (as a path begins) that hold a part of the work until it is whole: their bytes may be in between.
        exact: a run writes the same bytes each time; else a page or figure is only seen to be whole.
        optional: calls on paths that match may fail, and the command succeeds: what they do is a convenience.
        told: what stderr says then.
    """

    argv: tuple[str, ...]
    before: tuple[tuple[str, ...], ...] = ()
    force: bool = True
    grows: tuple[str, ...] = ()
    optional: str = r"(?!)"
    told: str = ""
    exact: bool = True


JOBS = {
    "compress": Job((*COMPRESS, "--out", "deep/out")),
    "compress --force": Job(
        (*COMPRESS, "--rate", "0.2", "--out", "out", "--force"), before=((*COMPRESS, "--out", "out"),), force=False
    ),
    "export": Job(("export", "mini.pth", *SIZE, "--out", "out.pth")),
    "export --force": Job(
        ("export", "small", "--format", "folder", "--out", "out", "--force"),
        before=((*COMPRESS, "--rate", "0.2", "--out", "out"),),
        force=False,
    ),
    "onnx": Job(
        (*TINY, "--format", "onnx", "--out", "out.onnx", "--force"),
        before=((*TINY, "--format", "onnx", "--batch-size", "1", "--out", "out.onnx"),),
        force=False,
    ),
    "pt2": Job((*TINY, "--format", "pt2", "--out", "out.pt2")),
    "aoti": Job((*TINY, "--format", "aoti", "--out", "out.pt2")),
    "openvino": Job(
        (*TINY, "--format", "openvino", "--out", "out", "--force"),
        before=((*TINY, "--format", "openvino", "--batch-size", "1", "--out", "out"),),
        force=False,
    ),
    "report": Job(("report", "small", *IMAGES, "--out", "out.html"), exact=False),
    "eval": Job(("eval", "small", *IMAGES, "--batch-size", "2", "--records", "r.csv"), force=False, grows=("r.csv",)),
    "sweep": Job(
        SWEEP,
        force=False,
        grows=("out/cells.jsonl", "out"),
        exact=False,
    ),
    "fit": Job(
        ("compress", "mini.pth", *SIZE, "--no-eval", "--fit-on", "images", "--fit-images", "4", "--out", "out"),
        optional=r"/cache",
        told="Note: the costs of the fit cannot be kept in ",
    ),
    "push": Job((*COMPRESS, "--out", "out", "--push-to", "me/vim", "--token", SECRET)),
    "download": Job(("export", "owner/vim", *SIZE, "--out", "out.pth"), optional=r"/home/"),
    "unpack": Job(
        ("eval", "small", "--data", "imagenet-v2", "--device", "cpu", "--workers", "0"),
        force=False,
        optional=r"/home/(?!assets/)",
    ),
}


class World:
    """The folder in which the engine works, and the Hub that its commands know."""

    def __init__(self, engine: Engine, hub: Hub) -> None:
        self.engine, self.here, self.hub = engine, engine.here, hub
        (self.here / "mini.pth").symlink_to(MINI)
        labelled(self.here / "images", [f"{letter}.png,{number}" for number, letter in enumerate("abcde")])
        assert engine.warm(*COMPRESS, "--out", "small") == 0
        small().save_pretrained(self.here / "tiny")
        self.inputs = {"mini.pth", "images", "small", "tiny"}

    def paths(self) -> Iterator[Path]:
        for path in self.here.iterdir():
            if path.name not in self.inputs:
                yield path
                if path.is_dir() and not path.is_symlink():
                    yield from path.rglob("*")

    def clear(self) -> None:
        for path in list(self.here.iterdir()):
            if path.name not in self.inputs:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (self.here / "tmp").mkdir()
        (self.here / "home").mkdir()
        self.hub.clear()
        self.hub.logins[SECRET] = "me"
        self.hub.repos[f"datasets/{V2.repo}"] = Repo({V2.file: V2_FILE})
        self.hub.repos["owner/vim"] = Repo({"vim.pth": MINI.read_bytes(), "README.md": b"---\nlicense: mit\n---\n"})

    def tree(self) -> Tree:
        """All that is there but the inputs and the caches of libraries."""
        tree = {
            path.relative_to(self.here).as_posix(): None if path.is_dir() else path.read_bytes()
            for path in self.paths()
        }
        return {name: body for name, body in tree.items() if not name.startswith("home/")}

    def libraries(self) -> list[str]:
        """What is in the caches of libraries, with random names as one."""
        there = []
        for path in sorted((self.here / "home").rglob("*")):
            what = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
            there.append(RANDOM.sub("*", f"{path} {hash(what)}"))
        return there

    def restore(self, tree: Tree) -> None:
        self.clear()
        for name, body in sorted(tree.items()):
            path = self.here / name
            if body is None:
                path.mkdir(parents=True, exist_ok=True)
            else:
                path.write_bytes(body)


def whole(name: str, body: bytes | None) -> object:
    """What tells a whole file from a part of it, if its numbers vary from run to run."""
    if body is None:
        return None
    ends = {".html": b"</html>\n", ".png": b"IEND\xaeB`\x82", ".svg": b"</svg>\n", ".json": b"}\n", ".csv": b"\n"}
    suffix = "." + name.rpartition(".")[2]
    return body.endswith(ends[suffix]) if suffix in ends else body.count(b"\n")


def sentence(err: str) -> str | None:
    """The one sentence of an error, or None if it is none, or more than one."""
    lines = [line for line in err.splitlines() if not line.startswith(("Note: ", "Hint: ", "Next: ", "      stm "))]
    if len(lines) != 1 or not lines[0].startswith("Error: ") or "unexpectedly" in lines[0]:
        return None
    return lines[0]
