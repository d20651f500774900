"""Run a script in a process of its own, which ends when we do: with all that it started, and with its files.

Executed as a script itself: python -P child.py SCRIPT WORDS... runs SCRIPT under a watch. It imports nothing of ours.
"""

import os
import runpy
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path


def run(script: str, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script with these words, and return its exit code and what it printed.

    If we are interrupted or killed, the process is killed, and so is every process that it started.

    Args:
        script: a path.
        folder: an empty one, for all that the process and its libraries keep in temporary files and caches.
    """
    own = {
        "TMPDIR": str(folder),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",  # more are processes in groups of their own
    }
    # ONNX Runtime's wheels keep a device id and a list of events for Microsoft in the user's cache unless told not to.
    environment = {"ORT_DISABLE_TELEMETRY": "1"} | os.environ | own
    # -P: the folder of this file has modules that are named as the runtimes are.
    command = [sys.executable, "-P", __file__, script, *words]
    watched, held = os.pipe()  # the end that we hold closes whenever we end
    try:
        with subprocess.Popen(
            command,
            env=environment,
            stdin=watched,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            try:
                out, err = process.communicate()
            except BaseException:
                with suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise
        return subprocess.CompletedProcess(command, process.returncode, out, err)
    finally:
        os.close(watched)
        os.close(held)


def _watch() -> None:
    """End this process and all of its group when whoever started it has ended."""
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_watch, daemon=True).start()
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
