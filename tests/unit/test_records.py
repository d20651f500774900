"""Records from logits by hand, and their file: exact round trips, torn files, refusals, a full disk."""

import errno
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stm.artifact import atomic
from stm.config import Config, ModelConfig, Preprocess, dense_schedule
from stm.errors import DataError, UsageError
from stm.measure.records import (
    HEADER,
    SYNC_SECONDS,
    Identity,
    Record,
    RecordFile,
    check_path,
    fingerprint,
    kl_divergence,
    read_records,
    records_of,
)
from tests.limits import no_file_larger_than

IDENTITY = Identity(model="a" * 64, reference=None, data="d" * 64, preprocessing=Preprocess(), limit=None, seed=0)


def some(n: int) -> list[Record]:
    return [Record(file=f"{i}.png", label=i, pred=i, top5=(i, i + 1), margin=i / 7, kl=1 / (i + 1)) for i in range(n)]


def names(n: int) -> list[str]:
    return [f"{i}.png" for i in range(n)]


# --- from logits ------------------------------------------------------------------------------------------------------


def test_records_by_hand() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0, -1.0, 0.5], [1.0, 0.0, 0.0, 0.0, 0.0, 4.0]])
    dense = torch.tensor([[0.0, 0.0, 3.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0, 4.0]])
    first, second = records_of(["a", "b"], [2, None], logits, dense)
    # Classes 1 and 2 tie: the lower index comes first, and the margin is nothing.
    assert (first.file, first.label, first.pred, first.top5, first.margin) == ("a", 2, 1, (1, 2, 3, 5, 0), 0.0)
    assert (first.dense_pred, first.dense_top5) == (2, (2, 0, 1, 3, 4))
    assert (second.label, second.pred, second.margin, second.kl) == (None, 5, 3.0, 0.0)


def test_equal_logits_rank_by_class() -> None:
    (record,) = records_of(["a"], [0], torch.zeros(1, 2000), torch.zeros(1, 2000))
    assert (record.top5, record.dense_top5, record.margin) == ((0, 1, 2, 3, 4), (0, 1, 2, 3, 4), 0.0)


def test_kl_by_hand() -> None:
    # Dense says 3/4, 1/4 and this model 1/2, 1/2: KL = 3/4 ln(3/2) + 1/4 ln(1/2). Logits are ln p + any constant.
    dense = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert kl_divergence(dense, torch.tensor([[7.0, 7.0]])).item() == pytest.approx(expected, rel=1e-12)


@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=3, max_size=3),
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=3, max_size=3),
)
def test_kl_is_finite_and_never_negative(dense: list[float], this: list[float]) -> None:
    kl = kl_divergence(torch.tensor([dense]), torch.tensor([this])).item()
    assert math.isfinite(kl) and kl >= 0
    assert kl_divergence(torch.tensor([dense]), torch.tensor([dense])).item() == 0


def test_few_classes_and_no_dense_model() -> None:
    (pair,) = records_of(["a"], [0], torch.tensor([[1.0, 3.0]]))
    assert (pair.top5, pair.margin, pair.dense_pred, pair.dense_top5, pair.kl) == ((1, 0), 2.0, None, (), None)
    (one,) = records_of(["a"], [0], torch.tensor([[1.0]]))
    assert (one.pred, one.top5, one.margin) == (0, (0,), None)


def test_a_batch_is_its_images_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, dense = torch.randn(2, 8, 10, generator=generator)
    together = records_of(names(8), range(8), logits, dense)
    assert together == [r for i in range(8) for r in records_of([f"{i}.png"], [i], logits[i : i + 1], dense[i : i + 1])]


# --- the file ---------------------------------------------------------------------------------------------------------

index = st.integers(0, 10**6)
number = st.floats(0, 1e38)
text = st.text(min_size=1) | st.sampled_from(["\r", "\n", '"', 'a\r\n"b",c'])
best = st.lists(index, max_size=5, unique=True).map(tuple)


def consistent(**values: Any) -> Record:
    """A record as a run makes it: its class is the best of five, and without one it has an error."""
    top5, dense, error = values["top5"], values["dense_top5"], values.pop("error")
    return Record(
        **values, pred=next(iter(top5), None), dense_pred=next(iter(dense), None), error=None if top5 else error
    )


any_record = st.builds(
    consistent,
    file=text | st.just("caf\udce9.png"),  # a name that is not UTF-8, as the system hands it over
    label=st.none() | index,
    top5=best,
    dense_top5=best,
    margin=st.none() | number,
    kl=st.none() | number,
    error=text,
)


@given(st.lists(any_record, max_size=8), st.data())
def test_records_read_back_however_torn(
    tmp_path_factory: pytest.TempPathFactory, records: list[Record], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("records") / "r.csv"
    RecordFile(path, IDENTITY, [r.file for r in records], 4).append(records)
    assert read_records(path) == records
    whole = path.read_bytes()
    torn = whole[: data.draw(st.integers(0, len(whole)))]
    path.write_bytes(torn)
    left = read_records(path)
    assert left == records[: len(left)]
    # Resuming goes on from a whole batch of 4, and in the end the bytes are the same.
    resumed = RecordFile(path, IDENTITY, [r.file for r in records], 4)
    assert len(resumed.done) in (len(left) // 4 * 4, len(records))
    resumed.append(records[len(resumed.done) :])
    assert path.read_bytes() == whole


def test_what_a_file_looks_like(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    broken = Record(file='b, "c".png', label=3, error="b is broken")
    scored = Record(file="a.png", label=1, pred=1, top5=(1, 0), dense_pred=0, dense_top5=(0, 1), margin=0.1, kl=1e-17)
    RecordFile(path, IDENTITY, ["a.png", broken.file], 2).append([scored, broken])
    assert path.read_text().splitlines() == [
        "file,label,pred,top5,dense_pred,dense_top5,margin,kl,error",
        "a.png,1,1,1 0,0,0 1,0.1,1e-17,",
        '"b, ""c"".png",3,,,,,,,b is broken',
    ]
    beside = json.loads((tmp_path / "r.csv.json").read_text())
    assert beside.keys() == {"model", "reference", "data", "preprocessing", "limit", "seed"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.csv", "r.csv.json"]


def test_a_finished_file_stays_as_it_is_whatever_the_batch_size(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    RecordFile(path, IDENTITY, names(5), 2).append(some(5))
    assert RecordFile(path, IDENTITY, names(5), 3).done == some(5)
    assert read_records(path) == some(5)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model": "b" * 64}, 'model was "aaa'),
        ({"reference": "c" * 64}, "reference was null"),
        ({"data": "e" * 64}, "data was"),
        (
            {"preprocessing": Preprocess(interpolation="bilinear")},
            'preprocessing.interpolation was "bicubic" and is now "bilinear"',
        ),
        ({"limit": 10}, "limit was null and is now 10"),
        ({"seed": 3}, "seed was 0 and is now 3"),
    ],
)
def test_another_run_is_refused_by_what_differs(tmp_path: Path, changed: dict[str, object], said: str) -> None:
    path = tmp_path / "r.csv"
    RecordFile(path, IDENTITY, names(3), 2).append(some(3))
    before = path.read_bytes()
    with pytest.raises(DataError) as caught:
        RecordFile(path, replace(IDENTITY, **changed), names(3), 2)
    assert said in caught.value.message and caught.value.message.count(" was ") == 1
    assert (
        str(path) in caught.value.message
        and caught.value.hint is not None
        and "another file, or delete" in caught.value.hint
    )
    assert path.read_bytes() == before


def test_files_that_are_not_ours_are_refused_and_kept(tmp_path: Path) -> None:
    path, beside = tmp_path / "r.csv", tmp_path / "r.csv.json"
    path.write_text("name,score\na,1\n")
    with pytest.raises(DataError, match=r"r\.csv\.json, which says what it was measured on, does not"):
        RecordFile(path, IDENTITY, names(1), 1)
    beside.write_text("{}")
    with pytest.raises(DataError, match=r"does not say what .* was measured on: missing key data"):
        RecordFile(path, IDENTITY, names(1), 1)
    beside.unlink()
    path.unlink()
    RecordFile(path, IDENTITY, names(1), 1)
    path.write_text("name,score\na,1\n")
    with pytest.raises(DataError, match="does not begin with file,label"):
        RecordFile(path, IDENTITY, names(1), 1)
    assert path.read_text() == "name,score\na,1\n"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("0.png,zero,0,0,,,1.0,,\n", "record 1 cannot be read: invalid literal for int"),
        ("0.png,0\n", "record 1 cannot be read: 2 columns, expected 9"),
        # Numbers to Python, and nothing that a run writes.
        ("0.png,1_0,0,0,,,1.0,,\n", "not as stm writes it: '0.png,10,"),
        ("0.png,\u0663,0,0,,,1.0,,\n", "not as stm writes it: '0.png,3,"),
        ("0.png, 7,0,0,,,1.0,,\n", "not as stm writes it: '0.png,7,"),
        ("0.png,0,0,0,,,1_0.5,,\n", "not as stm writes it"),
        ("0.png,0,0,0,,,1e0,,\n", "not as stm writes it"),
        ("0\0.png,0,0,0,,,1.0,,\n", "not as stm writes it"),
        ("0.png,-1,0,0,,,1.0,,\n", "a class is negative"),
        ("0.png,0,4,0,,,1.0,,\n", r"its five best classes are \(0,\), and its best is 4"),
        ("0.png,0,0,0 0,,,1.0,,\n", "its five best classes are"),
        ("0.png,0,,,,,,,\n", "neither a class nor an error"),
        ('0.png,0,0,0,,,1.0,,"a"b\n', "record 1 cannot be read: ',' expected after '\"'"),
        ("other.png,0,0,0,,,1.0,,\n", r"record 1 is of other\.png, expected 0\.png"),
        ("0.png,0,0,0,,,1.0,,\n" * 2, r"record 2 is of 0\.png, expected 1\.png"),
        (
            "0.png,0,0,0,,,1.0,,\n1.png,0,0,0,,,1.0,,\n2.png,0,0,0,,,1.0,,\n",
            "holds 3 records, expected at most the 2 of this run",
        ),
    ],
)
def test_rows_that_cannot_be(tmp_path: Path, row: str, said: str) -> None:
    path = tmp_path / "r.csv"
    RecordFile(path, IDENTITY, names(2), 1)
    path.write_text(HEADER + row)
    with pytest.raises(DataError, match=said):
        RecordFile(path, IDENTITY, names(2), 1)
    assert path.read_text() == HEADER + row


def test_paths_that_cannot_be_written_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        check_path(tmp_path)
    with pytest.raises(UsageError, match="missing does not exist"):
        check_path(tmp_path / "missing" / "r.csv")
    with pytest.raises(DataError, match=r"none\.csv cannot be read: No such file"):
        read_records(tmp_path / "none.csv")


def test_a_full_disk_is_an_error_and_the_run_can_go_on(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    file = RecordFile(path, IDENTITY, names(400), 100)
    file.append(some(400)[:100])
    with (
        no_file_larger_than(8000),
        pytest.raises(DataError, match=r"r\.csv cannot be written: File too large") as caught,
    ):
        file.append(some(400)[100:])
    assert caught.value.hint is not None and "goes on where this one stopped" in caught.value.hint
    assert path.stat().st_size == 8000 and not path.read_bytes().endswith(b"\n")
    file.close()
    resumed = RecordFile(path, IDENTITY, names(400), 100)
    assert resumed.done == some(400)[: len(resumed.done)] and len(resumed.done) in (100, 200)
    resumed.append(some(400)[len(resumed.done) :])
    assert read_records(path) == some(400)


def test_records_reach_the_disk_every_few_seconds_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, synced = [0.0], []

    def sync(path: Path) -> None:
        synced.append(path.read_bytes().count(b"\n") - 1)

    monkeypatch.setattr("time.monotonic", lambda: now[0])
    file = RecordFile(tmp_path / "r.csv", IDENTITY, names(10), 2)
    monkeypatch.setattr(atomic, "sync", sync)
    # The fourth batch took longer than records may wait; the fifth did not.
    for number, time in enumerate((0.0, SYNC_SECONDS - 0.1, SYNC_SECONDS, 3 * SYNC_SECONDS, 3 * SYNC_SECONDS + 1)):
        now[0] = time
        file.append(some(10)[2 * number : 2 * number + 2])
    assert synced == [6, 8]
    file.close()
    assert synced == [6, 8, 10]
    more = RecordFile(tmp_path / "r.csv", IDENTITY, names(10), 2)
    more.close()
    assert synced == [6, 8, 10]  # nothing was added


def test_records_that_do_not_reach_the_disk_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    file = RecordFile(tmp_path / "r.csv", IDENTITY, names(2), 2)
    monkeypatch.setattr(atomic, "sync", fail)
    file.append(some(2))
    with pytest.raises(DataError, match=r"r\.csv cannot be written: Input/output error"):
        file.close()
    monkeypatch.undo()
    RecordFile(tmp_path / "r.csv", IDENTITY, names(2), 2).close()  # nobody holds it


def test_a_full_disk_leaves_no_half_identity(tmp_path: Path) -> None:
    with no_file_larger_than(100), pytest.raises(DataError, match=r"r\.csv\.json cannot be written: File too large"):
        RecordFile(tmp_path / "r.csv", IDENTITY, names(1), 1)
    assert list(tmp_path.iterdir()) == []


def test_one_run_at_a_time_has_a_file_and_the_others_say_who(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    file = RecordFile(path, IDENTITY, names(4), 2)
    who = rf"r\.csv is in use: process {os.getpid()} is writing to it" if Path("/proc/locks").exists() else "is in use"
    for ask in (lambda: RecordFile(path, IDENTITY, names(4), 2), lambda: check_path(path)):
        with pytest.raises(DataError, match=who) as caught:
            ask()
        assert caught.value.exit_code == 1 and caught.value.hint is not None
    file.append(some(4))
    assert read_records(path) == some(4), "who reads does not end the hold"
    with pytest.raises(DataError, match=who):
        check_path(path)
    file.close()
    assert RecordFile(path, IDENTITY, names(4), 2).done == some(4)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["r.csv", "r.csv.json"], "nothing is left beside it"


def test_a_refused_run_leaves_no_empty_file(tmp_path: Path) -> None:
    (tmp_path / "r.csv.json").write_text("no identity")
    with pytest.raises(DataError, match="does not say what"):
        RecordFile(tmp_path / "r.csv", IDENTITY, names(1), 1)
    assert [each.name for each in tmp_path.iterdir()] == ["r.csv.json"]


# --- what a model's records depend on ---------------------------------------------------------------------------------


class Small(torch.nn.Linear):
    def __init__(self, config: Config) -> None:
        super().__init__(2, 2)
        self.config = config
        with torch.no_grad():
            self.weight.fill_(0.5)
            self.bias.zero_()


def test_fingerprint_sees_all_that_decides_the_logits_and_nothing_else() -> None:
    shape = ModelConfig(image_size=4, patch=2, stride=2, d_model=4, depth=2, dt_rank=1)
    config = Config(model=shape, num_classes=2, schedule=dense_schedule(shape), preprocessing=Preprocess.official(4))
    first = fingerprint(Small(config))
    assert first == fingerprint(Small(replace(config, stm_version="9", extra={"note": "same"})))
    assert first == fingerprint(Small(config).double().float())
    other = Small(config)
    with torch.no_grad():
        other.bias[1] = 1e-30
    assert first != fingerprint(other)
    assert first != fingerprint(Small(config).double())
    assert first != fingerprint(Small(replace(config, model=replace(shape, divide_out=False))))
