"""What the official trainer's file holds, by torch.load and plain indexing."""

import argparse
from typing import Any

import pytest
import torch

from tests.blocks import first_blocks
from tests.unit.checkpoint.cases import MINI, State


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(MINI, weights_only=True)


@pytest.fixture
def state(document: dict[str, Any]) -> State:
    """Of four blocks."""
    return first_blocks(document["model"], 4)
