"""`stm export`: a model in another format."""

from pathlib import Path
from typing import Any

from stm.artifact import atomic
from stm.artifact import folder as artifact
from stm.checkpoint import write as checkpoint_write
from stm.checkpoint.official import to_official
from stm.checkpoint.preprocess import usual_ratio
from stm.config import INT8, INTERPOLATIONS, Config, Preprocess, sides
from stm.errors import check_choice
from stm.loading import open_model
from stm.measure.environment import environment_of
from stm.model_names import name_of
from stm.options import ModelOptions
from stm.progress import OnProgress
from stm.reports import ExportReport
from stm.saving import save

FORMATS = ("official", "folder")


def export(
    model: str,
    source: ModelOptions = ModelOptions(),
    *,
    format: str = "official",
    out: str | Path | None = None,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> ExportReport:
    """Run `stm export`: write the dense model in another layout.

    Args:
        model, source: a MODEL, and how to open it; see `stm.load`.
        format: "official", a .pth that hustvl/Vim loads, or "folder", a dense folder of ours, which `stm push` takes.
        out: the file or folder, named after the model by default.
        force: replace a file or a folder of ours that is there.

    Raises:
        UsageError: another format, or the output exists or cannot be written.
    """
    check_choice("format", format, FORMATS)
    official = format == "official"
    output = Path(out) if out is not None else Path(name_of(model) + (".pth" if official else ""))
    # Before the model is opened, which may mean a download.
    if official:
        atomic.check_file(output, force=force)
    else:
        artifact.check_output(output, force=force)
    vim = open_model(model, source, on_progress)
    # Both formats hold the dense model: the official layout has no place for a plan.
    dense = vim.with_plan(None)
    notes: tuple[str, ...] = (
        () if vim.plan is None else (f"{output} holds the dense model: the merge plan is not part of it",)
    )
    if official and dense.config.dtype == INT8:
        dense = dense.cast("float32")
        notes += (f"{output} holds the floats that the int8 weights stand for: its layout has no place for int8",)
    tensors = dense.state_dict()
    if official:
        tensors = to_official(tensors)
        checkpoint_write.write(output, tensors, force=force)
    else:
        save(dense, output, force=force)
    return ExportReport(
        command="export",
        model=model,
        environment=environment_of(vim),
        output=str(output),
        format=format,
        source=vim.config.source,
        tensors=len(tensors),
        bytes=(output if official else output / artifact.WEIGHTS).stat().st_size,
        notes=notes,
        reading=_reading(vim.config) if official else {},
    )


def _reading(config: Config) -> dict[str, Any]:
    """Return the options that read the official file as the model that it was written from.

    The file itself holds tensors alone.
    """
    shape, prep = config.model, config.preprocessing
    options: dict[str, Any] = {
        "image_size": shape.image_size,
    }
    if not config.num_classes:
        options["backbone"] = True
    if not shape.class_tokens:
        options["divide_out"] = shape.divide_out
    if shape.class_tokens == 1:  # the tensors of several tell the rest
        options |= {"class_token": shape.class_token, "divide_out": shape.divide_out}
    # Only what differs from the preprocessing that a reader assumes: the printed command stays short.
    usual = Preprocess.official(shape.image_size, usual_ratio(shape))
    options |= {
        name: list(getattr(prep, name)) for name in ("mean", "std") if getattr(prep, name) != getattr(usual, name)
    }
    if prep.interpolation != usual.interpolation and prep.interpolation in INTERPOLATIONS:
        options["interpolation"] = prep.interpolation
    if prep.resize != usual.resize:
        crop, resize = sides(prep.crop)[0], sides(prep.resize)[0]
        # Take the ratio with the fewest digits that gives this side. A reader computes int(crop / ratio), which rounds
        # down, so the search aims half a pixel above the side. Some sides have no such ratio.
        ratios = (round(crop / (resize + 0.5), digits) for digits in range(1, 16))
        options |= next(
            ({"crop_ratio": ratio} for ratio in ratios if 0 < ratio <= 1 and int(crop / ratio) == resize), {}
        )
    return options
