"""The audit without a schedule: whatever has ``requires_grad=False`` is to stay as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_freeze.audit.exempt import Exemptions
from lightning_freeze.audit.moved import unheld
from lightning_freeze.audit.run_audit import RunAudit
from lightning_freeze.audit.weights import WeightAudit
from lightning_freeze.errors import counted
from lightning_freeze.holds.hold import Hold
from lightning_freeze.holds.run_context import RunContext
from lightning_freeze.holds.step_hooks import StepHooks
from lightning_freeze.plan.groups import Member, frozen_modules, group_parameters
from lightning_freeze.plan.membership import OptimizerIndex, Step, foreign, same_objects
from lightning_freeze.plan.named_parameters import NamedParameters
from lightning_freeze.plan.schedule import Position
from lightning_freeze.report.findings import Finding
from lightning_freeze.report.records import Log, Record
from lightning_freeze.report.run_table import start_text

_FROZEN = "requires_grad=False"
_TRAINED = "requires_grad=True"
_PLANNED = frozenset({_TRAINED})


class RequiresGradWatch:
    """Audits a run that freezes by other means: BackboneFinetuning, PEFT, one's own code.

    ``requires_grad`` is read when a batch, a validation or an epoch's end begins and right before each optimizer step, so a
    parameter counts as frozen from the first of these at which it is off to the first at which it is on again.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        suspects: Sequence[str],
        record: Callable[[Record], None],
        say: Callable[[str], None] = lambda line: None,
        exempt: dict[str, Any] | None = None,
    ) -> None:
        self.holds = Hold()  # nothing is held
        self.log = Log(record)
        self.audit = RunAudit(module, self.log, lambda: self._at, suspects)
        self._exempt = exempt or {}
        self.audit.exempt = Exemptions(module, group_parameters(module, self._exempt))
        self._module = module
        self._say = say
        self._at = Position(updates={_TRAINED: 0})
        self._names = NamedParameters(module)
        self._parameters: list[tuple[str, nn.Parameter]] = []
        self._frozen_first: frozenset[str] = frozenset()  # the names of what is frozen when training begins
        self._flags: list[bool] = []
        self._steps: list[Step] = []
        self._given: tuple[Optimizer, ...] = ()
        self._hooks: StepHooks | None = None

    @property
    def findings(self) -> list[Finding]:
        """Everything that was found."""
        return self.log.findings

    @property
    def total(self) -> int:
        """The optimizer steps so far."""
        return self._at.total

    @property
    def epoch(self) -> int:
        """The epoch the run is in, from 0."""
        return self._at.epoch

    def attach(self, *optimizers: Optimizer, run: RunContext) -> None:
        """Watch these optimizers' steps, in a run of which this is known; nothing is held."""
        self.detach()
        self.audit.meet(run)
        self._run, self._given = run, optimizers
        self._names.refresh()
        self._names.attach()
        self._steps = [Step(index, optimizer, {}) for index, optimizer in enumerate(optimizers)]
        self._holders = OptimizerIndex(optimizers)
        self.audit.weights = WeightAudit(
            self._module,
            self._names,
            self._holders,
            {},
            lambda: self._at.total,
            suspects=self.audit.suspects,
            sets_to_none=False,
            need_not_move=lambda parameter: not parameter.requires_grad,
            split=self.audit.split,
        )
        self._sort()
        self._hooks = StepHooks(self._steps, self.holds, self._arrives, self._stepped)
        self._hooks.attach()

    def begin(self, epoch: int, resumed: bool = False) -> None:
        """Training begins."""
        self._at.epoch = epoch
        self._weights.begin()
        self.audit.begin_epoch()
        self._frozen_first = frozenset(name for name, p in self._parameters if not p.requires_grad)
        self._first = self._held_first()
        if self._frozen_first:
            self._at.updates.setdefault(_FROZEN, 0)
        record = self.audit.begin(self._by_flag, lambda: self._steps, resumed, schedule=None)
        when = {_FROZEN: "frozen, audited", _TRAINED: "always"}
        self._say(start_text(record, "", (), when.__getitem__, foreign(self._names, self._holders)))

    def _by_flag(self) -> dict[str, list[nn.Parameter]]:
        """The parameters by ``requires_grad``."""
        groups: dict[str, list[nn.Parameter]] = {_FROZEN: [], _TRAINED: []}
        for _, p in self._parameters:
            groups[_TRAINED if p.requires_grad else _FROZEN].append(p)
        return groups

    def begin_step(self, epoch: int, optimizers: Sequence[Optimizer] | None = None) -> None:
        """A batch begins: see what is frozen now, and by whom it is held."""
        self._at.epoch = epoch
        self.audit.shards.close()
        if self._names.changed(walk=not self.audit.begun):
            self._rebind()
        if optimizers is not None and not same_objects(optimizers, self._given):
            self._rebuilt(optimizers)
        self._read_flags()
        self.audit.begin_batch()
        self.audit.steps.begin_batch()

    def pause(self) -> None:
        """An epoch's batches, or some of them, have ended: see what is frozen now."""
        if self.audit.begun:
            self.begin_step(self._at.epoch)
            self.audit.steps.pause()

    def end_epoch(self) -> list[Finding]:
        """A training epoch ended: the audits' findings of it."""
        self.audit.shards.close()
        if self._names.changed(walk=True):
            self._rebind()
        found = self.audit.end_epoch()
        self.audit.record_epoch()
        self._at.epoch += 1
        self.audit.begin_epoch()
        return found

    def finish(self) -> list[Finding]:
        """The fit ends: a last comparison. All ranks call it together."""
        return self.audit.finish()

    def flush(self) -> None:
        """Record the steps made since the last epoch's end."""
        self.audit.flush()

    def detach(self, bring_back: bool = True) -> None:
        """Remove every hook; idempotent."""
        if self._hooks is not None:
            self._hooks.detach()
        self._names.detach()
        self._hooks = self.audit.weights = None
        self._given, self._steps, self._holders = (), [], OptimizerIndex(())

    def _read_flags(self) -> None:
        """Follow what is frozen now, if that has changed."""
        flags = [p.requires_grad for _, p in self._parameters]
        if flags == self._flags:
            return
        self._flags = flags
        self._weights.close(p for _, p in self._parameters if p.requires_grad)
        self._weights.open([Member(name, p, _FROZEN)] for name, p in self._parameters if not p.requires_grad)
        frozen = {id(p) for _, p in self._parameters if not p.requires_grad}
        self._weights.hold_buffers(frozen_modules(self._module, lambda p: id(p) in frozen))

    def _arrives(self, step: Step) -> None:
        if self._names.changed() or self._holders.changed(step.index):
            self._rebind()
        self._read_flags()

    def _stepped(self, step: Step) -> None:
        leaked = [p for _, p in self._parameters if not p.requires_grad and p.grad is not None]
        self._weights.stepped(_PLANNED, step.updated, leaked, step.index)
        if not step.updated:
            return
        self._at.total += 1
        self.audit.steps.add(step.index, _PLANNED)
        self._at.updates[_TRAINED] = self._at.total
        first = (p for p in self._first if p.requires_grad and p.grad is not None)
        if any(step.index in self._holders.indices(p) for p in first):
            self._at.updates[_FROZEN] += 1

    def _held_first(self) -> list[nn.Parameter]:
        """What was frozen when training began and optimizers hold now; most often nothing, while it is frozen."""
        return [p for name, p in self._parameters if name in self._frozen_first and self._holders.indices(p)]

    def _sort(self) -> None:
        """Sort in the parameters that the model and the optimizers have now."""
        named = [(name, p) for name, p in self._names.by_name.items() if name not in self.audit.exempt.names]
        self._parameters = [*{id(p): (name, p) for name, p in reversed(named)}.values()][::-1]
        self._flags = []
        self._first = self._held_first()
        held = [Member(name, p, _TRAINED) for name, p in self._parameters if self._holders.indices(p)]
        self._weights.use(self._holders, {_TRAINED: held})
        for step in self._steps:
            own = tuple(m.parameter for m in held if step.index in self._holders.indices(m.parameter))
            step.rebind({_TRAINED: own} if own else {})
            step.train(_PLANNED)

    def _rebind(self) -> None:
        """The model or an optimizer has other parameters."""
        replaced = self._names.replaced()
        once_held = [name for name, old, _ in replaced if self._holders.indices(old)]
        self._weights.replaced(replaced)
        self._weights.close(p for _, p in self._parameters)
        lines = self._names.refresh()
        if self._exempt:
            self.audit.exempt.names |= Exemptions(self._module, group_parameters(self._module, self._exempt)).names
        self._holders = OptimizerIndex(self._given)
        self._sort()
        for line in lines:
            self._say(f"freeze, epoch {self.epoch}, after {counted(self.total, 'update')}: {line}")
        now = self._names.by_name
        lost = [name for name in once_held if now[name].requires_grad and not self._holders.indices(now[name])]
        self.log.add(unheld(lost, self.epoch, self.total))

    def _rebuilt(self, optimizers: Sequence[Optimizer]) -> None:
        self.audit.check()
        checked = self.audit.checked
        self.attach(*optimizers, run=self._run)
        self._weights.begin()
        self._weights.frozen.checked = checked
        self._say(f"freeze, epoch {self.epoch}, after {counted(self.total, 'update')}: the optimizers were rebuilt.")

    @property
    def _weights(self) -> WeightAudit:
        if self.audit.weights is None:
            raise RuntimeError("the audit is not attached: call attach(*optimizers) before the first step.")
        return self.audit.weights
