"""`ViM.features` at several levels: what leaves a block, handed out to the patches that each token holds."""

import dataclasses
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import stm
from stm.config import Config, ModelConfig, Preprocess, Protection, dense_schedule
from stm.errors import UsageError
from stm.merging.groups import Groups, follow
from stm.merging.plan import StaticPlan
from stm.merging.schedule import Schedule, Step, fixed
from stm.model.initialize import initialize
from stm.model.vim import ViM

KINDS: dict[str, dict[str, Any]] = {
    "middle": {},
    "head": {"class_token": "head", "divide_out": False},
    "several": {"class_tokens": 3},
    "backbone": {"class_tokens": 0},
    "wide": {"image_size": (6, 10)},
}


def made(kind: str) -> ViM:
    shape = ModelConfig(
        **{"image_size": 8, "patch": 2, "stride": 2, "d_model": 8, "depth": 5, "dt_rank": 1} | KINDS[kind]
    )
    prep = Preprocess(resize=shape.image_size, crop=shape.image_size)
    classes = 3 if shape.class_tokens else 0
    config = Config(model=shape, num_classes=classes, schedule=dense_schedule(shape), preprocessing=prep)
    return initialize(ViM(config), seed=1).eval()


def pictures(model: ViM) -> Tensor:
    return torch.randn(2, *model.config.model.input_shape, generator=torch.Generator().manual_seed(2))


def by_hand(model: ViM, images: Tensor) -> list[Tensor]:
    """The stream that leaves each block, per patch: groups follow from the merges that ran, not from the schedule."""
    shape, state = model.config.model, model.embed(images)
    groups: Groups = tuple((position,) for position in range(shape.tokens))
    levels = []
    for number, block in enumerate(model.blocks):
        state, taps = block(state, ())
        level = torch.full((images.shape[0], shape.tokens, shape.d_model), float("nan"))
        for token, group in enumerate(groups):
            for position in group:
                level[:, position] = state.stream[:, token]
        patches = [position for position in range(shape.tokens) if position not in fixed(shape.cls)]
        levels.append(level[:, patches].mT.unflatten(-1, shape.grid))
        if model.plan is not None and number < shape.depth - 1:
            before, state = state, model.plan(number, state, taps)
            merge = state.last_merge
            if state is not before and merge is not None:
                groups = follow(groups, merge.keep.tolist(), merge.src.tolist(), merge.dst.tolist())
    return levels


def merged(model: ViM, seed: int) -> ViM:
    """The model under a schedule that is drawn: any tokens become any others, in several steps."""
    shape, rng, steps = model.config.model, random.Random(seed), list[Step]()
    for after in sorted(rng.sample(range(shape.depth - 1), 3)):
        now = Schedule(shape.tokens, shape.cls, tuple(steps))
        tokens, cls = now.tokens_per_block(shape.depth)[-1], now.cls_per_block(shape.depth)[-1]
        free = [position for position in range(tokens) if position not in fixed(cls)]
        rng.shuffle(free)
        sources, others = free[: len(free) // 3], free[len(free) // 3 :]
        steps.append(Step(after, tuple((source, rng.choice(others)) for source in sources)))
    schedule, protection = Schedule(shape.tokens, shape.cls, tuple(steps)), Protection()
    plan = StaticPlan(schedule, protection, shape)
    return model.with_plan(plan, dataclasses.replace(model.config, schedule=schedule, protection=protection))


@settings(max_examples=12, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    seed=st.integers(0, 10**6),
    indices=st.lists(st.integers(-5, 4), min_size=1, max_size=4),
)
@torch.inference_mode()
def test_each_cell_has_the_value_of_its_group(kind: str, seed: int, indices: list[int]) -> None:
    model = merged(made(kind), seed)
    images = pictures(model)
    expected = by_hand(model, images)
    levels = model.features(images, out_indices=indices)
    assert len(levels) == len(indices)
    for index, level in zip(indices, levels, strict=True):
        assert level.shape == (2, 8, *model.config.model.grid)
        assert torch.equal(level, expected[index])


@pytest.mark.parametrize("kind", sorted(KINDS))
@torch.inference_mode()
def test_without_merges_they_are_those_of_the_dense_model(kind: str) -> None:
    dense = made(kind)
    images = pictures(dense)
    levels = dense.features(images, out_indices=range(5))
    for level, expected in zip(stm.compress(dense, rate=0).features(images, out_indices=range(5)), levels, strict=True):
        assert torch.equal(level, expected)
    assert torch.equal(dense.features(images, out_indices=(-1,), norm=True)[0], dense.features(images))
    assert torch.equal(levels[4], dense.features(images, norm=False))
    assert torch.allclose(
        dense.norm_f(levels[1].movedim(1, -1)).movedim(-1, 1), dense.features(images, [1], norm=True)[0]
    )


@torch.inference_mode()
def test_blocks_after_the_last_level_do_not_run() -> None:
    model, ran = made("middle"), list[int]()
    for number, block in enumerate(model.blocks):
        block.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
    model.features(pictures(model), out_indices=(2, 0))
    assert ran == [0, 1, 2]


@pytest.mark.parametrize(
    ("indices", "said"),
    [
        ((), "out_indices is empty"),
        ((5,), "out_indices has 5, expected blocks 0 to 4, or -5 to -1"),
        ((0, -6), "has -6"),
        ((1.0,), r"has 1\.0"),
        ((True,), "has True"),
    ],
)
def test_other_indices_are_refused(indices: Any, said: str) -> None:
    model = made("middle")
    with pytest.raises(UsageError, match=said):
        model.features(pictures(model), out_indices=indices)


def test_levels_pass_gradients_on_to_the_blocks_before_them() -> None:
    model = stm.compress(made("head"), saving=0.3, method="staged")
    torch.stack(model.features(pictures(model), out_indices=(1, 3))).sum().backward()
    reached = [block.mixer.in_proj.weight.grad is not None for block in model.blocks]
    assert reached == [True, True, True, True, False]
