"""`stm compare`: measure every method at the same saving, on the same images."""

from rich.console import Group, RenderableType
from rich.text import Text

from stm.findings import CompareReport, CompareRow
from stm.units import interval, operations, percent
from stm.verdicts import proven_loss, warning
from stm_cli import _groups as g
from stm_cli import _options as o
from stm_cli._format import environment_text, fit_rows
from stm_cli._output import Output
from stm_cli._tables import Columns, Rows, filled

EXAMPLES = (
    "stm compare vim-digits",
    "stm compare vim-digits --saving 0.15 --at both --out table/",
    "stm compare vim-s --data imagenet/val --also vim-ti --limit 5000",
    "stm compare vim-s --data imagenet/val --fit-on pictures/",
    "stm compare vim-ti --data imagenet/val --rate 0.2 --methods paper,hsa,rmeeto",
)


@g.grouped
def run(
    model: o.Model,
    *,
    saving: o.CompareSaving = None,
    rate: o.CompareRate = None,
    methods: o.Methods = None,
    at: o.At = "published",
    also: o.Also = None,
    fitted: g.Fitted,
    data: o.Data = None,
    reading: g.Reading,
    limit: o.Limit = None,
    batch_size: o.BatchSize = 32,
    seed: o.Seed = 0,
    out: o.TableOut = None,
    force: o.Force = False,
    source: g.Source,
    machine: g.Machine,
    workers: o.Workers = None,
    display: g.TableDisplay,
) -> None:
    """Set our presets beside the published methods and random pruning, at one saving: the paper's Table 2."""
    from stm.commands.compare import compare
    from stm.distributed import joined
    from stm.options import EvalOptions

    output = Output(**vars(display))
    # Under torchrun the processes share the images. Without torchrun, `joined` yields a world of one process.
    with output.progress() as on_progress, joined() as world:
        report = compare(
            model,
            g.model_options(source, machine),
            EvalOptions(data=data, limit=limit, batch_size=batch_size, seed=seed, workers=workers, **vars(reading)),
            fitted.options(),
            saving=saving,
            rate=rate,
            methods=methods,
            at=at,
            also=also or (),
            out=out,
            force=force,
            world=world,
            on_progress=on_progress,
        )
    output.report(report, screen, lambda shown: shown.output or "", pasted)
    for note in (
        *report.environment.fallbacks,
        *report.skipped_notes,
        *(f"{_name(row)} {note}" for row in report.rows for note in row.notes),
    ):
        output.note(note)
    for row in report.rows:
        # Only ours gets a warning. The others are there for comparison, and the table marks their losses.
        if row.method == "stm" and (text := warning(row, None)):
            output.warn(f"{_name(row)}: {text}")


def screen(report: CompareReport) -> RenderableType:
    """Draw two lines per method, and the meaning of the numbers below."""
    # Eight columns of two values each fit into 80 characters. Sixteen columns would not.
    heads = (
        "method\n",
        "FLOPs\nhonest",
        "saved\n",
        "tokens\nleft",
        "top-1\ntop-5",
        "drop\n(95%)",
        "agree\nKL",
        "p\nimages/s",
    )
    table = Columns(heads, [_cells(row) for row in report.rows])
    about = (
        (
            f"{report.model} on {report.n:,} images of {report.data}, each method solved for {percent(report.target)}"
            " of the honest operations"
        ),
        *(f"stm: {name} {value}" for name, value in fit_rows(report.fit)),
        (
            "FLOPs: multiply-accumulates in the paper's convention, with a method's own scoring; honest: all that is"
            " computed. drop: points from dense, with ! if more than chance explains. p: McNemar's test against stm."
        ),
        f"measured on {environment_text(report.environment)}",
    )
    return Group(table, "", *about)


def pasted(report: CompareReport) -> Rows:
    """Return one line per method, with every value of the screen in a column of its own."""
    heads = ("method", "FLOPs", "honest", "saved", "tokens", "top-1 (%)", "top-5 (%)", "drop (points)", "95%")
    rows = [
        (
            _name(row),
            operations(row.flops.paper),
            operations(row.flops.honest),
            percent(row.flops.honest_saving),
            str(row.tokens_left),
            *("" if share is None else percent(share)[:-1] for share in (row.top1, row.top5)),
            "" if row.drop is None else f"{100 * row.drop:z.2f}",
            "" if row.drop_ci is None else interval(row.drop_ci, 2),
            "" if row.agreement is None else percent(row.agreement)[:-1],
            "" if row.kl is None else f"{row.kl:.4f}",
            "" if row.stm_p is None else f"{row.stm_p:.2g}",
            "" if row.images_per_second is None else f"{row.images_per_second:.0f}",
        )
        for row in report.rows
    ]
    return filled((*heads, "agreement (%)", "KL", "p", "images/s"), rows)


def _cells(row: CompareRow) -> tuple[str | Text, ...]:
    """Return the cells of one method, an upper and a lower value in each."""
    flops = row.flops
    # Whether a method decides per image is what a reader compares first: only constants cost nothing at run time.
    kind = "dense" if row.method == "dense" or row.sibling else "static" if row.static else "looks at data"
    lost = proven_loss(row)
    drop = Text(
        ""
        if row.drop is None or row.drop_ci is None
        else f"{100 * row.drop:.2f}{'!' if lost else ''}\n{100 * row.drop_ci[0]:.1f} to {100 * row.drop_ci[1]:.1f}",
        style="yellow" if lost else "",
    )
    # Ours against this method, paired on the same images: two intervals do not tell close methods apart.
    p = "-" if row.stm_p is None else f"{row.stm_p:.2g}"
    speed = "-" if row.images_per_second is None else f"{row.images_per_second:.0f}"
    return (
        f"{_name(row)}\n  {kind}",
        f"{operations(flops.paper)}\n{operations(flops.honest)}",
        f"{percent(flops.paper_saving)}\n{percent(flops.honest_saving)}",
        str(row.tokens_left),
        f"{_share(row.top1)}\n{_share(row.top5)}",
        drop,
        f"{_share(row.agreement)}\n{'-' if row.kl is None else f'{row.kl:.4f}'}",
        f"{p}\n{speed}",
    )


def _name(row: CompareRow) -> str:
    """Return the name of a row."""
    # With `--at both` a peer has two rows, which differ in the blocks after which it acts.
    return f"{row.method} at stm's places" if row.schedule == "stm" else row.method


def _share(value: float | None) -> str:
    return "-" if value is None else percent(value)
