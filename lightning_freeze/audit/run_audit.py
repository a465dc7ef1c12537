"""What every audited run has, scheduled or not: counts, findings, and the comparisons that are due."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lightning_freeze.audit.fingerprint import digests, is_lazy
from lightning_freeze.audit.ranks import Ranks
from lightning_freeze.audit.replicas import copies_apart, copies_of
from lightning_freeze.audit.weights import WeightAudit
from lightning_freeze.holds.fsdp2 import Shards
from lightning_freeze.holds.run_context import RunContext, is_split
from lightning_freeze.plan.schedule import Position
from lightning_freeze.plan.selectors import clean_name
from lightning_freeze.report.findings import Finding
from lightning_freeze.report.records import Log, Record


def size_of(parameters: Iterable[Tensor]) -> dict[str, int]:
    """How many parameters and elements these are, as a ``run`` record holds it."""
    found = list(parameters)
    return {"parameters": len(found), "elements": sum(0 if is_lazy(p) else p.numel() for p in found)}


class RunAudit:
    """The audits of a run over its epochs and its ranks.

    Args:
        module: The model.
        log: Where findings and records go.
        place: Gives where the run is: its updates and its epoch.
        suspects: Names of what else in the run writes to weights.
    """

    def __init__(
        self, module: nn.Module, log: Log, place: Callable[[], Position], suspects: Sequence[str] = ()
    ) -> None:
        self.log = log
        self.suspects = suspects
        self.ranks = Ranks()
        self.split = False
        """Whether this process holds parts of parameters."""
        self.shards = Shards(module)  # before anything reads the model's parameters
        self.weights: WeightAudit | None = None
        self.begun = False
        """Whether the epoch has had a batch."""
        self.updates_before: dict[str, int] = {}
        """The updates of each group before the epoch."""
        self._place = place
        self._module = module
        self._context: RunContext | None = None
        self._apart: set[str] = set()
        self._intervals_before = 0

    def meet(self, context: RunContext) -> None:
        """Learn of the processes that share the run."""
        device = context.device or next((p.device for p in self._module.parameters() if not p.is_meta), "cpu")
        self.ranks = Ranks(device)
        self._context = context
        self._apart.clear()
        self.shards = Shards(self._module)
        self.split = self.ranks.many and is_split(context.wrapper)

    def begin_epoch(self) -> None:
        """An epoch begins."""
        self.updates_before = dict(self._place().updates)
        self._intervals_before = self._checked
        self.begun = False
        if self.weights is not None:
            self.weights.begin_epoch()

    def check(self, together: bool = True) -> list[Finding]:
        """Compare everything that is frozen now, between epochs' ends.

        Args:
            together: Whether all ranks call it, so that they can tell each other what they find.
        """
        return self.add(self._compare(), together)

    def end_epoch(self, more: Iterable[Finding] = ()) -> list[Finding]:
        """A training epoch ended: what is frozen and what should have moved, and copies that differ.

        Args:
            more: Findings of this rank beside those of the weights.
        """
        epoch = self._place().epoch
        self.shards.close()
        found = [*(self.weights.end_epoch(epoch) if self.weights is not None else ()), *more]
        found = self.ranks.shared(found)
        found = self.log.add(self._without_moved(found) if self.split else found)
        self._apart.update(finding.parameter for finding in found if finding.kind == "value" and finding.parameter)
        return found + self._copies_apart(epoch)

    def finish(self) -> list[Finding]:
        """The fit ends: a last comparison.

        What moved since the last epoch's end is a warning only where something in the run averages weights: to write
        its average back at the end is what it is for.
        """
        if self.weights is not None:
            self.weights.check_offloaded()
        found = self._compare()
        if self.suspects and not self.begun:
            found = [replace(f, severity="warning") if f.severity == "error" else f for f in found]
        return self.add(found)

    def add(self, findings: list[Finding], together: bool = True) -> list[Finding]:
        """Take in what was found: together with other ranks, what all have found."""
        return self.log.add(self.ranks.shared(findings) if together else findings)

    def record_counts(self) -> None:
        """Record the counts of the epoch so far."""
        self.log.record(self.counts())

    def counts(self) -> Record:
        """The ``counts`` record of the epoch so far."""
        place = self._place()
        return {
            "type": "counts",
            "epoch": place.epoch,
            "updates": dict(place.updates),
            "updates_before_epoch": dict(self.updates_before),
            "total": place.total,
            "intervals": self._checked,
            "intervals_in_epoch": self._checked - self._intervals_before,
            "findings": self.log.severities(place.epoch),
        }

    @property
    def _checked(self) -> int:
        return self.weights.checked if self.weights is not None else 0

    def _compare(self) -> list[Finding]:
        if self.weights is None:
            return []
        self.shards.close()
        # Between an epoch's end and the next batch, what is found belongs to the epoch that has ended.
        return self.weights.check(self._place().epoch if self.begun else max(0, self._place().epoch - 1))

    def _without_moved(self, found: list[Finding]) -> list[Finding]:
        """Without parameters of which a part kept its bits, by rounding or for want of elements, while another moved."""
        unmoved = [finding for finding in found if finding.kind == "unmoved"]
        if not unmoved or self.weights is None:
            return found
        moved = self.weights.moved
        rows = self.ranks.gathered(torch.tensor([finding.parameter in moved for finding in unmoved]))
        some = torch.stack(rows).any(0).tolist()
        gone = [finding for finding, elsewhere in zip(unmoved, some, strict=True) if elsewhere]
        return [finding for finding in found if finding not in gone]

    def _copies_apart(self, epoch: int) -> list[Finding]:
        """Whether ranks hold other bits of what they hold copies of; each parameter is reported once."""
        context = self._context
        if not self.ranks.many or self.weights is None or context is None or context.local_sgd:
            return []
        named = [(clean_name(name), parameter) for name, parameter in self._module.named_parameters()]
        prints = {id(parameter): self.weights.print_of(parameter) for _, parameter in named}
        own = [parameter for _, parameter in named if prints[id(parameter)] is None]  # frozen by the user
        prints |= zip(map(id, own), digests(own), strict=True)
        apart = self.ranks.apart(copies_of(named, context.wrapper, lambda parameter: prints[id(parameter)]))
        if apart is None or apart[0] in self._apart:
            return []
        self._apart.add(apart[0])
        return self.log.add([copies_apart(*apart, epoch, self._place().total)])  # all ranks have found the same
