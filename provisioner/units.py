"""Durations, money and sizes as people write and read them.

Every ``parse_*`` raises ValueError whose text says what was read and what is understood; ``config`` puts the source of
the value in front of it.
"""

from __future__ import annotations

import math
import re

LONGEST_S = 366 * 86400.0
"""No duration beyond a year and a day is meant seriously, and none may overflow a timer."""

_UNIT_S = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?[dhms])+")
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)([dhms])")
_DURATION_FORMS = "write a number and a unit: 90s, 10m, 2h, 1d, or 1h30m"

_MONEY = re.compile(r"\$?\s*([0-9]+(?:\.[0-9]+)?)\s*(?:\$|usd)?", re.IGNORECASE)
_GIB = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(m|g|t)?(?:i?b)?", re.IGNORECASE)
_GIB_FACTOR = {"m": 1 / 1024, "g": 1.0, "t": 1024.0}
_LONGEST_NUMBER = 32  # characters; enough for every amount, and far from a float's limits


def parse_duration(text: str) -> float:
    """Read a duration.

    Args:
        text: As ``90s``, ``10m``, ``2h``, ``1d``, ``1h30m`` or ``1.5h``. Each unit once, the larger first.

    Returns:
        Seconds.

    Raises:
        ValueError: If it cannot be read, or is longer than LONGEST_S.
    """
    compact = text.strip().lower()
    if not _DURATION.fullmatch(compact):
        bare = " (no unit)" if re.fullmatch(r"[0-9]+(\.[0-9]+)?", compact) else ""
        raise ValueError(f"{_shown(text)} is not a duration{bare}; {_DURATION_FORMS}")
    parts = _DURATION_PART.findall(compact)
    order = ["dhms".index(unit) for _, unit in parts]
    if order != sorted(set(order)):
        raise ValueError(f"{_shown(text)} is not a duration: each unit once, the larger first; {_DURATION_FORMS}")
    seconds = math.fsum(float(number) * _UNIT_S[unit] for number, unit in parts)
    if seconds > LONGEST_S:
        raise ValueError(f"{_shown(text)} is too long; a year (366d) is the most")
    return seconds


def format_duration(seconds: float) -> str:
    """Write a duration for people; ``parse_duration`` reads it back, to within the rounding.

    Args:
        seconds: How long; what is negative reads as 0.

    Returns:
        ``0.35s``, ``4.2s``, ``42s``, ``1h30m``: hundredths below a second, tenths below 10 s, whole seconds above.
    """
    seconds = max(0.0, seconds)
    if seconds < 1:
        return _trim(f"{seconds:.2f}") + "s"
    if seconds < 10:  # noqa: PLR2004 - where tenths stop being of interest
        return _trim(f"{seconds:.1f}") + "s"
    rest = round(seconds)
    text = ""
    for unit, unit_s in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, unit_s)
        text += f"{count}{unit}" if count else ""
    return text


def parse_usd(text: str) -> float:
    """Read an amount of money.

    Args:
        text: As ``2.50``, ``$2.50`` or ``2.50 USD``.

    Returns:
        US dollars.

    Raises:
        ValueError: If it cannot be read.
    """
    match = _MONEY.fullmatch(text.strip())
    if match is None or len(match[1]) > _LONGEST_NUMBER:
        raise ValueError(f"{_shown(text)} is not an amount; write US dollars, as 2.50")
    return float(match[1])


def format_usd(amount: float | None) -> str:
    """Write an amount of money for people.

    Args:
        amount: US dollars; None for not known.

    Returns:
        ``$12.30``, with more places where cents would say nothing; ``?`` when not known.
    """
    if amount is None:
        return "?"
    if 0 < amount < 0.1:  # noqa: PLR2004 - below ten cents two places hide the figure
        return f"${amount:.4f}"
    return f"${amount:,.2f}"


def parse_gib(text: str) -> float:
    """Read a size of memory or disk.

    Args:
        text: As ``24``, ``24GiB``, ``24GB``, ``24g``, ``1.5T`` or ``512M``; a bare number is GiB, and GB is taken for
            GiB, as people do when they speak of memory.

    Returns:
        GiB.

    Raises:
        ValueError: If it cannot be read.
    """
    match = _GIB.fullmatch(text.strip())
    if match is None or len(match[1]) > _LONGEST_NUMBER:
        raise ValueError(f"{_shown(text)} is not a size; write GiB, as 24, 24GiB or 1.5TiB")
    return float(match[1]) * _GIB_FACTOR[(match[2] or "g").lower()]


def format_gib(gib: float | None) -> str:
    """Write a size in GiB for people.

    Args:
        gib: The size; None for not known.

    Returns:
        ``24 GiB``, ``22.4 GiB``, or ``?``.
    """
    return "?" if gib is None else f"{_trim(f'{gib:.1f}')} GiB"


def format_bytes(count: float) -> str:
    """Write a number of bytes for people.

    Args:
        count: Bytes, not negative.

    Returns:
        ``512 B``, ``1.2 GiB``.
    """
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        # The bound is where one decimal would round up to 1024.0.
        if size < 1023.95:  # noqa: PLR2004
            return f"{size:.0f} B" if unit == "B" else f"{_trim(f'{size:.1f}')} {unit}"
        size /= 1024
    return f"{_trim(f'{size:,.1f}')} TiB"


def _trim(number: str) -> str:
    return number.removesuffix("0").removesuffix("0").removesuffix(".") if "." in number else number


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")  # noqa: PLR2004 - a message stays one line
