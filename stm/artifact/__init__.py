"""A model's folder on disk: what is in it, and how it appears whole or not at all."""
