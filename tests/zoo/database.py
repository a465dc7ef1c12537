"""Torch's own optimizers as specimens: every configuration of its database that the CPU has."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch

from tests.holds.test_optim_db import configurations
from tests.zoo.zoo import Specimen


def torchs() -> Iterator[Specimen]:
    """The plain, foreach, fused, capturable and differentiable ones, and LBFGS."""
    for given in (*configurations(), *configurations(differentiable=True)):
        info, options = given.values
        yield _specimen(info.optim_cls, options, str(given.id))
    yield _specimen(torch.optim.LBFGS, {}, "LBFGS")


def _specimen(kind: Any, options: dict[str, Any], name: str) -> Specimen:
    matrices = kind is getattr(torch.optim, "Muon", None)
    return Specimen(
        "torch",
        name,
        lambda model: kind(model.parameters(), **copy.deepcopy(options)),
        sparse=kind is torch.optim.SparseAdam,
        bias=not matrices,
    )
