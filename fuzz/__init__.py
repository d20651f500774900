"""Coverage-guided fuzzing of everything that reads files of others: docs/security.md, "How each promise is tested"."""
