"""`stm bench` and `stm plan` from end to end: what is in their reports, and that the parts of one agree."""

import csv
import itertools
import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import stm
from stm import bake
from stm.bench import saving_table
from stm.commands import bench as bench_command
from stm.commands import plan as plan_command
from stm.commands.draw_model import draw_model
from stm.data.fit_images import pictures
from stm.data.sets import from_files
from stm.errors import UsageError
from stm.findings import BenchReport, BenchRow, PlanReport, PlanRow, Recommended
from stm.fitting import fit
from stm.loading import open_model
from stm.measure.stats import paired_difference, wilson
from stm.options import FitOptions, MergeOptions, ModelOptions
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
        "--method",
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


FEW = ("--fit-images", "6", "--rounds", "1")  # for the fit of `stm plan`


def test_plan(here, mini: Path, labelled: Path) -> None:
    run = here("plan", mini, "--data", labelled, "--limit", "6", "--fit-images", "6", "--rounds", "2", "--json")
    assert run.code == 0, run.err
    report = json.loads(run.out)
    rows = report["rows"]
    assert (report["n"], report["of"], report["data"]) == (6, 6, labelled.name)
    assert "12 images, fewer than 64: all of them measure, and the schedule was fitted on drawn pictures" in run.err
    assert [row["asked_saving"] for row in rows] == [0, *saving_table.SAVINGS]
    assert (rows[0]["gain"], rows[0]["agreement"], rows[0]["kl"], rows[0]["drop"]) == (1, 1, 0, 0)
    assert (rows[0]["compress"], rows[0]["rate"], report["fit"]["n"], report["output"]) == (None, None, 6, None)
    for row in rows[1::3]:
        assert row["saving"] == pytest.approx(row["asked_saving"], abs=0.005)
        made = here(*shlex.split(row["compress"])[1:], "--json", "--force", "--out", "made")
        assert made.code == 0, made.err
        compressed = json.loads(made.out)
        assert compressed["schedule"]["tokens_per_block"] == row["tokens_per_block"]
        assert compressed["recipe"]["fit"] == report["fit"]
        assert compressed["flops"] == row["flops"]
        for name in ("agreement", "top1", "drop", "drop_ci"):
            assert compressed["eval"][name] == row[name], name
        assert compressed["eval"]["kl"] == pytest.approx(row["kl"], rel=1e-6, abs=1e-12)


def many(labelled: Path, folder: Path) -> Path:
    """72 images: each of the twelve six times, with its label."""
    folder.mkdir()
    rows = (labelled / "labels.csv").read_text().splitlines()[1:]
    for number, row in itertools.product(range(6), rows):
        name = row.rpartition(",")[0]
        shutil.copyfile(labelled / name, folder / f"{number} {name}")  # a link would be the same image to a fit
    lines = [f"{number} {row}" for number in range(6) for row in rows]
    (folder / "labels.csv").write_text("\n".join(["filename,label", *lines]) + "\n")
    return folder


def test_plan_measures_on_no_image_of_the_fit(here, mini: Path, labelled: Path, tmp_path: Path) -> None:
    data = many(labelled, tmp_path / "many")
    run = here("plan", mini, "--data", data, *FEW, "--json")
    assert run.code == 0, run.err
    report = json.loads(run.out)
    assert (report["n"], report["of"]) == (36, 36), "six are for the costs, and thirty choose when the model is made"
    assert (report["fit"]["data"], report["fit"]["n"]) == ("many", 6)
    assert "36 more images decided the schedule, and are in no number" in run.err
    assert "the command also tries others, on images of the fit" in run.err
    command = report["rows"][1]["compress"]
    assert command == f"stm compress {mini} --saving 0.1 --fit-images 6 --data {data}"
    limited = json.loads(here("plan", mini, "--data", data, *FEW, "--limit", "5", "--json").out)
    assert (limited["n"], limited["fit"]["sha256"]) == (5, report["fit"]["sha256"])
    apart = json.loads(here("plan", mini, "--data", data, "--fit-on", labelled, *FEW, "--json").out)
    assert (apart["n"], apart["fit"]["data"]) == (72, labelled.name)
    assert f"--fit-on {labelled} --fit-images 6 --data {data}" in apart["rows"][1]["compress"]
    same = here("plan", mini, "--data", data, "--fit-on", data)
    assert same.code == 2 and "cannot both be fitted on and measure" in same.err


def test_plan_of_a_folder_without_labels(here, mini: Path, labelled: Path, tmp_path: Path) -> None:
    """Agreement and KL, and no accuracy: the figures of the same images with labels."""
    (tmp_path / "plain").mkdir()
    for image in labelled.glob("*.png"):
        (tmp_path / "plain" / image.name).symlink_to(image)
    plain = json.loads(here("plan", mini, "--data", "plain", *FEW, "--json").out)
    marked = json.loads(here("plan", mini, "--data", labelled, *FEW, "--json").out)
    assert plain["reasons"]["drop"] == "plain has no labels" and "drop" not in marked["reasons"]
    for row, other in zip(plain["rows"], marked["rows"], strict=True):
        assert (row["agreement"], row["drop"], row["top1"]) == (other["agreement"], None, None)
        assert row["kl"] == pytest.approx(other["kl"]) and other["drop_ci"][0] <= other["drop"] <= other["drop_ci"][1]


def test_plan_repeats_how_the_model_was_read_and_never_a_token(here, mini: Path) -> None:
    words = ("--method", "paper", "--backend", "blocked", "--no-divide-out", "--token", "secret")
    run = here("plan", mini, *words, "--rounds", "1", "--limit", "1", "--seed", "3", "--json")
    command = json.loads(run.out)["rows"][3]["compress"]
    read = "--no-divide-out --backend blocked --method paper"
    assert command == f"stm compress {mini} --saving 0.2 {read} --limit 1 --seed 3"


def test_plan_writes_its_table_and_its_figure(here, mini: Path, labelled: Path, tmp_path: Path) -> None:
    run = here("plan", mini, "--data", labelled, *FEW, "--json", "--out", "table")
    assert run.code == 0, run.err
    document = json.loads(run.out)
    assert (document["output"], document["files"]) == ("table", sorted(each.name for each in Path("table").iterdir()))
    assert json.loads((tmp_path / "table" / "plan.json").read_text()) == document
    with open(tmp_path / "table" / "plan.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["asked_saving"]) for row in rows] == [0, *saving_table.SAVINGS]
    assert [float(row["drop_high"]) for row in rows] == [row["drop_ci"][1] for row in document["rows"]]
    drawn = (tmp_path / "table" / "plan.svg").read_text()
    for label in ("KL to the dense model", "top-1 lost", "measured speed", "token-layers saved"):
        assert label in drawn, label
    refused = here("plan", mini, "--data", labelled, *FEW, "--out", "table")
    assert refused.code == 2 and "table" in refused.err and json.loads(Path("table/plan.json").read_text()) == document
    assert here("plan", mini, "--data", labelled, *FEW, "--out", "table", "--force").code == 0


def test_plan_says_what_cannot_be_reached(here, mini: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving_table, "SAVINGS", (0.4, 0.99))
    run = here("plan", mini, *FEW, "--limit", "1", "--json", "--out", "table")
    assert run.code == 0, run.err
    assert [row["reason"] is None for row in json.loads(run.out)["rows"]] == [True, True, False]
    shown = here("plan", mini, *FEW, "--limit", "1")
    assert "Note: saving 0.99: saving 0.99 is more than possible" in shown.err and "99%" not in shown.out


def test_plan_takes_the_images_that_a_time_allows(mini: Path, labelled: Path) -> None:
    """The clock is the test's: a portion of images takes 10 s, so that 15 s are up after the second one."""
    ticks = itertools.count(0.0, 10.0)
    vim = open_model(str(mini), ModelOptions(device="cpu"))
    samples = from_files(sorted(labelled.glob("*.png")) * 5).shuffled(3)
    seen: list[Progress] = []
    made = saving_table.table(
        vim,
        MergeOptions(),
        samples,
        fitting=fit(vim, pictures(vim.config, n=6), keep=False),
        seconds=15,
        rounds=1,
        command=str,
        clock=lambda: next(ticks),
        on_progress=seen.append,
    )
    assert len(samples) > 32 and made.n == 32 and made.fit is not None and made.fit.n == 6
    assert [(p.done, p.total) for p in seen if p.stage == "images"] == [(16, 24), (32, 32)], "an end in sight"
    for row in made.rows[1:]:
        assert row.agreement is not None and row.agreement_ci == wilson(round(32 * row.agreement), 32)
        assert row.kl_ci is not None and row.kl is not None and row.kl_ci[0] <= row.kl <= row.kl_ci[1]
        assert (row.gain_ci, row.drop, row.top1) == (None, None, None), "one round, and no labels"


def test_plan_fails_if_no_saving_can_be_reached(here, mini: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving_table, "SAVINGS", (0.99,))
    run = here("plan", mini, *FEW, "--limit", "1")
    assert run.code == 2 and run.err.startswith("Error: no saving can be planned; 0.99: saving 0.99 is more than")


def test_plan_refuses_a_model_whose_logits_are_no_numbers(here, mini: Path, labelled: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(mini, weights_only=False)
    checkpoint["model"]["head.weight"] *= 3e38  # each value is a number, and their sums are not
    torch.save(checkpoint, tmp_path / "broken.pth")
    run = here("plan", "broken.pth", "--method", "paper", "--data", labelled, "--rounds", "1", "--json")
    assert run.code == 1 and run.out == "" and "Traceback" not in run.err
    assert "not finite" in run.err


def test_plan_of_random_weights_times_staged(here) -> None:
    run = here("plan", "vim-ti", "--image-size", "64", "--random-weights", "--rounds", "1", "--json")
    assert run.code == 0, run.err
    report = json.loads(run.out)
    assert (report["fit"], report["recommended"], report["n"]) == (None, None, 0)
    assert report["reasons"]["recommended"] == "the weights are random"
    assert "random weights have nothing to fit: the rows are those of --method staged" in run.err
    row = report["rows"][5]
    assert row["gain"] > 0 and row["kl"] is None and row["compress"].startswith("stm compress vim-ti --saving 0.3")
    assert len(set(row["tokens_per_block"])) <= 3, "stages, not the many steps of a fit"


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
    for options in (FitOptions(fit_on=labelled), FitOptions(fit_images=9), FitOptions(no_cache=True)):
        with pytest.raises(UsageError, match="random weights agree with nothing"):
            plan_command.plan("vim-ti", ModelOptions(device="cpu"), fit=options, random_weights=True)


def test_what_cannot_be_is_refused(mini: Path) -> None:
    source = ModelOptions(device="cpu")
    for options in ({"batch_sizes": ()}, {"batch_sizes": (0,)}, {"rounds": 0}, {"threads": 0}, {"against": "rnn"}):
        with pytest.raises(UsageError):
            bench_command.bench(str(mini), source, **options)
    unfitted = {"merge": MergeOptions(method="paper"), "fit": FitOptions(fit_images=9)}
    for options in ({"batch_size": 0}, {"merge": MergeOptions(rate=0.4)}, {"seconds": 0}, {"seconds": -1}, unfitted):
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


def planned() -> PlanReport:
    """A report of eight labelled images and one saving."""
    dense = PlanRow(
        asked_saving=0,
        saving=0,
        tokens_per_block=(197, 197),
        flops=FLOPS,
        ms_per_image=60.0,
        ms_iqr=1,
        gain=1,
        agreement=1,
        agreement_ci=wilson(8, 8),
        kl=0,
        kl_ci=(0, 0),
        top1=0.75,
        drop=0,
        drop_ci=paired_difference(6, 0, 0, 2),
        rounds=6,
    )
    small = replace(
        dense,
        asked_saving=0.3,
        saving=0.2987,
        tokens_per_block=(197, 99),
        ms_per_image=48.0,
        gain=1.25,
        gain_ci=(1.2, 1.31),
        agreement=0.875,
        agreement_ci=(0.529, 0.978),
        kl=0.0123,
        kl_ci=(0.001, 0.0236),
        drop=-0.125,
        drop_ci=(-0.43, 0.121),
        compress="stm compress m --saving 0.3",
    )
    best = Recommended(
        saving=0.3,
        command="stm compress m --saving 0.3",
        why="the largest",
        by="kl",
        **{name: getattr(small, name) for name in ("gain", "agreement", "kl", "drop")},
        **{f"{name}_ci": getattr(small, f"{name}_ci") for name in ("gain", "agreement", "kl", "drop")},
    )
    return PlanReport(
        command="plan",
        model="m",
        environment=ENVIRONMENT,
        random_weights=False,
        data="pets",
        n=8,
        of=20,
        seconds=2.5,
        batch_size=1,
        rows=(dense, small, PlanRow(asked_saving=0.45, reason="too much")),
        recommended=best,
    )


def test_the_screen_of_plan(capsys, monkeypatch) -> None:
    report = planned()
    assert lines_of(capsys, monkeypatch, plan, report) == [
        "m",
        "saves tokens ms/image         gain    agreement               KL          drop",
        "dense    197    60.00        1.00x       100.0%           0.0000           0.0",
        "                                                                 -25.9 to 25.9",
        "  30%     99    48.00        1.25x        87.5%           0.0123         -12.5",
        "                      1.20 to 1.31 52.9 to 97.8 0.0010 to 0.0236 -43.0 to 12.1",
        "on           A CPU, 2 threads, float32, backend native",
        "saves        share of the token-layers; tokens: in the last block; gain: both as",
        "             loaded, without optimize()",
        "agreement    with the dense model's top-1 on 8 of the 20 images of pets: those",
        "             that 2.5 s allowed, drawn at random; drop: points of top-1 lost",
        "intervals    95%, below each figure",
        "recommended  saves 30%, 1.25x here, loses -12.5 points (-43.0 to 12.1)",
        "why          the largest",
        "stm compress m --saving 0.3",
    ]
    assert plan.value(report) == "0\t1.0000\n0.3\t1.2500"


def test_the_line_of_a_recommendation_has_the_figure_that_decided() -> None:
    best = planned().recommended
    assert best is not None
    unlabelled = replace(best, drop=None, drop_ci=None)
    assert plan.line(unlabelled) == "saves 30%, 1.25x here, KL 0.0123 (0.0010 to 0.0236)"
    by_agreement = plan.line(replace(unlabelled, by="agreement"))
    assert by_agreement == "saves 30%, 1.25x here, keeps 87.5% of the top-1 answers (52.9 to 97.8)"


def test_plan_shows_every_command_if_none_is_recommended(capsys, monkeypatch) -> None:
    report = replace(planned(), recommended=None, reasons={"recommended": "there is no saving"})
    assert lines_of(capsys, monkeypatch, plan, report)[-2:] == [
        "recommended  nothing: there is no saving",
        "stm compress m --saving 0.3",
    ]
