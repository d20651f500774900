"""Each report in each form, at 80 columns. The reports are made here, so that every line is known."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from stm.codec import encode
from stm.config import Protection, Source
from stm.evaluations import Assessment, Evaluation
from stm.findings import ExplainReport, Fit, PageReport
from stm.recipe import Calibration, Recipe
from stm.reports import (
    BackendStatus,
    CompressReport,
    Environment,
    EnvReport,
    EvalReport,
    ExportReport,
    Flops,
    Gate,
    Guess,
    InfoReport,
    ListedModel,
    ModelsReport,
    Prediction,
    PredictReport,
    PushedFile,
    PushReport,
    ServedSpeed,
)
from stm.units import operations, size
from stm_cli import compress, env, eval, explain, export, info, models, predict, push, report
from stm_cli._format import image_notes, merging_row, shown_name, staircase, tokens
from stm_cli._output import Output

ENVIRONMENT = Environment(
    stm="0.1.0", torch="2.13.0", device="cpu", name="A CPU", dtype="float32", backend="blocked", threads=2
)
PER_BLOCK = [197] * 13 + [99] * 11
MEASURED = Assessment(
    data="digits",
    n=599,
    failed=1,
    top1=0.972,
    top1_ci=(0.955, 0.983),
    top5=0.999,
    top5_ci=(0.99, 1.0),
    agreement=0.991,
    kl=0.00102,
    dense_top1=0.973,
    drop=0.001,
    drop_ci=(-0.003, 0.007),
    mcnemar_p=0.6875,
    images_per_second=123.4,
)
COMPRESSED = CompressReport(
    command="compress",
    model="vim-digits",
    environment=ENVIRONMENT,
    output="vim-digits-stm40",
    verdict="accepted",
    source=Source(file="model.safetensors", sha256="ab" * 32, license="Apache-2.0"),
    recipe=Recipe(method="stm", rate=0.4, removed_share=0.5, schedule="staged"),
    protection=Protection(),
    schedule={"tokens_per_block": PER_BLOCK, "steps": [{"after": 12, "absorb": [[0, 1]] * 98}]},
    asked_saving=0.22843,
    saving=0.2280,
    flops=Flops(paper=1124802048, honest=2098765432, paper_saving=0.2238, honest_saving=0.25),
    parameters=263008,
    bytes=1052032,
    eval=MEASURED,
    served=ServedSpeed(
        batch_size=1, ms_per_image=45.61, dense_ms_per_image=58.14, gain=1.2746, gain_quartiles=(1.251, 1.3), rounds=19
    ),
)


def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, module, report) -> list[str]:
    monkeypatch.setenv("COLUMNS", "80")
    Output(json=False, quiet=False).report(report, module.screen, lambda shown: "")
    out = capsys.readouterr().out.splitlines()
    assert max(map(len, out)) <= 80
    assert all(line == line.rstrip() for line in out)
    return out


def test_compress(capsys, monkeypatch) -> None:
    assert shown(capsys, monkeypatch, compress, COMPRESSED) == [
        "vim-digits -> vim-digits-stm40",
        "method          stm: staged, size weights, step scale p=0.5, span conv",
        "asked           rate 0.4: saving 0.2284 of the token-layers",
        "reached         saving 0.2280 of the token-layers, 0.5000 of the patch tokens",
        "                gone",
        "tokens          █████████████▄▄▄▄▄▄▄▄▄▄▄  197 x 13, 99 x 11",
        "FLOPs (paper)   1.125 G MACs an image, 22.4% less than dense",
        "FLOPs (honest)  2.099 G MACs an image, 25.0% less than dense",
        "parameters      263,008",
        "files           model.safetensors 1.052 MB, config.json, README.md",
        "source          model.safetensors, sha256 abababababab, license Apache-2.0",
        "images          599 of digits, 1 unreadable",
        "top-1           97.2% (95%: 95.5 to 98.3)",
        "top-5           99.9% (95%: 99.0 to 100.0)",
        "drop            0.10 points from the dense 97.3% (95%: -0.30 to 0.70), p=0.69",
        "agreement       99.1% of the images keep the dense model's top-1",
        "KL              0.0010 nats from the dense model",
        "speed           123 images/s on A CPU, 2 threads, float32, backend blocked",
        "served          45.6 ms per image, dense 58.1: 1.27x (quartiles 1.25 to 1.30),",
        "                both after optimize(), batch size 1",
    ]


def test_a_dry_run_shows_the_steps_and_says_that_it_is_one(capsys, monkeypatch) -> None:
    lines = shown(capsys, monkeypatch, compress, replace(COMPRESSED, dry_run=True, eval=None))
    assert lines[0] == "vim-digits would be written to vim-digits-stm40"
    assert "steps           98 after block 12" in lines


def test_a_gate_that_fails_says_that_nothing_was_written(capsys, monkeypatch) -> None:
    failed = replace(COMPRESSED, gate=Gate(max_drop=0.0, drop=0.001, passed=False))
    assert shown(capsys, monkeypatch, compress, failed)[0] == "vim-digits was not written to vim-digits-stm40"


def test_the_method_row_says_all_of_it() -> None:
    calibration = Calibration(data="photos", n=64, sha256="ab" * 32)
    recipe = Recipe(
        method="paper",
        rate=0.4,
        removed_share=0.2,
        schedule="sweep",
        sides="left",
        tokens_per_side=3,
        calibration=calibration,
    )
    protection = Protection(weights="hsp", mode="static", normalized=True, step_scale=0, span_conv=False)
    assert merging_row(encode(recipe), encode(protection)) == (
        "method",
        (
            "paper: sweep, 3 a side and step, left side only, hsp weights (static, normalized), step scale p=0, plain"
            " conv, calibrated on 64 images of photos"
        ),
    )


def test_broken_images_are_named_and_counted() -> None:
    assert image_notes(replace(MEASURED, failed=0)) == []
    assert image_notes(replace(MEASURED, failed=2, broken=("a.png: empty", "b.png: cut"))) == [
        "a.png: empty",
        "b.png: cut",
    ]
    assert image_notes(replace(MEASURED, failed=2, broken=("a.png: empty",))) == [
        "a.png: empty",
        "1 more could not be read",
    ]


def test_what_was_not_measured_says_why(capsys, monkeypatch) -> None:
    # sorted by key, as a folder's config.json gives them back
    reasons = {"images_per_second": "all recorded", "kl": "no dense model"} | dict.fromkeys(
        ("drop", "top1", "top5"), "the images have no label"
    )
    lines = shown(
        capsys, monkeypatch, eval, eval_report(Assessment(data="photographs", n=48, agreement=0.9, reasons=reasons))
    )
    assert lines == [
        "vim-s",
        "images        48 of photographs",
        "agreement     90.0% of the images keep the dense model's top-1",
        "not measured  speed: all recorded",
        "not measured  KL: no dense model",
        "not measured  top-1, top-5, drop: the images have no label",
    ]


def eval_report(measured: Evaluation) -> EvalReport:
    return EvalReport(command="eval", model="vim-s", environment=ENVIRONMENT, **vars(measured))


def test_info(capsys, monkeypatch) -> None:
    config = {
        "num_classes": 10,
        "label_names": None,
        "dtype": "float32",
        "model": {
            "image_size": 28,
            "patch": 2,
            "stride": 2,
            "in_chans": 1,
            "d_model": 32,
            "d_state": 16,
            "depth": 24,
            "class_token": "head",
        },
        "schedule": COMPRESSED.schedule,
        "protection": encode(COMPRESSED.protection),
        "recipe": encode(COMPRESSED.recipe),
    }
    report = InfoReport(
        command="info",
        model="vim-digits-stm40",
        environment=ENVIRONMENT,
        config=config,
        tokens_per_block=tuple(PER_BLOCK),
        flops=COMPRESSED.flops,
        parameters=263008,
        source=COMPRESSED.source,
        measured=(),
    )
    lines = shown(capsys, monkeypatch, info, report)
    assert lines[1:3] == [
        "model           ViM, 24 blocks, D=32, N=16, 10 classes, 28 x 28 pixels, 1",
        "                channel, patch 2, stride 2, class token at the head, float32",
    ]
    assert "method          stm: staged, size weights, step scale p=0.5, span conv" in lines
    assert "FLOPs (paper)   1,124,802,048 MACs an image (1.125 G), 22.4% less than dense" in lines


def test_the_folder_here_is_shown_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small").mkdir()
    monkeypatch.chdir(tmp_path / "small")
    assert [shown_name(name) for name in (".", "..", "./small", "vim-s")] == [
        "small",
        tmp_path.name,
        "./small",
        "vim-s",
    ]


def test_predict(capsys, monkeypatch) -> None:
    first = Prediction(
        file="[bold]a.png",
        top5=(Guess(index=3, label="three", probability=0.9), Guess(index=8, label="eight", probability=0.05)),
    )
    report = PredictReport(
        command="predict",
        model="m",
        environment=ENVIRONMENT,
        predictions=(first, Prediction(file="b.png", error="b.png: it is empty")),
    )
    assert shown(capsys, monkeypatch, predict, report) == [
        "[bold]a.png",
        "  90.0%  three",
        "   5.0%  eight",
        "b.png: it is empty",
    ]
    assert predict.value(report) == "[bold]a.png\tthree\nb.png\t"


def test_explain(capsys, monkeypatch) -> None:
    found = ExplainReport(
        command="explain",
        model="vim-digits",
        environment=ENVIRONMENT,
        output="vim-digits-explained",
        data="digits",
        images=("a.png", "b.png"),
        block=13,
        tokens_per_block=tuple(PER_BLOCK),
        fading={"left": Fit(amplitude=0.0141, rate=0.0151, r2=0.597), "right": None},
        losses={"prune": 0.0233, "mean": 0.0219, "hsp": 0.0228},
        plan_change=(0.0, 0.1304, 0.68),
        costs_from="576 drawn pictures, seed 0",
        files=("fading.png", "fading.svg", "fading.csv"),
    )
    assert shown(capsys, monkeypatch, explain, found) == [
        "vim-digits -> vim-digits-explained",
        "Relative changes of the class token's state:",
        "images         2 of digits",
        "tokens         █████████████▄▄▄▄▄▄▄▄▄▄▄  197 x 13, 99 x 11",
        "fading, left   1.41% x exp(-0.015 d), R² = 0.60, d tokens away, block 13",
        "fading, right  no change that could be fitted",
        "one token      removed 2.33%, mean 2.19%, hidden-state protection 2.28%",
        "all merges     68.0% in the worst block",
        "costs          from 576 drawn pictures, seed 0",
        "files          3: fading.png, ...",
    ]


def test_report(capsys, monkeypatch) -> None:
    found = PageReport(
        command="report",
        model="small",
        environment=ENVIRONMENT,
        output="small-report.html",
        bytes=72980,
        eval=MEASURED,
        changed=("a.png",),
        missing={"bench": "no bench"},
    )
    lines = shown(capsys, monkeypatch, report, found)
    assert lines[:3] == ["small", "page       small-report.html, 72.98 kB", "images     599 of digits, 1 unreadable"]
    assert lines[-2:] == [
        "speed      123 images/s on A CPU, 2 threads, float32, backend blocked",
        "not in it  no bench",
    ]


def test_env(capsys, monkeypatch) -> None:
    report = EnvReport(
        command="env",
        model="",
        environment=ENVIRONMENT,
        python="3.11.7",
        platform="Linux",
        packages={"torch": "2.13.0", "mamba-ssm": None},
        devices=("cpu",),
        products="F.linear: this torch has no oneDNN operator for it",
        backends=(BackendStatus(name="native", available=False, reason="no compiler was found"),),
    )
    lines = shown(capsys, monkeypatch, env, report)
    assert "packages  mamba-ssm not installed, torch 2.13.0" in lines
    assert "  native  not available: no compiler was found" in lines
    assert "products  F.linear: this torch has no oneDNN operator for it" in lines


def test_push(capsys, monkeypatch) -> None:
    files = (
        PushedFile(name="model.safetensors", bytes=1368048, change="changed"),
        PushedFile(name="README.md", bytes=3210, change="kept"),
    )
    report = PushReport(
        command="push",
        model="small",
        environment=ENVIRONMENT,
        repo="me/small",
        url="https://hub/me/small",
        commit="c0ffee",
        files=files,
    )
    assert shown(capsys, monkeypatch, push, report) == [
        "small -> https://hub/me/small",
        "changed  model.safetensors, 1.368 MB",
        "kept     README.md, 3.21 kB",
        "commit   c0ffee",
    ]
    dry = shown(capsys, monkeypatch, push, replace(report, dry_run=True, created=True, commit=None))
    assert dry[:2] == ["small would go to https://hub/me/small", "repository  would be made"]
    assert (
        shown(capsys, monkeypatch, push, replace(report, commit=None))[-1]
        == "commit   none: everything is there already"
    )


def test_export_and_models(capsys, monkeypatch) -> None:
    exported = ExportReport(
        command="export",
        model="m",
        environment=ENVIRONMENT,
        output="m.pth",
        format="official",
        source=Source(),
        tensors=415,
        bytes=1368048,
    )
    assert shown(capsys, monkeypatch, export, exported)[:2] == ["m -> m.pth", "format   official"]
    facts = {
        "repo": "hustvl/Vim",
        "file": "vim.pth",
        "license": "apache-2.0",
        "parameters": 7148008,
        "tokens": 197,
        "image_size": 224,
    }
    known = (
        ListedModel(name="vim-ti", **facts, top1=0.761, cached=True, bytes=12_000_000),
        ListedModel(name="vim-s", **facts, top1=0.805, cached=False),
    )
    lines = shown(
        capsys, monkeypatch, models, ModelsReport(command="models", model="", environment=ENVIRONMENT, models=known)
    )
    assert lines == [
        "name    parameters  tokens  top-1  license     here",
        "vim-ti  7,148,008   197     76.1%  apache-2.0  cached, 12 MB",
        "vim-s   7,148,008   197     80.5%  apache-2.0  no",
    ]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (operations(1124802048), "1.125 G"),
        (operations(8_707_904), "8.708 M"),
        (operations(999), "999"),
        (size(998), "998 bytes"),
        (size(28_592_032), "28.59 MB"),
        (tokens([197, 193, 189, 189]), "197, 193, 189 x 2"),
        (staircase([197, 197, 99, 1]), "██▄▁"),
    ],
)
def test_numbers(said: str, expected: str) -> None:
    assert said == expected


def test_a_gate_that_fails_is_in_the_report() -> None:
    report = replace(COMPRESSED, gate=Gate(max_drop=0.0, drop=0.001, passed=False))
    assert json.loads(report.to_json())["gate"] == {"drop": 0.001, "max_drop": 0.0, "passed": False}
