"""Every screen holds every number whole, however narrow the terminal is: a number that is cut is another number."""

import re
from functools import cache

import pytest
from rich.console import Console

from stm.commands.env import environment
from stm.commands.info import info
from stm.commands.models import list_models
from stm.evaluations import Assessment
from stm.findings import ExplainReport, Fit
from stm.reports import EvalReport, Guess, Prediction, PredictReport, Report
from stm_cli import env, eval, explain, predict
from stm_cli import info as info_screen
from stm_cli import models as models_screen

# A number with its sign, point, separators and unit. One within a word, such as that of a hash, is no number.
NUMBER = re.compile(r"(?<![\w.,-])[-+]?\d[\d,]*(?:\.\d+)?(?:%|x)?(?![\w])")


@cache
def reports() -> dict[str, tuple[object, Report]]:
    runs = environment()
    measured = Assessment(
        data="a-set-with-quite-a-long-name",
        n=50_000,
        failed=1_234,
        top1=0.81236,
        top1_ci=(0.80891, 0.81577),
        top5=0.95432,
        top5_ci=(0.95241, 0.95617),
        agreement=0.98765,
        kl=0.01234,
        dense_top1=0.81699,
        drop=0.00463,
        drop_ci=(0.00211, 0.00715),
        mcnemar_p=0.000312,
        images_per_second=1234.5,
    )
    guesses = tuple(
        Guess(index=i, label=f"a class of some length, number {i}", probability=0.2 - i / 100) for i in range(5)
    )
    shared = {"model": "vim-digits", "environment": runs.environment}
    return {
        "models": (models_screen.screen, list_models()),
        "info": (info_screen.screen, info("vim-digits")),
        "env": (env.screen, runs),
        "eval": (eval.screen, EvalReport(command="eval", **shared, **vars(measured))),
        "predict": (
            predict.screen,
            PredictReport(command="predict", **shared, predictions=(Prediction(file="a/b/c.png", top5=guesses),)),
        ),
        "explain": (
            explain.screen,
            ExplainReport(
                command="explain",
                **shared,
                output="vim-digits-explained",
                data="a-set-with-quite-a-long-name",
                images=("a.png",) * 1234,
                block=12,
                tokens_per_block=(1297, 1205, 1103, 998, 871, 765) * 5,
                fading={"left": Fit(0.12345, 0.0432, 0.987), "right": None},
                losses={"prune": 0.12345, "mean": 0.02345, "hsp": 0.01234},
                plan_change=(0.0, 0.4321),
                costs_from="576 drawn pictures",
                files=("fading.png", "costs.png", "data.json"),
            ),
        ),
    }


def lines(name: str, width: int) -> list[str]:
    screen, report = reports()[name]
    console = Console(width=width)
    with console.capture() as captured:
        console.print(screen(report))  # type: ignore[operator]
    return captured.get().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 200])
@pytest.mark.parametrize("name", ["models", "info", "env", "eval", "predict", "explain"])
def test_no_number_is_cut(name: str, width: int) -> None:
    whole = {number for line in lines(name, 2000) for number in NUMBER.findall(line)}
    held = {number for line in lines(name, width) for number in NUMBER.findall(line)}
    assert len(whole) > 4 and whole <= held, whole - held
    assert not any("…" in line for line in lines(name, width))
    assert max(map(len, lines(name, width))) <= width
