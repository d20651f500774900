"""The command that installs this package, for cards, pages and hints. All of them follow the address below."""

REPOSITORY: str | None = None
"""Address of the public git repository, as `git clone` takes it. None: neither it nor a PyPI package is public yet."""


def install_command(extra: str | None = None) -> str:
    """Return one shell line that installs stm, with an extra such as "plots" if one is named."""
    extras = "" if extra is None else f"[{extra}]"
    if REPOSITORY is None:
        target = f'".{extras}"' if extras else "."
        return f"pip install {target}  # in a clone of the repository of stm"
    return f'pip install "stm-vim{extras} @ git+{REPOSITORY}"'
