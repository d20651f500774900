"""The formats of other runtimes: what each is called, needs and writes."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from stm.artifact import atomic
from stm.errors import UsageError
from stm.export.check import check
from stm.export.onnx import OPSET, document
from stm.export.program import Interface
from stm.install import install_command
from stm.model.vim import ViM
from stm.progress import OnProgress, Progress
from stm.reports import ExportCheck


class Format(NamedTuple):
    """A format that another runtime reads.

    Args:
        label: its name for people.
        suffix: of the file or folder.
        runtime: that checks it, one of `stm.export.runners.RUNTIMES`.
        extra: of this package, which installs what it needs.
        needs: the packages.
        opset: of ONNX's operators; None if it has none.
        write: from a model and an interface to a draft.
    """

    label: str
    suffix: str
    runtime: str
    extra: str
    needs: tuple[str, ...]
    opset: int | None
    write: Callable[[ViM, Interface, Path], None]


def _onnx(model: ViM, interface: Interface, draft: Path) -> None:
    draft.write_bytes(document(model, interface))


FORMATS = {
    "onnx": Format("ONNX", ".onnx", "onnxruntime", "export", ("onnx", "onnxscript", "onnxruntime"), OPSET, _onnx),
}


def check_installed(name: str) -> None:
    """Refuse a format whose packages are not installed.

    Raises:
        UsageError: which packages are missing, and the line that installs them.
    """
    kind = FORMATS[name]
    if missing := [package for package in kind.needs if find_spec(package) is None]:
        raise UsageError(
            f"{kind.label} is not written: {', '.join(missing)} not installed", install_command(kind.extra)
        )


def check_output(name: str, path: Path, *, force: bool) -> None:
    """Refuse an output that cannot be written, before any work is done.

    Raises:
        UsageError: see `stm.artifact.atomic.check_file`.
    """
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
    """
    kind = FORMATS[name]

    def tell(stage: str, done: int) -> None:
        if on_progress is not None:
            on_progress(Progress(stage, done, 2, "steps"))

    hint = "make room, or choose another place with --out"
    with atomic.refusing(path, hint), atomic.drafted(path, force=force) as draft:
        tell(f"Writing {kind.label}", 0)
        kind.write(model, interface, draft)
        tell(f"Checking in {kind.runtime}", 1)
        checked = check(draft, kind.runtime, model, interface)
        tell("Checked", 2)
    return checked
