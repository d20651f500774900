"""A report in a notebook: its figures with their intervals, its rows as a table, every text escaped."""

import stm
from stm.notebook import as_html
from stm.reports import Environment, EvalReport, ListedModel, ModelsReport

HERE = Environment(stm="0", torch="2", device="cpu", name="A <CPU>", dtype="float32", backend="native", threads=2)


def test_figures_stand_with_their_intervals() -> None:
    report = EvalReport(
        command="eval",
        model="<b>x</b>",
        environment=HERE,
        data="pets",
        n=1234,
        seed=0,
        top1=0.9831,
        top1_ci=(0.97, 0.99),
    )
    html = report._repr_html_()
    assert "<caption>stm eval: &lt;b&gt;x&lt;/b&gt;</caption>" in html
    assert "<tr><th>top1</th><td>0.9831 (0.97 to 0.99)</td></tr>" in html
    assert "<tr><th>environment</th><td>A &lt;CPU&gt;, 2 threads, float32, backend native</td></tr>" in html
    assert "<tr><th>n</th><td>1,234</td></tr>" in html
    assert "top5" not in html and "None" not in html


def test_rows_are_a_table() -> None:
    about = {
        "repo": None,
        "file": None,
        "license": "mit",
        "parameters": 12345,
        "tokens": 5,
        "image_size": 4,
        "cached": True,
    }
    models = (
        ListedModel(name="a", top1=None, **about),
        ListedModel(name="b & c", top1=0.5, **about),
    )
    html = as_html(ModelsReport(command="models", model="", models=models))
    assert html.startswith("<table><caption>stm models</caption></table><p>models</p><table><tr><th>name</th>")
    assert "<td>b &amp; c</td>" in html and "<td>12,345</td>" in html and "<th>top1</th>" in html


def test_what_evaluate_returns_has_it() -> None:
    report = stm.evaluate(stm.load("vim-digits", device="cpu"), None, limit=4)
    assert "<th>top1</th>" in report._repr_html_()
