"""The moved audit's verdicts, without a run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_freeze.audit.moved import MovedAudit, stalled
from lightning_freeze.plan.membership import Step
from lightning_freeze.plan.schedule import REST

G = frozenset({"g"})


def verdict(
    gradient: torch.Tensor | None, moves: bool, rate: float = 0.1, planned: bool = True, excused: bool = False
) -> list[Any]:
    weight = torch.nn.Parameter(torch.ones(2))
    audit = MovedAudit({"g": [("w", weight)]}, lambda p: rate, lambda p: excused)
    audit.begin_epoch()
    weight.grad = gradient
    if planned:
        audit.stepped(G, G if gradient is not None else frozenset())
    if moves:
        weight.data.add_(1)
    return [(f.kind, f.group, f.parameter, f.epoch) for f in audit.end_epoch(3)]


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"gradient": torch.ones(2), "moves": True}, None),
        ({"gradient": torch.ones(2), "moves": False}, "unmoved"),
        ({"gradient": torch.tensor([0.0, float("nan")]), "moves": False}, "unmoved"),
        ({"gradient": torch.zeros(2), "moves": False}, None),
        ({"gradient": torch.ones(2), "moves": False, "rate": 0.0}, None),
        ({"gradient": None, "moves": False}, "no_gradient"),
        ({"gradient": None, "moves": False, "planned": False}, None),
        ({"gradient": None, "moves": False, "excused": True}, None),
        ({"gradient": torch.ones(2).to_sparse(), "moves": False}, "unmoved"),
    ],
)
def test_verdicts(arguments: dict[str, Any], kind: str | None) -> None:
    assert verdict(**arguments) == ([(kind, "g", "w", 3)] if kind else [])


def test_an_epoch_without_a_turn_is_no_finding_and_the_next_starts_over() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    audit = MovedAudit({"g": [("w", weight)]}, lambda p: 0.1)
    audit.begin_epoch()
    weight.grad = torch.ones(2)
    audit.stepped(G, G)
    weight.data.add_(1)
    assert audit.end_epoch(0) == []
    assert audit.end_epoch(1) == []
    audit.stepped(G, G)
    assert [f.kind for f in audit.end_epoch(2)] == ["unmoved"]


@pytest.mark.parametrize(("first_batch", "kinds"), [(True, []), (False, ["unmoved"])])
def test_what_is_restored_between_two_epochs_moved_all_the_same(first_batch: bool, kinds: list[str]) -> None:
    """It is compared with the bits before the epoch's first batch, not with those at the end of the epoch before."""
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.ones(2)
    audit = MovedAudit({"g": [("w", weight)]}, lambda p: 0.1)
    audit.begin_epoch()
    weight.data.add_(1)
    audit.stepped(G, G)
    assert audit.end_epoch(0) == []
    weight.data.zero_()
    if first_batch:
        audit.begin_epoch()
    weight.data.add_(1)
    audit.stepped(G, G)
    assert [f.kind for f in audit.end_epoch(1)] == kinds


def test_many_parameters_make_one_finding_with_the_count() -> None:
    weights = [(f"w{n}", torch.nn.Parameter(torch.ones(1))) for n in range(8)]
    for _, weight in weights:
        weight.grad = torch.ones(1)
    audit = MovedAudit({"g": weights}, lambda p: 0.1)
    audit.begin_epoch()
    audit.stepped(G, G)
    weights[3][1].data.add_(1)
    (found,) = audit.end_epoch(0)
    assert found.message.startswith("7 of 8 parameters of group 'g' kept every bit in epoch 0")
    assert "'w0', 'w1', 'w2', 'w4', 'w5' and 2 more" in found.message


def test_stalled_names_the_optimizer_and_what_it_holds() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    found = stalled(Step(1, torch.optim.Adam([weight]), {"generator": (weight,), REST: (weight,)}), 2)
    assert (found.kind, found.severity, found.group) == ("stalled", "warning", "generator")
    assert found.message.startswith("optimizer 1 (Adam), which holds 'generator', was never stepped in epoch 2")


@pytest.mark.parametrize(
    ("gradient", "kinds"), [(torch.zeros(1), []), (torch.ones(1), ["unmoved"]), (None, ["no_gradient"])]
)
def test_a_gradient_of_a_later_step_counts(gradient: torch.Tensor | None, kinds: list[str]) -> None:
    """Of a group over two optimizers, the second's parameters have none when the first steps."""
    first, second = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    audit = MovedAudit({"g": [("first", first), ("second", second)]}, lambda p: 0.1)
    audit.begin_epoch()
    first.grad = torch.ones(1)
    audit.stepped(G, G)
    first.data.add_(1)
    first.grad, second.grad = None, gradient
    audit.stepped(G, G, optimizer=1)
    found = audit.end_epoch(0)
    assert [f.kind for f in found] == kinds
    assert {f.parameter for f in found} <= {"second"}
