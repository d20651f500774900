"""`python -m stm_cli` is `stm`."""

from stm_cli.main import main

main()
