"""Share a measurement among processes: which process does which batch, and how all processes get all records.

`torchrun` starts the same command several times, and tells each process its number in the environment. Every process
then does the same things in the same order. It takes every `size`-th batch, and after each round of `size` batches all
processes hold the records of all. So every process makes the same report, the first process alone writes and prints,
and a set is never padded to divide evenly.

Processes exchange records, which are Python objects in the host's memory. torch sets up its default pair of backends:
gloo for the host, NCCL for CUDA devices. So gloo carries the records, on GPUs too. A process that waits in gloo learns
at once that another process died; a process that waits for a kernel of NCCL does not.
"""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from stm.errors import DataError, StmError, said

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class World:
    """The number of this process, and the number of all processes.

    Args:
        rank, size: among the processes of all machines.
        local_rank, local_size: among the processes of this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def first(self) -> bool:
        """Return whether this is the process that writes and prints."""
        return self.rank == 0

    def shard(self, items: Sequence[T]) -> Sequence[T]:
        """Return every `size`-th item, from the `rank`-th on."""
        return items[self.rank :: self.size]

    def in_rounds(self, mine: Iterator[T], count: int) -> Iterator[T | None]:
        """Yield this process's items of `count` in all, then None if the last round has no item for it."""
        # The None keeps all processes in the same number of rounds: `gather` waits for every one of them.
        for _ in range(-(-count // self.size)):
            yield next(mine, None)

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, in their order. All processes must call this.

        Raises:
            StmError: another process died.
        """
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        with _noticing_deaths():
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        """Return the first process's value. All processes must call this.

        Raises:
            StmError: another process died.
        """
        if self.size == 1:
            return value
        import torch.distributed as dist

        values = [value]
        with _noticing_deaths():
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def map(self, work: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Return `work` of every item, in order. Each process does its share, and all get all results."""
        shares = self.gather([work(item) for item in self.shard(items)])
        return [shares[index % self.size][index // self.size] for index in range(len(items))]

    def check_same(self, **what: str) -> None:
        """Refuse to go on if the processes do not have the same model or images.

        Args:
            what: fingerprints, each under the name of the thing that it is of.

        Raises:
            DataError: a fingerprint of another process differs.
        """
        for rank, theirs in enumerate(self.gather(what)):
            for name, mark in theirs.items():
                if mark != what[name]:
                    hint = "give every machine the same files under the same names"
                    raise DataError(
                        f"process {self.rank} has another {name.replace('_', ' ')} than process {rank}", hint
                    )


ALONE = World()
PATIENCE = timedelta(days=1)  # for a slow process only, as a process that died is noticed at once


def current_world() -> World:
    """Return the world that the environment describes, by the names that torchrun and torch's env:// use."""
    # All four must be there: a scheduler may set RANK for reasons of its own, and then nobody would answer.
    rank, size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    if not (
        rank.isdigit()
        and size.isdigit()
        and {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
        and int(rank) < int(size)
    ):
        return ALONE
    local = os.environ.get("LOCAL_RANK", rank), os.environ.get("LOCAL_WORLD_SIZE", size)
    return World(int(rank), int(size), *map(int, local))


@contextmanager
def joined() -> Iterator[World]:
    """Connect the processes of this command while the block runs, and yield their world. Do nothing if there is one.

    An error in any process ends all of them. The first process that fails raises its error; the errors of the others
    have no message, so that the user reads one sentence. On CUDA the processes of a machine take its devices in turns.

    Raises:
        StmError: another process died, or could not be reached.
    """
    world = current_world()
    if world.size == 1:
        yield world
        return
    import torch.distributed as dist

    before = signal.signal(signal.SIGTERM, _terminate)
    store: Store | None = None
    try:
        store = _meet()
        _connect(world, store)
        yield world
        signal.signal(signal.SIGTERM, before)
    except (Exception, _Terminated) as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second SIGTERM must not end us before the error is printed
        if store is not None and not _speaks(store):
            raise _Silent(getattr(error, "exit_code", StmError.exit_code)) from error
        if isinstance(error, _Terminated):
            raise _died() from error
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _meet() -> "Store":
    """Return the store that all processes write to and read from."""
    from torch.distributed.rendezvous import rendezvous

    with _telling("the processes of this run cannot meet"):
        return next(rendezvous("env://"))[0]


def _connect(world: World, store: "Store") -> None:
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore

    if torch.cuda.is_available():
        torch.cuda.set_device(world.local_rank % torch.cuda.device_count())
    # The prefix keeps our keys apart from those that torchrun itself keeps in the same store.
    with _telling("the processes of this run cannot connect"):
        dist.init_process_group(
            store=PrefixStore("stm", store), rank=world.rank, world_size=world.size, timeout=PATIENCE
        )


@contextmanager
def _telling(what: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise StmError(f"{what}: {said(error)}", "see the address and the port that torchrun was given") from error


class _Silent(StmError):
    """An error without a message, because another process prints the reason."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("")
        self.exit_code = exit_code


class _Terminated(BaseException):
    """SIGTERM came. It is no Exception, so that the image that was being decoded does not count as broken."""


def _terminate(number: int, frame: FrameType | None) -> None:
    """Raise _Terminated: when a process dies, torchrun sends SIGTERM to the others."""
    raise _Terminated


@contextmanager
def _noticing_deaths() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch raises it for every failed connection
        raise _died() from error


def _died() -> StmError:
    hint = "run the same command again: what --records or the sweep's folder holds is not measured twice"
    return StmError("another process of this run ended too early, and so all of them ended", hint)


def _speaks(store: "Store") -> bool:
    """Return whether this process reports its error: it does if it is the first to fail."""
    # If torchrun keeps the store, it outlives the processes. If not, a process that cannot ask reports: better twice
    # than never.
    with suppress(RuntimeError):
        return store.add("stm/failed", 1) == 1
    return True
