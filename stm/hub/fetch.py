"""Fetch files of a repo on the Hugging Face Hub: downloaded once, then read from the cache.

Locking, offline mode (HF_HUB_OFFLINE) and progress bars are huggingface_hub's own. It resumes a broken connection
within a run; `stm.hub.parts` resumes in the next one. It compares sizes only. So we compare each file with the hash
that the Hub names it by, and remove a file from the cache if the hash differs.
"""

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stm.checkpoint.names import weights_among
from stm.errors import HubError, listed
from stm.hub.aliases import ENDINGS
from stm.hub.errors import Request, check_token, translate_errors
from stm.hub.parts import digest_of, kept
from stm.hub.reach import asking, persist
from stm.progress import OnProgress, Progress


@dataclass(frozen=True)
class Fetched:
    """A file on this machine and its source. `revision` is a commit, also if a branch or tag was asked for."""

    path: Path
    repo: str
    file: str
    revision: str


@dataclass(frozen=True)
class About:
    """What a repo's card states of its weights: their license, and the sets that they were trained on."""

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
        file: the file's path in the repo.
        kind: of the repo: "model" or "dataset".
        revision: a branch, tag or commit; by default the main branch.
        check: compare the file with its hash, by `check_hash`.
        on_progress: called for every piece; without it, huggingface_hub draws its own bars on stderr.

    Raises:
        HubError: the file does not exist, this login may not read it, the Hub cannot be reached, the file is not what
            the Hub announced, or there is no room for it.
        UsageError: the token has characters that no token has.
    """
    check_token(token)
    # The cache would write such a path outside its own folder.
    if not file or file.startswith("/") or ".." in file.split("/"):
        raise HubError(f"{file!r} is no file of a repo", "give its path in the repo: --file FOLDER/NAME")
    request = Request(repo, file, revision, kind=kind)
    with asking(request):
        from huggingface_hub.errors import RemoteEntryNotFoundError

        bar = None if on_progress is None else _bar(on_progress, f"download {file}")
        try:
            path = _download(repo, file, repo_type=kind, revision=revision, token=token, tqdm_class=bar)
        except RemoteEntryNotFoundError as error:
            # A second request, only now that the name is known to be wrong: it buys a hint with the right one.
            names = list_files(repo, kind=kind, revision=revision, token=token)
            near = difflib.get_close_matches(file, names, 3, 0.4)
            hint = f"did you mean --file {' or '.join(near)}?" if near else f"it holds {listed(names) or 'nothing'}"
            raise HubError(f"{request} does not exist", hint) from error
    # The cache keeps files under snapshots/COMMIT/, so the path tells the commit without another request.
    fetched = Fetched(path, repo, file, path.parts[-2 - file.count("/")])
    if check:
        check_hash(fetched)
    return fetched


def check_hash(fetched: Fetched) -> None:
    """Compare a file in the cache with its hash, and remove the file if they differ.

    The cache names a file by the hash that the Hub gave: the SHA-256 of a file in LFS, the git hash of a small file.

    Raises:
        HubError: the hash differs.
    """
    path, request = fetched.path, Request(fetched.repo, fetched.file)
    if not path.is_symlink():
        return  # a file system without links: the name is not kept
    blob = path.parent / os.readlink(path)
    with translate_errors(request), open(path, "rb") as file:
        digest = digest_of(blob.name, file)
    if digest is None:
        return
    if digest != blob.name:
        # The content, its name and the link to it: any that stays would be taken for a finished download.
        for part in (path.resolve(), blob, path):
            part.unlink(missing_ok=True)
        raise HubError(
            f"{request} is not what the Hub says it is: its hash is {digest[:12]}..., expected {blob.name[:12]}...",
            "run it again",
        )


def list_files(repo: str, *, kind: str = "model", revision: str | None = None, token: str | None = None) -> list[str]:
    """Return the names of a repo's files, by one request; offline or without a network, those of its cached snapshot.

    Raises:
        HubError: the repo cannot be listed.
        UsageError: the token has characters that no token has.
    """
    check_token(token)
    with asking(Request(repo, None, revision, kind=kind)):
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import OfflineModeIsEnabled

        try:
            api = HfApi(token=token)
            return sorted(persist(lambda: api.list_repo_files(repo, repo_type=kind, revision=revision), theirs=True))
        except OfflineModeIsEnabled:
            # The cache may hold a part of the files. Whoever needs one of the others gets a sentence about the cache.
            folder = Path(snapshot_download(repo, repo_type=kind, revision=revision, local_files_only=True))
            return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def only_checkpoint(repo: str, names: list[str]) -> str:
    """Return the one checkpoint among a repo's files.

    Raises:
        HubError: there is none, or there are several.
    """
    checkpoints = weights_among(names)
    if not checkpoints:
        only = f"only {listed(names)}" if names else "nor any other file"
        raise HubError(
            f"{repo} holds no checkpoint ({', '.join(ENDINGS)}), {only}",
            "check the name, or name a file: --file NAME",
        )
    # Never a guess among several: official repositories hold a base model and a fine-tuned one.
    if len(checkpoints) > 1:
        raise HubError(
            f"{repo} holds {len(checkpoints)} checkpoints: {listed(checkpoints)}", f"name one: --file {checkpoints[0]}"
        )
    return checkpoints[0]


def about(repo: str, commit: str, *, token: str | None = None) -> About:
    """Return what the front matter of a repo's README.md states at that commit; empty if there is none.

    Raises:
        HubError: the Hub cannot be asked.
    """
    path = optional(repo, "README.md", commit, token=token)
    if path is None:
        return About()
    import yaml

    card = path.read_text(encoding="utf-8", errors="replace")
    front = re.match(r"\s*---\n(.*?)\n---", card, re.DOTALL)
    try:
        fields = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError:
        fields = None
    # Somebody else's card may hold anything. A model is not refused for its card: what is no text is left out.
    if not isinstance(fields, dict):
        return About()
    license, sets = fields.get("license"), fields.get("datasets")
    names = [sets] if isinstance(sets, str) else sets if isinstance(sets, list) else []
    return About(license if isinstance(license, str) else None, tuple(name for name in names if isinstance(name, str)))


def optional(repo: str, file: str, commit: str, *, token: str | None = None) -> Path | None:
    """Return a small file of a repo at a commit, or None if the repo has no such file.

    Raises:
        HubError: the Hub cannot be asked.
    """
    with asking(Request(repo, file, commit)):
        from huggingface_hub.errors import EntryNotFoundError

        silent = _bar(lambda _: None, "")
        try:
            path = _download(repo, file, revision=commit, token=token, tqdm_class=silent)
        except EntryNotFoundError:
            return None
    check_hash(Fetched(path, repo, file, commit))
    return path


def cached(repo: str, file: str) -> Path | None:
    """Return a file of a repo's main branch from the cache, or None. The Hub is not asked."""
    # As `huggingface_hub.try_to_load_from_cache` does, whose import takes a quarter of a second.
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    with translate_errors(Request(repo, file)):
        try:
            commit = (folder / "refs" / "main").read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None
        path = folder / "snapshots" / commit / file
        return path if path.is_file() else None


def _download(repo: str, file: str, **how: Any) -> Path:
    """Return the path of a file in the cache, and download the file first if it is not there."""
    from huggingface_hub import hf_hub_download

    with kept():
        return Path(persist(lambda: hf_hub_download(repo, file, **how), line=False))


def _bar(on_progress: OnProgress, stage: str) -> Any:
    """Return the class of a progress bar that huggingface_hub moves. It reports to `on_progress` instead of drawing."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs | {"disable": True})  # type: ignore[no-untyped-call]  # tqdm has no types

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            on_progress(Progress(stage, int(self.n), None if self.total is None else int(self.total), "B"))

        def update_transfer(self, n: float) -> None:
            """Ignore Xet's bytes on the wire, which would be a second bar: `update` reports those of the file."""

        def set_transfer_postfix_str(self, *_: Any, **__: Any) -> None:
            """Ignore Xet's speed on the wire."""

    return Bar
