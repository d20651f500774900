"""Tables that hold every number at any width, and in the forms of a paper."""

from rich.console import Console

from stm_cli._tables import Columns, filled, latex, markdown


def test_a_table_that_is_too_wide_goes_on_below_with_its_names_again() -> None:
    table = Columns(("method", "a", "b"), [("one", "1,234,567", "89.1%"), ("two", "-", "-0.5")])
    console = Console(width=18)
    with console.capture() as captured:
        console.print(table)
    assert [line.rstrip() for line in captured.get().splitlines()] == [
        "method         a",
        "one    1,234,567",
        "two            -",
        "",
        "method     b",
        "one    89.1%",
        "two     -0.5",
    ]


def test_a_table_to_be_pasted_is_escaped() -> None:
    rows = filled(("method", "drop (%)", "empty"), [("a_b | c & d", "-0.5", ""), ("~^\\", "", "")])
    assert markdown(*rows).splitlines() == [
        "| method | drop (%) |",
        "| --- | ---: |",
        "| a_b \\| c & d | -0.5 |",
        "| ~^\\\\ | - |",
    ]
    assert latex(*rows).splitlines() == [
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"method & drop (\%) \\",
        r"\midrule",
        r"a\_b | c \& d & $-0.5$ \\",
        r"\textasciitilde{}\textasciicircum{}\textbackslash{} & - \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
