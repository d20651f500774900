"""Sample sets: images with or without labels, and the batches that are made of them."""

import hashlib
import json
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stm.config import Preprocess
from stm.data.decode import decode_all
from stm.data.images import ImageFile, ParquetImage, Sample, TarImage
from stm.data.patterns import as_channels
from stm.data.preprocess import normalise
from stm.distributed import ALONE, World
from stm.errors import NAMES_SHOWN, UsageError

FEWEST_FOR_WORKERS = 64  # so many images are decoded sooner by this process than other processes would start


@dataclass(frozen=True)
class SampleSet:
    """Images in a fixed order.

    Args:
        name: the name of the set in reports; never a path, because reports must not differ between machines.
        samples: at least one.
        skipped: the names of the set's files that were not taken for images.
        fitted_on: how many images were left out because they decided the schedule of the model.
        sorted_names: the model's classes by index, if the sorted names of the set's classes decided the indices.
        own_names: the same, if the set's metadata name them and the model has no names.
        unlabelled: how many images were left out because they alone have no label.
    """

    name: str
    samples: tuple[Sample, ...]
    skipped: tuple[str, ...] = ()
    fitted_on: int = 0
    sorted_names: tuple[str, ...] = ()
    own_names: tuple[str, ...] = ()
    unlabelled: int = 0

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def labelled(self) -> bool:
        """Return whether every image has a label."""
        return all(sample.label is not None for sample in self.samples)

    @property
    def of_set(self) -> dict[str, Any]:
        """Return the part of a report that is about the set: the fields of `stm.evaluations.OfSet`."""
        skipped = {"skipped": len(self.skipped), "skipped_files": self.skipped[:NAMES_SHOWN]}
        names = {"sorted_names": self.sorted_names, "own_names": self.own_names}
        return skipped | {"fitted_on": self.fitted_on, "unlabelled": self.unlabelled} | names

    @cached_property
    def fingerprint(self) -> str:
        """Return the SHA-256 over all names, labels and sizes in bytes; images in memory count by their bytes."""
        # Sizes, not contents: every run checks the set before it starts, and ImageNet's images take minutes to read.
        digest = hashlib.sha256()
        for sample in self.samples:
            mark = _mark(sample.source) if isinstance(sample.source, Tensor) else sample.source.fingerprint()
            digest.update(json.dumps([sample.file, sample.label, mark]).encode())
        return digest.hexdigest()

    def take(self, limit: int | None, seed: int = 0) -> "SampleSet":
        """Return a random subset of `limit` images in the set's order, or all of them for None.

        The same seed gives the same subset, and a larger limit gives a larger set that holds it.

        Raises:
            UsageError: a limit below 1.
        """
        if limit is None or limit >= len(self):
            return self
        if limit < 1:
            raise UsageError(f"limit is {limit}, expected at least 1 image")
        return replace(self, samples=tuple(self.samples[index] for index in sorted(self._drawn(seed)[:limit])))

    def shuffled(self, seed: int = 0) -> "SampleSet":
        """Return the set in random order: its first n images are those that `take(n, seed)` draws."""
        return replace(self, samples=tuple(self.samples[index] for index in self._drawn(seed)))

    def _drawn(self, seed: int) -> list[int]:
        # Of the methods of Python's generator only `random` gives the same numbers in every version: `shuffle` and
        # `sample` may change. Sorting by random ranks makes every smaller draw a part of a larger one.
        generator = random.Random(seed)
        ranks = [generator.random() for _ in self.samples]
        return sorted(range(len(self)), key=ranks.__getitem__)


def evenly(count: int, last: float) -> list[float]:
    """Return `count` positions from 0 to `last` at equal distances; 0 alone for a count of 1."""
    return [number * last / max(count - 1, 1) for number in range(count)]


def from_files(paths: Iterable[str | Path]) -> SampleSet:
    """Return a set of single images, without labels, in the order given."""
    return SampleSet("images", tuple(Sample(str(path), None, ImageFile(Path(path))) for path in paths))


def _mark(image: Tensor) -> str:
    return hashlib.sha256(image.cpu().contiguous().numpy().tobytes()).hexdigest()


class Batch(NamedTuple):
    """Consecutive images of a sample set.

    Args:
        indices: the positions in the set of the images that could be read: B of them.
        images: (B, C, H, W) float32.
        errors: by position, a sentence for each image that could not be read; it names the image.
    """

    indices: tuple[int, ...]
    images: Tensor
    errors: dict[int, str]


def workers_for(samples: SampleSet, world: World = ALONE) -> int:
    """Return how many processes decode a set best on this machine: up to 4 for many files, 0 for few or in memory.

    Args:
        world: the processes of the run; those on this machine share its processors.
    """
    if len(samples) <= FEWEST_FOR_WORKERS or not isinstance(
        samples.samples[0].source, ImageFile | ParquetImage | TarImage
    ):
        return 0
    # The processors that this process may use: a container or a batch system may grant fewer than the machine has.
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(4, max(1, processors // world.local_size))


def batches_of(images: int, batch_size: int) -> int:
    """Return the number of batches that hold so many images."""
    return -(-images // batch_size)


def iterate(
    samples: SampleSet, prep: Preprocess, *, batch_size: int, workers: int = 0, start: int = 0, world: World = ALONE
) -> Iterator[Batch]:
    """Yield the set in batches of `batch_size`, in order; the last may be smaller. `workers` does not change them.

    Args:
        workers: processes that decode; 0 decodes in this one. Each is started afresh (`spawn`), so a script that asks
            for some needs its `if __name__ == "__main__":`.
        start: the position of the first image.
        world: the processes that share the batches; this one gets its own share.

    Raises:
        UsageError: a batch size below 1 or workers below 0.
        DataError: a worker died.
    """
    # Checked here and not in the generator below, which would raise only when its first batch is asked for.
    if batch_size < 1:
        raise UsageError(f"batch size is {batch_size}, expected at least 1")
    if workers < 0:
        raise UsageError(f"workers is {workers}, expected 0 or more")
    return _batches(samples, prep, world.shard(range(start, len(samples), batch_size)), batch_size, workers)


def _batches(
    samples: SampleSet, prep: Preprocess, starts: Sequence[int], batch_size: int, workers: int
) -> Iterator[Batch]:
    # Cut at fixed positions, whatever can be read: a resumed run then makes the same batches.
    chunks = [samples.samples[first : first + batch_size] for first in starts]
    if chunks and isinstance(chunks[0][0].source, Tensor):  # a set holds tensors only, or none
        for first, chunk in zip(starts, chunks, strict=True):
            ready = torch.stack([sample.source for sample in chunk if isinstance(sample.source, Tensor)])
            images = as_channels(ready, prep) if ready.dtype == torch.uint8 else ready
            yield Batch(tuple(range(first, first + len(chunk))), images, {})
        return
    for first, results in zip(starts, decode_all(chunks, prep, workers), strict=True):
        pixels = {index: result for index, result in enumerate(results, first) if isinstance(result, bytes)}
        errors = {index: result for index, result in enumerate(results, first) if isinstance(result, str)}
        yield Batch(tuple(pixels), normalise(list(pixels.values()), prep), errors)
