"""Which images a fit takes, and which are left to measure on: never more than half, never twice, always the same."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stm.commands.compress import compress
from stm.config import Config
from stm.data.fit_images import (
    COSTS,
    FEWEST,
    JUDGES,
    FitImages,
    as_set,
    check_apart,
    in_memory,
    rest,
    split,
    unseen,
    whole,
)
from stm.data.sets import SampleSet
from stm.errors import DataError, UsageError
from stm.options import EvalOptions, FitOptions, MergeOptions
from stm.recipe import Fit, Recipe
from tests.pictures import PREP, make_config, picture
from tests.unit.checkpoint.cases import MINI


def set_of(n: int, name: str = "mine", seed: int = 0) -> SampleSet:
    return in_memory(name, torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed)))


def files(*sets: SampleSet | None) -> list[str]:
    return [sample.file for samples in sets if samples is not None for sample in samples.samples]


def used(images: FitImages) -> list[str]:
    return files(*images.sources.values(), images.judges)


def fitted_on(images: FitImages, seed: int | None = None) -> Config:
    """Return the config of a model whose schedule these images decided, or others of another seed."""
    judges = 0 if images.judges is None else len(images.judges)
    seed = images.seed if seed is None else seed
    fit = Fit(data=images.data, n=images.n, judges=judges, seed=seed, sha256=images.sha256(PREP))
    recipe = Recipe(method="stm", rate=0.4, removed_share=0.4, schedule="fitted", fit=fit)
    return dataclasses.replace(make_config(), preprocessing=PREP, recipe=recipe)


@given(st.integers(FEWEST, 1500), st.integers(0, 50))
def test_a_split_takes_at_most_half_and_352_and_leaves_the_rest(n: int, seed: int) -> None:
    samples = set_of(n)
    parts = split(samples, seed=seed)
    assert parts is not None
    images, left = parts
    taken = used(images)
    assert len(set(taken)) == len(taken) <= min(n // 2, COSTS + JUDGES)
    assert not set(taken) & set(files(left))
    assert len(taken) + len(left) == n
    assert files(left) == [name for name in files(samples) if name not in set(taken)]  # in the set's order
    assert images.judges is not None and images.n == len(taken) - len(images.judges) >= len(images.judges)


def test_a_large_set_gives_256_for_the_costs_and_96_to_choose() -> None:
    parts = split(set_of(704))
    assert parts is not None
    images, left = parts
    assert (images.n, images.judges and len(images.judges), len(left)) == (256, 96, 352)


def test_a_split_is_decided_by_its_seed() -> None:
    samples = set_of(100)
    first, again, other = (split(samples, seed=seed) for seed in (3, 3, 4))
    assert first is not None and again is not None and other is not None
    assert used(first[0]) == used(again[0]) != used(other[0])
    assert first[0].seed == 3


@pytest.mark.parametrize("n", [2, 10, FEWEST - 1])
def test_a_small_set_only_measures(n: int) -> None:
    assert split(set_of(n)) is None
    assert split(set_of(n), n=1) is None


def test_as_many_as_asked_for_within_a_half() -> None:
    samples = set_of(100)
    parts = split(samples, n=40)
    assert parts is not None and parts[0].n == 40 and len(parts[1]) == 50
    for n in (0, -1, 50, 100, 10**9):
        with pytest.raises(UsageError, match=f"fit images is {n}, expected 1 to 49: at most half of the 100 images"):
            split(samples, n=n)


def test_a_promise_is_judged_by_the_rest_of_the_half() -> None:
    parts = split(set_of(1000), promise=True)
    assert parts is not None
    images, left = parts
    assert images.judges is not None
    assert (images.n, len(images.judges), len(left)) == (125, 375, 500)  # a quarter of the half gives the costs


def test_a_set_that_is_there_to_be_fitted_on_is_taken_whole() -> None:
    for n, costs, judges in ((1000, 256, 96), (352, 256, 96), (88, 64, 24), (10, 7, 3), (3, 2, 1), (2, 1, 1)):
        images = whole(set_of(n))
        assert images.judges is not None
        assert (images.n, len(images.judges)) == (costs, judges)
        assert len(set(used(images))) == costs + judges
    assert whole(set_of(100), n=99).n == 99


@pytest.mark.parametrize(("n", "said"), [(1, "mine has 1 image,"), (0, "mine has 0 images,")])
def test_one_image_cannot_both_give_the_costs_and_judge(n: int, said: str) -> None:
    with pytest.raises(DataError, match=f"{said} expected at least 2 to fit on"):
        whole(set_of(n))


@pytest.mark.parametrize("n", [0, -3, 10, 11])
def test_a_number_that_leaves_nothing_to_judge_by_is_refused(n: int) -> None:
    with pytest.raises(UsageError, match=f"fit images is {n}, expected 1 to 9 of the 10 images of mine"):
        whole(set_of(10), n=n)


@pytest.mark.parametrize("seed", [0, 7])
def test_a_later_run_finds_the_same_part_and_only_it(seed: int) -> None:
    samples = set_of(120)
    parts = split(samples, seed=seed)
    assert parts is not None
    images, left = parts
    config = fitted_on(images)
    again = unseen(samples, config)
    assert files(again) == files(left) and again.fitted_on == left.fitted_on == 60
    # of the same name: other images, fewer or more of them; of the same images: another name
    others = [set_of(120, seed=1), set_of(121), set_of(30), set_of(120, name="other")]
    assert [unseen(other, config) for other in others] == others
    assert unseen(samples, fitted_on(images, seed=seed + 1)) == samples


def test_a_set_that_was_fitted_on_whole_measures_nothing() -> None:
    samples = set_of(20)
    with pytest.raises(DataError, match="the schedule was fitted on all 20 images of mine, which therefore measure"):
        unseen(samples, fitted_on(whole(samples)))
    other = set_of(20, seed=1)
    assert unseen(other, fitted_on(whole(samples))) == other
    large = set_of(400)
    assert len(unseen(large, fitted_on(whole(large)))) == 48


def test_the_rest_is_told_by_the_place_and_not_by_the_name() -> None:
    """Two images of one name are two images."""
    samples = set_of(10)
    twins = SampleSet("mine", tuple(type(s)("same.png", s.label, s.source) for s in samples.samples))
    assert len(rest(twins, 4, 0)) == 6


def test_broken_images_are_left_out_of_the_hash_and_all_broken_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    for number in range(5):
        picture(folder / f"{number}.png", number)
    (folder / "2.png").write_text("no image")
    images = whole(as_set(folder, make_config()))
    assert len(used(images)) == 5
    assert images.sha256(PREP) == images.sha256(PREP)
    for path in folder.iterdir():
        path.write_text("no image")
    with pytest.raises(DataError, match="mine: none of the images for the fit could be read"):
        whole(as_set(folder, make_config())).sha256(PREP)


def test_an_image_is_known_by_every_path_that_leads_to_it(tmp_path: Path) -> None:
    for number in range(4):
        picture(tmp_path / "all" / "some" / f"{number}.png", number)
    picture(tmp_path / "all" / "others" / "0.png", 9)
    picture(tmp_path / "apart" / "0.png", 10)
    (tmp_path / "link").symlink_to(tmp_path / "all" / "some")
    images = whole(as_set(tmp_path / "all" / "some", make_config()))
    check_apart(images, as_set(tmp_path / "apart", make_config()))
    check_apart(images, as_set(tmp_path / "all" / "others", make_config()))
    for place in ("all", "all/some", "link"):
        with pytest.raises(UsageError, match="4 of the images of some to fit on are among those of"):
            check_apart(images, as_set(tmp_path / place, make_config()))
    tensors = set_of(4)
    with pytest.raises(UsageError, match="4 of the images of mine"):
        check_apart(whole(tensors), tensors)
    check_apart(whole(tensors), set_of(4))


def test_labels_are_not_needed_unless_asked_for(tmp_path: Path) -> None:
    picture(tmp_path / "mine" / "1.png")
    assert len(as_set(tmp_path / "mine", make_config())) == 1
    with pytest.raises(DataError, match="label"):
        as_set(tmp_path / "mine", make_config(), labels=True)


def test_a_tensor_of_images() -> None:
    images = torch.randn(4, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    samples = as_set(images, make_config())
    assert len(samples) == 4 and not samples.labelled
    assert all(isinstance(sample.source, torch.Tensor) for sample in samples.samples)
    for wrong in (torch.randn(3, 4, 4), torch.randn(2, 1, 4, 4), torch.randn(2, 3, 5, 4), torch.ones(2, 3, 4, 4).int()):
        with pytest.raises(DataError, match=r"expected normalised floats \(n, 3, 4, 4\)"):
            as_set(wrong, make_config())


@pytest.mark.parametrize("purpose", ["fit", "calibration"])
def test_a_part_of_other_images_is_named_by_split(tmp_path: Path, purpose: str) -> None:
    """Without --data the reading options are those of the images to fit on, and to calibrate by."""
    for part in ("train", "val"):
        for number in range(3):
            picture(tmp_path / "root" / part / f"{number}.png", seed=number)
    merge = {"fit": MergeOptions(rate=0.3), "calibration": MergeOptions(rate=0.3, weights="hsp", hsp="static")}[purpose]
    other: dict[str, Any] = {"fit": FitOptions(fit_on=tmp_path / "root", no_cache=True)}
    if purpose == "calibration":
        merge = dataclasses.replace(merge, method="paper")
        other = {"calibration": tmp_path / "root"}

    def made(images: EvalOptions) -> Recipe:
        return compress(str(MINI), merge=merge, images=images, out=tmp_path / "o", dry_run=True, **other).recipe

    recipe = made(EvalOptions(split="val"))
    assert getattr(recipe, purpose).data == "val" and getattr(recipe, purpose).n <= 3
    with pytest.raises(UsageError, match="no part test, only train, val"):
        made(EvalOptions(split="test"))
    with pytest.raises(UsageError, match="--split was given"):
        compress(str(MINI), images=EvalOptions(split="val"), out=tmp_path / "o", dry_run=True)
