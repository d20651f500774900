"""Run `stm` as `python -m stm_cli`, for programs such as torchrun that start a module."""

import os
import sys

# With -m Python looks for modules first in the current folder, which may be the data's, with a json.py in it. It stays
# if it holds this package: then it is a checkout of the source.
if not sys.flags.safe_path and sys.path[0] != os.path.dirname(os.path.dirname(os.path.abspath(__file__))):
    del sys.path[0]

from stm_cli.main import main

main()
