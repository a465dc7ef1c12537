"""Follows every input of every module call, by labels, to where it ends.

Each leaf of a call's arguments is one bit. A dispatch mode carries bits from an operator's operands to its results;
what is in the call's result, was kept, left torch, or reached nothing is read off the bits when the call ends. Bits
are handed out like a stack: a call's begin where its caller's end, and are free again when it returns. A label that
outlives the call that made it is told from a new one by its stamp.
"""

from __future__ import annotations

import gc
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from . import mode_flags
from .bytecode import ignores
from .leaves import Leaf, Signature, leaves_of, signature_of, tensors_in
from .operators import Use, use_of
from .readers import Base, Readers
from .verdicts import Fate
from .wrappers import PLAIN, within

LOCAL = threading.local()
_STORAGE = Base.untyped_storage
_AUTOCAST = {"cpu": torch._C.DispatchKey.AutocastCPU, "cuda": torch._C.DispatchKey.AutocastCUDA}
_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
_unwrapped = torch._C._functorch.get_unwrapped


class Label(NamedTuple):
    """Which inputs a tensor is made of: as themselves or a view (``same``), or by computation (``derived``)."""

    tensor: weakref.ref[Tensor]
    derived: int
    same: int
    stamp: int


class Frame:
    """One call of one module, while it runs and when it ends.

    Args:
        module: The module that is called.
        name: Its FQN.
        target: The module whose ``forward`` runs: itself, or what a compiled module was made of.
        opaque: Its operators cannot be followed: it is compiled or scripted.
        args: Positional arguments.
        kwargs: Keyword arguments.
    """

    __slots__ = (
        "args", "autocast", "base", "before", "created", "fates", "kwargs", "leaves", "module", "name", "opaque", "references", "saved",
        "signature", "start", "target", "twice", "wrote", "wrote_parameter",
    )  # fmt: skip

    def __init__(
        self, module: nn.Module, name: str, target: nn.Module, opaque: bool, args: tuple[Any, ...], kwargs: Any
    ) -> None:
        self.module, self.name, self.target, self.opaque = module, name, target, opaque
        self.args, self.kwargs = args, kwargs
        self.signature: Signature = signature_of(target.forward)
        self.leaves: list[Leaf] = leaves_of(self.signature, args, kwargs)
        self.references: list[int] = []
        self.fates: list[Fate] = []
        self.twice: set[int] = set()  # the leaves whose tensor was handed over more than once
        self.base = self.start = self.created = 0
        self.saved: tuple[int, ...] = ()
        self.wrote = self.wrote_parameter = False
        self.autocast = [device for device in _AUTOCAST if torch.is_autocast_enabled(device)]
        self.before: tuple[tuple[Any, ...], dict[str, Any]] | None = None  # the arguments, where the call changes them


class Thread:
    """What one thread is running: the calls on its stack, and the labels of its tensors."""

    def __init__(self, tracer: Tracer) -> None:
        self.tracer = tracer
        self.mode = _Mode(self)
        self.frames: list[Frame] = []
        self.quiet = 0
        self.stamp = 0
        self.labels: dict[int, Label] = {}
        self.storages: dict[int, tuple[StorageWeakRef, int, int]] = {}
        self.created: list[int] = []
        self.keeping: list[tuple[weakref.ref[Any], int, int]] = []  # contexts of custom functions, and what they saved
        self.top = 0
        self.read = self.asks = self.out = self.kept = self.handed = self.handed_computed = 0

    # ---- labels

    def _valid(self, stamp: int) -> int:
        """The bits that a label of this age can be trusted on: those of calls that had begun when it was made."""
        frames = self.frames
        if not frames or frames[-1].start <= stamp:
            return (1 << self.top) - 1
        bits = 0
        for frame in frames:
            if frame.start > stamp:
                return (1 << frame.base) - 1
            bits = frame.base + len(frame.leaves)
        return (1 << bits) - 1

    def look(self, tensor: Tensor) -> tuple[int, int]:
        """The inputs that a tensor was computed from, and those that it is or views."""
        return self._label(tensor) if type(tensor) in PLAIN else self._look_within(tensor)

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
            if known:  # its own label tells more, but not of what was written to its parts since
                derived |= self._written(part)
            else:
                one, two = self._label(part)
                derived |= one
                same |= two
        return derived, same

    def _parts(self, tensor: Tensor) -> list[Tensor] | None:
        self.quiet += 1
        try:
            return within(tensor)
        finally:
            self.quiet -= 1

    def _with_parts(self, tensor: Tensor) -> set[int]:
        if type(tensor) in PLAIN:
            return {id(tensor)}
        return {id(tensor), *map(id, self._parts(tensor) or ())}

    def _label(self, tensor: Tensor) -> tuple[int, int]:
        derived = same = 0
        label = self.labels.get(id(tensor))
        if label is not None and label.tensor() is tensor:
            valid = self._valid(label.stamp)
            derived, same = label.derived & valid, label.same & valid
        if self.storages:
            derived |= self._written(tensor)
        return derived, same

    def _written(self, tensor: Tensor) -> int:
        """The inputs that were written to a tensor's memory."""
        written = self.storages.get(_storage_key(tensor))
        return 0 if written is None else written[1] & self._valid(written[2])

    def put(self, tensor: Tensor, derived: int, same: int) -> None:
        """Label a tensor, and those that it is made of beside what they are already."""
        self.stamp += 1
        key = id(tensor)
        self.labels[key] = Label(weakref.ref(tensor), derived, same, self.stamp)
        self.created.append(key)
        if type(tensor) not in PLAIN:
            for part in self._parts(tensor) or ():
                one, two = self._label(part)
                self.labels[id(part)] = Label(weakref.ref(part), derived | one, same | two, self.stamp)
                self.created.append(id(part))

    # ---- what readers tell

    def asked(self, tensor: Tensor) -> None:
        """Metadata of a tensor was asked for."""
        if not self.quiet:
            derived, same = self.look(plain(tensor))
            self.asks |= derived | same

    def left(self, tensor: Tensor) -> None:
        """A tensor's values left torch."""
        if not self.quiet:
            derived, same = self.look(plain(tensor))
            self.out |= derived | same

    def alias(self, tensor: Tensor, other: Tensor) -> None:
        """The same values under another object."""
        if not self.quiet:
            derived, same = self.look(plain(tensor))
            if derived | same:
                self.put(plain(other), derived, same)

    def saved(self, ctx: Any, tensors: tuple[Any, ...]) -> None:
        """A custom autograd function keeps tensors for its backward."""
        # checkpointing saves its arguments in this way, too: that keeps them alive, but is no use of them
        if self.quiet or getattr(type(ctx), "_forward_cls", type(ctx)).__module__ == "torch.utils.checkpoint":
            return
        bits = 0
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                derived, same = self.look(plain(tensor))
                bits |= derived | same
        if bits:
            self.keeping.append((weakref.ref(ctx), bits, self.stamp))

    def gave_up(self, error: Exception) -> None:
        """Telling it of a read went wrong."""
        self.tracer.give_up(error)

    # ---- operators

    def operator(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Carry labels from an operator's operands to its results."""
        use = self.tracer.uses.get(func)
        if use is None:
            use = self.tracer.uses[func] = use_of(func)
        if use.views:
            self._view(use, args, kwargs, result)
            return
        labels = self.labels
        derived = same = asked = 0
        for position, value in enumerate(args):
            if isinstance(value, Tensor):
                if id(value) not in labels and not self.storages and type(value) in PLAIN:
                    continue
                one, two = self.look(value)
                if position == use.shape_only:
                    asked |= one | two
                elif position not in use.blind:
                    derived |= one
                    same |= two
            elif isinstance(value, (list, tuple)):
                for item in _items(value):
                    if isinstance(item, Tensor):
                        one, two = self.look(item)
                        derived |= one
                        same |= two
        for key, value in kwargs.items():
            if key not in use.blind:
                for item in _items(value):
                    if isinstance(item, Tensor):
                        one, two = self.look(item)
                        derived |= one
                        same |= two
        mask = derived | same
        if use.asks:
            self.asks |= mask
            return
        self.asks |= asked
        self.read |= mask
        if use.escapes:
            self.out |= mask
        for place in use.writes:
            value = kwargs.get(place) if isinstance(place, str) else args[place] if place < len(args) else None
            for item in _items(value):
                if isinstance(item, Tensor):
                    self._write(item, mask, place in use.blind)
        if use.statistics and len(args) > 5 and args[5]:
            for item in args[3:5]:
                if isinstance(item, Tensor):
                    self._write(item, mask, False)
        if mask:
            for item in (result,) if isinstance(result, Tensor) else tensors_in(result, 3):
                if not use.writes or id(item) not in labels:
                    self.put(item, mask, 0)

    def _view(self, use: Use, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        derived = same = 0
        for position, value in enumerate((*args, *kwargs.values())):
            if isinstance(value, Tensor):
                one, two = self.look(value)
                if position == use.shape_only:
                    self.asks |= one | two
                else:
                    derived |= one
                    same |= two
        if derived | same:
            for item in (result,) if isinstance(result, Tensor) else tensors_in(result, 3):
                self.put(item, derived, same)

    def _write(self, tensor: Tensor, mask: int, blind: bool) -> None:
        """An operator wrote to a tensor, over what was there (``blind``) or into it."""
        derived, same = self.look(tensor)
        self.kept |= same  # written to: whoever holds it sees the change
        if self.frames:
            self.frames[-1].wrote = True
            if isinstance(tensor, nn.Parameter):
                self.frames[-1].wrote_parameter = True
        key = _storage_key(tensor)
        if blind and key and Base.nbytes.__get__(tensor) == _STORAGE(tensor).nbytes():  # nothing of the old is left
            self.storages.pop(key, None)
            derived = same = 0
            self.put(tensor, 0, 0)
        if not mask:
            return
        self.put(tensor, derived | mask, same)
        for part in (tensor,) if type(tensor) in PLAIN else (tensor, *(self._parts(tensor) or ())):
            if key := _storage_key(part):
                before = self.storages.get(key)
                bits = mask | (before[1] & self._valid(before[2]) if before else 0)
                self.storages[key] = (before[0] if before else StorageWeakRef(_STORAGE(part)), bits, self.stamp)

    # ---- calls

    def begin(self, frame: Frame) -> None:
        """A module is called: its inputs get their bits."""
        frame.references = [_references(leaf.tensor) for leaf in frame.leaves]
        frame.base, frame.created = self.top, len(self.created)
        frame.saved = (self.read, self.asks, self.out, self.kept, self.handed, self.handed_computed)
        self.read = self.asks = self.handed = self.handed_computed = 0
        labelled = []
        seen: dict[int, int] = {}
        for index, leaf in enumerate(frame.leaves):
            tensor = plain(leaf.tensor)
            labelled.append((tensor, *self.look(tensor), 1 << (frame.base + index)))
            if id(tensor) in seen:
                frame.twice |= {index, seen[id(tensor)]}
            seen[id(tensor)] = index
        self.stamp += 1
        frame.start = self.stamp
        self.frames.append(frame)
        self.top = frame.base + len(frame.leaves)
        bits: dict[int, int] = {}
        for tensor, derived, same, bit in labelled:
            bits[id(tensor)] = bits.get(id(tensor), 0) | bit
            self.put(tensor, derived, same | bits[id(tensor)])

    def abandon(self, frame: Frame) -> None:
        """A call raised: it gets no verdict; what it read was read."""
        self._pop(frame, self.read, self.asks, self.handed, self.handed_computed)

    def _pop(self, frame: Frame, read: int, asks: int, handed: int, handed_computed: int) -> None:
        while self.frames and self.frames.pop() is not frame:
            pass
        self.top = frame.base
        below = (1 << frame.base) - 1
        was = frame.saved
        self.read, self.asks = (was[0] | read) & below, (was[1] | asks) & below
        self.out, self.kept = (was[2] | self.out) & below, (was[3] | self.kept) & below
        self.handed, self.handed_computed = (was[4] | handed) & below, (was[5] | handed_computed) & below
        if self.frames:
            self.frames[-1].wrote |= frame.wrote
            self.frames[-1].wrote_parameter |= frame.wrote_parameter

    def end(self, frame: Frame, result: Any) -> None:
        """A call returned: read off what became of each input."""
        counts = [_references(leaf.tensor) for leaf in frame.leaves]
        outputs, derived, same = self._reached(result)
        hides = isinstance(frame.target, torch.jit.ScriptModule) and not (derived | same) >> frame.base
        if frame.opaque or hides:  # fused operators hide what they do
            frame.opaque = True
            self._through(frame, result)
            outputs, derived, same = self._reached(result)
        saved = 0
        for ctx, bits, stamp in self.keeping:
            if ctx() is not None:
                saved |= bits & self._valid(stamp)
        mine = ((1 << len(frame.leaves)) - 1) << frame.base
        kept = self.kept
        unknown = mine & ~(derived | self.out | saved | kept)
        if unknown:
            kept |= self._survivors(frame, unknown, outputs)
            for index, leaf in enumerate(frame.leaves):
                bit = 1 << (frame.base + index)
                if unknown & ~same & bit and counts[index] > frame.references[index] and not kept & bit:
                    holder = _holder(leaf.tensor, frame)
                    saved |= bit if holder == "function" else 0
                    kept |= bit if holder == "state" else 0
        for index in range(len(frame.leaves)):
            bit = 1 << (frame.base + index)
            frame.fates.append(
                Fate(
                    computed=bool(derived & bit),
                    returned=bool(same & bit),
                    left=bool((self.out | saved) & bit),
                    kept=bool(kept & bit),
                    read=bool(self.read & bit),
                    asked=bool(self.asks & bit),
                    handed=bool(self.handed & bit),
                    handed_computed=bool(self.handed_computed & bit),
                )
            )
        self.kept |= kept

    def _reached(self, result: Any) -> tuple[set[int], int, int]:
        """The tensors of a result, and what they are computed from and are."""
        derived = same = 0
        outputs: set[int] = set()
        for tensor in (result,) if isinstance(result, Tensor) else tensors_in(result):
            tensor = plain(tensor)
            outputs.update(self._with_parts(tensor))
            one, two = self.look(tensor)
            derived |= one
            same |= two
        return outputs, derived, same

    def _through(self, frame: Frame, result: Any) -> None:
        """What cannot be followed is taken to compute all of its results from all of its inputs."""
        mask = 0
        for leaf in frame.leaves:
            if not ignores(frame.target, leaf.name):
                derived, same = self.look(plain(leaf.tensor))
                mask |= derived | same
        self.read |= mask
        for tensor in tensors_in(result):
            self.put(plain(tensor), mask, 0)

    def settle(self, frame: Frame, blamed: list[bool], stored: list[bool], left: list[bool]) -> None:
        """The verdicts are known: tell the caller's own inputs, which these were or were made of.

        Args:
            frame: The call that ended.
            blamed: For each leaf, whether the call made nothing of it.
            stored: Whether it kept it.
            left: Whether it used it in a way that no label shows.
        """
        bad = good = bad_same = bad_derived = 0
        below = (1 << frame.base) - 1
        for leaf, fault, keeps, leaves in zip(frame.leaves, blamed, stored, left, strict=True):
            derived, same = self.look(plain(leaf.tensor))
            derived, same = derived & below, same & below
            if fault:
                bad |= derived | same
                bad_same |= same
                bad_derived |= derived
            else:
                good |= derived | same
            if keeps:
                self.kept |= derived | same
            if leaves:
                self.out |= derived | same
        drop = bad & ~good
        handed, computed = self.handed | bad_same, self.handed_computed | bad_derived
        self._pop(frame, self.read & ~drop, self.asks & ~drop, handed, computed)

    def _survivors(self, frame: Frame, wanted: int, outputs: set[int]) -> int:
        """Of the inputs asked for, those of which something made in this call is still alive, but not in the result."""
        kept = 0
        own = {key for leaf in frame.leaves for key in self._with_parts(plain(leaf.tensor))}
        for key in self.created[frame.created :]:
            label = self.labels.get(key)
            if label is None or key in own or key in outputs:
                continue
            bits = (label.derived | label.same) & wanted & ~kept
            if bits and label.stamp > frame.start:
                tensor = label.tensor()
                if tensor is not None:
                    tensor._fix_weakref()  # type: ignore[attr-defined]  # torch's own care for a reference come back
                    kept |= bits
        for reference, bits, stamp in self.storages.values():
            if bits & wanted & ~kept and stamp > frame.start and not reference.expired():
                kept |= bits & wanted
        return kept


class _Mode(TorchDispatchMode):
    """Tells a thread of each operator that it ran."""

    supports_higher_order_operators = True

    def __init__(self, thread: Thread) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._thread = thread

    def __enter__(self) -> _Mode:
        mode_flags.enter()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        mode_flags.leave()

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """What is compiled stays compiled under the audit."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _CASTING and (device := _device_of(args)) in self._thread.frames[-1].autocast:
            with _autocast_within(device):
                result = func(*args, **kwargs)
        else:
            result = func(*args, **kwargs)
        thread = self._thread
        if not thread.quiet:
            try:
                thread.operator(func, args, kwargs, result)
            except Exception as error:
                thread.tracer.give_up(error)
        return result


_CASTING = {
    torch.ops.aten._transformer_encoder_layer_fwd.default,
    torch.ops.aten._native_multi_head_attention.default,
    *(getattr(getattr(torch.ops.aten, name), kind) for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")
      for kind in ("input", "data")),
}  # fmt: skip
"""Operators made of others, which autocast casts within them and not before them."""


def _device_of(args: tuple[Any, ...]) -> str:
    return next((value.device.type for value in args if isinstance(value, Tensor)), "cpu")


@contextmanager
def _autocast_within(device: str) -> Iterator[None]:
    """Below a dispatch mode torch leaves autocast out; without one, it would be on within the operator."""
    include, exclude = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    with torch._C._ForceDispatchKeyGuard(include, exclude.remove(_AUTOCAST[device])):
        yield


Ended = Callable[["Thread", Frame, Any], tuple[list[bool], list[bool], list[bool]]]


class Tracer:
    """Watches the calls of modules while it is installed: one at a time in a process.

    Args:
        locate: A module's FQN, the module whose ``forward`` it runs, and whether it is opaque; None where it is no
            module of the audited tree, or only wraps one.
        ended: Told of each call that ended, before its caller is; returns what `Thread.settle` takes.
        outermost: Told when a thread's outermost call has ended.
        begun: Told of each call before it begins.
        yields: Whether it stands back when another is installed.

    Raises:
        RuntimeError: On entering, when another audit is running in this process.
    """

    active: Tracer | None = None
    uses: dict[Any, Use] = {}

    def __init__(
        self,
        locate: Callable[[nn.Module], tuple[str, nn.Module, bool] | None],
        ended: Ended,
        outermost: Callable[[Thread], None],
        begun: Callable[[Frame], None],
        yields: bool = False,
    ) -> None:
        self._locate, self._ended, self._outermost = locate, ended, outermost
        self._begun, self._yields = begun, yields
        self._readers = Readers(_current)
        self._call: Any = None
        self._audited_call: Any = None
        self._lock = threading.Lock()
        self._suspensions = 0
        self._hears_compiler = False
        self.failure: Exception | None = None

    def install(self) -> None:
        """Begin to watch."""
        if Tracer.active is not None and Tracer.active._yields:
            Tracer.active.remove()
        if Tracer.active is not None:
            raise RuntimeError(
                "an input audit is already running in this process: there can be one at a time. Close the first "
                "(leave its `with` block) before another is entered."
            )
        Tracer.active = self
        self.failure = None
        self._suspensions = 0
        self._hears_compiler = False
        self._call = nn.Module.__call__
        self._audited_call = self.replacement(self._call)
        self._install()

    def remove(self) -> None:
        """Leave nothing behind."""
        if Tracer.active is self:
            Tracer.active = None
            self._hear_compiler(False)
            with self._lock:
                self._uninstall()

    def give_up(self, error: Exception) -> None:
        """Something in the audit itself went wrong: the run goes on without it."""
        if self.failure is None:
            self.failure = error

    @contextmanager
    def suspended(self, thread: Thread) -> Iterator[None]:
        """Stand aside: what runs within is as it would be without an audit."""
        ours = torch._C._len_torch_dispatch_stack() > 0 and _innermost() is thread.mode
        thread.quiet += 1
        if ours:
            thread.mode.__exit__(None, None, None)
        self._stand_aside()
        try:
            yield
        finally:
            self._come_back()
            if ours:
                thread.mode.__enter__()
            thread.quiet -= 1

    def _stand_aside(self, *_: Any) -> None:
        with self._lock:
            self._suspensions += 1
            if self._suspensions == 1 and Tracer.active is self:
                self._uninstall()

    def _come_back(self, *_: Any) -> None:
        with self._lock:
            self._suspensions = max(0, self._suspensions - 1)  # a compilation may have begun before it was heard
            if self._suspensions == 0 and Tracer.active is self:
                self._install()

    def _hear_compiler(self, hear: bool) -> None:
        """While a compiler reads code it is to see torch as it is, or it compiles anew when the audit is over."""
        handler = getattr(sys.modules.get("torch._dynamo.callback"), "callback_handler", None)
        if handler is None or hear == self._hears_compiler:
            return
        self._hears_compiler = hear
        if hear:
            handler.register_start_callback(self._stand_aside)
            handler.register_end_callback(self._come_back)
        else:
            with suppress(ValueError):  # a reset of the compiler has forgotten it already
                handler.remove_start_callback(self._stand_aside)
            with suppress(ValueError):
                handler.remove_end_callback(self._come_back)

    def _install(self) -> None:
        self._readers.install()
        nn.Module.__call__ = self._audited_call  # type: ignore[method-assign]

    def _uninstall(self) -> None:
        if nn.Module.__call__ is self._audited_call:
            nn.Module.__call__ = self._call  # type: ignore[method-assign]
        self._readers.remove()

    def forget(self) -> None:
        """Listen to nothing any more, where `replacement` was used without `install`."""
        self._hear_compiler(False)

    def replacement(self, call: Any) -> Any:
        """What stands in for a module's ``__call__``.

        Args:
            call: The one that it calls.
        """
        tracer = self

        def audited_call(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():  # first of all, for a compiler that reads this
                return call(module, *args, **kwargs)
            if tracer.failure is not None:
                return call(module, *args, **kwargs)
            thread = getattr(LOCAL, "thread", None)
            if thread is None or thread.tracer is not tracer:
                thread = LOCAL.thread = Thread(tracer)
            if thread.quiet or _elsewhere(thread):
                return call(module, *args, **kwargs)
            try:
                with torch._C.DisableTorchFunction():
                    place = tracer._locate(module)
                    frame = None if place is None else Frame(module, *place, args, kwargs)
                    if frame is not None:
                        tracer._begun(frame)
            except Exception as error:
                tracer.give_up(error)
                frame = None
            if frame is None:
                return call(module, *args, **kwargs)
            return tracer._run(thread, frame, call, args, kwargs)

        return audited_call

    def _run(self, thread: Thread, frame: Frame, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        outermost = not thread.frames
        if outermost:
            self._hear_compiler(True)
        try:
            with torch._C.DisableTorchFunction():
                thread.begin(frame)
        except Exception as error:
            self.give_up(error)
            return call(frame.module, *args, **kwargs)
        if outermost and not frame.opaque:
            thread.mode.__enter__()
        try:
            if frame.opaque:
                with self.suspended(thread):
                    result = call(frame.module, *args, **kwargs)
            else:
                result = call(frame.module, *args, **kwargs)
        except BaseException:
            thread.abandon(frame)
            raise
        else:
            thread.quiet += 1
            try:
                with torch._C.DisableTorchFunction():
                    thread.end(frame, result)
                    thread.settle(frame, *self._ended(thread, frame, result))
            except Exception as error:
                self.give_up(error)
                thread.abandon(frame)
            finally:
                thread.quiet -= 1
            return result
        finally:
            if outermost:
                if not frame.opaque:
                    thread.mode.__exit__(None, None, None)
                try:
                    with torch._C.DisableTorchFunction():
                        self._outermost(thread)
                except Exception as error:
                    self.give_up(error)
                LOCAL.thread = None  # it leads to the audited modules


def _items(value: Any) -> Any:
    """An operand's tensors: itself, those of a list, or those of a list of lists, as collectives take them."""
    if not isinstance(value, (list, tuple)):
        return (value,)
    if value and isinstance(value[0], (list, tuple)):
        return [item for part in value for item in part]
    return value


def _current() -> Thread | None:
    thread = getattr(LOCAL, "thread", None)
    if thread is None or not thread.frames or thread.quiet or thread.tracer is not Tracer.active:
        return None
    return thread  # type: ignore[no-any-return]


def _innermost() -> Any:
    return torch._C._get_dispatch_stack_at(torch._C._len_torch_dispatch_stack() - 1)


def _elsewhere(thread: Thread) -> bool:
    """Whether this is no forward of the run: a backward's recomputation, a compilation, a trace."""
    if torch._C._current_graph_task_id() != -1:
        return True
    if torch._C._get_tracing_state() is not None:
        return True
    return not thread.frames and any(
        torch._C._get_dispatch_mode(key) is not None
        for key in (
            torch._C._TorchDispatchModeKey.FAKE,
            torch._C._TorchDispatchModeKey.PROXY,
            torch._C._TorchDispatchModeKey.FUNCTIONAL,
        )
    )


def plain(tensor: Tensor) -> Tensor:
    """The tensor that operators will see: vmap and grad wrap it."""
    while _wrapped(tensor):
        tensor = _unwrapped(tensor)
    return tensor


def _counts_holders() -> bool:
    """Whether torch counts a tensor's holders in C++, as the autograd graph, as one reference to its Python object."""
    if not hasattr(Tensor, "_use_count"):  # an older torch, which does not
        return False
    tensor = torch.ones(1, requires_grad=True)
    before = sys.getrefcount(tensor)
    with torch.enable_grad():
        held = tensor * 2
    return held is not None and sys.getrefcount(tensor) > before


_COUNTED: list[bool] = []


def _references(tensor: Tensor) -> int:
    """How many references from Python a tensor has."""
    if not _COUNTED:
        _COUNTED.append(_counts_holders())
    return sys.getrefcount(tensor) - int(_COUNTED[0] and tensor._use_count() > 1)  # type: ignore[attr-defined]


def _storage_key(tensor: Tensor) -> int:
    try:
        return int(_STORAGE(tensor)._cdata)
    except (RuntimeError, NotImplementedError, AttributeError):  # sparse, and others without memory of their own
        return 0


def _holder(tensor: Tensor, frame: Frame) -> str:
    """Who holds a tensor more than before the call: ``state``, or a ``function`` that computes with it later.

    The function is a custom one of autograd, or a generator that the call returned.
    """
    frames = type(sys._getframe())
    seen = {id(frame.leaves), id(frame.args), id(frame.kwargs), *(id(leaf) for leaf in frame.leaves)}
    level: list[Any] = [tensor]
    for _ in range(3):
        above: list[Any] = []
        for referrer in gc.get_referrers(*level):
            if id(referrer) in seen or referrer is level or referrer is above or isinstance(referrer, frames):
                continue
            seen.add(id(referrer))
            if isinstance(referrer, (torch.autograd.function.FunctionCtx, types.GeneratorType)):
                return "function"
            if isinstance(referrer, (dict, list, tuple, types.CellType)):
                above.append(referrer)
        if not above:
            break
        level = above
    return "state"
