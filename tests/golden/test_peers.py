"""Peers against the outputs of the official code (golden README): tokens and class token at every block, what merged
with what or stayed, the stream after every block, logits. The bound on floats is max|a - b| / max|b| <= 1e-4 in
float32.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import stm
from stm import backends
from stm.measure.flops import paper
from stm.merging.plan import Plan, State, Taps
from stm.peers.peer import Peer
from stm.peers.rmeeto import RMeeTo
from tests.golden.upstream import UpstreamHSA, UpstreamRMeeTo, rmeeto_removals, topvim_removals

Error = Callable[[Tensor, Tensor], float]
BOUND = 1e-4
HERE = Path(__file__).parent


class Watch(Plan):
    """Another plan, and what passed through it."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.left: list[State] = []
        self.entered: list[State] = []

    def wants(self, block: int) -> tuple[str, ...]:
        return self.plan.wants(block)

    def forward(self, block: int, state: State, taps: Taps) -> State:
        self.left.append(state)
        after = self.plan(block, state, taps)
        self.entered.append(after)
        return after


def compare(
    model: stm.ViM, plan: Plan, images: Tensor, expected: dict[str, Tensor], error: Error, suffix: str = ""
) -> dict[int, State]:
    """Hold a run to a golden file; what entered the block after each removal, by the block that it followed."""
    watch = Watch(plan)
    watched = model.with_plan(watch)
    with torch.inference_mode():
        last = watched.run(watched.embed(images), full=True)
        full, logits = watched.classify(last), model.with_plan(plan)(images)
    streams = [*(state.stream for state in watch.left), last.stream]
    # What enters each block as the mixer sees it: R-MeeTo merges at the entry of a block, we after the one before.
    for key, where in (("tokens_out", "cls_out"), ("tokens_in", "cls_in")):
        if key in expected and (key == "tokens_out" or "tokens_out" not in expected):
            entered = [images.new_zeros(0), *watch.entered]
            assert [model.config.model.tokens, *(state.x.shape[1] for state in entered[1:])] == expected[key].tolist()
            assert [model.config.model.cls, *(state.cls for state in entered[1:])] == expected[where].tolist()
    entering = plan.entering(model.config.model)
    assert [entry.tokens for entry in entering] == [
        model.config.model.tokens,
        *(state.x.shape[1] for state in watch.entered),
    ]
    assert [entry.cls for entry in entering[1:]] == [state.cls for state in watch.entered]
    errors = {
        "logits": error(logits, expected[f"logits{suffix}"]),
        "logits_f64": error(logits, expected[f"logits{suffix}_f64"]),
    }
    errors["full"] = error(full, expected[f"logits{suffix}"])
    if not suffix:
        for i, stream in enumerate(streams):
            if f"stream.{i}" in expected:
                errors[f"stream.{i}"] = error(stream, expected[f"stream.{i}"])
            if "cls_stream" in expected:
                cls = model.config.model.cls if i == 0 else watch.entered[i - 1].cls
                errors[f"cls_stream.{i}"] = error(stream[:, cls], expected["cls_stream"][:, i])
    worst = max(errors, key=errors.__getitem__)
    print(f"{model.backend.name}: largest error {errors[worst]:.2e} ({worst})")
    assert errors[worst] <= BOUND
    return {i: state for i, state in enumerate(watch.entered) if i in getattr(plan, "removals", {})}


RMEETO: dict[str, dict[str, Any]] = {
    "mini_r5": {"num_prune": 5},
    "mini_r11": {"num_prune": 11},
    "mini_r11_compare15": {"num_prune": 11, "compare": 15},
    "mini_r5_odd": {"num_prune": 5, "odd": True},
}
# Their FLOPs count, and that of the layers alone, without scoring and merging (golden README).
THEIR_FLOPS = {
    "mini_r5": (8916544, 8707904),
    "mini_r11": (7584448, 7408448),
    "mini_r11_compare15": (7584448, 7408448),
    "mini_r5_odd": (8605344, 8346944),
}


def check_rmeeto(
    model: stm.ViM, settings: dict[str, Any], images: Tensor, expected: dict[str, Tensor], error: Error
) -> None:
    plan = UpstreamRMeeTo(model.config.model, rmeeto_removals(model.config.model, **settings))
    merges = compare(model, plan, images, expected, error)
    assert {f"merge.{block + 1}.src" for block in merges} == {
        key for key in expected if key.startswith("merge.") and key.endswith("src")
    }
    tokens, cls = model.config.model.tokens, model.config.model.cls
    for block, state in merges.items():
        assert state.last_merge is not None and isinstance(state.cls, int)
        into = state.last_merge.keep.gather(1, state.last_merge.dst)
        # theirs are positions with the class token taken out, by falling score
        for found, key in ((state.last_merge.src, "src"), (into, "dst")):
            assert (found - (found > cls).to(found)).tolist() == expected[f"merge.{block + 1}.{key}"].tolist()
        if f"size.{block + 1}" in expected:
            torch.testing.assert_close(state.size, expected[f"size.{block + 1}"][..., 0])
        assert state.size is not None and state.size.sum(1).tolist() == [tokens] * len(images)
        cls = state.cls


@pytest.mark.parametrize("backend", backends.ORDER)
@pytest.mark.parametrize("name", RMEETO)
def test_rmeeto_upstream(name: str, backend: str, mini_model: Callable[..., stm.ViM], error: Error) -> None:
    if not backends.status(backend)[0]:
        pytest.skip(f"backend {backend}: {backends.status(backend)[1]}")
    images = load_file(HERE / "rmeeto/inputs_mini.safetensors")["inputs"]
    expected = load_file(HERE / f"rmeeto/golden_{name}.safetensors")
    check_rmeeto(mini_model(depth=8, seed=13, backend=backend), RMEETO[name], images, expected, error)


@pytest.mark.shared
def test_rmeeto_upstream_at_full_size(shared: Callable[[str], Path], vim_ti: stm.ViM, error: Error) -> None:
    images = load_file(shared("golden/inputs_224_seed7.safetensors"))["inputs"]
    check_rmeeto(
        vim_ti, {"num_prune": 5}, images, load_file(shared("golden/rmeeto/golden_vim_ti_r5.safetensors")), error
    )


@pytest.mark.parametrize("name", RMEETO)
def test_rmeetos_own_count(name: str, mini_model: Callable[..., stm.ViM]) -> None:
    """Its counter leaves the tail rule out."""
    model = mini_model(depth=8, seed=13).config.model
    removals = rmeeto_removals(model, **RMEETO[name], tail_rule=False)
    assert (paper(model, 10, RMeeTo(model, removals)), paper(model, 10, Peer(model, removals))) == THEIR_FLOPS[name]


def test_rmeetos_own_count_at_full_size() -> None:
    ti = stm.ModelConfig(d_model=192, depth=24, dt_rank=12)
    removals = rmeeto_removals(ti, tail_rule=False)
    assert (paper(ti, 1000, RMeeTo(ti, removals)), paper(ti, 1000, Peer(ti, removals))) == (
        1284617856,
        1250923008,
    )


def check_topvim(model: stm.ViM, images: Tensor, expected: dict[str, Tensor], error: Error) -> None:
    plan = UpstreamHSA(model.config.model, topvim_removals(model.config.model))
    cuts = compare(model, plan, images, expected, error)
    for block, state in cuts.items():
        assert state.last_merge is not None
        assert state.last_merge.keep.tolist() == expected[f"keep.{block + 1}"].tolist()
    for i in range(len(images)):  # alone, as the result depends on the place in the batch
        alone = {key: expected[key][i : i + 1] for key in ("logits_single", "logits_single_f64")}
        alone |= {key: expected[key] for key in ("tokens_in", "cls_in")}
        for block, state in compare(model, plan, images[i : i + 1], alone, error, "_single").items():
            assert state.last_merge is not None
            assert state.last_merge.keep.tolist() == expected[f"single.keep.{block + 1}"][i : i + 1].tolist()


@pytest.mark.parametrize("backend", backends.ORDER)
@pytest.mark.parametrize(("depth", "seed"), [(8, 14), (16, 15)])
def test_topvim_as_released(
    depth: int, seed: int, backend: str, mini_model: Callable[..., stm.ViM], error: Error
) -> None:
    if not backends.status(backend)[0]:
        pytest.skip(f"backend {backend}: {backends.status(backend)[1]}")
    images = load_file(HERE / "topvim/inputs_mini.safetensors")["inputs"]
    expected = load_file(HERE / f"topvim/golden_mini{depth}.safetensors")
    check_topvim(mini_model(depth=depth, seed=seed, backend=backend), images, expected, error)


@pytest.mark.shared
def test_topvim_as_released_at_full_size(shared: Callable[[str], Path], vim_ti: stm.ViM, error: Error) -> None:
    images = load_file(shared("golden/inputs_224_seed7.safetensors"))["inputs"]
    check_topvim(vim_ti, images, load_file(shared("golden/topvim/golden_vim_ti.safetensors")), error)
