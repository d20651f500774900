"""What tools/mutate.py changed in stm/artifact and stm/merging and no other test saw."""

import dataclasses
import fcntl
import os
import stat
from pathlib import Path

import pytest
import torch

from stm.artifact import folder, provenance
from stm.artifact.locks import turn
from stm.artifact.scratch import scratch
from stm.artifact.tensors import check_images
from stm.artifact.written import noting
from stm.config import Protection, dense_schedule
from stm.errors import ArtifactError, UsageError
from stm.merging import cost_file
from stm.merging.constants import static_plan
from stm.merging.groups import Stage, edges, scattered
from stm.merging.outline import Cost, Dense
from stm.merging.plan import State
from stm.model.initialize import initialize
from stm.model.vim import ViM
from stm.progress import Progress
from tests.export.small import merged
from tests.unit.test_config import CONFIG


def next_free() -> int:
    """The number of the next file to be opened: the same after as before if all were closed."""
    descriptor = os.dup(0)
    os.close(descriptor)
    return descriptor


def test_a_scratch_folder_is_ours_alone_and_leaves_no_open_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = next_free()
    with scratch("stm-x") as inside:
        assert stat.S_IMODE(inside.parent.stat().st_mode) == 0o700
    assert next_free() == before


def test_a_scratch_folder_that_is_gone_already_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with scratch("stm-x") as inside:
        inside.rmdir()
        inside.parent.rmdir()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("shape", "hint"),
    [
        ((3, 8, 8), "stack them: torch.stack(images)"),
        ((2, 3, 8, 9), "resize and crop them as config.preprocessing says"),
        ((1, 2, 3, 8, 8), "stack them: torch.stack(images)"),
    ],
)
def test_the_way_to_the_right_images(shape: tuple[int, ...], hint: str) -> None:
    with pytest.raises(UsageError, match="expected \\(B, 3, 8, 8\\)") as caught:
        check_images(torch.zeros(shape), (3, 8, 8))
    assert caught.value.hint == hint


def test_a_turn_is_one_process_s(tmp_path: Path) -> None:
    with turn(tmp_path / "out"):
        other = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)


def test_a_checksum_is_of_the_values_and_not_of_how_they_lie() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    assert provenance._checksum(x.mT) == provenance._checksum(x.mT.contiguous()) != provenance._checksum(x)


def test_trained_weights_were_not_read_as_the_source_was() -> None:
    config = dataclasses.replace(CONFIG, extra={"asked": {"image_size": 64}, "notes": ["a note"]})
    assert provenance.as_trained(config, None).extra == {"notes": ["a note"], provenance.TUNED: provenance.MERGED}


def test_nothing_is_replaced_unasked_and_nothing_of_others_when_asked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder.write(out, CONFIG, {"x": torch.ones(3)}, "a card")
    for refused in (lambda: folder.check_output(out), lambda: folder.write(out, CONFIG, {"x": torch.ones(3)}, "more")):
        with pytest.raises(UsageError, match="exists"):
            refused()
    (out / "config.json").write_text('{"format": "of somebody else"}')
    with pytest.raises(UsageError, match="holds no model that stm wrote"):
        folder.write(out, CONFIG, {"x": torch.ones(3)}, "another card", force=True)
    assert (out / "README.md").read_text() == "a card"


def test_a_name_that_is_not_unicode(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not a name in UTF-8"):
        folder.read_config(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))


@pytest.mark.parametrize("letters", range(8))
def test_tensors_begin_where_they_can_be_mapped(letters: int) -> None:
    header = folder._header({"x" * (1 + letters): torch.ones(3)})
    assert len(header) % 8 == 0 and int.from_bytes(header[:8], "little") == len(header) - 8


def test_the_cache_of_costs_is_below_home_and_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cost_file.folder() == tmp_path / ".cache" / "stm" / "costs"
    with noting() as written:
        cost_file.write("0" * 64, cost_file.Effects(torch.zeros(1, 2, 3, dtype=torch.float64), torch.zeros(0, 1, 2, 3)))
    assert written == [] and cost_file.read("0" * 64) is not None


def test_no_plan_costs_nothing() -> None:
    assert Dense().flops(0, CONFIG.model) == Cost(paper=0, honest=0) and State(torch.zeros(1)).cls == 0


def test_a_stage_in_words() -> None:
    assert (Stage(3, 3, ()).blocks, Stage(3, 5, ()).blocks) == ("block 3", "blocks 3 to 5")


@pytest.mark.parametrize(
    ("group", "apart"),
    [({0, 3, 4, 5, 2}, False), ({1, 4, 3}, False), ({0, 4}, True), ({2, 3}, True), ({0, 6}, True), ({0, 2}, True)],
)
def test_a_group_in_one_piece_whatever_way_it_turns(group: set[int], apart: bool) -> None:
    """On a grid of three columns: up and to the left are ways too, and the end of a row is not beside the next one."""
    assert scattered(group, 3) == apart


def test_a_straight_run_is_one_segment() -> None:
    assert edges({0, 1, 2}, 4) == [((0, 0), (0, 1)), ((0, 0), (3, 0)), ((0, 1), (3, 1)), ((3, 0), (3, 1))]


def test_a_plan_holds_the_step_scale_and_tells_how_far_it_is() -> None:
    dense = merged(image_size=8)
    schedule, protection = dense.config.schedule, Protection(step_scale=0.5, weights="hsp", mode="static")
    plain = ViM(dataclasses.replace(dense.config, schedule=dense_schedule(dense.config.model), protection=None)).eval()
    initialize(plain, seed=1)
    told: list[Progress] = []
    plan = static_plan(plain, schedule, protection, torch.randn(2, 3, 8, 8), told.append)
    step = plan.step(schedule.steps[0].after)
    assert step is not None and step.scale is not None
    torch.testing.assert_close(step.scale, torch.tensor(schedule.sizes[1]).float().sqrt())
    blocks = schedule.steps[-1].after + 1
    assert [(each.done, each.total) for each in told] == [(number + 1, blocks) for number in range(blocks)]


def test_a_plan_without_a_step_scale_holds_none() -> None:
    model = merged(image_size=8)
    protection = Protection(step_scale=0)
    plan = static_plan(model.with_plan(None), model.config.schedule, protection, None)
    assert not [name for name in plan.state_dict() if "scale" in name]
