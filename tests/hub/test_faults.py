"""Commands under a server's faults (faults.py): each gets through, or ends with one sentence and exit code 1.

No fault leaves a command without an end, shows the login, or writes outside the cache. The same command again succeeds.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.hub.conftest import MINI, Run, Worker
from tests.hub.faults import ROWS, Row
from tests.hub.server import Hub, Repo
from tests.hub.test_samples import PICTURES, parquet

LOGIN = "hf_ThisIsNotToBeShownEither"
SET_UP = """
import time
from stm.hub import guard
guard._PATIENCE, guard._PAGES = {patience}, 5
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


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_fault(shop: Shop, folder: Path, tmp_path: Path, mini: bytes, row: Row) -> None:
    hub, other = shop.hub, shop.other
    for each in (hub, other):
        each.clear()
    shutil.rmtree(shop.home / "hf", ignore_errors=True)
    hub.logins[LOGIN] = "me"
    hub.repos["owner/vim"] = Repo({"vim.pth": mini, "README.md": b"---\nlicense: mit\n---\n"})
    hub.repos["datasets/owner/set"] = Repo({"val.parquet": parquet(PICTURES[:4])})
    hub.repos["me/vim"] = Repo({"notes.txt": b"."})
    shop.worker(tmp_path, code=SET_UP.format(patience=row.patience or 40))
    hub.faults = row.faults(other.url)
    run = shop.worker(tmp_path, argv=list(commands(row.at, folder)))
    hub.faults = []
    outcome(run, row)
    assert row.asked or not other.seen
    quiet(shop, run)
    assert {path.name for path in tmp_path.iterdir()} <= {"hf"}
    shop.worker(tmp_path, code=SET_UP.format(patience=40))
    again = shop.worker(tmp_path, argv=list(commands(row.at, folder)))
    assert again.code == 0, again.err


def outcome(run: Run, row: Row) -> None:
    if row.outcome == "":
        assert (run.code, run.err) == (0, ""), run.err
        return
    assert run.code == 1 and run.out == "", run
    errors = [line for line in run.err.splitlines() if line.startswith("Error: ")]
    said = " ".join(run.err[run.err.rindex("Error: ") :].split())
    assert len(errors) == 1 and any(
        words in said for words in ([row.outcome] if isinstance(row.outcome, str) else row.outcome)
    ), run.err
    # Whatever stands before it is the traceback that was asked for.
    assert run.err.lstrip().startswith("Traceback (most recent call last)"), run.err


def quiet(shop: Shop, run: Run) -> None:
    """The login stands nowhere but in the requests to the Hub."""
    assert LOGIN not in run.out + run.err
    assert not [seen for seen in shop.other.seen if LOGIN in str(seen)]
    kept = [path for path in shop.home.rglob("*") if path.is_file()]
    assert not [path for path in kept if LOGIN.encode() in path.read_bytes()]
    assert LOGIN not in Path(f"/proc/{shop.worker.pid}/cmdline").read_text()
