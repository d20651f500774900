"""Evaluation: figures of models whose logits are known, one pass for two models, broken images, speed, and
kill-and-resume.

`Echo` returns the image's own values as logits, so a set of images is a table of logits.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from stm.backends import choose
from stm.config import Config, ModelConfig, Preprocess, Source, dense_schedule
from stm.data.open import as_samples
from stm.data.sets import SampleSet
from stm.errors import DataError, StmError, UsageError
from stm.measure import evaluate as module
from stm.measure.evaluate import assess, evaluate, run
from stm.measure.records import HEADER, read_records
from stm.measure.stats import summarize
from stm.model.initialize import initialize
from stm.model.vim import ViM
from stm.options import EvalOptions
from stm.progress import Progress

HERE = Path(__file__).resolve().parent
SHAPE = ModelConfig(image_size=2, patch=1, stride=1, in_chans=1, d_model=4, depth=2, d_state=2, dt_rank=1)
PREP = Preprocess(resize=2, crop=2, interpolation="nearest", mean=(0.0,), std=(1.0,))
CONFIG = Config(
    model=SHAPE, num_classes=4, schedule=dense_schedule(SHAPE), preprocessing=PREP, source=Source(file="echo.pth")
)


class Echo(nn.Module):
    """Logits (B, 4) are the image's pixels (B, 1, 2, 2) in order, shifted by `turn` classes."""

    def __init__(self, turn: int = 0, config: Config = CONFIG) -> None:
        super().__init__()
        self.config, self.backend, self.turn = config, choose("blocked"), turn
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training and not torch.is_grad_enabled()
        return images.flatten(1).roll(self.turn, 1) * self.scale


def pairs(rows: Sequence[Sequence[float]], labels: Sequence[int | None]) -> list[tuple[Tensor, int | None]]:
    return [
        (torch.tensor(row, dtype=torch.float32).reshape(1, 2, 2), label)
        for row, label in zip(rows, labels, strict=True)
    ]


def random_pairs(n: int, seed: int = 0) -> list[tuple[Tensor, int | None]]:
    generator = torch.Generator().manual_seed(seed)
    return pairs(torch.randn(n, 4, generator=generator).tolist(), torch.randint(4, (n,), generator=generator).tolist())


ROWS = [[9, 1, 0, 0], [0, 5, 0, 3], [0, 0, 7, 0], [0, 0, 0, 2]]  # the classes 0, 1, 2, 3 in turn


def test_figures_by_hand() -> None:
    found = evaluate(Echo(), pairs(ROWS, [0, 1, 2, 0]), reference=Echo(turn=1), batch_size=3)
    # This model is right on three of four; the dense one, a class further, only on the last: its row says class 0.
    assert (found.command, found.model, found.data, found.n, found.failed) == ("eval", "echo.pth", "pairs", 4, 0)
    assert (found.top1, found.top5, found.dense_top1, found.drop, found.agreement) == (0.75, 1.0, 0.25, -0.5, 0.0)
    assert found.mcnemar_p == pytest.approx(2 * (1 + 4) / 16)  # one image only the dense model has, three only this one
    assert found.reasons.keys() == {"feature_change"}
    assert found.images_per_second is not None and found.images_per_second > 0
    assert found.environment.backend == "blocked"


def test_without_labels_agreement_and_kl_remain() -> None:
    found = evaluate(Echo(), pairs(ROWS, [None] * 4), reference=Echo())
    assert (found.agreement, found.kl, found.top1, found.drop) == (1.0, 0.0, None, None)
    assert found.reasons["drop"] == "the images have no label"


def test_without_a_dense_model() -> None:
    found = evaluate(Echo(), pairs(ROWS, [0, 1, 2, 3]))
    assert found.top1 == 1.0 and found.agreement is None
    assert found.reasons["agreement"] == "the images were not compared with a dense model"


def test_limit_and_seed_draw() -> None:
    data = random_pairs(40)
    drawn = [evaluate(Echo(), data, limit=10, seed=seed) for seed in (0, 0, 1)]
    assert [found.n for found in drawn] == [10, 10, 10] and [found.seed for found in drawn] == [0, 0, 1]
    figures = [(found.top1, found.top5_ci) for found in drawn]
    assert figures[0] == figures[1]
    zero, one = (run(Echo(), as_samples(data, CONFIG, limit=10, seed=seed)).records for seed in (0, 1))
    assert {record.file for record in zero} != {record.file for record in one}


@given(st.integers(1, 12), st.integers(0, 12), st.integers(1, 5))
def test_joining_records_is_evaluating_together(n: int, cut: int, batch_size: int) -> None:
    whole = as_samples(random_pairs(n, seed=n), CONFIG)
    parts = [replace(whole, samples=samples) for samples in (whole.samples[:cut], whole.samples[cut:]) if samples]
    models = {"model": Echo(), "reference": Echo(turn=1), "batch_size": batch_size}
    together = run(samples=whole, **models).records
    apart = [record for part in parts for record in run(samples=part, **models).records]
    assert apart == together
    assert summarize(apart, data="pairs") == summarize(together, data="pairs")


def folder_of(path: Path, count: int, broken: Sequence[int]) -> Path:
    """`count` images of class i % 4, that pixel bright; the broken ones are text."""
    path.mkdir()
    for i in range(count):
        if i in broken:
            (path / f"{i}.png").write_text("not an image")
        else:
            Image.frombytes("L", (2, 2), bytes(255 * (place == i % 4) for place in range(4))).save(path / f"{i}.png")
    (path / "labels.csv").write_text("filename,label\n" + "".join(f"{i}.png,{i % 4}\n" for i in range(count)))
    return path


def test_broken_images_are_named_and_counted(tmp_path: Path) -> None:
    folder, csv = folder_of(tmp_path / "set", 7, broken=[1, 4, 5]), tmp_path / "r.csv"
    found = evaluate(Echo(), folder, reference=Echo(), batch_size=2, records=csv)  # the batch of 4 and 5 holds nothing
    assert (found.data, found.n, found.failed, found.top1) == ("set", 4, 3, 1.0)
    records = read_records(csv)
    assert [record.file for record in records] == [f"{i}.png" for i in range(7)]
    assert [record.error for record in records if record.error] == [
        f"{i}.png: not an image that can be read" for i in (1, 4, 5)
    ]
    assert records[1].label == 1 and records[1].pred is None


def test_all_broken_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"set: none of the 2 images could be read; the first: 0\.png: not an image"):
        evaluate(Echo(), folder_of(tmp_path / "set", 2, broken=[0, 1]))


@pytest.mark.parametrize(("value", "who"), [(float("nan"), "the model"), (float("inf"), "the dense model")])
def test_logits_that_are_not_finite_are_an_error(value: float, who: str) -> None:
    bad = Echo()
    model, reference = (bad, Echo()) if who == "the model" else (Echo(), bad)
    with torch.no_grad():
        bad.scale.fill_(value)
    with pytest.raises(StmError, match=f"{who}'s logits for item-0 are not finite") as caught:
        evaluate(model, pairs([[1, 1, 1, 1]], [0]), reference=reference)
    assert caught.value.hint is not None


def test_options_that_cannot_be() -> None:
    data = random_pairs(2)
    with pytest.raises(UsageError, match="batch size is 0, expected at least 1"):
        evaluate(Echo(), data, batch_size=0)
    with pytest.raises(UsageError, match="the reference has 5 classes, expected the model's 4"):
        evaluate(Echo(), data, reference=Echo(config=replace(CONFIG, num_classes=5)))
    with pytest.raises(UsageError, match="nowhere does not exist"):
        evaluate(Echo(), data, records="nowhere/r.csv")


def test_the_modes_of_the_models_are_as_before() -> None:
    model, reference = Echo().train(), Echo().eval()
    evaluate(model, random_pairs(2), reference=reference)
    assert model.training and not reference.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_progress() -> None:
    seen: list[Progress] = []
    evaluate(Echo(), random_pairs(5), batch_size=2, on_progress=seen.append)
    assert seen == [Progress("evaluate", done, 5, "images") for done in (0, 1, 2, 3, 4, 5)]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Timed(Echo):
    """Takes so many seconds for each batch in turn."""

    def __init__(self, clock: Clock, seconds: Sequence[float]) -> None:
        super().__init__()
        self.clock, self.seconds = clock, list(seconds)

    def forward(self, images: Tensor) -> Tensor:
        self.clock.now += self.seconds.pop(0)
        return super().forward(images)


@pytest.mark.parametrize(
    ("n", "seconds", "expected"),
    [
        (5, [100.0, 2.0, 1.0], 3 / 3.0),  # batches of 2, 2, 1: the first is warm-up
        (2, [4.0], 2 / 4.0),  # there is no other
    ],
)
def test_speed_is_the_models_forward_alone(
    monkeypatch: pytest.MonkeyPatch, n: int, seconds: list[float], expected: float
) -> None:
    clock = Clock()
    monkeypatch.setattr(module, "perf_counter", clock)
    found = evaluate(Timed(clock, seconds), random_pairs(n), reference=Timed(clock, [1e3] * 3), batch_size=2)
    assert found.images_per_second == expected


def test_a_batch_of_broken_images_is_no_warm_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = Clock()
    monkeypatch.setattr(module, "perf_counter", clock)
    folder = folder_of(tmp_path / "set", 6, broken=[0, 1])
    assert evaluate(Timed(clock, [100.0, 4.0]), folder, batch_size=2).images_per_second == 2 / 4.0


# --- records that are resumed -----------------------------------------------------------------------------------------

SMALL = ModelConfig(image_size=8, patch=2, stride=2, in_chans=1, d_model=8, depth=3, d_state=4, dt_rank=1)
SMALL_CONFIG = Config(
    model=SMALL, num_classes=6, schedule=dense_schedule(SMALL), preprocessing=replace(PREP, resize=8, crop=8)
)


def small_case() -> tuple[ViM, ViM, SampleSet]:
    """Two real models and 40 images, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(40, 1, 8, 8, generator=generator)
    data = as_samples([(image, place % 6) for place, image in enumerate(images)], SMALL_CONFIG)
    return initialize(ViM(SMALL_CONFIG), seed=1), initialize(ViM(SMALL_CONFIG), seed=2), data


KILLED = """
import sys
sys.path[:0] = {paths!r}
from test_evaluate import evaluate, small_case
model, reference, data = small_case()
def wait(progress):
    if progress.done % 8 == 0:
        print(progress.done, flush=True)
    if progress.done == 24:
        sys.stdin.read()
evaluate(model, data, reference=reference, batch_size=8, records={records!r}, on_progress=wait)
"""


def test_a_killed_run_is_resumed_to_the_same_bytes(tmp_path: Path) -> None:
    csv, whole = tmp_path / "r.csv", tmp_path / "whole.csv"
    code = KILLED.format(paths=[str(HERE), str(HERE.parents[1])], records=str(csv))
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as child:
        assert child.stdout is not None
        assert [child.stdout.readline().strip() for _ in range(4)] == ["0", "8", "16", "24"]
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert len(read_records(csv)) == 24
    csv.write_bytes(csv.read_bytes()[:-7])  # as if the kill had come in the middle of a write
    assert len(read_records(csv)) == 23

    model, reference, data = small_case()
    uninterrupted = evaluate(model, data, reference=reference, batch_size=8, records=whole)
    seen: list[Progress] = []
    resumed = evaluate(model, data, reference=reference, batch_size=8, records=csv, on_progress=seen.append)
    assert seen[0].done == 16  # whole batches
    assert csv.read_bytes() == whole.read_bytes()
    assert csv.read_text().startswith(HEADER) and len(read_records(csv)) == 40
    assert replace(resumed, images_per_second=None) == replace(uninterrupted, images_per_second=None)


def test_a_finished_run_computes_nothing_again(tmp_path: Path) -> None:
    model, reference, data = small_case()
    csv = tmp_path / "r.csv"
    first = assess(model, data, reference=reference, records=csv)
    before = csv.read_bytes()
    model.forward = None  # would fail if it were called
    again = assess(model, data, reference=reference, records=csv)
    assert csv.read_bytes() == before
    reasons = {"images_per_second": f"every image was already in {csv}"}
    assert again == replace(first, images_per_second=None, reasons=reasons)


def test_another_model_does_not_resume(tmp_path: Path) -> None:
    model, reference, data = small_case()
    csv = tmp_path / "r.csv"
    assess(model, data, records=csv)
    with pytest.raises(DataError, match="holds the records of another run: reference was null and is now"):
        assess(model, data, reference=reference, records=csv)
    with pytest.raises(DataError, match="holds the records of another run: model was"):
        assess(reference, data, records=csv)
    with pytest.raises(DataError, match=r"data was .*; limit was null and is now 5"):
        assess(model, data.take(5), EvalOptions(limit=5), records=csv)
