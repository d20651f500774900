"""`stm plan`: help a user to choose a saving."""

from collections.abc import Callable
from dataclasses import replace

from rich.console import Group, RenderableType
from rich.text import Text

from stm.findings import PlanReport, PlanRow, Recommended
from stm.units import interval, percent
from stm_cli import _groups as g
from stm_cli import _options as o
from stm_cli._format import environment_text, fields, fit_rows
from stm_cli._output import Output
from stm_cli._tables import Columns, Rows, filled

EXAMPLES = (
    "stm plan vim-digits",
    "stm plan my_vim.pth --data my_images/ --out plan/",
    "stm plan vim-ti --fit-on pictures/ --data test_set/ --seconds 120",
    "stm plan vim-s --random-weights --threads 1",
)


@g.grouped
def run(
    model: o.Model,
    *,
    method: o.Method = None,
    schedule: o.Schedule = None,
    fitted: g.Fitted,
    data: o.Pictures = None,
    reading: g.Reading,
    limit: o.Few = None,
    seconds: o.Seconds = None,
    seed: o.Seed = 0,
    timed: o.Timed = 1,
    threads: o.Threads = None,
    rounds: o.Rounds = None,
    random_weights: o.RandomWeights = False,
    out: o.TableOut = None,
    force: o.Force = False,
    source: g.Source,
    machine: g.Machine,
    display: g.TableDisplay,
) -> None:
    """Show what savings of 10% to 45% cost and keep, measured on this machine, and recommend one."""
    from stm.commands.plan import plan
    from stm.options import MergeOptions, SetOptions

    output = Output(**vars(display))
    with output.progress() as on_progress:
        report = plan(
            model,
            g.model_options(source, machine),
            MergeOptions(method=method, schedule=schedule),
            fitted.options(),
            data=data,
            how=SetOptions(**vars(reading)),
            limit=limit,
            seconds=seconds,
            seed=seed,
            batch_size=timed,
            threads=threads,
            rounds=rounds,
            random_weights=random_weights,
            out=out,
            force=force,
            on_progress=on_progress,
        )
    output.report(report, screen, value, pasted)
    for note in (*report.environment.fallbacks, *report.notes, *report.skipped_notes):
        output.note(note)
    # A saving out of reach is no failure of the others, so it is a note beside the table.
    for row in report.rows:
        if row.reason is not None:
            output.note(f"saving {row.asked_saving:g}: {row.reason}")
    best = report.recommended
    if best is not None and best.gain <= 1:
        output.note(
            f"the recommended saving runs at {best.gain:.2f}x the dense model's speed here; a larger --batch-size may"
            " gain more"
        )


def screen(report: PlanReport) -> RenderableType:
    """Draw one line per saving, the meaning of the columns, the recommendation, and the command that makes it."""
    labelled = report.rows[0].drop is not None
    heads = ("saves", "tokens", "ms/image", "gain", "agreement", "KL", *(["drop"] if labelled else []))
    # A saving that no schedule reaches has no numbers; a note gives its reason.
    rows = [row for row in report.rows if row.reason is None]
    table = Columns(heads, [_cells(row, labelled) for row in rows])
    below = [("on", environment_text(report.environment)), *fit_rows(report.fit)]
    below.append(
        ("saves", "share of the token-layers; tokens: in the last block; gain: both as loaded, without optimize()")
    )
    if report.data is not None:
        # Stated beside the number, because agreement is easily read as accuracy.
        about = "drop: points of top-1 lost" if labelled else "this is not accuracy"
        below.append(("agreement", f"with the dense model's top-1 on {_images(report)}; {about}"))
        below.append(("intervals", "95%, below each figure"))
    if report.output is not None:
        below.append(("written", report.output))
    # Each command stays on one line at any width of the terminal, so that it can be pasted.
    if report.recommended is not None:
        below += [("recommended", line(report.recommended)), ("why", report.recommended.why)]
        commands = [report.recommended.command]
    else:
        below.append(("recommended", f"nothing: {report.reasons['recommended']}"))
        commands = [row.compress for row in rows if row.compress is not None]
    pasted = [Text(command, no_wrap=True, overflow="ignore") for command in commands]
    return Group(report.model, table, fields(below), *pasted)


def line(best: Recommended) -> str:
    """Return a recommendation in one line: what it saves and gains, and the loss that its images show."""
    if best.drop is not None and best.drop_ci is not None:
        kept = f"loses {100 * best.drop:z.1f} points ({interval(best.drop_ci)})"
    elif best.by == "agreement" and best.agreement is not None and best.agreement_ci is not None:
        kept = f"keeps {percent(best.agreement)} of the top-1 answers ({interval(best.agreement_ci)})"
    else:
        assert best.kl is not None and best.kl_ci is not None  # one of the three figures decided
        kept = f"KL {best.kl:.4f} ({best.kl_ci[0]:.4f} to {best.kl_ci[1]:.4f})"
    return f"saves {percent(best.saving, 0)}, {best.gain:.2f}x here, {kept}"


def pasted(report: PlanReport) -> Rows:
    """Return one line per saving that a schedule reaches, with the interval of a figure beside it."""

    def pair(figure: float | None, ends: tuple[float, float] | None, form: Callable[[float], str]) -> tuple[str, str]:
        return "" if figure is None else form(figure), "" if ends is None else f"{form(ends[0])} to {form(ends[1])}"

    rows = []
    for row in report.rows:
        if row.asked_saving == 0:  # the dense model is compared with itself
            row = replace(row, gain_ci=None, agreement_ci=None, kl_ci=None, drop_ci=None)
        if row.reason is None and row.tokens_per_block is not None and row.ms_per_image is not None:
            rows.append(
                (
                    "dense" if row.asked_saving == 0 else percent(row.saving or 0, 0),
                    str(row.tokens_per_block[-1]),
                    f"{row.ms_per_image:.2f}",
                    *pair(row.gain, row.gain_ci, "{:.2f}".format),
                    *pair(row.agreement, row.agreement_ci, lambda share: percent(share)[:-1]),
                    *pair(row.kl, row.kl_ci, "{:.4f}".format),
                    *pair(row.drop, row.drop_ci, lambda drop: f"{100 * drop:z.1f}"),
                )
            )
    figures = ("gain", "agreement (%)", "KL", "drop (points)")
    return filled(("saves", "tokens", "ms/image", *(head for name in figures for head in (name, "95%"))), rows)


def _cells(row: PlanRow, labelled: bool) -> tuple[str, ...]:
    """Return the cells of a saving. A figure that was measured stands over its interval."""
    assert row.saving is not None and row.tokens_per_block is not None and row.ms_per_image is not None
    is_dense = row.asked_saving == 0
    cells = [
        "dense" if is_dense else percent(row.saving, 0).rjust(len("dense")),
        str(row.tokens_per_block[-1]),
        f"{row.ms_per_image:.2f}",
        # The dense model is compared with itself: its figures are exact, and an interval would say nothing.
        _over(row.gain, None if is_dense else row.gain_ci, "{:.2f}".format, "x"),
        _over(row.agreement, None if is_dense else row.agreement_ci, lambda share: percent(share)[:-1], "%"),
        _over(row.kl, None if is_dense else row.kl_ci, "{:.4f}".format),
    ]
    if labelled:
        # The dense model's own interval is shown: no model can have a narrower one on these images.
        cells.append(_over(row.drop, row.drop_ci, lambda drop: f"{100 * drop:z.1f}"))
    return tuple(cells)


def _over(figure: float | None, ends: tuple[float, float] | None, shown: Callable[[float], str], unit: str = "") -> str:
    """Return a cell of two lines: a figure over its interval."""
    if figure is None:
        return "-"
    return shown(figure) + unit + ("" if ends is None else f"\n{shown(ends[0])} to {shown(ends[1])}")


def _images(report: PlanReport) -> str:
    """Return the number of images and their set, and the time limit if that is why there are no more."""
    if report.seconds is None or report.n == report.of:
        return f"{report.n:,} {'images' if report.n > 1 else 'image'} of {report.data}"
    return (
        f"{report.n:,} of the {report.of:,} images of {report.data}: those that {report.seconds:g} s allowed, drawn at"
        " random"
    )


def value(report: PlanReport) -> str:
    """Return one line per saving that was asked for: the saving, a tab, the gain."""
    return "\n".join(f"{row.asked_saving:g}\t{row.gain:.4f}" for row in report.rows if row.gain is not None)
