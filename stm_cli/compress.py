"""`stm compress`: from a model to a folder that runs."""

from typing import Any

from rich.console import Group, RenderableType

from stm.codec import encode
from stm.errors import GateError, Infeasible
from stm.evaluations import rounding_text
from stm.reports import CompressReport, ServedSpeed
from stm.units import size
from stm.verdicts import goal_text
from stm_cli import _groups as g
from stm_cli import _options as o
from stm_cli import _publishing as p
from stm_cli._format import (
    fields,
    fit_rows,
    flops_rows,
    image_notes,
    measured_rows,
    merging_row,
    milder,
    source_text,
    speed_row,
    staircase,
    tokens,
)
from stm_cli._output import Output, typed

EXAMPLES = (
    "stm compress vim-digits --rate 0.4",
    "stm compress vim_finetuned.pth --rate 0.4 --data my_images/",
    "stm compress vim-s --saving 0.3 --fit-on pictures/ --data test_set/",
    "stm compress vim-s --speedup 1.5",
    "stm compress vim_finetuned.pth --data my_images/ --max-drop 1.0 --out small/",
    "stm compress vim-ti --method paper --rate 0.2 --dry-run",
    "stm compress vim-digits --recipe vim-digits-stm40 --out again/",
    "stm compress vim-s --saving 0.3 --dtype int8 --save-recipe recipe.yaml",
    "stm compress vim-s --recipe recipe.yaml --out again/",
    "stm compress vim-s --data imagenet-v2 --push-to vim-s-stm40",
)


@g.grouped
def run(
    model: o.Model,
    *,
    merging: g.Merging,
    speedup: o.Speedup = None,
    recipe: o.Recipe = None,
    calibration: o.CalibrationImages = None,
    fitted: g.Fitted,
    data: o.Data = None,
    reading: g.Reading,
    limit: o.Limit = None,
    batch_size: o.BatchSize = 32,
    seed: o.OptionalSeed = None,
    max_drop: o.MaxDrop = None,
    max_kl: o.MaxKl = None,
    no_eval: o.NoEval = False,
    served_batch: o.ServedBatch = None,
    out: o.Out = None,
    save_recipe: o.SaveRecipe = None,
    force: o.Force = False,
    dry_run: o.DryRun = False,
    push_to: p.PushTo = None,
    source: g.Source,
    machine: g.Machine,
    workers: o.Workers = None,
    display: g.Display,
) -> None:
    """Merge tokens by a fixed schedule, compare with the dense model, and write a folder that runs."""
    from stm.commands.compress import compress
    from stm.commands.outcome import refused
    from stm.hub.push import PushOptions
    from stm.options import EvalOptions, SetOptions

    output = Output(**vars(display))
    with output.progress() as on_progress, output.refusing(Infeasible, lambda error: refused(model, error)):
        report = compress(
            model,
            g.model_options(source, machine),
            merging.options(),
            EvalOptions(data=data, limit=limit, batch_size=batch_size, seed=seed, workers=workers, **vars(reading)),
            fitted.options(),
            recipe=recipe,
            save_recipe=save_recipe,
            calibration=calibration,
            max_drop=max_drop,
            max_kl=max_kl,
            speedup=speedup,
            timed=served_batch,
            eval=not no_eval,
            out=out,
            force=force,
            dry_run=dry_run,
            push=None if push_to is None else PushOptions(repo=push_to, token=source.token),
            on_progress=on_progress,
        )
    failed = _not_passed(report)
    output.report(report, screen, lambda shown: "" if failed is not None else shown.output)
    broken = image_notes(report.eval) if report.eval is not None else []
    pushed = report.push.notes if report.push is not None else ()
    for note in (*report.environment.fallbacks, *report.notes, *broken, *pushed):
        output.note(note)
    for warning in report.warnings:
        output.warn(warning)
    if failed is not None:
        raise failed
    if dry_run:
        again = typed()
        output.next(*([tuple(word for word in again if word != "--dry-run")] if again else []))
    else:
        images = () if data is None else ("--data", str(data), *SetOptions(**vars(reading)).words())
        output.next(
            *milder(report),
            ("stm", "eval", report.output, *images),
            ("stm", "info", report.push.repo if report.push else report.output),
        )


def screen(report: CompressReport) -> RenderableType:
    """Draw what was asked for, what was reached, and what it cost."""
    per_block = report.schedule["tokens_per_block"]
    rows = [
        merging_row(encode(report.recipe), encode(report.protection)),
        *fit_rows(report.recipe.fit),
        ("asked", _asked(report)),
        (
            "reached",
            (
                f"saving {report.saving:.4f} of the token-layers, {report.recipe.removed_share:.4f} of the patch tokens"
                " gone"
            ),
        ),
        ("tokens", f"{staircase(per_block)}  {tokens(per_block)}"),
        *((("steps", _steps(report.schedule["steps"])),) if report.dry_run else ()),
        *flops_rows(report.flops),
        ("parameters", f"{report.parameters:,}"),
        ("files", f"model.safetensors {size(report.bytes)}, config.json, README.md"),
        ("source", source_text(report.source)),
    ]
    if report.eval is not None:
        rows += measured_rows(report.eval)
        if report.eval.images_per_second is not None:
            rows.append(speed_row(report.eval.images_per_second, report.environment))
    if report.rounding is not None:
        rows.append(("int8", rounding_text(report.rounding)))
    if report.served is not None:
        rows.append(("served", _served(report.served)))
    if report.push is not None:
        rows.append(("pushed", report.push.url))
    to = f"-> {report.output}"
    if report.dry_run:
        to = f"would be written to {report.output}"
    elif _not_passed(report) is not None:
        to = f"was not written to {report.output}"
    return Group(f"{report.model} {to}", fields(rows))


def _not_passed(report: CompressReport) -> GateError | None:
    """Return the error of the gate that was not passed, or None."""
    drop, kl = report.gate, report.kl_gate
    if drop is not None and not drop.passed:
        return GateError(
            f"top-1 drops by {100 * drop.drop:.2f} points, {100 * drop.max_drop:g} are allowed: nothing was written",
            "a smaller --rate or --saving loses less",
        )
    if kl is not None and not kl.passed:
        return GateError(
            f"int8 changes the outputs by {kl.kl:.2g} nats, {kl.max_kl:g} are allowed: nothing was written",
            "--dtype float32 or bfloat16 changes less",
        )
    return None


def _asked(report: CompressReport) -> str:
    """Return the request in words. Under fitted and staged a rate stands for a saving, else for a share of patches."""
    recipe = report.recipe
    if recipe.stages is not None:
        return f"stages before blocks {', '.join(map(str, recipe.stages))}"
    saving = "" if report.asked_saving is None else f"saving {report.asked_saving:.4f} of the token-layers"
    if recipe.rate is None:
        goal = goal_text(recipe.fit)
        return saving if goal is None else f"{goal}: {saving}"
    return f"rate {recipe.rate:g}: {saving or f'{recipe.rate:.4f} of the patch tokens gone'}"


def _served(speed: ServedSpeed) -> str:
    low, high = speed.gain_quartiles
    ours, dense = f"{speed.ms_per_image:.3g} ms per image", f"dense {speed.dense_ms_per_image:.3g}"
    gain = f"{speed.gain:.2f}x (quartiles {low:.2f} to {high:.2f})"
    return f"{ours}, {dense}: {gain}, both after optimize(), batch size {speed.batch_size}"


def _steps(steps: list[dict[str, Any]]) -> str:
    return ", ".join(f"{len(step['absorb'])} after block {step['after']}" for step in steps) or "none"
