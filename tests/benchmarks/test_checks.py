"""A contestant that trains the wrong thing is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.benchmarks.checks import WrongTraining, below, check_moved, check_same, same_bits, weights


@pytest.fixture
def model():
    return nn.Sequential(*(nn.Linear(2, 2) for _ in range(11)))


def test_weights_are_copies(model):
    before = weights(model)
    with torch.no_grad():
        model[1].bias += 1
    check_moved("nobody", before, weights(model), {"1.bias"})


def test_a_module_is_named_whole(model):
    assert below(weights(model), ["1"]) == {"1.weight", "1.bias"}


def test_what_moved_although_frozen_is_named(model):
    before = weights(model)
    with torch.no_grad():
        model[0].bias += 1
    with pytest.raises(WrongTraining, match=r"^peer: moved although frozen: \['0.bias'\]; .*: \['1.bias'\]$"):
        check_moved("peer", before, weights(model), {"1.bias"})


def trained(model, by):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += by
    return weights(model)


def test_other_updates_are_refused_by_their_bits(model):
    before, expected = weights(model), trained(model, 0.5)
    check_same("peer", before, expected, dict(expected), exact=True)
    with torch.no_grad():
        model[0].bias += 1e-6
    with pytest.raises(WrongTraining, match=r"peer made other updates than it was to make: \['0.bias'\]"):
        check_same("peer", before, weights(model), expected, exact=True)


@pytest.mark.parametrize("off", [0.03, float("nan")])
def test_other_updates_are_refused_by_their_distance(model, off):
    before, expected = weights(model), trained(model, 0.5)
    check_same("peer", before, trained(model, 0.02), expected, exact=False)
    with pytest.raises(WrongTraining, match="of the way apart"):
        check_same("peer", before, trained(model, off), expected, exact=False)


def test_bits_not_values():
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert same_bits(torch.tensor([float("nan")]), torch.tensor([float("nan")]))
    assert same_bits(torch.tensor(1.0), torch.tensor(1.0))
