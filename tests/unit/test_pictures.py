"""Pictures that need no data: their sizes, channels, ranges and statistics, and that a seed decides every one."""

import hashlib

import pytest
import torch
from torch import Tensor

from stm.config import Config, ModelConfig, Preprocess, dense_schedule
from stm.data.fit_images import pictures, pictures_per_source
from stm.data.patterns import as_channels, ellipses, pink_noise
from stm.data.pictures import drawn
from stm.data.sets import iterate
from stm.errors import UsageError

KINDS = ("crops", "ellipses", "noise")


def config_of(size: int = 24, channels: int = 3, mean: float = 0.5, std: float = 0.25) -> Config:
    model = ModelConfig(image_size=size, patch=4, stride=4, in_chans=channels, d_model=8, depth=2, dt_rank=1)
    prep = Preprocess(resize=size, crop=size, mean=(mean,) * channels, std=(std,) * channels)
    return Config(model=model, num_classes=3, schedule=dense_schedule(model), preprocessing=prep)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def as_the_model_takes(config: Config, n: int) -> dict[str, Tensor]:
    return {kind: as_channels(images, config.preprocessing) for kind, images in drawn(config, n).items()}


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
def test_sizes_channels_and_range(channels: int) -> None:
    sets = as_the_model_takes(config_of(channels=channels, mean=0.0, std=1.0), 3)
    assert tuple(sets) == KINDS
    for images in sets.values():
        assert images.shape == (3, channels, 24, 24) and images.dtype == torch.float32
        assert images.min() >= 0 and images.max() <= 1
        assert images.flatten(1).std(1).min() > 0  # none is of one colour


def test_other_channels_are_made_of_red_green_and_blue() -> None:
    colour, grey, more = (as_the_model_takes(config_of(channels=channels), 2) for channels in (3, 1, 5))
    for kind in KINDS:
        assert torch.allclose(grey[kind], colour[kind].mean(1, keepdim=True), atol=1e-5)
        assert torch.equal(more[kind], colour[kind][:, [0, 1, 2, 0, 1]])


def test_the_normalisation_is_the_models() -> None:
    one, other = (as_the_model_takes(config_of(mean=mean, std=std), 1) for mean, std in ((0.5, 0.5), (0.0, 1.0)))
    for kind in KINDS:
        assert torch.allclose(one[kind] * 0.5 + 0.5, other[kind], atol=1e-6)


def test_a_fit_takes_them_as_the_model_does() -> None:
    config = config_of(channels=1)
    for kind, samples in pictures(config, n=9).sources.items():
        (batch,) = iterate(samples, config.preprocessing, batch_size=3)
        assert torch.equal(batch.images, as_the_model_takes(config, 3)[kind])


def test_a_seed_decides_every_picture() -> None:
    config = config_of()
    first, again, other = drawn(config, 2, 5), drawn(config, 2, 5), drawn(config, 2, 6)
    for kind in KINDS:
        assert torch.equal(first[kind], again[kind])
        assert not torch.equal(first[kind], other[kind])
    state = torch.get_rng_state()
    drawn(config, 1)
    assert torch.equal(torch.get_rng_state(), state), "nothing is taken from the generator of others"


def test_more_pictures_begin_with_the_fewer() -> None:
    few, many = drawn(config_of(), 2), drawn(config_of(), 4)
    for kind in KINDS:
        assert torch.equal(few[kind], many[kind][:2])


def test_seeds_that_follow_each_other_share_no_picture() -> None:
    """Every kind has a generator of its own, so that noise of seed 0 is not that of seed 1's ellipses either."""
    seen = [
        hashlib.sha256(image.numpy().tobytes()).hexdigest()
        for seed in range(4)
        for images in drawn(config_of(), 2, seed).values()
        for image in images
    ]
    assert len(set(seen)) == len(seen)


def test_pictures_have_the_levels_of_a_file() -> None:
    """The last bits of a Fourier transform differ between processors, and the hash of a fit must not."""
    for images in drawn(config_of(), 2).values():
        assert images.shape == (2, 3, 24, 24) and images.dtype == torch.uint8


def test_ellipses_are_plain_regions_with_edges() -> None:
    for seed in range(4):
        x = ellipses(64, 64, generator(seed))
        assert x.shape == (3, 64, 64) and x.min() >= 0 and x.max() <= 1
        flat = (x[:, :, 1:] == x[:, :, :-1]).all(0).float().mean()
        assert 0.5 < flat < 1  # most neighbours are equal, and some are not


def test_pink_noise_falls_as_one_over_the_frequency() -> None:
    images = torch.stack([pink_noise(64, 64, generator(seed)) for seed in range(24)])
    assert images.mean() == pytest.approx(0.5, abs=0.02)
    spectrum = torch.fft.fft2(images - images.mean((2, 3), keepdim=True)).abs().square().mean((0, 1))
    low, high = spectrum[0, 2:5].mean(), spectrum[0, 8:20].mean()
    distance = (torch.arange(8, 20).float() ** -2).mean() / (torch.arange(2, 5).float() ** -2).mean()
    assert float(high / low / distance) == pytest.approx(1, abs=0.35)
    channels = images.transpose(0, 1).flatten(1)
    assert torch.corrcoef(channels)[0, 1] == pytest.approx(0.8, abs=0.1)  # 4 of 5 parts of the power are shared


def test_four_pixels_are_enough() -> None:
    for x in (ellipses(2, 2, generator()), pink_noise(2, 2, generator())):
        assert x.shape == (3, 2, 2) and x.isfinite().all()


@pytest.mark.all_pictures
def test_how_many_is_decided_by_the_model_alone() -> None:
    tiny = ModelConfig(d_model=192, depth=24, dt_rank=12)
    assert pictures_per_source(tiny) == 64 == pictures_per_source(ModelConfig(d_model=384, depth=24, dt_rank=24))
    assert pictures_per_source(config_of().model) == 192
    between = ModelConfig(d_model=128, depth=24, dt_rank=8)
    assert 64 < pictures_per_source(between) < 192
    config = config_of()
    assert {kind: len(samples) for kind, samples in pictures(config).sources.items()} == dict.fromkeys(KINDS, 192)


@pytest.mark.parametrize(("asked", "found"), [(3, 3), (4, 6), (12, 12), (13, 15)])
def test_a_number_is_rounded_up_to_the_kinds(asked: int, found: int) -> None:
    assert pictures(config_of(), n=asked).n == found


@pytest.mark.parametrize("asked", [2, 0, -1])
def test_fewer_than_one_per_kind_are_refused(asked: int) -> None:
    with pytest.raises(UsageError, match=f"fit images is {asked}, expected at least 3"):
        pictures(config_of(), n=asked)


def test_nothing_judges_drawn_pictures_and_their_hash_is_of_the_seed() -> None:
    config = config_of()
    first, again, other = (pictures(config, n=3, seed=seed) for seed in (0, 0, 1))
    assert first.judges is None and first.data == "drawn pictures"
    prep = config.preprocessing
    assert first.sha256(prep) == again.sha256(prep) != other.sha256(prep)
