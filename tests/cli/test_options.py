"""No option is ignored: each one changes the result of its command, or arrives where it can only change the effort.

A new option without a line here fails `test_every_option_is_here`.
"""

import inspect
import json
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import stm_cli.bench
import stm_cli.compress
import stm_cli.eval
import stm_cli.export
import stm_cli.plan
from stm.export import formats
from stm.export.program import Interface
from stm.model.vim import ViM
from stm.reports import ExportCheck
from tests.blocks import first_blocks
from tests.cli.conftest import arrived_by

FEW = ("--fit-images", "8")  # what a fit finds matters to none of these tests, and how long it takes to all of them


class Case(NamedTuple):
    """The result with `args` differs from that with `base`: in the report, or in the bytes of the folder."""

    args: tuple[str, ...]
    base: tuple[str, ...] = ()


SWEEP = ("--schedule", "sweep", "--rate", "0.4")
HSP = ("--weights", "hsp")
READING = ("split", "image_column", "label_column")
COMPRESS = {
    "rate": Case(("--rate", "0.2")),
    "saving": Case(("--saving", "0.3")),
    "stages": Case(("--stages", "1,2")),
    "method": Case(("--method", "paper")),
    "schedule": Case(("--schedule", "sweep")),
    "sides": Case(("--sides", "left")),
    "tokens_per_side": Case(("--tokens-per-side", "3"), SWEEP),
    "weights": Case(("--weights", "sum")),
    "hsp": Case(("--hsp", "static"), HSP),
    "normalize": Case(("--normalize",), HSP),
    "step_scale": Case(("--step-scale", "1")),
    "span_conv": Case(("--plain-conv",)),
    "calibration": Case(("--calibration", "OTHER"), (*HSP, "--hsp", "static")),
    "data": Case(("--data", "OTHER")),
    "limit": Case(("--limit", "5")),
    "max_drop": Case(("--max-drop", "100"), ("--rate", "0.4")),
    "max_kl": Case(("--max-kl", "1")),  # of what is not rounded: refused
    "speedup": Case(("--speedup", "1000")),  # out of reach, and refused
    "fit_on": Case(("--fit-on", "OTHER")),
    "fit_images": Case(("--fit-images", "6")),
    "no_eval": Case(("--no-eval",)),
    **{name: Case((f"--{name.replace('_', '-')}", "wish")) for name in READING},  # refused: nothing embedded has any
    "labels": Case(("--labels", "wish")),  # there is no such file
    "image_size": Case(("--image-size", "112")),
    "class_token": Case(("--class-token", "head")),
    "divide_out": Case(("--no-divide-out",)),
    "backbone": Case(("--backbone",)),
    "ema": Case(("--ema",)),
    "weights_key": Case(("--weights-key", "model_ema")),
    "mean": Case(("--mean", "0.5")),
    "std": Case(("--std", "0.5,0.5,0.4")),
    "crop_ratio": Case(("--crop-ratio", "0.7")),
    "interpolation": Case(("--interpolation", "nearest")),
    "device": Case(("--device", "wish")),
    "dtype": Case(("--dtype", "bfloat16")),
    "backend": Case(("--backend", "reference")),
}
OF_FILE = ("labels", "divide_out", "backbone", "ema", "weights_key")
IMAGES = ("mean", "std", "crop_ratio", "interpolation")
SOURCES = ("image_size", "class_token", "device", "dtype", "backend")
EVAL = {
    "data": Case(("--data", "OTHER")),
    "records": Case(("--records", "records.csv")),
    **{
        name: COMPRESS[name]
        for name in ("limit", "labels", "divide_out", "backbone", "ema", "weights_key", *READING, *IMAGES, *SOURCES)
    },
}
# What the clock says is left out of the comparison: it is never the same twice.
BENCH = {
    "batch_sizes": Case(("--batch-sizes", "1,2")),
    "threads": Case(("--threads", "3")),
    "rounds": Case(("--rounds", "2")),
    "against": Case(("--against", "vit")),
    "optimize": Case(("--optimize",)),
    **{name: COMPRESS[name] for name in ("rate", "saving", "stages", "method", "schedule")},
    **{name: COMPRESS[name] for name in SOURCES},
}
PLAN = {
    "fit_on": Case(("--fit-on", "OTHER")),
    "fit_images": Case(("--fit-images", "6")),
    "data": Case(("--data", "OTHER")),
    "limit": Case(("--limit", "5")),
    "seed": Case(("--seed", "1"), ("--limit", "2")),
    "seconds": Case(("--seconds", "9")),
    "timed": Case(("--batch-size", "2")),
    **{name: BENCH[name] for name in ("threads", "rounds")},
    **{
        name: COMPRESS[name]
        for name in (
            "method",
            "schedule",
            "labels",
            "divide_out",
            "backbone",
            "ema",
            "weights_key",
            *READING,
            *IMAGES,
            *SOURCES,
        )
    },
}
RUN = ("--format", "pt2")  # for another runtime
EXPORT = {
    "format": Case(("--format", "folder")),
    "batch_size": Case(("--batch-size", "2"), RUN),
    "dynamic_batch": Case(("--dynamic-batch",), (*RUN, "--batch-size", "2")),  # refused: they exclude each other
    "with_preprocessing": Case(("--with-preprocessing",), RUN),
    "features": Case(("--features",), RUN),
    "out_indices": Case(("--out-indices", "1,-1"), (*RUN, "--features")),
    **{
        name: COMPRESS[name]
        for name in ("labels", "divide_out", "backbone", "ema", "weights_key", *IMAGES, *SOURCES)
        if name not in ("device", "backend")
    },
}
# Tested on their own: what is written where, and the Hub (tests/hub).
ELSEWHERE = {"model", "out", "force", "dry_run", "recipe", "save_recipe", "file", "revision", "push_to", "format"}
# These change how much is done at once, how it is shown, or which of equal things is drawn; they arrive, see the last
# test.
EFFORT = {"batch_size", "workers", "seed", "token", "json", "quiet", "no_cache", "served_batch"}


def test_every_option_is_here() -> None:
    assert set(inspect.signature(stm_cli.compress.run).parameters) | {"format"} == COMPRESS.keys() | ELSEWHERE | EFFORT
    assert set(inspect.signature(stm_cli.eval.run).parameters) <= EVAL.keys() | ELSEWHERE | EFFORT
    assert (
        set(inspect.signature(stm_cli.bench.run).parameters)
        <= BENCH.keys()
        | {"labels", "divide_out", "backbone", "ema", "weights_key", "random_weights", *IMAGES}
        | ELSEWHERE
        | EFFORT
    )
    assert set(inspect.signature(stm_cli.plan.run).parameters) <= PLAN.keys() | {"random_weights"} | ELSEWHERE | EFFORT
    assert set(inspect.signature(stm_cli.export.run).parameters) == EXPORT.keys() | (
        {"model", "out", "force", "file", "revision", "token", "json", "quiet"}
    )
    assert EVAL.keys() <= inspect.signature(stm_cli.eval.run).parameters.keys()


@pytest.fixture(scope="module")
def model(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four blocks of the mini checkpoint, a trainer's model_ema beside them, and nothing that says the size; the name
    says the class token's place."""
    checkpoint = torch.load(mini, weights_only=False)
    generator = torch.Generator().manual_seed(0)
    weights = first_blocks(checkpoint["model"], 4)
    checkpoint["model"] = weights
    checkpoint["model_ema"] = {
        name: value + 0.02 * torch.randn(value.shape, generator=generator) for name, value in weights.items()
    }
    del checkpoint["args"], checkpoint["optimizer"]
    path = tmp_path_factory.mktemp("checkpoint") / "mini_midclstok.pth"
    torch.save(checkpoint, path)
    return path


@pytest.fixture(scope="module")
def other(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the images, under another name."""
    folder = tmp_path_factory.mktemp("other")
    rows = (labelled / "labels.csv").read_text().splitlines()[:7]
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    for row in rows[1:]:
        shutil.copy(labelled / row.split(",")[0], folder)
    return folder


Bases = dict[tuple[str, ...], Any]


@pytest.fixture(scope="module")
def bases() -> Bases:
    """What each command found without the option of a test. Options that share a base run it twice, not twice each."""
    return {}


def found_without(bases: Bases, command: str, run: Callable[..., Any], base: tuple[str, ...]) -> Any:
    """What `run` finds with the words of `base`, twice the same."""
    key = (command, *base)
    if key not in bases:
        bases[key] = run(*base)
        assert run(*base) == bases[key], "the same command gives the same result"
    return bases[key]


def result(run, folder: Path | None = None) -> Any:
    """What a run found: its report without speed and name, and the weights that it wrote; or the error that it met."""
    if run.code != 0:
        return run.err
    report = json.loads(run.out)
    report.pop("images_per_second", None)
    (report.get("eval") or {}).pop("images_per_second", None)
    report.pop("served", None)  # a clock, and what is said of it
    report["notes"] = [note for note in report.get("notes", []) if "optimize()" not in note]
    return report, (folder / "model.safetensors").read_bytes() if folder and folder.exists() else None


@pytest.mark.parametrize("option", COMPRESS)
def test_each_option_of_compress_changes_the_result(
    here, model: Path, labelled: Path, other: Path, tmp_path: Path, bases: Bases, option: str
) -> None:
    def compress(*args: str) -> Any:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        words = [str(other) if word == "OTHER" else word for word in args]
        size = () if "--image-size" in args else ("--image-size", "64")
        images = () if {"--no-eval", "--data"} & set(args) else ("--data", labelled)
        images += () if {"--fit-images", "--schedule"} & set(args) else FEW
        return result(here("compress", model, "--out", "out", "--json", *size, *images, *words), tmp_path / "out")

    case = COMPRESS[option]
    base = found_without(bases, "compress", compress, case.base)
    assert isinstance(base, tuple), base
    assert compress(*case.base, *case.args) != base


@pytest.mark.parametrize("option", EVAL)
def test_each_option_of_eval_changes_the_result(
    here, model: Path, labelled: Path, other: Path, tmp_path: Path, bases: Bases, option: str
) -> None:
    def evaluate(*args: str) -> Any:
        words = [str(other) if word == "OTHER" else word for word in args]
        size = () if "--image-size" in args else ("--image-size", "64")
        images = () if "--data" in args else ("--data", labelled)
        return result(here("eval", model, "--json", *size, *images, *words)), sorted(
            path.name for path in tmp_path.iterdir()
        )

    case = EVAL[option]
    base = found_without(bases, "eval", evaluate, case.base)
    assert isinstance(base[0], tuple), base
    assert evaluate(*case.base, *case.args) != base


CLOCK = {"ms_per_image", "ms_iqr", "images_per_second", "gain", "gain_ci", "gemm_ms", "gemm_ratio", "wall_clock_gain"}


def timeless(value: Any) -> Any:
    """A report without what the clock said."""
    if isinstance(value, dict):
        return {key: timeless(each) for key, each in value.items() if key not in CLOCK}
    return [timeless(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("command", "option"), [*(("bench", name) for name in BENCH), *(("plan", name) for name in PLAN)]
)
def test_each_option_of_bench_and_plan_changes_the_result(
    here, model: Path, labelled: Path, other: Path, bases: Bases, command: str, option: str
) -> None:
    def timed(*args: str) -> Any:
        words = [str(other) if word == "OTHER" else word for word in args]
        words += () if "--image-size" in args else ("--image-size", "64")
        words += () if "--rounds" in args else ("--rounds", "1")
        words += () if command == "bench" or "--data" in args else ("--data", labelled)
        words += () if command == "bench" or {"--fit-images", "--schedule"} & set(args) else FEW
        run = here(command, model, "--json", *words)
        return timeless(json.loads(run.out)) if run.code == 0 else run.err

    case = {"bench": BENCH, "plan": PLAN}[command][option]
    base = found_without(bases, command, timed, case.base)
    assert isinstance(base, dict), base
    assert timed(*case.base, *case.args) != base


@pytest.mark.parametrize("option", EXPORT)
def test_each_option_of_export_changes_the_result(
    here, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bases: Bases, option: str
) -> None:
    """tests/export runs what is written for other runtimes; here the file says what it would be of."""

    def write(
        name: str, model: ViM, interface: Interface, path: Path, *, force: bool = False, on_progress: Any = None
    ) -> ExportCheck:
        path.write_text(repr((name, model.config.dtype, interface)))
        words = {"runtime": "torch", "version": "2", "images": 1, "batch_sizes": (1,), "agreement": None, "threads": 1}
        numbers = dict.fromkeys(("difference", "tolerance", "ms_per_image", "own_ms_per_image"), 1.0)
        return ExportCheck(**words, **numbers)

    monkeypatch.setattr(formats, "write", write)

    def export(*args: str) -> Any:
        size = () if "--image-size" in args else ("--image-size", "64")
        run = here("export", model, "--out", "out", "--json", *size, *args)
        if run.code:
            return run.err
        path = tmp_path / "out"
        files = [path] if path.is_file() else sorted(path.iterdir())
        content = [file.read_bytes() for file in files]
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return json.loads(run.out), content

    case = EXPORT[option]
    base = found_without(bases, "export", export, case.base)
    assert isinstance(base, tuple), base
    assert export(*case.base, *case.args) != base


def test_out_force_and_dry_run(here, mini: Path, tmp_path: Path) -> None:
    quick = ("compress", mini, "--no-eval", "--quiet")
    assert here(*quick, "--dry-run", "--out", "x").code == 0 and not (tmp_path / "x").exists()
    assert here(*quick, "--out", "x").code == 0 and (tmp_path / "x").is_dir()
    assert here(*quick, "--out", "x").code == 2
    before = (tmp_path / "x" / "model.safetensors").read_bytes()
    assert here(*quick, "--out", "x", "--force", "--rate", "0.2").code == 0
    assert (tmp_path / "x" / "model.safetensors").read_bytes() != before


@pytest.mark.parametrize("limit", [(), ("--limit", "9")])
def test_a_recipe_gives_the_same_bytes(
    here, mini: Path, labelled: Path, tmp_path: Path, limit: tuple[str, ...]
) -> None:
    """Of as many images as were measured then."""
    made = here("compress", mini, *SWEEP, "--weights", "mean", "--data", labelled, *limit, "--quiet", "--out", "first")
    assert made.code == 0, made.err
    again = here("compress", mini, "--recipe", "first", "--data", labelled, "--quiet", "--out", "second")
    assert again.code == 0, again.err
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    refused = here("compress", mini, "--recipe", "first", "--rate", "0.2", "--out", "third")
    assert refused.code == 2 and "rate" in refused.err


@pytest.mark.parametrize("command", ["bench", "plan"])
def test_how_to_read_a_model_arrives_where_only_its_speed_counts(
    here, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    arrived: dict[str, Any] = {}

    monkeypatch.setattr(import_module(f"stm.commands.{command}"), command, arrived_by(arrived))
    options = (
        "--ema",
        "--no-divide-out",
        "--random-weights",
        "--token",
        "t",
        "--file",
        "f",
        "--revision",
        "r",
        "--crop-ratio",
        "0.9",
    )
    options += ("--mean", "0.5", "--std", "0.1,0.2", "--interpolation", "nearest")
    assert here(command, "someone/vim", *options).err == "Error: enough\n"
    expected = {"ema": True, "divide_out": False, "random_weights": True, "token": "t", "file": "f", "revision": "r"}
    expected |= {"mean": (0.5,), "std": (0.1, 0.2), "crop_ratio": 0.9, "interpolation": "nearest"}
    assert {name: arrived[name] for name in expected} == expected


@pytest.mark.parametrize(("command", "does"), [("compress", "compress"), ("eval", "evaluate")])
def test_what_only_changes_the_effort_arrives(here, monkeypatch: pytest.MonkeyPatch, command: str, does: str) -> None:
    arrived: dict[str, Any] = {}

    monkeypatch.setattr(import_module(f"stm.commands.{command}"), does, arrived_by(arrived))
    options = ("--batch-size", "7", "--workers", "2", "--seed", "5", "--token", "t", "--file", "f", "--revision", "r")
    assert here(command, "someone/vim", *options).err == "Error: enough\n"
    expected = {"batch_size": 7, "workers": 2, "seed": 5, "token": "t", "file": "f", "revision": "r"}
    assert {name: arrived[name] for name in expected} == expected
