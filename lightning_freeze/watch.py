"""The audit without a schedule: whatever has ``requires_grad=False`` is to stand still."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_freeze.plan.groups import clean_name, frozen_modules
from lightning_freeze.report.findings import Finding
from lightning_freeze.report.records import Record
from lightning_freeze.witness.frozen import Watched
from lightning_freeze.witness.witness import Witness, buffers_of

FROZEN = "requires_grad=False"
TRAINED = "requires_grad=True"
_TRAINED_SET = frozenset({TRAINED})


class RequiresGradWatch:
    """Audits a run that freezes by other means: BackboneFinetuning, PEFT, one's own code.

    A parameter counts as frozen from the first batch that begins with its ``requires_grad`` off to the first that
    begins with it on.

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
        self.findings: list[Finding] = []
        self._module = module
        self._suspects = suspects
        self._record = record
        self._parameters = [(clean_name(name), p) for name, p in module.named_parameters()]
        self._flags: list[bool] | None = None
        self._frozen: dict[int, Watched] = {}
        self._total = 0
        self._epoch = 0
        self._last_check = 0
        self._intervals_before = 0
        self._updates_before = 0
        self._hooks: list[Any] = []
        self._witness: Witness | None = None

    @property
    def updates(self) -> dict[str, int]:
        """The optimizer steps so far."""
        return {TRAINED: self._total}

    @property
    def epoch(self) -> int:
        """The epoch the run is in, from 0."""
        return self._epoch

    def attach(self, *optimizers: Optimizer) -> None:
        """Watch these optimizers' steps."""
        held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
        trained = {TRAINED: [(name, p) for name, p in self._parameters if id(p) in held]}
        self._witness = Witness(
            self._module,
            optimizers,
            trained,
            suspects=self._suspects,
            excused=lambda parameter: not parameter.requires_grad,
        )
        self._hooks = [optimizer.register_step_post_hook(self._after_step) for optimizer in optimizers]

    def begin(self, epoch: int = 0) -> None:
        """Training begins."""
        self._epoch = epoch
        self._require().begin()
        sizes = {FROZEN: [p for _, p in self._parameters if not p.requires_grad]}
        sizes[TRAINED] = [p for _, p in self._parameters if p.requires_grad]
        self._record(
            {
                "type": "run",
                "schedule": None,
                "groups": {
                    group: {"parameters": len(found), "elements": sum(p.numel() for p in found)}
                    for group, found in sizes.items()
                },
                "updates_before": self._total,
                "epoch": epoch,
                "resumed": False,
            }
        )

    def begin_step(self, epoch: int | None = None) -> None:
        """A batch begins: see what is frozen now."""
        self._epoch = self._epoch if epoch is None else epoch
        flags = [p.requires_grad for _, p in self._parameters]
        if flags != self._flags:
            self._flags = flags
            self._watch()

    def check(self) -> list[Finding]:
        """Compare everything that is frozen now."""
        if self._witness is None:
            return []
        self._last_check = self._total
        self._witness.check(self._total)
        return self._found(self._witness.collect(self._epoch))

    def check_due(self, every_n_updates: int) -> bool:
        """Whether that many optimizer steps were made since the last check."""
        return self._total - self._last_check >= every_n_updates

    def end_epoch(self) -> list[Finding]:
        """A training epoch ended: the audits' findings of it."""
        self._last_check = self._total
        found = self._found(self._require().end_epoch(self._epoch, self._total))
        self._record(self.counts())
        self._intervals_before = self._require().checked
        self._updates_before = self._total
        self._epoch += 1
        return found

    def finish(self) -> list[Finding]:
        """The fit ends: a last comparison."""
        found = self.check()
        if found:
            self._record(self.counts())
        return found

    def flush(self) -> None:
        """There are no planned steps to record."""

    def counts(self) -> Record:
        """The ``counts`` record of the epoch so far."""
        severities = {"error": 0, "warning": 0, "info": 0}
        for finding in self.findings:
            if finding.epoch == self._epoch:
                severities[finding.severity] += 1
        checked = self._witness.checked if self._witness is not None else 0
        return {
            "type": "counts",
            "epoch": self._epoch,
            "updates": self.updates,
            "updates_before_epoch": {TRAINED: self._updates_before},
            "total": self._total,
            "intervals": checked,
            "intervals_in_epoch": checked - self._intervals_before,
            "findings": severities,
        }

    def detach(self) -> None:
        """Take every hook out again. Safe to call again."""
        while self._hooks:
            self._hooks.pop().remove()
        self._witness = None

    def _watch(self) -> None:
        witness = self._require()
        frozen = {id(p): witness.watched(name, FROZEN, p) for name, p in self._parameters if not p.requires_grad}
        witness.thaw(self._frozen.keys() - frozen.keys(), self._total)
        witness.freeze({key: frozen[key] for key in frozen.keys() - self._frozen.keys()}, self._total)
        self._frozen = frozen
        modules = frozen_modules(self._module, lambda p: id(p) in frozen)
        witness.hold_buffers(buffers_of(modules), self._total)

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        bypassed = [p for _, p in self._parameters if p.grad is not None and id(p) in self._frozen]
        self._require().stepped(_TRAINED_SET, _TRAINED_SET, bypassed, self._total)
        self._total += 1

    def _found(self, findings: list[Finding]) -> list[Finding]:
        for finding in findings:
            self._record({"type": "finding", **finding.as_dict()})
        self.findings += findings
        return findings

    def _require(self) -> Witness:
        if self._witness is None:
            raise RuntimeError("the audit is not attached: call attach(*optimizers) before the first step.")
        return self._witness
