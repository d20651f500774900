"""YAML under the core schema of 1.2, with the line of every value. Expected values are written by hand."""

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stm.strict_yaml import parse, written

BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True))


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("no", "no"),
        ("off", "off"),
        ("y", "y"),
        ("true", True),
        ("false", False),
        ("1e-3", 1e-3),
        ("1.0e-05", 1e-5),
        (".5", 0.5),
        ("-3", -3),
        ("0", 0),
        ("0.30", 0.3),
        ("1:30", "1:30"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("2026-01-31", "2026-01-31"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("'0.4'", "0.4"),
        ('"no"', "no"),
        ("~", None),
        ("", None),
        ("[1, two]", [1, "two"]),
        ("<<", "<<"),
        ("'a: b'", "a: b"),
    ],
)
def test_a_word_means_what_the_core_schema_says(word: str, value: Any) -> None:
    (read,) = parse(f"key: {word}\n")[0].values()
    assert read == value and type(read) is type(value)


def test_every_value_has_its_line() -> None:
    text = "# a comment\na: 1\n\nb:\n  c: [1,\n    2]\n  d: {e: 3}\n"
    value, lines = parse(text)
    assert value == {"a": 1, "b": {"c": [1, 2], "d": {"e": 3}}}
    assert lines == {"": 2, "a": 2, "b": 4, "b.c": 5, "b.c[0]": 5, "b.c[1]": 6, "b.d": 7, "b.d.e": 7}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "line 1: a has the anchor &a, expected the value alone"),
        ("a: 1\nb: *a\n", "line 2: it is not YAML|line 2: b is the alias \\*a"),
        ("a: !!python/object/apply:os.system [ls]\n", "line 1: a has the tag tag:yaml.org,2002:python/object/apply:os"),
        ("a: !!str 1\n", "line 1: a has the tag tag:yaml.org,2002:str"),
        ("a: 1\nb: 2\na: 3\n", "line 3: a is written twice, first in line 1"),
        ("a: {b: 1, b: 2}\n", "line 1: a.b is written twice, first in line 1"),
        ("a: 1\n---\nb: 2\n", "line 2: a second document begins, expected one"),
        ("a: 1\nb:\t- 2\n c: 3\n", "line [23]: it is not YAML"),
        ("a: [1, 2\n", "line [12]: it is not YAML"),
        ("? [a]\n: 1\n", "line 1: the file has a key that is no word"),
        ("a: 010\n", "line 1: a is 010, which some readers take for octal: leave the leading zeros out"),
        ("a: " + "9" * 5000, "line 1: a is 99999999999999999999..., expected a number of at most 40 characters"),
        ("[" * 200_000, r"line 1: \[0\]\[0\]\[0\].* lies more than 8 levels deep"),
        ("a: \x01\n", "line 1: it is not YAML"),
    ],
)
def test_what_acts_or_means_two_things_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse(text)


_WORDS = st.text(st.characters(exclude_categories=("Cs",)), max_size=12) | st.sampled_from(
    ["no", "Yes", "1e-3", "010", "~", "", "a: b", "#", "- x", "'", '"', "null", "\u2028", "é", "\ufeff", "\x85"]
)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _WORDS,
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@given(_VALUES)
def test_what_is_written_is_read_again_by_us_and_by_others(value: Any) -> None:
    text = f"key: {written(value)}\n"
    if not isinstance(value, int) or abs(value) < 10**39:
        assert parse(text)[0] == {"key": value}
    assert yaml.safe_load(text) == {"key": value}
