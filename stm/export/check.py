"""The check that can fail: every export is run in its runtime, in a fresh process, against the model that it is of."""

import importlib.metadata
import math
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stm.artifact import atomic
from stm.artifact.scratch import HINT, scratch
from stm.bench.timing import interleave
from stm.data.formats import open_image
from stm.data.images import pixels
from stm.data.open import PHOTOGRAPHS
from stm.errors import ArtifactError, StmError
from stm.export import child, runners
from stm.export.program import Interface, features
from stm.model.vim import ViM
from stm.reports import ExportCheck

# Of the largest difference of an output to the largest output, by the dtype of the weights. Half precisions round at
# other places in another runtime, so a difference is some of the dtype's rounding units. The largest that was measured
# is 2.6 of them (vim-digits in float16; ViM-Ti 1.1; vim-digits in bfloat16 2.4), and 16 are allowed.
_UNITS = 16
TOLERANCE = {"float32": 1e-4, "bfloat16": _UNITS * 2**-8, "float16": _UNITS * 2**-11}
BATCHES = (1, 4)


class CheckError(StmError):
    """The file does not say what its model says."""


class Inputs(NamedTuple):
    """The images of a check.

    Args:
        pixels: (n, H, W, C) uint8: photographs, then noise.
        batches: of the input of the program, by name; each is images first to first + size.
        of: per batch, the numbers of its images.
    """

    pixels: Tensor
    batches: dict[str, Tensor]
    of: dict[str, list[int]]


def inputs(model: ViM, interface: Interface) -> Inputs:
    """Return the images of a check: the package's photographs and uniform noise, in batches of 1 and 4."""
    prep = model.config.preprocessing
    shape = Interface(preprocessing=True).shape(model.config)
    images = []
    for path in sorted(PHOTOGRAPHS.glob("*.jpg")):
        with open_image(path) as image:
            images.append(torch.frombuffer(bytearray(pixels(image, prep, repeat=True)), dtype=torch.uint8).view(shape))
    g = torch.Generator().manual_seed(0)
    images += [torch.randint(256, shape, generator=g, dtype=torch.uint8) for _ in range(len(images) + 2)]
    every = torch.stack(images)
    batches, of = {}, {}
    for size in (interface.batch_size,) if interface.batch_size else BATCHES:
        for first in range(0, len(every), size):
            name = f"{size} from {first}"
            of[name] = [number % len(every) for number in range(first, first + size)]
            taken = every[of[name]]
            batches[name] = taken if interface.preprocessing else normalised(taken, model)
    return Inputs(every, batches, of)


def normalised(images: Tensor, model: ViM) -> Tensor:
    """Return (B, C, H, W) float32 of pixels (B, H, W, C), as every command makes it."""
    from stm.data.preprocess import normalise

    return normalise([image.numpy().tobytes() for image in images], model.config.preprocessing)


def expected(model: ViM, interface: Interface, images: Tensor) -> tuple[Tensor, ...]:
    """Return the outputs of an interface for pixels (n, H, W, C), by our own runtime."""
    with torch.inference_mode():
        x = normalised(images, model).to(model.cls_token.device)
        if interface.features:
            return tuple(level.float().cpu() for level in features(model, interface, x))
        out = model(x)
        return ((out.softmax(-1) if interface.preprocessing else out).cpu(),)


def check(file: Path, runtime: str, model: ViM, interface: Interface) -> ExportCheck:
    """Run a file in its runtime and return how near it comes to the model.

    Args:
        file: that the runtime opens.
        runtime: one of `stm.export.runners.RUNTIMES`.
        model: the model that was exported, on a processor.
        interface: what the file takes and gives.

    Raises:
        CheckError: the runtime cannot run the file, or says something else than the model.
        ArtifactError: the folder for temporary files is full.
    """
    threads = torch.get_num_threads()
    made = inputs(model, interface)
    with scratch("stm-export") as folder:
        given, got = folder / "inputs.npz", folder / "outputs.npz"
        arrays: dict[str, Any] = {name: batch.numpy() for name, batch in made.batches.items()}
        with atomic.refusing(given, HINT, ArtifactError), given.open("wb") as stream:
            np.savez(stream, **arrays)
        run = child.run(
            runners.__file__, runtime, str(file.resolve()), str(given), str(got), str(threads), folder=folder
        )
        if run.returncode:
            last = (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
            if run.returncode == runners.UNWRITTEN:
                raise ArtifactError(f"{got} cannot be written: {last}", HINT)
            raise CheckError(f"{runtime} cannot run the export: {last}", "nothing was written; please report it")
        with np.load(got) as outputs:
            results = {
                name: [
                    torch.from_numpy(outputs[f"{name} {number}"]).float() for number in range(len(interface.outputs))
                ]
                for name in made.batches
            }
            seconds = [float(value) for value in outputs["seconds"]]
    truth = expected(model, interface, made.pixels)
    differences = {
        output: max(relative(results[name][number], truth[number][made.of[name]]) for name in made.batches)
        for number, output in enumerate(interface.outputs)
    }
    # NaN is more than any number.
    worst = max(differences, key=lambda output: (math.isnan(differences[output]), differences[output]))
    difference = differences[worst]
    agreement = None
    if not interface.features:
        same = torch.cat([results[name][0].argmax(-1) == truth[0][made.of[name]].argmax(-1) for name in made.batches])
        agreement = float(same.float().mean())
    size = interface.batch_size or BATCHES[0]
    tolerance = TOLERANCE[model.config.dtype]
    if not difference <= tolerance:  # NaN is beyond every tolerance
        raise CheckError(
            f"the export differs from the model by {difference:.1e} of the largest output of {worst}, "
            f"expected at most {tolerance:.0e}",
            "nothing was written; please report it",
        )
    return ExportCheck(
        runtime=runtime,
        version=importlib.metadata.version(runtime),
        images=len(made.pixels),
        batch_sizes=(interface.batch_size,) if interface.batch_size else BATCHES,
        difference=difference,
        tolerance=tolerance,
        agreement=agreement,
        ms_per_image=statistics.median(seconds) * 1e3 / size,
        own_ms_per_image=own_ms(model, interface, made, size),
        threads=threads,
    )


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Return max |ours - theirs| / max |theirs|; infinity if the shapes differ."""
    if ours.shape != theirs.shape:
        return math.inf
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30))


def own_ms(model: ViM, interface: Interface, made: Inputs, size: int) -> float:
    """Return milliseconds per image of our own runtime, at the batch size at which the export was timed."""
    batch = normalised(made.pixels[made.of[next(iter(made.of))]], model)
    call: Callable[[Tensor], Any] = (
        partial(features, model, interface) if interface.features else model.optimize(batch_size=size)
    )
    with torch.inference_mode():
        seconds = interleave({"own": lambda: call(batch)}, seconds=runners.ENOUGH)["own"]
    return statistics.median(seconds) * 1e3 / size
