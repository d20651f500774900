"""The command `stm`: it parses, calls `stm`, and renders what comes back. No tensor is touched here."""
