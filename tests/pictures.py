"""Small images, folders of them, and the config of a model that takes them."""

from dataclasses import replace

import numpy as np
from PIL import Image

from stm.config import Config, ModelConfig, Preprocess, Source, dense_schedule
from stm.data.open import open_samples

PREP = Preprocess(resize=6, crop=4)


def make_config(classes=10, label_names=None, channels=3, **source):
    model = ModelConfig(image_size=4, patch=2, stride=2, d_model=8, depth=2, dt_rank=1, in_chans=channels)
    return Config(
        model=model,
        num_classes=classes,
        schedule=dense_schedule(model),
        preprocessing=PREP if channels == 3 else replace(PREP, mean=(0.0,) * channels, std=(1.0,) * channels),
        label_names=label_names,
        source=Source(**source),
    )


def picture(path, seed=0, size=(9, 7)):
    """A small image at `path`, whose folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def labelled(folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(rows):
        picture(folder / row.rsplit(",", 1)[0].strip('"'), number)
    (folder / "labels.csv").write_text("\n".join(["filename,label", *rows]) + "\n", encoding="utf-8")
    return folder


def labels_of(samples):
    return {sample.file: sample.label for sample in samples.samples}


def opened(spec, classes=10, label_names=None, **options):
    return open_samples(spec, config=make_config(classes, label_names), **options)
