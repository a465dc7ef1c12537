"""Which inputs of the running calls each tensor of a thread is made of, one bit for each input.

A call's bits begin where its caller's end, and are free again when it returns. A label that outlives its call is known
to be old by its stamp.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from .calls import Frame
from .wrappers import PLAIN, plain

_NBYTES: Any = torch._C.TensorBase.nbytes  # torch's own, whatever is wrapped
_STORAGE: Any = torch._C.TensorBase.untyped_storage


Label = tuple[weakref.ref[Tensor], int, int, int]
"""A tensor, the inputs that it is computed from, those that it is or views, and the label's stamp.

Plain tuples: one is made for each result of each operator.
"""


class Labels:
    """The labels of one thread's tensors.

    Args:
        frames: The thread's running calls, outermost first.
        parts: The tensors that a tensor is made of; None where nobody can say.
    """

    def __init__(self, frames: Sequence[Frame], parts: Callable[[Tensor], list[Tensor] | None]) -> None:
        self._frames, self._parts = frames, parts
        self.labels: dict[int, Label] = {}
        self.storages: dict[int, tuple[StorageWeakRef, int, int]] = {}  # memories, what was written to them, and when
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
        computed, same = self._label(tensor)
        known = computed | same
        if type(tensor) in PLAIN or (known and not self.storages):
            return computed, same
        parts = self._parts(tensor)  # a hook may have wrapped an input in it, which no operator shows
        if parts is None:
            return (computed, same) if known else ((1 << self.top) - 1, 0)  # perhaps made of everything
        for part in parts:
            # its own label says more, but not of what was written to its parts since
            one, two = (self._written(part), 0) if known else self._label(part)
            computed |= one
            same |= two
        return computed, same

    def bits(self, tensor: Tensor) -> int:
        """The inputs that a tensor is made of in any way; vmap and grad may wrap it."""
        computed, same = self.look(plain(tensor))
        return computed | same

    def _label(self, tensor: Tensor) -> tuple[int, int]:
        computed = same = 0
        label = self.labels.get(id(tensor))
        if label is not None and label[0]() is tensor:
            valid = self.valid(label[3])
            computed, same = label[1] & valid, label[2] & valid
        if self.storages:
            computed |= self._written(tensor)
        return computed, same

    def _written(self, tensor: Tensor) -> int:
        """The inputs that were written to a tensor's memory."""
        written = self.storages.get(_storage_key(tensor))
        return 0 if written is None else written[1] & self.valid(written[2])

    def made_of(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """A tensor and those that it is made of."""
        return (tensor,) if type(tensor) in PLAIN else (tensor, *(self._parts(tensor) or ()))

    def put(self, tensor: Tensor, computed: int, same: int) -> None:
        """Label a tensor, and add that to the labels of those that it is made of."""
        self.stamp += 1
        self.labels[id(tensor)] = (weakref.ref(tensor), computed, same, self.stamp)
        self.created.append(id(tensor))
        if type(tensor) not in PLAIN:
            for part in self._parts(tensor) or ():
                one, two = self._label(part)
                self.labels[id(part)] = (weakref.ref(part), computed | one, same | two, self.stamp)
                self.created.append(id(part))

    def write(self, tensor: Tensor, bits: int, over: bool) -> None:
        """What is made of some inputs is written to a tensor, ``over`` what was there or into it."""
        computed, same = self.look(tensor)
        key = _storage_key(tensor) if over else 0
        if key and _NBYTES.__get__(tensor) == _STORAGE(tensor).nbytes():  # over all of it
            self.storages.pop(key, None)
            self.put(tensor, 0, 0)
            computed = same = 0
        if bits:
            self.put(tensor, computed | bits, same)
            for part in self.made_of(tensor):
                if key := _storage_key(part):
                    before = self.storages.get(key)
                    memory = StorageWeakRef(_STORAGE(part)) if before is None else before[0]
                    self.storages[key] = (memory, bits | self._written(part), self.stamp)

    def survivors(self, frame: Frame, wanted: int, known: set[int]) -> int:
        """Of the inputs wanted, those of which something made in a call is still alive, but for the known tensors."""
        kept = 0
        for key in {*self.created[frame.created :]} - known:
            reference, computed, same, stamp = self.labels[key]
            bits = (computed | same) & wanted & ~kept
            if bits and stamp > frame.start and (tensor := reference()) is not None:
                tensor._fix_weakref()  # type: ignore[attr-defined]  # torch's own care for a reference come back
                kept |= bits
        for memory, bits, stamp in self.storages.values():
            if stamp > frame.start and not memory.expired():
                kept |= bits & wanted
        return kept


def _storage_key(tensor: Tensor) -> int:
    try:
        return _STORAGE(tensor)._cdata  # type: ignore[no-any-return]
    except (RuntimeError, NotImplementedError, AttributeError):  # sparse, and others without memory of their own
        return 0
