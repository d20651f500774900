"""Run `stm` as `python -m stm_cli`, for programs such as torchrun that start a module."""

import os
import sys

# With -m, Python looks for modules in the current folder first. That folder may hold data, and among it a file called
# json.py, so it leaves the path. It stays only if it holds this package: then it is a checkout of the source.
if not sys.flags.safe_path and sys.path[0] != os.path.dirname(os.path.dirname(os.path.abspath(__file__))):
    del sys.path[0]

from stm_cli._start import main

main()
