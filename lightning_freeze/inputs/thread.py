"""What one thread is running: its calls, and what becomes of their inputs, read off the labels of its tensors."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import astuple
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .calls import Frame
from .holders import holder, references
from .labels import Labels
from .leaves import tensors_in
from .mode import Mode
from .operators import Use, items_of, use_of
from .proofs import ignores
from .verdicts import BLAMED, Fate, Judged
from .wrappers import PLAIN, plain, within


class Thread:
    """The calls on one thread's stack, and the labels of its tensors; readers and operators are reported to it.

    Args:
        owner: What it is watched for.
        failed: Called with an error of the audit's own.
    """

    def __init__(self, owner: object, failed: Callable[[Exception], None]) -> None:
        self.owner, self.failed = owner, failed
        self.mode = Mode(self)
        self.frames: list[Frame] = []
        self.quiet = 0
        self.labels = Labels(self.frames, self._parts)
        self._keeping: list[tuple[weakref.ref[Any], int, int]] = []  # contexts of custom functions, and what they saved

    def _parts(self, tensor: Tensor) -> list[Tensor] | None:
        self.quiet += 1
        try:
            return within(tensor)
        finally:
            self.quiet -= 1

    def metadata_read(self, tensor: Tensor) -> None:
        """Metadata of a tensor was read."""
        self.frames[-1].marks.metadata |= self.labels.bits(tensor)

    def values_read(self, tensor: Tensor) -> None:
        """A tensor's values left torch."""
        self.frames[-1].marks.left |= self.labels.bits(tensor)

    def aliased(self, tensor: Tensor, other: Tensor) -> None:
        """``other`` is the same values under another object."""
        computed, same = self.labels.look(plain(tensor))
        if computed | same:
            self.labels.put(plain(other), computed, same)

    def saved(self, ctx: Any, tensors: tuple[Any, ...]) -> None:
        """A custom autograd function keeps tensors for its backward."""
        # checkpointing saves its arguments in this way, too: that keeps them alive, but is no use of them
        if getattr(type(ctx), "_forward_cls", type(ctx)).__module__ == "torch.utils.checkpoint":
            return
        computed, same = self._look(map(plain, filter(torch.is_tensor, tensors)))
        if computed | same:
            self._keeping.append((weakref.ref(ctx), computed | same, self.labels.stamp))

    def operator(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Carry labels from an operator's operands to its results."""
        use = use_of(func)
        computed, same, metadata = self._operands(use, args, kwargs)
        marks, mask, labels = self.frames[-1].marks, computed | same, self.labels
        marks.metadata |= metadata
        if not use.views:
            marks.read |= mask
            computed, same = mask, 0
            if use.escapes:
                marks.left |= mask
            if use.writes or use.statistics:
                self._write(use.written(args, kwargs), mask)
        if mask:
            for item in (result,) if isinstance(result, Tensor) else tensors_in(result, 3):
                if not use.writes or id(item) not in labels.labels:  # else it was labelled as written to
                    labels.put(item, computed, same)

    def _operands(self, use: Use, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int, int]:
        """The inputs that operands are computed from, those that they are, and those taken for their shape alone."""
        labels = self.labels
        known, written = labels.labels, labels.storages
        computed = same = metadata = 0
        for place, value in chain(enumerate(args), kwargs.items()) if kwargs else enumerate(args):
            if isinstance(value, Tensor):
                if id(value) not in known and not written and type(value) in PLAIN:
                    continue
                one, two = labels.look(value)
            elif isinstance(value, (list, tuple)):
                one, two = self._look(items_of(value))
            else:
                continue
            if place in use.shape_only:
                metadata |= one | two
            elif place not in use.blind:
                computed |= one
                same |= two
        return computed, same, metadata

    def _look(self, values: Iterable[Any]) -> tuple[int, int]:
        """The inputs that tensors are computed from, and those that they are."""
        computed = same = 0
        for value in values:
            if isinstance(value, Tensor):
                one, two = self.labels.look(value)
                computed |= one
                same |= two
        return computed, same

    def _write(self, written: Iterable[tuple[Tensor, bool]], bits: int) -> None:
        """An operator wrote to tensors, over what was there or into it."""
        frame = self.frames[-1]
        for tensor, over in written:
            frame.wrote = True
            frame.marks.kept |= self.labels.look(tensor)[1]  # what holds it sees the change
            frame.wrote_parameter |= isinstance(tensor, nn.Parameter)
            self.labels.write(tensor, bits, over)

    def begin(self, frame: Frame) -> None:
        """A module is called: its inputs get their bits."""
        labels = self.labels
        frame.references = [references(leaf.tensor) for leaf in frame.leaves]
        frame.base, frame.created = labels.top, len(labels.created)
        tensors = [plain(leaf.tensor) for leaf in frame.leaves]
        before = [labels.look(tensor) for tensor in tensors]
        labels.stamp += 1
        frame.start = labels.stamp
        self.frames.append(frame)
        labels.top = frame.base + len(tensors)
        bits: dict[int, int] = {}
        first: dict[int, int] = {}
        for index, (tensor, (computed, same)) in enumerate(zip(tensors, before, strict=True)):
            bits[id(tensor)] = bits.get(id(tensor), 0) | 1 << (frame.base + index)
            if first.setdefault(id(tensor), index) != index:
                frame.twice |= {index, first[id(tensor)]}
            labels.put(tensor, computed, same | bits[id(tensor)])

    def leave(self, frame: Frame) -> None:
        """A call is over: what it read was read, though it may have raised and get no verdict."""
        while self.frames and self.frames.pop() is not frame:
            pass
        self.labels.top = frame.base
        if self.frames:
            caller = self.frames[-1]
            caller.marks.add(frame.marks, (1 << frame.base) - 1)
            caller.wrote |= frame.wrote
            caller.wrote_parameter |= frame.wrote_parameter

    def end(self, frame: Frame, result: Any) -> None:
        """A call returned: read off what became of each input."""
        counts = [references(leaf.tensor) for leaf in frame.leaves]
        outputs, computed, same = self._reached(result)
        hides = isinstance(frame.target, torch.jit.ScriptModule) and not (computed | same) >> frame.base
        if frame.opaque or hides:  # fused operators hide what they do
            frame.opaque = True
            self._through(frame, result)
            outputs, computed, same = self._reached(result)
        marks, count = frame.marks, len(frame.leaves)
        mine = ((1 << count) - 1) << frame.base
        marks.left |= self._saved() & mine
        if unknown := mine & ~(computed | marks.left | marks.kept):
            outputs.update(id(part) for leaf in frame.leaves for part in self.labels.made_of(plain(leaf.tensor)))
            marks.kept |= self.labels.survivors(frame, unknown, outputs)
            self._held(frame, unknown & ~same, counts)
        seen = (computed, same, *astuple(marks))
        for index in range(count):
            bit = 1 << (frame.base + index)
            frame.fates.append(Fate(*[bits & bit != 0 for bits in seen]))

    def _saved(self) -> int:
        """The inputs that custom functions which are still alive keep for their backward."""
        saved = 0
        for ctx, bits, stamp in self._keeping:
            if ctx() is not None:
                saved |= bits & self.labels.valid(stamp)
        return saved

    def _held(self, frame: Frame, wanted: int, counts: list[int]) -> None:
        """Mark the inputs that something holds which did not hold them before the call."""
        marks = frame.marks
        for index, leaf in enumerate(frame.leaves):
            bit = 1 << (frame.base + index)
            if wanted & bit and counts[index] > frame.references[index] and not marks.kept & bit:
                if holder(leaf.tensor, frame) == "function":
                    marks.left |= bit
                else:
                    marks.kept |= bit

    def _reached(self, result: Any) -> tuple[set[int], int, int]:
        """The `id` of the tensors of a result, and what they are computed from and are."""
        tensors = [plain(tensor) for tensor in ((result,) if isinstance(result, Tensor) else tensors_in(result))]
        outputs = {id(part) for tensor in tensors for part in self.labels.made_of(tensor)}
        return outputs, *self._look(tensors)

    def _through(self, frame: Frame, result: Any) -> None:
        """What cannot be followed is taken to compute all of its results from all of its inputs."""
        mask = 0
        for leaf in frame.leaves:
            if not ignores(frame.target, leaf.name):
                mask |= self.labels.bits(leaf.tensor)
        frame.marks.read |= mask
        for tensor in tensors_in(result):
            self.labels.put(plain(tensor), mask, 0)

    def conclude(self, frame: Frame, judged: list[Judged]) -> None:
        """The verdicts on a call's leaves are known: pass them on to the caller's inputs, and leave the call."""
        bad = good = 0
        marks = frame.marks
        for leaf, judgement in zip(frame.leaves, judged, strict=True):
            computed, same = self.labels.look(plain(leaf.tensor))
            if judgement.verdict in BLAMED:
                bad |= computed | same
                marks.handed |= same
                marks.handed_computed |= computed
            else:
                good |= computed | same
            if judgement.verdict == "stored":
                marks.kept |= computed | same
            if judgement.hidden:
                marks.left |= computed | same
        drop = bad & ~good
        marks.read &= ~drop
        marks.metadata &= ~drop
        self.leave(frame)
