"""The index: which optimizer holds which parameter of which group, and what differs between two trainable sets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_freeze import SelectionError
from lightning_freeze.plan.groups import group_parameters
from lightning_freeze.plan.membership import MANY, Membership, OptimizerIndex, Step
from lightning_freeze.plan.schedule import REST


def model_of(*names: str) -> Any:
    return nn.ModuleDict({name: nn.Linear(2, 2) for name in names})


def sgd(*modules: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for module in modules for p in module.parameters()], lr=0.1)


def membership(rest: Any = "train") -> tuple[Any, Membership]:
    """`shared` is in both optimizers, `c` in no group."""
    model = model_of("shared", "a", "b", "c")
    groups = group_parameters(model, {"shared": "shared", "a": "a", "b": "b"}, rest)
    optimizers = [sgd(model["shared"], model["a"]), sgd(model["shared"], model["b"], model["c"])]
    return model, Membership(model, groups, optimizers)


@pytest.mark.parametrize(("rest", "trains"), [("train", True), ("freeze", False)])
def test_a_layout_says_which_optimizer_holds_which_group(rest: Any, trains: bool) -> None:
    _, index = membership(rest)
    assert index.layout.groups == ("shared", "a", "b")
    assert index.layout.optimizers == {"shared": {0, 1}, "a": {0}, "b": {1}, REST: {1}}
    assert index.layout.rest_trains is trains
    assert set(index.groups.freezable) == {"shared", "a", "b", *([REST] if rest == "freeze" else [])}


def test_a_rest_in_no_optimizer_does_not_train() -> None:
    model = model_of("a", "b")
    assert Membership(model, group_parameters(model, {"g": "a"}), [sgd(model["a"])]).layout.rest_trains is False


def test_a_group_outside_every_optimizer_is_refused() -> None:
    model = model_of("a", "b")
    with pytest.raises(SelectionError) as caught:
        Membership(model, group_parameters(model, {"g": "a"}), [sgd(model["b"])])
    assert str(caught.value).startswith(
        "'a.weight' of group 'g' is in no optimizer (and 1 more of the group), so no schedule can train it. Give "
        "it to an optimizer in `configure_optimizers`"
    )


def names(params: Any) -> set[str]:
    return {member.name for member in params.members}


def test_what_two_optimizers_hold_is_frozen_where_neither_trains_it() -> None:
    _, index = membership("freeze")
    one = (frozenset({"shared"}), frozenset())
    other = (frozenset(), frozenset({"b"}))
    freezes, thaws = index.changes((), one)
    assert names(thaws) == {"shared.weight", "shared.bias"}
    assert names(freezes) == {f"{name}.{kind}" for name in "abc" for kind in ("weight", "bias")}
    freezes, thaws = index.changes(one, other)
    assert (names(freezes), names(thaws)) == ({"shared.weight", "shared.bias"}, {"b.weight", "b.bias"})
    assert index.changes(one, other)[0] is freezes, "changes are remembered by pair"
    held = [(type(optimizer), id(parameter)) for optimizer, parameter in freezes.held]
    assert len(held) == 4, "each parameter with each of its two optimizers"


def test_a_split_knows_what_is_frozen_and_its_modules() -> None:
    model, index = membership()
    split = index.split((frozenset({"a", REST}), frozenset({"b", REST})))
    assert names(split.frozen) == {"shared.weight", "shared.bias"}
    assert split.frozen_modules == [("shared", model["shared"])]
    assert names(split.frozen.without(frozenset({"shared"}))) == set()


@pytest.mark.parametrize("change", ["swapped", "added", "another group", "moved to the next group"])
def test_it_sees_that_an_optimizer_holds_other_parameters(change: str) -> None:
    _, index = membership()
    optimizer = index.holders.optimizers[0]
    assert not index.holders.changed(0)
    parameters = optimizer.param_groups[0]["params"]
    if change == "swapped":
        parameters[0] = nn.Parameter(torch.zeros(2, 2))
    elif change == "added":
        parameters.append(nn.Parameter(torch.zeros(1)))
    elif change == "another group":
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    else:
        last = parameters.pop()
        optimizer.add_param_group({"params": [last]})
    assert index.holders.changed(0)


def test_what_an_optimizer_is_given_later_is_sorted_in() -> None:
    model = model_of("a", "b")
    first, second = sgd(model["a"]), torch.optim.SGD([model["b"].weight, model["b"].bias], lr=0.3)
    index = Membership(model, group_parameters(model, {"a": "a", "b": "b"}), [first, second])
    first.add_param_group({"params": [model["b"].weight], "lr": 0.2})
    assert index.holders.changed(0)
    index.refresh()
    assert not index.holders.changed(0)
    assert index.layout.optimizers["b"] == {0, 1}
    assert index.steps[0].members["b"] == (model["b"].weight,)


def test_a_step_is_found_by_its_optimizer_or_a_wrapper_of_it() -> None:
    _, index = membership()
    optimizer = index.holders.optimizers[1]
    wrapper = type("Wrapper", (), {"optimizer": optimizer})()
    assert index.step_of(optimizer) is index.step_of(wrapper) is index.steps[1]
    assert index.step_of(object()) is None


def test_the_learning_rate_of_a_parameter() -> None:
    first, second, outside = (nn.Parameter(torch.zeros(1)) for _ in range(3))
    holders = OptimizerIndex([torch.optim.SGD([{"params": [first], "lr": 0.5}, {"params": [second]}], lr=0.1)])
    assert [holders.rate(p) for p in (first, second, outside)] == [0.5, 0.1, 1.0]


def test_one_gradient_in_a_group_is_enough() -> None:
    first, second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    step = Step(0, torch.optim.SGD([first, second], lr=0.1), {"a": (first, second)})
    step.train(frozenset({"a"}))
    second.grad = torch.ones(1)
    step.note()
    assert step.updated == {"a"}
    second.grad = None
    step.note()
    assert step.updated == frozenset()


@pytest.mark.parametrize("place", [0, MANY, 2 * MANY + 5])
def test_a_list_is_compared_in_parts(place: int) -> None:
    """So many of it with each call, whatever other optimizers are compared meanwhile; without parts all at once."""
    made = [[nn.Parameter(torch.zeros(1)) for _ in range(size)] for size in (MANY, 2 * MANY + 6, 2 * MANY)]
    first, *others = (torch.optim.SGD([{"params": each} for each in (made[0], held)], lr=0.1) for held in made[1:])
    holders = OptimizerIndex([first, *others])
    assert not any(holders.changed(index, {1}) for _ in range(10) for index in range(2))
    first.param_groups[1]["params"][place] = nn.Parameter(torch.zeros(1))
    assert holders.changed(0)
    found = [[holders.changed(index, {1}) for index in range(2)] for _ in range(3)]
    assert [sum(each) for each in zip(*found, strict=True)] == [1, 0]
