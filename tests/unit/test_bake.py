"""Baking: weights by each rule, static hsp from parameters and from images, and what is refused."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import stm
from stm.bake import CalibrationImages
from stm.errors import UsageError
from stm.merging.constants import rule_weights
from stm.merging.plan import MergeStep
from stm.merging.schedule import Step

MINI = Path(__file__).resolve().parents[1] / "golden" / "dense-mini" / "vim_mini_stride8.pth"


@pytest.fixture(scope="module")
def dense() -> stm.ViM:
    return stm.load_checkpoint(MINI, device="cpu")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def step_of(model: stm.ViM, block: int) -> MergeStep:
    assert model.plan is not None
    found = model.plan.get_submodule(str(block))
    assert isinstance(found, MergeStep)
    return found


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("prune", [0, 0, 1, 1]),
        ("sum", [1, 1, 1, 1]),
        ("mean", [1 / 3, 1 / 3, 1 / 3, 1]),
        ("size", [0.5, 0.125, 0.375, 1]),
    ],
)
def test_rules(rule: str, expected: list[float]) -> None:
    """Tokens of sizes 4, 1, 3, 9; the first two are absorbed by the third."""
    assert rule_weights(rule, Step(0, ((0, 2), (1, 2))), (4, 1, 3, 9)) == pytest.approx(expected)


def test_the_dense_model_is_untouched_and_shares_nothing(dense: stm.ViM, images: Tensor) -> None:
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    small = stm.compress(dense, rate=0.3, method="staged")
    assert dense.plan is None
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
    assert not {p.data_ptr() for p in dense.parameters()} & {p.data_ptr() for p in small.parameters()}


def test_rate_0_is_dense(dense: stm.ViM, images: Tensor) -> None:
    with torch.inference_mode():
        assert torch.equal(stm.compress(dense, rate=0)(images), dense(images))


def test_data_free_hsp_is_the_ratio_of_means_of_the_parameters(dense: stm.ViM) -> None:
    """w_i = mean(Delta_i Delta_k prod A_j) / mean(Delta_k^2) over (E, N), Delta = softplus(dt bias), for border, r = 1,
    first step."""
    small = stm.compress(dense, method="paper", rate=0.1, hsp="static", tokens_per_side=1)
    mixer = dense.blocks[0].mixer
    delta = F.softplus(mixer.dt_proj_bias.detach().double())  # (K, E)
    A = -mixer.A_log.detach().double().exp()  # (K, E, N)
    for direction, source in ((0, 0), (1, 49)):
        d = delta[direction][:, None]
        expected = (d * d * torch.exp(d * A[direction])).mean() / (d * d).mean()
        weight = step_of(small, 0).weight
        assert weight is not None
        assert weight[source].item() == pytest.approx(expected.item(), rel=1e-5)


def test_calibrated_hsp_is_the_mean_of_the_dynamic_weights(dense: stm.ViM, images: Tensor) -> None:
    """One step: averaged weights of one image alone give that image's dynamic logits; of many, the mean of each
    one's."""
    wish = {"method": "paper", "saving": 0.05, "schedule": "border"}
    one = [stm.compress(dense, **wish, hsp="static", calibration=images[i : i + 1]) for i in range(len(images))]
    dynamic = stm.compress(dense, **wish)
    with torch.inference_mode():
        torch.testing.assert_close(one[0](images[:1]), dynamic(images[:1]))
    every = stm.compress(dense, **wish, hsp="static", calibration=images)
    first = every.schedule.steps[0].after
    weights = [step_of(model, first).weight for model in one]
    mean = torch.stack([w for w in weights if w is not None]).mean(0)
    torch.testing.assert_close(step_of(every, first).weight, mean)
    recipe = every.config.recipe
    assert recipe is not None
    assert recipe.calibration is not None
    assert recipe.calibration.n == len(images)


def test_the_hash_of_calibration_images_is_that_of_their_own_bytes(images: Tensor) -> None:
    """A slice shares the memory of the whole, whose other images do not count."""
    assert CalibrationImages.of(images[:2], "some").about == CalibrationImages.of(images[:2].clone(), "some").about
    assert (
        CalibrationImages.of(images[:2], "some").about.sha256 != CalibrationImages.of(images[1:3], "some").about.sha256
    )


def test_without_its_plan_a_compressed_model_is_the_dense_one(dense: stm.ViM, images: Tensor) -> None:
    again = stm.compress(dense, stages=[3]).with_plan(None)
    assert again.config == dense.config
    with torch.inference_mode():
        assert torch.equal(again(images), dense(images))
        assert torch.equal(again.features(images), dense.features(images))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("wish", [{"method": "staged"}, {"method": "paper"}, {"method": "paper", "hsp": "static"}])
def test_half_precision_runs(dtype: str, wish: dict[str, str], images: Tensor) -> None:
    model = stm.load_checkpoint(MINI, device="cpu", dtype=dtype)
    calibration = images if "hsp" in wish else None
    with torch.inference_mode():
        logits = stm.compress(model, rate=0.3, calibration=calibration, **wish)(images)
        reference = stm.compress(stm.load_checkpoint(MINI, device="cpu"), rate=0.3, calibration=calibration, **wish)(
            images
        )
    assert logits.dtype == torch.float32
    assert (logits - reference).abs().max() < 0.1 * reference.abs().max()


@pytest.mark.parametrize("method", ["stm", "staged"])
def test_stages_alone_ask_for_the_order_that_has_them(dense: stm.ViM, method: str) -> None:
    """By hand: every pair of the 24 patches on the left and of the 25 on the right merges before block 3."""
    small = stm.compress(dense, method=method, stages=[3])
    assert small.schedule.tokens_per_block(6) == (50, 50, 50, 26, 26, 26)
    recipe = small.config.recipe
    assert recipe is not None
    assert (recipe.method, recipe.schedule, recipe.stages, recipe.fit) == (method, "staged", (3,), None)


def test_features_give_each_patch_those_of_its_token(dense: stm.ViM, images: Tensor) -> None:
    small = stm.compress(dense, stages=[3])
    with torch.inference_mode():
        features = small.features(images)  # (B, D, 7, 7)
        assert features.shape == (5, 32, 7, 7)
        flat = features.flatten(2)  # (B, D, patches)
        assert torch.equal(flat[..., 0], flat[..., 1])  # patches 0 and 1 were merged
        assert not torch.equal(flat[..., 1], flat[..., 2])
        full = dense.features(images).flatten(2)
        assert not torch.equal(full[..., 0], full[..., 1])


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"schedule": "fitted", "stages": [3]}, "stages need the schedule staged, not fitted"),
        ({"method": "paper", "stages": [3]}, "stages need the schedule staged, not border"),
        ({"stages": [3], "fit_on": torch.zeros(3, 3, 64, 64)}, "fit_on was given, but the schedule staged looks at no"),
        ({"hsp": "static"}, "hsp needs the weights hsp"),
        ({"normalize": True}, "normalize needs the weights hsp"),
        ({"method": "magic"}, "expected one of stm, staged, paper"),
        ({"step_scale": float("nan")}, "step_scale is nan"),
        ({"weights": "best"}, "expected one of prune"),
        ({"calibration": torch.zeros(1, 3, 64, 64)}, "only static hsp weights are calibrated"),
    ],
)
def test_what_excludes_itself_is_refused(dense: stm.ViM, wish: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        stm.compress(dense, **wish)  # type: ignore[arg-type]


def test_a_compressed_model_is_not_compressed_again(dense: stm.ViM) -> None:
    with pytest.raises(UsageError, match="already compressed"):
        stm.compress(stm.compress(dense, method="staged"))
