"""What merging costs: effects against finite differences and sums by hand, and the isotonic fit against scipy's."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stm import backends
from stm.config import Config, ModelConfig, Preprocess, dense_schedule
from stm.merging import costs
from stm.merging.costs import LARGEST_GROUP, effects, images_at_once, never_dearer
from stm.merging.plan import Plan, State, Taps
from stm.model.initialize import initialize
from stm.model.vim import ViM

CLASSES = 5


def model_of(backend: str = "reference", **shape: object) -> ViM:
    """A model with random weights; by default 4 x 4 patches, the class token at 8 of 17, and 4 blocks."""
    settings = {"image_size": 8, "patch": 2, "stride": 2, "d_model": 8, "depth": 4, "d_state": 4, "dt_rank": 1}
    model = ModelConfig(**{**settings, **shape})  # type: ignore[arg-type]
    config = Config(
        model=model,
        num_classes=CLASSES,
        schedule=dense_schedule(model),
        preprocessing=Preprocess(
            resize=model.image_size, crop=model.image_size, mean=(0.5,) * model.in_chans, std=(0.5,) * model.in_chans
        ),
    )
    return initialize(ViM(config, backends.choose(backend)), seed=0).eval()


def drawn(model: ViM, n: int = 2) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    shape = model.config.model
    images = torch.randn(n, shape.in_chans, shape.image_size, shape.image_size, generator=g)
    return images, torch.randn(n, CLASSES, generator=g)


def all_effects(model: ViM, images: Tensor, probes: Tensor) -> Tensor:
    return torch.cat(list(effects(model, images, probes)))


class _Moved(Plan):
    """Moves the members of one group a share of the way to their mean, before one block."""

    def __init__(self, before: int, start: int, size: int, share: float) -> None:
        super().__init__()
        self.before, self.members, self.share = before, slice(start, start + size), share

    def forward(self, block: int, state: State, taps: Taps) -> State:
        if block + 1 != self.before:
            return state
        x = state.stream.clone()
        group = x[:, self.members]
        x[:, self.members] = group + self.share * (group.mean(1, keepdim=True) - group)
        return State(x, cls=state.cls)


class _Streams(Plan):
    """Keeps the streams of a pass as leaves of the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.streams: list[Tensor] = []

    def forward(self, block: int, state: State, taps: Taps) -> State:
        self.streams.append(state.stream)
        self.streams[-1].retain_grad()
        return State(self.streams[-1], cls=state.cls)


def by_hand(model: ViM, images: Tensor, probes: Tensor) -> Tensor:
    """The definition, in float64: sum_j <g_j, m - x_j> of every group that is whole; the rest is 0."""
    double = copy.deepcopy(model).double()
    probes = (probes - probes.mean(-1, keepdim=True)).double()
    plan = _Streams()
    (double.with_plan(plan)(images.double()) * probes).sum().backward()
    B, L = len(images), model.config.model.tokens
    out = torch.zeros(B, len(plan.streams), L, LARGEST_GROUP + 1, dtype=torch.float64)
    for number, x in enumerate(plan.streams):
        assert x.grad is not None
        for start in range(L):
            for size in range(2, min(LARGEST_GROUP, L - start) + 1):
                members = x.detach()[:, start : start + size]
                to_mean = members.mean(1, keepdim=True) - members
                out[:, number, start, size] = (x.grad[:, start : start + size] * to_mean).sum((1, 2))
    return out


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("backend", [name for name in ("reference", "blocked", "native") if backends.status(name)[0]])
def test_effects_are_their_definition(backend: str) -> None:
    model = model_of(backend)
    images, probes = drawn(model)
    assert difference(all_effects(model, images, probes), by_hand(model_of(), images, probes)) < 1e-5


@pytest.mark.parametrize(
    ("before", "start", "size"), [(1, 0, 2), (1, 3, 5), (2, 0, 8), (3, 9, 8), (3, 9, 2), (2, 15, 2)]
)
def test_effects_are_the_derivative_of_the_logits(before: int, start: int, size: int) -> None:
    model = model_of()
    images, probes = drawn(model)
    found = all_effects(model, images, probes)[:, before - 1, start, size]
    double, step = copy.deepcopy(model).double(), 1e-3
    with torch.no_grad():
        ahead, behind = (
            double.with_plan(_Moved(before, start, size, share))(images.double()) for share in (step, -step)
        )
    slope = (ahead - behind) / (2 * step)
    expected = (slope * (probes - probes.mean(-1, keepdim=True))).sum(-1)
    assert torch.allclose(found, expected, rtol=1e-2)


@pytest.mark.parametrize(
    "shape",
    [
        {"class_token": "head"},
        {"depth": 2},
        {"in_chans": 1},
        {"image_size": 2, "patch": 2},  # a patch and the class token
        {"image_size": 6, "stride": 1, "depth": 2},  # overlapping patches
    ],
    ids=str,
)
def test_other_shapes(shape: dict[str, object]) -> None:
    model = model_of(**shape)
    images, probes = drawn(model)
    found, config = all_effects(model, images, probes), model.config.model
    assert found.shape == (2, config.depth - 1, config.tokens, LARGEST_GROUP + 1)
    assert difference(found, by_hand(model, images, probes)) < 1e-5


def test_730_tokens() -> None:
    """27 x 27 patches: late sums over many tokens lose no digits of early ones."""
    model = model_of(image_size=27, patch=1, stride=1, depth=2)
    images, probes = drawn(model, 1)
    found, expected = all_effects(model, images, probes), by_hand(model, images, probes)
    assert found.shape == (1, 1, 730, 17)
    assert difference(found, expected) < 1e-5
    assert difference(found[:, :, -20:], expected[:, :, -20:]) < 1e-4


def test_what_all_tokens_share_costs_no_digits() -> None:
    """Only differences of tokens count, so that a large common part of the stream must not drown them."""
    model = model_of()
    with torch.no_grad():
        model.pos_embed += 100
    images, probes = drawn(model)
    found, expected = all_effects(model, images, probes), by_hand(model, images, probes)
    assert difference(found, expected) < 1e-3


def test_portions_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    images, probes = drawn(model, 5)
    whole = all_effects(model, images, probes)
    monkeypatch.setattr(costs, "_IMAGES_AT_ONCE", 2)
    portions = list(effects(model, images, probes))
    assert [len(portion) for portion in portions] == [2, 2, 1]
    assert difference(torch.cat(portions), whole) < 1e-6


def test_portions_bound_memory() -> None:
    """About 110 MB of activations at most, but one image always: E L times the depth decides.

    5.5 floats per token, block and channel of E: 40 MB per image of ViM-Ti, 80 of ViM-S.
    """
    assert images_at_once(model_of().config.model) == 8
    assert images_at_once(ModelConfig(d_model=192, depth=24, dt_rank=12)) == 2
    assert images_at_once(ModelConfig(d_model=384, depth=24, dt_rank=24)) == 1
    assert images_at_once(ModelConfig(d_model=1024, depth=24, dt_rank=64)) == 1


def test_the_model_is_left_alone() -> None:
    model = model_of().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images, probes = drawn(model)
    all_effects(model, images, probes)
    assert model.training and model.plan is None
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not images.requires_grad and images.grad is None


def _plain(model: ViM) -> Callable[[], Tensor]:
    images, probes = drawn(model)
    return lambda: all_effects(model, images, probes)


@pytest.mark.parametrize("around", [torch.inference_mode, torch.no_grad, torch.enable_grad], ids=lambda f: f.__name__)
def test_it_runs_in_every_mode_of_autograd(around: Callable[[], object]) -> None:
    run = _plain(model_of())
    expected = run()
    with around():  # type: ignore[attr-defined]
        assert torch.equal(run(), expected)


def test_a_model_that_was_made_in_inference_mode() -> None:
    expected = _plain(model_of())()
    with torch.inference_mode():
        run = _plain(model_of())
    assert torch.equal(run(), expected)


def test_autocast_changes_nothing() -> None:
    """What is kept for later runs must not depend on the context of this one."""
    run = _plain(model_of())
    expected = run()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(run(), expected)


@pytest.mark.parametrize("frozen", [True, False])
def test_training_mode_and_frozen_weights_change_no_number(frozen: bool) -> None:
    model = model_of()
    expected = _plain(model)()
    assert torch.equal(_plain(model.train().requires_grad_(not frozen))(), expected)


def test_half_precision_is_near() -> None:
    model = model_of()
    expected = _plain(model)()
    found = _plain(model.cast("bfloat16"))()
    assert found.dtype == torch.float64
    assert difference(found, expected) < 0.1


@given(
    st.lists(st.one_of(st.floats(0, 1), st.floats(0, 1e-12), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=12)
)
def test_never_dearer_is_isotonic_regression(values: list[float]) -> None:
    from scipy.optimize import isotonic_regression  # not above: every process of the tests collects this file

    expected = isotonic_regression(np.array(values), increasing=False).x
    found = never_dearer(torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)).flatten()
    assert torch.allclose(found, torch.from_numpy(expected.copy()), rtol=1e-9, atol=1e-14)
    assert (found.diff() <= 1e-14).all()


def test_never_dearer_fits_every_group_alone() -> None:
    from scipy.optimize import isotonic_regression

    cost = torch.rand(6, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = never_dearer(cost)
    for i in range(4):
        for n in range(3):
            expected = isotonic_regression(cost[:, i, n].numpy(), increasing=False).x
            assert np.allclose(found[:, i, n].numpy(), expected, rtol=1e-12)
    assert torch.equal(never_dearer(cost[:1]), cost[:1])
