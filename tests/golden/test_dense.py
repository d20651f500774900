"""Dense models against the official code's own outputs (hustvl/Vim@dd0358a, run on a CPU): logits and the stream after
every block.

The bound is max|a - b| / max|b| <= 1e-4 in float32.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import stm
from stm import backends
from stm.merging.plan import Plan, State, Taps

Error = Callable[[Tensor, Tensor], float]
Tell = Callable[[str, float, str], None]
BOUND = 1e-4


class Record(Plan):
    """Keeps the stream that leaves each block and changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.streams: list[Tensor] = []

    def forward(self, block: int, state: State, taps: Taps) -> State:
        self.streams.append(state.stream)
        return state


def streams_and_logits(model: stm.ViM, images: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    """The stream after every block, logits from the full last block, and logits as the model gives them."""
    record = Record()
    recorded = model.with_plan(record)
    with torch.inference_mode():
        last = recorded.run(recorded.embed(images), full=True)
        return [*record.streams, last.stream], recorded.classify(last), model(images)


def check_every_block(
    model: stm.ViM, images: Tensor, expected: dict[str, Tensor], name: str, error: Error, tell: Tell
) -> None:
    """Hold a model to a golden file: its input, the stream after every block, and the logits."""
    streams, full, logits = streams_and_logits(model, images)
    with torch.inference_mode():
        errors = {"embed": error(model.embed(images).x, expected["embed"])}
    errors |= {f"stream.{i}": error(stream, expected[f"stream.{i}"]) for i, stream in enumerate(streams)}
    errors |= {"logits": error(logits, expected["logits"]), "logits_f64": error(logits, expected["logits_f64"])}
    worst = max(errors, key=errors.__getitem__)
    tell(name, errors[worst], worst)
    assert errors[worst] <= BOUND
    assert len(streams) == model.config.model.depth
    assert error(logits, full) < 1e-5  # the last block computes only what reaches the class token, exactly


@pytest.mark.parametrize("backend", ["reference", "blocked", "native"])
@pytest.mark.parametrize(
    ("checkpoint", "golden"), [("vim_mini", "golden"), ("vim_mini_stride8", "golden_vim_mini_stride8")]
)
def test_every_block_equals_the_official_code(
    checkpoint: str, golden: str, backend: str, mini: Path, error: Error, tell: Tell
) -> None:
    available, reason = backends.status(backend)
    if not available:
        pytest.skip(f"backend {backend}: {reason}")
    expected = load_file(mini / f"{golden}.safetensors")
    model = stm.load_checkpoint(mini / f"{checkpoint}.pth", device="cpu", backend=backend)
    check_every_block(model, expected["inputs"], expected, f"dense {checkpoint}, {backend}", error, tell)


def test_full_size_vim_tiny_equals_the_official_code(
    shared: Callable[[str], Path], vim_ti: stm.ViM, error: Error, tell: Tell
) -> None:
    """ViM-Ti with the golden script's weights (seed 1): the class token's stream after every block, and the logits."""
    expected = load_file(shared("golden/dense-full/golden_vim_ti.safetensors"))
    images = load_file(shared("golden/inputs_224_seed7.safetensors"))["inputs"]
    streams, _, logits = streams_and_logits(vim_ti, images)
    at_class_token = torch.stack([stream[:, 98] for stream in streams], 1)  # (B, depth, D)
    errors = {f"cls_stream.{i}": error(at_class_token[:, i], expected["cls_stream"][:, i]) for i in range(24)}
    errors |= {"logits": error(logits, expected["logits"]), "logits_f64": error(logits, expected["logits_f64"])}
    worst = max(errors, key=errors.__getitem__)
    tell(f"dense vim_ti, {vim_ti.backend.name}", errors[worst], worst)
    assert errors[worst] <= BOUND


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("backend", ["reference", "blocked", "native"])
def test_half_precision_agrees(backend: str, dtype: str, mini: Path, error: Error) -> None:
    """Dense and with spans: every part takes and returns the GEMMs' dtype."""
    if not backends.status(backend)[0]:
        pytest.skip(f"backend {backend}: {backends.status(backend)[1]}")
    images = load_file(mini / "golden.safetensors")["inputs"]
    half, whole = (
        stm.load_checkpoint(mini / "vim_mini.pth", device="cpu", dtype=d, backend=backend) for d in (dtype, "float32")
    )
    with torch.inference_mode():
        assert error(half(images), whole(images)) <= 5e-2
        assert error(*(stm.compress(each, saving=0.2, method="staged")(images) for each in (half, whole))) <= 5e-2
