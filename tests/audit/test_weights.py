"""The audit of weights as a hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_freeze import FreezeController, Phase, Phases

BLOCKS = 8


def test_findings_come_in_the_order_of_the_model() -> None:
    """Whatever order the sets of what freezes have, which varies from run to run."""
    blocks = [nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(BLOCKS)]
    model = nn.Sequential(*blocks, nn.Linear(2, 1))
    groups = {f"g{number}": str(number) for number in range(BLOCKS)}
    schedule = Phases([Phase([*groups, "8"], updates=1), Phase(["8"], updates=1), Phase([*groups, "8"])])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    controller = FreezeController(model, schedule, groups, say=lambda line: None)
    controller.attach(optimizer)
    controller.begin()
    for step in range(3):
        controller.begin_step()
        model(torch.randn(3, 2)).sum().backward()
        optimizer.step()
        if step == 1:
            for parameter in model.parameters():
                parameter.data.add_(1)
    controller.audit.check()
    named = [
        *(("value", f"{n}.{name}") for n, block in enumerate(blocks) for name, _ in block.named_parameters()),
        *(("buffer", f"{n}.{name}") for n, block in enumerate(blocks) for name, _ in block.named_buffers()),
    ]
    assert [(finding.kind, finding.parameter) for finding in controller.findings] == named
    controller.detach()


class Rotary(nn.Module):
    """Fills a cache of its own up to the longest input so far, beside statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("cosines", torch.ones(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if len(self.cosines) < len(x):
            self.cosines = torch.ones(len(x))
        return self.norm(x) * self.cosines[: len(x), None]  # type: ignore[no-any-return]


def nothing(model: Any) -> None: ...


def trains(model: Any) -> None:
    model[0].train()
    model(torch.randn(3, 2))


STATISTICS = [("error", f"0.norm.{name}") for name in ("running_mean", "running_var", "num_batches_tracked")]


@pytest.mark.parametrize(
    ("disturb", "expected"),
    [
        (nothing, []),
        (trains, STATISTICS),
        (lambda model: model[0].norm.running_mean.add_(1), STATISTICS[:1]),
        (lambda model: model[0].norm.register_buffer("running_mean", torch.ones(2)), STATISTICS[:1]),
    ],
    ids=["", "a forward in train mode", "a write", "a replacement"],
)
def test_under_eval_a_cache_that_grows_is_a_warning_once_and_statistics_that_move_an_error(
    disturb: Any, expected: list[tuple[str, str]]
) -> None:
    model = nn.Sequential(Rotary(), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    with FreezeController(model, Phases([Phase(["1"])]), {"body": "0"}, frozen_modules="eval") as controller:
        controller.attach(optimizer)
        controller.begin()
        for length in (2, 3):  # an epoch each
            controller.begin_step()
            model(torch.randn(length, 2)).sum().backward()
            optimizer.step()
            if length == 3:
                disturb(model)
            found += controller.end_epoch()
    assert [(finding.severity, finding.parameter) for finding in found] == [("warning", "0.cosines"), *expected]
