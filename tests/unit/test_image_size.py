"""A model at another image size than its weights were trained at, and images that are no squares."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import stm
from stm.checkpoint.official import read
from stm.commands.eval import evaluate
from stm.config import ModelConfig, Preprocess
from stm.data.images import fit
from stm.data.pictures import drawn
from stm.errors import CheckpointError, UsageError
from stm.model.positions import interpolated
from stm.options import EvalOptions, ModelOptions, words
from stm.peers import DEFAULT, PEERS, suited

MINI = Path(__file__).parents[1] / "golden" / "dense-mini" / "vim_mini.pth"  # 64 pixels, 4 x 4 patches of 16
SHAPE: dict[str, Any] = {"image_size": 64, "d_model": 8, "depth": 2, "dt_rank": 1}


def test_the_class_tokens_row_stays_and_the_patches_are_interpolated_by_their_place() -> None:
    """A table that rises along each axis still does, whatever the class token's place; the official routine takes the
    first row for the class token's, and so moves all patches of a table with its row in the middle."""
    for place in ("middle", "head"):
        old = ModelConfig(**SHAPE, class_token=place)
        new = ModelConfig(**SHAPE | {"image_size": (64, 128)}, class_token=place)
        rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
        patches = torch.stack([rows.flatten(), columns.flatten()], -1)  # (16, 2)
        table = torch.cat([patches[: old.cls], torch.full((1, 2), 99.0), patches[old.cls :]])[None]
        found = interpolated(table, old, new)[0]
        assert found.shape == (33, 2) and found[new.cls].tolist() == [99, 99]
        grid = torch.cat([found[: new.cls], found[new.cls + 1 :]]).unflatten(0, new.grid)  # (4, 8, 2)
        assert torch.allclose(grid[..., 0], torch.arange(4.0)[:, None].expand(4, 8))
        assert (grid[..., 1].diff(dim=1) > 0).all() and torch.allclose(grid[:, :, 1].mean(1), torch.tensor(1.5))
        assert torch.equal(interpolated(table, old, old), table)


@pytest.mark.parametrize(
    ("size", "grid", "resize"), [(96, (6, 6), 109), (48, (3, 3), 54), ((32, 96), (2, 6), (36, 109))]
)
def test_a_checkpoint_at_another_size(size: Any, grid: tuple[int, int], resize: Any) -> None:
    own, other = stm.load_checkpoint(MINI, device="cpu"), stm.load_checkpoint(MINI, device="cpu", image_size=size)
    config = other.config
    assert (config.model.grid, config.model.stride, config.preprocessing.resize) == (grid, 16, resize)
    assert config.preprocessing.crop == config.model.image_size == size
    assert config.extra["interpolated"] == {"image_size": [64, 64], "grid": [4, 4]}
    assert sum("table of positions is interpolated from 4 x 4 to" in note for note in config.extra["notes"]) == 1
    assert torch.equal(other.pos_embed[0, config.model.cls], own.pos_embed[0, own.config.model.cls])
    for name, tensor in own.state_dict().items():
        assert name == "pos_embed" or torch.equal(tensor, other.state_dict()[name])
    with torch.inference_mode():
        assert other.features(torch.zeros(1, *config.model.input_shape)).shape == (1, 32, *grid)
    assert "interpolated" not in stm.load_checkpoint(MINI, device="cpu", image_size=64).config.extra


def test_a_size_that_leaves_pixels_over_names_its_neighbours() -> None:
    with pytest.raises(UsageError, match=r"image_size is 90x100, but .* holds 4 x 4 patches") as caught:
        read(MINI, image_size=(90, 100))
    assert "interpolated to 80x96 or 96x112" in str(caught.value.hint)
    for wrong in ("64", 64.0, True, (1, 2, 3), ()):
        with pytest.raises(UsageError, match="expected a number of pixels, or \\(height, width\\)"):
            stm.load_checkpoint(MINI, image_size=wrong)  # type: ignore[arg-type]


def test_a_table_that_tells_its_size_needs_no_option(tmp_path: Path) -> None:
    state = torch.load(MINI, weights_only=False)["model"]
    torch.save(state, tmp_path / "x_midclstok.pth")
    got = read(tmp_path / "x_midclstok.pth")
    assert (got.model.image_size, got.model.stride) == (64, 16)
    assert "image size 64 is assumed: edge to edge the 4 x 4 patches of 16 pixels make it" in got.notes[0]
    assert "--image-size 40" in got.notes[0]  # where they overlap by half
    # 12 patches make no square: height and width are asked for, and nothing is interpolated
    torch.save(state | {"pos_embed": state["pos_embed"][:, :13]}, tmp_path / "y_midclstok.pth")
    with pytest.raises(CheckpointError, match="12 patches of 16 pixels, which make no square") as caught:
        read(tmp_path / "y_midclstok.pth")
    assert "--image-size HEIGHTxWIDTH" in str(caught.value.hint)
    flat = read(tmp_path / "y_midclstok.pth", image_size=(32, 96))
    assert (flat.model.grid, flat.trained) == ((2, 6), None)
    assert torch.equal(flat.tensors["pos_embed"], state["pos_embed"][:, :13])


def test_folders_at_another_size(tmp_path: Path) -> None:
    """A dense one is interpolated once; the schedule of a compressed one is for its own grid."""
    dense = stm.load_checkpoint(MINI, device="cpu")
    dense.save_pretrained(tmp_path / "dense")
    stm.compress(dense, method="staged").save_pretrained(tmp_path / "small")
    other = stm.load(tmp_path / "dense", device="cpu", image_size=(48, 96))
    direct = stm.load_checkpoint(MINI, device="cpu", image_size=(48, 96))
    assert torch.equal(other.pos_embed, direct.pos_embed)
    assert other.config.preprocessing == direct.config.preprocessing
    assert other.config.extra["asked"] == {"image_size": [48, 96]} == direct.config.extra["asked"]
    with pytest.raises(UsageError, match="small is for the 16 patches of 64 x 64 pixels"):
        stm.load(tmp_path / "small", image_size=96)
    assert stm.load(tmp_path / "small", device="cpu", image_size=64).schedule.steps
    with pytest.raises(UsageError, match="which leave pixels over") as caught:
        stm.load(tmp_path / "dense", image_size=90)
    assert "80x80" in str(caught.value.hint)
    other.save_pretrained(tmp_path / "flat")
    written = json.loads((tmp_path / "flat" / "config.json").read_text())
    assert (written["model"]["image_size"], written["pretrained_cfg"]["input_size"]) == ([48, 96], [3, 48, 96])
    again = stm.load(tmp_path / "flat", device="cpu")
    assert again.config.model == other.config.model and torch.equal(again.pos_embed, other.pos_embed)
    card = (tmp_path / "flat" / "README.md").read_text()
    assert "Input: 48 x 96 pixels" in card and "# (1, 3, 48, 96); a list" in card and "interpolated from" in card
    with pytest.raises(UsageError, match="interpolated already"):
        stm.load(tmp_path / "flat", image_size=96)


def test_a_square_is_written_as_one_number() -> None:
    with pytest.raises(ValueError, match=r"expected 64 for a square"):
        ModelConfig(**SHAPE | {"image_size": (64, 64)})
    assert stm.load_checkpoint(MINI, device="cpu", image_size=(64, 64)).config.model.image_size == 64  # type: ignore[arg-type]
    assert words({"image_size": (48, 96)}) == words({"image_size": [48, 96]}) == ["--image-size", "48x96"]


def test_eval_stands_beside_the_weights_own_size(tmp_path: Path) -> None:
    """Without labels: agreement and KL with the same model at its own pixels."""
    for number in range(3):
        pixels = torch.randint(256, (3, 120, 100), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
    options = ModelOptions(device="cpu", image_size=(48, 96))
    report = evaluate(str(MINI), options, EvalOptions(data=tmp_path, workers=0))
    assert report.agreement is not None and report.kl is not None and report.kl > 0 and report.top1 is None
    assert "at its own 64 x 64 pixels" in report.notes[0]
    own, other = stm.load_checkpoint(MINI, device="cpu"), stm.load_checkpoint(MINI, device="cpu", image_size=(48, 96))
    with pytest.raises(UsageError, match="the reference has 64 x 64 pixels, expected the model's 48 x 96"):
        stm.evaluate(other, [(torch.zeros(3, 48, 96), 0)], reference=own)


def test_pictures_and_photographs_of_any_proportions() -> None:
    prep = Preprocess(resize=(36, 109), crop=(32, 96))
    for size in ((300, 200), (50, 400), (96, 32)):
        assert fit(Image.new("RGB", size), prep).size == (96, 32)
    config = stm.load_checkpoint(MINI, device="cpu", image_size=(32, 96)).config
    assert {name: each.shape for name, each in drawn(config, 2).items()} == dict.fromkeys(
        ("crops", "ellipses", "noise"), (2, 3, 32, 96)
    )


def test_storm_says_that_it_merges_squares_and_is_not_among_the_defaults_of_others() -> None:
    shape = ModelConfig(**SHAPE | {"image_size": (32, 96)})
    assert suited(DEFAULT, shape) == DEFAULT[:-1] and suited(DEFAULT, ModelConfig(**SHAPE)) == DEFAULT
    with pytest.raises(UsageError, match="storm merges square grids, and this model's is 2 x 6"):
        next(iter(PEERS["storm"].kind.budgets(shape, (0,))))
