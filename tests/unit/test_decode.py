"""Batches: broken images are named, and nothing depends on how the others were decoded."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image

from stm.data.decode import decode_all
from stm.data.images import ImageFile, Pixels, Sample
from stm.data.preprocess import preprocess
from stm.data.sets import SampleSet, from_files, iterate, workers_for
from stm.errors import DataError, UsageError
from tests.hang import HANG
from tests.pictures import PREP, labels_of, opened, picture

ROOT = Path(__file__).resolve().parents[2]


def mixed_folder(tmp_path):
    """Ten images, of which three cannot be read."""
    for number in range(10):
        picture(tmp_path / f"{number}.png", number, (20 + number, 15))
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:60])
    (tmp_path / "5.png").write_text("not an image")
    (tmp_path / "8.png").write_bytes(b"")
    return opened(tmp_path, need_labels=False)


def test_a_broken_image_is_named_and_the_rest_goes_on(tmp_path):
    samples = mixed_folder(tmp_path)
    batches = list(iterate(samples, PREP, batch_size=4))
    assert [batch.indices for batch in batches] == [(0, 1, 2), (4, 6, 7), (9,)]
    errors = {place: sentence for batch in batches for place, sentence in batch.errors.items()}
    assert errors[3].startswith("3.png: ")
    assert errors[5] == "5.png: not an image that can be read"
    assert errors[8] == "8.png: not an image that can be read"
    assert list(errors) == [3, 5, 8]
    for batch in batches:
        for place, image in zip(batch.indices, batch.images, strict=True):
            with Image.open(tmp_path / f"{place}.png") as picture:
                assert torch.equal(image, preprocess(picture, PREP))


def test_a_batch_of_nothing_but_broken_images_is_empty(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (batch,) = iterate(opened(tmp_path, need_labels=False), PREP, batch_size=2)
    assert batch.images.shape == (0, 3, 4, 4)
    assert (batch.indices, list(batch.errors)) == ((), [0])


def test_batches_can_begin_anywhere(tmp_path):
    samples = mixed_folder(tmp_path)
    whole = list(iterate(samples, PREP, batch_size=4))
    rest = list(iterate(samples, PREP, batch_size=4, start=4))
    assert [batch.indices for batch in rest] == [batch.indices for batch in whole[1:]]
    assert all(torch.equal(a.images, b.images) for a, b in zip(rest, whole[1:], strict=True))
    assert list(iterate(samples, PREP, batch_size=4, start=10)) == []


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    """Above Pillow's limit it would only warn."""
    samples = SampleSet("x", (Sample("a.png", 0, ImageFile(picture(tmp_path / "a.png", size=(40, 30)))),))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    (batch,) = iterate(samples, PREP, batch_size=1)
    assert batch.errors == {0: "a.png: more than 1000 pixels: refused as a possible decompression bomb"}


def test_pillows_remarks_do_not_break_an_image(tmp_path):
    """A transparent palette and EXIF of rubbish: Pillow warns of both, and warnings are errors here."""
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 255, 255, 255])
    image.save(tmp_path / "p.png", transparency=bytes([0, 255]))
    Image.new("RGB", (8, 8)).save(tmp_path / "e.jpg", exif=b"Exif\0\0II*\0\xff\0\0\0\0")
    (batch,) = iterate(opened(tmp_path, need_labels=False), PREP, batch_size=8)
    assert batch.errors == {}


def test_a_folder_that_looks_like_an_image_is_not_one(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "b.png").mkdir()
    assert list(labels_of(opened(tmp_path, need_labels=False))) == ["a.png"]
    (batch,) = iterate(from_files([tmp_path / "b.png"]), PREP, batch_size=1)
    assert batch.errors == {0: f"{tmp_path / 'b.png'}: is a directory"}


def test_batch_sizes_and_workers_that_cannot_be_are_refused(tmp_path):
    samples = from_files([tmp_path / "a.png"])
    with pytest.raises(UsageError, match="batch size is 0"):
        iterate(samples, PREP, batch_size=0)
    with pytest.raises(UsageError, match="workers is -1"):
        iterate(samples, PREP, batch_size=1, workers=-1)


def test_workers_give_the_same_batches_and_end_with_them(tmp_path):
    samples = mixed_folder(tmp_path)
    alone = list(iterate(samples, PREP, batch_size=2))
    together = list(iterate(samples, PREP, batch_size=2, workers=2))
    assert [(a.indices, a.errors) for a in alone] == [(b.indices, b.errors) for b in together]
    assert all(torch.equal(a.images, b.images) for a, b in zip(alone, together, strict=True))
    assert multiprocessing.active_children() == []


def test_a_dead_worker_is_reported_and_none_is_left(tmp_path):
    samples = mixed_folder(tmp_path)
    batches = iterate(samples, PREP, batch_size=1, workers=1)
    next(batches)
    for worker in multiprocessing.active_children():
        worker.kill()
        worker.join()
    with pytest.raises(DataError, match="a process that decodes images died") as refused:
        list(batches)
    assert "--workers 0" in refused.value.hint
    assert multiprocessing.active_children() == []


def test_stopping_early_leaves_no_worker(tmp_path):
    batches = iterate(mixed_folder(tmp_path), PREP, batch_size=1, workers=1)
    next(batches)
    batches.close()
    assert multiprocessing.active_children() == []


@pytest.fixture
def interruptible() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_signal_while_workers_end_waits_for_them(tmp_path, monkeypatch, interruptible):
    """A worker that was still starting wrote a traceback: what it needs had been removed."""
    real, ended = ProcessPoolExecutor.shutdown, []

    def shutdown(pool, **options):
        signal.raise_signal(signal.SIGTERM)
        real(pool, **options)
        ended.append(len(multiprocessing.active_children()))

    monkeypatch.setattr(ProcessPoolExecutor, "shutdown", shutdown)
    with pytest.raises(KeyboardInterrupt):
        list(iterate(mixed_folder(tmp_path), PREP, batch_size=4, workers=1))
    assert ended == [0]


class Endless(ImageFile):
    """An image that is never read to its end."""

    def open(self) -> Image.Image:
        time.sleep(10 * HANG)
        raise AssertionError


def test_whoever_asks_again_does_not_wait_for_images(interruptible):
    """The first signal ends the work, and the second is the first that comes while the worker is waited for."""
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.2):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            next(decode_all([[Sample("x.png", None, Endless(Path()))]], PREP, workers=1))
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        over.set()
        asking.join()
    for worker in multiprocessing.active_children():
        worker.kill()
        worker.join()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to see whether a process is there")
def test_workers_of_a_killed_run_go_by_themselves(tmp_path):
    """And they import no torch, which would take each of them seconds and memory."""
    picture(tmp_path / "a.png")
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(f"""
        import multiprocessing, time
        from stm.config import Preprocess
        from stm.data.decode import decode_all
        from stm.data.images import ImageFile, Sample
        from pathlib import Path
        if __name__ == "__main__":
            chunks = [[Sample("a", 0, ImageFile(Path({str(tmp_path / "a.png")!r})))]] * 50
            next(decoded := decode_all(chunks, Preprocess(), 1))
            print(multiprocessing.active_children()[0].pid, flush=True)
            time.sleep(60)
        """)
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment) as run:
        worker = Path("/proc") / run.stdout.readline().strip()
        libraries = (worker / "maps").read_text()
        assert "_imaging" in libraries
        assert "libtorch" not in libraries
        run.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + HANG
    while worker.exists() and "\nState:\tZ" not in (worker / "status").read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not worker.exists() or "\nState:\tZ" in (worker / "status").read_text()


def test_workers_are_for_many_files():
    files = SampleSet("x", tuple(Sample(str(i), 0, ImageFile(Path(f"{i}.png"))) for i in range(65)))
    assert 1 <= workers_for(files) <= 4
    assert workers_for(files.take(64)) == 0
    assert workers_for(SampleSet("x", tuple(Sample(str(i), 0, Pixels(b"0", 1)) for i in range(99)))) == 0
