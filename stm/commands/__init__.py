"""What the command line calls: one file per command, named as `stm_cli/` names it."""
