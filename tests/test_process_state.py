"""What leaks from one test to the next is seen."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import CheckpointFunction

from lightning_freeze import audit_inputs
from lightning_freeze.holds.checkpointing import ReentrantInputs
from tests.process_state import changes, state


def test_nothing_changed() -> None:
    assert changes(state()) == []


def test_each_change_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "freeze_audit.jsonl").touch()
    monkeypatch.setattr(nn.Module, "__call__", lambda *_: None)
    with torch.no_grad():
        assert [line.partition(":")[0] for line in changes(before)] == [
            "the working directory",
            "its files",
            "grad mode",
            "nn.Module.__call__",
        ]
    assert f"the working directory: {before['the working directory']!r} became {os.getcwd()!r}" in changes(before)


def test_an_audit_and_a_run_in_progress_are_told() -> None:
    before, held = state(), ReentrantInputs(lambda: True, print)
    with audit_inputs(nn.Identity()):
        held.attach()
        said = " ".join(changes(before))
    assert "nn.Module.__call__" in said
    assert "CheckpointFunction.apply" in said
    held.detach()
    assert changes(before) == []


def test_a_run_that_was_forgotten_is_collected_first() -> None:
    before, forgotten = state(), ReentrantInputs(lambda: True, print)
    circle: list[Any] = [forgotten]
    circle.append(circle)
    forgotten.attach()
    assert "apply" in vars(CheckpointFunction)
    del circle, forgotten
    assert changes(before) == []
