"""One way to write a number for screens, cards and pages."""

import pytest

from stm.units import interval, minutes, operations, percent, size


def test_shares() -> None:
    assert (percent(0.98333), percent(0.98333, 2), percent(1.0, 0)) == ("98.3%", "98.33%", "100%")
    assert (interval((0.844, 0.897)), interval((-0.01, 0.0254), 2)) == ("84.4 to 89.7", "-1.00 to 2.54")
    assert interval((-0.0004, 0.0239)) == "0.0 to 2.4", "not -0.0"


@pytest.mark.parametrize(
    ("count", "macs", "octets"),
    [
        (999, "999", "999 bytes"),
        (85_370_112, "85.37 M", "85.37 MB"),
        (1_449_113_088, "1.449 G", "1.449 GB"),
        (2_500, "2.5 k", "2.5 kB"),
    ],
)
def test_counts(count: int, macs: str, octets: str) -> None:
    assert (operations(count), size(count)) == (macs, octets)


@pytest.mark.parametrize(("seconds", "text"), [(1.0, "1 minute"), (89.0, "1 minute"), (94.0, "2 minutes")])
def test_minutes(seconds: float, text: str) -> None:
    assert minutes(seconds) == text
