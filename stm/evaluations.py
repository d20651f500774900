"""One evaluation of a model on a set: its figures, which images it left out, and both in words for people.

Reports, cards and pages hold evaluations and draw them from here, so that no two of them name or round a figure
differently. The rules of stm/reports.py hold: field names are JSON keys, and shares are fractions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from stm.config import Measured
from stm.errors import listed
from stm.units import interval, percent

CLASSIFIER = "a classifier is compared by its logits"  # why it has no `feature_change`


@dataclass(frozen=True, kw_only=True)
class Evaluation(Measured):
    """One evaluation, with the values that a folder does not record.

    Speed depends on the machine, and a folder's bytes must not.

    Args:
        images_per_second: of the model's forward alone; None if nothing was timed.
        broken: why the first few images could not be read, one sentence each.
    """

    images_per_second: float | None = None
    broken: tuple[str, ...] = ()

    def recorded(self) -> Measured:
        """Return the part that a folder records."""
        # Field by field, since `vars` would also hand over the fields that a folder must not have.
        return Measured(**{field.name: getattr(self, field.name) for field in fields(Measured)})


class Figure(NamedTuple):
    """One figure that an evaluation measured.

    Args:
        name: the field of `Measured` that holds the value.
        ci: the 95% interval of the value, if it has one.
    """

    name: str
    value: float
    ci: tuple[float, float] | None = None

    def text(self, digits: int = 2) -> str:
        """Return the value in its unit: a drop in points, KL in nats, a share in percent with `digits` digits, or p."""
        match self.name:
            case "drop":
                return f"{100 * self.value:.2f}"
            case "mcnemar_p":
                return f"{self.value:.3g}"
            case "kl":
                return f"{self.value:.4f}"
            case _:
                return percent(self.value, digits)

    def interval(self) -> str:
        """Return the interval in the unit of `text`, or nothing."""
        if self.ci is None:
            return ""
        return interval(self.ci, 2) if self.name == "drop" else " to ".join(percent(end, 2) for end in self.ci)


def figures(measured: Measured, dense_ci: tuple[float, float] | None = None) -> tuple[Figure, ...]:
    """Return the figures of an evaluation that were measured, in the order in which every screen and page has them.

    Args:
        dense_ci: the interval of the dense model's top-1, which `Measured` does not hold.
    """
    # Each list of figures for people is made of this one, so that no screen, card or page lacks a figure of another.
    every = (
        ("dense_top1", dense_ci),
        ("top1", measured.top1_ci),
        ("top5", measured.top5_ci),
        ("drop", measured.drop_ci),
        ("mcnemar_p", None),
        ("agreement", None),
        ("kl", None),
        ("feature_change", None),
    )
    values = ((name, getattr(measured, name), ci) for name, ci in every)
    return tuple(Figure(name, value, ci) for name, value, ci in values if value is not None)


def figure_rows(
    measured: Measured, labels: Mapping[str, str], dense_ci: tuple[float, float] | None = None
) -> list[tuple[str, str, str]]:
    """Return the rows of a table of figures: label, value and interval.

    Args:
        labels: by the name of the figure.
        dense_ci: see `figures`.
    """
    return [(labels[figure.name], figure.text(), figure.interval()) for figure in figures(measured, dense_ci)]


def rounding_text(rounding: Measured) -> str:
    """Return what int8 changes, in words: the outputs beside those of the same model in float32.

    Args:
        rounding: of the int8 model, with the model in float32 as its reference.
    """
    if rounding.agreement is None or rounding.kl is None:
        return "not compared with float32"
    where = f"{rounding.n:,} images of {rounding.data}"
    return f"{percent(rounding.agreement, 1)} of {where} keep the top-1 of float32, KL {rounding.kl:.2g} nats"


# Kept apart from `Evaluation`: a comparison has one set and many evaluations, and names the files of its set once.
@dataclass(frozen=True, kw_only=True)
class OfSet:
    """What an opened sample set leaves out.

    Args:
        skipped, skipped_files: files that were not taken for images: how many, and the names of the first few.
        fitted_on: images that decided the model's schedule, and so are in no number.
        sorted_names: the classes by index, if the model has no names and their sorted order decided the indices.
        own_names: the classes by index, if the model has no names and the set's metadata name them.
        unlabelled: images that alone have no label, and so are in no number.
    """

    skipped: int = 0
    skipped_files: tuple[str, ...] = ()
    fitted_on: int = 0
    sorted_names: tuple[str, ...] = ()
    own_names: tuple[str, ...] = ()
    unlabelled: int = 0

    @property
    def skipped_notes(self) -> tuple[str, ...]:
        """Return a sentence each about what was left out, and about classes that only the set names."""
        notes = list(skipped_notes(self.skipped, self.skipped_files))
        if self.unlabelled:
            notes.append(f"{self.unlabelled:,} more images have no label, and are in no number")
        if self.fitted_on:
            notes.append(f"{self.fitted_on:,} more images decided the schedule, and are in no number")
        for names, where in ((self.sorted_names, "taken in sorted order"), (self.own_names, "taken")):
            if names:
                named = listed(f"{index} {name}" for index, name in enumerate(names))
                notes.append(f"the model names no classes, so those of the set were {where}: {named}")
        return tuple(notes)


def skipped_notes(count: int, files: Sequence[str]) -> tuple[str, ...]:
    """Return one sentence about `count` files that were not taken for images, or none if `count` is 0."""
    if not count:
        return ()
    taken = "files were not taken for images" if count > 1 else "file was not taken for an image"
    return (f"{count:,} {taken}: {listed(files, count)}",)


@dataclass(frozen=True, kw_only=True)
class Assessment(OfSet, Evaluation):
    """The evaluation of one model on one set."""

    @property
    def reported(self) -> dict[str, Any]:
        """Return the fields of a report on a classifier, which says why it has no `feature_change`."""
        return vars(self) | {"reasons": self.reasons | {"feature_change": CLASSIFIER}}
