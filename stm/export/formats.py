"""The formats of other runtimes: what each is called, needs and writes."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import NamedTuple

from stm.artifact import atomic
from stm.artifact.scratch import scratch
from stm.config import DTYPES
from stm.errors import ArtifactError, UsageError
from stm.export import openvino, pt2
from stm.export.check import check
from stm.export.onnx import OPSET, document
from stm.export.program import Interface
from stm.install import install_command
from stm.model.vim import ViM
from stm.progress import OnProgress, Progress
from stm.reports import ExportCheck
from stm.units import minutes
from stm.units import size as units


class Format(NamedTuple):
    """A format that another runtime reads.

    Args:
        label: its name for people.
        suffix: of the file or folder.
        runtime: that checks it, one of `stm.export.runners.RUNTIMES`.
        extra: of this package, which installs what it needs; None if the package itself does.
        needs: the packages.
        opset: of ONNX's operators; None if it has none.
        dtypes: of weights that its runtime computes in.
        files: what a folder of this format holds, first the one that the runtime opens; () of a single file.
        write: from a model and an interface to a draft.
        tools: the programs that have to be on the PATH.
        largest: the bytes of weights that its file takes; None for any number.
        seconds: of one core that writing takes, if that is long enough to be told beforehand.
    """

    label: str
    suffix: str
    runtime: str
    extra: str | None
    needs: tuple[str, ...]
    opset: int | None
    dtypes: tuple[str, ...]
    files: tuple[str, ...]
    write: Callable[[ViM, Interface, Path], None]
    tools: tuple[str, ...] = ()
    largest: int | None = None
    seconds: Callable[[ViM, Interface], float] | None = None

    @property
    def packages(self) -> str:
        """The missing packages in words; "" if all are there."""
        return ", ".join(package for package in self.needs if find_spec(package) is None)


def _onnx(model: ViM, interface: Interface, draft: Path) -> None:
    draft.write_bytes(document(model, interface))


_ONNX = ("onnx", "onnxscript")  # who writes, and how OpenVINO takes a model, too
# An ONNX file is one message of protobuf, which takes 2 GiB; 16 MiB are for the graph, its constants and metadata.
_LARGEST = 2**31 - 2**24

FORMATS = {
    "onnx": Format(
        "ONNX",
        ".onnx",
        "onnxruntime",
        "export",
        (*_ONNX, "onnxruntime"),
        OPSET,
        ("float32", "float16"),
        (),
        _onnx,
        largest=_LARGEST,
    ),
    "openvino": Format(
        "OpenVINO IR",
        "-openvino",
        "openvino",
        "openvino",
        (*_ONNX, "openvino"),
        None,
        DTYPES[:3],
        (openvino.XML, openvino.BIN),
        openvino.write,
        largest=_LARGEST,
    ),
    "pt2": Format("a program of PyTorch", ".pt2", "torch", None, ("torch",), None, DTYPES[:3], (), pt2.write),
    "aoti": Format(
        "an AOTInductor package",
        ".aoti.pt2",
        "torch",
        None,
        ("torch",),
        None,
        DTYPES[:3],
        (),
        pt2.write_aoti,
        ("g++",),
        seconds=pt2.aoti_seconds,
    ),
}


def check_installed(name: str) -> None:
    """Refuse a format whose packages are not installed.

    Raises:
        UsageError: which packages are missing, and the line that installs them.
    """
    kind = FORMATS[name]
    if missing := kind.packages:
        raise UsageError(f"{kind.label} is not written: {missing} not installed", install_command(kind.extra))
    if absent := [tool for tool in kind.tools if which(tool) is None]:
        raise UsageError(
            f"{kind.label} is not written: {', '.join(absent)} is not on the PATH",
            "install a C++ compiler, or choose --format pt2, which needs none",
        )


def check_dtype(name: str, dtype: str) -> None:
    """Refuse weights of a dtype that the runtime of a format does not compute in.

    Raises:
        UsageError: it names those that it does.
    """
    kind = FORMATS[name]
    if dtype not in kind.dtypes:
        raise UsageError(
            f"{kind.label} is not written in {dtype}: {kind.runtime} has no products of it on a processor",
            f"add --dtype {' or '.join(kind.dtypes)}",
        )


def check_size(name: str, model: ViM) -> None:
    """Refuse a model that a file of a format has no room for, before it is traced.

    Raises:
        UsageError: it names both sizes.
    """
    kind = FORMATS[name]
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if kind.largest is not None and weights > kind.largest:
        smaller = "add --dtype float16, or " if model.config.dtype == "float32" else ""
        raise UsageError(
            f"{kind.label} is not written: the weights take {units(weights)}, and one file takes at most"
            f" {units(kind.largest)}, which is protobuf's limit",
            f"{smaller}choose --format pt2, which has no limit",
        )


def check_output(name: str, path: Path, *, force: bool) -> None:
    """Refuse an output that cannot be written, before any work is done.

    Raises:
        UsageError: see `stm.artifact.atomic.check_file` and `check`.
    """
    if files := FORMATS[name].files:
        atomic.check(path, files, force=force)
    else:
        atomic.check_file(path, force=force)


def write(
    name: str,
    model: ViM,
    interface: Interface,
    path: Path,
    *,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> ExportCheck:
    """Write a model in a format and run it in its runtime. A file that fails the check is not left.

    Args:
        name: one of `FORMATS`.
        model: on a processor, of floats.
        interface: what the file takes and gives.
        path: the output.

    Raises:
        CheckError: the runtime says something else than the model.
        UsageError: the output may not be replaced.
        ArtifactError: the disk is full.
    """
    kind = FORMATS[name]

    def tell(stage: str, done: int) -> None:
        if on_progress is not None:
            on_progress(Progress(stage, done, 2, "steps"))

    with _draft(path, kind.files, force) as draft, _own_cache():
        about = "" if kind.seconds is None else f", about {minutes(kind.seconds(model, interface))} of one core"
        tell(f"Writing {kind.label}{about}", 0)
        kind.write(model, interface, draft)
        tell(f"Checking in {kind.runtime}", 1)
        checked = check(draft / kind.files[0] if kind.files else draft, kind.runtime, model, interface)
        tell("Checked", 2)
    return checked


def size(name: str, path: Path) -> int:
    """Return the bytes of an export."""
    return sum((path / file).stat().st_size for file in FORMATS[name].files) or path.stat().st_size


@contextmanager
def _draft(path: Path, files: tuple[str, ...], force: bool) -> Iterator[Path]:
    """Yield a draft of a file, or of a folder of some files."""
    if files:
        with atomic.replacing(path, files, force=force) as folder:
            yield folder
    else:
        hint = "make room, or choose another place with --out"
        with atomic.refusing(path, hint, ArtifactError), atomic.drafted(path, force=force) as draft:
            yield draft


@contextmanager
def _own_cache() -> Iterator[None]:
    """Have what torch keeps on disk while it traces go away: it makes a folder for it among everybody's."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    if name in os.environ:  # somebody chose a folder, or has used torch's compiler in this process
        yield
        return
    with scratch("stm-export") as folder:
        os.environ[name] = str(folder)
        try:
            yield
        finally:
            os.environ.pop(name, None)
