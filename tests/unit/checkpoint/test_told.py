"""What tells a ViM from a VideoMamba, whose tensors have the same names and shapes, and what is asked where nothing
does."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

import stm
from stm.errors import CheckpointError, Question
from tests.unit.checkpoint.cases import MINI, OFFICIAL, State, read, save

VIM, VIDEO = ("middle", True), ("head", False)


def reading(path: Path, **options: Any) -> tuple[str, bool]:
    model = read(path, **{"image_size": 64} | options).model
    return model.class_token, model.divide_out


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("videomamba_t16_in1k.pth", VIDEO),
        ("VideoMamba-S.fine-tuned.pt", VIDEO),
        ("video_mamba_middle.safetensors.pth", VIDEO),  # middle is a size there
        ("my_videomamba_middle_best.pth", VIDEO),
        ("vim_t_midclstok_76p1acc.pth", VIM),
        ("vim_s_mid-cls-token.pth", VIM),
        ("x_middle_class_token.bin", VIM),
        (f"{OFFICIAL}.pth", VIM),
        ("vim_tiny_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok.pth", ("middle", False)),
        ("vim_tiny_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_with_cls_token_div2.pth", ("head", True)),
        ("videomamba_midclstok_div2.pth", VIM),  # a place in a name says more than a family
    ],
)
def test_the_files_name_tells(state: State, tmp_path: Path, name: str, expected: tuple[str, bool]) -> None:
    path = save(tmp_path / name, {"model": state})
    assert reading(path) == expected
    got = read(path, image_size=64)
    (note,) = [note for note in got.notes if name in note]
    place, sums = (
        ("in the middle" if expected[0] == "middle" else "at the head"),
        ("averaged" if expected[1] else "added"),
    )
    assert note == f"by the file's name {name} the class token is {place} and the two directions are {sums}"
    assert got.by_name == {"class_token": expected[0], "divide_out": expected[1]}


@pytest.mark.parametrize(
    ("repo", "expected"),
    [
        ("hustvl/Vim-tiny-midclstok", VIM),
        ("hustvl/Vim-x", VIM),
        ("hustvl/vim", VIM),
        ("OpenGVLab/VideoMamba", VIDEO),
        ("a/vim-s-midclstok", VIM),
    ],
)
def test_the_repositorys_name_tells(state: State, tmp_path: Path, repo: str, expected: tuple[str, bool]) -> None:
    got = read(save(tmp_path / "weights.pth", state), image_size=64, repo=repo)
    assert (got.model.class_token, got.model.divide_out) == expected
    assert any(f"by the repository's name {repo}" in note for note in got.notes)


@pytest.mark.parametrize(
    "content",
    [
        {"args": argparse.Namespace(model="videomamba_tiny")},
        {"args": {"model": None, "arch": "videomamba_small"}},
        {"arch": "videomamba_middle"},
        {"model_name": "videomamba_tiny"},
        {"config": {"model": "videomamba_tiny"}},
        {"args": argparse.Namespace(model="vim_tiny"), "config": argparse.Namespace(arch="videomamba_tiny")},
        {"model_args": {"use_middle_cls_token": False, "if_divide_out": False}},
        {"args": {"pretrained_cfg": {"architecture": "videomamba_tiny"}}},
    ],
)
def test_the_trainers_settings_tell(state: State, tmp_path: Path, content: dict[str, Any]) -> None:
    assert reading(save(tmp_path / "best.pth", {"state_dict": state, **content})) == VIDEO


@pytest.mark.parametrize(
    ("name", "repo"),
    [
        ("weights.pth", None),
        ("vim_tiny.pth", None),
        ("vm.pth", "someone/vim"),
        ("vim_noclstok.pth", None),
        ("mambavision.pth", "x/hustvl-vim"),
    ],
)
def test_where_nothing_tells_it_is_a_question(state: State, tmp_path: Path, name: str, repo: str | None) -> None:
    folder = tmp_path / "videomamba"  # says where the file lies
    folder.mkdir()
    path = save(folder / name, {"model": state, "args": argparse.Namespace(model="my_own_builder", input_size=64)})
    with pytest.raises(Question) as caught:
        read(path, repo=repo)
    assert str(path) in caught.value.message and "nor its name tells" in caught.value.message
    assert (
        caught.value.hint
        == "if it is a ViM as hustvl/Vim's: --class-token middle --divide-out; if it is a VideoMamba: --class-token"
        " head --no-divide-out"
    )
    with pytest.raises(CheckpointError):
        stm.load_checkpoint(path)
    for place, divide in (VIM, VIDEO, ("middle", False), ("head", True)):
        assert reading(path, class_token=place, divide_out=divide) == (place, divide)


def test_half_an_answer(state: State, tmp_path: Path) -> None:
    """Only hustvl/Vim has a middle token, and averages; a token at the head is in models of both kinds."""
    path = save(tmp_path / "x.pth", state)
    got = read(path, image_size=64, class_token="middle")
    assert got.model.divide_out and any("averaged, as in hustvl/Vim" in note for note in got.notes)
    with pytest.raises(Question, match="averaged or added") as caught:
        reading(path, class_token="head")
    assert str(caught.value.hint).endswith("if it is a VideoMamba: --no-divide-out")
    with pytest.raises(Question) as caught:
        reading(path, divide_out=False)
    assert str(caught.value.hint).endswith("if it is a VideoMamba: --class-token head")


@pytest.mark.parametrize(
    ("name", "args", "repo"),
    [
        ("videomamba_t16.pth", OFFICIAL, None),
        ("vim_s_midclstok.pth", "videomamba_tiny", None),
        ("vim_s_midclstok.pth", None, "OpenGVLab/VideoMamba"),
        ("videomamba_t16.pth", None, "hustvl/Vim-tiny-midclstok"),
    ],
)
def test_what_contradicts_is_a_question(
    state: State, tmp_path: Path, name: str, args: str | None, repo: str | None
) -> None:
    path = save(tmp_path / name, {"model": state, "args": {"model": args}})
    with pytest.raises(Question, match=r"the class token is .*, but by .*the class token is"):
        read(path, image_size=64, repo=repo)
    got = read(path, image_size=64, repo=repo, class_token="head", divide_out=False)
    assert (got.model.class_token, got.model.divide_out) == VIDEO
    assert sum("overruled, as asked" in note for note in got.notes) == 2


def test_a_damaged_file_is_not_asked_about(state: State, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="NaN"):
        read(save(tmp_path / "x.pth", state | {"norm_f.weight": torch.full((32,), torch.nan)}), image_size=64)


@pytest.mark.parametrize(
    ("name", "tokens", "size"),
    [
        ("videomamba_t16_in1k_res224.pth", 197, 224),
        ("videomamba_t16_in1k_res224to448.pth", 785, 448),
        ("videomamba_t16_in1k_res224to448to576.pth", 1297, 576),
        ("vim_midclstok_res64.pth", 17, 64),
    ],
)
def test_the_last_size_of_a_name_counts(state: State, tmp_path: Path, name: str, tokens: int, size: int) -> None:
    path = save(tmp_path / name, {"model": state | {"pos_embed": torch.zeros(1, tokens, 32)}})
    got = read(path)
    assert (got.model.image_size, got.model.stride, got.by_name["image_size"]) == (size, 16, size)
    assert any(f"image size {size} by the file's name {name}" in note for note in got.notes)
    asked = read(path, image_size=size, class_token=got.model.class_token, divide_out=got.model.divide_out)
    assert asked == got if asked.tensors is got.tensors else (asked.model, asked.notes) == (got.model, got.notes)


def test_a_size_of_a_name_that_the_tensors_contradict(state: State, tmp_path: Path) -> None:
    path = save(tmp_path / "videomamba_t16_in1k_res448.pth", {"model": state})
    with pytest.raises(CheckpointError, match=r"have 448 pixels, but it holds 4 x 4 patches") as caught:
        read(path)
    assert "--image-size 64" in str(caught.value.hint)
    assert read(path, image_size=64).model.image_size == 64


def test_what_a_name_told_is_kept(state: State, tmp_path: Path) -> None:
    """So that a recipe and the command of a card read the same file as the same model under any other name."""
    content = {"model": state | {"pos_embed": torch.zeros(1, 197, 32)}}
    first = stm.load_checkpoint(save(tmp_path / "videomamba_t16_in1k_res224.pth", content), device="cpu").config
    assert first.extra["asked"] == {"class_token": "head", "divide_out": False, "image_size": 224}
    again = stm.load_checkpoint(
        tmp_path / "videomamba_t16_in1k_res224.pth", device="cpu", **first.extra["asked"]
    ).config
    assert again == first
    other = stm.load_checkpoint(save(tmp_path / "copy.pth", content), device="cpu", **first.extra["asked"]).config
    assert (other.model, other.extra["asked"]) == (first.model, first.extra["asked"])
    assert stm.load_checkpoint(MINI, device="cpu").config.extra["asked"] == {}
