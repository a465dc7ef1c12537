"""What replaces an attribute goes with its last user, in whichever order they go, and leaves what others put over it."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock, call

import pytest
import torch
from torch import nn

from lightning_freeze.holds.backward import SkipBackward
from lightning_freeze.holds.eval_mode import EvalModes
from lightning_freeze.holds.hold import Hold
from lightning_freeze.holds.patch import Patch
from lightning_freeze.holds.step_hooks import StepHooks
from lightning_freeze.plan.groups import group_parameters
from lightning_freeze.plan.membership import Membership


class User:
    """Adds its name to what a call returns."""

    def __init__(self, name: str) -> None:
        self.name = name


class Owner:
    def names(self) -> str:
        return ""


def wrap(original: Callable[..., str], users: Callable[[], Iterator[User]]) -> Callable[..., str]:
    return lambda *arguments: original(*arguments) + "".join(user.name for user in users())


@pytest.fixture(params=["object", "class"])
def owner(request: Any) -> Any:
    return Owner() if request.param == "object" else type("Kind", (Owner,), {})


def called(owner: Any) -> str:
    return str((owner() if isinstance(owner, type) else owner).names())


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_users_go_in_any_order(owner: Any, order: tuple[int, ...]) -> None:
    users = [User(name) for name in "abc"]
    for user in users:
        Patch.of(owner, "names", wrap).add(user)
        Patch.of(owner, "names", wrap).add(user)  # a second time changes nothing
    assert called(owner) == "cba"
    for gone in order:
        assert "names" in vars(owner)
        Patch.of(owner, "names", wrap).discard(users[gone])
        assert users[gone].name not in called(owner)
    assert "names" not in vars(owner)


def test_what_the_owner_had_of_its_own_comes_back(owner: Any) -> None:
    def own(*arguments: Any) -> str:
        return "own "

    owner.names, user = own, User("a")
    patch = Patch.of(owner, "names", wrap)
    patch.add(user)
    assert called(owner) == "own a"
    patch.discard(user)
    assert vars(owner)["names"] is own


def test_a_mock_is_as_it_was() -> None:
    owner: Any = Mock(spec=Owner)
    Patch.of(owner, "names", lambda original, users: lambda: original()).add(user := User("a"))
    owner.names()
    Patch.of(owner, "names", wrap).discard(user)
    owner.names()
    assert owner.mock_calls == [call.names(), call.names()]


def test_what_others_put_over_it_stays_and_ours_passes_calls_on(owner: Any) -> None:
    patch, user = Patch.of(owner, "names", wrap), User("a")
    patch.add(user)
    ours = vars(owner)["names"]

    def theirs(*arguments: Any) -> str:
        return f"({ours(*arguments)})"

    owner.names = theirs
    assert called(owner) == "(a)"
    patch.discard(user)
    assert vars(owner)["names"] is theirs
    assert called(owner) == "()"
    patch.add(user)
    patch.discard(user)
    assert vars(owner)["names"] is theirs
    owner.names = ours  # they restore what they found
    patch.add(user)
    patch.discard(user)
    assert "names" not in vars(owner)


def test_a_forgotten_user_and_a_forgotten_owner_go() -> None:
    owner, user = Owner(), User("a")
    Patch.of(owner, "names", wrap).add(user)
    del user
    assert "names" not in vars(owner)
    owners: list[Any] = [Owner()]
    forgotten = User("a")
    Patch.of(owners[0], "names", wrap).add(forgotten)
    del owners[0]
    gc.collect()
    assert [each for each in gc.get_objects() if type(each) is Owner] == [owner]


# --- what holds share


@pytest.mark.parametrize("first", [0, 1])
def test_two_runs_that_hold_one_module_give_it_its_own_mode_back(first: int) -> None:
    module, runs = nn.Dropout(), [EvalModes(), EvalModes()]
    for run in runs:
        run.attach()
        run.hold([module])
    runs.pop(first).detach()
    assert not module.training, "the other still holds it"
    runs.pop().detach()
    assert module.training


@pytest.mark.parametrize("first", [0, 1])
def test_two_runs_that_need_plain_attention_leave_the_setting_as_it_was(first: int) -> None:
    runs = [SkipBackward(plain_attention=True) for _ in range(2)]
    for run in runs:
        run.turn_off(nn.Linear(1, 1).parameters())
    runs.pop(first).detach()
    assert not torch.backends.mha.get_fastpath_enabled()
    runs.pop().detach()
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("mine", [True, False])
def test_the_user_s_own_setting_of_attention_stays(mine: bool) -> None:
    run, before = SkipBackward(plain_attention=True), torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(mine)
        run.turn_off(nn.Linear(1, 1).parameters())
        run.detach()
        assert torch.backends.mha.get_fastpath_enabled() is mine
        run.turn_off(nn.Linear(1, 1).parameters())
        torch.backends.mha.set_fastpath_enabled(True)  # meanwhile
        run.detach()
        assert torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class Unhooked(torch.optim.SGD):
    """An optimizer whose constructor was not torch's, so that its steps run no hooks."""

    def __init__(self, params: Any) -> None:
        self.param_groups = [{"params": list(params), "lr": 0.1}]
        self.state: Any = {}
        self.steps = 0

    def step(self, closure: Any = None) -> Any:
        self.steps += 1


@pytest.mark.parametrize("first", [0, 1])
def test_two_runs_over_an_optimizer_without_hooks_restore_its_step(first: int) -> None:
    model = nn.Linear(1, 1)
    optimizer, seen = Unhooked(model.parameters()), [0, 0]

    def counting(number: int) -> Callable[[Any], None]:
        return lambda step: seen.__setitem__(number, seen[number] + 1)

    members = [Membership(model, group_parameters(model, {}), (optimizer,)) for _ in seen]
    runs = [StepHooks(m.steps, Hold(), before_holds=counting(n)) for n, m in enumerate(members)]
    for run in runs:
        run.attach()
    optimizer.step()
    runs.pop(first).detach()
    optimizer.step()
    assert seen == [1 + first, 2 - first], "each is called once for a step, while it is attached"
    runs.pop().detach()
    optimizer.step()
    assert seen == [1 + first, 2 - first]
    assert "step" not in vars(optimizer)
    assert optimizer.steps == 3
