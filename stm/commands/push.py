"""`stm push`: a folder, checked as if it were to be run, to the Hub."""

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
    """`stm push`: check a folder as if it were to be run, and write it to the Hub; arguments as for
    `stm.hub.push.push`.

    Raises:
        ArtifactError: it is not a model that stm wrote, or not as it was written.
        UsageError, HubError: see `stm.hub.push.push`.
    """
    artifact.read_config(folder)  # else a name such as a/b would be loaded from the Hub
    model = load(Path(folder), device="cpu")  # a path, though it may bear a short name
    pushed = hub_push.push(folder, model.config, to, on_progress, on_files)
    return PushReport(command="push", model=str(folder), environment=environment_of(model), **vars(pushed))
