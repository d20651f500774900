"""Files of a repo on the Hugging Face Hub: downloaded once, then taken from its cache.

Resuming, locking, offline mode (HF_HUB_OFFLINE) and progress bars are huggingface_hub's own. It compares sizes only, so
what comes is also held to the hash that the Hub names it by, and does not stay in the cache where it is something else.
"""

import difflib
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stm.errors import HubError, listed
from stm.hub.errors import Request, check_token, translate_errors
from stm.progress import OnProgress, Progress

CHECKPOINTS = (".pth", ".pt", ".bin", ".safetensors")


@dataclass(frozen=True)
class Fetched:
    """A file on this machine and where it came from: `revision` is the commit that was meant."""

    path: Path
    repo: str
    file: str
    revision: str


@dataclass(frozen=True)
class About:
    """What the card of a repo says of its weights: their license, and the sets that they were trained on."""

    license: str | None = None
    datasets: tuple[str, ...] = ()


def fetch(
    repo: str,
    file: str,
    *,
    kind: str = "model",
    revision: str | None = None,
    token: str | None = None,
    check: bool = True,
    on_progress: OnProgress | None = None,
) -> Fetched:
    """Download a file, or find it in the cache.

    Args:
        repo: OWNER/NAME.
        file: its path in the repo.
        kind: of the repo: "model" or "dataset".
        revision: a branch, tag or commit; the main branch where there is none.
        check: hold it to its hash, by `check_hash`.
        on_progress: is told of every piece; without it, huggingface_hub draws its own bars on stderr.

    Raises:
        HubError: not there, not to be had with this login, not reachable, not what the Hub announced, or no room for
            it.
        UsageError: a token that cannot be one.
    """
    check_token(token)
    if not file or file.startswith("/") or ".." in file.split("/"):
        raise HubError(f"{file!r} is no file of a repo", "give its path in the repo: --file FOLDER/NAME")
    request = Request(repo, file, revision, kind=kind)
    with translate_errors(request):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import RemoteEntryNotFoundError

        bar = None if on_progress is None else _bar(on_progress, f"download {file}")
        try:
            path = Path(hf_hub_download(repo, file, repo_type=kind, revision=revision, token=token, tqdm_class=bar))
        except RemoteEntryNotFoundError as error:
            names = list_files(repo, kind=kind, revision=revision, token=token)
            near = difflib.get_close_matches(file, names, 3, 0.4)
            hint = f"did you mean --file {' or '.join(near)}?" if near else f"it holds {listed(names) or 'nothing'}"
            raise HubError(f"{request} does not exist", hint) from error
    found = Fetched(path, repo, file, path.parts[-2 - file.count("/")])  # the cache keeps files under snapshots/COMMIT/
    if check:
        check_hash(found)
    return found


def check_hash(fetched: Fetched) -> None:
    """Hold a file in the cache to its name there, which is its SHA-256 or, if it is small, its git hash; else remove
    it.

    Raises:
        HubError: it is something else.
    """
    path, request = fetched.path, Request(fetched.repo, fetched.file)
    if not path.is_symlink():
        return  # a file system without links: the name is not kept
    blob = path.parent / os.readlink(path)
    with translate_errors(request), open(path, "rb") as file:
        if re.fullmatch(r"[0-9a-f]{64}", blob.name):
            found = hashlib.file_digest(file, "sha256").hexdigest()
        elif re.fullmatch(r"[0-9a-f]{40}", blob.name):
            found = hashlib.sha1(b"blob %d\0" % path.stat().st_size + file.read(), usedforsecurity=False).hexdigest()
        else:
            return
    if found != blob.name:
        for each in (path.resolve(), blob, path):
            each.unlink(missing_ok=True)
        raise HubError(
            f"{request} is not what the Hub says it is: its hash is {found[:12]}..., expected {blob.name[:12]}...",
            "run it again",
        )


def list_files(repo: str, *, kind: str = "model", revision: str | None = None, token: str | None = None) -> list[str]:
    """The files of a repo, by one call; offline, those of its cached snapshot.

    Raises:
        HubError: it cannot be listed.
        UsageError: a token that cannot be one.
    """
    check_token(token)
    with translate_errors(Request(repo, None, revision, kind=kind)):
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import OfflineModeIsEnabled

        try:
            return sorted(HfApi(token=token).list_repo_files(repo, repo_type=kind, revision=revision))
        except OfflineModeIsEnabled:
            folder = Path(snapshot_download(repo, repo_type=kind, revision=revision, local_files_only=True))
            return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def only_checkpoint(repo: str, names: list[str]) -> str:
    """The one checkpoint among a repo's files.

    Raises:
        HubError: there is none, or there are several.
    """
    found = [name for name in names if name.lower().endswith(CHECKPOINTS)]
    if not found:
        only = f"only {listed(names)}" if names else "nor any other file"
        raise HubError(
            f"{repo} holds no checkpoint ({', '.join(CHECKPOINTS)}), {only}",
            "check the name, or name a file: --file NAME",
        )
    if len(found) > 1:
        raise HubError(f"{repo} holds {len(found)} checkpoints: {listed(found)}", f"name one: --file {found[0]}")
    return found[0]


def about(repo: str, commit: str, *, token: str | None = None) -> About:
    """What the front matter of the repo's README.md says at that commit; nothing where there is none to be had.

    Raises:
        HubError: it cannot be asked for.
    """
    with translate_errors(Request(repo, "README.md", commit)):
        import yaml
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        silent = _bar(lambda _: None, "")
        try:
            path = Path(hf_hub_download(repo, "README.md", revision=commit, token=token, tqdm_class=silent))
        except EntryNotFoundError:
            return About()
    card = path.read_text(encoding="utf-8", errors="replace")
    front = re.match(r"\s*---\n(.*?)\n---", card, re.DOTALL)
    try:
        found = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict):
        return About()
    license, sets = found.get("license"), found.get("datasets")
    names = [sets] if isinstance(sets, str) else sets if isinstance(sets, list) else []
    return About(license if isinstance(license, str) else None, tuple(name for name in names if isinstance(name, str)))


def cached(repo: str, file: str) -> Path | None:
    """A file of a repo's main branch as it is in the cache; nothing is asked of the Hub."""
    with translate_errors(Request(repo, file)):
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(repo, file)
        return Path(path) if isinstance(path, str) else None


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
