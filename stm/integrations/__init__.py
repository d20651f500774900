"""Other libraries that take a model of ours: one file per library, imported by whoever uses it."""
