"""Push a model's folder to the Hub: checked first, in one commit, safe to run again."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stm import __version__
from stm.artifact import folder as artifact
from stm.artifact.scratch import scratch
from stm.artifact.written import tell
from stm.config import Config
from stm.errors import ArtifactError, HubError, UsageError, said
from stm.hub.card import is_untouched, retarget
from stm.hub.errors import Request, address, check_token, translate_errors
from stm.hub.guard import HubIsStrange
from stm.hub.reach import asking, persist
from stm.model.vim import ViM
from stm.progress import OnProgress, Progress
from stm.reports import Pushed, PushedFile
from stm.saving import save

_NOBODY = "USER"  # stands for the owner in the name of a repository, if nobody is logged in
_WITHOUT_LOGIN = (
    "nobody is logged in to the Hub, so a private repository is not seen, and USER stands for your name there; a push"
    " needs a login: hf auth login"
)
_KEPT = f"{artifact.CARD} in the repository was written by somebody and is kept; --overwrite-card replaces it"


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """The target of a push, and its options: those of `stm push`.

    Args:
        repo: OWNER/NAME, or NAME for the user's own repository; by default the name of the folder.
        private: make a repository that only its owner, and those whom the owner chooses, may see.
        revision: the branch; it is made if it does not exist.
        commit_message: of the one commit.
        create_pr: propose the commit as a pull request.
        token: of the Hub; by default the token of the login.
        exist_ok: whether the repository may exist.
        overwrite_card: replace a README.md that stm did not write.
        dry_run: report what would be done, and write nothing.
    """

    repo: str | None = None
    private: bool = False
    revision: str | None = None
    commit_message: str | None = None
    create_pr: bool = False
    token: str | None = None
    exist_ok: bool = True
    overwrite_card: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class _Remote:
    """A repository before the push.

    Args:
        commit: the last commit of the branch, or of the main branch if the branch does not exist.
        files: size and hash of the files at that commit.
    """

    commit: str
    private: bool
    has_branch: bool
    files: Mapping[str, tuple[int, str]]


def check(to: PushOptions) -> str | None:
    """Check the options and the login of a push, before any work, and return the user's name.

    A dry run writes nothing, so it needs no login: None if nobody is logged in.

    Raises:
        UsageError: the options exclude each other, or the token has characters that no token has.
        HubError: nobody is logged in, or the Hub cannot be reached.
    """
    check_token(to.token)
    if to.create_pr and to.revision is not None:
        raise UsageError(
            "create PR and revision were both given: a pull request is against the main branch",
            f"to add to one, give --revision {to.revision} alone",
        )
    if to.commit_message is not None and not to.commit_message.strip():
        raise UsageError("the commit message is empty", "leave --commit-message out for a plain one")
    with asking(Request(to.repo or "the repository", upload=True)):
        from huggingface_hub import HfApi
        from huggingface_hub.errors import LocalTokenNotFoundError

        try:
            user = persist(lambda: HfApi(token=to.token).whoami())
        except LocalTokenNotFoundError as error:
            if to.dry_run:
                return None
            raise HubError("nobody is logged in to the Hub", "log in with: hf auth login, or give --token") from error
        if not (isinstance(user, dict) and isinstance(user.get("name"), str)):
            raise HubIsStrange("it names no user")
        return str(user["name"])


def push(
    folder: str | os.PathLike[str],
    config: Config,
    to: PushOptions,
    on_progress: OnProgress | None = None,
    on_files: Callable[[tuple[PushedFile, ...]], None] | None = None,
) -> Pushed:
    """Write a folder that was checked to the Hub, in one commit. If nothing has changed, nothing is written.

    Args:
        folder: a model that stm wrote.
        config: the config of that folder.
        on_progress: called when the upload begins and ends; without it, huggingface_hub draws its own bars on stderr.
        on_files: called with the files that will be uploaded, before the upload.

    Raises:
        ArtifactError: the folder has no card, or one whose front matter is not YAML.
        UsageError: see `check`.
        HubError: the repository exists although it may not, is public although a private one was asked for, may not be
            written, was changed by somebody meanwhile, or cannot be reached.
    """
    # The folder before the login: a fault of the folder needs no network to be found.
    source = Path(folder)
    ours = _read_card(source)
    user = check(to)
    repo = to.repo or source.resolve().name
    repo = repo if "/" in repo else f"{user or _NOBODY}/{repo}"
    notes = [] if user is not None else [_WITHOUT_LOGIN]
    if is_untouched(ours):  # the card tells how to load the model, which from now on has the name of the repository
        ours = retarget(ours, config, repo)
    with asking(Request(repo, revision=to.revision, upload=True)):
        from huggingface_hub import HfApi

        api = HfApi(token=to.token, library_name="stm", library_version=__version__)
        remote = None if repo.startswith(f"{_NOBODY}/") else _look(api, repo, to.revision)
        if remote is not None and not to.exist_ok:
            raise HubError(f"{repo} exists", "choose another name, or allow it with --exist-ok")
        if remote is not None and to.private and not remote.private:
            raise HubError(
                f"{repo} exists and is public, and --private was given",
                "choose another name, or change its settings on the Hub",
            )
        kept = remote is not None and not to.overwrite_card and _somebody_wrote(api, repo, remote, ours)
        files = _changes(source, ours, config, {} if remote is None else remote.files, kept)
        commit = pull_request = None
        changed = any(file.change not in ("unchanged", "kept") for file in files)
        if changed and not to.dry_run:
            if on_files is not None:
                on_files(tuple(files))
            with _progress(on_progress, files):
                commit, pull_request = _upload(api, repo, remote, to, source, ours, files)
    # The main branch's page is the repository's own.
    branch = to.revision if to.revision not in (None, "main") else None
    return Pushed(
        repo=repo,
        url=pull_request or (f"{address()}/{repo}/tree/{branch}" if branch else f"{address()}/{repo}"),
        revision=to.revision,
        commit=commit,
        pull_request=pull_request,
        created=remote is None,
        dry_run=to.dry_run,
        files=tuple(files),
        notes=(*notes, *((_KEPT,) if kept else ())),
    )


def push_model(model: ViM, to: PushOptions) -> Pushed:
    """Push a model that may never have been saved; see `ViM.push_to_hub`."""
    check(to)  # before the model is written: who may not push learns it at once
    with scratch("stm-push") as temporary:
        folder = temporary / (to.repo or "model").rpartition("/")[2]
        return push(folder, save(model, folder), to)


def _read_card(folder: Path) -> str:
    with translate_errors(Request(str(folder), upload=True)):
        from huggingface_hub import ModelCard
        from yaml import YAMLError

    path = folder / artifact.CARD
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{folder} has no {artifact.CARD}, which is the model's card", "write the folder again, with --force"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read: {said(error)}") from error
    # The Hub would refuse the commit for this, but only after the weights were uploaded.
    try:
        ModelCard(text, ignore_metadata_errors=False)
    except (YAMLError, ValueError) as error:
        reason = said(error)
        raise ArtifactError(
            f"{path}: its front matter is not what the Hub takes: {reason}", "mend the lines between ---"
        ) from error
    return text


def _look(api: Any, repo: str, revision: str | None) -> _Remote | None:
    """Return the repository as it is; None if it does not exist, or if this login may not see it."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    # Looked at once, before anything is written. `_upload` hands the commit back, and the Hub compares.
    has_branch = True
    try:
        try:
            info = persist(lambda: api.model_info(repo, revision=revision, files_metadata=True))
        except RevisionNotFoundError:
            has_branch = False
            info = persist(lambda: api.model_info(repo, files_metadata=True))
    except GatedRepoError:  # a kind of RepositoryNotFoundError, but the repository exists
        raise
    except RepositoryNotFoundError:
        return None
    if not isinstance(info.sha, str):
        raise HubIsStrange("it names no commit")
    files = {
        file.rfilename: (file.size or 0, file.lfs.sha256 if file.lfs else file.blob_id or "")
        for file in info.siblings or ()
    }
    return _Remote(info.sha, bool(info.private), has_branch, files)


def _somebody_wrote(api: Any, repo: str, remote: _Remote, ours: str) -> bool:
    """Return whether somebody wrote in the repository's README.md: it is not `ours`, nor as any stm wrote it."""
    if artifact.CARD not in remote.files:
        return False
    from stm.hub.fetch import fetch

    theirs = fetch(repo, artifact.CARD, revision=remote.commit, token=api.token, on_progress=lambda _: None)
    text = theirs.path.read_text(encoding="utf-8", errors="replace")
    # A card of another version of stm may be replaced too: its seal shows that nobody has changed it.
    return text != ours and not is_untouched(text)


def _changes(
    folder: Path, card: str, config: Config, there: Mapping[str, tuple[int, str]], kept: bool
) -> list[PushedFile]:
    """Return every file that stm writes, in the folder or in the repository (`there`), and what becomes of it."""
    files = []
    for name in artifact.FILES:
        path = folder / name
        if not path.is_file():
            if name in there:
                files.append(PushedFile(name=name, bytes=there[name][0], change="deleted"))
            continue
        # The Hub names a file by its SHA-256 if it keeps the file in LFS, else by its git hash, and decides which. The
        # weights go to LFS (the Hub's .gitattributes), and config.json holds their SHA-256: no need to read them.
        if name == artifact.WEIGHTS:
            size, hashes = config.files[name].bytes, {config.files[name].sha256}
        else:
            body = card.encode() if name == artifact.CARD else path.read_bytes()
            git = hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False).hexdigest()
            size, hashes = len(body), {git, hashlib.sha256(body).hexdigest()}
        change = "added" if name not in there else "unchanged" if there[name][1] in hashes else "changed"
        change = "kept" if name == artifact.CARD and kept else change
        files.append(PushedFile(name=name, bytes=size, change=change))
    return files


def _upload(
    api: Any, repo: str, remote: _Remote | None, to: PushOptions, folder: Path, card: str, files: list[PushedFile]
) -> tuple[str, str | None]:
    """Write the commit, and return its hash and the address of the pull request, if it is one.

    The Hub refuses the commit if the branch is no longer at the commit that was looked at. So no change of somebody
    else is lost.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if remote is None:
        api.create_repo(repo, private=to.private or None, exist_ok=to.exist_ok)
        tell(f"{address()}/{repo}", grows=True)
    if to.revision not in (None, "main") and (remote is None or not remote.has_branch):
        api.create_branch(repo, branch=to.revision, exist_ok=True)
    # One commit, from the files' own folder. `upload_folder` may split a large upload into several commits, and would
    # need a copy of the folder with the other card, which a killed run leaves behind.
    operations = [
        CommitOperationAdd(file.name, card.encode() if file.name == artifact.CARD else str(folder / file.name))
        for file in files
        if file.change in ("added", "changed")
    ] + [CommitOperationDelete(file.name) for file in files if file.change == "deleted"]
    try:
        done = api.create_commit(
            repo_id=repo,
            operations=operations,
            revision=to.revision,
            commit_message=to.commit_message or f"Upload a model with stm {__version__}",
            create_pr=to.create_pr,
            parent_commit=remote.commit if remote is not None else None,
        )
    except (HfHubHTTPError, HFValidationError):
        raise
    except RuntimeError as error:  # huggingface_hub wraps a failed upload of a large file in it
        raise (error.__cause__ or error) from error
    except ValueError as error:  # huggingface_hub repeats in it what the Hub says of the front matter
        if "metadata" not in str(error):
            raise
        raise HubError(f"the Hub does not take {artifact.CARD}: {said(error)}", "mend the lines between ---") from error
    return done.oid, done.pr_url


@contextmanager
def _progress(on_progress: OnProgress | None, files: list[PushedFile]) -> Iterator[None]:
    """Report the begin and the end of an upload, and keep huggingface_hub from drawing its bars meanwhile.

    huggingface_hub has no hook for uploads, so nothing is reported in between. Without `on_progress` it draws its bars.
    """
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if on_progress is None:
        yield
        return
    size = sum(file.bytes for file in files if file.change in ("added", "changed"))
    on_progress(Progress("upload", 0, size, "B"))
    quiet = not are_progress_bars_disabled()
    if quiet:
        disable_progress_bars()
    try:
        yield
    finally:
        if quiet:
            enable_progress_bars()
    on_progress(Progress("upload", size, size, "B"))
