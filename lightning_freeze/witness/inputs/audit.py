"""The audit of a module tree's inputs: watches, confirms, and says what it found."""

from __future__ import annotations

import inspect
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from lightning_freeze.report.findings import Finding

from .bytecode import ignores
from .leaves import Leaf
from .messages import describe, stale
from .replay import before, changeable, unaffected
from .tracer import Frame, Thread, Tracer, plain
from .verdicts import BLAMED, Tally, Verdict
from .whitelist import Known, declared_on, keys_of, parse_metadata, parse_whitelist

WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "OffloadWrapper": "_checkpoint_wrapped_module",
}
"""Classes of torch that only wrap a module, and the name under which they hold it."""


def audit_inputs(
    module: nn.Module,
    *,
    metadata_inputs: Iterable[str] = (),
    whitelist: Mapping[str, Any] | None = None,
    replay: bool = True,
) -> InputsAudit:
    """Watch what every module of a tree makes of the tensors that it is handed.

    A context manager for plain PyTorch. Outputs, gradients and random numbers are bit for bit what they would be
    without it, and nothing stays behind. The idea is PaddlePaddle's ``UnusedVarCheck``
    (``paddle/fluid/framework/unused_var_check.cc``), which checks the inputs of operators.

    Args:
        module: The root of the tree.
        metadata_inputs: Inputs used for their shape, data type or device alone, as ``Class.argument``; a class can also
            declare them itself: ``metadata_inputs = ("like",)``.
        whitelist: Inputs known not to be used: ``Class.argument`` to the reason, or to ``{"reason": …, "when": {…}}``,
            where ``when`` holds attributes of the module and the values under which the entry counts.
        replay: Whether to confirm what is found by running a copy of the module again with the input poisoned. Without,
            only what the bytecode proves is confirmed.

    Raises:
        lightning_freeze.witness.inputs.whitelist.DeclarationError: A declaration cannot be read.
        RuntimeError: On entering, when another audit runs in this process.

    Example:
        >>> class Block(nn.Module):
        ...     def forward(self, x, mask):
        ...         return x + 1
        >>> block = Block()
        >>> with audit_inputs(block) as audit:
        ...     y = block(torch.ones(2), mask=torch.ones(2))
        >>> audit.verdicts
        {('', 'x'): 'used', ('', 'mask'): 'unused'}
        >>> [(finding.argument, finding.kind, finding.confirmed) for finding in audit.findings]
        [('mask', 'unused', True)]
    """
    return InputsAudit(module, metadata_inputs=metadata_inputs, whitelist=whitelist, replay=replay)


class InputsAudit:
    """What `audit_inputs` returns: enter it around forwards, as often as wanted, and read what it found.

    Args:
        module: The root of the tree.
        metadata_inputs: See `audit_inputs`.
        whitelist: See `audit_inputs`.
        replay: See `audit_inputs`.
        transparent: Says of a module whether its call is none of its ``forward``, so that it gets no verdict.
        without: Attributes that a module's copy does without when it is run again.
        yields: Whether it stands back when another audit is entered in this process.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        metadata_inputs: Iterable[str] = (),
        whitelist: Mapping[str, Any] | None = None,
        replay: bool = True,
        transparent: Callable[[nn.Module], bool] = lambda module: False,
        without: Iterable[str] = (),
        yields: bool = False,
    ) -> None:
        self.module = module
        self._declared = parse_metadata(metadata_inputs)
        self._known = {known.key: known for known in parse_whitelist(whitelist)}
        self._replay = replay
        self._transparent = transparent
        self._without = frozenset(without)
        self._tracer = Tracer(self._locate, self._ended, self._outermost, self._begun, yields)
        self._lock = threading.Lock()
        self._confirmed: dict[tuple[str, str, str], str | None] = {}
        self._refuted: set[tuple[str, str]] = set()
        self._together: set[tuple[type, str]] = set()
        self._judged: set[str] = set()  # the modules of which a call has ended
        self._names: dict[int, tuple[weakref.ref[nn.Module], str]] = {}
        self._strangers: set[int] = set()
        self._classes: dict[type, tuple[tuple[str, ...], frozenset[str]]] = {}
        self.reset()

    def reset(self) -> None:
        """Forget the verdicts, as for a new epoch; what was confirmed need not be confirmed again."""
        self._tallies: dict[tuple[str, str], Tally] = {}
        self._pending: list[tuple[Tally, weakref.ref[Tensor], int]] = []
        self._seen: set[str] = set()
        self._matched: set[str] = set()

    def __enter__(self) -> InputsAudit:
        _calibrate()
        for module in self.module.modules():
            self._class_of(module)  # a declaration that cannot be read is told before anything runs
        self._name_modules()
        self._tracer.install()
        return self

    def __exit__(self, *exception: object) -> None:
        self._tracer.remove()

    @property
    def failure(self) -> Exception | None:
        """What went wrong in the audit itself, if anything did: the run went on without it."""
        return self._tracer.failure

    @property
    def verdicts(self) -> dict[tuple[str, str], Verdict]:
        """(FQN of the module, ``''`` for the root; leaf path of the argument) to its verdict, for every leaf seen."""
        return {key: tally.verdict for key, tally in self._tallies.items()}

    @property
    def findings(self) -> list[Finding]:
        """What is not used, and the declarations that no longer hold."""
        found = [describe(tally) for tally in self._tallies.values() if tally.faults > tally.excused]
        return found + [stale(key, self._known.get(key)) for key in self._stale()]

    def _stale(self) -> list[str]:
        return sorted(self._seen - self._matched)

    # ---- where a module is

    def _name_modules(self) -> None:
        self._names = {}
        self._strangers = set()
        waiting: list[tuple[nn.Module, str]] = [(self.module, "")]
        while waiting:
            module, name = waiting.pop()
            if id(module) in self._names:
                continue
            self._names[id(module)] = weakref.ref(module), name
            wrapped = WRAPPERS.get(type(module).__name__)
            children = [
                (child, name if part == wrapped else f"{name}.{part}" if name else part)
                for part, child in module._modules.items()
                if child is not None
            ]
            waiting += reversed(children)

    def _name_of(self, module: nn.Module) -> str | None:
        reference, name = self._names.get(id(module), (None, None))
        return name if reference is not None and reference() is module else None

    def _locate(self, module: nn.Module) -> tuple[str, nn.Module, bool] | None:
        name = self._name_of(module)
        if name is None and id(module) not in self._strangers:
            self._name_modules()
            name = self._name_of(module)
        if name is None:
            self._strangers.add(id(module))
            return None
        kind = type(module).__name__
        if kind == "OptimizedModule":
            return name, module._orig_mod, True  # type: ignore[return-value]
        if kind in WRAPPERS or self._transparent(module):
            return None
        return name, module, module._compiled_call_impl is not None

    def _class_of(self, module: nn.Module) -> tuple[tuple[str, ...], frozenset[str]]:
        """The names of a module's class and of those that it inherits from, and what the class declares."""
        kind = type(module)
        if kind not in self._classes:
            own = [base for base in kind.__mro__ if base.__module__ != "builtins" and base is not nn.Module]
            # torch makes classes of its own for sharded and parametrized modules
            while len(own) > 1 and own[0].__name__ in (f"FSDP{own[-1].__name__}", f"Parametrized{own[1].__name__}"):
                del own[0]
            if "FSDPModule" in (base.__name__ for base in own):
                own = [b for b in own if b.__name__ != "FSDPModule" and not b.__name__.startswith("FSDP")] or own
            self._classes[kind] = (tuple(base.__name__ for base in own), declared_on(module))
        return self._classes[kind]

    # ---- what became of a call's inputs

    def _outermost(self, thread: Thread) -> None:
        self._strangers.clear()
        if not self._pending:
            return
        held = {id(tensor) for tensor in (*self.module.parameters(), *self.module.buffers())}
        with self._lock:
            pending, self._pending = self._pending, []
        for tally, reference, size in pending:
            tensor = reference()
            if tensor is not None and id(tensor) not in held:
                tensor._fix_weakref()  # type: ignore[attr-defined]  # torch's own care for a reference come back
                tally.bytes_kept = max(tally.bytes_kept, size)

    def _begun(self, frame: Frame) -> None:
        """A cache that is handed in grows in the call: a replay starts from what it was, not from what it became."""
        if (
            self._replay
            and frame.name not in self._judged
            and any(map(changeable, (*frame.args, *frame.kwargs.values())))
        ):
            frame.before = before(frame.args, frame.kwargs)

    def _ended(self, thread: Thread, frame: Frame, result: Any) -> tuple[list[bool], list[bool], list[bool]]:
        verdicts: list[Verdict] = [fate.verdict() for fate in frame.fates]
        proofs: list[str | None] = [None] * len(verdicts)
        hidden = [False] * len(verdicts)
        classes, declared = self._class_of(frame.target)
        if frame.opaque:
            verdicts = ["unused" if ignores(frame.target, leaf.name) else "used" for leaf in frame.leaves]
        keys = [keys_of(classes, leaf.argument, leaf.name) for leaf in frame.leaves]
        excuses = [
            self._excuse(frame, leaf, names, verdict, declared)
            for leaf, names, verdict in zip(frame.leaves, keys, verdicts, strict=True)
        ]
        doubtful = []
        for index, leaf in enumerate(frame.leaves):
            if index in frame.twice and verdicts[index] not in BLAMED and self._told_apart(frame, leaf):
                verdicts[index] = "unused"
            if verdicts[index] not in BLAMED or excuses[index]:
                continue
            if (frame.name, leaf.argument) in self._refuted:
                verdicts[index], hidden[index] = "used", True
                continue
            key = (frame.name, leaf.argument, verdicts[index])
            if key in self._confirmed:
                proofs[index] = self._confirmed[key]
            elif verdicts[index] == "unused" and ignores(frame.target, leaf.name):
                proofs[index] = self._confirmed[key] = "bytecode"
            else:
                doubtful.append(index)
        for index, answer in self._replayed(frame, doubtful):
            key = (frame.name, frame.leaves[index].argument, verdicts[index])
            if answer is False:
                self._refuted.add(key[:2])
                verdicts[index], hidden[index] = "used", True
            else:
                proofs[index] = self._confirmed[key] = "replay" if answer else None
        with self._lock:
            for index, leaf in enumerate(frame.leaves):
                self._enter(thread, frame, leaf, index, verdicts[index], proofs[index], excuses[index], classes[0])
        self._judged.add(frame.name)
        blamed = [verdict in BLAMED for verdict in verdicts]
        return blamed, [verdict == "stored" for verdict in verdicts], hidden

    def _excuse(
        self, frame: Frame, leaf: Leaf, names: list[str], verdict: Verdict, declared: frozenset[str]
    ) -> str | None:
        """The declaration that covers a call's input, if one does; declarations that are about it count as seen."""
        found = None
        for key in names:
            known: Known | None = self._known.get(key)
            if key in self._declared or (known is not None and known.holds(frame.target)):
                self._seen.add(key)
                if verdict in BLAMED:
                    self._matched.add(key)
                    # what is declared to be used for its shape alone may also go quite unused, as under a condition
                    found = found or (key if known is not None or verdict != "dead" else None)
        if leaf.name in declared or leaf.argument in declared:
            key = f"{names[0].partition('.')[0]}.{leaf.name}"
            self._seen.add(key)
            if verdict in BLAMED:
                self._matched.add(key)
                found = found or (key if verdict != "dead" else None)
        return found

    def _told_apart(self, frame: Frame, leaf: Leaf) -> bool:
        """Whether a tensor that was handed over twice goes unused where it stands here."""
        if ignores(frame.target, leaf.name):
            return True
        key = (type(frame.target), leaf.argument)
        if key in self._together:
            return False
        self._together.add(key)
        index = next(i for i, given in enumerate(frame.leaves) if given is leaf)
        if any(answer for _, answer in self._replayed(frame, [index], doubt=False)):
            self._together.discard(key)
            return True
        return False

    def _replayed(self, frame: Frame, indices: list[int], doubt: bool = True) -> list[tuple[int, bool | None]]:
        """For each of some inputs whether poisoning it changes nothing, or None where that cannot be known."""
        if not indices:
            return []
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        alone = not distributed or torch.distributed.get_world_size() == 1  # else all ranks would have to run it again
        if not self._replay or not alone or frame.opaque or frame.wrote_parameter or len(plain_leaves(frame)) == 0:
            return [(index, None) for index in indices]

        def ask(chosen: list[int]) -> bool | None:
            leaves = [frame.leaves[index] for index in chosen]
            args, kwargs = frame.before or (frame.args, frame.kwargs)
            return unaffected(frame.module, args, kwargs, leaves, apart=frame.wrote, doubt=doubt, without=self._without)

        answer = ask(indices)
        if answer or len(indices) == 1:
            return [(index, answer) for index in indices]
        return [(index, ask([index])) for index in indices]

    def _enter(
        self,
        thread: Thread,
        frame: Frame,
        leaf: Leaf,
        index: int,
        verdict: Verdict,
        proof: str | None,
        excuse: str | None,
        kind: str,
    ) -> None:
        key = (frame.name, leaf.argument)
        tally = self._tallies.get(key)
        if tally is None:
            swallowed = leaf.name == (frame.signature.varkw or "kwargs") and leaf.name not in frame.signature.named
            source = _source(frame.target)
            of_torch = type(frame.target).__module__.startswith("torch.")
            tally = Tally(frame.name, kind, leaf.argument, leaf.name, swallowed, source, of_torch)
            self._tallies[key] = tally
        tally.verdicts[verdict] += 1
        if verdict not in BLAMED:
            return
        tally.excused += excuse is not None
        if proof is not None:
            tally.confirmed[proof] += 1
        size = leaf.tensor.numel() * leaf.tensor.element_size()
        tally.bytes_passed = max(tally.bytes_passed, size)
        if (
            not leaf.steps
            and frame.references[index] <= _SOLE.get((isinstance(leaf.where, str), bool(frame.kwargs)), 0)
            and _alone(leaf.tensor)
        ):
            tally.bytes_sole = max(tally.bytes_sole, size)
        if len(thread.frames) > 1:
            root = thread.frames[0]
            if all(leaf.tensor is not given.tensor for given in root.leaves):
                self._pending.append((tally, weakref.ref(leaf.tensor), size))
            if not tally.handed_by:
                tally.handed_by = _ancestors(thread, frame, leaf)


def plain_leaves(frame: Frame) -> list[Leaf]:
    """The leaves of a call that are tensors of their own, not those that vmap or grad wrap."""
    return [leaf for leaf in frame.leaves if plain(leaf.tensor) is leaf.tensor]


def _ancestors(thread: Thread, frame: Frame, leaf: Leaf) -> tuple[tuple[str, str], ...]:
    """The calls that the input came down through, with what it was called there; outermost first."""
    derived, same = thread.look(plain(leaf.tensor))
    found = []
    for above in thread.frames[:-1]:
        for index, given in enumerate(above.leaves):
            if (derived | same) >> (above.base + index) & 1:
                found.append((above.name, given.argument))
                break
    return tuple(found)


def _source(module: nn.Module) -> tuple[str, int] | None:
    forward = getattr(module.forward, "__func__", module.forward)
    try:
        code = inspect.unwrap(forward).__code__
    except (AttributeError, ValueError):
        return None
    return (code.co_filename, code.co_firstlineno) if isinstance(code, types.CodeType) else None


_SOLE: dict[tuple[bool, bool], int] = {}
"""How often a tensor is held that only a call holds: by whether it comes by keyword, and whether the call has any."""


class _Probe(nn.Module):
    def forward(self, input: Tensor, other: Any = None) -> Tensor:
        return input


def _calibrate() -> None:
    if _SOLE or Tracer.active is not None:
        return
    counts: list[int] = []

    def ended(thread: Thread, frame: Frame, result: Any) -> tuple[list[bool], list[bool], list[bool]]:
        counts.append(frame.references[0])
        return [False], [False], [False]

    tracer = Tracer(lambda module: ("", module, False), ended, lambda thread: None, lambda frame: None)
    probe = _Probe()
    call, before = nn.Module.__call__, Tracer.active
    with torch._C.DisableTorchFunction(), _disable_current_modes():  # nobody is to see this
        nn.Module.__call__ = lambda module, *args, **kwargs: None  # type: ignore[method-assign]
        try:
            tracer.install()
            probe(torch.empty(1))
            probe(input=torch.empty(1))
            probe(torch.empty(1), other=None)
        finally:
            tracer.remove()
            nn.Module.__call__ = call  # type: ignore[method-assign]
            Tracer.active = before
    if len(counts) == 3:
        _SOLE.update({(False, False): counts[0], (True, True): counts[1], (False, True): counts[2]})


def _alone(tensor: Tensor) -> bool:
    """Whether no other tensor shares a tensor's memory."""
    try:
        return int(torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)) <= 2  # the tensor, and this look at it
    except (RuntimeError, NotImplementedError, AttributeError):
        return False
