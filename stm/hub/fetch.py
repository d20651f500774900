"""Files of a repo on the Hugging Face Hub: downloaded once, then taken from its cache.

Resuming, locking, offline mode (HF_HUB_OFFLINE) and progress bars are huggingface_hub's own.
"""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stm.errors import HubError, listed
from stm.hub.errors import Request, check_token, told
from stm.reports import OnProgress, Progress

CHECKPOINTS = (".pth", ".pt", ".bin", ".safetensors")


@dataclass(frozen=True)
class Fetched:
    """A file on this machine and where it came from: the commit that the revision stood for, the license of the repo's card."""

    path: Path
    repo: str
    file: str
    revision: str
    license: str | None


def fetch(repo: str, file: str, *, revision: str | None = None, token: str | None = None, on_progress: OnProgress | None = None) -> Fetched:
    """Download a file, or find it in the cache.

    Args:
        repo: OWNER/NAME.
        file: its path in the repo.
        revision: a branch, tag or commit; the main branch where there is none.
        on_progress: is told of every piece; without it, huggingface_hub draws its own bars on stderr.

    Raises:
        HubError: not there, not to be had with this login, not reachable, or no room for it.
        UsageError: a token that cannot be one.
    """
    check_token(token)
    if not file or file.startswith("/") or ".." in file.split("/"):
        raise HubError(f"{file!r} is no file of a repo", "give its path in the repo: --file FOLDER/NAME")
    path = _download(repo, file, revision, token, None if on_progress is None else _bar(on_progress, f"download {file}"))
    commit = path.parts[-2 - file.count("/")]  # the cache keeps files under snapshots/COMMIT/
    return Fetched(path, repo, file, commit, _license(repo, commit, token))


def find_checkpoint(repo: str, *, revision: str | None = None, token: str | None = None) -> str:
    """The name of a repo's only checkpoint.

    Raises:
        HubError: it has none or several, or cannot be listed.
        UsageError: a token that cannot be one.
    """
    check_token(token)
    names = _files(repo, revision, token)
    found = [name for name in names if name.lower().endswith(CHECKPOINTS)]
    if not found:
        only = f"only {listed(names)}" if names else "nor any other file"
        raise HubError(f"{repo} holds no checkpoint ({', '.join(CHECKPOINTS)}), {only}", "check the name, or name a file: --file NAME")
    if len(found) > 1:
        raise HubError(f"{repo} holds {len(found)} checkpoints: {listed(found)}", f"name one: --file {found[0]}")
    return found[0]


def _download(repo: str, file: str, revision: str | None, token: str | None, bar: Any) -> Path:
    request = Request(repo, file, revision)
    with told(request):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import RemoteEntryNotFoundError

        try:
            return Path(hf_hub_download(repo, file, revision=revision, token=token, tqdm_class=bar))
        except RemoteEntryNotFoundError as error:
            names = _files(repo, revision, token)
            near = difflib.get_close_matches(file, names, 3, 0.4)
            hint = f"did you mean --file {' or '.join(near)}?" if near else f"it holds {listed(names) or 'nothing'}"
            raise HubError(f"{request} does not exist", hint) from error


def _files(repo: str, revision: str | None, token: str | None) -> list[str]:
    """The files of a repo; offline, those of its cached snapshot."""
    with told(Request(repo, None, revision)):
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import OfflineModeIsEnabled

        try:
            return sorted(HfApi(token=token).list_repo_files(repo, revision=revision))
        except OfflineModeIsEnabled:
            folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
            return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _license(repo: str, commit: str, token: str | None) -> str | None:
    """`license` in the front matter of the repo's README.md at that commit; None where there is none to be had."""
    with told(Request(repo, "README.md", commit)):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        silent = _bar(lambda _: None, "")
        try:
            path = Path(hf_hub_download(repo, "README.md", revision=commit, token=token, tqdm_class=silent))
        except EntryNotFoundError:
            return None
    card = path.read_text(encoding="utf-8", errors="replace")
    front = re.match(r"\s*---\n(.*?)\n---", card, re.DOTALL)
    found = front and re.search(r"^license: *['\"]?([\w.-]+)", front[1], re.MULTILINE)
    return found[1] if found else None


def _bar(on_progress: OnProgress, stage: str) -> Any:
    """A bar that huggingface_hub moves and that tells instead of drawing."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs | {"disable": True})  # type: ignore[no-untyped-call]  # tqdm has no types

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            on_progress(Progress(stage, int(self.n), None if self.total is None else int(self.total), "B"))

        def update_transfer(self, n: float) -> None:
            """Xet's bytes on the wire, which would be a second bar; those of the file are told by `update`."""

        def set_transfer_postfix_str(self, *_: Any, **__: Any) -> None:
            """Xet's speed on the wire."""

    return Bar
