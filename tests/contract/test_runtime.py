"""A folder runs with torch and safetensors alone, under torch.compile and torch.export, and gives the same bits after
loading."""

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor

import stm
from stm import backends
from stm.config import Config, ModelConfig, Preprocess, dense_schedule
from stm.model.initialize import initialize
from stm.model.vim import ViM

ROOT = Path(__file__).resolve().parents[2]
METHODS = ["stm", "paper"]


@pytest.fixture(scope="module")
def dense() -> stm.ViM:
    """The official code's mini model: 50 tokens, 6 blocks."""
    return stm.load_checkpoint(ROOT / "tests/golden/dense-mini/vim_mini_stride8.pth", device="cpu")


@pytest.fixture(scope="module", params=METHODS)
def small(request: pytest.FixtureRequest, dense: stm.ViM) -> stm.ViM:
    return stm.compress(dense, rate=0.3, method=request.param)


@pytest.fixture(scope="module")
def shallow() -> stm.ViM:
    """A model of two blocks, with one merge between them: compilers take seconds per block, and blocks are alike."""
    shape = ModelConfig(image_size=64, patch=16, stride=8, d_model=32, depth=2, dt_rank=2)
    prep = Preprocess.official(shape.image_size)
    config = Config(model=shape, num_classes=10, schedule=dense_schedule(shape), preprocessing=prep)
    return initialize(ViM(config), seed=0)


@pytest.fixture(scope="module", params=METHODS)
def merged(request: pytest.FixtureRequest, shallow: stm.ViM) -> stm.ViM:
    return stm.compress(shallow, rate=0.3, method=request.param)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_logits_are_bitwise_equal_before_saving_and_after_loading(
    small: stm.ViM, images: Tensor, tmp_path: Path
) -> None:
    small.save_pretrained(tmp_path / "small")
    loaded = stm.load(tmp_path / "small", device="cpu")
    assert loaded.schedule == small.schedule
    assert loaded.config == small.config
    with torch.inference_mode():
        assert torch.equal(loaded(images), small(images))


def test_a_folder_runs_where_nothing_else_can_be_imported(small: stm.ViM, images: Tensor, tmp_path: Path) -> None:
    """A fresh interpreter in which anything but torch, safetensors, their own needs and stm's runtime raises
    ModuleNotFoundError."""
    small.save_pretrained(tmp_path / "small")
    torch.save((images, small(images)), tmp_path / "expected.pt")
    script = textwrap.dedent("""
        import sys
        BANNED = {"numpy", "scipy", "PIL", "huggingface_hub", "typer", "rich", "jinja2", "stm_cli"}
        ABOVE = "bake merging.bnnm merging.budget model.initialize checkpoint findings distributed"
        ABOVE += " hub.errors hub.fetch hub.links hub.card hub.push data measure bench peers plots explain page"
        ABOVE += " commands"
        BANNED |= {"stm." + name for name in ABOVE.split()}

        class Refuse:
            def find_spec(self, name, path=None, target=None):
                # torch looks for numpy, and does without
                looks = sys._getframe(2).f_code.co_filename == "<frozen importlib.util>"
                if not looks and (name in BANNED or name.split(".")[0] in BANNED):
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, Refuse())
        import torch
        import stm
        model = stm.load(sys.argv[1], device="cpu")
        images, expected = torch.load(sys.argv[2])
        with torch.inference_mode():
            assert torch.equal(model(images), expected), (model(images) - expected).abs().max()
            model.features(images)
            model.features(images, out_indices=(0, -1))
        assert not [n for n in sys.modules if n in BANNED or n.split(".")[0] in BANNED]
        print("ran")
        """)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "small"), str(tmp_path / "expected.pt")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.stdout == "ran\n", done.stderr


def test_compile_takes_the_whole_model(merged: stm.ViM, images: Tensor) -> None:
    with torch.inference_mode():
        compiled = torch.compile(merged, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(images), merged(images))
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="inductor needs a C++ compiler"
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own
def test_inductor_takes_the_whole_model(shallow: stm.ViM, images: Tensor) -> None:
    small = stm.compress(shallow, stages=(1,))
    with torch.inference_mode():
        compiled = torch.compile(small, fullgraph=True)
        torch.testing.assert_close(compiled(images), small(images), rtol=1e-4, atol=1e-5)
    torch.compiler.reset()


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_export_takes_the_whole_model(merged: stm.ViM, images: Tensor, dynamic: bool) -> None:
    """With a dynamic batch, the program runs batches that it was not exported with."""
    shapes = ({0: torch.export.Dim("batch", min=1)},) if dynamic else None
    program = torch.export.export(merged, (images,), dynamic_shapes=shapes)
    module = program.module()
    with torch.inference_mode():
        for batch in (images, images[:1], images.repeat(3, 1, 1, 1)) if dynamic else (images,):
            torch.testing.assert_close(module(batch), merged(batch))
    assert len(program.graph.nodes) < 350  # of two blocks: the scan is one node, not thousands


def test_compile_and_export_take_every_backend(shallow: stm.ViM, images: Tensor) -> None:
    for name in ("native", "blocked"):
        if not backends.status(name)[0]:
            continue
        model = ViM(shallow.config, backends.choose(name))
        model.load_state_dict(shallow.state_dict())
        small = stm.compress(model.requires_grad_(False).eval(), stages=(1,))
        with torch.inference_mode():
            expected = small(images)
            torch.testing.assert_close(torch.export.export(small, (images,)).module()(images), expected)
            torch.testing.assert_close(torch.compile(small, fullgraph=True, backend="aot_eager")(images), expected)
    torch.compiler.reset()
