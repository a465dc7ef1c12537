"""The moved audit: what was planned to train over an epoch did."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import compress

import torch
from torch import Tensor

from lightning_freeze.audit.fingerprint import Digest, differ, digests, to_builtins
from lightning_freeze.errors import counted, listed
from lightning_freeze.plan.membership import Step
from lightning_freeze.plan.schedule import REST
from lightning_freeze.report.findings import Finding, OfTraining

_NonZero = Tensor | int | None  # the entries of a gradient that are not 0; 0 at a learning rate of 0, None without one


class MovedAudit:
    """Compares the bits of what was planned to train at both ends of an epoch.

    A parameter that kept its bits is a finding where it had no gradient at its group's first update of the epoch, or one
    that was not zero at a learning rate above zero. A gradient of zero is none: rows of an embedding that were not looked
    up, units that are dead for now. Where this process holds parts of parameters, each that kept its bits is a finding of
    its own, to be merged with those of other ranks.
    """

    def __init__(
        self,
        groups: Mapping[str, Sequence[tuple[str, Tensor]]],  # group to (FQN, parameter) of its members
        rate: Callable[[Tensor], float],  # gives the learning rate that a parameter has now
        need_not_move: Callable[[Tensor], bool] = lambda parameter: False,  # called at an epoch's end
        known: Callable[[int], Digest | None] = lambda key: None,  # gives a digest made a moment ago, by identity
        split: bool = False,  # whether this process holds parts of parameters
    ) -> None:
        self.last_moved: frozenset[str] = frozenset()  # what the last epoch moved, of the groups that were to train
        self._groups = groups
        self._rate = rate
        self._need_not_move = need_not_move
        self._known = known
        self._split = split
        self._before: dict[int, Digest | None] = {}  # by the identity of a parameter
        self._planned: set[str] = set()
        self._nonzeros: dict[int, _NonZero] = {}  # of a parameter, at the first update of the epoch by an optimizer
        self._sampled: dict[int, set[str]] = defaultdict(set)  # optimizer to the groups updated in the epoch

    def last_digest(self, parameter: Tensor) -> Digest | None:
        """The digest with which the epoch began of what may train; None for anything else."""
        return self._before.get(id(parameter))

    def use(self, groups: Mapping[str, Sequence[tuple[str, Tensor]]]) -> None:
        """From here on the groups have these members; of what is new, this epoch says nothing."""
        self._groups = groups
        kept = {id(parameter) for members in groups.values() for _, parameter in members}
        self._before = {key: digest for key, digest in self._before.items() if key in kept}
        self._nonzeros = {key: found for key, found in self._nonzeros.items() if key in kept}

    def begin_epoch(self) -> None:
        """Remember the bits of everything that may train."""
        parameters = [parameter for members in self._groups.values() for _, parameter in members]
        self._before = {id(parameter): self._known(id(parameter)) for parameter in parameters}
        missing = [parameter for parameter in parameters if self._before[id(parameter)] is None]
        self._before.update(zip(map(id, missing), digests(missing), strict=True))
        self._planned, self._nonzeros, self._sampled = set(), {}, defaultdict(set)

    def stepped(self, planned: frozenset[str], updated: frozenset[str], optimizer: int = 0) -> None:
        """An optimizer has stepped: which groups were to train, and which had a gradient (it is still there)."""
        self._planned |= planned
        sampled = self._sampled[optimizer]
        for group in updated.difference(sampled):
            sampled.add(group)
            for _, parameter in self._groups.get(group, ()):
                if self._nonzeros.get(id(parameter)) is None:  # what has none yet may belong to this optimizer
                    self._nonzeros[id(parameter)] = self._nonzero(parameter)

    def end_epoch(self, epoch: int) -> list[Finding]:
        """What was planned to train and did not in the epoch that has ended. Begins the next."""
        groups = [group for group in self._groups if group in self._planned]
        nonzeros, before, updated = self._nonzeros, self._before, set().union(*self._sampled.values())
        self.begin_epoch()
        members = [member for group in groups for member in self._groups[group]]
        ends = [(before.get(id(parameter)), self._before[id(parameter)]) for _, parameter in members]
        # What had no bits at the beginning, a lazy parameter or one that was added, cannot have kept them.
        flags = to_builtins([old is None or differ(old, new) for old, new in ends])
        self.last_moved = frozenset(compress((name for name, _ in members), flags))
        return [finding for group in groups for finding in self._findings(group, nonzeros, group in updated, epoch)]

    def _nonzero(self, parameter: Tensor) -> _NonZero:
        gradient = parameter.grad
        if gradient is None:
            return None
        gradient = gradient.detach()
        gradient = gradient.coalesce().values() if gradient.is_sparse else gradient
        gradient = gradient.to_local() if hasattr(gradient, "to_local") else gradient
        can_move = gradient.numel() and self._rate(parameter) > 0
        return torch.count_nonzero(gradient) if can_move else 0  # a norm by the largest takes ten times as long

    def _kept(self, group: str, nonzeros: Mapping[int, _NonZero]) -> list[tuple[str, _NonZero]]:
        """What should have moved and did not; without what has no elements, since FSDP1 keeps them on other ranks."""
        return [
            (name, nonzeros.get(id(parameter)))
            for name, parameter in self._groups[group]
            if name not in self.last_moved and parameter.numel() and not self._need_not_move(parameter)
        ]

    def _findings(self, group: str, nonzeros: Mapping[int, _NonZero], updated: bool, epoch: int) -> Iterator[Finding]:
        kept = self._kept(group, nonzeros)
        idle = [name for name, nonzero in kept if nonzero is None]
        unmoved = [name for name, nonzero in kept if nonzero]
        of_group = f"of {len(self._groups[group])} parameters of group {group!r}"
        if idle:
            text = f"{len(idle)} {of_group} got no gradient in epoch {epoch}, though the group was to train: {listed(idle)}. "
            yield _finding("no_gradient", text + (_NOT_IN_LOSS if updated else _NO_STEP), epoch, group, idle[0])
        for names in [[name] for name in unmoved] if self._split else [unmoved]:
            if names:
                text = (
                    f"{len(names)} {of_group} kept every bit in epoch {epoch}, though they had a gradient that was not zero and "
                    f"a learning rate above zero: {listed(names)}. {_UNDONE}"
                )
                yield _finding("unmoved", text, epoch, group, names[0])


_NO_STEP = (
    "No optimizer step of the epoch found one: is the group used in the loss, is its optimizer stepped after a backward, "
    "was requires_grad set to False?"
)
_NOT_IN_LOSS = (
    "They were not in the loss (a branch not taken, a `detach`), requires_grad was set to False, or an autograd function "
    "between them and a frozen bottom passes on no gradient (`skip_backward: false` shows it). Use them in the loss, or take "
    "them out of what is to train (`except:` in a group, requires_grad=False without one)."
)
_UNDONE = (
    "Either the update is lost to rounding (a small rate in half precision: keep the weights in float32), or something "
    "undoes it (a copy of the weights that is written back, an optimizer that holds other tensors)."
)


def stalled(step: Step, epoch: int) -> Finding:
    """The finding for an optimizer that the schedule waits for and that was never stepped."""
    name, groups = type(step.optimizer).__qualname__, [group for group in step.members if group != REST]
    text = (
        f"optimizer {step.index} ({name}), which holds {listed(groups)}, was never stepped in epoch {epoch}, and the schedule "
        "waits for its updates. Call its `step()` in `training_step`, or take its groups out of the schedule."
    )
    return _finding("stalled", text, epoch, groups[0] if groups else None)


def unheld(names: Sequence[str], epoch: int, updates: int) -> list[Finding]:
    """The finding for parameters that were replaced on the module, but not in their optimizer."""
    text = (
        f"no optimizer holds {listed(names)} since it was replaced, in epoch {epoch} after {counted(updates, 'update')}, so it cannot "
        "train. Give it to one: `optimizer.add_param_group({'params': [...]})`."
    )
    return [_finding("no_gradient", text, epoch, None, names[0])] if names else []


def _finding(kind: OfTraining, message: str, epoch: int, group: str | None, parameter: str | None = None) -> Finding:
    return Finding("moved", kind, "warning", message, cause=kind, epoch=epoch, parameter=parameter, group=group)
