"""What is raised before training starts, and the checks of values that raise it."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Iterable, Sequence
from typing import TypeGuard

NOT_ATTACHED = "the controller is not attached: call attach(*optimizers) before the first step."
_MOST = 4000


def shortened(message: str) -> str:
    """A message in which values of any size are cut."""
    message = re.sub(r"(\S{150})\S{150,}(\S{50})", r"\1…\2", message)
    return message if len(message) <= _MOST else f"{message[: _MOST // 2]} … {message[-_MOST // 2 :]}"


class Shortened(Exception):  # noqa: N818 - a part of errors
    """An error whose message is shortened."""

    def __init__(self, message: str) -> None:
        super().__init__(shortened(message))


class ScheduleError(Shortened, ValueError):
    """A schedule that cannot be run, found before training starts.

    Args:
        message: What was wrong, the value seen, the nearest valid one and the fix.
        key: The key of the schedule at fault (``updates``), from which the command line finds file and line.
    """

    def __init__(self, message: str, *, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


class SelectionError(Shortened, ValueError):
    """A selector that matches nothing, or parameters that cannot be grouped as asked; found before training starts."""


class UnsupportedError(Shortened, RuntimeError):
    """Something under which frozen parameters cannot be held; refused before training starts."""


def counted(number: int, what: str) -> str:
    """A number of things, with their name."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def nearest(name: str, among: Iterable[str], count: int = 3) -> list[str]:
    """The names that look most like ``name``, best first."""
    return difflib.get_close_matches(name, list(dict.fromkeys(among)), n=count, cutoff=0.4)


def offer(names: Iterable[str]) -> str:
    """The end of an error that offers names; nothing without any."""
    *others, last = [*map(repr, names)] or [""]
    return f" Did you mean {', '.join(others)}{' or ' * bool(others)}{last}?" if last else ""


def did_you_mean(name: str, among: Iterable[str], otherwise: int = 0) -> str:
    """The question that offers the nearest names, whatever their case; without one, the first few or nothing."""
    folded = {each.casefold(): each for each in among}
    similar = difflib.get_close_matches(name.casefold(), folded, 3, 0.7) or nearest(name.casefold(), folded)
    return offer([folded[each] for each in similar] or [*folded.values()][:otherwise])


def listed(names: Sequence[str], shown: int = 5) -> str:
    """Names in quotes, the first few of many."""
    return ", ".join(map(repr, names[:shown])) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a number; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_list(value: object) -> TypeGuard[Sequence[object]]:
    """Whether a value is a list or the like; a text is none."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def whole_number(value: object, key: str, meaning: str, least: int = 1) -> int:
    """A count from a schedule, or an error that teaches."""
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    if number < least:
        raise ScheduleError(
            f"`{key}` is {value!r}, but must be a whole number of at least {least}: {meaning}. "
            f"The nearest valid value is {_nearest_count(value, least)}.",
            key=key,
        )
    return number


def one_of(key: str, value: object, valid: tuple[str | bool, ...]) -> None:
    """Refuse a word that is none of those that an argument takes."""
    if not any(value is each or (isinstance(each, str) and value == each) for each in valid):
        near = did_you_mean(str(value), map(str, valid))
        raise ScheduleError(f"`{key}` is {value!r}, but must be one of {', '.join(map(repr, valid))}.{near}", key=key)


def _nearest_count(value: object, least: int) -> int:
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value[:18])  # written in quotes
    return max(least, round(value)) if is_number(value) and abs(value) < 1e15 else least
