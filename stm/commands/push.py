"""`stm push`: write a folder to the Hub, after a check that it runs."""

from collections.abc import Callable
from pathlib import Path

from stm.artifact import folder as artifact
from stm.hub import push as hub_push
from stm.hub.push import PushOptions
from stm.loading import load
from stm.measure.environment import environment_of
from stm.progress import OnProgress
from stm.reports import PushedFile, PushReport


def push(
    folder: str | Path,
    to: PushOptions,
    on_progress: OnProgress | None = None,
    on_files: Callable[[tuple[PushedFile, ...]], None] | None = None,
) -> PushReport:
    """Run `stm push`: load a folder as if to run it, then write it to the Hub.

    The arguments are those of `stm.hub.push.push`.

    Raises:
        ArtifactError: the folder is no model that stm wrote, or its files have changed since.
        UsageError, HubError: see `stm.hub.push.push`.
    """
    # First as a folder: `load` would take a missing `a/b` for a repository, download it, and push it back.
    artifact.read_config(folder)
    # A `Path` is never a short name, so a folder called vim-s is the folder. On the processor, because only the check
    # of shapes and hashes matters.
    model = load(Path(folder), device="cpu")
    pushed = hub_push.push(folder, model.config, to, on_progress, on_files)
    return PushReport(command="push", model=str(folder), environment=environment_of(model), **vars(pushed))
