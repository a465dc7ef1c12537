"""What the user's own code moves: never frozen, trained, counted or audited, and a finding where nothing moved it."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lightning_freeze import (
    Every,
    FreezeAudit,
    FreezeController,
    FreezeScheduler,
    FreezeViolation,
    Phase,
    Phases,
    Pick,
    ScheduleError,
    SelectionError,
)
from lightning_freeze.audit.exempt import Exemptions, exempt_groups
from lightning_freeze.audit.ranks import Ranks
from lightning_freeze.audit.requires_grad import RequiresGradWatch
from lightning_freeze.holds.run_context import RunContext
from lightning_freeze.plan.groups import group_parameters
from lightning_freeze.report.findings import Finding
from tests.conftest import Net, batches

OWN = {"select": "teacher", "by": "user"}
TURNS = Phases([Phase(["net.0"], updates=1), Phase(["net.2"], updates=1)], repeat=True)
STALE = (
    "'{}' (by {}) is exempt from the audits, but kept every bit in the whole run. Remove the entry, so that the list"
)


class Student(nn.Module):
    """A network and a copy of it that follows."""

    def __init__(self, averaged: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
        average = get_ema_multi_avg_fn(0.9)
        self.teacher: Any = AveragedModel(self.net, multi_avg_fn=average) if averaged else copy.deepcopy(self.net)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.teacher(x)
        return self.net(x)  # type: ignore[no-any-return]


def averages(model: Student) -> None:
    for own, other in zip(model.teacher.parameters(), model.net.parameters(), strict=True):
        own.data.lerp_(other.data, 0.1)


def copies(model: Student) -> None:
    model.teacher.load_state_dict(model.net.state_dict())


def replaces(model: Student) -> None:
    model.teacher = copy.deepcopy(model.net)


def updates(model: Student) -> None:
    model.teacher.update_parameters(model.net)


def nothing(model: Student) -> None: ...


STATISTICS = {f"net.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
"""What moves where `net.1` is frozen, for information."""


MOVES = {"BYOL": averages, "DQN": copies, "a new copy": replaces, "AveragedModel": updates}


def trained(
    controller: FreezeController | RequiresGradWatch, model: Student, optimizer: Any, move: Callable[[Any], None]
) -> list[Finding]:
    for _ in range(4):
        controller.begin_step(0)
        optimizer.zero_grad()
        model(torch.randn(4, 2)).square().sum().backward()
        optimizer.step()
        move(model)
    return controller.end_epoch() + controller.finish()


def scheduled(model: Student, move: Callable[[Any], None], **options: Any) -> tuple[FreezeController, list[Finding]]:
    """A run under a schedule, after its end."""
    optimizer = torch.optim.AdamW(model.net.parameters(), lr=0.1)
    options = {"groups": {"teacher": OWN}, "schedule": TURNS, "frozen_modules": "eval", **options}
    with FreezeController(model, **options) as controller:
        controller.attach(optimizer)
        controller.begin()
        found = trained(controller, model, optimizer, move)
    return controller, found


# --- in a schedule


@pytest.mark.parametrize("rest", ["train", "freeze", "error"])
@pytest.mark.parametrize("kind", MOVES)
def test_a_group_by_user_is_nobody_s_business(kind: str, rest: Any) -> None:
    model = Student(kind == "AveragedModel")
    groups = {"teacher": OWN, "norm": "net.1"}
    controller, found = scheduled(model, MOVES[kind], groups=groups, rest=rest)
    assert found == []
    assert controller.updates == {"net.0": 2, "net.2": 2, "norm": 0}
    assert controller.total == 4
    assert not controller.may_train("norm")
    untouched = model.net if kind == "a new copy" else model  # a copy of what is held is held
    assert all(module.training for module in untouched.modules())
    assert all(parameter.requires_grad for parameter in untouched.parameters())


@pytest.mark.filterwarnings("ignore:this schedule never freezes anything")
def test_without_the_group_it_is_an_error_whose_message_holds_the_line_to_write() -> None:
    options: dict[str, Any] = {"schedule": Phases([Phase(["net"])]), "rest": "freeze"}
    _, found = scheduled(Student(True), updates, groups={}, **options)
    errors = [finding for finding in found if finding.severity == "error" and finding.audit == "frozen"]
    assert {finding.parameter for finding in errors} == {
        f"teacher.module.{n}" for n, _ in Student().net.named_parameters()
    }
    (line,) = {found for finding in errors for found in re.findall("write `groups: ({.*})`.", finding.message)}
    assert scheduled(Student(True), updates, groups=yaml.safe_load(line), **options)[1] == []


def test_what_is_beside_it_is_audited_and_what_nothing_moves_is_a_finding() -> None:
    def writes(model: Student) -> None:
        model.net[1].weight.data.add_(1)

    _, found = scheduled(Student(), writes, groups={"teacher": OWN, "norm": "net.1"})
    moved, stale = found
    assert (moved.severity, moved.parameter, moved.cause) == ("error", "net.1.weight", "outside")
    assert moved.message.endswith(
        "write `groups: {net.1.weight: {select: net.1.weight, by: user}}`, and `except: net.1.weight` in group `norm`."
    )
    assert (stale.audit, stale.kind, stale.severity, stale.group) == ("frozen", "stale", "warning", "teacher")
    assert stale.message.startswith(STALE.format("teacher", "user"))


@pytest.mark.filterwarnings("ignore:.*the elements that can train are in no group")
def test_a_run_that_was_resumed_or_has_no_audit_is_no_whole_run() -> None:
    model, optimizer = Student(), None
    controller, _ = scheduled(model, nothing)
    state = controller.state_dict()
    assert state["moved_by_user"] == {"teacher": [f"teacher.{name}" for name, _ in model.net.named_parameters()]}
    assert "teacher" not in state["groups"]
    optimizer = torch.optim.AdamW(model.net.parameters())
    with controller:
        controller.attach(optimizer)
        controller.begin(state=state)
        assert trained(controller, model, optimizer, nothing) == []
    assert scheduled(model, nothing, audit=False)[1] == []
    with FreezeController(model, TURNS, {"target": OWN}) as other:
        other.attach(optimizer)
        with pytest.raises(ScheduleError, match="under other groups with `by: user`:\n(.*\n)*-teacher: "):
            other.begin(state=state)
    with FreezeController(model, TURNS) as other:
        other.attach(optimizer)
        state = other.state_dict()
        assert "moved_by_user" not in state  # as an earlier release saved it
        other.begin(state=state)


def test_it_is_recorded_and_an_optimizer_that_holds_it_steps_it() -> None:
    records: list[Any] = []
    model = Student()
    before = model.teacher[0].weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with FreezeController(model, TURNS, {"teacher": OWN}, "freeze", record=records.append) as controller:
        controller.attach(optimizer)
        controller.begin()
        for _ in range(2):
            controller.begin_step()
            (model(torch.ones(2, 2)).sum() + model.teacher(torch.randn(2, 2)).square().sum()).backward()
            optimizer.step()
        assert {finding.parameter for finding in controller.end_epoch() + controller.finish()} == STATISTICS
    assert not torch.equal(before, model.teacher[0].weight)
    run = next(record for record in records if record["type"] == "run")
    assert (run["moved_by"], [*run["groups"]]) == ({"teacher": "user"}, ["net.0", "net.2", "rest"])


NAMED: dict[str, Any] = {
    "phases[0].train": Phases([Phase(["teacher"], updates=1), Phase(["all"])]),
    "phases[1].pick.family": Phases([Phase(["net"], updates=1), Phase([], pick=Pick("teacher", order="forward"))]),
    "phases[0].lr.teacher": Phases([Phase(["net"], lr={"teacher": 0.1}, updates=1), Phase(["all"])]),
    "periods": Every({"teacher": 2}, of="net"),
    "of": Every({"net": 2}, of="teacher"),
}


@pytest.mark.parametrize("key", NAMED)
def test_no_schedule_names_it(key: str) -> None:
    model = Student()
    text = f"`{key}` names 'teacher', which is `by: user` in `groups`: your own code moves it, and no schedule does."
    with (
        FreezeController(model, NAMED[key], {"net": "net", "teacher": OWN}) as controller,
        pytest.raises(ScheduleError, match=re.escape(text)) as raised,
    ):
        controller.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    assert raised.value.key == key


@pytest.mark.parametrize(
    ("selector", "text"),
    [
        ({"select": "teacher", "by": "optimizer"}, "group 't' has `by: optimizer`. Write `by: user` beside `select:`, for"),
        ({"each": "teacher.*", "by": "user"}, "group 't' has `by: user`. .*a family (`each:`) is scheduled"),
        ({"by": "user"}, "group 't' has `by: user`. Write `by: user` beside `select:`"),
        ([{"each": "teacher.*"}, {"by": "user"}], "group 't' has `by: user`. Write `by: user` beside `select:`"),
        ([{"each": "teacher.*"}, {"select": "net", "by": "user"}], "group 't' mixes `each:` with other selectors"),
        ({"select": "techer", "by": "user"}, "group 't': the selector 'techer' matches no parameter. Did you mean 'teacher', "),
    ],
)  # fmt: skip
def test_a_bad_group_is_refused(selector: Any, text: str) -> None:
    with pytest.raises(SelectionError, match=re.escape(text).replace(r"\.\*", ".*")):
        group_parameters(Student(), {"t": selector})


def test_what_the_user_froze_may_be_in_it_and_no_parameter_is_in_two_groups() -> None:
    model = Student()
    model.teacher.requires_grad_(False)
    found = group_parameters(model, {"net": "net", "teacher": OWN})
    assert (found.frozen_by_user, [*found.members], [*found.moved_by_user]) == ((), ["net"], ["teacher"])
    with pytest.raises(SelectionError, match=r"'teacher.0.weight' is in two groups: 'teacher' .* and 'more'"):
        group_parameters(model, {"teacher": OWN, "more": {"select": "teacher.0", "by": "user"}})


# --- under `FreezeAudit` alone


def audited(model: Student, move: Callable[[Any], None], exempt: Any, resumed: bool = False) -> list[Finding]:
    model.teacher.requires_grad_(False)
    records: list[Any] = []
    optimizer = torch.optim.AdamW(model.net.parameters(), lr=0.1)
    watch = RequiresGradWatch(model, suspects=(), record=records.append, exempt=exempt_groups(exempt))
    watch.attach(optimizer, run=RunContext(model, model))
    watch.begin(0, resumed)
    found = trained(watch, model, optimizer, move)
    watch.detach()
    assert records[0].get("moved_by", {}) == {f"exempt.{name}": f"user: {why}" for name, why in exempt.items()}
    return found


EXEMPT = {"teacher": "it follows the net"}


@pytest.mark.parametrize("kind", MOVES)
def test_what_is_exempt_may_move(kind: str) -> None:
    assert audited(Student(kind == "AveragedModel"), MOVES[kind], EXEMPT) == []


def test_and_what_is_not_is_an_error_whose_message_holds_the_line_to_write() -> None:
    model = Student()
    errors = [finding for finding in audited(model, copies, {}) if finding.severity == "error"]
    assert {finding.parameter for finding in errors} == {f"teacher.{name}" for name, _ in model.net.named_parameters()}
    assert all("write `FreezeAudit(exempt={'teacher': '<the reason>'})`." in finding.message for finding in errors)
    part = {"teacher.{0..1}": "these follow the net"}
    assert {f.parameter for f in audited(Student(), averages, part)} == {"teacher.2.weight", "teacher.2.bias"}


@pytest.mark.parametrize(("resumed", "count"), [(False, 1), (True, 0)])
def test_one_that_excused_nothing_is_a_finding_after_a_whole_run(resumed: bool, count: int) -> None:
    found = audited(Student(), nothing, EXEMPT, resumed)
    stale = [finding for finding in found if finding.kind == "stale"]
    assert len(stale) == count
    for finding in stale:
        assert finding.message.startswith(STALE.format("teacher", "user: it follows the net"))


class _Other(Ranks):
    """Another rank, on which another part moved."""

    def gathered(self, part: Tensor) -> list[Tensor]:
        return [part, torch.tensor([False, True])]


def test_what_moved_on_one_rank_did_move() -> None:
    model = Student()
    found = group_parameters(
        model, {"a": {"select": "teacher.0", "by": "user"}, "b": {"select": "teacher.2", "by": "user"}}
    )
    exemptions = Exemptions(model, found)
    assert exemptions.unmoved(Ranks()) == []  # nothing has begun
    exemptions.begin(whole=True)
    assert [finding.group for finding in exemptions.unmoved(Ranks())] == ["a", "b"]
    assert [finding.group for finding in exemptions.unmoved(_Other())] == ["b"]


BAD: dict[str, tuple[Any, type[ValueError], str, str | None]] = {
    "a list": (["teacher"], ScheduleError, "`exempt` is ['teacher'], but must map selectors to reasons: {'teacher':", "exempt"),
    "no reason": ({"teacher": None}, ScheduleError, "`exempt.teacher`: None is not a reason. Say in a sentence why your own code moves it", "exempt.teacher"),
    "an empty reason": ({"teacher": " "}, ScheduleError, "' ' is not a reason", "exempt.teacher"),
    "yes": ({"teacher": True}, ScheduleError, "True is not a reason", "exempt.teacher"),
    "no selector": ({"a..b": "why"}, SelectionError, "group 'exempt.a..b' has the selector 'a..b', in which a name is empty", None),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_exemption_is_refused_when_the_callback_is_made(name: str) -> None:
    exempt, kind, text, key = BAD[name]
    with pytest.raises(kind, match=re.escape(text)) as raised:
        FreezeAudit(exempt=exempt)
    assert getattr(raised.value, "key", None) == key


# --- in a Trainer


class Follows(Net):
    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Linear(4, 8, bias=False).requires_grad_(False)

    def on_train_batch_end(self, *_: Any) -> None:
        self.teacher.weight.data.lerp_(self.layer1.weight.data, 0.1)


@pytest.mark.parametrize("alone", [True, False])
def test_both_callbacks_take_exemptions(alone: bool, trainer: Any) -> None:
    def fit(model: pl.LightningModule, exempt: Any = EXEMPT) -> list[Finding]:
        audit = FreezeAudit(inputs=False, exempt=exempt)
        chosen: Any = audit if alone else FreezeScheduler(Every({"layer1": 2}, of="layer2"), rest="freeze", audit=audit)
        trainer(chosen).fit(model, batches(4))
        return list(chosen.findings)

    model = Follows()
    if not alone:
        model.teacher.requires_grad_(True)
    assert fit(model) == []
    with pytest.raises(SelectionError, match="group 'exempt.techer': the selector 'techer' matches no parameter"):
        fit(model, {"techer": "it follows the net"})
    with pytest.raises(FreezeViolation, match="'teacher.weight'"):
        fit(model, None)
    model.idle = nn.Linear(1, 1)
    with pytest.warns(UserWarning, match=r"'idle' .* kept every bit"):
        fit(model, EXEMPT | {"idle": "it does nothing"})


class _Alone(Ranks):
    """A process group of one, which compares copies all the same."""

    is_distributed = True  # type: ignore[assignment]
    world = 1  # type: ignore[assignment]

    def gathered(self, part: Tensor) -> list[Tensor]:
        return [part]


def test_copies_on_other_ranks_are_not_compared(monkeypatch: Any) -> None:
    compared: list[str] = []

    def copies_of(named: Any, *_: Any) -> dict[Any, Any]:
        compared.extend(name for name, _ in named)
        return {}

    monkeypatch.setattr("lightning_freeze.audit.run_audit.copies_of", copies_of)
    model = Student()
    optimizer = torch.optim.SGD(model.net.parameters(), lr=0.1)
    with FreezeController(model, TURNS, {"teacher": OWN}) as controller:
        controller.attach(optimizer)
        controller.audit.ranks = _Alone()
        controller.begin()
        trained(controller, model, optimizer, averages)
    assert compared == [f"net.{name}" for name, _ in model.net.named_parameters()]
