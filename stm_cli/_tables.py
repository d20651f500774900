"""Tables that every width holds whole, and the same rows to be pasted into a paper.

A number that is cut, or broken over two lines, is another number. So a table that is too wide for a terminal gives the
columns that have no room a block of their own below, with the first column again.
"""

from collections.abc import Callable, Iterator, Sequence

from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

Cell = str | Text


class Columns:
    """A table whose first column names the rows.

    Args:
        heads: of all columns; a line break begins a second line.
        rows: of as many cells.
        gap: blanks between two columns.
        left: the columns, by number, that are words and no numbers. They may fold; the first is always one.
    """

    def __init__(
        self, heads: Sequence[str], rows: Sequence[Sequence[Cell]], *, gap: int = 1, left: Sequence[int] = ()
    ) -> None:
        self.heads, self.rows, self.gap, self.left = heads, rows, gap, {0, *left}
        self._cells = [[Text(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        names = self._width(0)
        widest = max(
            (self._width(column) for column in range(1, len(self.heads)) if column not in self.left), default=0
        )
        # Names may fold. At least one column of numbers always has room beside them.
        names = max(1, min(names, max(self._word(0), options.max_width // 3), options.max_width - widest - self.gap))
        whole = sum(self._width(column) + self.gap for column in range(1, len(self.heads)))
        if self._width(0) + whole <= options.max_width:
            names = self._width(0)
        block: list[int] = []
        left = room = options.max_width - names
        for column in range(1, len(self.heads)):
            needs = self._width(column) + self.gap
            if block and needs > left:
                yield self._table(block, names)
                yield ""
                block, left = [], room
            block.append(column)
            left -= needs
        yield self._table(block, names)

    def _table(self, columns: Sequence[int], names: int) -> Table:
        table = Table(box=None, pad_edge=False, show_edge=False, padding=(0, self.gap, 0, 0), header_style="bold")
        table.add_column(Text(self.heads[0]), width=names, overflow="fold")
        for column in columns:
            if column in self.left:
                table.add_column(Text(self.heads[column]), overflow="fold")
            else:
                head, width = Text(self.heads[column]), self._width(column)
                table.add_column(head, justify="right", no_wrap=True, min_width=width)
        for row in self._cells:
            table.add_row(row[0], *(row[column] for column in columns))
        return table

    def _lines(self, column: int) -> list[Text]:
        cells = [Text(self.heads[column]), *(row[column] for row in self._cells)]
        return [line for cell in cells for line in cell.split("\n", allow_blank=True)]

    def _width(self, column: int) -> int:
        return max(line.cell_len for line in self._lines(column))

    def _word(self, column: int) -> int:
        return max(Text(word).cell_len for line in self._lines(column) for word in line.plain.split(" "))


Rows = tuple[Sequence[str], Sequence[Sequence[str]]]  # the heads and the rows


def filled(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Rows:
    """Return a table without the columns that no row has a value for."""
    kept = [column for column in range(len(heads)) if any(row[column] for row in rows)]
    return [heads[column] for column in kept], [[row[column] or "-" for column in kept] for row in rows]


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown. The first column is of words, the others are of numbers."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    escaped = [[cell.replace("\\", "\\\\").replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def latex(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in LaTeX with the rules of the package booktabs, every text in it escaped."""

    def line(cells: Sequence[str]) -> str:
        texts = ("".join(_LATEX.get(character, character) for character in cell) for cell in cells)
        # A minus of mathematics, as numbers are set.
        return " & ".join(f"${text}$" if _is_negative(text) else text for text in texts) + r" \\"

    return "\n".join(
        (
            f"\\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
            r"\toprule",
            line(heads),
            r"\midrule",
            *map(line, rows),
            r"\bottomrule",
            r"\end{tabular}",
        )
    )


def _is_negative(text: str) -> bool:
    return text.startswith("-") and text[1:].replace(".", "", 1).isdigit()


PASTED: dict[str, Callable[[Sequence[str], Sequence[Sequence[str]]], str]] = {"markdown": markdown, "latex": latex}
