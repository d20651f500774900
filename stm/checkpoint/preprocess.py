"""Choose a checkpoint's preprocessing: as asked, else by its settings, else as in the official evaluation.

hustvl/Vim (vim/datasets.py) and OpenGVLab/VideoMamba (videomamba/image_sm/datasets.py) evaluate in the same way.
"""

from typing import Any

from stm.checkpoint.stored import OWN, Asked, Stored
from stm.config import IMAGENET_MEAN, IMAGENET_STD, INTERPOLATIONS, ModelConfig, Preprocess, as_size, sides
from stm.errors import CheckpointError, UsageError

RATIO = 0.875  # hustvl/Vim's, and timm's if a model has none of its own
_WHOLE = 1.0  # of wangf3014/Mamba-Reg's evaluation (README): the short side, and nothing is cropped from it
RATIOS = (0.1, 1.0)
_SMALL = 32  # pixels: hustvl/Vim takes images of up to this size as they are
# For each statistic: the usual value of colour images, the value that changes nothing, the limits.
_COLOURS = {
    "mean": (IMAGENET_MEAN, 0.0, (0.0, 1.0)),
    "std": (IMAGENET_STD, 1.0, (1e-6, 1.0)),
}


def usual_ratio(model: ModelConfig) -> float:
    """Return the crop ratio of the official evaluation of such a model."""
    return _WHOLE if model.class_tokens > 1 else RATIO


def _authors(model: ModelConfig) -> str:
    """Return the repository whose evaluation such a model gets."""
    if model.class_tokens > 1:
        return "wangf3014/Mamba-Reg"
    return "hustvl/Vim" if model.class_token == "middle" or model.divide_out else "OpenGVLab/VideoMamba"


def preprocessing(where: str, model: ModelConfig, stored: Stored, asked: Asked) -> tuple[Preprocess, tuple[str, ...]]:
    """Return the preprocessing, and sentences about the values that come from the settings and those that are assumed.

    Args:
        where: the file's name, for messages.

    Raises:
        UsageError: a value that was asked for is out of range.
        CheckpointError: stm cannot follow the settings in the file.
    """
    from_settings, usual, notes = [], [], []
    colours, imagenets, unknown = {}, [], []
    for name, (imagenet, neutral, _) in _COLOURS.items():
        value, from_file = _value(name, stored, asked)
        if value is not None:
            colours[name] = _per_channel(where, name, value, model.in_chans, from_file)
            from_settings += [f"{name} {_listed(colours[name])}"] if from_file else []
        elif model.in_chans == len(imagenet):
            colours[name] = imagenet
            imagenets.append(name)
        else:
            # ImageNet's values are of red, green and blue, and so fit no other number of channels.
            colours[name] = (neutral,) * model.in_chans
            unknown.append(("standard deviation" if name == "std" else name, f"{neutral:g}"))
    if imagenets:
        usual.append(f"ImageNet's {' and '.join(imagenets)}")
    if unknown:
        names, values = (" and ".join(parts) for parts in zip(*unknown, strict=True))
        are = "are" if len(unknown) > 1 else "is"
        notes.append(
            f"the model takes {_channels(model.in_chans)}: their {names} {are} unknown, {values} {are} assumed"
        )

    default, theirs = usual_ratio(model), _authors(model)
    ratio, from_file = _value("crop_ratio", stored, asked)
    if ratio is not None and not RATIOS[0] <= ratio <= RATIOS[1]:
        if not from_file:
            raise UsageError(f"crop_ratio is {ratio:g}, expected {RATIOS[0]:g} to {RATIOS[1]:g}")
        # A trainer's file may hold any number, and its weights are not worse for it. An option is a mistake to report.
        notes.append(f"by {OWN} the crop ratio is {ratio:g}, which cannot be: {default:g} is taken")
        ratio = default
    elif ratio is None:
        ratio = default
        usual.append(f"crop ratio {default:g}")
    elif from_file:
        from_settings.append(f"crop ratio {ratio:g}")
    # hustvl/Vim takes small images as they are. timm resizes images of any size, and so does whoever asks for a ratio.
    as_they_are = (
        max(sides(model.image_size)) <= _SMALL
        and asked.crop_ratio is None
        and (stored.fixed or stored.crop_ratio is None)
    )
    cut = ratio if not as_they_are else 1.0
    resize = as_size(*(int(side / cut) for side in sides(model.image_size)))  # rounded down, as both do

    interpolation, from_file = _value("interpolation", stored, asked)
    if interpolation is None:
        interpolation = INTERPOLATIONS[0]
        usual.append(interpolation)
    elif interpolation not in INTERPOLATIONS:
        if not from_file:
            raise UsageError(f"interpolation is {interpolation!r}, expected one of {', '.join(INTERPOLATIONS)}")
        # Not replaced by another one: that would change every pixel, and accuracy with it.
        raise CheckpointError(
            f"{where}: its own arguments say interpolation {interpolation!r}, and stm has {', '.join(INTERPOLATIONS)}",
            f"choose the nearest one: --interpolation {INTERPOLATIONS[0]}",
        )
    elif from_file:
        from_settings.append(interpolation)

    if stored.crop_mode not in (None, "center"):
        notes.append(f"by {OWN} crop_mode is {stored.crop_mode}: stm crops the center")
    if not stored.fixed:  # DeiT's trainer has no other values than the usual ones
        if from_settings:
            notes.append(f"preprocessing by {OWN}: {', '.join(from_settings)}")
        if usual:
            notes.append(
                f"no word on {'the rest of ' if from_settings else ''}the preprocessing, hence as in {theirs}:"
                f" {', '.join(usual)}"
            )
    return Preprocess(resize=resize, crop=model.image_size, interpolation=interpolation, **colours), tuple(notes)


def _value(name: str, stored: Stored, asked: Asked) -> tuple[Any, bool]:
    """Return the value that was asked for, else that of the file's settings; and whether it is the latter."""
    given = getattr(asked, name)
    return (getattr(stored, name), True) if given is None else (given, False)


def _per_channel(where: str, name: str, values: tuple[float, ...], channels: int, from_file: bool) -> tuple[float, ...]:
    """Return one value per channel, or refuse the values. A single value holds for every channel."""
    low, high = _COLOURS[name][2]
    per_channel = values * channels if len(values) == 1 else values
    if len(per_channel) == channels and all(low <= value <= high for value in per_channel):
        return per_channel
    expected = (
        f"expected one number per channel, {'above 0' if name == 'std' else '0'} to 1: the model takes"
        f" {_channels(channels)}"
    )
    if from_file:
        hint = f"give the right one: --{name} {','.join(f'{value:g}' for value in _COLOURS[name][0][:channels])}"
        raise CheckpointError(f"{where}: its own arguments say {name} {_listed(values)}, {expected}", hint)
    raise UsageError(f"{name} is {_listed(values)}, {expected}")


def _channels(count: int) -> str:
    return f"{count} channel{'' if count == 1 else 's'}"


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
