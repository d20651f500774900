"""Start the command line. A signal is answered from the first line of `main` on, while the rest is still imported.

Before that, Python itself starts, and the script that pip made: a Ctrl-C there is theirs (docs/security.md has how long
it takes).
"""

import os
import signal
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NOTHING = "nothing was written; the same command starts from the beginning"


def main() -> None:
    """Run the console script."""
    for number in SIGNALS:
        # One that our parent has us ignore, as `nohup` does, stays ignored.
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, leave)
    from stm_cli import _signals

    _signals.listen()
    from stm_cli.main import main as run

    run()


def leave(number: int, frame: FrameType | None = None, *, said: str = NOTHING) -> None:
    """End the process at once, with one line and the exit code of a signal."""
    try:
        os.write(2, f"Stopped: {said}\n".encode())
    finally:  # also if nobody reads stderr
        os._exit(128 + number)
