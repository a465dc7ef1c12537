"""Numbers for people: bytes and counts to three digits, in the unit that suits them."""

from __future__ import annotations

from collections.abc import Sequence

BYTES, COUNTS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB"), ("", "K", "M", "B", "T")


def human_bytes(number: float) -> str:
    """A number of bytes to three digits, in the unit that suits it.

    Args:
        number: Bytes, not negative.

    Example:
        >>> human_bytes(640), human_bytes(1536), human_bytes(13 * 2**30)
        ('640 B', '1.5 KiB', '13 GiB')
    """
    return human(number, 1024, BYTES)


def human(number: float, base: int, units: Sequence[str]) -> str:
    """A number to three digits, in the unit that suits it.

    Args:
        number: The number, not negative.
        base: How many of a unit make one of the next.
        units: The units, the smallest first.
    """
    power = 0
    while round(number) >= base and power < len(units) - 1:
        number /= base
        power += 1
    digits = f"{number:.{2 if number < 9.995 else 1 if number < 99.95 else 0}f}"
    return f"{digits.rstrip('0').rstrip('.') if '.' in digits else digits} {units[power]}".rstrip()
