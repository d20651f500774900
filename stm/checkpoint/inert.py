"""What a pickle may build beside tensors, and what stands there for all else: a name, and nothing behind it.

A trainer leaves arrays, dates, random states and configs beside the weights. Each of their classes and functions is
replaced by `Inert`, by name. No module is imported and nothing of theirs is called. An `Inert` takes what the pickle
gives it and keeps nothing, so no value can reach the weights through one.
"""

import argparse
import pathlib
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Collection
from typing import Any


class _Inert(type):
    # torch's unpickler gives items to dicts alone, and finds out by `type(value) in [dict, ...]`. Configs (yacs, mmcv,
    # easydict) are subclasses of dict. With this equality they pass, and their items are dropped by `__setitem__`.
    def __eq__(cls, other: object) -> bool:
        return cls is other or other is dict

    def __hash__(cls) -> int:
        return id(cls)


class Inert(metaclass=_Inert):
    """An object of an unknown class, or what an unknown function would return."""

    __slots__ = ()

    def __new__(cls, *_: Any, **__: Any) -> "Inert":
        """Return an object that holds none of the arguments."""
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Drop the state."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Drop the item."""


def plain_dict(*_: Any) -> dict[Any, Any]:
    """Return an empty dict in place of a `defaultdict`, whose factory is not wanted."""
    return {}


def plain_list(*_: Any) -> list[Any]:
    """Return an empty list in place of a `deque`."""
    return []


Buildable = Callable[..., Any] | tuple[Callable[..., Any], str]

# What a trainer's pickle may build beside tensors, under each name that versions of Python gave it. Paths become pure
# paths, which cannot touch a disk and load on any system.
_ALLOWED: tuple[tuple[Callable[..., Any], str], ...] = (
    (argparse.Namespace, "argparse.Namespace"),
    *(
        (kind, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for kind, names in (
            (pathlib.PurePosixPath, ("PosixPath", "PurePosixPath")),
            (pathlib.PureWindowsPath, ("WindowsPath", "PureWindowsPath")),
        )
        for name in names
    ),
    (plain_dict, "collections.defaultdict"),
    (plain_list, "collections.deque"),
)


def allowed(names: Collection[str]) -> tuple[tuple[Callable[..., Any], str], ...]:
    """Return what a pickle that refers to `names` may build beside tensors, each with its name.

    Numbers of numpy are among it, under the names of every version, if the pickle refers to numpy at all: importing
    numpy takes a tenth of a second.
    """
    if not any(name.startswith("numpy.") for name in names):
        return _ALLOWED
    import numpy as np

    scalar: Any = np.float64(0).__reduce__()[0]  # numpy's multiarray.scalar, wherever this version keeps it
    dtypes = [type(np.dtype(code)) for code in "?bBhHiIlLqQefd"]
    return (
        *_ALLOWED,
        *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
        (np.dtype, "numpy.dtype"),
        *((each, f"numpy.dtypes.{each.__name__}") for each in dtypes),
    )


# A file that names one of these was made to run something, or wants to: it is refused, though nothing would be run.
_FORBIDDEN = re.compile(
    r"(os|posix|nt|sys|subprocess|_posixsubprocess|shutil|importlib|runpy|socket|_?ctypes|pty|_?pickle|cPickle|marshal"
    r"|code|codeop|pdb|bdb|webbrowser|commands|timeit|cProfile|profile|imp|multiprocessing|_?operator|types|gc|inspect"
    r"|signal|_thread|tempfile|urllib|http|requests|ftplib|smtplib|pip|setuptools|site|_?io|zipfile|pkgutil|asyncio"
    r"|platform|dill|cloudpickle|joblib|torch|builtins|__builtin__)\..*",
    re.DOTALL,
)
_TYPES = re.compile(
    r"(builtins|__builtin__)\.(int|long|float|str|unicode|bool|list|dict|tuple|frozenset|bytes|object)|types\.SimpleNamespace"
)


def is_forbidden(name: str) -> bool:
    """Return whether a name of a module's member is refused even where its value would not be used."""
    return _FORBIDDEN.fullmatch(name) is not None and _TYPES.fullmatch(name) is None


def renamed(name: str) -> str:
    """Return the name that the unpickler looks up for one of Python 2's, which old protocols keep; else the same."""
    module, _, member = name.rpartition(".")
    module, member = NAME_MAPPING.get((module, member), (IMPORT_MAPPING.get(module, module), member))
    return f"{module}.{member}"
