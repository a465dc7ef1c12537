"""The audits of a run together: what they watch, and the surroundings from which they tell causes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_freeze.audit.causes import Surroundings, explain
from lightning_freeze.audit.fingerprint import Digest
from lightning_freeze.audit.frozen import HERE, FrozenAudit, Shift, Watched
from lightning_freeze.audit.moved import MovedAudit
from lightning_freeze.plan.selectors import clean_name
from lightning_freeze.probe.clone import family
from lightning_freeze.probe.probe import OptimizerTraits, probe_optimizer
from lightning_freeze.report.findings import Finding

Buffers = Mapping[tuple[int, str], Watched]
"""Buffers of frozen modules, by module and name, as the frozen audit watches them."""


class Witness:
    """Watches a model's frozen parameters, their optimizer state and the buffers of frozen modules, and what trains.

    Args:
        module: The model.
        optimizers: The run's optimizers.
        trained: Group to (FQN, parameter), for the groups that are to move.
        buffers_held: Whether a frozen module's buffers must stand still.
        suspects: Names of what else in the run writes to weights.
        gated: Whether a gate empties frozen gradients.
        excused: Says of a parameter that was to train, at an epoch's end, that it need not have moved.
        away: Says of a parameter whether its optimizer state is elsewhere for now, to be compared when it is back.
        split: Whether this process holds parts of parameters.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizers: Sequence[Optimizer],
        trained: Mapping[str, Sequence[tuple[str, Tensor]]],
        *,
        buffers_held: bool = False,
        suspects: Sequence[str] = (),
        gated: bool = True,
        excused: Callable[[Tensor], bool] = lambda parameter: False,
        away: Callable[[Tensor], bool] = lambda parameter: False,
        split: bool = False,
    ) -> None:
        self.begun = False
        """Whether `begin` was called."""
        self._away = away
        self.rebind(optimizers)
        self._trained = trained
        self._frozen = FrozenAudit()
        self._moved = MovedAudit(trained, self._rate, excused, split)
        self._said: set[tuple[str, str]] = set()
        self._buffers: Buffers = {}
        modules = {clean_name(n): m for n, m in module.named_modules(remove_duplicate=False)}
        self._around = Surroundings(
            mover=self._mover,
            tied=self._tied,
            owner=lambda name: modules.get(name.rpartition(".")[0]),
            suspects=suspects,
            buffers_held=buffers_held,
            gated=gated,
        )

    def rebind(self, optimizers: Sequence[Optimizer]) -> None:
        """Learn anew which optimizer holds which parameter, and at what rate."""
        self._optimizers = optimizers
        self._traits: dict[int, OptimizerTraits] = {}
        self._families = {id(optimizer): family(optimizer) for optimizer in optimizers}
        self._holders: dict[int, list[Optimizer]] = {}
        self._rates: dict[int, dict[str, object]] = {}
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    self._holders.setdefault(id(parameter), []).append(optimizer)
                    self._rates[id(parameter)] = group

    @property
    def moved(self) -> frozenset[str]:
        """The parameters that the last epoch moved, of the groups that were to train."""
        return self._moved.moved

    @property
    def checked(self) -> int:
        """Frozen intervals compared so far."""
        return self._frozen.checked

    def watched(self, name: str, group: str, parameter: Tensor) -> Watched:
        """A parameter and the state that optimizers hold for it, as the frozen audit watches them."""
        holders = [member for holder in self._holders.get(id(parameter), []) for member in self._families[id(holder)]]

        def kept() -> list[Any]:  # a wrapper may share its state with the optimizer in it
            return list({id(holder.state): holder.state for holder in holders}.values())

        def state() -> object:  # asked of the optimizer each time: `load_state_dict` gives it another dict
            if self._away(parameter):
                return None
            found = [each.get(parameter) or {} for each in kept()]
            return found[0] if len(found) == 1 else found

        return Watched(name, group, lambda: parameter, state)

    def begin(self) -> None:
        """Training begins, with everything restored: remember what is to move, and at what rates."""
        self.begun = True
        self.rebind(self._optimizers)
        self._moved.begin_epoch()

    def freeze(self, watched: Mapping[int, Watched], update: int) -> None:
        """These parameters are frozen from here on."""
        self._frozen.open({key: each for key, each in watched.items() if key not in self._frozen}, update)

    def thaw(self, keys: Iterable[int], update: int, beside: AbstractContextManager[object] = HERE) -> None:
        """These parameters train from here on: compare what they were, their optimizer state in a context of its own."""
        self._frozen.close([key for key in keys if key in self._frozen], update, beside)

    def hold_buffers(self, buffers: Buffers, update: int) -> None:
        """From here on exactly these buffers belong to frozen modules."""
        self._frozen.close(list(self._buffers.keys() - buffers.keys()), update)
        self._frozen.open({key: buffers[key] for key in buffers.keys() - self._buffers.keys()}, update)
        self._buffers = buffers

    def stepped(
        self, planned: frozenset[str], updated: frozenset[str], bypassed: Sequence[Tensor], update: int
    ) -> None:
        """An optimizer has stepped; gradients are still as it found them.

        Args:
            planned: The groups that were to train.
            updated: The groups that had a gradient.
            bypassed: Frozen parameters that had one all the same.
            update: The updates made before this step.
        """
        self._moved.stepped(planned, updated)
        if bypassed:
            self._frozen.saw_gradient([id(parameter) for parameter in bypassed], update)

    def print_of(self, parameter: Tensor) -> Digest | None:
        """The digest of a parameter that was made last, or None where none was."""
        found = self._frozen.print_of(id(parameter))
        return found if found is not None else self._moved.print_of(parameter)

    def check(self, update: int) -> None:
        """Compare everything that is frozen now."""
        self._frozen.check(update)

    def collect(self, epoch: int) -> list[Finding]:
        """What the frozen audit has found since it was last asked.

        One finding for each parameter, whatever the number of its intervals; a note about a buffer is said once.
        """
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

    def end_epoch(self, epoch: int, update: int) -> list[Finding]:
        """Compare what is frozen and what should have moved."""
        self.check(update)
        return [*self.collect(epoch), *self._moved.end_epoch(epoch, lambda p: self._frozen.print_of(id(p)))]

    def _rate(self, parameter: Tensor) -> float:
        rate = self._rates.get(id(parameter), {}).get("lr", 1.0)
        return float(rate) if isinstance(rate, (int, float, Tensor)) else 1.0

    def _mover(self, parameter: Tensor) -> str | None:
        for optimizer in self._holders.get(id(parameter), []):
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
