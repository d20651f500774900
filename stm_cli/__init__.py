"""The command `stm`: parse options, call the library `stm`, and render its report. No tensor is touched here."""
