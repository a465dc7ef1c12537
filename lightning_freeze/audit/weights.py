"""The audit of weights as a hold: what it watches, and the context from which it tells causes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from lightning_freeze.audit.causes import Surroundings, explain
from lightning_freeze.audit.fingerprint import Digest
from lightning_freeze.audit.frozen import HERE, FrozenAudit, Shift, Watched
from lightning_freeze.audit.moved import MovedAudit
from lightning_freeze.holds.hold import Hold
from lightning_freeze.holds.optimizer_state import OffloadState
from lightning_freeze.plan.groups import Member
from lightning_freeze.plan.membership import Holders, Membership, ParamSet, Split, Step
from lightning_freeze.plan.selectors import clean_name
from lightning_freeze.probe.clone import family
from lightning_freeze.probe.probe import OptimizerTraits, probe_optimizer
from lightning_freeze.report.findings import Finding

Buffers = Mapping[tuple[int, str], Watched]
"""Buffers of frozen modules, by module and name, as the frozen audit watches them."""


class WeightAudit(Hold):
    """Watches frozen parameters, their optimizer state, the buffers of frozen modules, and what trains.

    What freezes opens an interval, what thaws closes it. A run without a schedule opens and closes them itself.

    Args:
        module: The model.
        holders: Which optimizers hold which parameter.
        trained: Group to what of it is to move.
        updates: Gives the updates made so far.
        buffers_held: Whether a frozen module's buffers must stay as they are.
        suspects: Names of what else in the run writes to weights.
        gated: Whether frozen gradients are set to None.
        excused: Says of a parameter that was to train, at an epoch's end, that it need not have moved.
        offload: What moves optimizer state, which is compared when it is back.
        training_weights: A context in which parameters have the bits with which they train.
        split: Whether this process holds parts of parameters.
    """

    def __init__(
        self,
        module: nn.Module,
        holders: Holders,
        trained: Mapping[str, Sequence[Member]],
        updates: Callable[[], int],
        *,
        buffers_held: bool = False,
        suspects: Sequence[str] = (),
        gated: bool = True,
        excused: Callable[[Tensor], bool] = lambda parameter: False,
        offload: OffloadState | None = None,
        training_weights: Callable[[], AbstractContextManager[None]] = nullcontext,
        split: bool = False,
    ) -> None:
        self.begun = False
        """Whether `begin` was called."""
        self._module = module
        self._updates = updates
        self._offload = offload
        self._training_weights = training_weights
        self._trained = {group: [(m.name, m.parameter) for m in members] for group, members in trained.items()}
        self._use(holders)
        self._frozen = FrozenAudit()
        self._moved = MovedAudit(self._trained, lambda parameter: self._holders.rate(parameter), excused, split)
        self._said: set[tuple[str, str]] = set()
        self._told: tuple[frozenset[str], frozenset[str]] | None = None
        self._buffers: Buffers = {}
        self._has_buffers = True
        self._split: Split | None = None
        modules = {clean_name(n): m for n, m in module.named_modules(remove_duplicate=False)}
        self._around = Surroundings(
            mover=self._mover,
            tied=self._tied,
            owner=lambda name: modules.get(name.rpartition(".")[0]),
            suspects=suspects,
            buffers_held=buffers_held,
            gated=gated,
        )

    # --- as a hold

    def begin(self) -> None:
        if not self.begun:
            self.begun = True
            self._use(Holders(self._holders.optimizers))
            self._moved.begin_epoch()

    def rebind(self, members: Membership) -> None:
        self._use(members.holders)

    def thaw(self, params: ParamSet, split: Split) -> None:
        with self._training_weights():
            self.close(params, HERE if self._offload is None else self._offload.copy_stream())

    def freeze(self, params: ParamSet, split: Split) -> None:
        self._split = split
        with self._training_weights():
            self.open(params.members)
            self.watch_buffers(split)

    def watch_buffers(self, split: Split) -> None:
        """From here on exactly the buffers of the frozen modules are to stay as they are."""
        if self._has_buffers:
            self.hold_buffers(split.frozen_modules)

    def after_step(self, step: Step) -> None:
        like = (step.trainable, step.updated)
        if step.leaked or like != self._told:  # most steps are like the one before
            self._told = like
            self.stepped(step.trainable, step.updated, step.leaked)

    def detach(self, bring_back: bool = True) -> None:
        self._split = None

    # --- intervals

    def open(self, members: Iterable[Member]) -> None:
        """These are frozen from here on."""
        found, frozen, known = {}, self._frozen, self._known
        for member in members:
            key = id(member.parameter)
            if key not in frozen:
                watched = known.get(key)
                if watched is None or watched.group != member.group:
                    watched = known[key] = self._watched(member)
                found[key] = watched
        frozen.open(found, self._updates())

    def close(self, parameters: Iterable[Tensor], on_copy_stream: AbstractContextManager[object] = HERE) -> None:
        """These train from here on: compare what they were, their optimizer state in a context of its own."""
        keys = [id(parameter) for parameter in parameters]
        self._frozen.close([key for key in keys if key in self._frozen], self._updates(), on_copy_stream)

    def hold_buffers(self, modules: Iterable[tuple[str, nn.Module]]) -> None:
        """From here on exactly the buffers of these modules are to stay as they are."""
        buffers = buffers_of(modules)
        self._frozen.close(list(self._buffers.keys() - buffers.keys()), self._updates())
        self._frozen.open({key: buffers[key] for key in buffers.keys() - self._buffers.keys()}, self._updates())
        self._buffers = buffers

    def stepped(self, planned: frozenset[str], updated: frozenset[str], leaked: Sequence[Tensor]) -> None:
        """An optimizer has stepped; gradients are still as it found them.

        Args:
            planned: The groups that were to train.
            updated: The groups that had a gradient.
            leaked: Frozen parameters that had one all the same.
        """
        self._moved.stepped(planned, updated)
        if leaked:
            self._frozen.saw_gradient([id(parameter) for parameter in leaked], self._updates())

    # --- what was found

    @property
    def moved(self) -> frozenset[str]:
        """The parameters that the last epoch moved, of the groups that were to train."""
        return self._moved.moved

    @property
    def checked(self) -> int:
        """Frozen intervals compared so far."""
        return self._frozen.checked

    def print_of(self, parameter: Tensor) -> Digest | None:
        """The digest of a parameter that was made last, or None where none was."""
        found = self._frozen.print_of(id(parameter))
        return found if found is not None else self._moved.print_of(parameter)

    def begin_epoch(self) -> None:
        """An epoch begins: a module may have got its first buffer since."""
        self._told = None
        self._has_buffers = any(True for _ in self._module.buffers())

    def check(self, epoch: int) -> list[Finding]:
        """Compare everything that is frozen now; what was found since this was last asked."""
        with self._synchronized():
            self._frozen.check(self._updates())
            return self._collect(epoch)

    def end_epoch(self, epoch: int) -> list[Finding]:
        """Compare what is frozen and what should have moved."""
        with self._synchronized():
            self._frozen.check(self._updates())
            return [*self._collect(epoch), *self._moved.end_epoch(epoch, lambda p: self._frozen.print_of(id(p)))]

    def check_offloaded(self) -> None:
        """Compare state that is in host memory, group by group."""
        if self._offload is None or self._split is None:
            return
        frozen = self._split.frozen
        for unit in frozen.units:
            part = ParamSet([unit], frozen.steps)
            if any(map(self._offload.offloaded, part)):
                self._offload.bring(part)
                self.close(part)
                self._offload.send(part)

    def _synchronized(self) -> AbstractContextManager[None]:
        if self._offload is not None:
            self._offload.synchronize()  # digests that were made beside the step's own work
        return self._training_weights()

    def _collect(self, epoch: int) -> list[Finding]:
        """One finding for each parameter, whatever the number of its intervals; a note about a buffer is said once."""
        shifts: dict[tuple[str, str], list[Shift]] = {}
        for shift in self._frozen.collect():
            shifts.setdefault((shift.watched.name, shift.kind), []).append(shift)
        findings = [explain(alike[0], self._around, epoch, again=len(alike) - 1) for alike in shifts.values()]
        fresh = []
        for finding in findings:
            key = (finding.kind, finding.parameter or "")
            if finding.severity != "info" or key not in self._said:
                fresh.append(finding)
            self._said.add(key)
        return fresh

    # --- what optimizers hold

    def _use(self, holders: Holders) -> None:
        self._holders = holders
        self._known: dict[int, Watched] = {}  # by the identity of a parameter, which it keeps alive
        self._traits: dict[int, OptimizerTraits] = {}
        self._families = {id(optimizer): family(optimizer) for optimizer in holders.optimizers}

    def _watched(self, member: Member) -> Watched:
        """A parameter and the state that optimizers hold for it, as the frozen audit watches them."""
        parameter = member.parameter
        holders = [each for holder in self._holders.of(parameter) for each in self._families[id(holder)]]

        def state() -> object:  # asked of the optimizer each time: `load_state_dict` gives it another dict
            if self._offload is not None and self._offload.offloaded(parameter):
                return None
            kept = {id(holder.state): holder.state for holder in holders}  # a wrapper may share it with the one inside
            found = [each.get(parameter) or {} for each in kept.values()]
            return found[0] if len(found) == 1 else found

        return Watched(member.name, member.group, lambda: parameter, state)

    def _mover(self, parameter: Tensor) -> str | None:
        for optimizer in self._holders.of(parameter):
            if id(optimizer) not in self._traits:  # asked of each parameter that has moved
                self._traits[id(optimizer)] = probe_optimizer(optimizer)
            traits = self._traits[id(optimizer)]
            if traits.skips_none is False:
                return traits.name
        return None

    def _tied(self, parameter: Tensor) -> str | None:
        memory = _memory(parameter)
        for members in self._trained.values():
            for name, other in members:
                if other is not parameter and memory is not None and _memory(other) == memory:
                    return name
        return None


def _memory(tensor: Tensor) -> int | None:
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError):  # tensor subclasses without one storage
        return None


def buffers_of(modules: Iterable[tuple[str, nn.Module]]) -> Buffers:
    """The buffers that these modules own, as the frozen audit watches them."""
    found: dict[tuple[int, str], Watched] = {}
    for prefix, module in modules:
        for name, buffer in module.named_buffers(recurse=False):
            if buffer is not None:
                full = f"{prefix}.{name}" if prefix else name
                found[id(module), name] = Watched(full, None, _reader(module, name))
    return found


def _reader(module: nn.Module, name: str) -> Callable[[], Tensor | None]:
    def read() -> Tensor | None:
        return module._buffers.get(name)

    return read
