"""The audit without a schedule: whatever has ``requires_grad=False`` is to stand still."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn
from torch.optim import Optimizer

from lightning_freeze.audit.frozen import Watched
from lightning_freeze.audit.run_audit import AuditedRun, size_of
from lightning_freeze.audit.weights import Witness, buffers_of
from lightning_freeze.holds.run_context import Circumstances
from lightning_freeze.holds.step_hooks import Gate, Lane
from lightning_freeze.plan.groups import frozen_modules
from lightning_freeze.plan.membership import held_by
from lightning_freeze.plan.selectors import clean_name
from lightning_freeze.report.findings import Finding
from lightning_freeze.report.records import Record

FROZEN = "requires_grad=False"
TRAINED = "requires_grad=True"
_TRAINED_SET = frozenset({TRAINED})


class RequiresGradWatch(AuditedRun):
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
        super().__init__(module, record, suspects)
        self._parameters = [(clean_name(name), p) for name, p in module.named_parameters()]
        self._flags: list[bool] = []
        self._frozen: dict[int, Watched] = {}
        self._total = 0
        self._epoch = 0
        self._gate: Gate | None = None

    @property
    def updates(self) -> dict[str, int]:
        """The optimizer steps so far."""
        return {TRAINED: self._total}

    @property
    def total(self) -> int:
        """The optimizer steps so far."""
        return self._total

    @property
    def epoch(self) -> int:
        """The epoch the run is in, from 0."""
        return self._epoch

    def attach(self, *optimizers: Optimizer, around: Circumstances | None = None) -> None:
        """Watch these optimizers' steps; nothing is held.

        Args:
            optimizers: The run's optimizers.
            around: The processes that share the run, and what is wrapped around the model.
        """
        self.detach()
        self._meet(around or Circumstances(self._module, self._module))
        self._flags, self._frozen = [], {}
        held = held_by(*optimizers)
        members = [(name, p) for name, p in self._parameters if id(p) in held]
        self._witness = Witness(
            self._module,
            optimizers,
            {TRAINED: members},
            suspects=self._suspects,
            gated=False,
            excused=lambda parameter: not parameter.requires_grad,
            split=self._split,
        )
        lanes = [Lane(index, o, {TRAINED: tuple(p for _, p in members)}) for index, o in enumerate(optimizers)]
        for lane in lanes:
            lane.train(_TRAINED_SET)
        self._gate = Gate(lanes, lambda lane: self._see(), self._after_step)
        self._gate.attach()

    def begin(self, epoch: int = 0) -> None:
        """Training begins."""
        self._epoch = epoch
        self._require().begin()
        self._begin_epoch()
        frozen = [p for _, p in self._parameters if not p.requires_grad]
        trained = [p for _, p in self._parameters if p.requires_grad]
        self._record(
            {
                "type": "run",
                "schedule": None,
                "groups": {FROZEN: size_of(frozen), TRAINED: size_of(trained)},
                "updates_before": self._total,
                "epoch": epoch,
                "resumed": False,
            }
        )

    def begin_step(self, epoch: int | None = None) -> None:
        """A batch begins: see what is frozen now."""
        self._epoch = self._epoch if epoch is None else epoch
        self._begun = True
        self._shards.close()
        self._see()

    def end_epoch(self) -> list[Finding]:
        """A training epoch ended: the audits' findings of it."""
        self._shards.close()
        found = self._epoch_found(self._require().end_epoch(self._epoch, self._total), self._epoch)
        self._record(self.counts())
        self._epoch += 1
        self._begin_epoch()
        return found

    def detach(self, bring_back: bool = True) -> None:
        """Take every hook out again. Safe to call again."""
        if self._gate is not None:
            self._gate.detach()
        self._gate = self._witness = None

    def _see(self) -> None:
        """Follow what is frozen now, if that has changed."""
        flags = [p.requires_grad for _, p in self._parameters]
        if flags == self._flags:
            return
        self._flags = flags
        witness = self._require()
        frozen = {id(p): witness.watched(name, FROZEN, p) for name, p in self._parameters if not p.requires_grad}
        witness.thaw(self._frozen.keys() - frozen.keys(), self._total)
        witness.freeze({key: frozen[key] for key in frozen.keys() - self._frozen.keys()}, self._total)
        self._frozen = frozen
        modules = frozen_modules(self._module, lambda p: id(p) in frozen)
        witness.hold_buffers(buffers_of(modules), self._total)

    def _after_step(self, lane: Lane, updated: frozenset[str], bypassed: Sequence[nn.Parameter]) -> None:
        stale = [p for _, p in self._parameters if not p.requires_grad and p.grad is not None]
        self._require().stepped(_TRAINED_SET, updated, stale, self._total)
        self._total += bool(updated)

    def _require(self) -> Witness:
        if self._witness is None:
            raise RuntimeError("the audit is not attached: call attach(*optimizers) before the first step.")
        return self._witness
