"""`stm plan` from end to end: what is in its report, and that the parts of a report agree."""

import csv
import itertools
import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stm.bench import saving_table
from stm.commands import plan as plan_command
from stm.data.fit_images import pictures
from stm.data.sets import from_files
from stm.errors import UsageError
from stm.findings import PlanReport, PlanRow, Recommended
from stm.fitting import fit
from stm.loading import open_model
from stm.measure.stats import paired_difference, wilson
from stm.options import FitOptions, MergeOptions, ModelOptions
from stm.progress import Progress
from stm_cli import plan
from stm_cli._tables import markdown
from tests.cli.test_bench import ENVIRONMENT, FLOPS

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
    told = [(p.done, p.total) for p in seen if p.stage == "images"]
    assert (16, 24) in told and told[-1] == (32, 32), "an end in sight"
    assert [done for done, _ in told] == sorted(done for done, _ in told) and len(told) > 2, "it moves within a portion"
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


def test_plan_refuses_a_compressed_model(here, mini: Path) -> None:
    here("compress", mini, "--no-eval", "--quiet", "--out", "small")
    run = here("plan", "small")
    assert run.code == 2 and "small is already compressed" in run.err


def test_what_plan_refuses(mini: Path) -> None:
    unfitted = {"merge": MergeOptions(method="paper"), "fit": FitOptions(fit_images=9)}
    for options in ({"batch_size": 0}, {"merge": MergeOptions(rate=0.4)}, {"seconds": 0}, {"seconds": -1}, unfitted):
        with pytest.raises(UsageError):
            plan_command.plan(str(mini), ModelOptions(device="cpu"), **options)


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


def test_the_screen_of_plan(screen_lines, narrow) -> None:
    report = planned()
    narrow(plan, report)
    assert markdown(*plan.pasted(report)).splitlines()[2:] == [
        "| dense | 197 | 60.00 | 1.00 | - | 100.0 | - | 0.0000 | - | 0.0 | - |",
        "| 30% | 99 | 48.00 | 1.25 | 1.20 to 1.31 | 87.5 | 52.9 to 97.8 | 0.0123 | 0.0010 to 0.0236 | -12.5 "
        "| -43.0 to 12.1 |",
    ]
    assert screen_lines(plan, report) == [
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


def test_plan_shows_every_command_if_none_is_recommended(screen_lines) -> None:
    report = replace(planned(), recommended=None, reasons={"recommended": "there is no saving"})
    assert screen_lines(plan, report)[-2:] == [
        "recommended  nothing: there is no saving",
        "stm compress m --saving 0.3",
    ]
