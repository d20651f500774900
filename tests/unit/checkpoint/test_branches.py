"""Branches of the readers of checkpoints that no other test here takes: `make coverage` counts them."""

import errno
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from stm.checkpoint.claims import Claim, Reader
from stm.checkpoint.class_names import LARGEST, labels_beside, names_in
from stm.checkpoint.find import find, settings
from stm.checkpoint.geometry import geometry_of
from stm.checkpoint.infer import official_shapes
from stm.checkpoint.official import read, to_official
from stm.checkpoint.stored import Said, Stored
from stm.checkpoint.write import write
from stm.config import ModelConfig, Size
from stm.errors import CheckpointError, UsageError
from tests.unit.checkpoint.cases import State, refused, save

BYTEARRAY = b"builtins\nbytearray\n"
HUGE = b"J\x00\x94\x35\x77"  # BININT: 2,000,000,000
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00"  # a storage, an offset, and then the size


def vim(**settings: Any) -> State:
    """The state dict of an official model of small random weights."""
    shape = {"image_size": 8, "patch": 2, "stride": 2, "d_model": 4, "depth": 2, "d_state": 2, "dt_rank": 1}
    torch.manual_seed(0)
    shapes = official_shapes(ModelConfig(**{**shape, **settings}), 3)
    return {name: torch.rand(shape) / 8 for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("pickle", "says"),
    [
        (b"(" + HUGE + b"i" + BYTEARRAY + b".", "a bytearray of 2,000,000,000 bytes"),  # INST
        (b"(c" + BYTEARRAY + HUGE + b"o.", "a bytearray of 2,000,000,000 bytes"),  # OBJ
        (b")" + b"2\x86" * 40 + b".", "a tuple of"),  # DUP: a tuple of itself twice, 40 times
        (
            b"ctorch._utils\n_rebuild_device_tensor_from_numpy\n(U\x14" + b"x" * 20 + b"tR.",
            "a copy of a tensor of 20 elements",
        ),
        (b"(U\x07storageNU\x010NU\x01xtQ.", "a storage without a size"),
        (REBUILD + b"NtR.", "a tensor whose shape is no tuple"),
        (REBUILD + b"(U\x01xttR.", "a tensor whose shape is not of numbers"),
    ],
)
def test_what_hostile_pickles_claim(pickle: bytes, says: str) -> None:
    with pytest.raises(Claim, match=says):
        Reader(2).read(io.BytesIO(pickle))


def test_a_shape_of_many_sides_is_not_multiplied_to_its_end() -> None:
    """Sides of 2^40: after the second their product is beyond any file, and 40 sides would make a number of 1,600
    bits."""
    with pytest.raises(Claim) as caught:
        Reader(2).read(io.BytesIO(REBUILD + b"(" + b"\x8a\x06" + (1 << 40).to_bytes(6, "little") + b"2" * 40 + b"ttR."))
    assert f"{1 << 80:,} elements" in str(caught.value)


def test_names_of_classes_too_large_to_be_read(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"id2label": {"0": "a", "1": "b"}}))
    assert labels_beside(tmp_path / "x.pth", 2) == ("a", "b")
    with config.open("ab") as file:
        file.write(b" " * LARGEST)
    assert labels_beside(tmp_path / "x.pth", 2) is None


@pytest.mark.parametrize(("dicts", "named"), [(9_999, True), (10_001, False)])
def test_names_are_not_searched_for_in_a_document_of_any_width(dicts: int, named: bool) -> None:
    document: dict[Any, Any] = {number: {} for number in range(dicts - 1)}
    document["last"] = {"classes": ["a", "b"]}
    assert (names_in(document) is not None) is named


@pytest.mark.parametrize(
    ("form", "broken"),
    [
        ("safetensors", "stm.checkpoint.file.safe_open"),
        ("pth", "stm.checkpoint.claims.Reader.read"),
        ("legacy", "stm.checkpoint.claims.Reader.read"),
        ("pth", "torch.load"),
    ],
)
def test_a_drive_that_fails_is_not_called_a_damaged_file(
    form: str, broken: str, tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"model.{form}"
    if form == "safetensors":
        save_file(state, path)
    else:
        save(path, state, _use_new_zipfile_serialization=form == "pth")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(broken, fail)
    # Not `refused`: what describes a file without torch has functions of its own, which do not fail here.
    with pytest.raises(CheckpointError, match=r"model.* cannot be read: Input/output error$") as caught:
        read(path)
    assert caught.value.hint is None


def test_a_damaged_pickle_that_wants_a_function_is_refused_for_that(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(b"\x80\x02cos\nsystem\nR.")  # a call with nothing to call it with
    refused(path, "os.system")


def test_more_vims_than_a_file_holds() -> None:
    document = {f"m{number}": {"layers.0.mixer.A_log": torch.zeros(2, 2)} for number in range(101)}
    with pytest.raises(CheckpointError, match="holds 101 ViMs, expected one"):
        find("x.pth", document)


def test_a_vim_in_another_keeps_its_tensors_to_itself() -> None:
    sign = torch.zeros(2, 2)
    outer, inner = find(
        "x.pth", {"layers.0.mixer.A_log": sign, "aux.layers.0.mixer.A_log": sign, "aux.norm_f.weight": sign[0]}
    )
    assert (outer.key, sorted(outer.state)) == (".", ["layers.0.mixer.A_log"])
    assert inner.key == "aux" and {"layers.0.mixer.A_log", "norm_f.weight"} <= inner.state.keys()


def test_a_backbone_leaves_what_reads_it_and_gets_a_norm_of_ones(tmp_path: Path) -> None:
    state = vim()
    del state["norm_f.weight"]
    path = save(tmp_path / "segmenter.pth", {"state_dict": {f"backbone.{k}": v for k, v in state.items()}})
    one = read(path, backbone=True, class_token="middle", divide_out=True)
    assert torch.equal(one.tensors["norm_f.weight"], torch.ones(4)) and one.tensors["head.weight"].shape == (0, 4)
    notes = " ".join(one.notes)
    assert "no final norm" in notes and "left out, as no part of the backbone: head.weight, head.bias" in notes
    whole = read(save(tmp_path / "whole.pth", vim()), backbone=True, class_token="middle", divide_out=True)
    assert "no final norm" not in " ".join(whole.notes)
    bare = {name: value for name, value in vim().items() if not name.startswith("head.") and name != "cls_token"}
    bare["pos_embed"] = bare["pos_embed"][:, 1:]
    backbone = read(save(tmp_path / "bare.pth", bare), backbone=True, divide_out=True)
    assert "left out" not in " ".join(backbone.notes) and backbone.tensors["cls_token"].shape == (1, 0, 4)
    with pytest.raises(UsageError, match="has no class token, and class_token was given"):
        read(tmp_path / "bare.pth", backbone=True, divide_out=True, class_token="middle")


def test_settings_stand_beside_the_weights_in_a_list() -> None:
    """What is neither a dict nor in one is no setting."""
    assert settings([{"epoch": 3}, 5, {"layers": torch.zeros(1)}], ("0",)) == {"epoch": 3}


def test_a_vim_of_one_tensor_has_no_width() -> None:
    (one,) = find("x.pth", {"layers.0.mixer.A_log": torch.zeros(2, 2), "fc.weight": torch.zeros(3, 2)})
    assert one.question is None and "head.weight" in one.missing


def test_a_mamba_r_comes_back_as_it_went(tmp_path: Path) -> None:
    """Its class tokens stand among the patches in our table, and in one of their own in the official file."""
    state = vim(class_tokens=3, neck=2, scan_norm=True)
    path = save(tmp_path / "model.pth", {"model": state})
    one = read(path)
    assert (one.model.class_tokens, one.model.neck, one.model.scan_norm) == (3, 2, True)
    assert any("a Mamba-R with 3 class tokens" in note for note in one.notes)
    assert any("wangf3014/Mamba-Reg" in note for note in one.notes)
    assert one.tensors["pos_embed"].shape == (1, 19, 4)
    official = to_official(one.tensors)
    assert official.keys() == state.keys()
    assert all(torch.equal(official[name], value) for name, value in state.items())
    for options in ({"class_token": "head"}, {"divide_out": False}):
        with pytest.raises(UsageError, match="is a Mamba-R: its 3 class tokens are spread"):
            read(path, **options)
    assert read(path, class_token="middle", divide_out=True).model == one.model


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"patch_embed.proj.weight": torch.zeros(4, 3, 2, 3)}, "has patches of 2 x 3 pixels"),
        ({"pos_embed": torch.zeros(1, 1, 4)}, "expected a grid of patches and one class token"),
        ({"head.weight": torch.zeros(0, 4), "head.bias": torch.zeros(0)}, "has a head without classes"),
        ({"cls_token": torch.zeros(1, 2, 4)}, "is a ViM with 2 class tokens"),
        ({f"layers.{i}.mixer.A{b}_log": torch.zeros(8, 0) for i in (0, 1) for b in ("", "_b")}, "d_state is 0"),
        ({f"layers.{i}.mixer.A{b}_log": torch.zeros(9, 2) for i in (0, 1) for b in ("", "_b")}, "inner width of 9"),
    ],
)
def test_shapes_of_no_vim(changes: dict[str, Tensor], says: str, tmp_path: Path) -> None:
    refused(save(tmp_path / "x.pth", vim() | changes), says, class_token="middle", divide_out=True)


def test_a_mamba_r_without_a_grid(tmp_path: Path) -> None:
    state = vim(class_tokens=3, neck=2) | {"pos_embed": torch.zeros(1, 0, 4)}
    said = refused(save(tmp_path / "x.pth", state), "expected a grid of patches").message
    assert "class token" not in said, "its class tokens are not in that table"


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ([1, 2], "holds a list, expected a state dict"),
        ({}, "holds no tensors"),
        ({"model": {}}, "holds no tensors under 'model'"),
        ({"a": torch.zeros(1), "b": torch.zeros(2)}, "is not a ViM: it holds 'a', 'b'"),
        ({"a": torch.zeros(1), "b": 3}, "'b' is a int, expected a tensor"),
        ({"a": 3}, "is a int, expected a tensor"),
        ({3: torch.zeros(1)}, "is the name of a tensor, expected text"),
    ],
)
def test_documents_without_weights(document: Any, says: str, tmp_path: Path) -> None:
    refused(save(tmp_path / "x.pth", document), says)


def test_a_nested_tensor(tmp_path: Path) -> None:
    nested = torch.nested.nested_tensor([torch.zeros(2)], layout=torch.jagged)
    says = "is a nested tensor, expected a tensor"
    refused(save(tmp_path / "x.pth", {"a": nested}), says)
    state = vim() | {"head.weight": nested}
    refused(save(tmp_path / "y.pth", state), says, class_token="middle", divide_out=True)


def test_a_stride_that_makes_a_huge_image() -> None:
    """64 patches of 16 pixels: an official image of 224 has no stride for them, and this stride makes 70,016 pixels."""
    with pytest.raises(CheckpointError, match="does not say the image size, nor is it the usual 224"):
        geometry_of("x.pth", 16, 64, Stored(stride=10_000), None)
    assert geometry_of("x.pth", 16, 64, Stored(stride=16), None).size == 128
    assert geometry_of("x.pth", 16, 64, Stored(size_by_name=Said(128, "its name")), None).size == 128


def test_what_a_trainer_wrote_beside_a_model(tmp_path: Path) -> None:
    """A head without a bias, half precision, names of the classes, and what is no tensor."""
    state = {name: value.half() for name, value in vim().items() if name != "head.bias"}
    document: dict[str, Any] = {"model": state, "epoch": 3, "classes": ["a", "b", "c"], "log": [1, {"x": None}]}
    one = read(save(tmp_path / "a.pth", document), class_token="middle", divide_out=True)
    assert one.label_names == ("a", "b", "c") and not one.tensors["head.bias"].any()
    notes = " ".join(one.notes)
    assert "float16 weights are computed with in float32" in notes and "the head has no bias" in notes
    document["classes"] = ["a", "b"]
    other = read(save(tmp_path / "b.pth", document), class_token="middle", divide_out=True)
    assert other.label_names is None and "with 2 names for 3 classes: left out" in " ".join(other.notes)


@pytest.mark.parametrize(("most", "refuses"), [(4, False), (3, True)])
def test_a_document_of_too_many_values(most: int, refuses: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stm.checkpoint.find._MOST", most)
    document = {"a": [0, {"b": 1}]}  # four values: the list, its two, and b
    if not refuses:
        assert find("x.pth", document) == []
        return
    with pytest.raises(CheckpointError, match=r"x\.pth holds more than 3 values"):
        find("x.pth", document)


@pytest.mark.parametrize(
    ("size", "table"),
    [(None, (4, 4)), (16, (8, 8)), ((8, 16), (4, 8))],
)
def test_another_image_size(size: Size | None, table: tuple[int, int], tmp_path: Path) -> None:
    path = save(tmp_path / "x.pth", {"model": vim(), "args": {"input_size": 8}})
    one = read(path, class_token="middle", divide_out=True, image_size=size)
    assert one.tensors["pos_embed"].shape == (1, table[0] * table[1] + 1, 4)
    assert (one.trained is not None) is (size is not None)


@pytest.mark.parametrize(
    ("stored", "asked", "says"),
    [
        (Stored(), None, "make no square"),
        (Stored(), (32, 96), None),
        (Stored(input_size=100), None, "its own arguments say input_size 100, but it holds 12 patches"),
        (Stored(input_size=100, stride=5), None, "input_size 100 and stride 5"),
        (Stored(input_size=(48, 64)), None, None),
        (Stored(size_by_name=Said(32, "its name")), None, "by its name its images have 32 pixels"),
        (Stored(), 100, "image_size is 100"),
    ],
)
def test_twelve_patches(stored: Stored, asked: Size | None, says: str | None) -> None:
    if says is None:
        assert geometry_of("x.pth", 16, 12, stored, asked).stride == 16
        return
    with pytest.raises((CheckpointError, UsageError), match=says):
        geometry_of("x.pth", 16, 12, stored, asked)


def test_an_official_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, state = tmp_path / "vim.pth", vim()
    write(path, state)
    loaded = torch.load(path)["model"]
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[name], state[name]) for name in state)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="already exists"):
        write(path, state)

    def full(document: Any, draft: Any) -> None:
        raise RuntimeError("no space left\nframe #0: of C++")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match=r"vim\.pth cannot be written: no space left") as caught:
        write(path, state, force=True)
    assert "\n" not in caught.value.message and "C++" not in caught.value.message
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
