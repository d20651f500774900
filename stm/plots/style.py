"""Define the style of every figure, and write figures: PNG for screens, SVG for print.

The colours are Okabe and Ito's, which people with any colour vision can tell apart. Each line also has its own marker
and dash, so that a print without colours can be read. Maps use viridis, whose lightness grows evenly. Figures are 6.8
inches wide, the text width of a paper, with type of 8 points. Nothing is global: no window and no pyplot, whose state a
library must not change for its caller. matplotlib is imported only to draw.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stm.errors import StmError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 6.8  # inches
BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER)
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
MAP = "viridis"
GREY = "#666666"
DPI = 200

STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "figure.dpi": 100,
    "image.interpolation": "nearest",
    "svg.hashsalt": "stm",  # the same figure gives the same bytes
}


def require() -> None:
    """Raise an error early if figures cannot be drawn here, before a long measurement.

    Raises:
        StmError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise StmError("figures need matplotlib, which is not installed", "pip install matplotlib") from error


@contextmanager
def style() -> Iterator[None]:
    """Apply the style. Draw and save inside of this context: matplotlib reads its settings at both times."""
    require()
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield


def new(height: float, rows: int = 1, columns: int = 1, *, width: float = WIDTH, **more: Any) -> "tuple[Figure, Any]":
    """Return an empty figure and its axes, an array of (rows, columns); sizes in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **more)


def line(number: int, *, every: int = 1) -> dict[str, Any]:
    """Return the look of line `number`: colour, dash and marker, with a marker at every `every`-th point."""
    index = number % len(COLOURS)
    look = {"color": COLOURS[index], "linestyle": DASHES[index], "marker": MARKERS[index], "markevery": every}
    return look | {"markerfacecolor": "white", "markeredgecolor": COLOURS[index], "markeredgewidth": 0.8}


def save(
    figure: "Figure", folder: Path, name: str, write: Callable[[Path, bytes], object] = Path.write_bytes
) -> tuple[str, str]:
    """Write NAME.png and NAME.svg by `write`, and return the two names. The same figure gives the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    if layout := figure.get_layout_engine():
        layout.execute(figure)
        figure.set_layout_engine("none")  # once for both files: the layout takes half of the time
    # Both formats carry a version or a date by default, which would change the bytes.
    plain: dict[str, dict[str, Any]] = {
        "png": {"dpi": DPI, "metadata": {"Software": None}},
        "svg": {"metadata": {"Date": None}},
    }
    for kind, options in plain.items():
        drawn = io.BytesIO()
        figure.savefig(drawn, format=kind, **options)
        write(folder / f"{name}.{kind}", drawn.getvalue())
    return f"{name}.png", f"{name}.svg"
