"""The exports that a recipe asks for: each a file or folder beside the compressed model's folder."""

from pathlib import Path

from stm.commands import export
from stm.export import formats
from stm.options import ModelOptions
from stm.progress import OnProgress


def check(output: Path, wanted: tuple[str, ...], *, force: bool) -> None:
    """Refuse exports that cannot be written, before any work is done.

    Raises:
        UsageError: see `stm.commands.export.check`.
    """
    for name in wanted:
        export.check(name, _path(output, name), force=force)


def check_dtype(dtype: str, wanted: tuple[str, ...]) -> None:
    """Refuse weights of a dtype that a wanted runtime does not compute in, before any image is read.

    Raises:
        UsageError: it names the dtypes that the runtime has.
    """
    for name in wanted:
        if name in formats.FORMATS:
            formats.check_dtype(name, dtype)


def write(output: Path, wanted: tuple[str, ...], *, force: bool, on_progress: OnProgress | None = None) -> list[str]:
    """Export a folder that was written in each format, as `stm export` does, and return the paths.

    Raises:
        StmError: what `stm export` raises. The folder stays.
    """
    for name in dict.fromkeys(wanted):
        export.export(
            str(output.resolve()),
            ModelOptions(device="cpu"),
            format=name,
            out=_path(output, name),
            force=force,
            on_progress=on_progress,
        )
    return [str(_path(output, name)) for name in dict.fromkeys(wanted)]


def _path(output: Path, name: str) -> Path:
    return output.with_name(output.name + export.suffix(name))
