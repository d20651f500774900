"""Small folders like those of a model, made, replaced and read by the tests of stm/artifact/atomic.py."""

from pathlib import Path

from stm.artifact import atomic

NAMES = ("model.safetensors", "config.json", "README.md", ".eval_results/stm.yaml")


def put(folder: Path, what: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(what)
    return folder


def replace(folder: Path, what: str, force: bool = False) -> None:
    with atomic.replacing(folder, NAMES, force=force) as new:
        put(new, what)


def content(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def whole(what: str) -> dict[str, str]:
    return dict.fromkeys(NAMES, what)
