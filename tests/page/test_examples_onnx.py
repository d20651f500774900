"""The examples that run an exported model: Python, Node, and a page in headless Chromium. Each says what stm says."""

import base64
import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import stm
from stm.assets import FOLDER
from stm.commands import compress, export, predict
from stm.options import MergeOptions
from tests.blocks import cut
from tests.export.small import small as small_model
from tests.hang import HANG
from tests.page.browser import Browser, browser, find
from tests.page.test_browser import TEXTS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PHOTO = FOLDER / "photographs" / "chelsea.jpg"
pytestmark = pytest.mark.slow(seconds=60)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first blocks of a mini ViM, compressed: 49 patches that overlap, 3 blocks, 10 classes without names."""
    out = tmp_path_factory.mktemp("model") / "small"
    mini = Path(__file__).resolve().parents[1] / "golden" / "dense-mini" / "vim_mini_stride8.pth"
    first = cut(mini, 3, out.with_suffix(".pth"))
    compress.compress(str(first), merge=MergeOptions(stages=(1, 2), method="staged"), eval=False, out=out)
    return out


@pytest.fixture(scope="module")
def models(small: Path) -> dict[str, Path]:
    """It as two files: of floats to logits, and of bytes to probabilities."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    files = {"logits": small.with_name("small.onnx"), "probabilities": small.with_name("bytes.onnx")}
    for name, path in files.items():
        export.export(str(small), format="onnx", with_preprocessing=name == "probabilities", out=path)
    return files


@pytest.fixture(scope="module")
def expected(small: Path) -> list[tuple[str, float]]:
    (prediction,) = predict.predict(str(small), [PHOTO]).predictions
    return [(each.label or f"class {each.index}", each.probability) for each in prediction.top5]


def read(text: str) -> list[tuple[str, float]]:
    """The lines of an example: a share and a name."""
    return [(name, float(share) / 100) for share, name in re.findall(r"([\d.]+)%\s+(\S.*)", text)]


def agree(told: list[tuple[str, float]], expected: list[tuple[str, float]], tolerance: float) -> None:
    assert [name for name, _ in told][:1] == [name for name, _ in expected][:1]
    by_name = dict(expected)
    assert len(told) == 5
    for name, share in told:
        assert abs(share - by_name.get(name, share)) < tolerance, (told, expected)


def test_numpy_and_pillow_suffice(models: dict[str, Path], expected: list[tuple[str, float]], tmp_path: Path) -> None:
    """In a process that has neither torch nor stm."""
    hidden = "import sys; sys.modules.update(dict.fromkeys(('torch', 'stm'))); import runpy; sys.argv = sys.argv[1:];"
    code = f"{hidden} runpy.run_path(sys.argv[0], run_name='__main__')"
    words = [sys.executable, "-c", code, EXAMPLES / "onnx_predict.py", models["logits"], PHOTO]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stderr
    agree(read(done.stdout), expected, 0.002)
    words[4] = models["probabilities"]
    refused = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=HANG)
    told = f"{words[4]} does not give logits for one normalised image: export it with --format onnx alone\n"
    assert (refused.returncode, refused.stderr) == (1, told)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the examples with what npm fetches for them."""
    if shutil.which("npm") is None:
        pytest.skip("there is no npm here")
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(EXAMPLES, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules", "*.onnx"))
    for name in ("node", "web"):
        words = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(words, cwd=folder / name, capture_output=True, text=True, timeout=HANG, check=False)
        if re.search("ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT|ENETUNREACH", done.stderr):
            pytest.skip("npm reaches no registry from here")
        assert done.returncode == 0, done.stderr  # another hash than the lock's, above all
    return folder


def test_node(installed: Path, models: dict[str, Path], expected: list[tuple[str, float]]) -> None:
    words = ["node", "predict.mjs", models["probabilities"], PHOTO]
    done = subprocess.run(words, cwd=installed / "node", capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stderr
    agree(read(done.stdout), expected, 0.05)  # another library decodes and resizes
    words[2] = models["logits"]
    refused = subprocess.run(words, cwd=installed / "node", capture_output=True, text=True, timeout=HANG)
    assert refused.returncode == 2 and "export it with --with-preprocessing" in refused.stderr


@pytest.fixture(scope="module")
def address(installed: Path) -> Iterator[str]:
    """The page's folder, as `python -m http.server` serves it."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def end_headers(self) -> None:
            self.send_header("Cache-Control", "no-store")  # tests write other files under one name within a second
            super().end_headers()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=installed / "web"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find()
    if program is None:
        pytest.skip("there is no Chromium here: tests/page/setup.sh installs Debian's, or says why it cannot")
    with browser(program, tmp_path_factory.mktemp("browser") / "profile") as opened:
        yield opened


def wait(tab: Browser, condition: str) -> None:
    end = time.monotonic() + HANG
    while not tab.evaluate(f"Boolean({condition})"):
        assert time.monotonic() < end, tab.evaluate("document.body.innerText")
        time.sleep(0.1)


REFUSED, READY, SEEN = (
    "!document.getElementById('error').hidden",
    "document.body.dataset.ready",
    "document.body.dataset.ms",
)
MESSAGE = "document.getElementById('error').textContent"


@pytest.mark.parametrize(("name", "screen"), [("light", {}), ("phone", {"width": 390, "height": 844, "dark": True})])
def test_the_page(
    tab: Browser,
    address: str,
    installed: Path,
    models: dict[str, Path],
    small: Path,
    expected: list[tuple[str, float]],
    name: str,
    screen: dict[str, Any],
) -> None:
    shutil.copy(models["logits" if name == "light" else "probabilities"], installed / "web" / "model.onnx")
    tab.show(address, **screen)
    wait(tab, f"{READY} || {REFUSED}")
    assert tab.evaluate(MESSAGE) == ""
    tab.choose("#file", PHOTO)
    wait(tab, SEEN)
    agree(shown(tab), expected, 0.01)
    # The patches that became one: as many tokens as the schedule says in the last block, and all in the first.
    schedule = json.loads((small / "config.json").read_text())["schedule"]
    tokens = schedule["tokens_per_block"][-1] - 1
    assert f"Block 3 sees {tokens} tokens for 49 patches" in tab.evaluate(
        "document.getElementById('caption').textContent"
    )
    tab.evaluate("(b => { b.value = 0; b.dispatchEvent(new Event('input')); })(document.getElementById('block'))")
    assert "nothing is merged before it" in tab.evaluate(
        "document.getElementById('picture').ariaLabel ?? document.getElementById('picture').getAttribute('aria-label')"
    )
    assert tab.evaluate("document.documentElement.scrollWidth") <= screen.get("width", 1200)
    faint = [text for text in tab.evaluate(TEXTS) if text["contrast"] < 4.5 or text["size"] < 12]
    assert faint == []
    # A file that is no image is one sentence, and the page goes on.
    tab.choose("#file", small / "config.json")
    wait(tab, REFUSED)
    assert tab.evaluate(MESSAGE).startswith("config.json is not an image that this browser can read")
    tab.evaluate("delete document.body.dataset.ms")
    tab.choose("#file", PHOTO)
    wait(tab, SEEN)
    assert not tab.evaluate(REFUSED)
    assert tab.told("Runtime.exceptionThrown") == []
    asked = {params["request"]["url"] for params in tab.told("Network.requestWillBeSent")}
    assert all(url.startswith((address, "data:", "blob:")) for url in asked), asked


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "model.onnx is not beside this page: write it with stm export FOLDER --format onnx --out model.onnx."),
        (b"PK\x03\x04 no model", "model.onnx is not an ONNX file that stm export wrote"),
    ],
)
def test_the_page_without_a_model(
    tab: Browser, address: str, installed: Path, content: bytes | None, said: str
) -> None:
    model = installed / "web" / "model.onnx"
    model.unlink(missing_ok=True)
    if content is not None:
        model.write_bytes(content)
    tab.show(address + f"?{os.urandom(4).hex()}")
    wait(tab, REFUSED)
    assert tab.evaluate(MESSAGE).startswith(said)
    assert tab.evaluate("document.getElementById('file').disabled")


def shown(tab: Browser) -> list[tuple[str, float]]:
    """The classes of the page and their shares."""
    rows = "[...document.querySelectorAll('#classes li')].map(li => [...li.children].map(each => each.textContent))"
    return [(label, float(share[:-1]) / 100) for label, share, _ in tab.evaluate(rows)]


def dispatched(tab: Browser, event: str, photo: Path) -> None:
    """Have the page believe that a file was dropped or pasted."""
    data = base64.b64encode(photo.read_bytes()).decode()
    tab.evaluate(f"""(() => {{
      const bytes = Uint8Array.from(atob("{data}"), each => each.charCodeAt(0)), given = new DataTransfer();
      given.items.add(new File([bytes], "photo.jpg", {{type: "image/jpeg"}}));
      dispatchEvent({event});
    }})()""")


def test_a_photograph_is_dropped_or_pasted_into_a_model_that_is_not_square(
    tab: Browser, address: str, installed: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    stm.compress(
        small_model(image_size=(32, 64), patch=8, stride=8, classes=8, depth=3), stages=[1], method="staged"
    ).save_pretrained(tmp_path / "model")
    export.export(str(tmp_path / "model"), format="onnx", out=installed / "web" / "model.onnx", force=True)
    (prediction,) = predict.predict(str(tmp_path / "model"), [PHOTO]).predictions
    expected = [(str(each.label), each.probability) for each in prediction.top5]
    tab.show(address + f"?{os.urandom(4).hex()}")
    wait(tab, f"{READY} || {REFUSED}")
    assert tab.evaluate(MESSAGE) == ""
    for event in (
        'new DragEvent("drop", {dataTransfer: given, cancelable: true})',
        'new ClipboardEvent("paste", {clipboardData: given})',
    ):
        tab.evaluate("delete document.body.dataset.ms; document.getElementById('classes').replaceChildren()")
        dispatched(tab, event, PHOTO)
        wait(tab, f"{SEEN} || {REFUSED}")
        agree(shown(tab), expected, 0.01)
    wide, high = tab.evaluate("(c => [c.width, c.height])(document.getElementById('picture'))")
    assert wide == 2 * high
    assert tab.evaluate("document.getElementById('caption').textContent").startswith("Block 3 sees 16 tokens for 32")
    assert tab.told("Runtime.exceptionThrown") == []


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"stm.output": "features"}, "model.onnx gives features and no classes: export it without --features."),
        ({"stm.output": ["features_1", "features_0"]}, "model.onnx gives features and no classes"),
        ({"stm.input": {"shape": [2, 3, 64, 64], "normalised": True}}, "model.onnx takes batches of 2 images"),
        ({"stm.input": {"shape": [None, 64, 64, 4], "normalised": False}}, "model.onnx takes images of 4 channels"),
        ({}, "model.onnx cannot be run here: "),
    ],
)
def test_the_page_with_a_model_that_it_cannot_use(
    tab: Browser, address: str, installed: Path, models: dict[str, Path], told: dict[str, Any], said: str
) -> None:
    """Its metadata says so; and one whose metadata says nothing of it, but of which there is no more."""
    import onnx

    proto = onnx.load(models["logits"])
    for each in proto.metadata_props:
        if each.key in told:
            each.value = json.dumps(
                json.loads(each.value) | told[each.key] if each.key == "stm.input" else told[each.key]
            )
    if not told:
        proto.graph.ClearField("node")
    (installed / "web" / "model.onnx").write_bytes(proto.SerializeToString())
    tab.show(address + f"?{os.urandom(4).hex()}")
    wait(tab, f"{REFUSED} || {READY}")
    assert tab.evaluate(MESSAGE).startswith(said)
    assert "\n" not in tab.evaluate(MESSAGE) and tab.evaluate("document.getElementById('file').disabled")


def test_the_page_without_its_runtime(tab: Browser, address: str, installed: Path) -> None:
    modules = installed / "web" / "node_modules"
    modules.rename(modules.with_name("elsewhere"))
    try:
        tab.show(address + f"?{os.urandom(4).hex()}")
        wait(tab, REFUSED)
        said = "ONNX Runtime is not here: run npm ci in this folder, and open the page through python -m http.server."
        assert tab.evaluate(MESSAGE) == said
    finally:
        modules.with_name("elsewhere").rename(modules)
