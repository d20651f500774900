"""A kill before every call that changes a file, and every such call failing: the old is whole or the new is, nothing is
left, the next run succeeds."""

import errno
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stm.export.formats import FORMATS
from tests.faults.fault import Fault, Ran
from tests.faults.jobs import DRAFT, JOBS, Job, Tree, World, sentence, whole

ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT)
KILL, TORN = Fault(signal=signal.SIGKILL), Fault(signal=signal.SIGKILL, tear=True)
FAULTS = (KILL, TORN, *(Fault(error=each) for each in ERRORS))
# What may fail without a word: what clears up when all is done, and the exchange in one step, after which two renames
# are tried.
CLEANING = ("unlink", "unlinkat", "rmdir", "chmod", "renameat2")


def slow(name: str) -> pytest.MarkDecorator:
    """The mark of a whole search, which runs the command two to three hundred times: each second of it is minutes."""
    seconds = {
        "aoti": 600,
        "openvino": 330,
        "pt2": 300,
        "sweep": 260,
        "fit": 180,
        "download": 150,
        "compress --force": 130,
        "onnx": 90,
        "report": 70,
        "export": 60,
        "eval": 60,
    }
    return pytest.mark.slow(seconds=seconds.get(name, 110), search=True)


class Outcomes:
    """What the faults of one job led to."""

    def __init__(self, world: World, job: Job) -> None:
        self.world, self.job = world, job
        world.clear()
        if not {"me/vim", "owner/vim", "imagenet-v2"} & {*job.argv}:  # a connection of one process is no other's
            assert world.engine.warm(*job.argv) == 0
            world.clear()
        for argv in job.before:
            assert world.engine(*argv).code == 0
        self.before = world.tree()
        done = world.engine(*job.argv)
        assert done.code == 0, done.err
        self.after, self.calls = world.tree(), done.calls
        self.published = self.commits()
        self.went_on: dict[str, None] = {}
        self.faults: list[str] = []
        self.counts = {"killed": 0, "failed": 0, "done": 0}

    def commits(self) -> list[dict[str, bytes]]:
        return [repo.files for name, repo in self.world.hub.repos.items() if name == "me/vim"]

    def kinds(self, at: int) -> tuple[Fault, ...]:
        """All; within a stretch of equal calls, as the tensors of a file are written, one error in turn."""
        return (KILL, FAULTS[2 + at % 4]) if len(set(self.calls[max(0, at - 2) : at + 1])) == 1 else FAULTS

    def meet(self, at: int, kind: Fault) -> None:
        """Run the command with a fault at one call, and then without."""
        fault = Fault(at, kind.error, kind.signal, kind.tear)
        self.world.restore(self.before)
        ran = self.world.engine(*self.job.argv, fault=fault)
        call = ran.calls[at - 1] if at <= len(ran.calls) else "none"
        what = f"{errno.errorcode.get(kind.error, 'torn' if kind.tear else 'kill')} at {at} {DRAFT.sub('.draft', call)}"
        for wrong in self.wrong(ran, call, bool(kind.error)):
            self.faults.append(f"{what}: {wrong}")
            print(self.faults[-1], flush=True)

    def wrong(self, ran: Ran, call: str, failed: bool) -> Iterator[str]:
        tree = self.world.tree()
        if not failed:
            self.counts["killed"] += 1
            if ran.code != -signal.SIGKILL:
                yield f"ended with {ran.code}"
        elif ran.code == 0:
            self.counts["done"] += 1
            # To make a folder that is there fails as it should.
            there = self.before.get(call.partition(" /")[2], b"") is None
            there = there or (call.startswith("mkdir") and ran.calls.count(call) > 1)
            if not (there or call.startswith(CLEANING) or self.is_optional(call)):
                yield "the error was swallowed"
            elif self.is_optional(call) and not (there or call.startswith(CLEANING)) and self.job.told not in ran.err:
                yield f"nobody was told: {ran.err!r}"
            if self.results(tree) != self.results(self.after):
                yield f"it says that it is done: {self.difference(tree, self.after)}"
        else:
            self.counts["failed"] += 1
            if ran.code != 1 or sentence(ran.err) is None or ran.out:
                yield f"ended with {ran.code} and said {ran.err!r} {ran.out[:80]!r}"
            left = sorted(set(self.results(tree)) - set(self.before) - self.growing(tree))
            if left and self.results(tree) != self.results(self.after):  # equal: the fault was after the rename
                yield f"left {left}"
        if failed and (drafts := [name for name in tree if DRAFT.search(name)]):
            yield f"left {drafts}"
        yield from self.torn(tree)
        again = self.job.argv + (("--force",) if self.job.force else ())
        # The next run. One state has one next run: names of drafts apart, and their content, which nobody reads.
        known = {DRAFT.sub(".draft", name): b"" if DRAFT.search(name) else body for name, body in tree.items()}
        state = repr((sorted(known.items()), self.commits(), self.world.libraries()))
        if state not in self.went_on:
            self.went_on[state] = None
            more = self.world.engine(*again)
            if more.code:
                yield f"the next run ended with {more.code} and said {more.err!r}"
            elif (now := self.seen(self.world.tree())) != self.seen(self.after):
                yield f"after the next run: {self.difference(now, self.seen(self.after))}"
            elif self.commits() != self.published:
                yield "the next run published something else"
            elif half := [path.name for path in (self.world.here / "home" / "assets").rglob("*.incomplete")]:
                yield f"after the next run half of a set is left: {half}"

    def is_optional(self, call: str) -> bool:
        return re.search(self.job.optional, call.partition(" ")[2]) is not None

    def growing(self, tree: Tree) -> set[str]:
        return {name for name in tree if self.job.grows and name.startswith(self.job.grows) and not DRAFT.search(name)}

    def results(self, tree: Tree) -> dict[str, object]:
        return {name: body for name, body in self.seen(tree).items() if not name.startswith("cache")}

    def seen(self, tree: Tree) -> dict[str, object]:
        return {name: body if self.job.exact else whole(name, body) for name, body in tree.items()}

    def torn(self, tree: Tree) -> Iterator[str]:
        """What is there under its own name is of the old or of the new, all of one, unless it grows."""
        mine = {
            name: body
            for name, body in self.results(tree).items()
            if not DRAFT.search(name) and not (self.job.grows and name.startswith(self.job.grows)) and body is not None
        }
        olds = {name: body for name, body in self.results(self.before).items() if body is not None}
        news = {
            name: body
            for name, body in self.results(self.after).items()
            if body is not None and not (self.job.grows and name.startswith(self.job.grows))
        }
        if mine not in (olds, news):
            yield f"neither the old nor the new: {self.difference(mine, news)}"

    def difference(self, one: dict[str, Any], other: dict[str, Any]) -> str:
        return f"{sorted(name for name in {*one, *other} if one.get(name, b'-') != other.get(name, b'-'))}"


@pytest.mark.parametrize("name", ["compress --force", "export", "eval", "push"])
def test_some_faults(world: World, name: str) -> None:
    """At calls all over the command; the slow test takes all calls of all commands."""
    outcomes = Outcomes(world, JOBS[name])
    some = (KILL, *(Fault(error=each) for each in ERRORS[:3]), KILL)
    for number, kind in enumerate(some):
        outcomes.meet(1 + number * (len(outcomes.calls) - 1) // (len(some) - 1), kind)
    assert outcomes.faults == []


@pytest.mark.parametrize("name", [pytest.param(name, marks=slow(name)) for name in JOBS])
def test_every_fault_at_every_call(world: World, name: str) -> None:
    if name in FORMATS and (FORMATS[name].packages or any(shutil.which(tool) is None for tool in FORMATS[name].tools)):
        pytest.skip("not installed")
    outcomes = Outcomes(world, JOBS[name])
    for at in range(1, len(outcomes.calls) + 1):
        for kind in outcomes.kinds(at):
            outcomes.meet(at, kind)
    print(name, len(outcomes.calls), "calls:", outcomes.counts, len(outcomes.went_on), "states")
    assert outcomes.faults == []


def test_the_shim_reaches_what_it_counts(world: World, tmp_path: Path) -> None:
    """A write that is not counted would never fail."""
    world.clear()
    calls = world.engine(*JOBS["export"].argv).calls
    assert {call.split()[0] for call in calls} >= {"open", "write", "rename", "fsync"}
