"""The audit of a module tree's inputs: watches, confirms, and says what it found."""

from __future__ import annotations

import difflib
import inspect
import re
import threading
import types
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from lightning_freeze.report.findings import Finding

from .bytecode import ignores
from .declarations import DeclarationError, Known, declared_on, keys_of, parse_metadata, parse_whitelist
from .leaves import Leaf, signature_of
from .messages import describe, stale
from .replay import Replay, before, changeable, of_torch
from .tracer import Frame, Thread, Tracer, plain
from .verdicts import BLAMED, Tally, Verdict

WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "OffloadWrapper": "_checkpoint_wrapped_module",
}
"""Classes of torch that only wrap a module, and the name under which they hold it."""


CHECKED = 3
"""In so many calls of a module each finding is asked of a replay anew; later ones are taken to be as these were."""


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
        lightning_freeze.inputs.declarations.DeclarationError: A declaration cannot be read.
        TypeError: The root is no module.
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
        if not isinstance(module, nn.Module):
            raise TypeError(f"audit_inputs watches the modules of a tree: {module!r} is no torch.nn.Module.")
        self.module = module
        self._declared = parse_metadata(metadata_inputs)
        self._known = {known.key: known for known in parse_whitelist(whitelist)}
        self._replay = replay
        self._transparent = transparent
        self._without = frozenset(without)
        self._tracer = Tracer(self._locate, self._ended, self._outermost, self._begun, yields)
        self._lock = threading.Lock()
        self._answers: dict[tuple[str, str, Verdict], tuple[Verdict, str | None]] = {}  # of replays
        self._together: set[tuple[type, str]] = set()
        self._judged: Counter[str] = Counter()  # how many calls of a module have ended
        self._names: dict[int, tuple[weakref.ref[nn.Module], str]] = {}
        self._strangers: set[int] = set()
        self._classes: dict[type, tuple[tuple[str, ...], frozenset[str]]] = {}
        self._seen: set[str] = set()  # declarations that an input was asked for, and those that covered one
        self._matched: set[str] = set()
        self._told = False
        self._never: dict[str, str] = {}  # declarations whose condition cannot hold, and why
        self._takes: dict[str, set[str] | None] = {}  # what the forwards of a class take, or None for anything
        self.reset()

    def reset(self) -> None:
        """Forget the verdicts, as for a new epoch; what was confirmed need not be confirmed again."""
        self._tallies: dict[tuple[str, str], Tally] = {}
        self._pending: list[tuple[Tally, weakref.ref[Tensor], int]] = []

    def __enter__(self) -> InputsAudit:
        _calibrate()
        for module in self.module.modules():
            _, declared = self._class_of(module)  # a declaration that cannot be read is told before anything runs
            _check_declared(module, declared)
        self._name_modules()
        self._tracer.install()
        return self

    def __exit__(self, *exception: object) -> None:
        self._tracer.remove()
        if self.failure is not None and not self._told and exception[:1] in ((), (None,)):
            self._told = True
            warnings.warn(
                f"the input audit stood aside after an error of its own ({type(self.failure).__name__}: {self.failure}); "
                "the run is as it would be without it, but what was not watched is not known. Please report it.",
                stacklevel=2,
            )

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
        """What is not used."""
        return [describe(tally) for tally in self._tallies.values() if tally.faults > tally.excused]

    @property
    def stale(self) -> list[Finding]:
        """The declarations that covered nothing in all that was watched so far, `reset` or not.

        One of a class that the tree does not have is none of them: a list may serve several models. But one that is
        nearly the name of a class, or a module's FQN, is.
        """
        found = dict.fromkeys(self._seen - self._matched, "")
        if self._takes:  # else nothing was called
            for key in {*self._known, *self._declared} - self._seen:
                if why := self._never.get(key) or self._nowhere(key):
                    found[key] = why
        return [stale(key, self._known.get(key), why) for key, why in sorted(found.items())]

    def _nowhere(self, key: str) -> str:
        """Why a declaration can match nothing, or nothing where it may be another model's."""
        kind, _, argument = key.partition(".")
        if kind in self._takes:
            takes, name = self._takes[kind], re.split(r"[.\[]", argument)[0]
            if takes is None or name in takes:
                return ""  # not handed over, this time
            return f"{kind}.forward takes no `{name}`.{_nearest(name, takes)}"
        for module, name in sorted(self._names.values(), key=lambda found: -len(found[1])):
            if name and key.startswith(f"{name}."):
                of = type(module()).__name__
                return f"{name!r} is a module; entries are by class: `{of}.{key[len(name) + 1 :]}`."
        for known in self._takes:
            if f".{known}." in key:
                return f"entries are by the class's name alone: `{key[key.index(f'.{known}.') + 1 :]}`."
        near = _nearest(kind, self._takes, 0.75)
        return f"no module of a class {kind!r} was called.{near}" if near else ""

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
            wrapped = WRAPPERS.get(_wrapper(module))
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
        kind = _wrapper(module)
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
            and self._judged[frame.name] < CHECKED
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
        excuses: list[str | None] = [None] * len(verdicts)
        if self._known or self._declared:
            self._note(frame, classes)
        if self._known or self._declared or declared:
            excuses = [
                self._excuse(frame, leaf, keys_of(classes, leaf.argument, leaf.name), verdict, declared)
                for leaf, verdict in zip(frame.leaves, verdicts, strict=True)
            ]
        again = self._again(frame) if frame.twice or not BLAMED.isdisjoint(verdicts) else None
        for index, leaf in enumerate(frame.leaves):
            together = index in frame.twice and verdicts[index] not in BLAMED
            if together and not (proof := self._told_apart(frame, leaf, again)):
                continue
            if together:
                verdicts[index] = "unused"
            if verdicts[index] not in BLAMED or excuses[index]:
                continue
            if together:
                proofs[index] = proof
            elif verdicts[index] == "unused" and ignores(frame.target, leaf.name):
                proofs[index] = "bytecode"
            else:
                verdicts[index], proofs[index] = self._judge(frame, leaf, verdicts[index], again)
                hidden[index] = verdicts[index] == "used"
        with self._lock:
            for index, leaf in enumerate(frame.leaves):
                self._enter(thread, frame, leaf, index, verdicts[index], proofs[index], excuses[index], classes[0])
        self._judged[frame.name] += 1
        blamed = [verdict in BLAMED for verdict in verdicts]
        return blamed, [verdict == "stored" for verdict in verdicts], hidden

    def _judge(self, frame: Frame, leaf: Leaf, verdict: Verdict, again: Replay | None) -> tuple[Verdict, str | None]:
        """A verdict after a replay, and what proves it. What the first calls showed is taken to be so in later ones."""
        key = (frame.name, leaf.argument, verdict)
        if again is not None and (self._judged[frame.name] < CHECKED or key not in self._answers):
            answer = again.unaffected([leaf])
            result: tuple[Verdict, str | None] = (verdict, "replay" if answer else None)
            if answer is False:
                result = "used", None
            elif answer and verdict == "unused":
                other = again.indifferent(leaf)
                result = ("metadata", "replay") if other is False else (verdict, "replay" if other else None)
            self._answers[key] = result
        return self._answers.get(key, (verdict, None))

    def _note(self, frame: Frame, classes: tuple[str, ...]) -> None:
        for kind in classes:
            takes = self._takes.setdefault(kind, set())
            if takes is not None:
                signature = frame.signature
                anything = signature.varargs is not None or signature.varkw is not None
                self._takes[kind] = None if anything else takes | signature.named | set(signature.positional)

    def _excuse(
        self, frame: Frame, leaf: Leaf, names: list[str], verdict: Verdict, declared: frozenset[str]
    ) -> str | None:
        """The declaration that covers a call's input, if one does; declarations that are about it count as seen."""
        found = None
        for key in names:
            known: Known | None = self._known.get(key)
            if known is not None and known.when and (why := known.never(frame.target)):
                self._never[key] = why
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

    def _told_apart(self, frame: Frame, leaf: Leaf, again: Replay | None) -> str | None:
        """What proves that a tensor that was handed over twice goes unused where it stands here, if anything does."""
        key = (type(frame.target), leaf.argument)
        if key in self._together or any(not of_torch(hook) for hook in frame.module._forward_pre_hooks.values()):
            return None  # what a hook reads of it is not told apart from what it reads of the other
        if ignores(frame.target, leaf.name):
            return "bytecode"
        if again is None:
            return None
        if again.unaffected([leaf]) and again.indifferent(leaf):
            return "replay"
        self._together.add(key)
        return None

    def _again(self, frame: Frame) -> Replay | None:
        """The call, to be run again; None where that cannot be done unseen."""
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        alone = not distributed or torch.distributed.get_world_size() == 1  # else all ranks would have to run it again
        if not self._replay or not alone or frame.opaque or frame.wrote_parameter or not plain_leaves(frame):
            return None
        if frame.before is None and any(map(changeable, (*frame.args, *frame.kwargs.values()))):
            return None
        args, kwargs = frame.before or (frame.args, frame.kwargs)
        return Replay(frame.module, args, kwargs, apart=frame.wrote, without=self._without)

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
            of_torch = _kind(frame.target).__module__.startswith("torch.")
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


def _kind(module: nn.Module) -> type:
    """A module's class; where `fully_shard` made one of its own for it, what it was before."""
    kind, *bases = type(module).__mro__
    for made, base in enumerate(bases[:2]):
        if base.__name__ == "FSDPModule":
            return bases[made + 1]
    return kind


def _wrapper(module: nn.Module) -> str:
    """The name of a module's class where it is torch's own."""
    kind = _kind(module)
    return kind.__name__ if kind.__module__.startswith("torch.") else ""


def _check_declared(module: nn.Module, declared: frozenset[str]) -> None:
    kind = type(module)
    signature = signature_of(module.forward)
    if "metadata_inputs" not in vars(kind) or signature.varargs is not None or signature.varkw is not None:
        return
    takes = signature.named | set(signature.positional)
    for written in sorted(declared):
        name = re.split(r"[.\[]", written)[0]
        if name not in takes:
            raise DeclarationError(
                f"{kind.__name__}.metadata_inputs", f"{written!r} is nothing that forward takes.{_nearest(name, takes)}"
            )


def _nearest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    near = difflib.get_close_matches(name, names, 1, cutoff)
    return f" Nearest: {near[0]!r}." if near else ""


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
"""How often a tensor is held that only a call holds: by whether it comes by keyword, and whether the call has any.

Measured for each audit: after torch has passed a recompile limit, Python counts otherwise.
"""


def _probe(self: nn.Module, input: Tensor, other: Any = None) -> Tensor:
    return input


def _calibrate() -> None:
    if Tracer.active is not None:
        return
    counts: list[int] = []

    def ended(thread: Thread, frame: Frame, result: Any) -> tuple[list[bool], list[bool], list[bool]]:
        counts.append(frame.references[0])
        return [False], [False], [False]

    tracer = Tracer(lambda module: ("", module, False), ended, lambda thread: None, lambda frame: None)
    # installed on the probe alone: other threads may be calling modules
    kind = type("_Probe", (nn.Module,), {"forward": _probe, "__call__": tracer.replacement(lambda *_, **__: None)})
    with torch._C.DisableTorchFunction(), _disable_current_modes():  # nobody is to see this
        probe: Any = kind()
        probe(torch.empty(1))
        probe(input=torch.empty(1))
        probe(torch.empty(1), other=None)
    tracer.forget()
    if len(counts) == 3:
        _SOLE.update({(False, False): counts[0], (True, True): counts[1], (False, True): counts[2]})


def _alone(tensor: Tensor) -> bool:
    """Whether no other tensor shares a tensor's memory."""
    try:
        return int(torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)) <= 2  # the tensor, and this look at it
    except (RuntimeError, NotImplementedError, AttributeError):
        return False
