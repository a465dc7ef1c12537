"""What every audited run has, scheduled or not: counts, findings, and the comparisons that are due."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lightning_freeze.audit.exempt import Exemptions
from lightning_freeze.audit.fingerprint import digests
from lightning_freeze.audit.frozen import collector_paused
from lightning_freeze.audit.ranks import Ranks, copies_mismatch, copies_of
from lightning_freeze.audit.run_record import group_sizes, state_bytes, step_costs, surroundings
from lightning_freeze.audit.weights import WeightAudit
from lightning_freeze.holds.fsdp2 import Shards
from lightning_freeze.holds.run_context import RunContext, is_split
from lightning_freeze.plan.membership import Step
from lightning_freeze.plan.schedule import Position
from lightning_freeze.plan.selectors import clean_name
from lightning_freeze.report.findings import Finding
from lightning_freeze.report.records import Log, Record
from lightning_freeze.report.steps import Steps


class RunAudit:
    """The audits of a run over its epochs and its ranks; ``suspects`` name what else in it writes to weights."""

    exempt: Exemptions

    def __init__(self, module: nn.Module, log: Log, place: Callable[[], Position], suspects: Sequence[str]) -> None:
        self.log = log
        self.steps = Steps(write=self.record_part)  # since the last epoch's end
        self._bytes: dict[str, int] = {}  # of each group, as training began
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
        self.stage: Callable[[], tuple[str, int | None]] = lambda: ("", None)  # of the last step
        self._groups: Callable[[], Mapping[str, Sequence[Tensor]]] = dict
        self._optimizers: Callable[[], Sequence[Step]] = list
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

    def begin(
        self,
        groups: Callable[[], Mapping[str, Sequence[Tensor]]],
        steps: Callable[[], Sequence[Step]],
        resumed: bool,
        memory: Mapping[str, Mapping[str, int | None]] | None = None,
        **more: object,
    ) -> Record:
        """Training begins: record the run, and remember the bits of what is exempt; that record."""
        self._groups, self._optimizers = groups, steps
        self.exempt.begin(whole=not resumed)
        self.log.begin_run()
        record: Record = {
            "type": "run",
            **(surroundings(self._context) if self._context is not None else {}),
            "groups": {name: {**size, **(memory or {}).get(name, {})} for name, size in group_sizes(groups()).items()},
            "optimizers": [{"name": type(step.optimizer).__qualname__, "groups": [*step.members]} for step in steps()],
            **more,
            **({"moved_by": dict(self.exempt.reasons)} if self.exempt.reasons else {}),
            "resumes": self.log.resumes,
            "updates_before": self._place().total,
            "epoch": self._place().epoch,
            "resumed": resumed,
        }
        self._bytes = {name: size["bytes"] for name, size in record["groups"].items()}
        self.log.record(record)
        return record

    def begin_epoch(self) -> None:
        """An epoch begins."""
        self.updates_before = dict(self._place().updates)
        self._checked_before = self.checked
        self.begun = False
        if self.weights is not None:
            self.weights.begin_epoch()

    @collector_paused
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
        self.steps.pause()
        epoch, found = self._place().epoch, self._compare(self.weights)
        found = self.ranks.merged([*found, *(self.weights.end_epoch(epoch) if self.weights is not None else ()), *more])
        found = self.log.add(self._without_moved(found) if self.split else found)
        self._mismatches.update(finding.parameter for finding in found if finding.kind == "value" and finding.parameter)
        return found + self._compare_copies(epoch)

    def finish(self) -> list[Finding]:
        """Nothing trains any more: compare what is frozen now, and record steps and counts.

        What moved since the last epoch's end is a warning where something averages weights, and so writes its average back.
        """
        self.steps.pause()
        self._closing |= not self.begun
        if self.weights is not None:
            self.weights.check_offloaded()
        found = self.check() + ([] if self.ends_later else self.unmoved_exemptions())
        if self.begun:
            self.record_epoch()
        return found

    def record_epoch(self) -> None:
        """Record the steps made since the last epoch's end, and the counts."""
        counts = self.counts()
        self.flush()
        self.log.record(counts)

    def flush(self) -> None:
        """Record the steps made since the last epoch's end."""
        self.log.record(self.steps.record(self._place().epoch))
        before, self.steps = self.steps, Steps(self._place().total, self.record_part)
        self.steps.follow(before)

    def record_part(self, steps: Steps) -> None:
        """Record steps within an epoch that are forgotten then."""
        self.log.record(steps.record(self._place().epoch))
        made = [sum(self._bytes.get(group, 0) for group in groups) for groups, _ in steps.counted()]
        steps.forgotten.gradient_bytes = max([steps.forgotten.gradient_bytes, *made])

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
        place, (stage, phase) = self._place(), self.stage()
        return {
            "type": "counts",
            "stage": stage,
            "phase": phase,
            "epoch": place.epoch,
            "updates": dict(place.updates),
            "updates_before_epoch": dict(self.updates_before),
            "total": place.total,
            "intervals": self.checked,
            "intervals_in_epoch": self.checked - self._checked_before,
            "findings": self.log.severities(place.epoch),
            **step_costs(self.steps, self._groups()),
            "state_bytes": state_bytes(step.optimizer for step in self._optimizers()),
            "lr": dict(ChainMap(*(step.learning_rates() for step in self._optimizers()))),
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
