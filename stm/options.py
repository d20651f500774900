"""Commands as they are printed: with the options that were given, ready to be pasted."""

import shlex
from collections.abc import Mapping
from typing import Any

# How a checkpoint is read: what its tensors cannot tell, and which of its weights.
CHECKPOINT_OPTIONS = ("image_size", "class_token", "divide_out", "ema", "mean", "std", "crop_ratio", "interpolation")
_EITHER = {"divide_out": ("--divide-out", "--no-divide-out"), "span_conv": ("--span-conv", "--plain-conv")}


def flag(name: str, value: Any) -> str:
    """The word of an option by the library's name, `divide_out`, and its value: `--no-divide-out` where it is False."""
    return _EITHER[name][value is False] if name in _EITHER else f"--{name.replace('_', '-')}"


def words(options: Mapping[str, Any]) -> list[str]:
    """Options by the library's names as the command line takes them; None is none. A token is a secret, and never among
    them."""
    out = []
    for name, value in options.items():
        if name == "token" or value is None or (value is False and name not in _EITHER):
            continue
        word = flag(name, value)
        if isinstance(value, bool):
            out.append(word)
            continue
        text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        out += [f"{word}={text}"] if text.startswith("-") else [word, text]  # else it would be an option
    return out


def command(verb: str, model: str, options: Mapping[str, Any]) -> str:
    """A command on a model as one line for a shell."""
    return shlex.join(["stm", verb, model, *words(options)])
