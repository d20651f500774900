"""Branches of the rooms that read and write folders which no other test takes: `make coverage` counts them."""

import dataclasses
import errno
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from stm.artifact import atomic, folder, provenance, shapes
from stm.artifact.locks import holder, lock
from stm.artifact.scratch import HINT, scratch
from stm.artifact.tensors import check_images
from stm.artifact.written import Written, noting, so_far, tell, tell_unkept, unkept
from stm.config import Measured, Preprocess, Protection, Size, dense_schedule
from stm.config_file import class_names, dumps
from stm.errors import ArtifactError, StmError, UsageError
from tests.unit.folders import NAMES, content, put, whole
from tests.unit.test_config import CONFIG


def test_what_is_written_is_told_once_and_only_inside() -> None:
    tell("outside")
    assert so_far() == ()
    with noting() as outer:
        tell(Path("a"))
        tell(Path("a/b"))
        tell("https://hub/a", grows=True)
        with noting() as inner:
            tell(Path("a/b"))
        assert inner == [Written("a/b")]
    assert outer == [Written("a"), Written("https://hub/a", True)] and so_far() == ()


def test_what_could_not_be_kept_is_told_once_or_logged(caplog: pytest.LogCaptureFixture) -> None:
    with noting():
        tell_unkept("no room")
        tell_unkept("no room")
        assert unkept() == ("no room",) and caplog.messages == []
    assert unkept() == ()
    tell_unkept("still no room")
    assert unkept() == () and caplog.messages == ["still no room"]


def test_a_scratch_folder_ends_with_its_block_and_clears_those_of_the_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead = tmp_path / ".stm-x.stm-tmp-00000000"
    (dead / "stm-x").mkdir(parents=True)
    with scratch("stm-x") as one:
        assert not dead.exists() and one.is_dir()
        with scratch("stm-x") as two:
            assert one.is_dir() and two != one, "a living run's folder stays"
    assert not list(tmp_path.iterdir())


def test_a_scratch_folder_that_another_run_clears_at_once_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run may take a folder for a dead one's before it is locked: before it is opened, or after."""
    import fcntl

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    lock, made = fcntl.flock, []

    def flock(descriptor: int, how: int) -> None:
        lock(descriptor, how)
        if not made:
            made.extend(tmp_path.glob(".stm-x*"))
            made[0].rmdir()

    monkeypatch.setattr(fcntl, "flock", flock)
    with scratch("stm-x") as inside:
        assert inside.is_dir() and inside.parent != made[0]


def test_a_scratch_folder_that_cannot_be_made_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(Path, "mkdir", lambda self, **_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ArtifactError, match=r"stm-x.* cannot be written: No space left") as refused, scratch("stm-x"):
        pass
    assert refused.value.hint == HINT
    assert not list(tmp_path.iterdir())


def test_a_scratch_folder_goes_if_the_system_refuses_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever of it is refused: the file in it, the folder of the file, the folder itself."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for at in range(3):
        calls = []

        def refuse(real: Any, path: Any, *, at: int = at, calls: list[Any] = calls, **where: Any) -> None:
            calls.append(path)
            if len(calls) == at + 1:
                raise OSError(5, "Input/output error")
            real(path, **where)

        with monkeypatch.context() as failing, scratch("stm-x") as inside:
            (inside / "file").touch()
            for name in ("unlink", "rmdir"):
                failing.setattr(os, name, partial(refuse, getattr(os, name)))
        assert len(calls) > 3 and not list(tmp_path.iterdir()), at


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ([1], "of type list"),
        (torch.zeros(1, 3, 4, 4).to_sparse(), "layout torch.sparse_coo"),
        (torch.zeros(3, 4, 4), "(3, 4, 4), expected (B, 3, 4, 4)"),
        (torch.zeros(1, 3, 4, 5), "(1, 3, 4, 5), expected (B, 3, 4, 4)"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "uint8"),
        (torch.zeros(1, 3, 4, 4, device="meta"), "on meta, expected cpu"),
    ],
)
def test_images_of_another_kind(images: torch.Tensor, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_images(images, (3, 4, 4), torch.device("cpu"))
    assert says in caught.value.message
    check_images(torch.zeros(0, 3, 4, 4), (3, 4, 4), torch.device("cpu"))
    check_images(torch.zeros(1, 3, 4, 4, device="meta"), (3, 4, 4), None)


def test_a_neck_has_its_weights() -> None:
    model = dataclasses.replace(CONFIG.model, image_size=8, class_tokens=2, neck=3)
    names = dict(
        shapes.shapes(
            dataclasses.replace(
                CONFIG,
                model=model,
                schedule=dense_schedule(model),
                protection=None,
                preprocessing=Preprocess(resize=8, crop=8),
            )
        )
    )
    assert (names["neck.weight"], names["norm_neck.weight"]) == ((3, 2), (model.d_head,))


def test_what_int8_and_a_norm_on_the_scan_add() -> None:
    """By hand: D = 2, E = 4, N = 2, R = 1. An int8 product has a scale per output and an equalizer per input."""
    model = dataclasses.replace(CONFIG.model, scan_norm=True)
    floats = dict(shapes.shapes(dataclasses.replace(CONFIG, model=model)))
    whole = dict(shapes.shapes(dataclasses.replace(CONFIG, model=model, dtype="int8")))
    mixer = {name.removeprefix("layers.0.mixer."): shape for name, shape in whole.items() if "layers.0" in name}
    assert mixer["scan_norm.weight"] == mixer["scan_norm.bias"] == (4,)
    assert {name: shape for name, shape in mixer.items() if "_proj." in name} == {
        "in_proj.weight": (8, 2),
        "in_proj.scale": (8,),
        "in_proj.equalizer": (2,),
        "x_proj.weight": (2, 5, 4),
        "x_proj.scale": (2, 5),
        "x_proj.equalizer": (2, 4),
        "out_proj.weight": (2, 4),
        "out_proj.scale": (2,),
        "out_proj.equalizer": (4,),
    }
    assert floats.keys() - whole.keys() == {f"layers.{block}.mixer.x_proj_weight" for block in range(3)}


@pytest.mark.parametrize(
    ("mode", "step_scale", "tensors"),
    [
        ("dynamic", 0.0, {}),
        ("dynamic", 0.5, {"plan.0.scale": (3,), "plan.1.scale": (2,)}),
        ("static", 0.0, {"plan.0.weight": (5,), "plan.1.weight": (3,)}),
    ],
)
def test_what_a_protection_stores(mode: str, step_scale: float, tensors: dict[str, tuple[int, ...]]) -> None:
    """By hand: of 5 tokens 2 go after block 0, and 1 after block 1."""
    config = dataclasses.replace(CONFIG, protection=Protection(weights="hsp", mode=mode, step_scale=step_scale))
    assert {name: shape for name, shape in shapes.shapes(config) if name.startswith("plan.")} == tensors


def test_texts_in_what_anybody_may_write() -> None:
    assert dataclasses.replace(CONFIG, extra={"notes": ["a", 1, "b"]}).extra_texts("notes") == ("a", "b")
    assert dataclasses.replace(CONFIG, extra={"notes": "a"}).extra_texts("notes") == ()


@pytest.mark.parametrize("changes", [{"neck": 0, "class_tokens": 2}, {"neck": 3}, {"class_tokens": 65}])
def test_class_tokens_and_necks_that_cannot_be(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        dataclasses.replace(CONFIG.model, **changes)  # type: ignore[arg-type]


def test_a_square_is_written_as_one_number() -> None:
    with pytest.raises(ValueError, match="expected 4 for a square"):
        dataclasses.replace(CONFIG.model, image_size=(4, 4))
    with pytest.raises(ValueError, match="expected at least 1"):
        dataclasses.replace(CONFIG.model, image_size=(4, 0))


def test_preprocessing_for_another_size_keeps_its_ratio() -> None:
    assert Preprocess(resize=256, crop=224).at((448, 224)) == Preprocess(resize=(512, 256), crop=(448, 224))


def test_a_mean_per_channel() -> None:
    with pytest.raises(ValueError, match="mean has 1 values, expected 3"):
        dataclasses.replace(CONFIG, preprocessing=Preprocess(resize=4, crop=4, mean=(0.5,), std=(0.5,)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_classes": -1}, "num_classes is -1, expected at least 0"),
        ({"dtype": "float32", "rounding": Measured(data="x", n=1)}, "rounding is given, expected null"),
        ({"label_names": ("a",)}, "1 label_names, expected one for each of the 2 classes"),
    ],
)
def test_configs_that_cannot_be(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(CONFIG, **changes)
    assert dataclasses.replace(CONFIG, dtype="int8", rounding=Measured(data="x", n=1)).rounding is not None


def test_a_backbone_has_no_classes_and_no_logits() -> None:
    with pytest.raises(ValueError, match="class_tokens is -1, expected at least 0"):
        dataclasses.replace(CONFIG.model, class_tokens=-1)
    model = dataclasses.replace(CONFIG.model, class_tokens=0)
    bare = {"model": model, "schedule": dense_schedule(model), "protection": None, "label_names": None}
    with pytest.raises(ValueError, match="num_classes is 2 without a class token, expected 0"):
        dataclasses.replace(CONFIG, **bare)
    CONFIG.check_head()
    with pytest.raises(StmError, match="is a backbone without a head, and has no logits"):
        dataclasses.replace(CONFIG, num_classes=0, **bare).check_head()


@pytest.mark.parametrize(("size", "resize"), [(224, 256), ((64, 96), (73, 109))])
def test_the_official_preprocessing(size: Size, resize: Size) -> None:
    assert Preprocess.official(size) == Preprocess(resize=resize, crop=size, interpolation="bicubic")


def test_a_mark_follows_the_plan_and_nothing_else() -> None:
    model, plan = torch.nn.Linear(2, 2), torch.nn.Linear(1, 1)
    before = provenance.mark(model, CONFIG)
    assert not provenance.is_changed(model, CONFIG, before)
    assert provenance.under_plan(None, plan) is None
    assert provenance.under_plan(provenance.under_plan(before, plan), None) == before
    with torch.no_grad():
        model.weight.zero_()
    assert provenance.is_changed(model, CONFIG, before) and provenance.is_changed(model, CONFIG, None)
    assert provenance.as_cast(CONFIG, CONFIG.dtype) is CONFIG
    assert provenance.as_cast(CONFIG, "bfloat16").recipe is None, "its images would be rounded on the way"
    kept = dataclasses.replace(CONFIG, recipe=dataclasses.replace(CONFIG.recipe, calibration=None))
    assert provenance.as_cast(kept, "bfloat16").recipe == kept.recipe
    assert provenance.as_cast(dataclasses.replace(kept, dtype="float16"), "bfloat16").recipe is None, "rounded twice"
    dense = provenance.as_dense(CONFIG)
    assert (dense.recipe, dense.measured, dense.schedule.steps) == (None, (), ())
    trained = provenance.as_trained(CONFIG, None)
    assert trained.measured == () and "after merging" in str(provenance.tuned(trained))
    assert "before merging" in str(provenance.tuned(provenance.own_source(trained)))
    assert provenance.own_source(CONFIG) is CONFIG and provenance.tuned(CONFIG) is None


def test_a_file_that_may_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path, says in ((tmp_path / "folder", "is a folder, expected a file"), (tmp_path / "none/a", "does not exist")):
        with pytest.raises(UsageError, match=says):
            atomic.check_file(path, force=True)
    with pytest.raises(UsageError, match="File name too long"):
        atomic.check_file(tmp_path / ("a" * 250), force=True)


@pytest.mark.parametrize(
    "header", [b"", b"\xff" * 8, b"\2\0\0\0\0\0\0\0[]", b"\2\0\0\0\0\0\0\0{", b"\7" + bytes(7) + b'{"a":3}']
)
def test_weights_without_a_header(tmp_path: Path, header: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(header)
    monkeypatch.setattr(folder, "_checked", lambda _: (CONFIG, tmp_path / "model.safetensors"))
    with pytest.raises(ArtifactError, match="it has no header of safetensors"):
        folder.describe(tmp_path)


def test_a_folder_that_the_system_cannot_look_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "config.json").write_text(dumps(CONFIG))
    with monkeypatch.context() as patch:
        patch.setattr(folder, "_check_written", fail)
        with pytest.raises(ArtifactError, match=r"model\.safetensors cannot be read: Input/output error"):
            folder.read(tmp_path)
    monkeypatch.setattr(atomic, "find", fail)
    with pytest.raises(ArtifactError, match="cannot be read: Input/output error"):
        folder.read_config(tmp_path)


def test_a_folder_that_cannot_be_synced_is_a_failure_unless_the_drive_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(number: int) -> None:
        def fsync(descriptor: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fsync)

    fail(errno.EINVAL)
    atomic.sync(tmp_path)
    fail(errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        atomic.sync(tmp_path)


def test_a_system_without_an_exchange_of_two_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    assert not atomic._exchange_at_once(tmp_path / "a", tmp_path / "b")


def test_what_may_not_be_written_or_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path("/")
    with pytest.raises(UsageError, match="/ is a mount point, which cannot be replaced"):
        atomic._check_replaceable(root, root, (), force=True)
    (tmp_path / "a").touch()
    for append, asked in ((False, tmp_path), (True, tmp_path / "a")):
        # as for anybody but the superuser, who runs some machines' tests
        monkeypatch.setattr(os, "access", lambda path, _, asked=asked: path != asked)
        with pytest.raises(UsageError, match="a cannot be written: permission denied"):
            atomic.check_writable(tmp_path / "a", "", append=append)
        atomic.check_writable(tmp_path / "a", "", append=not append)


def test_a_folder_or_a_link_is_nobodys_draft(tmp_path: Path) -> None:
    folder, link = tmp_path / ".a.stm-tmp-00000000", tmp_path / ".a.stm-tmp-00000001"
    folder.mkdir()
    link.symlink_to(tmp_path / "kept")
    (tmp_path / "kept").touch()
    dead, living = tmp_path / ".a.stm-tmp-00000002", tmp_path / ".a.stm-tmp-00000003"
    dead.touch()
    living.touch()
    with lock(living):
        atomic.check_file(tmp_path / "a", force=False)
    living.unlink()
    assert sorted(tmp_path.iterdir()) == [folder, link, tmp_path / "kept"] and not dead.exists()
    with noting() as noted, atomic.drafted(tmp_path / "a", kept=False):
        pass
    assert not noted and sorted(tmp_path.iterdir()) == [folder, link, tmp_path / "a", tmp_path / "kept"]


def test_an_old_folder_goes_when_its_new_one_stands(tmp_path: Path) -> None:
    """A kill fell between the two renames and the removal of the old folder."""
    old = put(tmp_path / ".a.stm-old-00000000", "old")
    put(tmp_path / "a", "new")
    assert atomic.check(tmp_path / "a", NAMES, force=True) == tmp_path / "a"
    assert not old.exists() and content(tmp_path / "a") == whole("new")


def test_what_a_folder_says_of_itself(tmp_path: Path) -> None:
    tensors = {name: torch.zeros(shape) for name, shape in shapes.shapes(CONFIG)}
    written = folder.write(tmp_path / "a", CONFIG, tensors, "card")
    assert folder.describe(tmp_path / "a") == written
    folder.write(tmp_path / "a", CONFIG, {**tensors, "head.bias": torch.zeros(3)}, "card", force=True)
    with pytest.raises(ArtifactError, match=r"1 of another shape \(head\.bias \(3,\) instead of \(2,\)\)"):
        folder.describe(tmp_path / "a")
    with pytest.raises(ArtifactError, match="it has 2 for 3 blocks"):
        shapes.check_claims(CONFIG, {"a": (1,), "b": (2,)}, "x", ArtifactError)


def test_names_that_are_no_drafts() -> None:
    assert atomic.place_of(".a.csv.stm-tmp-0123abcd") == "a.csv" and atomic.place_of("a.csv") == "a.csv"


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files by /proc")
def test_a_lock_leaves_no_file_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with lock(tmp_path) as held, lock(tmp_path / "none") as of_nothing:
        assert held and not of_nothing
    assert len(os.listdir("/proc/self/fd")) == before


def test_who_holds_a_lock_is_named_by_the_system_s_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines as /proc/locks has them: number, kind, mode, access, process, device and inode, range."""
    file, listing = tmp_path / "lock", tmp_path / "locks"
    file.touch()
    inode = file.stat().st_ino
    monkeypatch.setattr("stm.artifact.locks._LOCKS", listing)
    assert holder(file) == "another process"  # no list
    for line, who in (
        (f"1: FLOCK  ADVISORY  WRITE 1234 08:01:{inode} 0 EOF", "process 1234"),
        (f"1: POSIX  ADVISORY  WRITE 1234 08:01:{inode} 0 EOF", "another process"),
        (f"1: FLOCK  ADVISORY  WRITE 1234 08:01:{inode + 1} 0 EOF", "another process"),
    ):
        listing.write_text(line + "\n")
        assert holder(file) == who


def test_classes_without_names_are_numbered() -> None:
    numbers = tuple(f"class {index}" for index in range(CONFIG.num_classes))
    names = tuple(f"name {index}" for index in range(CONFIG.num_classes))
    assert class_names(dataclasses.replace(CONFIG, label_names=None)) == numbers
    assert class_names(dataclasses.replace(CONFIG, label_names=names)) == names
