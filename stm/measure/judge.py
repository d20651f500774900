"""How far some models move the logits of the dense one, or its features: what chooses among them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from stm.config import Measured
from stm.data.sets import SampleSet, iterate
from stm.errors import DataError, UsageError
from stm.measure.environment import environment_of
from stm.measure.evaluate import evaluating, forward
from stm.measure.records import kl_divergence
from stm.measure.stats import DENSE_FIGURES, LABEL_FIGURES, PAIRED_FIGURES
from stm.model.vim import ViM
from stm.progress import Meter, OnProgress
from stm.reports import EvalReport
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


def features_report(
    named: str,
    model: ViM,
    dense: ViM | None,
    samples: SampleSet,
    seed: int = 0,
    records: str | Path | None = None,
    on_progress: OnProgress | None = None,
) -> EvalReport:
    """Return `feature_change` as the evaluation of a backbone.

    Raises:
        UsageError: records are asked for, which have a line per image for logits; or there is no dense model, or it is
            of another shape.
        DataError: no image can be read.
    """
    if records is not None:
        raise UsageError(f"records has a line per image for logits, and {named} is a backbone", "leave it out")
    if dense is None or dense.config.num_classes or dense.config.model != model.config.model:
        raise UsageError(
            f"{named} is a backbone: measured is how far its features are from those of a dense backbone of its shape",
            "give that one: reference=DENSE",
        )
    measured = feature_change(dense, model, samples, seed, on_progress)
    reasons = measured.reasons | {"images_per_second": "only the features were compared"}
    return EvalReport(
        command="eval",
        model=named,
        environment=environment_of(model),
        **samples.of_set,
        **vars(measured) | {"reasons": reasons},
    )


def _relative_change(expected: Tensor, features: Tensor) -> Tensor:
    """Return the squared change of features (B, D, H', W') as a share of their own square, (B,), float64."""
    expected, features = expected.double().flatten(1), features.double().flatten(1)
    return (features - expected).square().sum(1) / expected.square().sum(1)
