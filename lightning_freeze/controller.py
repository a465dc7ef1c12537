"""`FreezeController`: ties plan, gate, witness and report together; knows torch but not Lightning."""

from __future__ import annotations

import difflib
import logging
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

import torch
import yaml
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_freeze.audit.frozen import Watched
from lightning_freeze.audit.moved import stalled
from lightning_freeze.audit.ranks import place_apart
from lightning_freeze.audit.run_audit import AuditedRun, size_of
from lightning_freeze.audit.weights import Witness, buffers_of
from lightning_freeze.errors import ScheduleError, SelectionError, nearest, one_of
from lightning_freeze.holds.backward import BackwardSkip
from lightning_freeze.holds.checkpointing import ReentrantInputs
from lightning_freeze.holds.eval_mode import EvalModes
from lightning_freeze.holds.optimizer_state import OPTIMIZER_STATE, SHORTEST, FrozenState, Held, OptimizerState
from lightning_freeze.holds.run_context import Circumstances, compiled, plain_optimizer, refuse_flattened, unwrapped
from lightning_freeze.holds.schedule_free import Swaps
from lightning_freeze.holds.skip_decision import SKIP_BACKWARD, Choice, SkipBackward, choose
from lightning_freeze.holds.step_hooks import Gate, Lane
from lightning_freeze.plan.costs import Size
from lightning_freeze.plan.groups import Member, Rest, frozen_modules, group_parameters, selectors_for
from lightning_freeze.plan.membership import held_by
from lightning_freeze.plan.preview import Step, longest_interval, preview
from lightning_freeze.plan.schedule import REST, Plan, Position, Schedule
from lightning_freeze.plan.selectors import Selector, clean_name
from lightning_freeze.probe.probe import OptimizerTraits, probe_optimizer
from lightning_freeze.probe.state_size import state_bytes
from lightning_freeze.probe.step_counters import first_update
from lightning_freeze.probe.verdict import way_of
from lightning_freeze.report.findings import Finding
from lightning_freeze.report.records import Record, Steps
from lightning_freeze.report.table import folded
from lightning_freeze.setup import refuse_idle, refuse_optimizers, refuse_state, refuse_without_rate

_LOG = logging.getLogger("lightning_freeze")
_STATE_VERSION = 1
_KEPT_SETS = 64
_NO_END = 1 << 62
_FORESEEN = 3000  # windows in which the longest frozen interval is looked for
_ALIKE = 0.05
_NOT_BEGUN = "`begin_step()` was not called before the forward of this step. Call it at the beginning of every batch: "


OnScheduleChange = Literal["raise", "continue"]
Sets = tuple[frozenset[str], ...]
"""For each optimizer, the groups that it trains."""


@dataclass(frozen=True)
class _Unit:
    """The parameters of a group that the same optimizers hold, so that they freeze and thaw together."""

    group: str
    lanes: tuple[int, ...]
    parameters: tuple[nn.Parameter, ...]
    watched: Mapping[int, Watched]

    def frozen(self, sets: Sets) -> bool:
        """Whether no optimizer trains it."""
        return not any(self.group in sets[lane] for lane in self.lanes)


class FreezeController(AuditedRun):
    """Runs a schedule over a model and its optimizers: who trains, held so, and proved.

    The order of calls is `attach` and `begin`, then for every batch `begin_step` and the usual backward and
    ``optimizer.step()``, `end_epoch` after each epoch, and at the end `finish` and `detach`; ``with controller:``
    detaches by itself. Where gradients are clipped, `before_optimizer_step` comes before the clipping, so that frozen gradients
    are not counted into the norm; under a GradScaler, and under DDP, `after_backward` comes after each backward. `pause`
    comes before whatever is to find ``requires_grad`` as you made it, such as validation between two batches. `state_dict`
    goes into a checkpoint and back into `begin`; the optimizer's own state is best loaded before `attach`. Under several
    processes all of them call the same methods, and are told the same findings. ``examples/plain_loop.py`` and
    ``examples/fabric_loop.py`` are whole programs.

    Args:
        module: The model, with every parameter of every group at ``requires_grad=True``; or what you call in its place, from
            DistributedDataParallel, FSDP, Fabric's ``setup`` or `torch.compile`, which under several processes is how
            ``skip_backward: auto`` and the audit learn of it. Names are those of the model within.
        schedule: Who trains when.
        groups: Group to selector (see `resolve_groups`). A name in the schedule that is no group is read as a selector.
        rest: What becomes of the parameters outside the groups: ``train``, ``freeze`` or ``error``.
        frozen_modules: ``eval`` holds frozen modules in eval mode, so that batch-norm statistics stand still too.
        skip_backward: Whether the backward work of frozen groups is left out, by ``requires_grad=False`` while they are
            frozen: ``auto`` where that is safe, and says why.
        optimizer_state: What becomes of the optimizer state of frozen groups: ``keep``, ``offload`` (to host memory,
            until they train again) or ``reset`` (dropped, so that they begin anew, as in BAdam).
        audit: Whether frozen weights are fingerprinted and moving ones checked.
        on_schedule_change: What becomes of a state that was saved under another schedule or other groups: ``raise``, or
            ``continue`` with its counts, by the names of groups, and its place in the row of phases.
        suspects: Names of what else in the run writes to weights, for the audit's explanations.
        say: Called with what is to be said once, as a line.
        record: Called with each record of the run.

    Raises:
        ScheduleError: The schedule names a group that is none, or an argument is a word that it does not take.
        SelectionError: A selector matches nothing, or parameters cannot be grouped as asked.

    Example:
        >>> import torch
        >>> from lightning_freeze import Every
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> controller = FreezeController(model, Every({"0": 2}, of="1"))
        >>> controller.attach(optimizer)
        >>> controller.begin()
        >>> for _ in range(4):
        ...     controller.begin_step()
        ...     optimizer.zero_grad()
        ...     model(torch.ones(3, 2)).sum().backward()
        ...     controller.before_optimizer_step(optimizer)
        ...     norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        ...     optimizer.step()
        >>> controller.updates
        {'0': 2, '1': 4}
        >>> controller.end_epoch()
        []
        >>> state = controller.state_dict()  # later: controller.begin(state=state)
        >>> controller.finish()
        []
        >>> controller.detach()
    """

    def __init__(
        self,
        module: nn.Module,
        schedule: Schedule,
        groups: Mapping[str, Selector] | None = None,
        rest: Rest = "train",
        *,
        frozen_modules: Literal["train", "eval"] = "train",
        skip_backward: SkipBackward = "auto",
        optimizer_state: OptimizerState = "keep",
        audit: bool = True,
        on_schedule_change: OnScheduleChange = "raise",
        suspects: Sequence[str] = (),
        say: Callable[[str], None] = _LOG.info,
        record: Callable[[Record], None] = lambda record: None,
    ) -> None:
        model, self._given_wrapper, self._compiled = unwrapped(module)
        super().__init__(model, record, suspects)
        one_of("skip_backward", skip_backward, SKIP_BACKWARD)
        one_of("optimizer_state", optimizer_state, OPTIMIZER_STATE)
        self.schedule = schedule
        self.metrics: dict[str, str] = {metric: key for key, metric in reversed(schedule.metrics())}
        """Each metric that a phase's end hangs on, with the first key in the schedule that names it."""
        self._eval = frozen_modules == "eval"
        self._skip_asked = skip_backward
        self._state = FrozenState(optimizer_state)
        self._skip = BackwardSkip()
        self._swaps = Swaps((), frozenset)
        self.backward = Choice(False, "the controller is not attached")
        """Whether the backward work of frozen groups is left out, and why."""
        self._around: Circumstances | None = None
        self.traits: dict[int, OptimizerTraits] = {}
        """What the probe has learnt of each optimizer that holds something which freezes, by its index."""
        self._closures: bool | None = None
        self._regions: Collection[str] = ()
        self._uneven = False
        self._reentrant = ReentrantInputs(lambda: self._skip.holds, say)
        self._by_hand = self._skipping = self._stepped_into = self._warned_of_loss = False
        self.hears_backward = False
        """Whether `after_backward` has something to do: under a GradScaler, and under plain DDP where backward is skipped."""
        self._audit = audit
        self._on_change = on_schedule_change
        self._say = say
        self.groups = group_parameters(model, selectors_for(model, dict(groups or {}), schedule), rest)
        self._modes = EvalModes()
        self._own = {id(p) for n, p in model.named_parameters() if clean_name(n) in self.groups.users_own}
        self._has_buffers = False
        self._modules: dict[Sets, list[tuple[str, nn.Module]]] = {}
        self._units: dict[str, list[_Unit]] = {}
        self._held_groups: list[list[str]] = []
        self._plan: Plan | None = None
        self._gate: Gate | None = None
        self._at = Position()
        self._steps = Steps()
        self._sets: Sets = ()
        self._rates: dict[str, float] | None = None  # not told to the lanes yet
        self._logged: set[str] = set()
        self._steady_until = 0
        self._epoch_length = 0  # of the last epoch, in updates
        self._told: tuple[frozenset[str], frozenset[str]] | None = None
        self._watched_sets: Sets = ()
        self._over = False
        self._continued = False

    # --- what a user reads ------------------------------------------------------------------------------------------

    @property
    def updates(self) -> dict[str, int]:
        """Group to the updates it has had: optimizer steps that truly ran for it."""
        return dict(self._at.updates)

    @property
    def total(self) -> int:
        """Optimizer steps so far in which anything was updated."""
        return self._at.total

    @property
    def epoch(self) -> int:
        """The epoch the schedule is in, from 0."""
        return self._at.epoch

    @property
    def trainable(self) -> frozenset[str]:
        """The groups that the coming step may train, ``rest`` included where it trains."""
        return self._plan.trainable(self._at) if self._plan is not None else frozenset()

    @property
    def optimizer_state(self) -> OptimizerState:
        """What becomes of the optimizer state of frozen groups."""
        return self._state.mode

    # --- the run ----------------------------------------------------------------------------------------------------

    def attach(
        self,
        *optimizers: Optimizer,
        scaler: bool = False,
        epoch: int = 0,
        around: Circumstances | None = None,
        waits: bool = False,
        closures: bool | None = None,
    ) -> None:
        """Bind the schedule to the optimizers and hook into them.

        Args:
            optimizers: The run's optimizers, or Fabric's wrappers of them, in the order that schedules count them.
            scaler: Whether a GradScaler steps them.
            epoch: The epoch to begin in.
            around: What decides whether backward can be skipped. By default, what the controller was given is called, and with
                several optimizers each may step within a batch.
            waits: Whether the optimizers' state is yet to be loaded, so that steps before `begin` are not the run's:
                `torch.distributed.checkpoint` makes one, of gradients of zero, to see what there is to load.
            closures: Whether steps are handed a closure, as Lightning hands them one: some optimizers act otherwise then. By
                default, only where an optimizer asks for one.

        Raises:
            SelectionError: A parameter of a group is in none of the optimizers.
            ScheduleError: The schedule leaves nothing trainable, or ranks were given different ones.
            UnsupportedError: An optimizer cannot hold a frozen parameter still, backward cannot be skipped though it is to
                be, or optimizer state cannot be dropped or moved.
        """
        self.detach()
        optimizers = tuple(map(plain_optimizer, optimizers))
        self.traits.clear()
        self._closures = closures
        around = around or Circumstances(
            self._module, self._given_wrapper, by_hand=len(optimizers) > 1, compiled=self._compiled
        )
        self._meet(around)
        refuse_flattened(self._module)
        scheduled = [m.parameter for members in self._freezable.values() for m in members]
        refuse_optimizers(optimizers, scheduled)
        layout = self.groups.layout(optimizers)
        self._plan = self.schedule.bind(layout)
        refuse_state(self._state.mode, optimizers, scheduled)
        rated = [m.parameter for group in self._plan.rated for m in self.groups.members.get(group, ())]
        refuse_without_rate(optimizers, rated)
        lanes = [Lane(index, optimizer, self._held_by(optimizer)) for index, optimizer in enumerate(optimizers)]
        for lane in lanes:
            self._learn(lane, closures)
        may_idle: str | None = None
        for lane in lanes:
            idle = self._plan.may_idle(lane.index) if scaler and lane.members else None
            if idle is not None:
                refuse_idle(lane.optimizer, lane.index, idle)
                may_idle = f"optimizer {lane.index} can come to that: {idle}"
        self._by_hand = around.by_hand
        self._around, self._regions = replace(around, idle=may_idle), compiled(self._module).keys()
        self.backward = self._choice(self._around)
        attends = any(isinstance(each, nn.MultiheadAttention) for each in self._module.modules())
        self._skip = BackwardSkip(self.backward.reducer, plain_attention=attends)
        self.hears_backward = scaler or self._skip.tells
        self._gate = Gate(lanes, self._before_step, self._after_step, self._rebind)
        self._swaps = Swaps(lanes, self._still)
        if self.groups.users_own:
            own = self.groups.users_own
            self._say(
                f"freeze: {len(own)} parameter(s) were found with requires_grad=False ({', '.join(own[:3])}"
                f"{', …' if len(own) > 3 else ''}); they are yours to freeze and belong to no group."
            )
        if self._audit:
            # Of the rest, only what an optimizer holds is to move; a named group is held whole.
            held = held_by(*optimizers)
            trained = {
                group: [(m.name, m.parameter) for m in members if id(m.parameter) in held]
                for group, members in self.groups.members.items()
                if group != REST or layout.rest_trains
            }
            self._witness = Witness(
                self._module,
                optimizers,
                trained,
                buffers_held=self._eval,
                suspects=self._suspects,
                away=self._state.away,
                split=self._split,
            )
        self._held_groups = [sorted(lane.members) for lane in lanes]
        given = {
            "schedule": self.schedule.describe(),
            "groups": self.groups.names(),
            "rest": self.groups.rest,
            "optimizers": self._held_groups,
            "left out": [lane.leaves_out for lane in lanes],
            "skip_backward": self.backward.skips,
            "optimizer_state": self._state.mode,
            "frozen_modules": "eval" if self._eval else "train",
            "audit": self._audit,
        }
        what = "the schedule, the groups and the optimizers that the ranks were given"
        self._refuse_apart("before training", what, self._ranks.disagreement(given))
        self._make_units()
        self._sets = self._watched_sets = ()
        self._rates = None
        self._stepped_into = False
        self._at = self._plan.start(epoch)
        self._decide()
        if not waits:
            self._gate.attach()
        self._state.attach(optimizers)
        self._swaps.attach()
        if self.backward.skips:
            self._reentrant.attach()
        self._begin_epoch()
        never = self._plan.never_freezes() and not (self.groups.rest == "freeze" and REST in self.groups.members)
        if self._state.mode == "offload" and all(p.device.type == "cpu" for p in scheduled):
            self._say(
                "freeze: `optimizer_state: offload` has nothing to do: the optimizer state is in host memory already."
            )
        if self._skip_asked is not False and not never:
            how = "is skipped" if self.backward.skips else "is not skipped, their gradients are emptied"
            self._say(f"freeze: the backward work of frozen groups {how}: {self.backward.why}.")
        if never and not self._plan.rated:
            rest = len(self.groups.members.get(REST, ()))
            warnings.warn(
                f"this schedule never freezes anything: its groups ({', '.join(self.groups.named)}) train at every step"
                + (f", and so do {rest} parameter(s) in no group, by `rest: train`" if rest else "")
                + ". Name what is to be frozen as a group of its own"
                + (", or set `rest: freeze`." if rest else "."),
                stacklevel=2,
            )

    def begin(
        self,
        epoch: int | None = None,
        state: Mapping[str, Any] | None = None,
        *,
        uneven: bool = False,
        windows_per_epoch: int | None = None,
    ) -> None:
        """Training begins: go on from a saved state, remember what is to move, and record the run.

        Args:
            epoch: The epoch to begin in, where there is no state.
            state: What `state_dict` gave.
            uneven: Whether batches may differ in size, which compiled code is compiled anew for.
            windows_per_epoch: Optimizer windows (a batch, or an accumulation of several) in an epoch, to know how long groups
                will be frozen; where it is not known, phases that count epochs are taken to have no end.

        Raises:
            ScheduleError: The state was saved under another schedule or other groups, or ranks go on from different places.
        """
        self._uneven = uneven
        if self._regions:  # compiled: all ranks are to choose alike
            self._uneven = any(bool(row[0]) for row in self._ranks.gathered(torch.tensor([uneven])))
        refused: Exception | None = None
        if state is not None:
            try:
                self.load_state_dict(state)
            except Exception as error:  # told to the other ranks before it is raised
                refused = error
        elif epoch is not None:
            self._at.epoch = epoch
        difference = self._ranks.disagreement({**self._place(), "refused": str(refused or "")})
        if refused is not None:
            raise refused
        self._refuse_apart("where training begins", "the checkpoints that the ranks go on from", difference)
        if state is not None and state["schedule"] == self.schedule.describe():
            self._warn_of_lost_value(self._at.epoch if epoch is None else epoch)
        self._require_gate().attach()
        self._begin_witness()
        self._warn_of_clocks(windows_per_epoch or _NO_END)
        self._record(
            {
                "type": "run",
                "schedule": self.schedule.describe(),
                "groups": {
                    group: size_of(m.parameter for m in members) for group, members in self.groups.members.items()
                },
                "users_own": list(self.groups.users_own),
                "rest": self.groups.rest,
                "optimizers": [type(lane.optimizer).__qualname__ for lane in self._require_gate().lanes],
                "updates_before": self._at.total,
                "epoch": self._at.epoch,
                "resumed": state is not None,
            }
        )

    def begin_step(self, epoch: int | None = None) -> None:
        """A batch begins.

        Args:
            epoch: The epoch it belongs to, from 0; by default the one after the last `end_epoch`.
        """
        gate, plan, at = self._require_gate(), self._require_plan(), self._at
        self._shards.close()
        if not self._stepped_into:
            self._choose_again()
            self._begin_witness()
        self._begun = self._stepped_into = True
        if plan.begin_window(at, at.epoch if epoch is None else epoch):
            self._decide()
            self._say_why()
        for lane in gate.lanes:
            if plan.rated or lane.leaves_out or lane.early:
                lane.merge()  # after a step that failed, and that the model has survived
        if self._sets is not self._watched_sets:
            self._follow()
        if self._state.stale:
            self._state.stale = False
            self._put_away(unit for unit in self._all_units() if unit.frozen(self._sets))
        if self.backward.skips and not self._skipping:
            self._skip_frozen()
        if self._eval:
            self._modes.hold([module for _, module in self._frozen_modules()])

    def may_train(self, group: str) -> bool:
        """Whether the coming step may train a group, or any group of a family.

        Raises:
            SelectionError: There is no such group; the message offers the nearest.
        """
        names = self.groups.families.get(group, (group,))
        known = [*self.groups.members, *self.groups.families]
        if group not in known:
            close = nearest(group, known) or known
            raise SelectionError(f"there is no group {group!r}. Nearest: {', '.join(map(repr, close))}.")
        return not self.trainable.isdisjoint(names)

    def before_backward(self, loss: object) -> None:
        """Before each backward: let one whose loss depends on nothing that trains go through, and update nothing.

        So it would without skipping, where it makes gradients of frozen parameters alone, which are emptied. It is warned
        of once; torch would say that an element of the loss "does not require grad".

        Args:
            loss: What is about to be derived.
        """
        if not self._skip.holds or not isinstance(loss, Tensor) or loss.requires_grad:
            return
        loss.requires_grad_()
        if self._warned_of_loss:
            return
        self._warned_of_loss = True
        place = self._require_plan().where(self._at)
        frozen = sorted(self._freezable.keys() - self.trainable)
        warnings.warn(
            f"a loss, after {self._at.total} updates in epoch {self._at.epoch}, depends on nothing that trains now"
            f"{f' ({place})' if place else ''}, so its backward updates nothing: trainable are "
            f"{folded(self.trainable, self.groups.members)}; frozen are {folded(frozen, self.groups.members)}. If it is to "
            "update something, put a group that it depends on into the phase. If it does depend on what trains, an autograd "
            "function of its own hands on no gradient above a frozen bottom: set `skip_backward: false`.",
            stacklevel=2,
        )

    def explain(self, error: BaseException) -> None:
        """Add a note to an error of torch's that comes from skipping.

        Args:
            error: What a step raised.
        """
        if self._skip.holds and isinstance(error, RuntimeError) and "does not require grad" in str(error):
            frozen = folded(sorted(self._freezable.keys() - self.trainable), self.groups.members)
            error.add_note(
                f"freeze: {frozen} are frozen now, and have requires_grad=False meanwhile. Code that asks for their gradients "
                "itself (`torch.autograd.grad`) needs `skip_backward: false`."
            )

    def after_backward(self) -> None:
        """After each backward: frozen parameters are told to DDP, and emptied under a GradScaler.

        There an infinity in a frozen gradient must not skip the active step. An optimizer that is frozen as a whole is left
        its gradients until its step, since a scaler fails that finds none.
        """
        if self._skip.tells:
            self._skip.tell()
        for lane in self._require_gate().lanes:
            if lane.training:
                lane.hold()

    def before_optimizer_step(self, optimizer: object, clipped: bool = True) -> None:
        """Before clipping: empty the frozen gradients of the optimizer that is about to step.

        Args:
            optimizer: The optimizer, or Lightning's wrapper around it.
            clipped: Whether clipping follows. Where not, and backward made no frozen gradients, one parameter of each group
                tells whether somebody else did; all of them are emptied right before the step in either case.
        """
        lane = self._require_gate().lane(optimizer)
        if lane is not None:
            lane.attempted = True
            self._state.ready()  # whoever comes next may look at it
            if clipped or not self._skipping or lane.bypassed(everywhere=False):
                lane.hold()

    @property
    def awaits(self) -> str | None:
        """The metric that is to end the present phase, where one is."""
        return self._plan.awaits(self._at) if self._plan is not None else None

    @property
    def unheard(self) -> str | None:
        """The metric for which the last epoch's end still waits, because it was not logged by then."""
        return self._at.unheard

    @property
    def unlogged(self) -> dict[str, str]:
        """Those of `metrics` that were not logged so far, in this fit or in one that it goes on from."""
        return {metric: key for metric, key in self.metrics.items() if metric not in self._logged}

    def hear(self, metrics: Mapping[str, float]) -> None:
        """Metrics were logged: in the epoch, or right after its end, before the next epoch's first step.

        Args:
            metrics: Name to value, of those that end phases; others are passed over.
        """
        heard = {name: value for name, value in metrics.items() if name in self.metrics}
        self._logged.update(heard)
        if self._require_plan().hear(self._at, heard):
            self._decide()
        self._say_why()

    def compare_ranks(self, epoch: int | None = None) -> list[Finding]:
        """Whether all ranks stand at the same place of the schedule; they call it together.

        It is done at each epoch's end; and to be done where a metric, heard after that, may have ended a phase.

        Args:
            epoch: The epoch that has ended, by default the last.
        """
        difference = self._ranks.disagreement(self._place())
        if difference is None:
            return []
        at = self._at
        found = [place_apart(difference, max(0, at.epoch - 1) if epoch is None else epoch, at.total)]
        return self._found(found, together=False)  # all ranks have found the same

    def _place(self) -> dict[str, object]:
        """Where the run stands, as all ranks must."""
        return {"trainable": [sorted(groups) for groups in self._sets], **self._at.as_dict()}

    @staticmethod
    def _refuse_apart(when: str, what: str, difference: str | None) -> None:
        """Refuse a run whose ranks would train different groups.

        Raises:
            ScheduleError: They would.
        """
        if difference is not None:
            raise ScheduleError(
                f"the ranks do not agree, {when}:\n{difference}\nThey would train different groups. Give all of them the "
                f"same: look at {what}."
            )

    def _say_why(self) -> None:
        if self._at.why:
            now = folded(self.trainable, self.groups.members)
            self._say(f"freeze, epoch {max(0, self._at.epoch - 1)}: {self._at.why}. Now training: {now}.")
            self._at.why = ""

    def end_epoch(self) -> list[Finding]:
        """A training epoch ended: the audits' findings of it."""
        plan, epoch = self._require_plan(), self._at.epoch
        self._shards.close()
        found: list[Finding] = []
        if self._witness is not None:
            self._state.ready()
            with self._swaps.as_trained():
                found = self._witness.end_epoch(epoch, self._at.total)
            found += self._stalled(epoch)
        found = self._epoch_found(found, epoch)
        found += self.compare_ranks(epoch)
        self._epoch_length = self._at.total - self._steps.first
        self.flush()
        self._record(self.counts())
        plan.end_epoch(self._at)
        self._decide()
        self._say_why()
        self._begin_epoch()
        self.pause()
        return found

    def finish(self) -> list[Finding]:
        """The fit ends: a last comparison, also of the state that is in host memory, group by group."""
        if self._witness is not None:
            for unit in self._all_units():
                if any(map(self._state.away, unit.parameters)):
                    self._state.thaw(self._held_by_lanes([unit]))
                    self._state.ready()
                    self._witness.thaw(unit.watched, self._at.total)
                    self._state.freeze(self._held_by_lanes([unit]))
        return super().finish()

    def _compare(self) -> list[Finding]:
        self._state.ready()  # flags that were made beside the step's own work
        with self._swaps.as_trained():
            return super()._compare()

    def __enter__(self) -> FreezeController:
        """For ``with controller:``, which undoes everything at the block's end, also after an exception."""
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    def pause(self) -> None:
        """Until the next batch, nothing is skipped: validation finds every ``requires_grad`` as the user left it."""
        self._skip.release()
        self._skipping = False

    def flush(self) -> None:
        """Record the steps made since the last epoch's end."""
        self._record({"type": "phase", "epoch": self._at.epoch, **self._steps.as_dict()})
        self._steps = Steps(self._at.total)

    def detach(self, bring_back: bool = True) -> None:
        """Undo everything: hooks, modes, ``requires_grad``, optimizer state that was moved.

        Counts, findings and `state_dict` stay readable. Safe to call again.

        Args:
            bring_back: Whether optimizer state in host memory comes back to its device, as far as that has room for it.
        """
        self.pause()
        self._reentrant.detach()
        self._state.detach(bring_back)
        self._swaps.detach()
        if self._gate is not None:
            self._gate.detach()
        self._modes.release()
        # Nothing here keeps a finished run's optimizers, and so their state, alive.
        self._gate = self._witness = None
        self._units.clear()
        self._modules.clear()

    # --- what will be -----------------------------------------------------------------------------------------------

    def preview(
        self,
        windows_per_epoch: int | Callable[[int], int],
        *,
        windows: int | None = None,
        start: Position | None = None,
        epoch: int | None = None,
        done: int = 0,
        order: Sequence[int] | None = None,
        metrics: Mapping[int, Mapping[str, float]] | None = None,
    ) -> Iterator[Step]:
        """The optimizer steps to come from where the run stands, by the code that the run itself asks.

        Args:
            windows_per_epoch: Optimizer windows (a batch, or an accumulation of several) in an epoch, or a function from
                an epoch to that.
            windows: How many windows to foresee; without end by default.
            start: Where to begin; by default where the run stands.
            epoch: The epoch that the next window belongs to; by default the one that the run is in.
            done: Windows that this epoch has had.
            order: The optimizers in the order in which a window steps them; by default as they were attached.
            metrics: Epoch to the metrics logged in it, for phases that end by one.
        """
        plan = self._require_plan()
        lanes = tuple(lane.index for lane in self._require_gate().lanes) if order is None else order
        return preview(
            plan, windows, windows_per_epoch, lanes, start or self._at, epoch=epoch, done=done, metrics=metrics
        )

    def position(self) -> Position:
        """A copy of where the run stands in its schedule."""
        return self._at.copy()

    def sizes(self) -> tuple[dict[str, Size], list[str]]:
        """What each group asks of memory, and the optimizers of which it cannot be said what state they will hold."""
        state: dict[int, int] = {}
        unknown: list[str] = []
        for lane in self._require_gate().lanes:
            held = [parameter for parameters in lane.members.values() for parameter in parameters]
            for parameter, found in zip(held, state_bytes(lane.optimizer, held), strict=True):
                state[id(parameter)] = state.get(id(parameter), 0) + (found or 0)
                if found is None and (name := type(lane.optimizer).__qualname__) not in unknown:
                    unknown.append(name)
        sizes = {
            group: Size(
                sum(m.parameter.numel() for m in members),
                sum(m.parameter.numel() * m.parameter.element_size() for m in members),
                sum(state.get(id(m.parameter), 0) for m in members),
            )
            for group, members in self.groups.members.items()
        }
        return sizes, unknown

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as builtins alone."""
        return {
            "version": _STATE_VERSION,
            "schedule": self.schedule.describe(),
            "groups": self.groups.names(),
            "rest": self.groups.rest,
            "optimizers": self._held_groups,
            "position": self._at.as_dict(),
            "steps": self._steps.as_dict(),
            "epoch_updates": dict(self._epoch_updates),
            "logged": sorted(self._logged),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a checkpoint was made.

        Raises:
            ScheduleError: It was made under another schedule or with other groups; the message shows the difference.
        """
        if state.get("version") != _STATE_VERSION:
            raise ScheduleError(
                f"the checkpoint's freeze state has version {state.get('version')!r}; this release reads "
                f"{_STATE_VERSION}. Resume with the release of lightning-freeze that wrote it."
            )
        differences = [
            f"{found}:\n{_difference(state[what], mine)}"
            for what, found, mine in (
                ("schedule", "another schedule", self.schedule.describe()),
                ("groups", "other groups", self.groups.names()),
                ("rest", "another `rest`", self.groups.rest),
                ("optimizers", "optimizers that hold other groups", self._held_groups),
            )
            if state[what] != mine
        ]
        if differences and self._on_change == "raise":
            raise ScheduleError(
                f"the checkpoint was made under {differences[0]}\nso its counts mean something else here. Resume with the "
                "checkpoint's own; or go on with its counts and its place in the schedule, by "
                "`on_schedule_change: continue`; or begin a new run from its weights alone (load_from_checkpoint, then fit "
                "without ckpt_path)."
            )
        position = Position.from_dict(state["position"])
        position.unheard = None  # what was not logged by then will not be
        self._logged = set(state.get("logged", ()))
        if differences:
            self._carry_over(position)
        if differences and not self._continued:  # a state is read again when training starts
            self._continued = True
            warnings.warn(
                f"the checkpoint was made under {' and '.join(differences)}\nBy `on_schedule_change: continue` the run goes on"
                f" with its counts: {', '.join(f'{group} {count}' for group, count in position.updates.items())}; "
                + (f"it goes on at {place}; " if (place := self._require_plan().where(position)) else "")
                + f"what trains next: {', '.join(sorted(self._require_plan().trainable(position)))}.",
                stacklevel=2,
            )
        self._at = position
        self._steps = Steps.from_dict(state["steps"])
        self._epoch_updates = {group: state["epoch_updates"].get(group, 0) for group in position.updates}
        self._rates = None
        self._decide()

    def _warn_of_lost_value(self, epoch: int) -> None:
        """Say that an epoch's value of a metric is lost to a checkpoint that was saved just before it was logged."""
        if self._at.epoch < epoch and self.awaits is not None and self.awaits not in self._at.heard:
            warnings.warn(
                f"the checkpoint was saved after the last batch of epoch {self._at.epoch} and before {self.awaits!r} was "
                f"logged, and Lightning goes on with epoch {epoch}: the phase that waits for it does without the value of "
                "that epoch. Checkpoints of after validation, or of the epoch's end, have it.",
                stacklevel=2,
            )

    def _carry_over(self, position: Position) -> None:
        """Fit a position that was made under another schedule, or other groups, to this one."""
        plan = self._require_plan()
        fresh = plan.start(position.epoch).updates
        position.updates = {group: position.updates.get(group, count) for group, count in fresh.items()}
        position.thawed = {group: count for group, count in position.thawed.items() if group in fresh}
        lanes = range(len(self._require_gate().lanes))
        position.done = {lane: count for lane, count in position.done.items() if lane in lanes}
        plan.settle(position)

    # --- inside -----------------------------------------------------------------------------------------------------

    @property
    def _freezable(self) -> dict[str, Sequence[Member]]:
        """The groups that can be frozen, with ``rest`` where it is."""
        members = self.groups.members
        return {group: members[group] for group in members if group != REST or self.groups.rest == "freeze"}

    def _begin_witness(self) -> None:
        """Remember the bits that are to move, once everything is loaded."""
        if self._witness is not None and not self._witness.begun:
            self._witness.begin()

    def _choice(self, around: Circumstances) -> Choice:
        groups = {id(m.parameter): group for group, members in self._freezable.items() for m in members}
        return choose(self._skip_asked, around, self._require_plan().sets(), groups)

    def _choose_again(self) -> None:
        """Before the first step: code that was compiled since is counted, too, and the sizes of batches."""
        around, regions = self._around, compiled(self._module).keys()
        if self.backward.skips and around is not None and (regions != self._regions or (regions and self._uneven)):
            self.backward = self._choice(replace(around, uneven=self._uneven))
            if not self.backward.skips:
                self._say(f"freeze: the backward work of frozen groups is not skipped after all: {self.backward.why}.")

    def _learn(self, lane: Lane, closures: bool | None) -> None:
        """What its optimizer does to what is frozen, and so how it is held.

        Raises:
            UnsupportedError: It cannot be.
        """
        plan, freezable = self._require_plan(), lane.members.keys() & self._freezable.keys()
        forever = {REST} if self.groups.rest == "freeze" else set()
        if not freezable or (plan.never_freezes() and not freezable & forever):
            return
        self.traits[lane.index] = traits = probe_optimizer(lane.optimizer, closures)
        late = sorted(freezable - plan.trains(plan.start(), lane.index) - forever)
        way = way_of(traits, lane.index, late=late, idle=plan.may_idle(lane.index), audited=self._audit)
        lane.leaves_out, lane.early = way == "left out", traits.reads_early
        if way == "left out":
            self._say(
                f"freeze: optimizer {lane.index} ({traits.name}) is not held by an empty gradient "
                f"({traits.reasons['skips_none']}): what is frozen is left out of its param groups for each step, too."
            )
        elif way == "unknown":
            warnings.warn(
                f"optimizer {lane.index} ({traits.name}) could not be probed: {traits.why}. Whether it holds a parameter "
                "still whose gradient is None is not known before training: the audit tells at the epoch's end. To know it "
                "before, use an optimizer of torch.optim.",
                stacklevel=3,
            )

    def _warn_of_clocks(self, windows_per_epoch: int) -> None:
        """Say what the clocks of param groups, which run on while a group is frozen, do to the first update after that."""
        for lane in self._require_gate().lanes:
            traits = self.traits.get(lane.index)
            if traits is None or not traits.clocks or traits.skips_none is None:
                continue
            coming = self.preview(windows_per_epoch, windows=_FORESEEN)
            interval = longest_interval(
                coming, lane.index, lane.members.keys() & self._freezable.keys(), self._at.updates
            )
            if interval is None:
                continue
            ratio = first_update(
                lane.optimizer,
                interval.before,
                interval.length,
                closure=self._closures,
                leaves_out=lane.leaves_out,
                early=lane.early,
            )
            if ratio is None or abs(ratio - 1) <= _ALIKE:
                continue
            warnings.warn(
                f"optimizer {lane.index} ({traits.name}) keeps {', '.join(traits.clocks)} for a whole param group, and goes on "
                f"with it while a part of the group is frozen: after the longest planned interval (`{interval.group}` is frozen "
                f"for {interval.length} updates, after {interval.before} of its own) the first update is {ratio:.2f} times as "
                "large as it would be without the interval, in a run on small parameters. Where that matters, let a phase "
                "begin with a `ramp`, or use an optimizer that counts for each parameter (torch's AdamW does).",
                stacklevel=3,
            )

    def _held_by(self, optimizer: Optimizer) -> dict[str, tuple[nn.Parameter, ...]]:
        mine = held_by(optimizer)
        held = {
            group: tuple(m.parameter for m in members if id(m.parameter) in mine)
            for group, members in self.groups.members.items()
        }
        return {group: parameters for group, parameters in held.items() if parameters}

    def _rebind(self) -> None:
        """An optimizer was given other parameters during the fit: sort them in, at the position where the run is."""
        lanes = self._require_gate().lanes
        self._state.thaw(self._held_by_lanes(self._all_units()))  # its intervals are closed below
        self._state.ready()
        optimizers = [lane.optimizer for lane in lanes]
        self._plan = self.schedule.bind(self.groups.layout(optimizers))
        for lane in lanes:
            lane.rebind(self._held_by(lane.optimizer))
        self._rates = None
        if self._witness is not None:
            self._witness.rebind(optimizers)
            for units in self._units.values():
                for unit in units:
                    self._witness.thaw(unit.watched, self._at.total)
        self._make_units()
        self._modules.clear()
        self._sets = self._watched_sets = ()
        self._decide()

    def _decide(self) -> None:
        """What trains now, from the plan; told to the optimizers' lanes. The audit follows with the next step."""
        plan, lanes = self._require_plan(), self._require_gate().lanes
        if not self._over and plan.ran_out(self._at):
            self._over = True
            last = ", ".join(sorted(plan.trainable(self._at)))
            self._say(
                f"freeze: the schedule has run out after {self._at.total} updates; its last set stays trainable: {last}."
            )
        sets = tuple([plan.trains(self._at, lane.index) for lane in lanes])
        self._steady_until = self._at.total + plan.steady_for(self._at)
        if plan.rated and (rates := plan.rates(self._at)) != self._rates:
            self._rates = rates
            for lane in lanes:
                lane.rate(rates)
        if sets == self._sets:
            return
        self._sets = sets
        for lane, groups in zip(lanes, sets, strict=True):
            lane.train(groups)

    def _make_units(self) -> None:
        """Sort what can be frozen by group and by the optimizers that hold it."""
        lanes, witness = self._require_gate().lanes, self._witness
        held = [{id(p) for parameters in lane.members.values() for p in parameters} for lane in lanes]
        for group, members in self._freezable.items():
            alike: dict[tuple[int, ...], list[Member]] = {}
            for m in members:
                alike.setdefault(tuple(i for i, mine in enumerate(held) if id(m.parameter) in mine), []).append(m)
            self._units[group] = [
                _Unit(
                    group,
                    holders,
                    tuple(m.parameter for m in found),
                    {id(m.parameter): witness.watched(m.name, m.group, m.parameter) for m in found} if witness else {},
                )
                for holders, found in alike.items()
            ]

    def _follow(self) -> None:
        """Make it so, and let the audit see it: what thaws gets its state and its gradients back, what freezes loses them.

        An interval of the audit is closed when the state is back, and opened before it is moved.
        """
        before, now = self._watched_sets, self._sets
        self._watched_sets = now
        changed = frozenset().union(*map(frozenset.symmetric_difference, before, now)) if before else self._units
        units = [unit for group in changed for unit in self._units.get(group, ())]
        freezes = [unit for unit in units if unit.frozen(now)]
        thaws = [unit for unit in units if not unit.frozen(now)]
        state = self._state
        state.thaw(self._held_by_lanes(thaws))
        if state.mode == "reset":
            self._put_away(freezes)
        if self._witness is not None:
            with self._swaps.as_trained():
                self._watch(freezes, thaws)
        if state.mode == "offload":
            self._put_away(freezes)
        if self._skipping:
            self._skip.thaw(p for unit in thaws for p in unit.parameters)
            self._skip.freeze(p for unit in freezes for p in unit.parameters)
            self._shards.settle()

    def _still(self) -> set[int]:
        """The identities of what is frozen, by the set that the audit follows or by the coming one."""
        sets = [each for each in (self._watched_sets, self._sets) if each]
        units = [unit for unit in self._all_units() if any(map(unit.frozen, sets))]
        return {id(p) for unit in units for p in unit.parameters}

    def _watch(self, freezes: Iterable[_Unit], thaws: Iterable[_Unit]) -> None:
        """Let the audit follow: close the intervals of what thaws, open those of what freezes."""
        assert self._witness is not None
        keys = chain.from_iterable(unit.watched for unit in thaws)
        self._witness.thaw(keys, self._at.total, self._state.beside())
        self._witness.freeze({key: each for unit in freezes for key, each in unit.watched.items()}, self._at.total)
        self._watch_buffers()

    def _skip_frozen(self) -> None:
        """From here on backward makes no gradients of what is frozen now."""
        self._shards.close()
        self._skip.thaw(p for unit in self._all_units() if not unit.frozen(self._sets) for p in unit.parameters)
        self._skip.freeze(p for unit in self._all_units() if unit.frozen(self._sets) for p in unit.parameters)
        self._shards.settle()
        self._skipping = True

    def _all_units(self) -> Iterator[_Unit]:
        return chain.from_iterable(self._units.values())

    def _held_by_lanes(self, units: Iterable[_Unit]) -> Iterator[Held]:
        lanes = self._require_gate().lanes
        return ((lanes[lane].optimizer, p) for unit in units for lane in unit.lanes for p in unit.parameters)

    def _put_away(self, units: Iterable[_Unit]) -> None:
        """Drop the optimizer state of what is frozen, or move it, but not of what trains again within a few updates."""
        soon: frozenset[str] = frozenset()
        if self._state.mode == "offload":  # as if every group found its gradients, and epochs were as long as the last
            length, made = self._epoch_length or _NO_END, self._at.total - self._steps.first
            lanes = len(self._require_gate().lanes)
            coming = self.preview(lambda epoch: -(-length // lanes), windows=-(-SHORTEST // lanes), done=made // lanes)
            soon = soon.union(*(step.trained for step in coming))
        self._state.freeze(self._held_by_lanes(unit for unit in units if unit.group not in soon))

    def _watch_buffers(self) -> None:
        if self._witness is not None and self._has_buffers:
            self._witness.hold_buffers(buffers_of(self._frozen_modules()), self._at.total)

    def _frozen_modules(self) -> list[tuple[str, nn.Module]]:
        """The modules that lie in a subtree whose parameters are all frozen now."""
        modules = self._modules.get(self._sets)
        if modules is None:
            if len(self._modules) >= _KEPT_SETS:
                self._modules.clear()
            frozen = {
                id(parameter): unit.frozen(self._sets) for unit in self._all_units() for parameter in unit.parameters
            }
            own = self._own
            modules = frozen_modules(self._module, lambda p: None if id(p) in own else frozen.get(id(p), False))
            self._modules[self._sets] = modules
        return modules

    def _before_step(self, lane: Lane) -> None:
        if not self._stepped_into and lane.derived:
            raise RuntimeError(_NOT_BEGUN + "phases that count epochs, and skipped backward work, begin with it.")
        if self._sets is not self._watched_sets:
            if self._skipping and not self._by_hand and self._watched_sets:
                raise RuntimeError(
                    _NOT_BEGUN + "what trains now has no gradient of a backward that was skipped for others."
                )
            self._follow()
        self._state.ready()
        if self._skip.tells and lane.derived:
            self._skip.insist()

    def _after_step(self, lane: Lane, updated: frozenset[str], bypassed: Sequence[nn.Parameter]) -> None:
        # The witness is told what is new to it: most steps are like the one before.
        like = (lane.training, updated)
        if self._witness is not None and (bypassed or like != self._told):
            self._told = like
            self._witness.stepped(lane.training, updated, bypassed, self._at.total)
        if updated:
            self._steps.add(lane.index, updated)
            self._require_plan().update(self._at, lane.index, updated)
            if self._at.total > self._steady_until:
                self._decide()
            if self._sets is not self._watched_sets:
                if self._eval:
                    self._modes.hold([module for _, module in self._frozen_modules()])
                if self._skipping and self._by_hand:  # the next forward may come within this very batch
                    self._skip_frozen()

    def _begin_epoch(self) -> None:
        super()._begin_epoch()
        self._told = None
        for lane in self._require_gate().lanes:
            lane.attempted = False
        # A module may have got its first buffer since.
        self._has_buffers = any(True for _ in self._module.buffers())
        if self._watched_sets:
            self._watch_buffers()

    def _stalled(self, epoch: int) -> list[Finding]:
        if not self._begun:
            return []  # a run resumed from a checkpoint of after the epoch's last batch
        waits = self._require_plan().waits_for(self._at)
        idle = {lane.index: lane for lane in self._require_gate().lanes if lane.index in waits and not lane.attempted}
        return stalled(
            {index: type(lane.optimizer).__qualname__ for index, lane in idle.items()},
            epoch,
            {index: [group for group in lane.members if group != REST] for index, lane in idle.items()},
        )

    def _require_plan(self) -> Plan:
        if self._plan is None:
            raise RuntimeError("the controller is not attached: call attach(*optimizers) before the first step.")
        return self._plan

    def _require_gate(self) -> Gate:
        if self._gate is None:
            raise RuntimeError("the controller is not attached: call attach(*optimizers) before the first step.")
        return self._gate


def _difference(theirs: object, mine: object) -> str:
    """What differs between two parts of a configuration, in lines as one would write them in YAML."""
    before, after = (
        yaml.safe_dump(what, default_flow_style=None, sort_keys=False, width=10_000).splitlines()
        for what in (theirs, mine)
    )
    lines = difflib.unified_diff(before, after, "checkpoint", "this run", lineterm="", n=1)
    return "\n".join(line for line in lines if not line.startswith("@@"))
