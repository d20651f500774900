"""From images to costs and from costs to a choice: probes, kinds of pictures, candidates, and what is kept."""

import dataclasses
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from torch import Tensor

import stm
from stm import fitting
from stm.backends import choose
from stm.config import Config, ModelConfig, Preprocess, dense_schedule
from stm.data.fit_images import FitImages, as_set, in_memory, pictures, whole
from stm.errors import StmError, UsageError
from stm.fitting import fit
from stm.merging.schedule import Schedule
from stm.model.initialize import initialize
from stm.options import MergeOptions
from tests.pictures import picture

PROTECTION = MergeOptions().protection


def model_of(depth: int = 4, **shape: object) -> stm.ViM:
    """4 x 4 patches, the class token at 8 of 17."""
    model = ModelConfig(image_size=8, patch=2, stride=2, d_model=8, depth=depth, d_state=4, dt_rank=1, **shape)  # type: ignore[arg-type]
    prep = Preprocess(resize=8, crop=8)
    config = Config(model=model, num_classes=5, schedule=dense_schedule(model), preprocessing=prep)
    return initialize(stm.ViM(config, choose("blocked")), seed=0).eval()


def images_of(n: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_costs_are_mean_squares_and_nothing_is_computed_twice() -> None:
    """Two halves of a set weigh as the whole; the probes are drawn by the seed alone."""
    dense, images = model_of(), images_of(6)
    first, again, other = (
        fit(dense, whole(in_memory("mine", images), seed=seed), keep=False).effects for seed in (0, 0, 1)
    )
    assert torch.equal(first.cost, again.cost) and torch.equal(first.probes, again.probes)
    assert not torch.equal(first.cost, other.cost)
    assert torch.allclose(first.cost, first.probes.double().square().mean(0), rtol=1e-4)


@pytest.mark.parametrize("depth", [2, 3, 4, 8])
def test_every_kind_of_picture_counts_the_same(depth: int) -> None:
    """However large the effects of one are: a quiet kind must not be drowned by a loud one."""
    dense = model_of(depth)
    quiet, loud = (in_memory(name, images_of(4, scale)) for name, scale in (("quiet", 1e-3), ("loud", 3.0)))

    def cost(**sources: object) -> Tensor:
        return fit(dense, FitImages("drawn", MappingProxyType(sources)), keep=False).effects.cost  # type: ignore[arg-type]

    both = cost(quiet=quiet, loud=loud)
    parts = [cost(only=kind) for kind in (quiet, loud)]
    blocks = max(depth // 2 - 1, 1)
    mask = torch.ones(17, dtype=torch.bool)
    mask[[7, 8, 16]] = False  # pairs with the class token, and the last token's
    expected = sum(part / part[:blocks, mask, 2].sum() for part in parts) / 2
    assert isinstance(expected, Tensor) and torch.allclose(both[..., 2:], expected[..., 2:], rtol=1e-6)


def test_a_broken_image_moves_no_other_images_probe(tmp_path: Path) -> None:
    """The costs are those of the images that are left, each with the probe that it would have had."""
    for number in range(6):
        picture(tmp_path / "mine" / f"{number}.png", number, size=(8, 8))
    dense = model_of()
    samples = as_set(tmp_path / "mine", dense.config)
    whole_set = FitImages("mine", MappingProxyType({"mine": samples}), judges=samples)
    every = fit(dense, whole_set, keep=False).effects.probes
    (tmp_path / "mine" / "1.png").write_text("no image")
    left = fit(dense, whole_set, keep=False).effects.probes
    assert len(left) == 5
    assert torch.allclose(left, every[[0, 2, 3, 4, 5]], rtol=1e-4, atol=1e-6 * float(every.abs().max()))


def test_a_candidate_that_saves_less_than_was_asked_does_not_compete(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dense schedule under another name would always be nearest to the dense model."""
    dense = model_of()
    found = fit(dense, whole(in_memory("mine", images_of(8))), keep=False)
    nothing = Schedule(17, 8)
    monkeypatch.setattr(fitting.Fitting, "_orders", lambda *_: iter([("border", nothing)]))
    choice = found.choose(14, PROTECTION)
    assert {tried.cut for tried in choice.fit.tried} == {"flat", "regrouped"}
    assert choice.schedule.saving(4) == pytest.approx(14 / 68, abs=0.005)


def test_the_judges_choose_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = model_of()
    found = fit(dense, whole(in_memory("mine", images_of(12))), keep=False)
    choice = found.choose(14, PROTECTION)
    losses = [tried.kl for tried in choice.fit.tried]
    assert losses == sorted(losses) and losses[0] == min(losses)
    assert (choice.fit.cut, choice.protection.step_scale) == (choice.fit.tried[0].cut, choice.fit.tried[0].step_scale)
    fixed = found.choose(14, PROTECTION, other_scales=False, other_orders=False)
    assert {tried.step_scale for tried in fixed.fit.tried} == {PROTECTION.step_scale}
    assert {tried.cut for tried in fixed.fit.tried} <= {"flat", "regrouped"}
    flat = found.without_judges().choose(14, PROTECTION)
    assert flat.fit.tried == () and flat.fit.judges == 0 and flat.fit.cut == "flat"


def test_the_name_of_what_is_kept_changes_with_all_that_decides_it() -> None:
    dense, other = model_of(), model_of()
    with torch.no_grad():
        other.head.weight += 1e-3
    prep = dense.config.preprocessing

    def name(model: stm.ViM, images: FitImages) -> str:
        return fitting.key_of(model, images, images.sha256(prep))

    drawn = pictures(dense.config, n=3)
    judged = whole(in_memory("mine", images_of(4)))
    names = [
        name(dense, drawn),
        name(other, drawn),
        name(dense, pictures(dense.config, n=3, seed=1)),
        name(dense, pictures(dense.config, n=6)),
        name(dense, judged),
        name(dense, dataclasses.replace(judged, seed=1)),
    ]
    assert len(set(names)) == len(names)
    assert name(dense, pictures(dense.config, n=3)) == names[0]


def test_gradients_that_are_no_numbers_are_said() -> None:
    dense = model_of()
    with torch.no_grad():
        dense.head.weight.fill_(torch.inf)
    with pytest.raises(StmError, match="gradients on crops are not finite"):
        fit(dense, pictures(dense.config, n=3), keep=False)


def test_one_block_has_nothing_to_fit() -> None:
    dense = model_of(1)
    with pytest.raises(UsageError, match="the model has one block"):
        fit(dense, pictures(dense.config, n=3), keep=False)
