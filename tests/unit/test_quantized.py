"""int8: what it costs a trained model, outliers, folders, and what it refuses."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

import stm
from stm.commands.compress import compress
from stm.config import Config, Measured, ModelConfig, Preprocess, dense_schedule
from stm.errors import UsageError
from stm.model import quantized
from stm.model.initialize import initialize
from stm.model.quantized import Int8, Int8Mixer, narrowed
from stm.model.vim import ViM
from stm.options import EvalOptions, MergeOptions, ModelOptions

MINI = Path(__file__).resolve().parents[1] / "golden" / "dense-mini" / "vim_mini_stride8.pth"


@pytest.fixture(scope="module")
def dense() -> stm.ViM:
    return stm.load_checkpoint(MINI, device="cpu")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def logits(model: torch.nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        out: Tensor = model(images)
    return out


def in_int8(model: stm.ViM) -> stm.ViM:
    return copy.deepcopy(model).cast("int8")


# The mini model has random weights, which pass errors on as no trained model does: 0.12 of the largest logit.
NEAR = 0.25


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def with_outliers(model: stm.ViM, size: float = 1024.0) -> stm.ViM:
    """The same function, but a few channels of each in_proj's input are `size` times as large."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for block in model.blocks:
            block.norm.weight[::16] *= size
            block.mixer.in_proj.weight[:, ::16] /= size
    return model


def test_rows_become_whole_numbers_with_a_scale_each() -> None:
    """Halves go to the even number, as IEEE 754 rounds."""
    whole, scale = narrowed(torch.tensor([[127.0, 0.5, 1.5, -2.5], [0.0, 0.0, 0.0, 0.0], [-254.0, 1.0, 3.0, 5.0]]))
    assert whole.tolist() == [[127, 0, 2, -2], [0, 0, 0, 0], [-127, 0, 2, 2]]
    assert scale[:, 0].tolist() == pytest.approx([1, 0, 2], abs=1e-30)


@pytest.mark.parametrize("method", [None, "staged", "paper"])
def test_outputs_stay_near_those_of_float32(dense: stm.ViM, images: Tensor, method: str | None) -> None:
    model = dense if method is None else stm.compress(dense, rate=0.4, method=method)
    expected = logits(model, images)
    int8 = in_int8(model)
    assert 0 < distance(logits(int8, images), expected) < NEAR
    assert distance(logits(int8.optimize(batch_size=4), images), expected) < NEAR


def test_a_trained_model_keeps_its_predictions() -> None:
    """The bounds of docs/speed.md: KL at most .0005, agreement at least 98.5%."""
    model = stm.load("vim-digits", device="cpu")
    report = stm.evaluate(in_int8(model), None, reference=model, limit=80)
    assert report.kl is not None and report.kl < 5e-4
    assert report.agreement is not None and report.agreement >= 0.985


def test_outliers_are_equalized(dense: stm.ViM, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = logits(dense, images)
    harder = with_outliers(dense)
    assert distance(logits(harder, images), expected) < 1e-5  # the same function
    assert distance(logits(in_int8(harder), images), expected) < NEAR
    monkeypatch.setattr(quantized, "WORTH", 0.0)  # no equalizer
    assert distance(logits(in_int8(harder), images), expected) > 2 * NEAR


def test_equalizers_are_powers_of_two_and_only_where_they_are_worth_it(dense: stm.ViM) -> None:
    """A power of two changes no bit of a float but those of its exponent, so the product in floats is the same."""
    plain, harder = in_int8(dense), in_int8(with_outliers(dense))
    for model, some in ((plain, False), (harder, True)):
        of_in_proj = torch.stack([block.mixer.in_proj.equalizer for block in model.blocks])
        assert torch.equal(of_in_proj.log2(), of_in_proj.log2().round())
        assert bool((of_in_proj != 1).any()) == some


def test_casting_leaves_a_model_that_shares_the_parameters_as_it_is(dense: stm.ViM, images: Tensor) -> None:
    before = logits(dense, images)
    shared = dense.with_plan(None, dense.config).cast("int8")
    assert isinstance(shared.blocks[0].mixer, Int8Mixer)
    assert torch.equal(logits(dense, images), before)
    assert shared.blocks[0].mixer.A_log is dense.blocks[0].mixer.A_log


@pytest.mark.parametrize("merged", [False, True])
def test_a_folder_gives_the_same_bits(dense: stm.ViM, images: Tensor, merged: bool, tmp_path: Path) -> None:
    model = in_int8(stm.compress(dense, rate=0.3, method="staged") if merged else dense)
    model.save_pretrained(tmp_path / "a")
    in_int8(stm.compress(dense, rate=0.3, method="staged") if merged else dense).save_pretrained(tmp_path / "b")
    name = "model.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    loaded = stm.load(tmp_path / "a", device="cpu")
    assert loaded.config.dtype == "int8"
    assert torch.equal(logits(loaded, images), logits(model, images))
    floats = stm.load(tmp_path / "a", device="cpu", dtype="float32")
    assert distance(logits(floats, images), logits(model, images)) < NEAR
    assert stm.load(tmp_path / "a", device="cpu", dtype="bfloat16").config.dtype == "bfloat16"
    dense_bytes = sum(v.nbytes for v in dense.state_dict().values())
    assert (tmp_path / "a" / name).stat().st_size < 0.8 * dense_bytes


def test_the_weights_of_floats_are_those_that_the_whole_numbers_stand_for(dense: stm.ViM) -> None:
    int8 = in_int8(dense)
    floats = copy.deepcopy(int8).cast("float32")
    for block, whole, original in zip(floats.blocks, int8.blocks, dense.blocks, strict=True):
        assert isinstance(whole.mixer, Int8Mixer)
        for weight, product, of in (
            (block.mixer.in_proj.weight, whole.mixer.in_proj, original.mixer.in_proj.weight),
            (block.mixer.x_proj_weight, whole.mixer.x_proj, original.mixer.x_proj_weight),
            (block.mixer.out_proj.weight, whole.mixer.out_proj, original.mixer.out_proj.weight),
        ):
            scale, equalizer = product.scale[..., None], product.equalizer[..., None, :]
            share = original.mixer.out_proj.share if product is whole.mixer.out_proj else 1.0
            torch.testing.assert_close(weight, product.weight * scale * equalizer / share)
            half_a_step = 0.5001 * scale * equalizer / share
            assert ((weight - of).abs() <= half_a_step).all()


@pytest.mark.parametrize("scan_norm", [False, True])
def test_floats_come_back_whether_or_not_out_proj_holds_the_average(scan_norm: bool) -> None:
    shape = ModelConfig(image_size=32, patch=16, d_model=32, depth=2, dt_rank=2, scan_norm=scan_norm)
    prep = Preprocess.official(32)
    config = Config(model=shape, num_classes=3, schedule=dense_schedule(shape), preprocessing=prep)
    model = initialize(ViM(config), seed=0)
    floats = in_int8(model).cast("float32")
    for block, original in zip(floats.blocks, model.blocks, strict=True):
        ours, theirs = block.mixer.out_proj, original.mixer.out_proj
        assert ours.share == theirs.share
        assert distance(ours.weight.detach(), theirs.weight.detach()) < 0.01  # half a step of 127


def test_a_gradient_is_refused_not_wrong(dense: stm.ViM, images: Tensor) -> None:
    with pytest.raises(UsageError, match="an int8 model has no gradient"):
        in_int8(dense)(images).sum().backward()


def test_autocast_does_not_round_the_sums(dense: stm.ViM) -> None:
    x, product = torch.randn(5, 32), in_int8(dense).blocks[0].mixer.in_proj
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(product(x), product(x))
        inside = product(x)
    assert torch.equal(inside, product(x))


def test_a_schedule_is_fitted_to_the_floats_that_int8_stands_for(dense: stm.ViM) -> None:
    int8 = in_int8(dense)
    small = stm.compress(int8, rate=0.3)
    floats = int8.with_plan(None).cast("float32")
    assert small.config.dtype == "int8" and isinstance(small.blocks[0].mixer, Int8Mixer)
    assert small.schedule == stm.compress(floats, rate=0.3).schedule


def test_compress_rounds_last_and_holds_int8_to_float32(tmp_path: Path) -> None:
    report = compress(
        str(MINI),
        ModelOptions(dtype="int8"),
        MergeOptions(rate=0.3, method="staged"),
        EvalOptions(limit=8),
        max_kl=0.5,
        out=tmp_path / "small",
    )
    assert report.rounding is not None and report.rounding.kl is not None
    assert report.kl_gate is not None and report.kl_gate.passed and report.kl_gate.kl == report.rounding.kl
    config = stm.load(tmp_path / "small").config
    assert config.dtype == "int8" and config.rounding == report.rounding
    assert "- int8: in_proj, x_proj and out_proj" in (tmp_path / "small" / "README.md").read_text()
    again = compress(str(MINI), recipe=tmp_path / "small", out=tmp_path / "again")
    assert again.rounding == report.rounding
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "small" / name).read_bytes()


def test_a_gate_that_is_not_passed_writes_nothing(tmp_path: Path) -> None:
    options = MergeOptions(rate=0.3, method="staged")
    of_int8, images = ModelOptions(dtype="int8"), EvalOptions(limit=8)
    report = compress(str(MINI), of_int8, options, images, max_kl=0.0, out=tmp_path / "small")
    assert report.kl_gate is not None and not report.kl_gate.passed
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(
    ("dtype", "max_kl", "eval", "sentence"),
    [
        (None, 0.1, True, "the dtype is float32"),
        ("bfloat16", 0.1, True, "the dtype is bfloat16"),
        ("int8", 0.1, False, "switched off"),
        ("int8", float("nan"), True, "expected at least 0 nats"),
        ("int8", float("inf"), True, "expected at least 0 nats"),
        ("int8", -1.0, True, "expected at least 0 nats"),
    ],
)
def test_a_gate_without_what_it_bounds_is_refused(
    dtype: str | None, max_kl: float, eval: bool, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=sentence):
        compress("vim-digits", ModelOptions(dtype=dtype), max_kl=max_kl, eval=eval, out=tmp_path / "x")


def test_only_int8_has_a_rounding() -> None:
    config = stm.load("vim-digits").config
    with pytest.raises(ValueError, match="rounding is given, expected null: the dtype is float32"):
        dataclasses.replace(config, rounding=Measured(data="x", n=1))


def test_it_says_if_the_processor_has_no_vnni(dense: stm.ViM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stm.model.serving.has_vnni", lambda: False)
    assert in_int8(dense).optimize(batch_size=1).notes == (
        "this processor has no AVX-512 VNNI: int8 products run in 16 bits",
    )
    monkeypatch.setattr("stm.model.serving.has_vnni", lambda: True)
    assert in_int8(dense).optimize(batch_size=1).notes == ()


def test_leading_axes_are_directions() -> None:
    g = torch.Generator().manual_seed(0)
    weight, x = torch.randn(2, 5, 7, generator=g), torch.randn(2, 4, 7, generator=g)
    together = Int8.of(weight, torch.ones(2, 7))(x)
    assert torch.equal(together[1], Int8.of(weight[1], torch.ones(7))(x[1]))
