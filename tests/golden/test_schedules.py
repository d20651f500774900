"""BNNM's index lists against golden/stm/schedules.json, which an independent reference wrote: every order, step by
step."""

import json
from pathlib import Path
from typing import Any

import pytest

from stm.merging.bnnm import gradual, staged
from stm.merging.schedule import Schedule

ENTRIES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "stm/schedules.json").read_text())


def _name(entry: dict[str, Any]) -> str:
    how = entry.get("before_blocks") or f"r{entry['tokens_per_side']}-k{entry['merge_steps']}"
    return f"{entry['tokens_in']}-{entry['order']}-{how}-{'+'.join(entry['sides'])}"


def _ours(entry: dict[str, Any]) -> Schedule:
    tokens, cls, order = entry["tokens_in"], entry["cls"], entry["order"]
    sides = "both" if entry["sides"] == ["left", "right"] else entry["sides"][0]
    if order == "staged":
        return staged(tokens, cls, entry["before_blocks"], sides)
    return gradual(tokens, cls, order, entry["tokens_per_side"], entry["merge_steps"], sides)


@pytest.mark.parametrize("entry", ENTRIES, ids=_name)
def test_every_index_of_every_step(entry: dict[str, Any]) -> None:
    schedule = _ours(entry)
    expected = [(step.get("after", i), step["src"], step["dst"]) for i, step in enumerate(entry["steps"])]
    assert [(step.after, list(step.sources), list(step.destinations)) for step in schedule.steps] == expected
    assert list(schedule.sizes[-1]) == entry["sizes_final"]
    depth = schedule.steps[-1].after + 2  # one block after the last step
    for step, tokens, cls in zip(schedule.steps, entry["tokens"], entry["cls_after"], strict=True):
        block = step.after + 1
        assert (schedule.tokens_per_block(depth)[block], schedule.cls_per_block(depth)[block]) == (tokens, cls)


def test_the_file_holds_every_order() -> None:
    assert {entry["order"] for entry in ENTRIES} == {"staged", "border", "sweep", "even", "outward"}
    assert len(ENTRIES) == 28
