"""The page: its drawings as numbers, what it gathers, and that odd names stay text."""

import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from stm.codec import encode
from stm.config import Config, ModelConfig, Preprocess, Protection, Source, dense_schedule
from stm.data.images import Pixels, Sample
from stm.data.sets import SampleSet
from stm.errors import DataError
from stm.evaluations import Evaluation
from stm.explain.costs import CostMap
from stm.measure.records import Record
from stm.merging.groups import Formed
from stm.merging.schedule import Schedule, Step
from stm.page import charts
from stm.page import content as facts
from stm.page.charts import Axis, Point
from stm.page.content import Changed, Findings, Rows
from stm.page.render import render
from stm.recipe import DRAWN, Fit, Recipe
from stm.reports import Environment

MODEL = ModelConfig(image_size=4, patch=2, stride=2, in_chans=1, d_model=2, depth=12, d_state=2, dt_rank=1)
CONFIG = Config(
    model=MODEL,
    num_classes=2,
    schedule=Schedule(5, 2, (Step(0, ((0, 1), (4, 3))), Step(9, ((2, 0),)))),
    preprocessing=Preprocess(resize=4, crop=4, mean=(0.5,), std=(0.5,)),
    protection=Protection(),
    recipe=Recipe(method="stm", rate=0.4, removed_share=0.75, schedule="staged"),
    source=Source(repo="someone/their-vim", file="vim.pth", revision="c0ffee", sha256="5eed", license="apache-2.0"),
)
EVALUATION = Evaluation(
    data="digits",
    n=599,
    top1=0.87,
    top1_ci=(0.84, 0.9),
    top5=0.97,
    top5_ci=(0.96, 0.99),
    dense_top1=0.98,
    drop=0.11,
    drop_ci=(0.08, 0.14),
    mcnemar_p=1e-9,
    agreement=0.88,
    kl=0.3,
    images_per_second=98.7,
)
HERE = Environment(
    stm="0.1.0", torch="2.13.0", device="cpu", name="A processor", dtype="float32", backend="native", threads=2
)
ONE = Changed(file="a.png", picture="data:image/png;base64,iVBORw0KGgo=", label="0", dense="0", now="1", kl=4.0)


def findings(**more) -> Findings:
    plain = {
        "name": "small",
        "evaluation": EVALUATION,
        "dense_ci": (0.97, 0.99),
        "environment": HERE,
        "changed": (ONE,),
    }
    return Findings(**plain | {"missing": {"bench": "no bench", "sweep": "no sweep"}} | more)


class Parsed(HTMLParser):
    """Every tag that is opened is closed, in order; attributes and text by the way."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.text += " "
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_says_what_there_is() -> None:
    text = " ".join(Parsed(render(CONFIG, findings())).text.split())
    for said in (
        "someone/their-vim, vim.pth",
        "c0ffee",
        "5eed",
        "5 → 2",
        "block 0",
        "top-1 87.00% dense 98.00%, on 599 images",
        "top-1, dense 98.00% 97.00% to 99.00%",
        "top-1 lost, in points 11.00 8.00 to 14.00",
        "98.7 images/s A processor, 2 threads, float32, backend native",
        "no bench",
        "no sweep",
        "a.png is 0 0 → 1 KL 4.00",
        "model = stm.load('small')",
        "stm compress someone/their-vim --file vim.pth --revision c0ffee",
    ):
        assert said in text, said
    for absent in ("None", "nan", "{{", "}}"):
        assert absent not in text


def test_every_row_of_the_accuracy_in_its_order() -> None:
    text = " ".join(Parsed(render(CONFIG, findings())).text.split())
    assert (
        "top-1, dense 98.00% 97.00% to 99.00% top-1 87.00% 84.00% to 90.00% top-5 97.00% 96.00% to 99.00%"
        " top-1 lost, in points 11.00 8.00 to 14.00 McNemar's exact p 1e-09 same answer as dense 88.00%"
        " KL(dense, compressed), nats 0.3000 "
    ) in text


def test_nothing_is_asked_of_anybody() -> None:
    page = Parsed(render(CONFIG, findings()))
    allowed = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": allowed}) in page.tags
    assert not [tag for tag, _ in page.tags if tag in ("script", "iframe", "object", "form")]
    for tag, attributes in page.tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#")), (tag, attributes)
    assert not re.search(r"@import|url\(", render(CONFIG, findings()))


ODD = "<script>alert(1)</script> & \"q\" 'a' {{ 7 * 7 }} é\u2028 --></style>"


def test_odd_names_stay_text() -> None:
    config = dataclasses.replace(CONFIG, source=Source(repo=ODD, file=ODD.replace("/", ""), license=ODD))
    odd = Changed(file=ODD, picture=None, label=ODD, dense=ODD, now=ODD, kl=1.0)
    row = {"flops": {"paper": 10**9}, "top1": 0.9, "method": ODD}
    evaluation = dataclasses.replace(EVALUATION, data=ODD, reasons={"kl": ODD})
    found = findings(
        name=ODD, changed=(odd,), evaluation=evaluation, sweep=Rows((row, row), ODD), bench=None, notes=(ODD,)
    )
    html = render(config, found)
    page = Parsed(html)
    assert "script" not in [tag for tag, _ in page.tags]
    assert page.text.count("<script>alert(1)</script>") >= 8
    assert "49" not in re.sub(r"data:\S+", "", page.text)


def test_without_labels_it_is_not_accuracy() -> None:
    evaluation = Evaluation(
        data="photographs", n=48, agreement=0.9, kl=0.1, reasons={"top1": "the images have no label"}
    )
    text = " ".join(Parsed(render(CONFIG, findings(evaluation=evaluation, dense_ci=None))).text.split())
    assert "90.00% of 48 images without labels: not accuracy" in text
    assert "Not measured: the images have no label." in text
    assert "top-1, dense" not in text
    assert "timed nothing" in text


def test_the_curves_of_a_sweep_and_the_rows_of_a_bench() -> None:
    rows = [
        {"flops": {"paper": cost * 10**9}, "top1": top1, "top1_ci": None, "method": method, "images_per_second": 50}
        for method, cost, top1 in (
            ("stm", 1, 0.9),
            ("stm", 2, 0.95),
            ("random", 1, 0.8),
            ("failed", 1, None),
            ("dense", 3, 1.0),
        )
    ]
    by_flops, by_time = facts.points(rows, "top1")
    assert [(point.curve, point.cost, point.value) for point in by_flops] == [
        ("stm", 1, 0.9),
        ("stm", 2, 0.95),
        ("random", 1, 0.8),
    ]
    assert {point.cost for point in by_time} == {20}
    plain = {"variant": "dense", "batch_size": 1, "ms_per_image": 8.0, "images_per_second": 125.0}
    bench = Rows((plain, plain | {"variant": "small", "ms_iqr": 0.25, "gain": 1.254}), "stm bench m; A processor")
    page = Parsed(render(CONFIG, findings(sweep=Rows(tuple(rows), "stm sweep m, 9 images"), bench=bench)))
    text = " ".join(page.text.split())
    assert "stm bench m; A processor. Medians; ± the distance" in text and "stm sweep m, 9 images." in text
    assert "dense 1 8 125 small 1 8 ± 0.25 125 1.25" in text
    assert len([1 for tag, _ in page.tags if tag == "polyline"]) == 4


def test_the_places_of_a_chart() -> None:
    chart = charts.pareto([Point("b", 2, 0.5, 0.4, 0.6), Point("a", 3, 0.7, 0.7, 0.7), Point("a", 1, 0.6, 0.6, 0.6)])
    assert [(curve["name"], len(curve["points"])) for curve in chart["curves"]] == [("a", 2), ("b", 1)]
    first, last = chart["curves"][0]["points"]
    assert chart["left"] < first["x"] < last["x"] < charts.WIDTH and first["y"] > last["y"]
    alone = charts.pareto([Point("a", 1, 0.5, 0.5, 0.5)])
    assert all(0 <= point["x"] <= charts.WIDTH for point in alone["curves"][0]["points"])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0.84, 0.99, [0.85, 0.9, 0.95]), (0, 197, [0, 50, 100, 150])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert Axis(low, high, 0, 1).ticks == expected


def test_the_staircase() -> None:
    found = charts.staircase([10, 10, 5, 1])
    assert [bar["label"] for bar in found["bars"]] == [10, None, 5, 1]
    heights = [bar["height"] for bar in found["bars"]]
    assert heights[0] == heights[1] == pytest.approx(2 * heights[2]) == pytest.approx(10 * heights[3])


def test_a_border_between_two_groups_is_drawn_once() -> None:
    """2 x 2 patches, those of the upper row merged: an outline of four lines, and two squares that share a border."""
    found = charts.outlines(((0, 1), (2,), (3,), (4,)), cls=4, across=2)
    c = charts.CELL
    assert sorted(found["merged"].split("M")[1:]) == sorted(
        [f"0 0L{2 * c} 0", f"0 {c}L{2 * c} {c}", f"0 0L0 {c}", f"{2 * c} 0L{2 * c} {c}"]
    )
    assert found["single"].count(f"M{c} {c}L{c} {2 * c}") == 1


def test_the_stages_of_the_patches() -> None:
    assert facts.merged_patches(CONFIG) == [
        ("blocks 1 to 9: 3 tokens", ((0, 1), (2,), (3, 4))),
        ("blocks 10 to 11: 2 tokens", ((0, 1, 3, 4), (2,))),
    ]
    assert facts.merged_patches(dataclasses.replace(CONFIG, schedule=dense_schedule(MODEL))) == []


def test_the_ten_most_changed() -> None:
    samples = SampleSet("s", tuple(Sample(f"{n}.png", n % 2, Pixels(bytes([20 * n] * 16), 4)) for n in range(12)))
    records = [
        Record(
            file=f"{n}.png",
            label=n % 2,
            pred=0,
            top5=(0, 1),
            dense_pred=1,
            dense_top5=(1, 0),
            margin=1.0,
            kl=(n * 7 % 12) / 10,
        )
        for n in range(11)
    ] + [Record(file="11.png", label=1, error="11.png: broken")]
    found = facts.changed(records, samples, dataclasses.replace(CONFIG, label_names=("zero", "one")))
    assert [each.kl for each in found] == sorted(
        (record.kl for record in records if record.kl is not None), reverse=True
    )[:10]
    assert found[0].file == "5.png" and (found[0].label, found[0].dense, found[0].now) == ("one", "one", "zero")
    assert found[0].picture is not None and found[0].picture.startswith("data:image/jpeg;base64,")
    assert facts.dense_interval([r for r in records if r.label == 1 or r.error])[1] == pytest.approx(1.0)


ABOUT = {"command": "sweep", "model": "m", "n": 1200, "data": "digits", "environment": encode(HERE)}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (None, "cannot be read"),
        ("{", "is not a report"),
        ([], "is not a report"),
        ({"rows": 3}, "is not a report"),
        ({"rows": [3]}, "is not a report"),
        ({"rows": [{"flops": {"paper": 1}}]}, "is not a report"),
        (ABOUT | {"rows": []}, "0 of 0 rows"),
        (ABOUT | {"rows": [{"flops": {"paper": 1}}, {"flops": {}}]}, "1 of 2 rows can be shown"),
    ],
)
def test_reports_that_cannot_be_used(tmp_path: Path, document: Any, said: str) -> None:
    path = tmp_path / "rows.json"
    if document is not None:
        path.write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(DataError, match=said):
        facts.read_rows(path, "sweep")


def test_reports_of_other_commands(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps(ABOUT | {"rows": [{"flops": {"paper": 1}}]}))
    machine = "A processor, 2 threads, float32, backend native"
    assert facts.read_rows(tmp_path / "sweep.json", "sweep") == (
        ({"flops": {"paper": 1}},),
        f"stm sweep m, 1,200 images of digits; {machine}",
    )
    row = {"variant": "dense", "batch_size": 1, "ms_per_image": 8.0, "images_per_second": 125.0}
    bench = {"command": "bench", "model": "m", "environment": encode(HERE), "rows": [row]}
    (tmp_path / "bench.json").write_text(json.dumps(bench))
    assert facts.read_rows(tmp_path / "bench.json", "bench") == ((row,), f"stm bench m; {machine}")


def test_a_curve_of_a_comparison_has_the_title_of_its_method() -> None:
    common = {"flops": {"paper": 10**9}, "top1": 0.9}
    ours = {"method": "stm", "title": "STM, fitted (ours)", "schedule": "fitted"}
    peer = {"method": "hsa", "title": "Hidden State Alignment", "schedule": "published"}
    cell = {"method": "stm", "schedule": "fitted"}  # a sweep's rows have no titles
    names = [facts.points([row | common], "top1")[0][0].curve for row in (ours, peer, cell)]
    assert names == ["STM, fitted (ours)", "Hidden State Alignment, published", "stm, fitted"]


COSTS = CostMap(
    tuple(((1e-4, 1e-4, math.nan, 1e-2, 1e-2),) * 11),
    2,
    "24 drawn pictures, seed 0",
    (Formed(1, (0, 1)), Formed(1, (3, 4)), Formed(10, (0, 1, 3, 4))),
)


def test_what_merging_costs_is_drawn_over_the_blocks() -> None:
    """Five positions between 34 and 356, so 64.4 units each; eleven blocks of 8 units from 18 on."""
    drawn = charts.costs(COSTS)
    assert drawn["pixels"][0] == [(68, 1, 84), (68, 1, 84), (128, 128, 128), (253, 231, 37), (253, 231, 37)]
    assert [(bar["x"], bar["to"], bar["y"]) for bar in drawn["bars"][:2]] == [
        (40.44, 156.36, 22.0),  # 34 + 0.1 * 64.4 to 34 + 1.9 * 64.4
        (233.64, 349.56, 22.0),
    ]
    assert [bar["y"] for bar in drawn["bars"]] == [22.0, 22.0, 94.0, 94.0], "a token that lies apart has two bars"
    assert (drawn["low"], drawn["high"], drawn["cls"]) == (-4.0, -2.0, [195.0])
    placed = charts.first_merges(COSTS, CONFIG.schedule.groups[-1], 2)
    assert [each["block"] for each in placed["fills"]] == [1] and placed["fills"][0]["fill"] == "#440154"
    assert placed["fills"][0]["path"].count("M") == 4, "all four patches merged at once, and later again"
    flat = charts.costs(dataclasses.replace(COSTS, cost=((math.nan,) * 5,) * 11))
    assert set(flat["pixels"][0]) == {(128, 128, 128)}, "nothing costs anything"


def test_the_page_has_the_costs_the_fit_and_the_warning() -> None:
    fit = Fit(data=DRAWN, n=576, sha256="5eed" * 16)
    recipe = Recipe(method="stm", rate=0.4, removed_share=0.75, schedule="fitted", fit=fit)
    warned = {"warnings": ("top-1 drops",), "milder": "stm compress <x> --saving 0.2"}
    page = Parsed(render(dataclasses.replace(CONFIG, recipe=recipe), findings(costs=COSTS, **warned)))
    text = " ".join(page.text.split())
    for said in (
        "The costs come from 24 drawn pictures, seed 0.",
        "The schedule was fitted on 576 drawn pictures, seed 0, sha256 5eed5eed5eed; no data was needed.",
        "Above 30% saved without images the choice is less certain",
        "Warning: Top-1 drops.",
        "stm compress <x> --saving 0.2",
        "before block 1",
    ):
        assert said in text, said
    assert ("p", {"class": "warn"}) in page.tags
    pictures = [attributes["href"] for tag, attributes in page.tags if tag == "image"]
    assert len(pictures) == 2 and all(str(each).startswith("data:image/") for each in pictures)
    without = findings(missing={"bench": "", "sweep": "", "costs": "What merging costs is not here: no numbers."})
    assert "not here: no numbers." in Parsed(render(CONFIG, without)).text
    plain = Parsed(render(CONFIG, findings())).text
    assert "What merging costs" not in plain and "Warning" not in plain and "fitted on" not in plain
