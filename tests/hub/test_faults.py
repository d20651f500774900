"""Commands under a server's faults (faults.py): each gets through, or ends with one sentence and exit code 1.

No fault leaves a command without an end, shows the login, or writes outside the cache. The same command again succeeds.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from stm.errors import HubError, UsageError
from stm.hub.errors import Request, address, explain_error, translate_errors
from stm.hub.links import read_link
from tests.hub.conftest import MINI, Run, Worker
from tests.hub.faults import RESUMED, ROWS, Row
from tests.hub.server import Hub, Repo
from tests.hub.test_samples import PICTURES, parquet

LOGIN = "hf_ThisIsNotToBeShownEither"
SET_UP = """
import time
from stm.hub import guard
guard._PATIENCE, guard._PAGES, guard.slept = {patience}, 5, []
time.sleep = guard.slept.append
"""


class Shop(NamedTuple):
    """A Hub, a process that runs commands against it with a traceback for every error, and its cache."""

    hub: Hub
    other: Hub
    worker: Worker
    home: Path


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    home = tmp_path_factory.mktemp("faults")
    with Hub() as hub, Hub() as other:
        worker = Worker(hub.environment(home / "hf") | {"HF_TOKEN": LOGIN, "STM_DEBUG": "1"})
        yield Shop(hub, other, worker, home)
        worker.close()


def commands(at: str, folder: Path) -> tuple[str, ...]:
    if at.startswith(("model", "card")):
        return ("info", "owner/vim", "--quiet")
    if at.startswith("set"):
        return ("eval", str(MINI), "--data", "hf:owner/set:val", "--quiet", "--workers", "0")
    return ("push", str(folder), "me/vim", "--quiet")


def chosen() -> Iterator[Any]:
    """All rows; those that are like an earlier one only with the slow tests."""
    kinds = set()
    for row in ROWS:
        kind = (
            str(row.outcome),
            row.patience is None,
            *row.fault,
            *row.fault.get("headers", row.fault.get("more", ())),
        )
        marks = [pytest.mark.slow(seconds=4, search=True)] if kind in kinds else []
        kinds.add(kind)
        yield pytest.param(row, id=str(row), marks=marks)


@pytest.mark.parametrize("row", list(chosen()))
def test_a_fault(shop: Shop, folder: Path, tmp_path: Path, mini: bytes, row: Row) -> None:
    hub, other = shop.hub, shop.other
    for each in (hub, other):
        each.clear()
    shutil.rmtree(shop.home / "hf", ignore_errors=True)
    hub.logins[LOGIN] = "me"
    hub.repos["owner/vim"] = Repo({"vim.pth": mini, "README.md": b"---\nlicense: mit\n---\n" + b"A model. " * 100})
    hub.repos["datasets/owner/set"] = Repo({"val.parquet": parquet(PICTURES[:4])})
    hub.repos["me/vim"] = Repo({"notes.txt": b"."})
    shop.worker(tmp_path, code=SET_UP.format(patience=row.patience or 40))
    hub.faults = row.faults(other.url)
    run = shop.worker(tmp_path, argv=list(commands(row.at, folder)))
    hub.faults = []
    outcome(run, row.outcome)
    slept = float(shop.worker(tmp_path, code="from stm.hub import guard; print(sum(guard.slept))").out)
    assert slept <= 60, "as long as nobody would wait"
    assert row.asked or not other.seen
    quiet(shop, run)
    assert {path.name for path in tmp_path.iterdir()} <= {"hf"}
    shop.worker(tmp_path, code=SET_UP.format(patience=40))
    again = shop.worker(tmp_path, argv=list(commands(row.at, folder)))
    assert again.code == 0, again.err


def outcome(run: Run, expected: str | tuple[str, ...]) -> None:
    if expected == RESUMED:
        assert (run.code, run.err) == (0, ""), run.err
        return
    assert run.code == 1 and run.out == "", run
    errors = [line for line in run.err.splitlines() if line.startswith("Error: ")]
    said = " ".join(run.err[run.err.rindex("Error: ") :].split())
    assert len(errors) == 1, run.err
    assert any(words in said for words in ((expected,) if isinstance(expected, str) else expected)), run.err
    # Whatever stands before it is the traceback that was asked for, which is indented.
    before = run.err[: run.err.rindex("Error: ")].splitlines()
    assert all(line.startswith("  ") or not line for line in before), run.err


def quiet(shop: Shop, run: Run) -> None:
    """The login stands nowhere but in the requests to the Hub."""
    assert LOGIN not in run.out + run.err
    assert not [seen for seen in shop.other.seen if LOGIN in str(seen)]
    kept = [path for path in shop.home.rglob("*") if path.is_file()]
    assert not [path for path in kept if LOGIN.encode() in path.read_bytes()]
    assert LOGIN not in Path(f"/proc/{shop.worker.pid}/cmdline").read_text()


@pytest.mark.parametrize(
    ("link", "target", "end"),
    [
        ("snapshots/{commit}/vim.pth", "/etc/passwd", "is a text file, not a checkpoint"),
        ("snapshots/{commit}/vim.pth", "vim.pth", RESUMED),
        ("snapshots/{commit}/vim.pth", "nowhere", RESUMED),
        ("snapshots/{commit}", "/proc/self/nowhere", "cannot be kept"),
        ("blobs", "/proc/self/nowhere", "cannot be kept"),
        ("refs/main", "/proc/self/nowhere", RESUMED),
    ],
)
def test_links_in_the_cache(shop: Shop, tmp_path: Path, mini: bytes, link: str, target: str, end: str) -> None:
    """A cache that somebody else wrote: a link to another file, to itself, to nothing, and folders that are links."""
    hub = shop.hub
    hub.clear()
    hub.repos["owner/vim"] = Repo({"vim.pth": mini})
    shutil.rmtree(shop.home / "hf", ignore_errors=True)
    path = shop.home / "hf/hub/models--owner--vim" / link.format(commit=hub.repos["owner/vim"].refs["main"])
    path.parent.mkdir(parents=True)
    path.symlink_to(target)
    run = shop.worker(tmp_path, argv=["info", "owner/vim", "--quiet"])
    quiet(shop, run)
    outcome(run, end)
    assert Path("/etc/passwd").is_file()


def test_a_login_in_the_address_of_the_hub_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", f"https://me:{LOGIN}@mirror.example")
    assert address() == "https://mirror.example"
    assert LOGIN not in str(explain_error(TimeoutError(), Request("owner/vim"))) + Request("owner/vim").page
    with pytest.raises(UsageError) as caught:
        read_link("https://elsewhere.example/owner/vim")
    assert LOGIN not in caught.value.message + str(caught.value.hint)


def test_what_fails_in_the_client_is_not_a_fault_of_ours_and_what_fails_in_ours_is() -> None:
    """By where an error comes from: huggingface_hub calls us back, and what it calls may fail too."""
    import huggingface_hub.utils as theirs

    with pytest.raises(HubError, match="cannot read the answer"), translate_errors(Request("owner/vim")):
        theirs.filter_repo_objects(3).__next__()  # type: ignore[call-overload]

    fail = eval("lambda _: {}['a bug']", {"__name__": "stm.somewhere"})
    with pytest.raises(KeyError), translate_errors(Request("owner/vim")):
        list(theirs.filter_repo_objects(["a"], allow_patterns="a", key=fail))
