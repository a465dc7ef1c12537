"""An attribute that is replaced while it has users, who come and go in any order."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

Wrap = Callable[[Any, Callable[[], Iterator[Any]]], Any]
_INHERITED = object()
_LOCK = threading.RLock()  # a user may be collected while it is held
_PATCHES: weakref.WeakValueDictionary[tuple[int, str], Patch] = weakref.WeakValueDictionary()  # by owner's identity


class Patch:
    """What replaces an attribute of a class, a module or an object: one for the process, while it has users.

    Users are held weakly, so that one that is never detached ends with its run. Where other code has replaced ours, that
    stays; ours then passes calls on, and is removed once it lies on top again. ``wrap`` makes what replaces the attribute
    from what was there and from a function that gives the users, the last to come first.
    """

    def __init__(self, owner: Any, name: str, wrap: Wrap) -> None:
        self._owner, self._name, self._wrap = owner, name, wrap
        self._users: tuple[weakref.ref[Any], ...] = ()
        self._layers: list[tuple[Any, Any]] = []  # what was there before, and what replaced it

    @classmethod
    def of(cls, owner: Any, name: str, wrap: Wrap) -> Patch:
        """The patch of this attribute, or a new one."""
        with _LOCK:
            return _PATCHES.setdefault((id(owner), name), cls(owner, name, wrap))

    def users(self, layer: int | None = None) -> Iterator[Any]:
        """Those that live; none for a layer below others."""
        on_top = layer in (None, len(self._layers) - 1)
        return (user for each in self._users if on_top and (user := each()) is not None)

    def add(self, user: Any) -> Callable[[], None]:
        """Replace the attribute for this user; the result undoes it. Both are safe to call again."""
        with _LOCK:
            self._users = (weakref.ref(user, lambda _: self.discard(None)), *self._others(user))
            if not self._on_top():
                before, original = vars(self._owner).get(self._name, _INHERITED), getattr(self._owner, self._name)
                self._layers.append((before, self._wrap(original, partial(self.users, len(self._layers)))))
                setattr(self._owner, self._name, self._layers[-1][1])
        return partial(self.discard, user)

    def discard(self, user: Any) -> None:
        """Undo it for this user."""
        with _LOCK:
            self._users = self._others(user)
            while not self._users and self._on_top():
                before, _ = self._layers.pop()
                if before is _INHERITED:
                    kind: Any = type if isinstance(self._owner, type) else object  # a mock forbids what is deleted
                    kind.__delattr__(self._owner, self._name)
                else:
                    setattr(self._owner, self._name, before)
            if not self._users and self._layers and not callable(self._layers[-1][1]):
                self._layers.clear()  # other code has set another value, which passes nothing on to ours

    def _others(self, user: Any) -> tuple[weakref.ref[Any], ...]:
        return tuple(each for each in self._users if each() not in (None, user))

    def _on_top(self) -> bool:
        now = vars(self._owner).get(self._name, _INHERITED)
        return bool(self._layers) and _function(now) is _function(self._layers[-1][1])


def _function(value: Any) -> Any:
    return getattr(value, "__func__", value)  # who restores a static method may set the function within
