"""`stm bench` and `stm plan` from end to end: what is in their reports, and that the parts of one agree."""

import itertools
import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

import stm
from stm import bake
from stm.bench import rate_table
from stm.commands import bench as bench_command
from stm.commands import plan as plan_command
from stm.commands.draw_model import draw_model
from stm.data.fit_images import pictures
from stm.data.sets import from_files
from stm.errors import UsageError
from stm.findings import BenchReport, BenchRow, PlanReport, PlanRow
from stm.loading import open_model
from stm.measure.stats import wilson
from stm.options import MergeOptions, ModelOptions
from stm.progress import Progress
from stm.reports import Environment, Flops
from stm_cli import bench, plan
from stm_cli._output import Output

ENVIRONMENT = Environment(
    stm="0.1.0", torch="2.13.0", device="cpu", name="A CPU", dtype="float32", backend="native", threads=2
)


def test_bench(here, mini: Path) -> None:
    run = here(
        "bench",
        mini,
        "--batch-sizes",
        "1,3",
        "--rounds",
        "2",
        "--against",
        "vit",
        "--optimize",
        "--schedule",
        "staged",
        "--stages",
        "3",
        "--json",
    )
    assert run.code == 0, run.err
    report = json.loads(run.out)
    rows = {(row["variant"], row["batch_size"]): row for row in report["rows"]}
    names = ["dense", "dense, optimized", "compressed", "compressed, optimized", "ViT of width 32"]
    assert list(rows) == [(name, size) for size in (1, 3) for name in names]
    for row in rows.values():
        assert row["images_per_second"] == pytest.approx(1000 / row["ms_per_image"])
        assert row["ms_per_image"] > 0 and row["ms_iqr"] >= 0 and row["peak_bytes"] > 0 and row["rounds"] == 2
        assert (row["gemm_ms"] is None) == (row["variant"] not in ("dense", "compressed"))
        assert set(row["flops"]) == {"paper", "honest", "paper_saving", "honest_saving"}
    dense, small = rows["dense", 1], rows["compressed", 1]
    assert dense["gain"] == 1 and report["wall_clock_gain"] == small["gain"] and report["gemm_ms"] == dense["gemm_ms"]
    assert report["flops_gain"] == dense["flops"]["honest"] / small["flops"]["honest"]
    assert report["tokens_per_block"] == [50, 50, 50, 26, 26, 26]
    assert report["reasons"] == {}


def test_bench_of_a_folder_is_against_the_dense_model_in_it(here, mini: Path) -> None:
    here("compress", mini, "--method", "staged", "--stages", "2", "--no-eval", "--quiet", "--out", "small")
    run = here("bench", "small", "--rounds", "1", "--json")
    report = json.loads(run.out)
    assert [row["variant"] for row in report["rows"]] == ["dense", "compressed"]
    assert report["tokens_per_block"] == [50, 50, 26, 26, 26, 26]
    refused = here("bench", "small", "--rate", "0.2")
    assert refused.code == 2 and "small is already compressed" in refused.err


def test_bench_of_random_weights_fits_nothing_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[int] = []

    def few(config, *, seed: int = 0):
        fits.append(seed)
        return pictures(config, n=3, seed=seed)

    monkeypatch.setattr(bake, "pictures", few)
    source = ModelOptions(device="cpu", image_size=64)

    def benched(**merge):
        return bench_command.bench("vim-ti", source, MergeOptions(**merge), rounds=1, random_weights=True)

    dense = draw_model("vim-ti", source)
    report = benched()
    expected = stm.compress(dense, method="staged").schedule.tokens_per_block(24)
    assert report.tokens_per_block == expected and not fits
    assert "the preset staged is timed" in report.notes[-1]
    for merge in ({"method": "paper"}, {"schedule": "border"}):
        assert len(benched(**merge).notes) == 1 and not fits  # that the weights are random
    named = benched(method="stm")
    assert len(fits) == 1 and len(named.notes) == 1 and named.tokens_per_block != expected


def test_bench_of_a_rate_of_nothing_has_no_gain(here, mini: Path) -> None:
    report = json.loads(here("bench", mini, "--rate", "0", "--rounds", "1", "--json").out)
    assert report["wall_clock_gain"] is None and report["reasons"]["wall_clock_gain"] == "nothing is merged"
    assert here("bench", mini, "--rate", "0", "--rounds", "1", "--quiet").out == ""


def test_plan(here, mini: Path, labelled: Path) -> None:
    run = here("plan", mini, "--data", labelled, "--limit", "6", "--rounds", "2", "--json")
    assert run.code == 0, run.err
    report = json.loads(run.out)
    rows = report["rows"]
    assert (report["n"], report["data"]) == (6, labelled.name)
    assert [row["rate"] for row in rows] == [0, *rate_table.RATES]
    assert (rows[0]["gain"], rows[0]["agreement"], rows[0]["kl"], rows[0]["compress"]) == (1, 1, 0, None)
    for row in rows[1:]:
        made = here(
            *shlex.split(row["compress"])[1:], "--data", labelled, "--limit", "6", "--json", "--force", "--out", "made"
        )
        assert made.code == 0, made.err
        compressed = json.loads(made.out)
        assert compressed["schedule"]["tokens_per_block"] == row["tokens_per_block"]
        assert compressed["flops"] == row["flops"]
        assert compressed["eval"]["agreement"] == row["agreement"]
        assert compressed["eval"]["kl"] == pytest.approx(row["kl"], rel=1e-6, abs=1e-12)


def test_plan_repeats_how_the_model_was_read_and_never_a_token(here, mini: Path) -> None:
    words = ("--method", "paper", "--backend", "blocked", "--no-divide-out", "--token", "secret")
    run = here("plan", mini, *words, "--rounds", "1", "--limit", "1", "--json")
    command = json.loads(run.out)["rows"][2]["compress"]
    assert command == f"stm compress {mini} --rate 0.2 --no-divide-out --backend blocked --method paper"


def test_plan_says_what_cannot_be_had(here, mini: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_table, "RATES", (0.4, 0.99))
    run = here("plan", mini, "--rounds", "1", "--limit", "1", "--json")
    assert run.code == 0, run.err
    assert [row["reason"] is None for row in json.loads(run.out)["rows"]] == [True, True, False]
    shown = here("plan", mini, "--rounds", "1", "--limit", "1")
    assert "Note: rate 0.99: rate 0.99 takes more than half" in shown.err and "99%" not in shown.out


def test_plan_takes_the_images_that_a_time_allows(mini: Path, labelled: Path) -> None:
    """The clock is the test's: a portion of images takes 10 s, so that 15 s are up after the second one."""
    ticks = itertools.count(0.0, 10.0)
    vim = open_model(str(mini), ModelOptions(device="cpu"))
    samples = from_files(sorted(labelled.glob("*.png")) * 5).shuffled(3)
    seen: list[Progress] = []
    rows, n = rate_table.table(
        vim,
        MergeOptions(),
        samples,
        seconds=15,
        rounds=1,
        command=str,
        clock=lambda: next(ticks),
        on_progress=seen.append,
    )
    assert len(samples) > 32 and n == 32
    assert [(p.done, p.total) for p in seen if p.stage == "agreement"] == [(16, 24), (32, 32)], "an end in sight"
    for row in rows[1:]:
        assert row.agreement is not None and row.agreement_ci == wilson(round(32 * row.agreement), 32)
        assert row.kl_ci is not None and row.kl is not None and row.kl_ci[0] <= row.kl <= row.kl_ci[1]


def test_plan_fails_if_no_rate_can_be_reached(here, mini: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_table, "RATES", (0.99,))
    run = here("plan", mini, "--rounds", "1", "--limit", "1")
    assert run.code == 2 and run.err.startswith("Error: no rate can be planned; 0.99: rate 0.99 takes more than half")


def test_plan_refuses_a_compressed_model(here, mini: Path) -> None:
    here("compress", mini, "--no-eval", "--quiet", "--out", "small")
    run = here("plan", "small")
    assert run.code == 2 and "small is already compressed" in run.err


@pytest.mark.parametrize("command", ["bench", "plan"])
def test_random_weights_are_for_aliases(here, mini: Path, command: str) -> None:
    for model in (str(mini), "vim-digits"):
        run = here(command, model, "--random-weights")
        assert run.code == 2 and f"{model} is not one of vim-ti" in run.err
    run = here(command, "vim-ti", "--random-weights", "--file", "x")
    assert run.code == 2 and "--file was given" in run.err


def test_random_weights_of_any_image_size() -> None:
    drawn = draw_model("vim-ti", ModelOptions(device="cpu", image_size=112, dtype="bfloat16"))
    assert (drawn.config.model.tokens, drawn.config.model.depth, drawn.config.num_classes) == (50, 24, 1000)
    assert (drawn.config.dtype, drawn.head.weight.dtype.itemsize) == ("bfloat16", 2)
    with pytest.raises(UsageError, match="patch is 16"):
        draw_model("vim-ti", ModelOptions(device="cpu", image_size=8))


def test_random_weights_and_images_exclude_each_other(labelled: Path) -> None:
    with pytest.raises(UsageError, match="random weights agree with nothing"):
        plan_command.plan("vim-ti", ModelOptions(device="cpu"), random_weights=True, data=labelled)


def test_what_cannot_be_is_refused(mini: Path) -> None:
    source = ModelOptions(device="cpu")
    for options in ({"batch_sizes": ()}, {"batch_sizes": (0,)}, {"rounds": 0}, {"threads": 0}, {"against": "rnn"}):
        with pytest.raises(UsageError):
            bench_command.bench(str(mini), source, **options)
    for options in ({"batch_size": 0}, {"merge": MergeOptions(rate=0.4)}):
        with pytest.raises(UsageError):
            plan_command.plan(str(mini), source, **options)


def test_eval_shows_what_a_dtype_costs(here, mini: Path, labelled: Path) -> None:
    """Beside the dense model in the file's own dtype: without merging the dtype is all that differs."""
    full = json.loads(here("eval", mini, "--data", labelled, "--json").out)
    assert full["agreement"] is None
    half = json.loads(here("eval", mini, "--data", labelled, "--dtype", "bfloat16", "--json").out)
    assert half["environment"]["dtype"] == "bfloat16"
    assert half["dense_top1"] == full["top1"] and half["drop"] == pytest.approx(half["dense_top1"] - half["top1"])
    assert 0 < half["kl"] < 0.01


FLOPS = Flops(paper=1449113088, honest=1777000000, paper_saving=0.0, honest_saving=0.0)
ROW = BenchRow(
    variant="dense",
    batch_size=8,
    ms_per_image=12.345,
    ms_iqr=0.5,
    images_per_second=81.0,
    peak_bytes=3_295_712,
    flops=FLOPS,
    gain=1.0,
    gemm_ms=10.0,
    gemm_ratio=1.2,
    rounds=10,
)


def lines_of(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, module, report) -> list[str]:
    monkeypatch.setenv("COLUMNS", "80")
    Output(json=False, quiet=False).report(report, module.screen, lambda shown: "")
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_the_screen_of_bench(capsys, monkeypatch) -> None:
    small = replace(
        ROW,
        variant="compressed, optimized",
        ms_per_image=1234.5,
        gain=1.3,
        peak_bytes=None,
        gemm_ms=None,
        gemm_ratio=None,
    )
    report = BenchReport(
        command="bench",
        model="vim-ti",
        environment=ENVIRONMENT,
        random_weights=True,
        image_size=224,
        tokens_per_block=(197,) * 13 + (99,) * 11,
        rows=(ROW, small),
        flops_gain=1.275,
        wall_clock_gain=1.3,
        gemm_ms=10.0,
    )
    assert lines_of(capsys, monkeypatch, bench, report) == [
        "vim-ti",
        "                       batch  ms/image    +-  images/s   gain      peak    FLOPs",
        "dense                      8     12.35  0.25      81.0  1.00x  3.296 MB  1.777 G",
        "compressed, optimized      8   1234.50  0.25      81.0  1.30x         -  1.777 G",
        "gain      1.300x by the clock, 1.275x by FLOPs",
        "tokens    █████████████▄▄▄▄▄▄▄▄▄▄▄  197 x 13, 99 x 11",
        "on        A CPU, 2 threads, float32, backend native, torch 2.13.0",
        "ms/image  the median of 10 rounds, +- half the distance between the quartiles",
        "FLOPs     multiply-accumulates, all that is computed; stm info also has the",
        "          paper's count",
        "products  10.00 ms an image: the dense model's matrix products alone",
    ]


def test_the_screen_of_plan(capsys, monkeypatch) -> None:
    dense = PlanRow(
        rate=0,
        saving=0,
        tokens_per_block=(197, 197),
        flops=FLOPS,
        ms_per_image=60.0,
        ms_iqr=1,
        gain=1,
        agreement=1,
        kl=0,
        rounds=5,
    )
    small = replace(
        dense,
        rate=0.4,
        tokens_per_block=(197, 99),
        gain=1.25,
        agreement=0.875,
        agreement_ci=(0.529, 0.978),
        kl=0.0123,
        kl_ci=(0.001, 0.0236),
        compress="stm compress m --rate 0.4",
    )
    report = PlanReport(
        command="plan",
        model="m",
        environment=ENVIRONMENT,
        random_weights=False,
        data="photograph-crops",
        n=8,
        of=20,
        seconds=2.5,
        batch_size=1,
        rows=(dense, small, PlanRow(rate=0.6, reason="too much")),
    )
    assert lines_of(capsys, monkeypatch, plan, report) == [
        "m",
        " rate      tokens    FLOPs  ms/image   gain       agreement                KL",
        "dense  197 to 197  1.777 G     60.00  1.00x          100.0%            0.0000",
        "  40%   197 to 99  1.777 G     60.00  1.25x           87.5%            0.0123",
        "                                             52.9% to 97.8%  0.0010 to 0.0236",
        "on         A CPU, 2 threads, float32, backend native",
        "FLOPs      multiply-accumulates, all that is computed; stm info also has the",
        "           paper's count",
        "agreement  with the dense model's top-1 on 8 of the 20 images of",
        "           photograph-crops: those that 2.5 s allowed, drawn at random; this is",
        "           not accuracy",
        "intervals  95%, below agreement and KL",
        "stm compress m --rate 0.4",
    ]
    assert plan.value(report) == "0\t1.0000\n0.4\t1.2500"
