"""The costs of the embedded model that the package holds are those that the code would compute today."""

from collections.abc import Iterator

import pytest
import torch

import stm
from stm import fitting
from stm.assets import FOLDER
from stm.data.fit_images import FitImages, pictures
from stm.merging import cost_file
from stm.merging.cost_file import Effects
from stm.merging.costs import LARGEST_GROUP
from stm.progress import Progress

FILES = sorted((FOLDER / "costs").iterdir())


@pytest.fixture(scope="module")
def dense() -> stm.ViM:
    return stm.load("vim-digits", device="cpu")


@pytest.fixture(scope="module")
def images(dense: stm.ViM) -> FitImages:
    return pictures(dense.config)


@pytest.fixture(scope="module")
def kept(dense: stm.ViM, images: FitImages) -> Effects:
    """What the package holds under the name that a fit asks for."""
    name = fitting.key_of(dense, images, images.sha256(dense.config.preprocessing))
    assert [path.name for path in FILES] == [f"{name}.safetensors"], "write the file anew, or restore what it is of"
    found = cost_file.read(name)
    assert found is not None
    return found


def test_the_file_is_small_and_of_the_embedded_model(dense: stm.ViM, kept: Effects) -> None:
    shape = dense.config.model
    assert kept.cost.shape == (shape.depth - 1, shape.tokens, LARGEST_GROUP + 1)
    assert len(kept.probes) == 0  # nothing judges drawn pictures, so nothing regroups
    assert kept.cost.isfinite().all() and (kept.cost >= 0).all() and kept.cost.max() > 0
    assert FILES[0].stat().st_size < 500_000


def test_a_fit_takes_it_and_computes_nothing(
    dense: stm.ViM, images: FitImages, kept: Effects, monkeypatch: pytest.MonkeyPatch
) -> None:
    def computed(*args: object) -> Iterator[None]:
        raise AssertionError("the costs were computed")

    monkeypatch.setattr(fitting, "_effects_of", computed)
    seen: list[Progress] = []
    found = fitting.fit(dense, images, on_progress=seen.append)
    assert torch.equal(found.effects.cost, kept.cost) and not seen
    with pytest.raises(AssertionError, match="were computed"):
        fitting.fit(dense, images, keep=False)
    with pytest.raises(AssertionError, match="were computed"):
        fitting.fit(dense, pictures(dense.config, seed=1), keep=False)


def test_the_default_saves_what_the_papers_schedule_saves(dense: stm.ViM, kept: Effects) -> None:
    """What every newcomer runs: the saving that is asked for, reached within a tenth of a point."""
    small, paper = (stm.compress(dense, rate=0.4, method=method) for method in ("stm", "paper"))
    assert small.config.schedule.saving(24) == pytest.approx(paper.config.schedule.saving(24), abs=1e-3)
    fit = small.config.recipe and small.config.recipe.fit
    assert fit is not None and (fit.data, fit.n, fit.judges, fit.seed) == ("drawn pictures", 576, 0, 0)


@pytest.mark.slow
def test_fewer_pictures_give_nearly_the_same_costs(dense: stm.ViM, kept: Effects) -> None:
    """24 pictures instead of 576: the file is of this model and of this way to compute, or nothing would agree."""
    few = fitting.fit(dense, pictures(dense.config, n=24), keep=False).effects.cost
    pairs = torch.stack([few[..., 2].flatten(), kept.cost[..., 2].flatten()])
    ranks = pairs.argsort(1).argsort(1).double()
    assert torch.corrcoef(ranks)[0, 1] > 0.9
    assert few.sum() == pytest.approx(float(kept.cost.sum()), rel=0.3)
