"""The five commands from end to end on a mini model: exit code, JSON on stdout, one sentence on stderr, what is on
disk."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stm import StmError, compress, load, load_checkpoint
from stm.config import Protection
from stm.reports import ServedSpeed
from stm.verdicts import no_gain


def error_of(run) -> str:
    """The one sentence of a run that failed, which printed nothing else but a next step."""
    first, *rest = run.err.splitlines()
    assert first.startswith("Error: ")
    assert len(rest) <= 1 and all(line.startswith("Hint: ") for line in rest)
    assert run.out == ""
    return first


@pytest.mark.slow
def test_the_whole_job_in_processes_of_their_own(stm, mini: Path, labelled: Path, tmp_path: Path) -> None:
    made = stm("compress", mini, "--rate", "0.4", "--data", labelled, "--json")
    assert made.code == 0, made.err
    report = json.loads(made.out)
    assert report["output"] == "vim_mini_stride8-stm40"
    assert sorted(os.listdir(tmp_path)) == [report["output"]]
    assert sorted(os.listdir(tmp_path / report["output"])) == ["README.md", "config.json", "model.safetensors"]
    assert report["eval"]["dense_top1"] == 10 / 12

    again = stm("eval", "--data", labelled, "--json")  # the only model below this folder
    assert again.code == 0, again.err
    measured = json.loads(again.out)
    assert measured["model"] == report["output"]
    assert {key: measured[key] for key in ("top1", "kl", "agreement", "n")} == {
        key: report["eval"][key] for key in ("top1", "kl", "agreement", "n")
    }

    shown = stm("info", report["output"])
    assert shown.code == 0
    assert f"FLOPs (paper)   {report['flops']['paper']:,} MACs an image" in shown.out
    assert shown.err.splitlines()[-1] == f"Next: stm eval {report['output']}"


def test_human_output_names_the_next_commands(here, mini: Path, tmp_path: Path) -> None:
    run = here("compress", mini, "--no-eval", "--out", "my small model")
    assert run.code == 0
    assert "asked           rate 0.4: saving 0.2000 of the token-layers" in run.out
    assert run.err.endswith("Next: stm eval 'my small model'\n      stm info 'my small model'\n")


def test_the_next_command_takes_the_same_images(here, mini: Path, labelled: Path) -> None:
    run = here("compress", mini, "--data", labelled, "--limit", "1", "--out", "small")
    assert f"Next: stm eval small --data {labelled}\n" in run.err


def test_quiet_prints_the_folder(here, mini: Path) -> None:
    assert here("compress", mini, "--no-eval", "--quiet") == (0, "vim_mini_stride8-stm40\n", "")


def test_a_dry_run_writes_nothing_and_says_how_to_go_on(here, mini: Path, tmp_path: Path) -> None:
    run = here("compress", mini, "--dry-run", "--method", "staged", "--saving", "0.3")
    assert run.code == 0
    assert os.listdir(tmp_path) == []
    assert "24 after block 2, 12 after block 3" in run.out
    assert "model.safetensors 442.7 kB, config.json, README.md" in run.out
    assert run.err.splitlines()[-1] == f"Next: stm compress {mini} --method staged --saving 0.3"


def test_a_dry_run_never_repeats_a_token(here, mini: Path) -> None:
    run = here("compress", mini, "--dry-run", "--token", "hf_secret")
    assert run.code == 0
    assert "hf_secret" not in run.out + run.err


def test_the_gate(here, mini: Path, labelled: Path, tmp_path: Path) -> None:
    # Pruning all the patches of a side at once before the second block is far from the dense model, which is right on
    # 10 of 12.
    hard = ("compress", mini, "--stages", "1,2,3,4", "--weights", "prune", "--data", labelled, "--out", "hard")
    failed = here(*hard, "--max-drop", "5", "--json")
    assert failed.code == 3
    report = json.loads(failed.out)
    gate, (decided,) = report["gate"], report["decided"]
    assert report["verdict"] == "regression" and not decided["met"]
    assert decided == {"name": "max_drop", "bound": 0.05, "measured": gate["drop"], "met": False, "n": 12}
    assert gate["passed"] is False and gate["max_drop"] == 0.05 and gate["drop"] > 0.05
    assert "Error: top-1 drops by" in failed.err and "5 are allowed: nothing was written" in failed.err
    assert here(*hard, "--max-drop", "5", "--quiet").out == ""
    assert os.listdir(tmp_path) == []
    passed = here(*hard, "--max-drop", "100", "--json")
    assert passed.code == 0 and json.loads(passed.out)["gate"]["passed"] is True
    assert json.loads(passed.out)["verdict"] == "accepted"
    assert os.listdir(tmp_path) == ["hard"]


@pytest.mark.parametrize(
    ("words", "code", "decided"),
    [
        (("--saving", "0.95"), 2, {"name": "saving", "bound": 0.95, "measured": 0.75}),
        (("--rate", "0.98"), 2, {"name": "rate", "bound": 0.98, "measured": 0.81}),
        (("--method", "paper", "--rate", "0.001"), 2, {"name": "rate", "bound": 0.001, "measured": 0.03}),
        (("--method", "staged", "--saving", "0.9"), 2, {"name": "saving", "bound": 0.9, "measured": 0.64}),
    ],
)
def test_what_is_out_of_reach_is_a_verdict(here, mini: Path, words: tuple[str, ...], code: int, decided: Any) -> None:
    run = here("compress", mini, *words, "--json")
    report = json.loads(run.out)
    assert (run.code, report["verdict"]) == (code, "infeasible")
    assert report["decided"] == [{**decided, "met": False, "n": None}]
    assert run.err.startswith(f"Error: {report['reason']}\n")
    plain = here("compress", mini, *words)
    assert (plain.code, plain.out) == (code, "")
    # What is no budget at all is no request that a model could fail to meet.
    assert here("compress", mini, words[-2], "-1", "--json").out == ""


def test_eval_shows_what_a_dtype_costs(here, mini: Path, labelled: Path) -> None:
    """Beside the dense model in the file's own dtype: without merging the dtype is all that differs."""
    full = json.loads(here("eval", mini, "--data", labelled, "--json").out)
    assert full["agreement"] is None
    half = json.loads(here("eval", mini, "--data", labelled, "--dtype", "bfloat16", "--json").out)
    assert half["environment"]["dtype"] == "bfloat16"
    assert half["dense_top1"] == full["top1"] and half["drop"] == pytest.approx(half["dense_top1"] - half["top1"])
    assert 0 < half["kl"] < 0.01


def test_predict(here, mini: Path, labelled: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    run = here("predict", mini, labelled / "image 0.png", "--json")
    first = json.loads(run.out)["predictions"][0]
    assert run.code == 0 and len(first["top5"]) == 5 and first["error"] is None
    quiet = here("predict", mini, labelled / "image 0.png", "--quiet")
    assert quiet.out == f"{labelled / 'image 0.png'}\t{first['top5'][0]['label']}\n"
    mixed = here("predict", mini, labelled / "image 0.png", "text.png", "--json")
    assert mixed.code == 1 and "1 of 2 images could not be read; the first: text.png" in mixed.err
    assert json.loads(mixed.out)["predictions"][1]["top5"] == []


def test_without_labels_the_output_says_how_to_measure(here, mini: Path) -> None:
    assert here("compress", mini, "--limit", "2", "--out", "small").code == 0
    run = here("eval", "small", "--limit", "2")
    assert run.code == 0 and "agreement" in run.out
    said = "accuracy was not measured, as photograph-crops has no labels; measure it: stm eval small --data DIR"
    assert f"Note: {said}\n" in run.err


def test_env(here) -> None:
    run = here("env", "--json")
    report = json.loads(run.out)
    assert (run.code, report["command"]) == (0, "env")
    assert all(backend["reason"] for backend in report["backends"])
    assert here("env", "--quiet").out == report["environment"]["backend"] + "\n"


def test_compress_says_what_serving_gains(here, mini: Path, labelled: Path) -> None:
    options = ("--data", labelled, "--limit", "4", "--rate", "0.2")
    report = json.loads(here("compress", mini, *options, "--out", "a", "--json").out)
    served = report["served"]
    assert served["gain_quartiles"][0] <= served["gain"] <= served["gain_quartiles"][1]
    assert served["rounds"] >= 5 and min(served["ms_per_image"], served["dense_ms_per_image"]) > 0
    assert "served" not in report["reasons"] and "Speed: " in Path("a/README.md").read_text()
    none = json.loads(here("compress", mini, "--data", labelled, "--rate", "0", "--out", "b", "--json").out)
    assert none["served"] is None and none["reasons"]["served"] == "nothing is merged"
    small = compress(load_checkpoint(mini), method="paper", rate=0.2)
    slow = ServedSpeed(
        batch_size=1, ms_per_image=9, dense_ms_per_image=6, gain=0.667, gain_quartiles=(0.66, 0.67), rounds=9
    )
    assert small.config.protection is not None
    assert no_gain(slow, small.config.protection).endswith("; --hsp static bakes them")
    assert "0.67x the dense model's speed here: a larger --rate" in no_gain(slow, Protection())


def test_every_report_carries_the_common_keys_sorted(here, mini: Path, labelled: Path) -> None:
    common = {"schema_version", "command", "model", "environment"}
    runs = {
        "compress": here("compress", mini, "--no-eval", "--json"),
        "eval": here("eval", mini, "--data", labelled, "--json"),
        "info": here("info", mini, "--json"),
        "predict": here("predict", mini, labelled / "image 1.png", "--json"),
        "env": here("env", "--json"),
    }
    for command, run in runs.items():
        report = json.loads(run.out)
        assert common <= report.keys() and report["command"] == command
        assert run.out == json.dumps(report, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        if command == "info":
            assert report["environment"] is None  # nothing was run
            continue
        assert set(report["environment"]) == {
            "stm",
            "torch",
            "device",
            "name",
            "dtype",
            "backend",
            "fallbacks",
            "threads",
            "processes",
        }
    keys = {
        "output",
        "source",
        "recipe",
        "protection",
        "schedule",
        "flops",
        "parameters",
        "bytes",
        "eval",
        "served",
        "gate",
        "rounding",
        "kl_gate",
        "feature_change",
    }
    report = json.loads(runs["compress"].out)
    assert keys <= report.keys()
    assert {key for key in keys if report[key] is None} == set(report["reasons"])
    assert set(report["reasons"]) == {"eval", "served", "gate", "rounding", "kl_gate", "feature_change"}


def test_the_model_that_was_found_is_named(here, mini: Path, labelled: Path) -> None:
    here("compress", mini, "--no-eval", "--quiet", "--out", "vim-s")
    assert (
        "Next: stm eval ./vim-s\n" in here("compress", mini, "--no-eval", "--out", "vim-s", "--force").err
    )  # not the alias
    below = here("eval", "--data", labelled)
    assert below.out.startswith("./vim-s\n")
    assert "Note: no MODEL was named: this is the only one below this folder" in below.err


def test_a_broken_image_is_named_and_stops_nothing(here, mini: Path, labelled: Path, tmp_path: Path) -> None:
    shutil.copytree(labelled, tmp_path / "set")
    (tmp_path / "set" / "image 3.png").write_text("no image")
    run = here("eval", mini, "--data", "set")
    assert run.code == 0
    assert "images        11 of set, 1 unreadable" in run.out
    assert "Note: image 3.png: not an image that can be read" in run.err
    assert json.loads(here("eval", mini, "--data", "set", "--json").out)["broken"] == [
        "image 3.png: not an image that can be read"
    ]


def test_files_that_are_no_images_are_said_and_counted(here, mini: Path, labelled: Path, tmp_path: Path) -> None:
    """By every command that takes a folder of images."""
    for number, image in enumerate(sorted(labelled.glob("*.png"))):
        (tmp_path / "set" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        shutil.copy(image, tmp_path / "set" / str(number % 2))
    for number in range(9):
        (tmp_path / "set" / "0" / f"{number}.heic").write_text("")
    said = f"9 files were not taken for images: {', '.join(f'0/{number}.heic' for number in range(8))} and 1 more"
    run = here("eval", mini, "--data", "set", "--json")
    assert f"Note: {said}" in run.err
    document = json.loads(run.out)
    assert (document["skipped"], document["skipped_files"]) == (9, [f"0/{number}.heic" for number in range(8)])
    calibrated = ("--calibration", "set/0", "--method", "paper", "--hsp", "static", "--out", "small")
    run = here("compress", mini, "--data", "set", *calibrated, "--json")
    document = json.loads(run.out)
    assert document["eval"]["skipped"] == 9 and f"Note: {said}" in run.err
    assert "calibration: 9 files were not taken for images: 0.heic" in run.err
    for words in (("compare", mini, "--methods", "random"), ("plan", mini, "--rounds", "1"), ("report", "small")):
        run = here(*words, "--data", "set", "--json")
        document = json.loads(run.out)
        assert f"Note: {said}" in run.err, words
        assert document.get("eval", document)["skipped"] == 9, words


def test_two_models_below_and_none_named(here, mini: Path) -> None:
    for name in ("a", "b"):
        here("compress", mini, "--no-eval", "--quiet", "--out", name)
    run = here("eval")
    assert run.code == 2
    assert "2 folders here hold one: a, b" in error_of(run)


BAD = {
    "rate 0.99": (("--rate", "0.99"), 2, "rate 0.99"),
    "rate -1": (("--rate", "-1"), 2, "rate is -1"),
    "rate=-1": (("--rate=-1",), 2, "rate is -1"),
    "rate nan": (("--rate", "nan"), 2, "rate is nan"),
    "rate inf": (("--rate", "inf"), 2, "rate is inf"),
    "saving nan": (("--saving", "nan"), 2, "saving is nan"),
    "rate and saving": (("--rate", "0.4", "--saving", "0.2"), 2, "rate and saving were given"),
    "rate and stages": (("--rate", "0.4", "--stages", "2"), 2, "rate and stages were given"),
    "stages of no block": (("--stages", "2,9"), 2, "9"),
    "stages that fall": (("--stages", "4,2"), 2, "stages are 4,2"),
    "stages of the paper": (("--stages", "2", "--method", "paper"), 2, "stages need the schedule staged"),
    "tokens per side, staged": (("--tokens-per-side", "2"), 2, "tokens per side"),
    "hsp without its weights": (("--hsp", "static"), 2, "hsp"),
    "normalize without hsp": (("--normalize",), 2, "normalize"),
    "step scale": (("--step-scale", "nan"), 2, "step_scale is nan"),
    "calibration of nothing": (("--calibration", "x", "--method", "paper"), 1, "x"),
    "max drop without labels": (("--max-drop", "1"), 2, "max drop needs labels"),
    "max drop without labels, dry": (("--max-drop", "1", "--dry-run"), 2, "max drop needs labels"),
    "max drop without eval": (("--max-drop", "1", "--no-eval"), 2, "max drop"),
    "data that is not there": (("--data", "nowhere"), 1, "nowhere"),
    "data that is not there, dry": (("--data", "nowhere", "--dry-run"), 1, "nowhere"),
    "backend": (("--backend", "wish"), 2, "wish"),
    "device": (("--device", "wish"), 2, "wish"),
    "file of a file": (("--file", "x"), 2, "--file was given"),
    "out is a parent": (("--out", ".."), 2, ".."),
    "out is here": (("--out", "."), 2, "."),
    "recipe of nothing": (("--recipe", "nowhere"), 1, "nowhere"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_one_sentence_and_leave_nothing(here, mini: Path, tmp_path: Path, case: str) -> None:
    args, code, said = BAD[case]
    run = here("compress", mini, *args)
    assert run.code == code, run.err
    assert said in error_of(run)
    assert os.listdir(tmp_path) == []


def test_bad_options_in_a_process_of_its_own(stm, mini: Path, tmp_path: Path) -> None:
    run = stm("compress", mini, "--rate", "-1")
    assert run.code == 2 and "rate is -1" in error_of(run)
    assert os.listdir(tmp_path) == []


def test_an_existing_folder_is_refused_before_anything_is_loaded(here, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    run = here("compress", "no-such-model", "--out", "there")
    assert run.code == 2 and "there already exists" in error_of(run)
    (tmp_path / "there" / "mine.txt").write_text("precious")
    run = here("compress", "no-such-model", "--out", "there", "--force")
    assert run.code == 2 and "mine.txt" in error_of(run)
    assert (tmp_path / "there" / "mine.txt").read_text() == "precious"


def test_bad_checkpoints_name_the_file(here, mini: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.pth").touch()
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "cut.pth").write_bytes(mini.read_bytes()[:20_000])
    before = sorted(os.listdir(tmp_path))
    for name in ("missing.pth", *before):
        run = here("compress", name)
        assert run.code == 1, (name, run.err)
        assert name in error_of(run)
    assert sorted(os.listdir(tmp_path)) == before


def test_bad_folders_name_the_file(here, mini: Path, tmp_path: Path) -> None:
    here("compress", mini, "--no-eval", "--quiet", "--out", "good")

    def damage(name: str, old: bytes, new: bytes) -> str:
        shutil.copytree("good", "bad", dirs_exist_ok=True)
        path = tmp_path / "bad" / name
        data = path.read_bytes()
        assert old in data
        path.write_bytes(data.replace(old, new, 1))
        run = here("info", "bad")
        assert run.code == 1
        return error_of(run)

    assert "schema_version is 99" in damage("config.json", b'"schema_version": 1', b'"schema_version": 99')
    assert "unknown key" in damage("config.json", b'"dtype"', b'"surprise": 1, "dtype"')
    assert "model.safetensors" in damage("model.safetensors", b"cls_token", b"cls_tokem")
    (tmp_path / "good" / "model.safetensors").write_bytes((tmp_path / "good" / "model.safetensors").read_bytes()[:-1])
    assert "model.safetensors" in error_of(here("info", "good"))


def test_the_ways_to_ask_for_help(stm) -> None:
    """`python -m stm`, `stm help` and `stm help COMMAND` are what people type first."""
    shown = stm("--help").out
    assert stm("help").out == shown
    assert stm("help", "eval").out == stm("eval", "--help").out != shown
    by_module = subprocess.run([sys.executable, "-m", "stm", "--help"], capture_output=True, text=True, check=True)
    assert by_module.stdout.split() == shown.split()
    assert stm("help", "evil").code == 2


@pytest.mark.parametrize(("typed", "meant"), [("vim-digit", "vim-digits"), ("Vim-S", "vim-s"), ("vim_ti", "vim-ti")])
def test_a_name_that_is_nearly_a_model_is_guessed(stm, typed: str, meant: str) -> None:
    assert f"did you mean {meant}?" in stm("info", typed).err


def test_a_name_that_is_like_no_model_is_not(stm) -> None:
    run = stm("info", "resnet50")
    assert "did you mean" not in run.err and "the aliases are vim-digits" in run.err.replace("\n", " ")


def test_the_next_step_is_in_the_text_of_an_error() -> None:
    """A notebook and a log show `str(error)` alone."""
    with pytest.raises(StmError) as caught:
        load("vim-digit")
    assert str(caught.value) == f"{caught.value.message}\nHint: {caught.value.hint}"
    assert str(StmError("it is full")) == "it is full"
