"""Data that comes with the package; who made it and under which licence stands beside each part."""

from pathlib import Path

FOLDER = Path(__file__).parent
EMBEDDED_MODEL = "vim-digits"
