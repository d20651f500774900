"""How long a test waits for another process before it takes it for hung.

A busy machine may take a hundred times as long as a quiet one, and no test fails for that: this only ends what would
never end.
"""

HANG = 1800.0  # seconds
