"""What one thread is running: its calls, and what becomes of their inputs, read off the labels of its tensors."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
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

_USES: dict[Any, Use] = {}


class Thread:
    """The calls on one thread's stack, and the labels of its tensors.

    Args:
        owner: What it is watched for.
        gave_up: Told of an error of the audit's own.
    """

    def __init__(self, owner: object, gave_up: Callable[[Exception], None]) -> None:
        self.owner, self.gave_up = owner, gave_up
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

    # ---- what readers tell, while it is not quiet

    def asked(self, tensor: Tensor) -> None:
        """Metadata of a tensor was asked for."""
        self.frames[-1].marks.asks |= self.labels.bits(tensor)

    def left(self, tensor: Tensor) -> None:
        """A tensor's values left torch."""
        self.frames[-1].marks.out |= self.labels.bits(tensor)

    def alias(self, tensor: Tensor, other: Tensor) -> None:
        """The same values under another object."""
        derived, same = self.labels.look(plain(tensor))
        if derived | same:
            self.labels.put(plain(other), derived, same)

    def saved(self, ctx: Any, tensors: tuple[Any, ...]) -> None:
        """A custom autograd function keeps tensors for its backward."""
        # checkpointing saves its arguments in this way, too: that keeps them alive, but is no use of them
        if getattr(type(ctx), "_forward_cls", type(ctx)).__module__ == "torch.utils.checkpoint":
            return
        bits = 0
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                bits |= self.labels.bits(tensor)
        if bits:
            self._keeping.append((weakref.ref(ctx), bits, self.labels.stamp))

    # ---- operators

    def operator(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Carry labels from an operator's operands to its results."""
        use = _USES.get(func)
        if use is None:
            use = _USES[func] = use_of(func)
        derived, same, asked = self._operands(use, args, kwargs)
        marks, mask = self.frames[-1].marks, derived | same
        marks.asks |= asked
        if use.asks:
            marks.asks |= mask
            return
        if not use.views:
            marks.read |= mask
            derived, same = mask, 0
            if use.escapes:
                marks.out |= mask
            if use.writes or use.statistics:
                for tensor, over in use.written(args, kwargs):
                    self._write(tensor, mask, over)
        if mask:
            self._results(use, result, derived, same)

    def _results(self, use: Use, result: Any, derived: int, same: int) -> None:
        """Label what an operator returns, but for what it wrote to."""
        labels = self.labels
        for item in (result,) if isinstance(result, Tensor) else tensors_in(result, 3):
            if not use.writes or id(item) not in labels.labels:
                labels.put(item, derived, same)

    def _operands(self, use: Use, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int, int]:
        """The inputs that operands are computed from, those that they are, and those taken for their shape alone."""
        labels = self.labels
        known, written = labels.labels, labels.storages
        derived = same = asked = 0
        for place, value in chain(enumerate(args), kwargs.items()) if kwargs else enumerate(args):
            if isinstance(value, Tensor):
                if id(value) not in known and not written and type(value) in PLAIN:
                    continue
                one, two = labels.look(value)
            elif isinstance(value, (list, tuple)):
                one, two = self._look_all(items_of(value))
            else:
                continue
            if place == use.shape_only:
                asked |= one | two
            elif place not in use.blind:
                derived |= one
                same |= two
        return derived, same, asked

    def _look_all(self, values: Iterable[Any]) -> tuple[int, int]:
        derived = same = 0
        for value in values:
            if isinstance(value, Tensor):
                one, two = self.labels.look(value)
                derived |= one
                same |= two
        return derived, same

    def _write(self, tensor: Tensor, bits: int, over: bool) -> None:
        """An operator wrote to a tensor, over what was there or into it."""
        frame = self.frames[-1]
        frame.marks.kept |= self.labels.look(tensor)[1]  # written to: whoever holds it sees the change
        frame.wrote = True
        frame.wrote_parameter |= isinstance(tensor, nn.Parameter)
        self.labels.write(tensor, bits, over)

    # ---- calls

    def begin(self, frame: Frame) -> None:
        """A module is called: its inputs get their bits."""
        labels = self.labels
        frame.references = [references(leaf.tensor) for leaf in frame.leaves]
        frame.base, frame.created = labels.top, len(labels.created)
        labelled = []
        seen: dict[int, int] = {}
        for index, leaf in enumerate(frame.leaves):
            tensor = plain(leaf.tensor)
            labelled.append((tensor, *labels.look(tensor), 1 << (frame.base + index)))
            if id(tensor) in seen:
                frame.twice |= {index, seen[id(tensor)]}
            seen[id(tensor)] = index
        labels.stamp += 1
        frame.start = labels.stamp
        self.frames.append(frame)
        labels.top = frame.base + len(frame.leaves)
        bits: dict[int, int] = {}
        for tensor, derived, same, bit in labelled:
            bits[id(tensor)] = bits.get(id(tensor), 0) | bit
            labels.put(tensor, derived, same | bits[id(tensor)])

    def leave(self, frame: Frame) -> None:
        """A call is over: what it read was read, though it may have raised and get no verdict."""
        while self.frames and self.frames.pop() is not frame:
            pass
        self.labels.top = frame.base
        if self.frames:
            caller = self.frames[-1]
            caller.marks.take(frame.marks, (1 << frame.base) - 1)
            caller.wrote |= frame.wrote
            caller.wrote_parameter |= frame.wrote_parameter

    def end(self, frame: Frame, result: Any) -> None:
        """A call returned: read off what became of each input."""
        counts = [references(leaf.tensor) for leaf in frame.leaves]
        outputs, derived, same = self._reached(result)
        hides = isinstance(frame.target, torch.jit.ScriptModule) and not (derived | same) >> frame.base
        if frame.opaque or hides:  # fused operators hide what they do
            frame.opaque = True
            self._through(frame, result)
            outputs, derived, same = self._reached(result)
        marks, count = frame.marks, len(frame.leaves)
        mine = ((1 << count) - 1) << frame.base
        marks.out |= self._saved() & mine
        if unknown := mine & ~(derived | marks.out | marks.kept):
            outputs.update(id(part) for leaf in frame.leaves for part in self.labels.made_of(plain(leaf.tensor)))
            marks.kept |= self.labels.survivors(frame, unknown, outputs)
            self._held(frame, unknown & ~same, counts)
        seen = (derived, same, marks.out, marks.kept, marks.read, marks.asks, marks.handed, marks.handed_computed)
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
                    marks.out |= bit
                else:
                    marks.kept |= bit

    def _reached(self, result: Any) -> tuple[set[int], int, int]:
        """The `id` of the tensors of a result, and what they are computed from and are."""
        derived = same = 0
        outputs: set[int] = set()
        for tensor in (result,) if isinstance(result, Tensor) else tensors_in(result):
            tensor = plain(tensor)
            outputs.update(map(id, self.labels.made_of(tensor)))
            one, two = self.labels.look(tensor)
            derived |= one
            same |= two
        return outputs, derived, same

    def _through(self, frame: Frame, result: Any) -> None:
        """What cannot be followed is taken to compute all of its results from all of its inputs."""
        mask = 0
        for leaf in frame.leaves:
            if not ignores(frame.target, leaf.name):
                mask |= self.labels.bits(leaf.tensor)
        frame.marks.read |= mask
        for tensor in tensors_in(result):
            self.labels.put(plain(tensor), mask, 0)

    def settle(self, frame: Frame, judged: list[Judged]) -> None:
        """The verdicts on each leaf are known: tell the caller's own inputs, which these were or were made of."""
        bad = good = 0
        marks = frame.marks
        for leaf, judgement in zip(frame.leaves, judged, strict=True):
            derived, same = self.labels.look(plain(leaf.tensor))
            if judgement.verdict in BLAMED:
                bad |= derived | same
                marks.handed |= same
                marks.handed_computed |= derived
            else:
                good |= derived | same
            if judgement.verdict == "stored":
                marks.kept |= derived | same
            if judgement.hidden:
                marks.out |= derived | same
        drop = bad & ~good
        marks.read &= ~drop
        marks.asks &= ~drop
        self.leave(frame)
