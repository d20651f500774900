"""Numbers for people, as screens, cards and pages show them: shares in percent, counts with their unit."""

_OPERATIONS = ((10**9, "G"), (10**6, "M"), (10**3, "k"))
_BYTES = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def percent(share: float, digits: int = 1) -> str:
    """Return a share, 0 to 1, in percent with so many digits after the point."""
    return f"{100 * share:.{digits}f}%"


def interval(low_high: tuple[float, float], digits: int = 1) -> str:
    """Return an interval of shares in percent, without the sign."""
    # `z`: an end that rounds to nothing is 0.0, never -0.0.
    return f"{100 * low_high[0]:z.{digits}f} to {100 * low_high[1]:z.{digits}f}"


def operations(count: int) -> str:
    """Return a count of multiply-accumulates as papers write it: four digits and a prefix."""
    return _scaled(count, _OPERATIONS)


def size(count: int) -> str:
    """Return a number of bytes with its unit."""
    return _scaled(count, _BYTES) if count >= 1000 else f"{count} bytes"


def minutes(seconds: float) -> str:
    """Return a length of time in whole minutes, at least one."""
    count = max(1, round(seconds / 60))
    return f"{count} minute{'s'[: count > 1]}"


def _scaled(count: int, units: tuple[tuple[int, str], ...]) -> str:
    for scale, unit in units:
        if count >= scale:
            return f"{count / scale:.4g} {unit}"
    return str(count)
