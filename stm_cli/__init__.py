"""The command `stm`: parse options, call the library `stm`, and render its report. No tensor is touched here.

Each command imports its function of the library inside `run`, because importing torch takes seconds: help screens and
usage errors do not wait for it. Modules that need no torch (`stm.reports`, `stm.config`, `stm.units`) are imported at
the top.
"""
