"""Which inputs of the running calls each tensor of a thread is made of, one bit for each input.

Bits are handed out like a stack: a call's begin where its caller's end, and are free again when it returns. A label that
outlives the call that made it is told from a new one by its stamp.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from .calls import Frame
from .readers import Base
from .wrappers import PLAIN, plain

_STORAGE = Base.untyped_storage


class Label(NamedTuple):
    """Which inputs a tensor is made of: as themselves or a view (``same``), or by computation (``derived``)."""

    tensor: weakref.ref[Tensor]
    derived: int
    same: int
    stamp: int


class Written(NamedTuple):
    """Which inputs were written to a memory."""

    memory: StorageWeakRef
    bits: int
    stamp: int


class Labels:
    """The labels of one thread's tensors.

    Args:
        frames: The thread's running calls, outermost first.
        parts: The tensors that a tensor is made of; None where nobody can say.
    """

    def __init__(self, frames: Sequence[Frame], parts: Callable[[Tensor], list[Tensor] | None]) -> None:
        self._frames, self._parts = frames, parts
        self.labels: dict[int, Label] = {}
        self.storages: dict[int, Written] = {}
        self.created: list[int] = []  # the `id` of every tensor that was labelled, in order
        self.stamp = 0
        self.top = 0  # the first bit that is free

    def valid(self, stamp: int) -> int:
        """The bits that a label of this age can be trusted on: those of calls that had begun when it was made."""
        frames = self._frames
        if frames and frames[-1].start > stamp:
            return (1 << next(frame.base for frame in frames if frame.start > stamp)) - 1
        return (1 << self.top) - 1

    def look(self, tensor: Tensor) -> tuple[int, int]:
        """The inputs that a tensor was computed from, and those that it is or views."""
        return self._label(tensor) if type(tensor) in PLAIN else self._look_within(tensor)

    def bits(self, tensor: Tensor) -> int:
        """The inputs that a tensor is made of in any way; vmap and grad may wrap it."""
        derived, same = self.look(plain(tensor))
        return derived | same

    def _look_within(self, tensor: Tensor) -> tuple[int, int]:
        """What a tensor is that may be made of others: a hook wraps an input in one, and torch tells nobody."""
        derived, same = self._label(tensor)
        known = bool(derived | same)
        if known and not self.storages:
            return derived, same
        parts = self._parts(tensor)
        if parts is None:  # nobody can say what it is made of: perhaps of everything
            return (derived, same) if known else ((1 << self.top) - 1, 0)
        for part in parts:
            # its own label tells more, but not of what was written to its parts since
            one, two = (self._written(part), 0) if known else self._label(part)
            derived |= one
            same |= two
        return derived, same

    def _label(self, tensor: Tensor) -> tuple[int, int]:
        derived = same = 0
        label = self.labels.get(id(tensor))
        if label is not None and label.tensor() is tensor:
            valid = self.valid(label.stamp)
            derived, same = label.derived & valid, label.same & valid
        if self.storages:
            derived |= self._written(tensor)
        return derived, same

    def _written(self, tensor: Tensor) -> int:
        """The inputs that were written to a tensor's memory."""
        written = self.storages.get(_storage_key(tensor))
        return 0 if written is None else written.bits & self.valid(written.stamp)

    def made_of(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """A tensor and those that it is made of."""
        return (tensor,) if type(tensor) in PLAIN else (tensor, *(self._parts(tensor) or ()))

    def put(self, tensor: Tensor, derived: int, same: int) -> None:
        """Label a tensor, and those that it is made of beside what they are already."""
        self.stamp += 1
        self.labels[id(tensor)] = Label(weakref.ref(tensor), derived, same, self.stamp)
        self.created.append(id(tensor))
        if type(tensor) not in PLAIN:
            for part in self._parts(tensor) or ():
                one, two = self._label(part)
                self.labels[id(part)] = Label(weakref.ref(part), derived | one, same | two, self.stamp)
                self.created.append(id(part))

    def write(self, tensor: Tensor, bits: int, over: bool) -> None:
        """What is made of some inputs is written to a tensor, ``over`` what was there or into it."""
        derived, same = self.look(tensor)
        if over and self._clear(tensor):
            derived = same = 0
        if bits:
            self.put(tensor, derived | bits, same)
            for part in self.made_of(tensor):
                if key := _storage_key(part):
                    before = self.storages.get(key)
                    memory = StorageWeakRef(_STORAGE(part)) if before is None else before.memory
                    self.storages[key] = Written(memory, bits | self._written(part), self.stamp)

    def _clear(self, tensor: Tensor) -> bool:
        """Forget what was in a tensor's memory, where all of it is written over."""
        key = _storage_key(tensor)
        if not key or Base.nbytes.__get__(tensor) != _STORAGE(tensor).nbytes():
            return False
        self.storages.pop(key, None)
        self.put(tensor, 0, 0)
        return True

    def survivors(self, frame: Frame, wanted: int, known: set[int]) -> int:
        """Of the inputs wanted, those of which something made in this call is still alive.

        Args:
            frame: The call.
            wanted: The bits of these inputs.
            known: The `id` of the tensors that do not count.
        """
        kept = 0
        for key in self.created[frame.created :]:
            label = self.labels.get(key)
            if label is None or key in known or label.stamp <= frame.start:
                continue
            bits = (label.derived | label.same) & wanted & ~kept
            if bits and (tensor := label.tensor()) is not None:
                tensor._fix_weakref()  # type: ignore[attr-defined]  # torch's own care for a reference come back
                kept |= bits
        for memory, bits, stamp in self.storages.values():
            if stamp > frame.start and not memory.expired():
                kept |= bits & wanted
        return kept


def _storage_key(tensor: Tensor) -> int:
    try:
        return int(_STORAGE(tensor)._cdata)
    except (RuntimeError, NotImplementedError, AttributeError):  # sparse, and others without memory of their own
        return 0
