"""The exports that a recipe asks for: each a file or folder beside the compressed model's folder."""

from pathlib import Path

from stm.artifact import atomic
from stm.artifact import folder as artifact
from stm.commands.export import export
from stm.export import formats
from stm.options import ModelOptions
from stm.progress import OnProgress


def check(output: Path, wanted: tuple[str, ...], *, force: bool) -> None:
    """Refuse exports that cannot be written, before any work is done.

    Raises:
        UsageError: packages are missing, or a path may not be written.
    """
    for name in wanted:
        path = _path(output, name)
        if name in formats.FORMATS:
            formats.check_installed(name)
            formats.check_output(name, path, force=force)
        elif name == "official":
            atomic.check_file(path, force=force)
        else:
            artifact.check_output(path, force=force)


def write(output: Path, wanted: tuple[str, ...], *, force: bool, on_progress: OnProgress | None = None) -> list[str]:
    """Export a folder that was written in each format, as `stm export` does, and return the paths.

    Raises:
        StmError: what `stm export` raises. The folder stays.
    """
    for name in wanted:
        export(
            str(output.resolve()),
            ModelOptions(device="cpu"),
            format=name,
            out=_path(output, name),
            force=force,
            on_progress=on_progress,
        )
    return [str(_path(output, name)) for name in wanted]


def _path(output: Path, name: str) -> Path:
    suffix = formats.FORMATS[name].suffix if name in formats.FORMATS else {"official": ".pth", "folder": "-dense"}[name]
    return output.with_name(output.name + suffix)
