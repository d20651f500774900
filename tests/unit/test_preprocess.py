"""Preprocessing against values worked out independently of Pillow's resampling and of torchvision.

`antialiased` is the definition in float64: cubic convolution (Keys 1981, a = -0.5) whose kernel is stretched by the
factor of a reduction, each row of weights divided by its sum, pixels rounded to 8 bits between the passes.
"""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import stm
from stm.config import Preprocess
from stm.data.images import fit
from stm.data.preprocess import preprocess
from stm.errors import DataError, StmError, UsageError


def cubic(x):
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def resampling(old, new):
    """(new, old) weights."""
    factor = old / new
    stretch = max(factor, 1.0)
    rows = np.array([[cubic(((j + 0.5) - (i + 0.5) * factor) / stretch) for j in range(old)] for i in range(new)])
    return rows / rows.sum(axis=1, keepdims=True)


def to_8_bits(x):
    return np.clip(np.floor(x + 0.5), 0, 255)


def antialiased(pixels, width, height):
    """(H, W, C) uint8 to (height, width, C), horizontally first."""
    rows = to_8_bits(np.einsum("iw,hwc->hic", resampling(pixels.shape[1], width), pixels.astype(np.float64)))
    return to_8_bits(np.einsum("jh,hic->jic", resampling(pixels.shape[0], height), rows))


def expected_window(pixels, resize, crop):
    height, width = pixels.shape[:2]
    short, long = min(height, width), max(height, width)
    other = int(resize * long / short)
    new_width, new_height = (resize, other) if width <= height else (other, resize)
    top, left = round((new_height - crop) / 2), round((new_width - crop) / 2)
    return antialiased(pixels, new_width, new_height)[top : top + crop, left : left + crop]


def gray(rows):
    return Image.fromarray(np.array(rows, dtype=np.uint8))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.data())
def test_bicubic_is_the_definition_within_one_level(width, height, resize, data):
    crop = data.draw(st.integers(-(-resize // 10), resize))
    pixels = np.random.default_rng(width * 41 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    result = np.asarray(fit(Image.fromarray(pixels), Preprocess(resize=resize, crop=crop)), dtype=np.float64)
    assert result.shape == (crop, crop, 3)
    assert np.abs(result - expected_window(pixels, resize, crop)).max() <= 1


@pytest.mark.shared
def test_photographs_are_the_definition_within_one_level(shared):
    folder = shared("data/imagenet-val-300")
    for path in sorted(folder.glob("*.JPEG"))[:2]:
        with Image.open(path) as image:
            result = np.asarray(fit(image, Preprocess()), dtype=np.float64)
            expected = expected_window(np.asarray(image.convert("RGB")), 256, 224)
        assert np.abs(result - expected).max() <= 1
        assert np.abs(result - expected).mean() < 0.01  # and hardly ever off by one


def test_bicubic_by_hand():
    """Two pixels 0, 100 become four at distances 1/4, 3/4 and 5/4: w = 0.8672, 0.2266, -0.0703.

    -0.0703 / 0.7969 = -0.0882 (clipped to 0), 0.2266 / 1.0938 = 0.2071, and their complements to 1.
    """
    assert (
        np.asarray(fit(gray([[0, 100]] * 2), Preprocess(resize=4, crop=4, mean=(0.5,), std=(0.5,)))).tolist()
        == [[0, 21, 79, 109]] * 4
    )


def test_the_long_side_is_cut_off_not_rounded():
    """3 x 2 with the short side at 5: int(7.5) = 7 wide, and of 7 the middle 1 starts at 3."""
    ramp = gray([[0, 100, 200]] * 2)
    prep = Preprocess(resize=5, crop=1, interpolation="nearest", mean=(0.5,), std=(0.5,))
    assert np.asarray(fit(ramp, prep)).tolist() == [[100]]
    everything = Preprocess(resize=5, crop=5, interpolation="nearest", mean=(0.5,), std=(0.5,))
    # 7 columns take source columns floor((i + 0.5) * 3 / 7) = 0 0 1 1 1 2 2; the crop of 5 starts at (7 - 5) / 2 = 1.
    assert np.asarray(fit(ramp, everything))[0].tolist() == [0, 100, 100, 100, 200]


@pytest.mark.parametrize(
    ("width", "height", "crop", "left", "top"),
    [(8, 5, 3, 2, 1), (10, 5, 3, 4, 1), (5, 8, 3, 1, 2), (5, 10, 3, 1, 4), (6, 5, 5, 0, 0), (7, 5, 4, 2, 0)],
)
def test_the_crop_is_where_pythons_rounding_puts_it(width, height, crop, left, top):
    """Half goes to even: (8 - 3) / 2 = 2.5 is 2, 3.5 is 4, 0.5 is 0, 1.5 is 2. No resizing: the short side is 5
    already."""
    places = gray([[16 * y + x for x in range(width)] for y in range(height)])
    window = np.asarray(fit(places, Preprocess(resize=5, crop=crop, mean=(0.5,), std=(0.5,))))
    assert window.tolist() == [[16 * y + x for x in range(left, left + crop)] for y in range(top, top + crop)]


def test_normalisation_by_hand():
    prep = Preprocess(resize=1, crop=1, mean=(0.5, 0.2, 0.0), std=(0.25, 0.5, 2.0))
    image = preprocess(Image.new("RGB", (1, 1), (0, 51, 255)), prep)
    assert image.dtype == torch.float32
    assert image.shape == (3, 1, 1)
    assert image.flatten().tolist() == [-2.0, 0.0, 0.5]


def test_channels_come_first_and_rows_before_columns():
    image = Image.new("RGB", (2, 2))
    image.putpixel((1, 0), (255, 0, 0))
    image.putpixel((0, 1), (0, 255, 0))
    x = preprocess(image, Preprocess(resize=2, crop=2, mean=(0, 0, 0), std=(1, 1, 1)))
    assert x.tolist() == [[[0, 1], [0, 0]], [[0, 0], [1, 0]], [[0, 0], [0, 0]]]


def palette_with_transparency():
    image = Image.new("P", (1, 1), 1)
    image.putpalette([1, 2, 3, 200, 100, 50])
    image.info["transparency"] = bytes([255, 7])
    return image


def sixteen_bits(mode):
    value = 0x9A00 | 0x17  # the high byte is 154
    return Image.frombytes(mode, (1, 1), value.to_bytes(2, "big" if mode == "I;16B" else "little"))


@pytest.mark.parametrize(
    ("image", "rgb"),
    [
        (Image.new("RGB", (1, 1), (1, 2, 3)), (1, 2, 3)),
        (Image.new("L", (1, 1), 77), (77, 77, 77)),
        (Image.new("1", (1, 1), 1), (255, 255, 255)),
        (Image.new("LA", (1, 1), (77, 3)), (77, 77, 77)),
        (Image.new("RGBA", (1, 1), (10, 20, 30, 0)), (10, 20, 30)),
        (palette_with_transparency(), (200, 100, 50)),
        (Image.new("CMYK", (1, 1), (255, 0, 0, 0)), (0, 255, 255)),
        (Image.new("CMYK", (1, 1), (0, 0, 0, 55)), (200, 200, 200)),
        (sixteen_bits("I;16"), (154, 154, 154)),
        (sixteen_bits("I;16B"), (154, 154, 154)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_every_mode_becomes_rgb(image, rgb):
    assert fit(image, Preprocess(resize=1, crop=1)).getpixel((0, 0)) == rgb


def test_a_model_of_one_channel_sees_gray():
    """ITU-R 601: 0.299 * 200 + 0.587 * 100 + 0.114 * 50 = 124.2."""
    one = Preprocess(resize=1, crop=1, mean=(0.0,), std=(1.0,))
    for image in (Image.new("RGB", (1, 1), (200, 100, 50)), palette_with_transparency()):
        assert fit(image, one).getpixel((0, 0)) == 124
    assert preprocess(sixteen_bits("I;16"), one).item() == pytest.approx(154 / 255)


def test_exif_orientation_is_not_applied():
    image = gray([[10, 20], [30, 40]])
    image.getexif()[0x0112] = 3  # "rotated by 180 degrees"
    assert np.asarray(fit(image, Preprocess(resize=2, crop=2)))[:, :, 0].tolist() == [[10, 20], [30, 40]]


def test_the_image_stays_as_it_was():
    image = palette_with_transparency()
    before = image.tobytes(), dict(image.info), image.mode
    preprocess(image, Preprocess(resize=3, crop=2))
    assert (image.tobytes(), dict(image.info), image.mode) == before


@pytest.mark.parametrize(
    ("image", "changes", "sentence"),
    [
        (Image.new("F", (2, 2)), {}, "mode F"),
        (Image.new("I", (2, 2)), {}, "mode I"),
        (
            Image.new("RGB", (1, 90000)),
            {"resize": 256, "crop": 224},
            "1 x 90000 pixels: too narrow to resize its short side to 256",
        ),
        (Image.new("RGB", (0, 5)), {}, "0 x 5 pixels"),
        (Image.new("RGB", (3, 2)), {"interpolation": "none"}, "3 x 2 pixels, expected 2 x 2"),
        (Image.new("RGB", (2, 2)), {"mean": (0.5,) * 4, "std": (1.0,) * 4}, "has 3 channels, and the model takes 4"),
    ],
)
def test_images_that_cannot_be_fitted_are_refused(image, changes, sentence):
    with pytest.raises(DataError, match=sentence):
        preprocess(image, Preprocess(**({"resize": 2, "crop": 2} | changes)))


def test_no_interpolation_takes_the_exact_size_as_it_is():
    prep = Preprocess(resize=2, crop=2, interpolation="none", mean=(0.0,), std=(1.0,))
    result = preprocess(gray([[0, 51], [102, 255]]), prep)
    assert torch.allclose(result, torch.tensor([[[0.0, 0.2], [0.4, 1.0]]]))


def test_bilinear_and_bicubic_and_nearest_differ():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9), dtype=np.uint8))
    kinds = [
        np.asarray(fit(image, Preprocess(resize=5, crop=5, interpolation=kind)))
        for kind in ("bicubic", "bilinear", "nearest")
    ]
    assert not any((a == b).all() for a, b in [(kinds[0], kinds[1]), (kinds[1], kinds[2]), (kinds[0], kinds[2])])


def test_the_public_function_takes_pillow_s_images_alone() -> None:
    model = stm.load("vim-digits", device="cpu")
    picture = Image.effect_noise((40, 30), 60)
    one = stm.preprocess(picture, model)
    assert torch.equal(one[0], preprocess(picture, model.config.preprocessing)) and one.shape == (1, 1, 28, 28)
    both = model.preprocess([picture, picture])
    assert torch.equal(both, torch.cat([one, one])) and torch.equal(stm.preprocess(picture, model.config), one)
    assert stm.preprocess(picture).shape == (1, 3, 224, 224), "without a model, as the official ones"
    assert stm.preprocess([], model).shape == (0, 1, 28, 28)
    for wrong in ("photo.jpg", [picture, "photo.jpg"], one):
        with pytest.raises(UsageError, match=r"is of type \w+, expected a Pillow image\nHint: PIL.Image.open"):
            stm.preprocess(wrong, model)


def test_without_pillow_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(StmError, match="pictures need Pillow, which is not installed\nHint: pip install pillow"):
        stm.preprocess("photo.jpg")
