"""`stm export`: a model in another format."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stm.artifact import atomic
from stm.artifact import folder as artifact
from stm.checkpoint import write as checkpoint_write
from stm.checkpoint.official import to_official
from stm.checkpoint.preprocess import usual_ratio
from stm.config import INT8, INTERPOLATIONS, Config, Preprocess, sides
from stm.errors import UsageError, check_choice
from stm.export import formats
from stm.export.program import Interface
from stm.loading import open_model
from stm.measure.environment import environment_of
from stm.model.vim import ViM, checked_indices
from stm.model_names import name_of
from stm.options import ModelOptions
from stm.progress import OnProgress
from stm.reports import ExportReport
from stm.saving import save

FORMATS = ("official", "folder", *formats.FORMATS)


def export(
    model: str,
    source: ModelOptions = ModelOptions(),
    *,
    format: str = "official",
    batch_size: int | None = None,
    dynamic_batch: bool = False,
    with_preprocessing: bool = False,
    features: bool = False,
    out_indices: Sequence[int] | None = None,
    out: str | Path | None = None,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> ExportReport:
    """Run `stm export`: write a model for another runtime, or the dense model in another layout.

    Args:
        model, source: a MODEL, and how to open it; see `stm.load`.
        format: "official", a .pth that hustvl/Vim loads; "folder", a dense folder of ours, which `stm push` takes; or
            the model as it is, merges included, for another runtime: one of `stm.export.formats.FORMATS`.
        batch_size: the only batch size that the export takes; by default it takes any.
        dynamic_batch: take batches of any size, said aloud.
        with_preprocessing: take uint8 images (B, H, W, C) of the model's size, and give probabilities.
        features: give the features of every patch (B, D, H', W') instead of logits: `ViM.features`, in a file of its
            own. A backbone, which has no logits, always does.
        out_indices: with features, the blocks whose features are given, as `ViM.features` has them: one output each,
            named after the block.
        out: the file or folder, named after the model by default.
        force: replace a file or a folder of ours that is there.

    Raises:
        UsageError: another format, options that it does not take, or the output exists or cannot be written.
        CheckError: the export, run in its runtime, differs from the model. No file is left.
    """
    check_choice("format", format, FORMATS)
    if batch_size is not None and dynamic_batch:
        raise UsageError("--batch-size and --dynamic-batch exclude each other", "leave one out")
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"the batch size is {batch_size}, expected at least 1")
    if format in formats.FORMATS:
        levels = None if out_indices is None else tuple(out_indices)
        interface = Interface(with_preprocessing, batch_size, features, levels)
        return _for_runtime(model, source, format, interface, out, force, on_progress)
    if batch_size is not None or dynamic_batch or with_preprocessing or features or out_indices is not None:
        raise UsageError(
            "--batch-size, --dynamic-batch, --with-preprocessing, --features and --out-indices are not of"
            f" --format {format}",
            f"leave them out, or choose one of {', '.join(formats.FORMATS)}",
        )
    official = format == "official"
    # A dense folder of ours has the name of the model itself.
    output = Path(out) if out is not None else Path(name_of(model) + (suffix(format) if official else ""))
    check(format, output, force=force)  # before the model is opened, which may mean a download
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


def suffix(format: str) -> str:
    """Return what stands behind the name of a model in the name of its export beside it."""
    dense = {"official": ".pth", "folder": "-dense"}
    return dense[format] if format in dense else formats.FORMATS[format].suffix


def check(format: str, output: Path, *, force: bool) -> None:
    """Refuse an export that cannot be written, before any work is done.

    Raises:
        UsageError: packages or programs are missing, or the output may not be written.
    """
    if format in formats.FORMATS:
        formats.check_installed(format)
        formats.check_output(format, output, force=force)
    elif format == "official":
        atomic.check_file(output, force=force)
    else:
        artifact.check_output(output, force=force)


def _for_runtime(
    model: str,
    source: ModelOptions,
    format: str,
    interface: Interface,
    out: str | Path | None,
    force: bool,
    on_progress: OnProgress | None,
) -> ExportReport:
    """Write a model for another runtime, and run it there."""
    kind = formats.FORMATS[format]
    name = name_of(model) + ("-features" if interface.features else "") + suffix(format)
    output = Path(out) if out is not None else Path(name)
    check(format, output, force=force)
    # Traced and held to the runtime on a processor, wherever the machine's models run.
    vim = open_model(model, replace(source, device="cpu"), on_progress)
    interface = _of_model(interface, vim.config)
    vim, notes = _of_floats(vim, output)
    formats.check_dtype(format, vim.config.dtype)
    formats.check_size(format, vim)
    checked = formats.write(format, vim, interface, output, force=force, on_progress=on_progress)
    shape = ", ".join(map(str, (interface.batch_size or "batch", *interface.shape(vim.config))))
    return ExportReport(
        command="export",
        model=model,
        environment=environment_of(vim),
        output=str(output),
        format=format,
        source=vim.config.source,
        tensors=len(vim.state_dict()),
        bytes=formats.size(format, output),
        notes=notes,
        input=f"{str(interface.dtype()).removeprefix('torch.')} ({shape})",
        result=", ".join(interface.outputs),
        opset=kind.opset,
        check=checked,
    )


def _of_model(interface: Interface, config: Config) -> Interface:
    """Return an interface as a model has it: a backbone gives features, and blocks are numbered from 0 on.

    Raises:
        UsageError: out_indices without features, with a number that is no block, or with a block twice.
    """
    interface = interface._replace(features=interface.features or not config.num_classes)
    if interface.out_indices is None:
        return interface
    if not interface.features:
        raise UsageError("--out-indices was given without --features", "add --features, or leave it out")
    blocks = checked_indices(interface.out_indices, config.model.depth)
    if twice := [block for number, block in enumerate(blocks) if block in blocks[:number]]:
        raise UsageError(f"out_indices has block {twice[0]} twice, expected each block once", "leave one out")
    return interface._replace(out_indices=blocks)


def _of_floats(vim: ViM, output: Path) -> tuple[ViM, tuple[str, ...]]:
    """Return a model with floats for int8, and what to say of it."""
    if vim.config.dtype != INT8:
        return vim, ()
    return vim.cast("float32"), (
        f"{output} holds the floats that the int8 weights stand for: other runtimes have int8 in forms of their own",
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
