"""stm: make Vision Mamba (ViM) models smaller and faster without training, by Sequential Token Merging."""

__version__ = "0.1.0"
