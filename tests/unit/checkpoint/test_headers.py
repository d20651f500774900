"""Documents with headers in place of tensors: what torch-free reading takes, what it leaves to torch, and the numbers
behind a header. That both ways say the same of a file is held by `cases.read`, in every test of this folder."""

import argparse
import contextlib
import errno
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fuzz import small
from stm.checkpoint import file
from stm.checkpoint import headers as plain
from stm.checkpoint.leaves import Header, dtype_of, header, is_tensor, kind_of
from stm.errors import CheckpointError
from tests.unit.checkpoint.cases import State, forms, read, refused, save

LEFT_TO_TORCH = {"deflated", "legacy"}


def leaves(value: Any) -> list[Any]:
    if is_tensor(value):
        return [value]
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [leaf for each in items for leaf in leaves(each)]


def headers(path: Path) -> list[Any]:
    return leaves(file.load(path, values=False).document)


def test_which_forms_are_read_without_torch(state: State, tmp_path: Path) -> None:
    for form, path in forms(state, tmp_path).items():
        kinds = {type(leaf) for leaf in headers(path)}
        assert (kinds == {Header}) == (form not in LEFT_TO_TORCH), form


def test_a_header_has_what_torch_has(tmp_path: Path) -> None:
    """Shape, kind and numbers, of whatever stands in one storage."""
    base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    tensors = {
        "whole": base,
        "turned": base.permute(2, 0, 1),
        "part": base[1, 1:, ::2],
        "spread": base[:1].expand(5, 3, 4),
        "empty": base[:0],
        "one": base[1, 2, 3],
        **{
            str(dtype): base.to(dtype) for dtype in (torch.float64, torch.float16, torch.int64, torch.uint8, torch.bool)
        },
        "parameter": torch.nn.Parameter(base + 1),
    }
    got = file.load(save(tmp_path / "x.pth", {"kept": tensors, "twice": [base]}), values=False).document
    assert got["kept"]["whole"] is got["twice"][0]  # one tensor under two names stays one
    for name, tensor in tensors.items():
        header = got["kept"][name]
        assert isinstance(header, Header)
        assert (header.shape, header.ndim, kind_of(header)) == (tuple(tensor.shape), tensor.ndim, kind_of(tensor))
        assert header.tolist() == tensor.tolist()
        assert header.new_zeros(3).shape == tensor.new_zeros(3).shape


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        *((dtype, float("nan")) for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64)),
        *((dtype, float("-inf")) for dtype in (torch.float32, torch.bfloat16)),
        (torch.float64, 1e39),
    ],
)
def test_numbers_that_float32_lacks(state: State, tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    bad = state["layers.1.mixer.D_b"].to(dtype, copy=True)
    bad[3] = value
    path = save(tmp_path / "x_midclstok.pth", state | {"layers.1.mixer.D_b": bad})
    assert {type(leaf) for leaf in headers(path)} == {Header}
    refused(path, "layers.1.mixer.D_b holds NaN or infinite values", image_size=64)


def test_numbers_that_float32_has(state: State, tmp_path: Path) -> None:
    """The largest numbers of each dtype are no infinity, and the mean of the images is read behind a header."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        large = torch.full_like(state["norm_f.weight"], torch.finfo(dtype).max, dtype=dtype)
        document = {"model": state | {"norm_f.weight": large}, "args": {"mean": torch.tensor([0.5, 0.25, 0.125])}}
        path = save(tmp_path / "x_midclstok.pth", document)
        assert read(path, image_size=64).preprocessing.mean == (0.5, 0.25, 0.125)
    assert {dtype_of(leaf) for leaf in headers(path)} == {"float32", "bfloat16"}


def test_what_is_no_plain_tensor_is_left_to_torch(state: State, tmp_path: Path) -> None:
    """Its outcome is torch's, and the rest of the document with it."""
    path = save(tmp_path / "x_midclstok.pth", {"model": state, "beside": torch.eye(3).to_sparse()})
    assert Header not in {type(leaf) for leaf in headers(path)}
    read(path, image_size=64)


def test_a_damaged_file_has_one_outcome(tmp_path: Path) -> None:
    """Two readers of zip files may find two things in one. Where ours would go on and torch's refuses, torch decides.

    Fields of records and of the directory's end, by their offsets in it, then bytes anywhere near them.
    """
    path = save(tmp_path / "x_midclstok.pth", {"model": small.official(), "args": {"input_size": 8}})
    data, draw = path.read_bytes(), random.Random(5)
    entry = data.rindex(b"PK\x01\x02")
    fields = [(len(data) - 22, at) for at in (4, 6, 8, 10, 12, 16, 20)] + [(entry, at) for at in (8, 10, 31, 34, 42)]
    fields += [(0, at) for at in (0, 6, 26, 28, 30)]
    changes = [{base + at: data[base + at] ^ 1} for base, at in fields]
    near = [*range(4000), *range(data.index(b"PK\x01\x02"), len(data))]
    changes += [{draw.choice(near): draw.randrange(256)} for _ in range(40)]
    for change in [{}, *changes]:
        changed = bytearray(data)
        for at, byte in change.items():
            changed[at] = byte
        path.write_bytes(changed)
        with contextlib.suppress(CheckpointError):
            read(path)
    for cut in (data[:-30], data + b"\0", data.replace(b"byteorder", b"byteordes"), data[: len(data) // 2]):
        path.write_bytes(cut)
        with contextlib.suppress(CheckpointError):
            read(path)


HEADERS = {
    "as it is": b"{}",
    "a gap": b'{"a":{"dtype":"U8","shape":[3],"data_offsets":[1,4]}}',
    "an overlap": b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},'
    b'"b":{"dtype":"U8","shape":[1],"data_offsets":[3,4]}}',
    "bytes left over": b'{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}',
    "beyond the file": b'{"a":{"dtype":"U8","shape":[5],"data_offsets":[0,5]}}',
    "another size": b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,4]}}',
    "a negative size": b'{"a":{"dtype":"U8","shape":[-2,-2],"data_offsets":[0,4]}}',
    "a float": b'{"a":{"dtype":"U8","shape":[4.0],"data_offsets":[0,4]}}',
    "minus zero": b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[-0,4]}}',
    "a truth": b'{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}',
    "a key left out": b'{"a":{"dtype":"U8","data_offsets":[0,4]}}',
    "three offsets": b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4,4]}}',
    "metadata of numbers": b'{"__metadata__":{"x":1},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
    "half a surrogate": b'{"\\ud800":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
    "no UTF-8": b'{"\xff":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
    "a list": b"[]",
}


@pytest.mark.parametrize("text", HEADERS.values(), ids=HEADERS)
def test_a_header_that_safetensors_refuses_is_not_read(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(SafetensorError), safe_open(path, framework="np"):
        pass
    with pytest.raises(plain.NotPlain):
        plain.safetensors(path)


def test_a_header_that_safetensors_takes_is_read(tmp_path: Path) -> None:
    """Empty tensors, spaces behind the header, metadata, and names in any order."""
    empty = '"e":{"shape":[0,3],"dtype":"F32","data_offsets":[4,4]}'
    text = f'{{"b":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}},"__metadata__":{{"k":"v"}},{empty}}}   '
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + bytes([1, 2, 3, 4]))
    with safe_open(path, framework="np") as theirs:
        names = theirs.keys()
    got = plain.safetensors(path)
    assert list(got) == names == ["b", "e"]
    assert (got["b"].tolist(), got["e"].tolist(), got["e"].shape) == ([1, 2, 3, 4], [], (0, 3))


def test_what_lies_between_the_strides_is_no_number_of_the_tensor() -> None:
    numbers = np.array([1, np.nan, 2, np.inf, 3.4e38, np.nan], "<f4").tobytes()
    assert header(numbers, 0, 24, "float32", (3,), (2,)).is_finite()
    assert not header(numbers, 4, 24, "float32", (1,)).is_finite()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_every_upper_byte_is_finite_or_not_as_torch_has_it(dtype: str) -> None:
    """All numbers whose last two bytes differ, of each dtype: as torch casts them to float32."""
    size = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}[dtype]
    upper = torch.arange(-(1 << 15), 1 << 15).to(torch.int16)
    data = torch.zeros(len(upper), size // 2, dtype=torch.int16)
    data[:, -1] = upper
    finite = data.view(getattr(torch, dtype)).flatten().float().isfinite()
    raw = data.numpy().tobytes()
    # By the byte that the shortcut looks at: 256 numbers at a time, as one tensor each.
    for first in range(0, len(upper), 256):
        one = header(raw, first * size, len(raw), dtype, (256,))
        assert one.is_finite() == bool(finite[first : first + 256].all())


@pytest.mark.parametrize(("shape", "fits"), [((3,), True), ((2, 2), False), ((-1,), False), ((0, 9), True)])
def test_a_header_stays_within_its_file(shape: tuple[int, ...], fits: bool) -> None:
    """Twelve bytes from the fourth on hold three numbers."""
    data = bytes(16)
    if fits:
        assert header(data, 4, 16, "float32", shape).shape == shape
    else:
        with pytest.raises(ValueError, match=r"^(sizes that no tensor has|a tensor that reaches beyond its file)$"):
            header(data, 4, 16, "float32", shape)


@pytest.mark.parametrize(("record", "other"), [(b"little", b"middle"), (b"3\n", b"9\n")])
def test_an_archive_of_another_order_or_version_is_left_to_torch(record: bytes, other: bytes, tmp_path: Path) -> None:
    path = save(tmp_path / "x.pth", {"w": torch.ones(2)})
    plain.Archive(path)
    with zipfile.ZipFile(path) as archive:
        changed = next(each for each in archive.infolist() if archive.read(each) == record)
    data = path.read_bytes()
    at = data.index(record, changed.header_offset)
    path.write_bytes(data[:at] + other + data[at + len(other) :])  # all else stays as torch.save writes it
    with pytest.raises(plain.NotPlain):
        plain.Archive(path)


def test_a_storage_has_the_bytes_of_its_numbers(tmp_path: Path) -> None:
    archive = plain.Archive(save(tmp_path / "x.pth", {"w": torch.ones(2)}))
    span = archive.storage("0", "float32", 2)
    assert span.data[span.at : span.end] == np.ones(2, np.float32).tobytes()
    for dtype, count in (("float32", 1), ("float64", 2)):
        with pytest.raises(plain.NotPlain):
            archive.storage("0", dtype, count)


def test_what_torch_would_not_build_is_no_header() -> None:
    storage = plain.Span(bytes(16), 0, 16, "int64")
    assert plain._tensor(storage, 0, (2,), (1,)).shape == (2,)
    for offset, grad in ((-1, False), (1.0, False), (0, True)):  # no place, no number, no gradient of whole numbers
        with pytest.raises(plain.NotPlain):
            plain._tensor(storage, offset, (2,), (1,), grad)  # type: ignore[arg-type]
    with pytest.raises(plain.NotPlain):
        plain._parameter(1)


def test_a_pickle_of_a_later_protocol_is_left_to_torch(state: State, tmp_path: Path) -> None:
    path = save(tmp_path / "x_midclstok.pth", {"model": state}, pickle_protocol=4)
    refused(path)


@pytest.mark.parametrize(
    ("module", "where", "error", "told"),
    [
        (plain, "_mapped", OSError, True),
        (plain.Archive, "_ends_plainly", OSError, True),
        (plain.Archive, "_ends_plainly", MemoryError, True),
        (file.Reader, "read", MemoryError, True),
        (plain._Unpickler, "load", MemoryError, True),
        # a pickle's own bytes lead to any other error: torch decides
        (file.Reader, "read", OSError, False),
        (plain._Unpickler, "load", OSError, False),
    ],
)
def test_memory_that_ran_out_and_a_drive_that_fails_are_not_called_a_damaged_file(
    module: Any, where: str, error: type[Exception], told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "x.pth", {"w": torch.ones(2)})

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(module, where, fail)
    with pytest.raises(error if told else plain.NotPlain):
        file._load_headers(path, 1000)


def test_weights_that_a_drive_does_not_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "x.safetensors")

    def fail(_: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(plain, "_mapped", fail)
    with pytest.raises(OSError, match="Input/output error"):
        plain.safetensors(tmp_path / "x.safetensors")


def test_a_header_that_two_parsers_read_in_two_ways_is_left_to_torch(tmp_path: Path) -> None:
    """The library of safetensors takes a dtype in two forms."""
    path = tmp_path / "x.safetensors"
    for dtype, plainly in (('"F32"', True), ('{"F32": null}', False)):
        text = f'{{"w": {{"dtype": {dtype}, "shape": [1], "data_offsets": [0, 4]}}}}'.encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + np.float32(0.5).tobytes())
        assert (type(headers(path)[0]) is Header) == plainly
        assert file.load(path).document["w"].tolist() == [0.5]


def test_a_header_that_names_a_tensor_twice_is_left_to_torch(tmp_path: Path) -> None:
    entry = '"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    text = f"{{{entry}, {entry}}}".encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + np.float32(0.5).tobytes())
    with pytest.raises(plain.NotPlain):
        plain.safetensors(tmp_path / "x.safetensors")


def test_what_a_pickle_asks_of_the_archive_is_a_storage_of_numbers(tmp_path: Path) -> None:
    unpickler = plain._Unpickler(plain.Archive(save(tmp_path / "x.pth", {"w": torch.ones(2)})), {})
    storage = plain.TORCH["torch.FloatStorage"]
    for location in ("cpu", "cuda:1"):
        span = unpickler.persistent_load(("storage", storage, "0", location, 2))
        assert span.data[span.at : span.end] == np.ones(2, np.float32).tobytes()
    for pid in (
        ("module", storage, "0", "cpu", 2),
        ("storage", "FloatStorage", "0", "cpu", 2),
        ("storage", storage, "0", "cpu", True),
        ("storage", storage, "0", "meta", 2),
        ("storage", storage, "0", None, 2),
    ):
        with pytest.raises(plain.NotPlain):
            unpickler.persistent_load(pid)


def test_what_stands_in_for_weights_has_their_dtype() -> None:
    made = header(bytes(4), 0, 4, "bfloat16", (2,))
    assert [(each.shape, each.dtype, each.tolist()) for each in (made.new_zeros(2), made.new_ones((1, 2)))] == [
        ((2,), "bfloat16", [0, 0]),
        ((1, 2), "bfloat16", [[1, 1]]),
    ]
