"""What the official trainer's file holds, by torch.load and plain indexing."""

import argparse
from typing import Any

import pytest
import torch

from tests.unit.checkpoint.cases import MINI, State


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(MINI, weights_only=True)


@pytest.fixture
def state(document: dict[str, Any]) -> State:
    """Of four blocks."""
    return {name: value for name, value in document["model"].items() if not name.startswith(("layers.4.", "layers.5."))}
