"""Start the command line. A signal is answered from here on, while the rest is still being imported."""

import signal

# Until `listen` answers, Ctrl-C ends the process without a word: a traceback would tell of nothing but imports.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def main() -> None:
    """Run the console script."""
    from stm_cli import _signals

    _signals.listen()
    from stm_cli.main import main as run

    run()
