"""Left out for a step, and put back as if nothing had been."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.optim import SGD, AdamW

from lightning_freeze.holds.param_groups import LeftOut


def parameters(count: int) -> list[nn.Parameter]:
    return [nn.Parameter(torch.full((2,), float(number))) for number in range(count)]


def test_lists_and_names_come_back_in_place_and_in_order() -> None:
    a, b, c = parameters(3)
    optimizer = SGD([{"params": [("a", a), ("b", b)]}, {"params": [("c", c)], "lr": 0.2}], lr=0.1)
    groups, lists = optimizer.param_groups, [group["params"] for group in optimizer.param_groups]
    before = copy.copy(groups), [list(each) for each in lists]

    left = LeftOut(optimizer, {id(a), id(c)})
    assert optimizer.param_groups is groups
    assert [[id(p) for p in group["params"]] for group in groups] == [[id(b)]]  # the second is out as a whole
    assert groups[0]["param_names"] == ["b"]
    left.put_back()

    assert optimizer.param_groups is groups
    assert groups == before[0]
    assert all(group["params"] is each for group, each in zip(groups, lists, strict=True))
    assert [[id(p) for p in each] for each in lists] == [[id(p) for p in each] for each in before[1]]
    assert [group["param_names"] for group in groups] == [["a", "b"], ["c"]]


def test_a_step_without_it_leaves_it_alone() -> None:
    a, b = parameters(2)
    optimizer = AdamW([a, b], lr=0.1)
    for p in (a, b):
        p.grad = torch.ones(2)
    before = a.detach().clone()
    left = LeftOut(optimizer, {id(a)})
    optimizer.step()
    left.put_back()
    assert torch.equal(a, before)
    assert a not in optimizer.state
    assert b in optimizer.state
