"""Measure how far each method moves a model, at equal honest saving, on images that nothing was chosen on.

    python benchmarks/study.py --out study/ \\
        --case digits vim-digits - digits-train/ --case proxy proxy/ proxy-val/ proxy-other/

A case is NAME MODEL DATA FIT_ON: a dense model, the labelled images to measure on, and other images of its kind, whose
labels are not used; "-" stands for the embedded set, or for none. Rows: the fitted schedule with and without images
(one per seed), `staged`, the paper's form, and every peer of `stm compare`. study.csv has one line per row, study.json
adds the environment, table.md is the table of docs/study.md, and kl.png and kl.svg draw KL over saving. costs-NAME.png
and .svg draw the costs of the first fit, and the schedule that saves 22%.

    python benchmarks/study.py --out all/ --join study-1/ study-2/

makes one table and one figure of studies that ran one by one.
"""

import argparse
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from stm.bake import bake
from stm.codec import encode
from stm.data.fit_images import pictures, whole
from stm.data.open import open_samples
from stm.explain import cost_figures
from stm.explain.costs import cost_map
from stm.fitting import Fitting, fit
from stm.loading import open_model
from stm.measure import flops
from stm.measure.compare import Contender, run_all
from stm.measure.environment import environment_of
from stm.measure.equal_cost import solve_peer, solve_preset
from stm.measure.stats import summarize
from stm.model.vim import ViM
from stm.options import MergeOptions
from stm.page.content import per_block
from stm.peers import DEFAULT
from stm.plots import style

SAVINGS = (0.1, 0.22, 0.3, 0.4)
SHOWN = 0.22  # the saving whose schedule is drawn: the paper's at rate 0.4


def main() -> None:
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.join:
        studies = [json.loads((folder / "study.json").read_text()) for folder in options.join]
        write(options.out, [row for study in studies for row in study["rows"]], studies[0]["environment"])
        return
    rows: list[dict[str, Any]] = []
    environment = None
    for name, model, data, fit_on in options.case:
        dense = open_model(model)
        environment = environment_of(dense)
        fits = dict(fittings(dense, None if fit_on == "-" else fit_on, options.seeds))
        draw_costs(options.out, name, dense, next(iter(fits.values())))
        samples = open_samples(None if data == "-" else data, config=dense.config, limit=options.limit)
        for saving in options.savings:
            entered = list(contenders(dense, fits, saving))
            for contender, run in zip(entered, run_all(entered, samples).runs, strict=True):
                figures = summarize(run.records, data=samples.name)
                divergences = [record.kl for record in run.records if record.kl is not None]
                error = stdev(divergences) / len(divergences) ** 0.5
                known = {"model": name, "saving": saving, **contender.known}
                rows.append(known | {"kl_error": error} | only(encode(figures)))
                print(json.dumps(rows[-1]), flush=True)
    write(options.out, rows, encode(environment))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure how far each method moves a model.")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--case", nargs=4, action="append", metavar=("NAME", "MODEL", "DATA", "FIT_ON"))
    task.add_argument("--join", nargs="+", type=Path, metavar="DIR", help="folders of earlier studies")
    parser.add_argument("--savings", type=lambda text: [float(part) for part in text.split(",")], default=SAVINGS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def fittings(dense: ViM, fit_on: str | None, seeds: int) -> Iterator[tuple[str, Fitting]]:
    """Yield the name and the fitting of each seed, without images and with those of the model's kind."""
    for seed in range(seeds):
        yield f"fitted, no images, seed {seed}", fit(dense, pictures(dense.config, seed=seed))
    if fit_on is not None:
        images = open_samples(fit_on, config=dense.config, need_labels=False)
        for seed in range(seeds):
            yield f"fitted, own images, seed {seed}", fit(dense, whole(images, seed=seed))


def contenders(dense: ViM, fits: dict[str, Fitting], saving: float) -> Iterator[Contender]:
    """Yield the dense model and every method at one saving: all by the honest saving of the first fitted schedule."""
    yield contender(dense, "dense")
    target = None
    for name, fitting in fits.items():
        small = bake(dense, MergeOptions(saving=saving), fitting=fitting)
        target = flops.count(small.config).honest_saving if target is None else target
        yield contender(small, name)
    assert target is not None
    yield contender(solve_preset(dense, "staged", target)[0], "staged")
    yield contender(solve_preset(dense, "paper", target)[0], "paper")
    for name in DEFAULT:
        solved = solve_peer(dense.config, name, target)
        yield Contender(dense.with_plan(solved.plan), {"method": name, "honest_saving": solved.flops.honest_saving})


def contender(model: ViM, name: str) -> Contender:
    """Return one of our models, with what its row says beforehand."""
    recipe = model.config.recipe
    chosen = None if recipe is None or recipe.fit is None else recipe.fit.cut
    saving = flops.count(model.config).honest_saving
    scale = None if model.config.protection is None else model.config.protection.step_scale
    return Contender(model, {"method": name, "honest_saving": saving, "cut": chosen, "step_scale": scale})


def only(figures: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a row's table."""
    return {key: figures[key] for key in ("data", "n", "kl", "agreement", "top1", "drop", "drop_ci")}


def write(out: Path, rows: list[dict[str, Any]], environment: Any) -> None:
    """Write the table, the document and the figure."""
    (out / "study.json").write_text(json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n")
    names = list(dict.fromkeys(key for row in rows for key in row))
    with (out / "study.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, names)
        table.writeheader()
        table.writerows(rows)
    (out / "table.md").write_text("\n".join(markdown(rows)) + "\n")
    draw(out, rows)


def markdown(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the document's table: KL, and the points of top-1 lost; seeds are averaged."""
    yield "| | saved | best peer | paper's form | staged | fitted, no images | fitted, own images |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    models = list(dict.fromkeys(row["model"] for row in rows))
    for model, saving in sorted(
        {(row["model"], row["saving"]) for row in rows}, key=lambda at: (models.index(at[0]), at[1])
    ):
        here = [row for row in rows if (row["model"], row["saving"]) == (model, saving)]
        cells = []
        for name in ("", "paper", "staged", "fitted, no images", "fitted, own images"):
            of = [row for row in here if row["method"].startswith(name)] if name else [best_peer(here)]
            if not of:  # a case without images of its own
                cells.append("")
                continue
            losses = [row["kl"] for row in of]
            spread = f" ({min(losses):.5f} to {max(losses):.5f})" if len(of) > 1 else ""
            title = "" if name else f" ({of[0]['method']})"
            cells.append(f"{fmean(losses):.5f}{spread}; {100 * fmean(row['drop'] for row in of):.1f}{title}")
        yield f"| {model} | {saving:.0%} | " + " | ".join(cells) + " |"


def best_peer(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the row of the peer with the smallest KL."""
    return min((row for row in rows if row["method"] in DEFAULT), key=lambda row: row["kl"])


def draw(out: Path, rows: list[dict[str, Any]]) -> None:
    """Draw KL over saving, one panel per model: ours in colour, the peers in grey."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    with style.style():
        figure, axes = style.new(3.4, columns=len(models), width=3.2 * len(models))
        for axis, model in zip(axes[0], models, strict=True):
            for name, group in by_method([row for row in rows if row["model"] == model]).items():
                colour, width = COLOURS.get(name, ("0.75", 1.0))
                label = name if name in COLOURS else None
                points = [(100 * saving, fmean(group[saving])) for saving in sorted(group)]
                axis.plot(*zip(*points, strict=True), color=colour, lw=width, label=label)
            axis.set(title=model, xlabel="token-layers saved, %", yscale="log")
        axes[0][0].set_ylabel("KL to dense, nats; peers in grey")
        axes[0][0].legend(frameon=False, fontsize=8)
        style.save(figure, out, "kl")


def draw_costs(out: Path, name: str, dense: ViM, fitting: Fitting) -> None:
    """Draw where the costs of a model sit, and what the schedule of 22% merges there."""
    small = bake(dense, MergeOptions(saving=SHOWN), fitting=fitting)
    with style.style():
        figure = cost_figures.costs(cost_map(fitting, per_block(small.config)), f"{name}, {SHOWN:.0%} saved")
        style.save(figure, out, f"costs-{name}")


COLOURS = {
    "fitted, own images": (style.GREEN, 2.2),
    "fitted, no images": (style.BLUE, 2.2),
    "staged": (style.ORANGE, 1.6),
    "paper": (style.PURPLE, 1.6),
}


def by_method(rows: list[dict[str, Any]]) -> dict[str, dict[float, list[float]]]:
    """Return the KL of every method by saving; the seeds of a method are one curve."""
    out: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        if row["method"] != "dense":
            out.setdefault(row["method"].partition(", seed")[0], {}).setdefault(row["saving"], []).append(row["kl"])
    return out


if __name__ == "__main__":
    main()
