"""Tell the size of a checkpoint's images and the stride of its patches, which its tensors do not show."""

import math
from functools import partial
from typing import NamedTuple

from stm.checkpoint.stored import Stored
from stm.config import LARGEST_SIDE, Size, as_size, in_pixels, sides
from stm.errors import CheckpointError, UsageError
from stm.options import as_typed

_OFFICIAL_SIZE = 224
_as_option = partial(as_typed, "image_size")


class Geometry(NamedTuple):
    """The images of a model: their size, the stride of the patches, and a sentence about the source of both.

    `table` is the size that the table of positions is for, if it is another one; `interpolation_note` is its sentence.
    """

    size: Size
    stride: int
    note: str | None
    table: Size | None = None


def geometry_of(where: str, patch: int, patches: int, stored: Stored, asked: Size | None) -> Geometry:
    """Return the geometry of a model by the size in the settings, else in a name, else the usual one.

    A size that is asked for wins. If the file's own differs, the table of positions is to be interpolated; if the file
    does not tell its own, a size at which another stride gives its patches is taken for that.

    Args:
        where: the file's name, for messages.
        patch: side of a patch, in pixels.
        patches: how many the table of positions has.

    Raises:
        CheckpointError: the file's own size is impossible, or unknown.
        UsageError: the size that was asked for is impossible.
    """
    fits = _in_patches(patch, patches)
    own = _own_geometry(where, patch, patches, stored)
    if asked is None:
        if isinstance(own, CheckpointError):
            raise own
        return own
    named = stored.size_by_name
    # A recipe passes as an option what a name had told, and must make the same bytes.
    by = named.by if stored.input_size is None and named is not None and named.value == asked else None
    source = f"by {by}" if by else "as asked"
    tells_size = stored.input_size is not None or named is not None
    stride = _stride(asked, patch, patches, stored.stride) or _stride(asked, patch, patches, None)
    if isinstance(own, Geometry) and own.size != asked and math.isqrt(patches) ** 2 == patches:
        cut = [(side - patch) % own.stride for side in sides(asked) if patch <= side <= LARGEST_SIDE]
        fitting = stride is not None and all((side - patch) % stride == 0 for side in sides(asked))
        if cut == [0, 0] and (tells_size or not fitting):
            return Geometry(asked, own.stride, None, own.size)
    if stride is None:
        raise UsageError(
            f"image_size is {as_typed('image_size', asked)}, but {where} holds {fits}",
            _sizes_near(patch, patches, own, asked),
        )
    return Geometry(asked, stride, f"image size {_shown(asked)} {source}, stride {stride} as it gives {fits}")


def _own_geometry(where: str, patch: int, patches: int, stored: Stored) -> Geometry | CheckpointError:
    """Return the geometry that a file tells or that is usual, or the error if what it tells cannot be."""
    fits = _in_patches(patch, patches)
    own, named, side = stored.input_size, stored.size_by_name, math.isqrt(patches)
    if own is not None:
        if (stride := _stride(own, patch, patches, stored.stride)) is None:
            settings = f"input_size {as_typed('image_size', own)}" + (
                f" and stride {stored.stride}" if stored.stride else ""
            )
            return CheckpointError(
                f"{where}: its own arguments say {settings}, but it holds {fits}", "give the right one: --image-size N"
            )
        note = f"image size {_shown(own)} from the file's own arguments, stride {stride} as it gives {fits}"
        return Geometry(own, stride, note)
    if named is not None:
        if (stride := _stride(named.value, patch, patches, stored.stride)) is None:
            return CheckpointError(
                f"{where}: by {named.by} its images have {named.value} pixels, but it holds {fits}",
                _sizes_near(patch, patches, None, named.value),
            )
        note = f"image size {named.value} by {named.by}, stride {stride} as it gives {fits}"
        return Geometry(named.value, stride, note)
    if side**2 != patches:
        return CheckpointError(
            f"{where} holds {fits}, which make no square, and does not say the image size",
            "give height and width: --image-size HEIGHTxWIDTH",
        )
    stride = _stride(_OFFICIAL_SIZE, patch, patches, stored.stride)
    if stride is not None and stride * (side - 1) == _OFFICIAL_SIZE - patch:
        note = f"image size {_OFFICIAL_SIZE} is assumed: at stride {stride} it gives {fits}"
        return Geometry(_OFFICIAL_SIZE, stride, note)
    stride = stored.stride or patch
    size = patch + (side - 1) * stride
    if not 0 < size <= LARGEST_SIDE or _stride(size, patch, patches, stride) is None:
        return CheckpointError(
            f"{where} holds {fits} and does not say the image size, nor is it the usual {_OFFICIAL_SIZE}",
            "give it: --image-size N",
        )
    how = "edge to edge" if stride == patch else f"at stride {stride}, as by its name,"
    other = f"; if they overlap by half, give --image-size {(size + patch) // 2}" if stride == patch > 1 < side else ""
    return Geometry(size, stride, f"image size {size} is assumed: {how} the {fits} make it{other}")


def _in_patches(patch: int, patches: int) -> str:
    side = math.isqrt(patches)
    return (
        f"{side} x {side} patches of {patch} pixels" if side**2 == patches else f"{patches} patches of {patch} pixels"
    )


def _shown(size: Size) -> str:
    return str(size) if isinstance(size, int) else in_pixels(size)


def _sizes_near(patch: int, patches: int, own: "Geometry | CheckpointError | None", asked: Size) -> str:
    """Return a hint: the size of patches edge to edge, and those near the asked one that can be interpolated to."""
    side = math.isqrt(patches)
    hints = [f"edge to edge, they make --image-size {side * patch}"] if side**2 == patches else []
    possible = isinstance(own, Geometry) and hints and all(patch < each < LARGEST_SIDE for each in sides(asked))
    if isinstance(own, Geometry) and possible:
        less = [each - (each - patch) % own.stride for each in sides(asked)]
        near = (as_size(*less), as_size(*(each + own.stride for each in less)))
        hints.append(f"the table of positions can be interpolated to {' or '.join(map(_as_option, near))}")
    return "; ".join(hints) or "give height and width: --image-size HEIGHTxWIDTH"


def _stride(size: Size, patch: int, patches: int, stored: int | None) -> int | None:
    """Return the stride that cuts an image into so many patches; None if it is not certain.

    Args:
        stored: the stride that the settings give; None if they give none.
    """
    if not all(patch <= side <= LARGEST_SIDE for side in sides(size)):  # a file's own numbers may be any
        return None
    fitting = [
        stride
        for stride in (range(1, patch + 1) if stored is None else (stored,))
        if stride and math.prod((side - patch) // stride + 1 for side in sides(size)) == patches
    ]
    # Several may fit if some leave pixels over. Patches edge to edge come first, then a stride that leaves none.
    whole = [stride for stride in fitting if all((side - patch) % stride == 0 for side in sides(size))]
    if patch in fitting:
        return patch
    return whole[0] if whole else fitting[0] if len(fitting) == 1 else None
