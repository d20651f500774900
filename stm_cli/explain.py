"""`stm explain`: show how merging changes the states of a model, and which patches were merged."""

from rich.console import Group, RenderableType

from stm.findings import ExplainReport, Fit
from stm.units import percent
from stm_cli import _groups as g
from stm_cli import _options as o
from stm_cli._format import fields, staircase, tokens
from stm_cli._output import Output

EXAMPLES = (
    "stm explain vim-digits",
    "stm explain vim-digits-stm40 --out figures/ --force",
    "stm explain vim-s photo.jpg other.jpg --method paper --rate 0.2",
    "stm explain vim-s photo.jpg --peer rmeeto",
)
# The rules of `stm.explain.measurements.RULES`, in words.
_RULES = {"prune": "removed", "mean": "mean", "hsp": "hidden-state protection"}


@g.grouped
def run(
    model: o.Model,
    images: o.SomeImages = None,
    *,
    budget: g.Budget,
    fitted: g.Fitted,
    peer: o.Peer = None,
    block: o.Block = None,
    places: o.Places = 98,
    seed: o.Seed = 0,
    out: o.ExplainOut = None,
    force: o.Force = False,
    source: g.Source,
    machine: g.Machine,
    display: g.Display,
) -> None:
    """Draw states, attention, fading, losses, merged patches and what merging costs, with the data of every figure."""
    from stm.commands.explain import explain

    output = Output(**vars(display))
    with output.progress() as on_progress:
        report = explain(
            model,
            images or (),
            g.model_options(source, machine),
            budget.options(),
            fit=fitted.options(),
            peer=peer,
            block=block,
            places=places,
            seed=seed,
            out=out,
            force=force,
            on_progress=on_progress,
        )
    output.report(report, screen, lambda shown: shown.output)
    for note in report.environment.fallbacks:  # no fallback is silent
        output.note(note)


def screen(report: ExplainReport) -> RenderableType:
    """Draw the figures in words: how an error fades, what each rule loses, what all merges change."""
    # A block before the first merge does not change. Without any merge there is no worst block.
    changed = [change for change in report.plan_change if change > 0]
    rows = [
        ("images", f"{len(report.images)} of {report.data}"),
        ("tokens", f"{staircase(report.tokens_per_block)}  {tokens(report.tokens_per_block)}"),
        *((f"fading, {side}", _fading(fit, report.block)) for side, fit in report.fading.items()),
        ("one token", ", ".join(f"{_RULES[rule]} {percent(change, 2)}" for rule, change in report.losses.items())),
        ("all merges", f"{percent(max(changed))} in the worst block" if changed else "none"),
        ("costs", f"from {report.costs_from}"),
        # Only the pictures are named: the other files are their data and the same drawings as SVG.
        ("files", f"{len(report.files)}: {', '.join(name for name in report.files if name.endswith('.png'))}, ..."),
    ]
    return Group(f"{report.model} -> {report.output}", "Relative changes of the class token's state:", fields(rows))


def _fading(fit: Fit | None, block: int) -> str:
    """Return the fitted curve of one side as a formula."""
    if fit is None:
        return "no change that could be fitted"
    return f"{percent(fit.amplitude, 2)} x exp(-{fit.rate:.3f} d), R² = {fit.r2:.2f}, d tokens away, block {block}"
