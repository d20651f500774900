"""The layouts in which people keep a ViM: containers x prefixes x averages x heads, drawn by product.

What holds a complete ViM loads, with the same numbers; the few that do not are named in one sentence.
"""

import argparse
import collections
import itertools
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stm.checkpoint import official
from stm.errors import CheckpointError
from tests.unit.checkpoint.cases import State, read, refused, save

CONTAINERS: dict[str, Callable[[State], Any]] = {
    "bare": lambda s: s,
    **{
        key: lambda s, key=key: {"epoch": 3, key: s, "optimizer": {"state": {0: {"exp_avg": next(iter(s.values()))}}}}
        for key in (
            *("model", "state_dict", "model_state_dict", "net", "network", "weights", "params", "module", "student"),
            *("teacher", "model_weights", "backbone", "generator_a", "best_model_state", "w"),
        )
    },
    "two levels": lambda s: {"checkpoint": {"model": s, "epoch": 1}},
    "three levels": lambda s: {"run": {"last": {"net": s}}, "log": [1, 2]},
    "ordered": lambda s: {"state_dict": collections.OrderedDict(s)},
    "list": lambda s: [s, 3],
    "tuple": lambda s: ({"lr": 1.0}, s),
    "namespace": lambda s: {"state": argparse.Namespace(model=s)},
}
PREFIXES = (
    *("", "module.", "_orig_mod.", "module._orig_mod.", "_forward_module.", "model.", "net.", "backbone.", "encoder."),
    *(
        "model.0.",
        "0.",
        "model.backbone.",
        "vision_mamba.",
        "student.",
        "vim.",
        "ema_model.module.",
        "a.b.c.d.",
        "x-1.",
    ),
)
HEADS: dict[str, Callable[[Tensor, Tensor], State]] = {
    **{
        stem: lambda w, b, stem=stem: {f"{stem}.weight": w, f"{stem}.bias": b}
        for stem in ("head", "fc", "classifier", "head.1", "head.fc", "classifier.0", "mlp_head", "linear")
    },
    "fc without bias": lambda w, b: {"fc.weight": w},
    "head without bias": lambda w, b: {"head.weight": w},
}


def parts(state: State) -> tuple[State, Tensor, Tensor]:
    trunk = {name: value for name, value in state.items() if not name.startswith("head.")}
    return trunk, state["head.weight"], state["head.bias"]


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize("step", [211, pytest.param(23, marks=pytest.mark.slow(seconds=60, search=True))])
def test_nearly_every_layout_of_a_complete_vim_loads(state: State, tmp_path: Path, step: int) -> None:
    """Each value of an axis with the plain values of the others, and a walk through their product."""
    trunk, weight, bias = parts(state)
    axes = (list(CONTAINERS), list(PREFIXES), list(HEADS))
    every = list(itertools.product(*axes))
    layouts = {*every[::step], *((c, "", "head") for c in axes[0]), *(("model", p, "head") for p in axes[1])}
    layouts |= {("model", "", h) for h in axes[2]} | {("model", "backbone.", h) for h in axes[2]}
    failed = {}
    for number, (container, prefix, head) in enumerate(sorted(layouts)):
        whole = prefixed(trunk, prefix) | prefixed(HEADS[head](weight, bias), prefix)
        path = save(tmp_path / "x_midclstok.pth", CONTAINERS[container](whole))
        try:
            got = (read if number % 8 == 0 else official.read)(path, image_size=64).tensors
        except CheckpointError as error:
            failed[container, prefix, head] = str(error)
            continue
        assert torch.equal(got["head.weight"], weight)
        assert torch.equal(got["head.bias"], torch.zeros(10) if "without" in head else bias)
        assert torch.equal(got["layers.3.mixer.conv1d_weight"][1], trunk["layers.3.mixer.conv1d_b.weight"].squeeze(1))
    assert len(layouts) > (200 if step == 23 else 60)
    assert len(failed) <= len(layouts) // 100, failed


def test_layouts_that_nobody_has_thought_of() -> None:
    """benchmarks/layouts.py invents half of all names. One ViM loads; two whose names do not tell are a question."""
    measure = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "layouts.py"))["measure"]
    rows = measure(48, 7)
    assert {end for kinds, end in rows if kinds["copies"] == "a dict of an invented name"} == {"by key"}
    assert {end for kinds, end in rows if kinds["copies"] != "a dict of an invented name"} == {"loads"}


AVERAGES: dict[str, Callable[[State, State], Any]] = {
    **{
        key: lambda s, e, key=key: {"model": s, key: e}
        for key in (
            *("model_ema", "ema", "ema_model", "ema_state_dict", "state_dict_ema", "model_ema_state_dict"),
            *("ema_weights", "swa_model", "averaged_model", "shadow_params"),
        )
    },
    "nested": lambda s, e: {"model": s, "model_ema": {"module": e, "decay": 0.9}},
    "wrapped": lambda s, e: {"model": s, "model_ema": prefixed(e, "module.")},
    "one dict": lambda s, e: {
        "state_dict": prefixed(s, "model.") | prefixed(e, "model_ema.module.") | {"model_ema.decay": torch.ones(())}
    },
    "within": lambda s, e: {"state": {"net": s, "ema": {"model": e}}},
}


@pytest.mark.parametrize("layout", AVERAGES)
def test_averages_beside_the_last_weights(state: State, tmp_path: Path, layout: str) -> None:
    averaged = {name: value + 1 for name, value in state.items()}
    path = save(tmp_path / "x_midclstok.pth", AVERAGES[layout](state, averaged))
    last, mean = read(path, image_size=64), read(path, image_size=64, ema=True)
    assert torch.equal(last.tensors["norm_f.weight"], state["norm_f.weight"])
    assert torch.equal(mean.tensors["norm_f.weight"], averaged["norm_f.weight"])
    assert any("--ema takes those" in note for note in last.notes)


TRUNKS: dict[str, Callable[[State, Tensor, Tensor], Any]] = {
    "backbone. and head.": lambda t, w, b: prefixed(t, "backbone.") | {"head.weight": w, "head.bias": b},
    "0. and 1.": lambda t, w, b: prefixed(t, "0.") | {"1.weight": w, "1.bias": b},
    "encoder. and classifier.1.": lambda t, w, b: {
        "state_dict": prefixed(t, "model.encoder.") | {"model.classifier.1.weight": w, "model.classifier.1.bias": b}
    },
    "two dicts": lambda t, w, b: {"backbone": t, "classifier": {"weight": w, "bias": b}, "epoch": 1},
    "two dicts, a level down": lambda t, w, b: {"model": {"trunk": t, "head": {"fc.weight": w, "fc.bias": b}}},
}


@pytest.mark.parametrize("layout", TRUNKS)
def test_a_trunk_and_a_head_apart(state: State, tmp_path: Path, layout: str) -> None:
    path = save(tmp_path / "x_midclstok.pth", TRUNKS[layout](*parts(state)))
    got = read(path, image_size=64)
    assert torch.equal(got.tensors["head.weight"], state["head.weight"])
    assert torch.equal(got.tensors["head.bias"], state["head.bias"])


def test_several_are_named_and_one_is_chosen_by_its_key(state: State, tmp_path: Path) -> None:
    other = {name: value + 1 for name, value in state.items()}
    path = save(tmp_path / "x_midclstok.pth", {"student": state, "teacher": prefixed(other, "module.")})
    error = refused(path, "2 ViMs: 'student', 'teacher.module'", image_size=64)
    assert error.hint == "name one: --weights-key student"
    got = read(path, image_size=64, weights_key="teacher.module")
    assert torch.equal(got.tensors["norm_f.weight"], other["norm_f.weight"])
    assert any("'teacher.module', as asked" in note for note in got.notes)
    refused(path, "no ViM under 'x', but under 'student', 'teacher.module'", image_size=64, weights_key="x")


def test_one_complete_vim_wins_over_incomplete_ones(state: State, tmp_path: Path) -> None:
    path = save(tmp_path / "x_midclstok.pth", {"best": state, "momentum": parts(state)[0]})
    assert "'best'" in " ".join(read(path, image_size=64).notes)


def test_the_same_tensors_under_two_names_are_one(state: State, tmp_path: Path) -> None:
    read(save(tmp_path / "x_midclstok.pth", {"model": state, "state_dict": state}), image_size=64)


def test_what_is_the_trainers_own_is_left_out_and_listed(state: State, tmp_path: Path) -> None:
    own = {
        "total_ops": torch.zeros(1),
        "layers.0.mixer.total_params": torch.zeros(1),
        "criterion.weight": torch.ones(10),
        "train_acc.total": torch.zeros(()),
        "normalize.mean": torch.zeros(3),
    }
    notes = read(save(tmp_path / "x_midclstok.pth", state | own), image_size=64).notes
    assert any(all(name in note for name in own) for note in notes)
    trunk, weight, bias = parts(state)
    for content in (
        {"model": state, "model_ema": {"module": state, "decay": 0.9}},
        {"backbone": trunk, "classifier": {"weight": weight, "bias": bias}},
        {"net": state, "args": {"lr": 1}},
    ):
        beside = {"optimizer": {"state": {0: weight + 1}}, "criterion": [], "epoch": 3, "arch": "vim", "scaler": {}}
        notes = read(save(tmp_path / "z_midclstok.pth", content | beside), image_size=64).notes
        assert "left out, as the trainer's own: optimizer, criterion, epoch, scaler" in notes
    wrapped = prefixed(state, "net.") | own
    notes = read(save(tmp_path / "y_midclstok.pth", {"state_dict": wrapped}), image_size=64).notes
    assert any("criterion.weight" in note for note in notes)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"extra": torch.zeros(1)}, "1 unexpected (extra)"),
        ({"head.2.weight": torch.zeros(10, 10)}, "1 unexpected (head.2.weight)"),
        ({"fc.weight": torch.zeros(3, 32)}, "1 unexpected (fc.weight)"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "net."])
def test_what_is_unknown_is_still_refused(state: State, tmp_path: Path, prefix: str, more: State, words: str) -> None:
    refused(save(tmp_path / "x_midclstok.pth", {"model": prefixed(state, prefix) | more}), words, image_size=64)


def test_a_tensor_beside_a_trunk_does_not_replace_one_of_its_own(state: State, tmp_path: Path) -> None:
    whole = prefixed(state, "backbone.") | {"head.weight": torch.zeros(5, 32), "cls_token": torch.zeros(1, 1, 32)}
    refused(save(tmp_path / "x_midclstok.pth", whole), "2 unexpected", "head.weight", "cls_token", image_size=64)


def test_two_heads_are_a_question(state: State, tmp_path: Path) -> None:
    trunk, weight, _ = parts(state)
    refused(
        save(tmp_path / "x_midclstok.pth", trunk | {"a.weight": weight, "b.weight": weight}),
        "2 linear layers of 32 inputs beside its blocks (a.weight, b.weight)",
        image_size=64,
    )


def test_settings_beside_the_weights_are_read_at_any_depth(state: State, tmp_path: Path) -> None:
    args = {"class_token": None, "input_size": 64, "use_middle_cls_token": True, "if_divide_out": True}
    for content in (
        {"run": {"net": state, "args": args}},
        {"run": {"net": state}, "hyper_parameters": args},
        [state, args],
    ):
        assert read(save(tmp_path / "x.pth", content)).model.image_size == 64


def test_a_document_without_end_is_refused(tmp_path: Path) -> None:
    """Each list holds the one before it ten times: 10**12 values, in a few hundred bytes."""
    inner: Any = [torch.zeros(1)]
    for _ in range(11):
        inner = [inner] * 10
    refused(save(tmp_path / "x.pth", {"model": inner}), "more than 500,000 values")
    ring: dict[str, Any] = {"x": torch.zeros(1)}
    ring["again"] = ring
    refused(save(tmp_path / "y.pth", ring))


SIGNS = {
    "a segmentation or detection checkpoint": "decode_head.conv_seg.weight",
    "a MambaVision": "levels.0.blocks.0.conv1.weight",
    "a LocalVim": "layers.0.mixer.multi_scan.attn.weight",
    "a PlainMamba": "layers.0.direction_Bs",
    "of VMamba's family": "layers.0.blocks.0.op.x_proj_weight",
    "a FastVim": "layers.0.mixer.layernorm.weight",
    "an Adventurer": "layers.0.mlp.w1.weight",
    "another project's VisionMamba": "layers.0.forward_conv1d.weight",
}


@pytest.mark.parametrize("what", SIGNS)
@pytest.mark.parametrize("prefix", ["", "module.", "net.backbone."])
def test_what_it_is_instead_is_said(tmp_path: Path, prefix: str, what: str) -> None:
    names = [f"{prefix}{name}" for name in (SIGNS[what], "patch_embed.proj.weight", "norm.weight")]
    refused(save(tmp_path / "x.pth", {"state_dict": {name: torch.zeros(1) for name in names}}), what, SIGNS[what])


def test_a_segmentation_checkpoint_is_named(state: State, tmp_path: Path) -> None:
    trunk = prefixed({k: v for k, v in parts(state)[0].items() if k != "cls_token"}, "backbone.")
    whole = trunk | {"decode_head.conv_seg.weight": torch.zeros(150, 32, 1, 1)}
    refused(save(tmp_path / "x.pth", {"meta": {}, "state_dict": whole}), "segmentation or detection", "decode_head")


def test_a_port_with_other_names(state: State, tmp_path: Path) -> None:
    """The port to transformers: `vision_mamba.blocks.*`, `vision_mamba.norm`, `classifier`."""
    trunk, weight, bias = parts(state)
    names = {name: name.replace("layers.", "blocks.").replace("norm_f.", "norm.") for name in trunk}
    port = {f"vision_mamba.{names[name]}": value for name, value in trunk.items()}
    path = save(tmp_path / "x_midclstok.pth", port | {"classifier.weight": weight, "classifier.bias": bias})
    got, plain = (
        read(path, image_size=64).tensors,
        read(save(tmp_path / "y_midclstok.pth", state), image_size=64).tensors,
    )
    assert got.keys() == plain.keys() and all(torch.equal(got[name], plain[name]) for name in plain)
