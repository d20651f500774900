"""Sample sets: images with or without labels, and the way from them to batches."""

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
from stm.data.preprocess import normalise
from stm.distributed import ALONE, World
from stm.errors import NAMES_SHOWN, UsageError

FEWEST_FOR_WORKERS = 64  # images that one process decodes sooner than others would start


@dataclass(frozen=True)
class SampleSet:
    """Images in a fixed order.

    Args:
        name: what reports call the set; never a path.
        samples: at least one.
        skipped: the files of the set that were not taken for images, by name.
    """

    name: str
    samples: tuple[Sample, ...]
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def labelled(self) -> bool:
        """Whether every image has a label."""
        return all(sample.label is not None for sample in self.samples)

    @property
    def of_set(self) -> dict[str, Any]:
        """What reports say of it: the fields of `stm.reports.OfSet`."""
        return {"skipped": len(self.skipped), "skipped_files": self.skipped[:NAMES_SHOWN]}

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over every image's name, label and size in bytes (of what is in memory: its bytes)."""
        digest = hashlib.sha256()
        for sample in self.samples:
            mark = _mark(sample.source) if isinstance(sample.source, Tensor) else sample.source.fingerprint()
            digest.update(json.dumps([sample.file, sample.label, mark]).encode())
        return digest.hexdigest()

    def take(self, limit: int | None, seed: int = 0) -> "SampleSet":
        """A random subset, in the set's order: the same for the same seed, and part of every larger one. None: all.

        Raises:
            UsageError: a limit below 1.
        """
        if limit is None or limit >= len(self):
            return self
        if limit < 1:
            raise UsageError(f"limit is {limit}, expected at least 1 image")
        return replace(self, samples=tuple(self.samples[index] for index in sorted(self._drawn(seed)[:limit])))

    def shuffled(self, seed: int = 0) -> "SampleSet":
        """The set in random order: its first n are those that `take(n, seed)` draws."""
        return replace(self, samples=tuple(self.samples[index] for index in self._drawn(seed)))

    def _drawn(self, seed: int) -> list[int]:
        generator = random.Random(seed)
        ranks = [
            generator.random() for _ in self.samples
        ]  # of Python's generator, `random` alone is the same in every version
        return sorted(range(len(self)), key=ranks.__getitem__)


def evenly(count: int, last: float) -> list[float]:
    """Return `count` positions from 0 to `last` at equal distances; 0 alone for a count of 1."""
    return [number * last / max(count - 1, 1) for number in range(count)]


def from_files(paths: Iterable[str | Path]) -> SampleSet:
    """Single images, without labels, in the order given."""
    return SampleSet("images", tuple(Sample(str(path), None, ImageFile(Path(path))) for path in paths))


def _mark(image: Tensor) -> str:
    return hashlib.sha256(image.cpu().contiguous().numpy().tobytes()).hexdigest()


class Batch(NamedTuple):
    """Consecutive images of a sample set.

    Args:
        indices: the places in the set of the images that could be read: b of them.
        images: (b, C, H, W) float32.
        errors: for each place whose image could not be read, a sentence that names it.
    """

    indices: tuple[int, ...]
    images: Tensor
    errors: dict[int, str]


def workers_for(samples: SampleSet, world: World = ALONE) -> int:
    """The processes that decode a set best on this machine: up to four for many files, none (0) for few or for what is
    in memory.

    Args:
        world: the processes that share the machine, and each want some.
    """
    if len(samples) <= FEWEST_FOR_WORKERS or not isinstance(
        samples.samples[0].source, ImageFile | ParquetImage | TarImage
    ):
        return 0
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(4, max(1, processors // world.local_size))


def batches_of(images: int, batch_size: int) -> int:
    """How many batches so many images are."""
    return -(-images // batch_size)


def iterate(
    samples: SampleSet, prep: Preprocess, *, batch_size: int, workers: int = 0, start: int = 0, world: World = ALONE
) -> Iterator[Batch]:
    """The set in batches of `batch_size`, in order; the last may be smaller. The same whatever the workers.

    Args:
        workers: processes that decode; 0 decodes in this one. They are started afresh (`spawn`), so that a script that
            asks for some needs its `if __name__ == "__main__":`.
        start: the place of the first image.
        world: of the processes that share the batches; this one gets those that are its own.

    Raises:
        UsageError: a batch size below 1 or workers below 0.
        DataError: a worker died.
    """
    if batch_size < 1:
        raise UsageError(f"batch size is {batch_size}, expected at least 1")
    if workers < 0:
        raise UsageError(f"workers is {workers}, expected 0 or more")
    return _batches(samples, prep, world.shard(range(start, len(samples), batch_size)), batch_size, workers)


def _batches(
    samples: SampleSet, prep: Preprocess, starts: Sequence[int], batch_size: int, workers: int
) -> Iterator[Batch]:
    chunks = [samples.samples[first : first + batch_size] for first in starts]
    if chunks and isinstance(chunks[0][0].source, Tensor):
        for first, chunk in zip(starts, chunks, strict=True):
            ready = torch.stack([sample.source for sample in chunk if isinstance(sample.source, Tensor)])
            yield Batch(tuple(range(first, first + len(chunk))), ready, {})
        return
    for first, results in zip(starts, decode_all(chunks, prep, workers), strict=True):
        pixels = {place: result for place, result in enumerate(results, first) if isinstance(result, bytes)}
        errors = {place: result for place, result in enumerate(results, first) if isinstance(result, str)}
        yield Batch(tuple(pixels), normalise(list(pixels.values()), prep), errors)
