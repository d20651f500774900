"""Sample sets: subsets, fingerprints, what comes with the package, and data that is not a folder."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from stm.config import Preprocess
from stm.data import open
from stm.data.images import Pixels, Sample
from stm.data.open import as_samples, embedded_digits, open_chosen, open_samples, photograph_crops
from stm.data.sets import SampleSet, evenly, iterate
from stm.errors import DataError, UsageError
from stm.options import EvalOptions
from tests.pictures import PREP, labelled, make_config, opened, picture

ROOT = Path(__file__).resolve().parents[2]


# Subsets and fingerprints


def test_positions_are_evenly_spread() -> None:
    assert evenly(4, 200) == pytest.approx([0, 200 / 3, 400 / 3, 200])
    assert evenly(1, 7) == [0] and evenly(0, 7) == []


def test_a_limit_draws_by_seed_keeps_the_order_and_grows(tmp_path):
    everything = SampleSet("x", tuple(Sample(f"{i:03}", i % 10, Pixels(bytes([i]), 1)) for i in range(100)))
    files = [
        [sample.file for sample in everything.take(limit, seed).samples]
        for limit, seed in [(20, 0), (20, 0), (50, 0), (20, 1)]
    ]
    assert files[0] == files[1] == sorted(files[0])
    assert len(files[0]) == 20
    assert set(files[0]) < set(files[2])
    assert files[0] != files[3]
    # Pinned: a recorded run must draw the same images on every version of Python.
    assert files[0][:5] == ["003", "007", "012", "015", "020"]
    assert everything.take(None) is everything
    assert everything.take(100) is everything
    with pytest.raises(UsageError, match="limit is 0"):
        everything.take(0)


def test_no_generator_but_our_own_is_touched(tmp_path):
    state = random.getstate()
    photograph_crops().take(5, 3)
    assert random.getstate() == state


def test_a_fingerprint_says_whether_the_data_is_the_same(tmp_path):
    def make(name, rows=("a.png,1", "b.png,2")):
        return labelled(tmp_path / name, list(rows))

    here, there = opened(make("here")), opened(make("there"))
    assert here.fingerprint == there.fingerprint
    assert len(here.fingerprint) == 64
    assert opened(make("label", ("a.png,1", "b.png,3"))).fingerprint != here.fingerprint
    assert opened(make("name", ("a.png,1", "c.png,2"))).fingerprint != here.fingerprint
    assert here.take(1).fingerprint != here.fingerprint
    picture(make("size") / "b.png", 1, (30, 30))
    assert opened(tmp_path / "size").fingerprint != here.fingerprint
    (make("gone") / "b.png").unlink()
    assert opened(tmp_path / "gone").fingerprint != here.fingerprint


# What comes with the package


def test_the_photographs_are_cut_the_same_way_every_time():
    samples = photograph_crops()
    assert len(samples) == 48
    assert len({sample.file for sample in samples.samples}) == 48
    assert not samples.labelled
    wide = [sample.file for sample in samples.samples if sample.file.startswith("coffee.jpg[400x400")]
    assert wide == [f"coffee.jpg[400x400+{left}+0]" for left in (0, 66, 133, 200)], "rounded down, for ever"
    assert samples == photograph_crops()
    for sample in samples.samples:
        with Image.open(sample.source.path) as whole:
            left, top, right, bottom = sample.source.box
            assert 0 <= left < right <= whole.width
            assert 0 <= top < bottom <= whole.height
            assert right - left == bottom - top
    first = samples.samples[0]
    with Image.open(first.source.path) as whole:
        assert np.array_equal(np.asarray(first.source.open()), np.asarray(whole)[:300, :300])


def test_the_photographs_are_small_and_attributed():
    folder = ROOT / "stm" / "assets" / "photographs"
    attribution = (folder / "ATTRIBUTION.md").read_text(encoding="utf-8")
    photographs = sorted(folder.glob("*.jpg"))
    assert [path.name for path in photographs] == ["chelsea.jpg", "china.jpg", "coffee.jpg"]
    assert all(path.stat().st_size <= 60_000 and f"`{path.name}`" in attribution for path in photographs)
    assert all(
        who in attribution for who in ("danielbuechele", "Stefan van der Walt", "Rachel Michetti", "CC BY 2.0", "CC0")
    )


def digits_file(path):
    images = torch.arange(3 * 4 * 4, dtype=torch.uint8).reshape(3, 4, 4)
    save_file({"images": images, "labels": torch.tensor([7, 0, 9])}, path)
    return images


def test_embedded_digits_are_what_the_file_holds(tmp_path):
    images = digits_file(tmp_path / "samples.safetensors")
    samples = embedded_digits(tmp_path / "samples.safetensors")
    assert samples.name == "digits-heldout"
    assert [sample.label for sample in samples.samples] == [7, 0, 9]
    prep = Preprocess(resize=4, crop=4, mean=(0.0,), std=(1.0,))
    (batch,) = iterate(samples, prep, batch_size=8)
    assert torch.equal(batch.images, images[:, None].float().div(255))


def test_what_comes_with_the_package_depends_on_the_model(tmp_path, monkeypatch):
    digits_file(tmp_path / "samples.safetensors")
    monkeypatch.setattr(open, "embedded_digits", lambda: embedded_digits(tmp_path / "samples.safetensors"))
    assert open_samples(None, config=make_config(file="vim-digits")).name == "digits-heldout"
    assert open_samples(None, config=make_config(file="other.pth")).name == "photograph-crops"
    assert len(open_samples(None, config=make_config(), limit=5)) == 5


def test_the_options_of_an_evaluation_choose_folder_limit_and_seed(tmp_path):
    for number in range(9):
        picture(tmp_path / "set" / str(number % 2) / f"{number}.png")
    config = make_config(2)
    chosen = [open_chosen(EvalOptions(data=tmp_path / "set", limit=4, seed=seed), config) for seed in (None, 1, 2)]
    drawn = [open_samples(tmp_path / "set", config=config, limit=4, seed=seed) for seed in (0, 1, 2)]
    assert [samples.fingerprint for samples in chosen] == [samples.fingerprint for samples in drawn]
    assert len({samples.fingerprint for samples in chosen}) > 1
    with pytest.raises(DataError, match="missing does not exist"):
        open_chosen(EvalOptions(data=tmp_path / "missing"), config)


# Data that is not a folder


def pair(label, shape=(3, 4, 4), dtype=torch.float32):
    return torch.full(shape, 0.5, dtype=dtype), label


def test_pairs_go_to_the_model_as_they_are():
    pairs = [pair(3), pair(torch.tensor(4), dtype=torch.float64), pair(np.int64(5))]
    samples = as_samples((item for item in pairs), make_config())
    assert [sample.label for sample in samples.samples] == [3, 4, 5]
    batches = list(iterate(samples, PREP, batch_size=2))
    assert [batch.indices for batch in batches] == [(0, 1), (2,)]
    assert batches[0].images.dtype == torch.float32
    assert torch.equal(batches[0].images, torch.full((2, 3, 4, 4), 0.5))
    assert samples.fingerprint != as_samples([pair(3), pair(4), (torch.zeros(3, 4, 4), 5)], make_config()).fingerprint


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        ([], "the data holds no images"),
        ([7], "item 0 of the data is not a pair of an image and its class"),
        ([(1, 2, 3)], "item 0 of the data is not a pair"),
        ([pair(0), pair("cat")], "item 1 of the data is not a pair"),
        ([pair(torch.tensor([1, 2]))], "item 0 of the data is not a pair"),
        ([pair(0, (2, 3, 4, 4))], "item 0 of the data: the image is (2, 3, 4, 4), expected (3, 4, 4)"),
        ([pair(0, dtype=torch.uint8)], "the image is torch.uint8, expected a normalised tensor of floats (3, 4, 4)"),
        ([(np.zeros((3, 4, 4)), 0)], "the image is ndarray, expected a normalised tensor of floats"),
        ([pair(0), pair(10)], "item-1: class 10, expected 0 to 9"),
        ([pair(-1)], "item-0: class -1, expected 0 to 9"),
        ([pair(None)], "item-0 has no label"),
    ],
)
def test_data_that_is_not_pairs_is_refused(items, sentence):
    with pytest.raises(DataError) as refused:
        as_samples(items, make_config())
    assert sentence in refused.value.message


def test_paths_and_sample_sets_are_data_too(tmp_path):
    folder = labelled(tmp_path, ["a.png,1", "b.png,2"])
    samples = as_samples(str(folder), make_config())
    assert samples == as_samples(folder, make_config())
    assert as_samples(samples, make_config()) is samples
    assert len(as_samples(samples, make_config(), limit=1)) == 1
    with pytest.raises(DataError, match=r"b.png: class 2, expected 0 to 1"):
        as_samples(samples, make_config(2))
    assert as_samples([pair(None)], make_config(), need_labels=False).labelled is False
