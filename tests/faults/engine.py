"""A process under the shim that takes jobs, one JSON line each: a command of `stm`, run in a child that has forked from
it, in which one call meets a fault.

The process has imported everything, and runs each kind of command once itself (`warm`), so a child costs what its
command costs. If the job asks for it (`whole`), a child ends as a process of its own does: the interpreter is taken
down.
"""

import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

import huggingface_hub.hf_api
import huggingface_hub.repocard  # noqa: F401
import torch

import stm.commands.export
import stm.commands.report
import stm.commands.sweep  # noqa: F401
from stm_cli.main import main
from tests.faults import exports
from tests.faults.fault import Fault

SHIM = ctypes.CDLL(os.environ["LD_PRELOAD"])


def prepare(job: dict[str, Any]) -> None:
    """Make this process what the job's would be."""
    os.chdir(job["cwd"])
    os.environ.update(job["environment"])
    sys.argv = ["stm", *job["argv"]]


def warm(job: dict[str, Any]) -> int:
    """Run the command here, so that all that it imports and keeps is there before the next fork."""
    prepare(job)
    streams = sys.stdout, sys.stderr
    with open(os.devnull, "w") as nowhere:
        sys.stdout = sys.stderr = nowhere
        try:
            main()
        except SystemExit as left:
            return int(left.code or 0)
        finally:
            sys.stdout, sys.stderr = streams
    return 0


def child(job: dict[str, Any], out: int, err: int, told: int) -> None:
    """Run the command with its fault. Never returns."""
    prepare(job)
    os.setpgid(0, 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    fault = Fault(**job["fault"])
    SHIM.arm(
        os.fsencode(job["below"]), ctypes.c_long(fault.at), fault.error, fault.signal, fault.tear, fault.every, told
    )
    try:
        main()
    except SystemExit as left:
        if job["whole"]:
            raise
        SHIM.disarm()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(left.code or 0))


def members(group: int) -> int:
    """How many processes of a group live; those that have ended and wait for their parent do not."""
    count = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its = path.read_text().rpartition(")")[2].split()[:3]
            count += int(its) == group and state != "Z"
    return count


def ended(number: int) -> tuple[int, int]:
    """The exit code of a child, and how many of its group outlive it by more than a while. One that hangs is killed."""
    for _ in range(60_000):
        done, status = os.waitpid(number, os.WNOHANG)
        if done:
            break
        select.select([], [], [], 0.002)
    else:
        os.killpg(number, signal.SIGKILL)
        status = os.waitpid(number, 0)[1]
    orphans = 0
    for _ in range(500):  # a helper of multiprocessing ends when it sees that its parent has
        if not (orphans := members(number)):
            break
        select.select([], [], [], 0.02)
    return os.waitstatus_to_exitcode(status), orphans


def text(descriptor: int) -> str:
    os.lseek(descriptor, 0, os.SEEK_SET)
    with os.fdopen(descriptor, "rb") as file:
        return file.read().decode(errors="replace")


if __name__ == "__main__":
    torch.set_num_threads(1)
    time.sleep = lambda seconds: None
    exports.keep(Path(os.environ["LD_PRELOAD"]).with_name("kept"))
    answers = os.fdopen(os.dup(1), "w")
    while line := sys.stdin.readline():
        job = json.loads(line)
        if job.get("warm"):
            answer: dict[str, Any] = {"code": warm(job)}
        else:
            gc.freeze()  # no child copies pages of objects that it never changes
            files = [os.memfd_create(name) for name in ("out", "err", "told")]
            number = os.fork()
            if number == 0:
                child(job, *files)
            code, orphans = ended(number)
            said = [text(each) for each in files]
            answer = {"code": code, "out": said[0], "err": said[1], "calls": said[2].splitlines(), "orphans": orphans}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
