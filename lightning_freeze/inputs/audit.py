"""The audit of a module tree's inputs: watches, confirms, and says what it found."""

from __future__ import annotations

import inspect
import threading
import types
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from lightning_freeze.report.findings import Finding, Findings

from .calls import Frame
from .declarations import Declared
from .holders import SOLE, is_sole
from .leaves import Leaf
from .messages import describe
from .modules import Tree, kind_of
from .proofs import Proofs, ignores, loads
from .thread import Thread
from .tracer import Tracer
from .verdicts import BLAMED, Judged, Tally, Verdict


def audit_inputs(
    module: nn.Module,
    *,
    metadata_inputs: Iterable[str] = (),
    whitelist: Mapping[str, Any] | None = None,
    replay: bool = True,
) -> InputsAudit:
    """Find the inputs of modules that are passed and not used: a context manager for plain PyTorch.

    Outputs, gradients and random numbers are bit for bit what they would be without it, and nothing stays behind. The
    idea is PaddlePaddle's ``UnusedVarCheck`` (``paddle/fluid/framework/unused_var_check.cc``), which checks the inputs of
    operators.

    Args:
        module: The root of the tree of modules.
        metadata_inputs: Inputs used for their shape, data type or device alone, as ``Class.argument``; a class can also
            declare them itself: ``metadata_inputs = ("like",)``.
        whitelist: Inputs known not to be used: ``Class.argument`` to the reason, or to ``{"reason": …, "when": {…}}``,
            where ``when`` holds attributes of the module and the values under which the entry counts.
        replay: Whether to confirm a finding by running a clone of the module with the input poisoned. Without, only
            what the bytecode proves is confirmed.

    Raises:
        lightning_freeze.inputs.declarations.DeclarationError: A declaration cannot be read.
        TypeError: The root is not a module.
        RuntimeError: On entering, when another audit runs in this process.

    Example:
        >>> import torch
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
        module: As for `audit_inputs`, as are ``metadata_inputs``, ``whitelist`` and ``replay``.
        transparent: Whether a call of a module does not run its ``forward``, so that it gets no verdict.
        without: Attributes that the clone of a module does without in a replay.
        yields: Whether it ends when another audit is entered in this process.
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
            raise TypeError(f"audit_inputs watches the modules of a tree: {module!r} is not a torch.nn.Module.")
        self.module = module
        self._tree = Tree(module, transparent)
        self._declared = Declared(metadata_inputs, whitelist)
        self._proofs = Proofs(replay, frozenset(without))
        self._tracer = Tracer(self._tree.locate, self._ended, self._outermost, self._proofs.begun, yields)
        self._lock = threading.Lock()
        self._warned = False
        self.reset()

    def reset(self) -> None:
        """Forget the verdicts, as for a new epoch; what was confirmed stays confirmed."""
        self._tallies: dict[tuple[str, str], Tally] = {}
        self._pending: list[tuple[Tally, weakref.ref[Tensor], int]] = []

    def __enter__(self) -> InputsAudit:
        for module in self.module.modules():
            self._declared.check(module)  # before anything runs
        self._tracer.install(_calibrate, self._tree.read)
        return self

    def __exit__(self, *exception: object) -> None:
        self._tracer.remove()
        if self.failure is not None and not self._warned and exception[:1] in ((), (None,)):
            self._warned = True
            warnings.warn(
                f"the input audit stood aside after an error of its own ({type(self.failure).__name__}: {self.failure}); "
                "the run is as it would be without it, and the inputs of calls after that were not audited. Please report it.",
                stacklevel=2,
            )

    @property
    def failure(self) -> Exception | None:
        """The error in the audit itself, if any: the run went on without it."""
        return self._tracer.failure

    @property
    def verdicts(self) -> dict[tuple[str, str], Verdict]:
        """The verdict on each leaf by (FQN of the module, ``''`` for the root; leaf path of the argument)."""
        return {key: tally.verdict for key, tally in self._tallies.items()}

    @property
    def findings(self) -> Findings:
        """What is not used."""
        return Findings(describe(each) for each in self._tallies.values() if each.calls - each.used > each.excused)

    @property
    def stale(self) -> list[Finding]:
        """The declarations that covered nothing so far, `reset` or not.

        A class that the tree does not have is none of them, as a list may serve several models; but one that is nearly
        the name of a class of the tree, or the FQN of a module, is.
        """
        return self._declared.stale(self._tree)

    # ---- what became of a call's inputs

    def _outermost(self, thread: Thread) -> None:
        self._tree.forget_strangers()
        if not self._pending:
            return
        held = {id(tensor) for tensor in (*self.module.parameters(), *self.module.buffers())}
        with self._lock:
            pending, self._pending = self._pending, []
        for tally, reference, size in pending:
            tensor = reference()
            if tensor is not None and id(tensor) not in held:
                tensor._fix_weakref()  # type: ignore[attr-defined]  # as torch does for a tensor from a weak reference
                tally.bytes_kept = max(tally.bytes_kept, size)

    def _ended(self, thread: Thread, frame: Frame) -> list[Judged]:
        verdicts: list[Verdict] = [fate.verdict() for fate in frame.fates]
        if frame.opaque:
            verdicts = ["unused" if ignores(frame.target, leaf.name) else "used" for leaf in frame.leaves]
        judged = self._proofs.judge(frame, verdicts, self._declared.excuses(frame, verdicts))
        with self._lock:
            for index, judgement in enumerate(judged):
                self._count(thread, frame, index, judgement)
        return judged

    def _count(self, thread: Thread, frame: Frame, index: int, judged: Judged) -> None:
        leaf = frame.leaves[index]
        tally = self._tallies.get((frame.name, leaf.argument)) or self._new_tally(frame, leaf)
        tally.verdicts[judged.verdict] += 1
        if judged.verdict not in BLAMED:
            return
        tally.excused += judged.excuse is not None
        if judged.proof is not None:
            tally.confirmed[judged.proof] += 1
        size = leaf.tensor.numel() * leaf.tensor.element_size()
        tally.bytes_passed = max(tally.bytes_passed, size)
        if is_sole(frame, index, leaf):
            tally.bytes_sole = max(tally.bytes_sole, size)
        if len(thread.frames) > 1:
            if all(leaf.tensor is not given.tensor for given in thread.frames[0].leaves):
                self._pending.append((tally, weakref.ref(leaf.tensor), size))
            tally.handed_by = tally.handed_by or _ancestors(thread, leaf)

    def _new_tally(self, frame: Frame, leaf: Leaf) -> Tally:
        classes, _ = self._declared.of_class(frame.target)
        swallowed = leaf.name == (frame.signature.varkw or "kwargs") and leaf.name not in frame.signature.named
        of_torch = kind_of(frame.target).__module__.startswith("torch.")
        tally = Tally(frame.name, classes[0], leaf.argument, leaf.name, swallowed, _source(frame.target), of_torch)
        tally.in_batch = not frame.name and bool(leaf.steps)
        tally.loaded = leaf.argument == leaf.name and loads(frame.target.forward, leaf.name) is True
        self._tallies[frame.name, leaf.argument] = tally
        return tally


def _calibrate() -> None:
    """Measure how many references a tensor has that only a call holds."""
    counts: list[int] = []

    def ended(thread: Thread, frame: Frame) -> list[Judged]:
        counts.append(frame.references[0])
        return [Judged("used") for _ in frame.leaves]

    tracer = Tracer(lambda module: ("", module, False), ended, lambda thread: None, lambda frame: None)
    # on a class of its own: other threads may be calling modules
    methods = {"forward": lambda self, input, other=None: input, "__call__": tracer.replacement(lambda *_, **__: None)}
    kind = type("_Probe", (nn.Module,), methods)
    with torch._C.DisableTorchFunction(), _disable_current_modes():  # no mode of the user sees this
        probe: Any = kind()
        probe(torch.empty(1))
        probe(input=torch.empty(1))
        probe(torch.empty(1), other=None)
    tracer.remove()
    if len(counts) == 3:
        SOLE.update({(False, False): counts[0], (True, True): counts[1], (False, True): counts[2]})


def _ancestors(thread: Thread, leaf: Leaf) -> tuple[tuple[str, str], ...]:
    """The calls above that were passed the input, outermost first, each with its name there."""
    bits = thread.labels.bits(leaf.tensor)
    found = []
    for above in thread.frames[:-1]:
        for index, given in enumerate(above.leaves):
            if bits >> (above.base + index) & 1:
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
