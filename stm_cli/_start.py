"""Start the command line. A signal is answered from here on, while the rest is still being imported."""

from stm_cli import _signals


def main() -> None:
    """Run the console script."""
    _signals.listen()
    from stm_cli.main import main as run

    run()
