"""The audit without a schedule: whatever has ``requires_grad=False`` is to stay as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn
from torch.optim import Optimizer

from lightning_freeze.audit.run_audit import RunAudit, size_of
from lightning_freeze.audit.weights import WeightAudit
from lightning_freeze.holds.hold import Hold
from lightning_freeze.holds.run_context import RunContext
from lightning_freeze.holds.step_hooks import StepHooks
from lightning_freeze.plan.groups import Member, frozen_modules
from lightning_freeze.plan.membership import Holders, Step
from lightning_freeze.plan.schedule import Position
from lightning_freeze.plan.selectors import clean_name
from lightning_freeze.report.findings import Finding
from lightning_freeze.report.records import Log, Record

FROZEN = "requires_grad=False"
TRAINED = "requires_grad=True"
_TRAINED_SET = frozenset({TRAINED})


class RequiresGradWatch:
    """Audits a run that freezes by other means: BackboneFinetuning, PEFT, one's own code.

    Whether ``requires_grad`` is on is read when a batch begins and right before each optimizer step, so a parameter
    counts as frozen from the first of these at which it is off to the first at which it is on again.

    Args:
        module: The model.
        suspects: Names of what else in the run writes to weights.
        record: Called with each record of the run.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        suspects: Sequence[str] = (),
        record: Callable[[Record], None] = lambda record: None,
    ) -> None:
        self._module = module
        self._at = Position(updates={TRAINED: 0})
        self.log = Log(record)
        self.audit = RunAudit(module, self.log, lambda: self._at, suspects)
        self._parameters = [(clean_name(name), p) for name, p in module.named_parameters()]
        self._flags: list[bool] = []
        self._hooks: StepHooks | None = None

    @property
    def holds(self) -> Hold:
        """Nothing is held."""
        return Hold()

    @property
    def findings(self) -> list[Finding]:
        """Everything that was found."""
        return self.log.findings

    @property
    def updates(self) -> dict[str, int]:
        """The optimizer steps so far."""
        return dict(self._at.updates)

    @property
    def total(self) -> int:
        """The optimizer steps so far."""
        return self._at.total

    @property
    def epoch(self) -> int:
        """The epoch the run is in, from 0."""
        return self._at.epoch

    def attach(self, *optimizers: Optimizer, run: RunContext | None = None) -> None:
        """Watch these optimizers' steps; nothing is held.

        Args:
            optimizers: The run's optimizers.
            run: The processes that share the run, and what is wrapped around the model.
        """
        self.detach()
        self.audit.meet(run or RunContext(self._module, self._module))
        self._flags = []
        holders = Holders(optimizers)
        held = [Member(name, p, TRAINED) for name, p in self._parameters if holders.indices(p)]
        self.audit.weights = WeightAudit(
            self._module,
            holders,
            {TRAINED: held},
            lambda: self._at.total,
            suspects=self.audit.suspects,
            gated=False,
            excused=lambda parameter: not parameter.requires_grad,
            split=self.audit.split,
        )
        steps = [Step(index, o, {TRAINED: tuple(m.parameter for m in held)}) for index, o in enumerate(optimizers)]
        for step in steps:
            step.train(_TRAINED_SET)
        self._hooks = StepHooks(steps, Hold(), lambda step: self._see(), self._ran)
        self._hooks.attach()

    def begin(self, epoch: int = 0) -> None:
        """Training begins."""
        self._at.epoch = epoch
        self._weights.begin()
        self.audit.begin_epoch()
        frozen = [p for _, p in self._parameters if not p.requires_grad]
        trained = [p for _, p in self._parameters if p.requires_grad]
        self.log.record(
            {
                "type": "run",
                "schedule": None,
                "groups": {FROZEN: size_of(frozen), TRAINED: size_of(trained)},
                "updates_before": self._at.total,
                "epoch": epoch,
                "resumed": False,
            }
        )

    def begin_step(self, epoch: int | None = None) -> None:
        """A batch begins: see what is frozen now."""
        self._at.epoch = self._at.epoch if epoch is None else epoch
        self.audit.begun = True
        self.audit.shards.close()
        self._see()

    def end_epoch(self) -> list[Finding]:
        """A training epoch ended: the audits' findings of it."""
        found = self.audit.end_epoch()
        self.audit.record_counts()
        self._at.epoch += 1
        self.audit.begin_epoch()
        return found

    def finish(self) -> list[Finding]:
        """The fit ends: a last comparison, called by all ranks together, which are told the same."""
        found = self.audit.finish()
        if self.audit.begun:
            self.audit.record_counts()
        return found

    def flush(self) -> None:
        """There is nothing but counts to record."""

    def detach(self, bring_back: bool = True) -> None:
        """Take every hook out again. Safe to call again."""
        if self._hooks is not None:
            self._hooks.detach()
        self._hooks = self.audit.weights = None

    def _see(self) -> None:
        """Follow what is frozen now, if that has changed."""
        flags = [p.requires_grad for _, p in self._parameters]
        if flags == self._flags:
            return
        self._flags = flags
        weights = self._weights
        weights.close(p for _, p in self._parameters if p.requires_grad)
        weights.open(Member(name, p, FROZEN) for name, p in self._parameters if not p.requires_grad)
        weights.hold_buffers(frozen_modules(self._module, lambda p: not p.requires_grad))

    def _ran(self, step: Step) -> None:
        leaked = [p for _, p in self._parameters if not p.requires_grad and p.grad is not None]
        self._weights.stepped(_TRAINED_SET, step.updated, leaked)
        self._at.total += bool(step.updated)
        self._at.updates[TRAINED] = self._at.total

    @property
    def _weights(self) -> WeightAudit:
        if self.audit.weights is None:
            raise RuntimeError("the audit is not attached: call attach(*optimizers) before the first step.")
        return self.audit.weights
