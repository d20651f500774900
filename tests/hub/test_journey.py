"""The script of the whole journey, as CI runs it."""

import pytest

from tests.hub import journey


@pytest.mark.slow
def test_the_journey(capsys: pytest.CaptureFixture[str]) -> None:
    journey.main()
    assert "loaded, measured and made again" in capsys.readouterr().out
