"""What every audited run has, scheduled or not: counts, findings, and the comparisons that are due."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_freeze.audit.exempt import Exemptions
from lightning_freeze.audit.fingerprint import digests
from lightning_freeze.audit.ranks import Ranks, copies_mismatch, copies_of
from lightning_freeze.audit.weights import WeightAudit
from lightning_freeze.holds.fsdp2 import Shards
from lightning_freeze.holds.run_context import RunContext, is_split
from lightning_freeze.plan.schedule import Position
from lightning_freeze.plan.selectors import clean_name
from lightning_freeze.report.findings import Finding
from lightning_freeze.report.records import Log, Record


class RunAudit:
    """The audits of a run over its epochs and its ranks; ``suspects`` name what else in it writes to weights."""

    exempt: Exemptions

    def __init__(self, module: nn.Module, log: Log, place: Callable[[], Position], suspects: Sequence[str]) -> None:
        self.log = log
        self.suspects = suspects
        self.ranks = Ranks()
        self.split = False  # whether this process holds parts of parameters
        self.shards = Shards(module)  # before anything reads the model's parameters
        self.weights: WeightAudit | None = None
        self.ends_later = False  # whether other code runs after `finish`, until `last_check`
        self.begun = False  # whether the epoch has had a batch
        self._closing = False  # whether nothing trains any more
        self.updates_before: dict[str, int] = {}  # of each group before the epoch
        self._place = place
        self._module = module
        self._context: RunContext | None = None
        self._mismatches: set[str] = set()
        self._checked_before = 0

    def meet(self, context: RunContext) -> None:
        """Learn of the processes that share the run."""
        device = context.device or next((p.device for p in self._module.parameters() if not p.is_meta), "cpu")
        self.ranks = Ranks(device)
        self._context = context
        self._mismatches.clear()
        self.shards = Shards(self._module)
        self.split = self.ranks.is_distributed and is_split(context.wrapper)

    def begin(self, groups: Mapping[str, Sequence[Tensor]], resumed: bool, **more: object) -> None:
        """Training begins: record the run, and remember the bits of what is exempt."""
        self.exempt.begin(whole=not resumed)
        self.log.record(
            {
                "type": "run",
                **more,
                "groups": {
                    group: {"parameters": len(found), "elements": sum(0 if is_lazy(p) else p.numel() for p in found)}
                    for group, found in groups.items()
                },
                **({"moved_by": dict(self.exempt.reasons)} if self.exempt.reasons else {}),
                "updates_before": self._place().total,
                "epoch": self._place().epoch,
                "resumed": resumed,
            }
        )

    def begin_epoch(self) -> None:
        """An epoch begins."""
        self.updates_before = dict(self._place().updates)
        self._checked_before = self.checked
        self.begun = False
        if self.weights is not None:
            self.weights.begin_epoch()

    def begin_batch(self) -> None:
        """A batch begins, and what it finds frozen is audited."""
        if not self.begun and self.weights is not None:
            self.weights.moved.begin_epoch()
        self.begun = True

    def check(self, all_ranks: bool = True) -> list[Finding]:
        """Compare everything that is frozen now; findings are merged where all ranks call it together."""
        found = self._compare(self.weights)
        return self.log.add(self.ranks.merged(found) if all_ranks else found)

    def end_epoch(self, more: Iterable[Finding] = ()) -> list[Finding]:
        """A training epoch ended: compare what was frozen, what should have moved, and copies; add `more`."""
        epoch, found = self._place().epoch, self._compare(self.weights)
        found = self.ranks.merged([*found, *(self.weights.end_epoch(epoch) if self.weights is not None else ()), *more])
        found = self.log.add(self._without_moved(found) if self.split else found)
        self._mismatches.update(finding.parameter for finding in found if finding.kind == "value" and finding.parameter)
        return found + self._compare_copies(epoch)

    def finish(self, flush: Callable[[], None] = lambda: None) -> list[Finding]:
        """Nothing trains any more: compare what is frozen now, and record steps (by `flush`) and counts.

        What moved since the last epoch's end is a warning where something averages weights, and so writes its average back.
        """
        self._closing |= not self.begun
        if self.weights is not None:
            self.weights.check_offloaded()
        found = self.check() + ([] if self.ends_later else self.unmoved_exemptions())
        if self.begun:
            flush()
            self.log.record(self.counts())
        return found

    def unmoved_exemptions(self) -> list[Finding]:
        """The exemptions that excused nothing in the whole run, which all ranks ask together."""
        ran = self.weights is not None and self._place().total
        return self.log.add(self.exempt.unmoved(self.ranks) if ran else [])

    def last_check(self) -> Callable[[], list[Finding]]:
        """Gives the weights that have moved since `finish`, of this rank alone: others may have ended."""
        weights, self._closing = self.weights, True
        self.unmoved_exemptions()
        if weights is None or weights.exchanges:
            return list
        return lambda: self.log.add(each for each in self._compare(weights) if each.kind != "optimizer_state")

    def counts(self) -> Record:
        """The ``counts`` record of the epoch so far."""
        place = self._place()
        return {
            "type": "counts",
            "epoch": place.epoch,
            "updates": dict(place.updates),
            "updates_before_epoch": dict(self.updates_before),
            "total": place.total,
            "intervals": self.checked,
            "intervals_in_epoch": self.checked - self._checked_before,
            "findings": self.log.severities(place.epoch),
        }

    @property
    def checked(self) -> int:
        """The intervals compared so far."""
        return self.weights.frozen.checked if self.weights is not None else 0

    def _compare(self, weights: WeightAudit | None) -> list[Finding]:
        if weights is None:
            return []
        self.shards.close()
        # Between an epoch's end and the next batch, what is found belongs to the epoch that has ended.
        found = weights.check(self._place().epoch if self.begun else max(0, self._place().epoch - 1))
        if self._closing and self.suspects:
            found = [replace(f, severity="warning") if f.severity == "error" else f for f in found]
        return found

    def _without_moved(self, found: list[Finding]) -> list[Finding]:
        """Without parameters of which a part kept its bits, by rounding or for want of elements, while another moved."""
        unmoved = [finding for finding in found if finding.kind == "unmoved"]
        if not unmoved or self.weights is None:
            return found
        moved = torch.tensor([finding.parameter in self.weights.moved.last_moved for finding in unmoved])
        somewhere = torch.stack(self.ranks.gathered(moved)).any(0).tolist()
        gone = [finding for finding, elsewhere in zip(unmoved, somewhere, strict=True) if elsewhere]
        return [finding for finding in found if finding not in gone]

    def _compare_copies(self, epoch: int) -> list[Finding]:
        """Whether ranks hold other bits of what they hold copies of; each parameter is reported once."""
        context, weights = self._context, self.weights
        if not self.ranks.is_distributed or weights is None or context is None or context.local_sgd:
            return []
        own, parameters = self.exempt.names, self._module.named_parameters()
        named = [(name, parameter) for raw, parameter in parameters if (name := clean_name(raw)) not in own]
        known = {id(parameter): weights.last_digest(parameter) for _, parameter in named}
        frozen_by_user = [parameter for _, parameter in named if known[id(parameter)] is None]
        known.update(zip(map(id, frozen_by_user), digests(frozen_by_user), strict=True))
        found = self.ranks.mismatch(copies_of(named, context.wrapper, lambda parameter: known[id(parameter)]))
        if found is None or found[0] in self._mismatches:
            return []
        self._mismatches.add(found[0])
        return self.log.add([copies_mismatch(*found, epoch, self._place().total)])  # the same on all ranks
