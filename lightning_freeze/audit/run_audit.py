"""What every audited run has, scheduled or not: counts, findings, and the comparisons that are due."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lightning_freeze.audit.fingerprint import digests, is_lazy
from lightning_freeze.audit.ranks import Ranks
from lightning_freeze.audit.replicas import copies_apart, copies_of
from lightning_freeze.audit.weights import Witness
from lightning_freeze.holds.fsdp2 import Shards
from lightning_freeze.holds.run_context import Circumstances, is_split
from lightning_freeze.plan.selectors import clean_name
from lightning_freeze.report.findings import Finding
from lightning_freeze.report.records import Record


def size_of(parameters: Iterable[Tensor]) -> dict[str, int]:
    """How many parameters and elements these are, as a ``run`` record holds it."""
    found = list(parameters)
    return {"parameters": len(found), "elements": sum(0 if is_lazy(p) else p.numel() for p in found)}


class AuditedRun(ABC):
    """The common part of `FreezeController` and `RequiresGradWatch`.

    Args:
        module: The model.
        record: Called with each record of the run.
        suspects: Names of what else in the run writes to weights.
    """

    def __init__(self, module: nn.Module, record: Callable[[Record], None], suspects: Sequence[str] = ()) -> None:
        self.findings: list[Finding] = []
        self._record = record
        self._suspects = suspects
        self._module = module
        self._ranks = Ranks()
        self._wrapper: nn.Module = module
        self._averages = False
        self._apart: set[str] = set()
        self._split = False
        self._shards = Shards(module)  # before anything reads the model's parameters
        self._witness: Witness | None = None
        self._epoch_updates: dict[str, int] = {}
        self._epoch_intervals = 0
        self._begun = False

    def _meet(self, around: Circumstances) -> None:
        """Learn of the processes that share the run."""
        device = around.device or next((p.device for p in self._module.parameters() if not p.is_meta), "cpu")
        self._ranks = Ranks(device)
        self._wrapper, self._averages = around.wrapper, around.averages
        self._apart.clear()
        self._shards = Shards(self._module)
        self._split = self._ranks.many and is_split(around.wrapper)

    @property
    @abstractmethod
    def updates(self) -> dict[str, int]:
        """Group to its updates so far."""

    @property
    @abstractmethod
    def total(self) -> int:
        """Optimizer steps so far in which anything was updated."""

    @property
    @abstractmethod
    def epoch(self) -> int:
        """The epoch the run is in, from 0."""

    @abstractmethod
    def begin_step(self, epoch: int | None = None) -> None:
        """A batch begins."""

    @abstractmethod
    def end_epoch(self) -> list[Finding]:
        """A training epoch ended: the audits' findings of it, by whichever rank. All ranks call it together."""

    @abstractmethod
    def detach(self, bring_back: bool = True) -> None:
        """Undo everything. Safe to call again.

        Args:
            bring_back: Whether optimizer state that was moved comes back to its device.
        """

    def flush(self) -> None:  # noqa: B027 - there may be nothing but counts to record
        """Record what was done since the last epoch's end."""

    def explain(self, error: BaseException) -> None:  # noqa: B027 - an audit alone causes no errors
        """Add a note to an error that comes from what we do."""

    def check(self, together: bool = True) -> list[Finding]:
        """Compare everything that is frozen now, between epochs' ends.

        Args:
            together: Whether all ranks call it, so that they can tell each other what they find.
        """
        return self._found(self._compare(), together)

    def finish(self) -> list[Finding]:
        """The fit ends: a last comparison, called by all ranks together, which are told the same.

        What moved since the last epoch's end is a warning only where something in the run averages weights: to write
        its average back at the end is what it is for.
        """
        found = self._compare()
        if self._suspects and not self._begun:
            found = [replace(f, severity="warning") if f.severity == "error" else f for f in found]
        found = self._found(found)
        if self._begun:
            self.flush()
            self._record(self.counts())
        return found

    def _compare(self) -> list[Finding]:
        if self._witness is None:
            return []
        self._shards.close()
        self._witness.check(self.total)
        # Between an epoch's end and the next batch, what is found belongs to the epoch that has ended.
        return self._witness.collect(self.epoch if self._begun else max(0, self.epoch - 1))

    def counts(self) -> Record:
        """The ``counts`` record of the epoch so far."""
        severities = {"error": 0, "warning": 0, "info": 0}
        for finding in self.findings:
            if finding.epoch == self.epoch:
                severities[finding.severity] += 1
        checked = self._witness.checked if self._witness is not None else 0
        return {
            "type": "counts",
            "epoch": self.epoch,
            "updates": self.updates,
            "updates_before_epoch": dict(self._epoch_updates),
            "total": self.total,
            "intervals": checked,
            "intervals_in_epoch": checked - self._epoch_intervals,
            "findings": severities,
        }

    def _begin_epoch(self) -> None:
        self._epoch_updates = self.updates
        self._epoch_intervals = self._witness.checked if self._witness is not None else 0
        self._begun = False

    def add(self, findings: list[Finding]) -> None:
        """Take in what another audit of the run found, on this rank."""
        self._found(findings, together=False)

    def _epoch_found(self, found: list[Finding], epoch: int) -> list[Finding]:
        """Take in what an epoch's end has found, and whether ranks hold other bits of what they hold copies of."""
        found = self._ranks.shared(found)
        found = self._found(self._without_moved(found) if self._split else found, together=False)
        self._apart.update(finding.parameter for finding in found if finding.kind == "value" and finding.parameter)
        return found + self._copies_apart(epoch)

    def _without_moved(self, found: list[Finding]) -> list[Finding]:
        """Without parameters of which a part kept its bits, by rounding or for want of elements, while another moved."""
        unmoved = [finding for finding in found if finding.kind == "unmoved"]
        if not unmoved or self._witness is None:
            return found
        moved = self._witness.moved
        rows = self._ranks.gathered(torch.tensor([finding.parameter in moved for finding in unmoved]))
        some = torch.stack(rows).any(0).tolist()
        gone = [finding for finding, elsewhere in zip(unmoved, some, strict=True) if elsewhere]
        return [finding for finding in found if finding not in gone]

    def _copies_apart(self, epoch: int) -> list[Finding]:
        """Whether ranks hold other bits of what they hold copies of; each parameter is told of once."""
        if not self._ranks.many or self._witness is None or self._averages:
            return []
        named = [(clean_name(name), parameter) for name, parameter in self._module.named_parameters()]
        prints = {id(parameter): self._witness.print_of(parameter) for _, parameter in named}
        own = [parameter for _, parameter in named if prints[id(parameter)] is None]  # the user's own to freeze
        prints |= zip(map(id, own), digests(own), strict=True)
        apart = self._ranks.apart(copies_of(named, self._wrapper, lambda parameter: prints[id(parameter)]))
        if apart is None or apart[0] in self._apart:
            return []
        self._apart.add(apart[0])
        return self._found([copies_apart(*apart, epoch, self.total)], together=False)  # all ranks have found the same

    def _found(self, findings: list[Finding], together: bool = True) -> list[Finding]:
        """Take in what was found: together with other ranks, what all have found."""
        if together:
            findings = self._ranks.shared(findings)
        for finding in findings:
            self._record({"type": "finding", **finding.as_dict()})
        self.findings += findings
        return findings
