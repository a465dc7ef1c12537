"""The audit of weights as a hold: what it watches, and the context from which causes follow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from torch import Tensor, nn

from lightning_freeze.audit.causes import AuditContext, explain, outermost
from lightning_freeze.audit.fingerprint import Digest
from lightning_freeze.audit.frozen import HERE, Change, FrozenAudit, Watched, WatchedSet
from lightning_freeze.audit.moved import MovedAudit
from lightning_freeze.audit.parameter_sets import ParameterSets
from lightning_freeze.holds.hold import Hold
from lightning_freeze.holds.optimizer_state import OffloadState
from lightning_freeze.plan.groups import Member
from lightning_freeze.plan.membership import Membership, OptimizerIndex, ParamSet, Split, Step
from lightning_freeze.plan.named_parameters import NamedParameters
from lightning_freeze.probe.probe import OptimizerTraits, probe_optimizer
from lightning_freeze.report.findings import Finding


class WeightAudit(Hold):
    """Watches frozen parameters, their optimizer state, the buffers of frozen modules, and what trains.

    What freezes opens an interval, what thaws closes it. A run without a schedule opens and closes them itself.
    """

    def __init__(
        self,
        module: nn.Module,
        names: NamedParameters,
        holders: OptimizerIndex,
        trained: Mapping[str, Sequence[Member]],  # group to what of it is to move
        updates: Callable[[], int],  # gives the updates made so far
        *,
        buffers_held: bool = False,  # whether a frozen module's buffers must stay as they are
        suspects: Sequence[str] = (),  # names of what else in the run writes to weights
        sets_to_none: bool = True,  # whether frozen gradients are set to None
        need_not_move: Callable[[Tensor], bool] = lambda parameter: False,  # called at an epoch's end
        offload: OffloadState | None = None,  # moves optimizer state, which is compared when it is back
        training_weights: Callable[[], AbstractContextManager[None]] = nullcontext,  # gives the bits that train
        split: bool = False,  # whether this process holds parts of parameters
    ) -> None:
        self._module = module
        self._names = names
        self._updates = updates
        self._offload = offload
        self._training_weights = training_weights
        self.exchanges = training_weights is not nullcontext  # whether an optimizer does, in evaluation
        self.frozen = FrozenAudit()
        self.moved = MovedAudit({}, lambda p: self._holders.rate(p), need_not_move, self.frozen.last_digest, split)
        self.use(holders, trained)
        self._early: list[Sequence[Member]] = []  # whose intervals began before the batch that freezes them
        self._reported: set[tuple[str, str | None]] = set()
        self._last_step: tuple[int, frozenset[str], frozenset[str]] | None = None
        self._buffers: Mapping[tuple[int, str], Watched] = {}  # of frozen modules, by module and name
        self._has_buffers = True
        self._split: Split | None = None
        self._context = AuditContext(self._mover, self._tied, self._owner, suspects, buffers_held, sets_to_none)

    # --- as a hold

    def begin(self) -> None:
        self._read(OptimizerIndex(self._holders.optimizers))

    def rebind(self, members: Membership) -> None:
        self.use(members.holders, members.trained())

    def replaced(self, pairs: Iterable[tuple[str, nn.Parameter, nn.Parameter]]) -> None:
        for name, old, new in pairs:
            self.frozen.replaced(id(old), name, new, self._updates())

    def thaw(self, params: ParamSet, split: Split) -> None:
        early, self._early = self._early, []  # they begin again, once holds have dropped state
        if not (params.groups or early):
            return
        sets = [self._sets.of(members).keys for members in (*(held.members for held in params.groups), *early)]
        context = HERE if self._offload is None else self._offload.copy_stream()
        with self._training_weights():
            self.frozen.close(sets, self._updates(), context)

    def freeze(self, params: ParamSet, split: Split) -> None:
        self._split = split
        self.watch_buffers(split)
        self.open([held.members for held in params.groups], beside=self._offload is None)

    def pause(self) -> None:
        self.frozen.join()

    def step_begins(self, step: Step) -> None:
        self.frozen.join()

    def before_step(self, step: Step) -> None:
        self.frozen.join()

    def after_step(self, step: Step) -> None:
        last = self._last_step  # most steps are like the one before
        alike = last is not None and last[1] is step.trainable and last[2] is step.updated and last[0] == step.index
        if step.leaked or not alike:
            self._last_step = (step.index, step.trainable, step.updated)
            self.stepped(step.trainable, step.updated, step.leaked, step.index)

    def detach(self, bring_back: bool = True) -> None:
        self._split = None
        self.frozen.join()

    # --- intervals

    def open_early(self, split: Split) -> None:
        """These freeze with the next batch: from here on nothing may move them."""
        groups = (held.members for held in split.frozen.groups)
        early = [members for members in groups if self.frozen.isdisjoint(self._sets.of(members).keys)]
        self._early += early
        self.open(early)

    def open(self, groups: Iterable[Sequence[Member]], beside: bool = False) -> None:
        """These are frozen from here on, each group as a whole; large state may be read beside the step."""
        sets = []
        for members in groups:
            found = self._sets.of(members)
            if not self.frozen.isdisjoint(found.keys):
                found = self._sets.new([m for m in members if id(m.parameter) not in self.frozen])
            if found.keys:
                sets.append(found)
        if sets:
            with self._training_weights():
                self.frozen.open(sets, self._updates(), beside)

    def close(self, parameters: Iterable[Tensor]) -> None:
        """These train from here on: compare what they were."""
        self.frozen.close(([id(parameter)] for parameter in parameters), self._updates())

    def watch_buffers(self, split: Split) -> None:
        """From here on exactly the buffers of the frozen modules are to stay as they are."""
        if self._has_buffers:
            self.hold_buffers(split.frozen_modules)

    def hold_buffers(self, modules: Iterable[tuple[str, nn.Module]]) -> None:
        """From here on exactly the buffers of these modules are to stay as they are."""
        before, now = self._buffers, _buffers_of(modules)
        self.frozen.close([[key for key in before if key not in now]], self._updates())
        if new := {key: buffer for key, buffer in now.items() if key not in before}:
            self.frozen.open([WatchedSet(new)], self._updates())
        self._buffers = now

    def stepped(
        self, planned: frozenset[str], updated: frozenset[str], leaked: Sequence[Tensor], optimizer: int
    ) -> None:
        """An optimizer has stepped: what was to train, which groups had a gradient, and frozen parameters that did."""
        self.moved.stepped(planned, updated, optimizer)
        if leaked:
            self.frozen.saw_gradient(map(id, leaked), self._updates())

    # --- what was found

    def last_digest(self, parameter: Tensor) -> Digest | None:
        """The digest of a parameter that was made last, or None where none was."""
        found = self.frozen.last_digest(id(parameter))
        return found if found is not None else self.moved.last_digest(parameter)

    def begin_epoch(self) -> None:
        """An epoch begins: a module may have got its first buffer since."""
        self._last_step = None
        self._has_buffers = any(True for _ in self._module.buffers())

    def check(self, epoch: int) -> list[Finding]:
        """Compare everything that is frozen now; what was found since the last call."""
        if self._offload is not None:
            self._offload.synchronize()  # digests that were made on the copy stream
        with self._training_weights():
            self.frozen.check(self._updates())
            return self._collect(epoch)

    def end_epoch(self, epoch: int) -> list[Finding]:
        """Compare what should have moved."""
        with self._training_weights():
            return self.moved.end_epoch(epoch)

    def check_offloaded(self) -> None:
        """Compare state that is in host memory, group by group."""
        if self._offload is None or self._split is None:
            return
        for held in self._split.frozen.groups:
            part = ParamSet([held])
            if any(map(self._offload.offloaded, part)):
                self._offload.bring(part)
                self.close(part)
                self.open([held.members])
                self._offload.send(part)

    def _collect(self, epoch: int) -> list[Finding]:
        """One finding for each parameter, whatever the number of its intervals; a note about a buffer is made once."""
        order = {group: number for number, group in enumerate(self._trained)}
        changes: dict[tuple[str, str], list[Change]] = {}
        # What freezes together comes in the order of a set, which varies from run to run.
        for change in sorted(self.frozen.collect(), key=lambda each: order.get(each.watched.group or "", len(order))):
            changes.setdefault((change.watched.name, change.kind), []).append(change)
        findings = []
        select = outermost(self._module, {name for name, _ in changes})
        for first, *later in changes.values():
            finding = explain(first, self._context, epoch, len(later), select(first.watched.name))
            key = (finding.kind, finding.parameter)
            if finding.severity == "error" or key not in self._reported:
                findings.append(finding)
            self._reported.add(key)
        return findings

    # --- what optimizers hold

    def use(self, holders: OptimizerIndex, trained: Mapping[str, Sequence[Member]]) -> None:
        """From here on the optimizers hold these, and this is to move."""
        self._trained = {group: [(m.name, m.parameter) for m in members] for group, members in trained.items()}
        self.moved.use(self._trained)
        self._read(holders)

    def _read(self, holders: OptimizerIndex) -> None:
        self._holders = holders
        self._sets = ParameterSets(self._names, holders, self._offload)
        self._traits: dict[int, OptimizerTraits] = {}

    def _owner(self, name: str) -> nn.Module | None:
        return self._names.names.modules.get(name.rpartition(".")[0])

    def _mover(self, parameter: Tensor) -> str | None:
        for optimizer in self._holders.of(parameter):
            if id(optimizer) not in self._traits:
                self._traits[id(optimizer)] = probe_optimizer(optimizer)
            traits = self._traits[id(optimizer)]
            if traits.skips_none is False:
                return traits.name
        return None

    def _tied(self, parameter: Tensor) -> str | None:
        memory = _memory(parameter)
        others = (each for members in self._trained.values() for each in members if each[1] is not parameter)
        return next((name for name, other in others if memory is not None and _memory(other) == memory), None)


def _memory(tensor: Tensor) -> int | None:
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError):  # tensor subclasses without one storage
        return None


def _buffers_of(modules: Iterable[tuple[str, nn.Module]]) -> dict[tuple[int, str], Watched]:
    """The buffers that these modules own, as the frozen audit watches them."""
    return {
        (id(module), name): Watched(f"{prefix}.{name}" if prefix else name, None, partial(_buffer, module, name))
        for prefix, module in modules
        for name, _ in module.named_buffers(recurse=False)
    }


def _buffer(module: nn.Module, name: str) -> Tensor | None:
    return module._buffers.get(name)
