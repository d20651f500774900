"""`stm bench`: a dense model against a compressed one by the clock."""

import dataclasses
from collections.abc import Sequence

import torch

from stm.bake import bake
from stm.bench import bench as benching
from stm.bench import rivals, vit
from stm.bench.timing import threads as on_threads
from stm.commands.draw_model import draw_model
from stm.commands.rounding import in_floats, rounded
from stm.config import INT8
from stm.errors import UsageError, check_choice
from stm.findings import BenchReport
from stm.loading import open_model
from stm.measure.environment import environment_of
from stm.model.layers import TORCH_DTYPES
from stm.model.vim import ViM
from stm.options import MergeOptions, ModelOptions
from stm.progress import OnProgress, Progress


def bench(
    model: str,
    source: ModelOptions = ModelOptions(),
    merge: MergeOptions = MergeOptions(),
    *,
    batch_sizes: Sequence[int] = (1,),
    threads: int | None = None,
    rounds: int | None = None,
    against: Sequence[str] = (),
    optimize: bool = False,
    random_weights: bool = False,
    on_progress: OnProgress | None = None,
) -> BenchReport:
    """Run `stm bench`: time a dense model against a compressed one, in one process and in turns.

    Of a backbone, `features` is timed.

    Args:
        model, source: a MODEL, and how to open it; see `stm.load`. A compressed model is timed against its own dense
            model.
        merge: how to compress a dense model. If neither a method nor a schedule is named, random weights take the
            preset staged: a fit to them would mean nothing.
        batch_sizes: images per forward, one or several.
        threads: of torch on the processor; None: torch's choice.
        rounds: None: as many as fit into ten seconds per batch size.
        against: also times a DeiT of the same width in these runtimes: "vit" (PyTorch), "onnxruntime", "openvino".
        optimize: whether to time also what `ViM.optimize` makes of each model.
        random_weights: whether to time an alias's shape with fresh weights, which needs no download.

    Raises:
        UsageError: an impossible option, or merge options for a model that is compressed already.
        StmError: what reading raises.
    """
    benching.check(batch_sizes, rounds)  # before a fit, which may take a minute
    for runtime in against:
        check_choice("against", runtime, tuple(rivals.RUNTIMES))
    merge, notes = _for_random(merge) if random_weights else (merge, ())
    with on_threads(threads):
        floats = in_floats(source)
        vim = draw_model(model, floats) if random_weights else open_model(model, floats, on_progress)
        if against or optimize:
            vim.config.check_head()
        for runtime in against:
            rivals.check(runtime, vim.cls_token.device)
        dense, small = _pair(vim, merge, model, on_progress)
        if source.dtype == INT8:
            dense, small = rounded(dense), None if small is None else rounded(small)
        variants = benching.variants_of(dense, small, optimized=optimize)
        shape, device = dense.config.model, dense.cls_token.device
        for runtime in against:
            more, absent = _rivals(runtime, dense, on_progress)
            variants |= more
            notes += absent
        rows = benching.measure(
            variants,
            shape.input_shape,
            device,
            batch_sizes=batch_sizes,
            rounds=rounds,
            on_progress=on_progress,
        )
        environment = environment_of(dense)  # within the block, so that it records the threads that were timed
    first = {row.variant: row for row in rows if row.batch_size == batch_sizes[0]}
    ours, theirs = first.get(benching.COMPRESSED), first[benching.DENSE]
    assert theirs.gemm_ms is not None  # the dense model is a plain ViM, whose products are always timed
    return BenchReport(
        command="bench",
        model=model,
        environment=environment,
        random_weights=random_weights,
        image_size=shape.image_size,
        tokens_per_block=(small or dense).schedule.tokens_per_block(shape.depth),
        rows=rows,
        # The honest count: the clock sees both scan directions, and the paper's count has one.
        flops_gain=None if ours is None else theirs.flops.honest / ours.flops.honest,
        wall_clock_gain=None if ours is None else ours.gain,
        gemm_ms=theirs.gemm_ms,
        runtimes={rivals.RUNTIMES[runtime]: rivals.version(runtime) for runtime in against},
        notes=(*vim.config.extra_texts("notes"), *notes),
        reasons=_reasons(ours is None, any(row.peak_bytes is None for row in rows)),
    )


def _rivals(
    runtime: str, dense: ViM, on_progress: OnProgress | None
) -> tuple[dict[str, benching.Variant], tuple[str, ...]]:
    """Return the DeiT of the same width in each precision of a runtime, by name, and what that runtime lacks here."""
    shape, config = dense.config.model, dense.config
    called = f"{vit.name_of(shape)}, {rivals.RUNTIMES[runtime]}"
    if on_progress is not None:
        on_progress(Progress(called, 0, 1, "models"))
    model = vit.ViT(shape, config.num_classes)
    if runtime == "vit":
        # On the same device and in the same dtype, so that the architecture alone differs; torch has no int8 ViT.
        model = model.to(dense.cls_token.device, TORCH_DTYPES.get(config.dtype, torch.float32))
    forms, absent = rivals.rivals(runtime, model, shape.input_shape)
    flops = vit.flops(shape, config.num_classes)
    return {
        f"{called} {form.precision}": benching.Variant(form.prepare, flops, in_torch=runtime == "vit") for form in forms
    }, absent


def _for_random(merge: MergeOptions) -> tuple[MergeOptions, tuple[str, ...]]:
    """Return what to merge of random weights, and the note that says so."""
    if merge.method is not None or merge.schedule is not None:
        return merge, ()
    return dataclasses.replace(merge, method="staged"), (
        "there is nothing to fit in random weights: the preset staged is timed, --method or --schedule names another",
    )


def _pair(vim: ViM, merge: MergeOptions, model: str, on_progress: OnProgress | None) -> tuple[ViM, ViM | None]:
    """Return the dense model, and the compressed one if anything is merged."""
    if vim.plan is not None:
        if merge != MergeOptions():
            raise UsageError(f"{model} is already compressed", "leave out what says how to, or name its dense source")
        return vim.with_plan(None), vim
    # A budget that is too small for a single merge leaves one model: the dense one would be timed against itself.
    small = bake(vim, merge, on_progress=on_progress)
    return vim, small if small.plan is not None else None


def _reasons(no_small: bool, no_peak: bool) -> dict[str, str]:
    """Return why each value of the report that is null is null."""
    reasons = dict.fromkeys(("flops_gain", "wall_clock_gain"), "nothing is merged") if no_small else {}
    return reasons | (
        {"peak_bytes": "torch does not count what this device, or another runtime, holds"} if no_peak else {}
    )
