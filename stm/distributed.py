"""The processes that measure together: who they are, who does which batch, and how all come to hold all records.

`torchrun` starts the same command several times and says in each process's environment which one it is. Every process
then does the same things in the same order; of the batches it takes every `size`-th one, and after each round of `size`
batches all hold the records of all. So every process makes the same report, the first one alone writes and prints, and
a set is never padded to divide evenly.

What is exchanged are records: Python objects in the host's memory. torch's default pair of backends is set up, gloo for
the host and NCCL for CUDA devices, so it is gloo that carries them, on GPUs too. A process that waits in it learns at
once that another one died; one that waits for a kernel of NCCL does not.
"""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from stm.errors import DataError, StmError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class World:
    """Which of how many processes this is.

    Args:
        rank, size: its number, and how many there are on all machines.
        local_rank, local_size: the same among those of this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def first(self) -> bool:
        """Whether it is the one that writes and prints."""
        return self.rank == 0

    def shard(self, items: Sequence[T]) -> Sequence[T]:
        """Every `size`-th item, from the `rank`-th on."""
        return items[self.rank :: self.size]

    def in_rounds(self, mine: Iterator[T], count: int) -> Iterator[T | None]:
        """The process's items of `count` in all; in the last round None where there is none left for it."""
        for _ in range(-(-count // self.size)):
            yield next(mine, None)

    def gather(self, value: T) -> list[T]:
        """Every process's value, in their order, in every process.

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
        """The first process's value, in every process.

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
        """`work` of every item, in order, in every process; each does its share."""
        rounds = self.gather([work(item) for item in self.shard(items)])
        return [rounds[place % self.size][place // self.size] for place in range(len(items))]

    def check_same(self, **what: str) -> None:
        """Refuse to go on where the processes do not have the same model or images.

        Args:
            what: fingerprints, by what they are of.

        Raises:
            DataError: some process's is another.
        """
        for rank, theirs in enumerate(self.gather(what)):
            for name, mark in theirs.items():
                if mark != what[name]:
                    hint = "give every machine the same files under the same names"
                    raise DataError(
                        f"process {self.rank} has another {name.replace('_', ' ')} than process {rank}", hint
                    )


ALONE = World()
PATIENCE = timedelta(days=1)  # a process that died is noticed at once: this is for one that is slow


def current_world() -> World:
    """What the environment says, by the names that torchrun and torch's env:// use."""
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
    """The processes of this command, connected for as long as the block runs; where there is one, nothing happens.

    An error in any process ends all, and one of them says why: the first to fail raises its error, what the others
        raise has no
    message. On CUDA each process gets a device of its machine, in turns.

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
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # another one must not come between this and the sentence
        if store is not None and not _speaks(store):
            raise _Silent(getattr(error, "exit_code", StmError.exit_code)) from error
        if isinstance(error, _Terminated):
            raise _died() from error
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _meet() -> "Store":
    """What all processes can write to and read."""
    from torch.distributed.rendezvous import rendezvous

    with _telling("the processes of this run cannot meet"):
        return next(rendezvous("env://"))[0]


def _connect(world: World, store: "Store") -> None:
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore

    if torch.cuda.is_available():
        torch.cuda.set_device(world.local_rank % torch.cuda.device_count())
    with _telling("the processes of this run cannot connect"):
        dist.init_process_group(
            store=PrefixStore("stm", store), rank=world.rank, world_size=world.size, timeout=PATIENCE
        )


@contextmanager
def _telling(what: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        why = (str(error).splitlines() or ["no reason given"])[0]
        raise StmError(f"{what}: {why}", "see the address and the port that torchrun was given") from error


class _Silent(StmError):
    """Another process says why: no message."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("")
        self.exit_code = exit_code


class _Terminated(BaseException):
    """SIGTERM came. Not an Exception: an image that was being decoded must not count as broken."""


def _terminate(number: int, frame: FrameType | None) -> None:
    """torchrun sends SIGTERM to those that are left when a process dies."""
    raise _Terminated


@contextmanager
def _noticing_deaths() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch's for every failed connection
        raise _died() from error


def _died() -> StmError:
    hint = "run the same command again: what --records or the sweep's folder holds is not measured twice"
    return StmError("another process of this run ended too early, and so all of them ended", hint)


def _speaks(store: "Store") -> bool:
    """Whether this is the first process that fails. The store outlives all of them where torchrun keeps it."""
    with suppress(RuntimeError):
        return store.add("stm/failed", 1) == 1
    return True
