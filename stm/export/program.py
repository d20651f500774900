"""A model as a program: what goes in, what comes out, traced by torch.export under a backend that a format can write.

An export is the same ViM under another `Backend` value. Token counts are constants of the schedule, so every shape but
the batch is static.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stm.backends import Backend
from stm.config import Config
from stm.model.vim import ViM

INPUT = "images"
LOGITS, PROBABILITIES, FEATURES = "logits", "probabilities", "features"


class Interface(NamedTuple):
    """What a program takes and gives.

    Args:
        preprocessing: take uint8 images (B, H, W, C) of the model's own size and give probabilities; otherwise take
            normalised float32 images (B, C, H, W).
        batch_size: the only one that the program takes; None for any.
        features: give the patch features (B, D, H', W') instead of what the head says.
        out_indices: with features, the blocks (from 0 on, each once) whose features are given, an output for each; None
            for the one output of `ViM.features`.
    """

    preprocessing: bool = False
    batch_size: int | None = None
    features: bool = False
    out_indices: tuple[int, ...] | None = None

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the outputs."""
        if self.features and self.out_indices is not None:
            return tuple(f"{FEATURES}_{index}" for index in self.out_indices)
        return (FEATURES if self.features else PROBABILITIES if self.preprocessing else LOGITS,)

    def shape(self, config: Config) -> tuple[int, ...]:
        """Return the shape of an image at the input."""
        channels, height, width = config.model.input_shape
        return (height, width, channels) if self.preprocessing else (channels, height, width)

    def dtype(self) -> torch.dtype:
        """Return the dtype of the input."""
        return torch.uint8 if self.preprocessing else torch.float32


class Exported(nn.Module):
    """A ViM with the ends that an interface asks for."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: ViM, interface: Interface) -> None:
        super().__init__()
        self.model, self.interface = model, interface
        prep = model.config.preprocessing
        # As one multiplication and one addition per pixel: (v / 255 - mean) / std.
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(prep, name)).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the output of the interface for its input, or a tuple of them if it has out_indices."""
        if self.interface.preprocessing:
            images = (images.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        if self.interface.features:
            levels = tuple(level.float() for level in features(self.model, self.interface, images))
            return levels[0] if self.interface.out_indices is None else levels
        logits = self.model(images)
        return logits.softmax(-1) if self.interface.preprocessing else logits


def features(model: ViM, interface: Interface, images: Tensor) -> tuple[Tensor, ...]:
    """Return what an interface of features gives: those of the last block, normalised, or of each block it names."""
    if interface.out_indices is None:
        return (model.features(images),)
    return model.features(images, interface.out_indices)


def trace(model: ViM, interface: Interface, backend: Backend) -> torch.export.ExportedProgram:
    """Return a model as a program of torch.export whose backend's operations are those of `backend`.

    Args:
        model: on a processor, of floats; see `floats`.
        interface: what goes in and comes out.
        backend: computes the convolution, the scan and the norm.
    """
    # Two images if any number may come: a dimension of size one would become a constant.
    example = torch.zeros(interface.batch_size or 2, *interface.shape(model.config), dtype=interface.dtype())
    shapes = None if interface.batch_size else ({0: torch.export.Dim("batch")},)
    with under(model, backend), torch.no_grad():
        return torch.export.export(Exported(model, interface).eval(), (example,), dynamic_shapes=shapes)


@contextmanager
def under(model: ViM, backend: Backend) -> Iterator[None]:
    """Run the block with a model under another backend."""
    before = model.backend
    try:
        for block in model.blocks:
            block.backend = block.mixer.backend = backend
        yield
    finally:
        for block in model.blocks:
            block.backend = block.mixer.backend = before
