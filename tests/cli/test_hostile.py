"""What nobody types on purpose: edited folders, odd names, odd places. Each is one sentence with the right exit code,
or works."""

import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from stm.commands import predict
from stm.errors import UsageError
from stm.progress import Progress
from stm_cli.main import main
from tests.hang import HANG

ROOT = Path(__file__).resolve().parents[2]
LATIN = os.fsdecode(b"caf\xe9")  # a name in Latin-1, as old disks hold them: not UTF-8
LONG = "x" * 300  # longer than file systems allow


def sentence(run: Any, code: int, *words: str) -> None:
    """The run ended with this code and said one sentence with these words, and at most one next step."""
    first, *rest = run.err.splitlines()
    assert first.startswith("Error: ") and "unexpectedly" not in first, first
    assert all(word in first for word in words), first
    assert len(rest) <= 1 and all(line.startswith("Hint: ") for line in rest), run.err
    assert (run.code, run.out) == (code, "")


@pytest.fixture
def small(here, mini: Path, tmp_path: Path) -> Path:
    """A compressed folder of the mini checkpoint, which was not evaluated."""
    assert here("compress", mini, "--no-eval", "--quiet", "--out", "small").code == 0
    return tmp_path / "small"


def edit(folder: Path, *path: Any, value: Any) -> None:
    file = folder / "config.json"
    document = at = json.loads(file.read_text())
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    file.write_text(json.dumps(document))


@pytest.mark.parametrize("size", [10**18, 10**25], ids=["beyond any memory", "beyond 64 bits"])
def test_a_model_that_no_machine_holds(here, small: Path, size: int) -> None:
    edit(small, "model", "d_state", value=size)
    sentence(
        here("info", "small"), 1, "small/model.safetensors does not hold the tensors that were expected", f"{size}"
    )


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (5, "extra.asked is 5, expected an object"),
        ({"image_size": "big"}, 'extra.asked.image_size is "big", expected an integer'),
        ({"image_size": {}}, "extra.asked.image_size is {}, expected an integer"),
        ({"class_token": 5}, "extra.asked.class_token is 5, expected a string"),
        ({"divide_out": "no"}, 'extra.asked.divide_out is "no", expected true or false'),
        ({"ema": 1}, "extra.asked.ema is 1, expected true or false"),
    ],
)
def test_a_recipe_whose_free_part_is_of_the_wrong_kind(
    here, mini: Path, small: Path, tmp_path: Path, asked: Any, said: str
) -> None:
    edit(small, "extra", value={"asked": asked})
    sentence(here("compress", mini, "--recipe", "small", "--out", "again"), 1, "small/config.json: ", said)
    assert os.listdir(tmp_path) == ["small"]


def test_a_recipe_that_does_not_make_what_its_folder_holds(here, mini: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    assert here("compress", mini, "--method", "staged", "--no-eval", "--out", "small").code == 0
    steps = json.loads((small / "config.json").read_text())["schedule"]["steps"]
    assert steps[0]["absorb"][0] == [0, 1]
    edit(small, "schedule", "steps", 0, "absorb", 0, value=[0, 3])
    sentence(
        here("compress", mini, "--recipe", "small", "--out", "again"),
        1,
        "small does not hold what its own recipe makes",
    )
    assert os.listdir(tmp_path) == ["small"]


def test_a_recipe_of_a_folder_that_was_not_measured_is_measured_where_that_is_asked_for(
    here, mini: Path, small: Path, labelled
) -> None:
    run = here("compress", mini, "--recipe", "small", "--data", labelled, "--out", "again", "--json")
    assert run.code == 0, run.err
    assert json.loads(run.out)["eval"]["n"] == 12
    refused = here("compress", mini, "--recipe", "small", "--data", labelled, "--no-eval", "--out", "third")
    sentence(refused, 2, "which is switched off")


def test_a_recipe_says_when_it_is_measured_on_other_images(here, mini: Path, labelled: Path, tmp_path: Path) -> None:
    made = ("compress", mini, "--limit", "3", "--quiet")
    assert here(*made, "--data", labelled, "--out", "small").code == 0
    shutil.copytree(labelled, tmp_path / "others")
    told = here("compress", mini, "--recipe", "small", "--limit", "3", "--data", "others", "--out", "again")
    assert told.code == 0
    assert f"Note: the recipe's folder was measured on {labelled.name}, this one on others" in told.err


@pytest.mark.parametrize("name", ["meta", "privateuseone", "hpu", "mkldnn", "cpu:7", "CPU", "", "auto:1", LATIN])
def test_a_device_that_is_not_here(here, mini: Path, name: str, recwarn: pytest.WarningsRecorder) -> None:
    sentence(
        here("compress", mini, "--device", name, "--dry-run"),
        2,
        f"there is no device {name!r} here, expected auto or cpu",
    )
    assert not recwarn.list


@pytest.fixture
def odd(tmp_path: Path, labelled: Path) -> Path:
    """The labelled images in a folder whose name is not UTF-8; skipped where the file system has no such names."""
    try:
        shutil.copytree(labelled, tmp_path / LATIN)
    except OSError:
        pytest.skip("this file system takes only names in UTF-8")
    return tmp_path / LATIN


def test_names_that_cannot_be_written_down(here, mini: Path, small: Path, odd: Path, tmp_path: Path) -> None:
    sentence(here("compress", mini, "--out", LATIN + "-stm40"), 2, "caf\\udce9-stm40 is not a name in UTF-8")
    sentence(here("compress", mini, "--data", LATIN, "--out", "x"), 1, "caf\\udce9 is not a name in UTF-8")
    sentence(
        here("compress", mini, "--method", "paper", "--hsp", "static", "--calibration", LATIN, "--no-eval"),
        1,
        "not a name in UTF-8",
    )
    shutil.copy(mini, LATIN + ".pth")
    sentence(here("info", LATIN + ".pth"), 1, "caf\\udce9.pth is not a name in UTF-8")
    shutil.copytree(small, LATIN + "-small")
    sentence(here("info", LATIN + "-small"), 1, "caf\\udce9-small is not a name in UTF-8")
    sentence(
        here("compress", mini, "--recipe", LATIN + "-small", "--out", "x"), 1, "caf\\udce9-small is not a name in UTF-8"
    )
    sentence(here("info", "someone/vim", "--file", LATIN), 1, "caf\\udce9 of someone/vim is not a name in UTF-8")
    assert not (tmp_path / "x").exists()


def test_images_may_have_any_names(here, mini: Path, odd: Path, tmp_path: Path) -> None:
    (tmp_path / "photos" / "3").mkdir(parents=True)
    shutil.copy(odd / "image 0.png", tmp_path / "photos" / "3" / f"{LATIN}.png")
    (tmp_path / "photos" / "3" / f"{LATIN}2.png").write_text("broken")
    for _ in ("new", "resumed"):
        run = here("eval", mini, "--data", "photos", "--records", "r.csv", "--json")
        assert (run.code, json.loads(run.out)["n"], json.loads(run.out)["failed"]) == (0, 1, 1)
    assert b"3/caf\xe9.png,3," in (tmp_path / "r.csv").read_bytes()
    seen = json.loads(here("predict", mini, f"photos/3/{LATIN}.png", "--json").out)
    assert seen["predictions"][0]["file"] == f"photos/3/{LATIN}.png"


def test_names_that_are_too_long(here, mini: Path, tmp_path: Path) -> None:
    for args in (("info", LONG), ("eval", mini, "--data", LONG), ("compress", mini, "--recipe", LONG, "--dry-run")):
        sentence(here(*args), 1, LONG, "File name too long")
    records = ("eval", mini, "--records")
    for args in (("compress", mini, "--out", LONG), (*records, LONG), (*records, "x" * 250)):
        sentence(here(*args), 2, "x" * 250, "cannot be written: File name too long")
    assert os.listdir(tmp_path) == []


def test_a_link_to_itself(here, mini: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    same = here(
        "compress",
        mini,
        "--method",
        "paper",
        "--hsp",
        "static",
        "--calibration",
        "loop",
        "--data",
        "loop",
        "--out",
        "x",
    )
    sentence(same, 2, "loop cannot both calibrate and measure")
    for args in (
        ("info", "loop"),
        ("eval", mini, "--data", "loop"),
        ("predict", mini, "loop"),
        ("eval", mini, "--records", "loop"),
    ):
        run = here(*args)
        sentence(run, run.code, "loop")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_records_go_into_a_plain_file(here, mini: Path) -> None:
    sentence(
        here("eval", mini, "--records", "/dev/full"),
        2,
        "/dev/full is no plain file, expected a CSV file for the records",
    )


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("pred", "x", "record 1 cannot be read: invalid literal"),
        ("kl", "nan", "record 1 cannot be read: nan is not a difference of logits"),
        ("kl", "-0.5", "record 1 cannot be read: -0.5 is not a difference of logits"),
        ("kl", "1e308", "record 1 cannot be read: 1e308 is not a difference of logits"),
        ("margin", "inf", "record 1 cannot be read: inf is not a difference of logits"),
    ],
)
def test_records_that_were_edited(
    here, small: Path, tmp_path: Path, labelled: Path, column: str, value: str, said: str
) -> None:
    evaluate = ("eval", "small", "--data", labelled, "--records", "r.csv", "--json")
    assert here(*evaluate).code == 0
    header, first, *others = (tmp_path / "r.csv").read_text().splitlines()
    row = dict(zip(header.split(","), first.split(","), strict=True)) | {column: value}
    (tmp_path / "r.csv").write_text("\n".join([header, ",".join(row.values()), *others, ""]))
    sentence(here(*evaluate), 1, "r.csv: ", said)


@pytest.mark.parametrize(
    ("old", "new"), [("{", "[" * 100_000), ('"seed": 0', '"seed": 0, "seed": 1')], ids=["deep", "twice"]
)
def test_an_identity_that_was_edited(here, mini: Path, tmp_path: Path, labelled: Path, old: str, new: str) -> None:
    evaluate = ("eval", mini, "--data", labelled, "--records", "r.csv", "--json")
    assert here(*evaluate).code == 0
    beside = tmp_path / "r.csv.json"
    beside.write_text(beside.read_text().replace(old, new, 1))
    sentence(here(*evaluate), 1, "r.csv.json does not say what r.csv was measured on: ")


def test_whether_a_path_can_be_read_is_not_a_matter_of_options(
    here, mini: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that may not be read is a broken one, and such data exits 1: the option parser must not refuse them
    first."""
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK)
    assert here("predict", mini, labelled / "image 0.png").code == 0
    assert here("eval", mini, "--data", labelled, "--records", "r.csv").code == 0


def test_weights_whose_logits_are_not_finite(here, mini: Path, labelled: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(mini, weights_only=False)
    checkpoint["model"]["head.weight"] = checkpoint["model"]["head.weight"].sign() * 3e38
    torch.save(checkpoint, tmp_path / "wild.pth")
    for args in (("predict", "wild.pth", labelled / "image 0.png"), ("eval", "wild.pth", "--data", labelled)):
        sentence(here(*args, "--json"), 1, "image 0.png are not finite")


def test_a_tensor_that_claims_more_than_any_memory(here, mini: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(mini, weights_only=False)
    for name, shape in (("head.weight", (10**14, 32)), ("head.bias", (10**14,))):  # the file holds one number
        checkpoint["model"][name] = torch.zeros(1).expand(shape)
    torch.save(checkpoint, tmp_path / "huge.pth")
    sentence(here("info", "huge.pth"), 1, "huge.pth asks for a tensor of 3,200,000,000,000,000 elements")


def test_predict_takes_many_images_in_batches(
    here, mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        Image.new("RGB", (64, 64), (50 * number, 0, 0)).save(tmp_path / f"{number}.png")
    sizes: list[int] = []
    whole = predict.logits_of
    monkeypatch.setattr(
        predict, "logits_of", lambda model, images, *rest: sizes.append(len(images)) or whole(model, images, *rest)
    )
    names = [f"{number}.png" for number in range(5)]
    one_by_one, at_once = (
        json.loads(here("predict", mini, *names, "--batch-size", size, "--json").out) for size in ("2", "99")
    )
    assert sizes == [2, 2, 1, 5]
    assert [p["file"] for p in one_by_one["predictions"]] == names == [p["file"] for p in at_once["predictions"]]
    assert [p["top5"][0]["index"] for p in one_by_one["predictions"]] == [
        p["top5"][0]["index"] for p in at_once["predictions"]
    ]


@pytest.mark.parametrize("command", ["compress", "eval", "info", "predict"])
def test_downloads_tell_how_far_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str) -> None:
    import stm.hub.fetch

    def fetch(repo: str, file: str, *, on_progress: Any = None, **_: Any) -> None:
        on_progress(Progress("download", 1, 2, "B"))
        raise UsageError("enough")

    monkeypatch.setattr(stm.hub.fetch, "fetch", fetch)
    monkeypatch.chdir(tmp_path)
    told: list[Progress] = []
    run = getattr(import_module(f"stm.commands.{command}"), "evaluate" if command == "eval" else command)
    with pytest.raises(UsageError, match="enough"):
        run("vim-ti", *([["a.png"]] if command == "predict" else []), on_progress=told.append)
    assert told == [Progress("download", 1, 2, "B")]


def test_closed_streams_are_no_failure(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in ("stdout", "stderr"):  # what Python makes of `>&-`
        monkeypatch.setattr(sys, stream, None)
    monkeypatch.setattr(sys, "argv", ["stm", "info", str(small), "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    sys.stdout.close()
    sys.stderr.close()
    assert ended.value.code == 0


def test_a_current_folder_that_is_gone(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    words = f"rmdir ../gone && {sys.executable} -m stm_cli eval vim-digits"
    run = subprocess.run(
        ["sh", "-c", words],
        cwd=gone,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert run.returncode == 2
    assert run.stderr.startswith("Error: the current folder does not exist any more\n")
