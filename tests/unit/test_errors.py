"""A message is one line, whatever a file or a library put into it."""

from pathlib import Path

import pytest

import stm
from stm.codec import decode
from stm.commands.predict import predict
from stm.config import Preprocess
from stm.data.open import open_samples
from stm.errors import LONGEST, DataError, StmError, damage, escaped, said


def test_names_of_files_and_messages_of_libraries_break_no_line() -> None:
    error = DataError("a\nb\r\x85\u2028\x00 is no name", "rename a\nb")
    assert error.message == r"a\nb\r\x85\u2028\x00 is no name"
    assert error.hint == r"rename a\nb"
    assert str(error) == "a\\nb\\r\\x85\\u2028\\x00 is no name\nHint: rename a\\nb"
    assert StmError("é 日本語 \U0001f600").message == "é 日本語 \U0001f600"
    assert escaped("a\tb") == r"a\tb"


def test_a_library_is_quoted_by_one_short_line() -> None:
    assert said(ValueError("first\nsecond\n")) == "first"
    assert said(ValueError("\n\n  ")) == "ValueError"
    assert said(OSError(5, "Input/output error", "/a/file")) == "Input/output error", "the sentence names the file"
    assert said(OSError("no number")) == "no number"
    assert len(said(ValueError("x" * 10_000))) == LONGEST + len("...")


def test_what_a_library_says_of_its_own_code_is_not_quoted() -> None:
    """The RuntimeErrors are torch's: of a pickle that names a descriptor for a dtype, of a zip file without an end."""
    of_code = RuntimeError("expected torch.dtype, but got <class 'getset_descriptor'>")
    of_file = RuntimeError("PytorchStreamReader failed reading zip archive: failed finding central directory")
    assert damage(of_code) == damage(TypeError("an integer is required")) == "it is damaged"
    assert damage(of_file) == str(of_file)


def test_a_key_of_a_file_breaks_no_line() -> None:
    many = dict.fromkeys(map(str, range(1000)), 0)
    for kind, value in ((Preprocess, {"a\nb": 1}), (Preprocess, many), (dict[str, int], {"a\nb": "x\u2028"})):
        with pytest.raises(ValueError, match=r"unknown key|expected an integer") as caught:
            decode(kind, value, "preprocessing")
        assert "\n" not in str(caught.value) and "\u2028" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("address", ["https://example.com/a/cat.jpg", "s3://bucket/set"])
def test_an_address_is_named_whole(address: str) -> None:
    """As a path it has one slash less, and the sentence said that no such file exists."""
    for call in (
        lambda: predict("vim-digits", [Path(address)]),
        lambda: open_samples(address, config=stm.load("vim-digits").config),
    ):
        with pytest.raises(DataError, match=f"{address} is an address") as caught:
            call()
        assert caught.value.hint == "download it first"
