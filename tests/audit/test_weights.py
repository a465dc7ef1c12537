"""The audit of weights as a hold."""

from __future__ import annotations

import torch
from torch import nn

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
