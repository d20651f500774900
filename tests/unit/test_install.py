"""The line by which a stranger installs the package: it must not name what does not exist."""

import shlex

import pytest

from stm import install


def test_until_there_is_an_address_it_installs_a_clone() -> None:
    """stm-vim is not on PyPI: pip would take whatever somebody else uploads under that name."""
    assert install.REPOSITORY is None
    assert shlex.split(install.install_command(), comments=True) == ["pip", "install", "."]
    assert shlex.split(install.install_command("plots"), comments=True) == ["pip", "install", ".[plots]"]


def test_one_address_makes_every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "REPOSITORY", "https://example.org/stm.git")
    assert shlex.split(install.install_command()) == ["pip", "install", "stm-vim @ git+https://example.org/stm.git"]
    assert shlex.split(install.install_command("data")) == [
        "pip",
        "install",
        "stm-vim[data] @ git+https://example.org/stm.git",
    ]
