"""The page of a real model in headless Chromium: quiet, alone, readable, with its pictures, on any screen."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from stm.codec import encode
from stm.commands import compress, env, report
from stm.options import EvalOptions, MergeOptions
from tests.page.browser import Browser, browser, find

# Of every piece of text: its colour, the colour behind it, and its size, as a person sees them.
TEXTS = """
(() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgb = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = ([r, g, b]) => { const f = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b); };
  const out = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement;
    if (!node.textContent.trim() || !element.getClientRects().length || element.tagName === "title") continue;
    const svg = element.closest("svg"), style = getComputedStyle(element);
    let behind = element, back = [0, 0, 0, 0];
    while (behind && back[3] === 0) {
      back = rgb(getComputedStyle(behind).backgroundColor); behind = behind.parentElement; }
    const scale = svg && element.tagName === "text" ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
    const ink = rgb(svg && element.tagName === "text" ? style.fill : style.color);
    const [a, b] = [light(ink), light(back)].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05), size = parseFloat(style.fontSize) * scale;
    out.push({text: node.textContent.trim().slice(0, 40), contrast, size});
  }
  return out;
})()
"""
pytestmark = pytest.mark.slow
SCREENS = {
    "light": {},
    "dark": {"dark": True},
    "phone": {"width": 360, "height": 740},
    "dark phone": {"width": 360, "height": 740, "dark": True},
    "print": {"media": "print", "width": 794},
}


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find()
    if program is None:
        pytest.skip("there is no Chromium here: tests/page/setup.sh installs Debian's, or says why it cannot")
    with browser(program, tmp_path_factory.mktemp("browser") / "profile") as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of vim-digits, with a sweep and a bench."""
    folder = tmp_path_factory.mktemp("page")
    compress.compress("vim-digits", merge=MergeOptions(saving=0.45), eval=False, out=folder / "small")
    rows = [
        {
            "method": method,
            "schedule": "staged",
            "flops": {"paper": cost * 10**7},
            "top1": top1,
            "top1_ci": [top1 - 0.02, top1 + 0.02],
        }
        | {"images_per_second": 900 / cost}
        for number, method in enumerate(("stm", "paper", "random pruning", "R-MeeTo, no retraining", "ToMe", "UTR"))
        for cost, top1 in ((5, 0.7 + 0.01 * number), (7, 0.9 + 0.01 * number))
    ]
    bench = [
        {"variant": name, "batch_size": 32, "ms_per_image": 8.0, "images_per_second": 125.0, "ms_iqr": 0.2, "gain": 1.0}
        for name in ("dense", "compressed")
    ]
    about = {"model": "small", "environment": encode(env.environment().environment)}
    (folder / "sweep.json").write_text(
        json.dumps(about | {"command": "sweep", "n": 100, "data": "digits", "rows": rows})
    )
    (folder / "bench.json").write_text(json.dumps(about | {"command": "bench", "rows": bench}))
    report.report(
        folder / "small",
        images=EvalOptions(limit=48),
        sweep=folder / "sweep.json",
        bench=folder / "bench.json",
        out=folder / "page.html",
    )
    return folder / "page.html"


@pytest.mark.parametrize("screen", SCREENS)
def test_it_is_quiet_alone_and_readable(tab: Browser, page: Path, screen: str) -> None:
    tab.show(page, **SCREENS[screen])
    assert [entry["entry"] for entry in tab.told("Log.entryAdded")] == []
    assert tab.told("Runtime.consoleAPICalled") == tab.told("Runtime.exceptionThrown") == []
    asked = [request["request"]["url"] for request in tab.told("Network.requestWillBeSent")]
    assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
    assert tab.told("Network.loadingFailed") == []
    texts = tab.evaluate(TEXTS)
    assert len(texts) > 100
    assert [each for each in texts if each["contrast"] < 4.5] == []  # WCAG 2, level AA
    assert [each for each in texts if each["size"] < 9.5] == []
    wide, window = tab.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= window, "the page scrolls sideways"


def test_its_pictures_are_there(tab: Browser, page: Path) -> None:
    tab.show(page)
    assert tab.evaluate("[...document.images].map(i => i.complete && i.naturalWidth > 0)") == [True] * 10
    boxes = "[...document.querySelectorAll('svg.chart, .photos svg')].map(s => s.getBoundingClientRect())"
    assert tab.evaluate(f"{boxes}.filter(r => r.width > 100 && r.height > 60).length") == 1 + 5 + 1 + 1 + 2, (
        "staircase, five stages, costs, intervals, two curves"
    )
    photograph = "document.querySelector('#photograph').getAttribute('href')"
    assert tab.evaluate(f"fetch({photograph}).then(() => true, () => false)") is False, (
        "the page may not fetch, not even what it holds"
    )
    assert (
        tab.evaluate(
            f"new Promise(done => {{ const i = new Image(); i.onload = () => done(i.width); i.src = {photograph}; }})"
        )
        == 300
    )


def test_nothing_covers_anything(tab: Browser, page: Path) -> None:
    """Labels of one chart do not lie over each other."""
    overlaps = """
    (() => { const out = []; for (const svg of document.querySelectorAll("svg.chart")) {
      const boxes = [...svg.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect()]);
      boxes.forEach(([a, r], n) => boxes.slice(n + 1).forEach(([b, s]) => {
        const across = r.left < s.right - 1 && s.left < r.right - 1;
        if (across && r.top < s.bottom - 3 && s.top < r.bottom - 3) out.push([a, b]); })); }
      return out; })()"""
    for screen in ("light", "phone"):
        tab.show(page, **SCREENS[screen])
        assert tab.evaluate(overlaps) == []
