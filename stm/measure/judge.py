"""How far some models move the logits of the dense one, or its features: what chooses among them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stm.config import Measured
from stm.data.sets import SampleSet, iterate
from stm.errors import DataError
from stm.measure.evaluate import evaluating, forward
from stm.measure.records import kl_divergence
from stm.measure.stats import DENSE_FIGURES, LABEL_FIGURES, PAIRED_FIGURES
from stm.model.vim import ViM
from stm.progress import Meter, OnProgress
from stm.verdicts import BACKBONE

_AT_ONCE = 16  # images that are decoded before the models run


def divergences(dense: ViM, models: Sequence[ViM], samples: SampleSet, on_progress: OnProgress | None = None) -> Tensor:
    """Return KL(dense || model) in nats of each model on each image that can be read, (models, n), float64.

    Of a backbone it is the squared change of the features, as a share of their own square. Every image is decoded once,
    and all models see the same images.

    Raises:
        DataError: no image can be read.
    """
    backbone = not dense.config.num_classes
    answer, moved = (ViM.features, _relative_change) if backbone else (forward, kl_divergence)
    columns: list[Tensor] = []
    done, meter = 0, Meter(on_progress, "choose", len(samples), passes=1 + len(models))
    with torch.inference_mode(), evaluating(dense, *models):
        for batch in iterate(samples, dense.config.preprocessing, batch_size=_AT_ONCE):
            if batch.indices:
                images = batch.images.to(dense.cls_token.device)
                expected, divergences = answer(dense, images).cpu(), []
                for model in models:
                    meter.passed(len(images))
                    divergences.append(moved(expected, answer(model, images).cpu()))
                columns.append(torch.stack(divergences))
            done += len(batch.indices) + len(batch.errors)
            meter.finished(done)
    if not columns:
        raise DataError(f"{samples.name}: none of the {len(samples)} images could be read", "choose other images")
    return torch.cat(columns, dim=1)


def feature_change(
    dense: ViM, model: ViM, samples: SampleSet, seed: int = 0, on_progress: OnProgress | None = None
) -> Measured:
    """Return how far a backbone's features are from those of its dense model, as a share of the dense features.

    Let f and f' be `features(image)` of the dense and of the other model, with a vector for each patch: a merged patch
    has that of its token. The figure is the root of the mean over images of ||f' - f||^2 / ||f||^2. It is 0 if nothing
    changes, and 1 if the features change as much as they are large.

    Raises:
        DataError: no image can be read.
    """
    shares = divergences(dense, [model], samples, on_progress)
    return Measured(
        data=samples.name,
        n=shares.shape[1],
        failed=len(samples) - shares.shape[1],
        feature_change=float(shares.mean()) ** 0.5,
        seed=seed,
        reasons=dict.fromkeys((*LABEL_FIGURES, *DENSE_FIGURES, *PAIRED_FIGURES), BACKBONE),
    )


def _relative_change(expected: Tensor, features: Tensor) -> Tensor:
    """Return the squared change of features (B, D, H', W') as a share of their own square, (B,), float64."""
    expected, features = expected.double().flatten(1), features.double().flatten(1)
    return (features - expected).square().sum(1) / expected.square().sum(1)
