"""Run the command line as `python -m stm`, as people try it."""

import stm_cli.__main__  # noqa: F401 - importing it runs it
