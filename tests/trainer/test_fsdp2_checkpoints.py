"""Which parameters a checkpoint holds no optimizer state of, in a folder of shards as in one file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import save

from lightning_freeze.trainer.fsdp2_checkpoints import _without_state, load_without_state

# torch warns that one process alone writes the shards.
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

NAMES = ["0.weight", "0.bias", "1.weight", "1.bias"]
State = dict[str, Any]


def in_shards(path: Path, states: list[State]) -> None:
    entries = {
        f"optimizer_{n}.state.{name}": state for n, by_name in enumerate(states) for name, state in by_name.items()
    }
    entries |= {f"state_dict.{name}": torch.zeros(1) for name in NAMES}
    entries["optimizer_0.param_groups.0.weight.lr"] = torch.zeros(1)
    save(entries, checkpoint_id=path, no_dist=True)


def by_name(path: Path, states: list[State]) -> None:
    torch.save({"optimizer_states": [{"state": state, "param_groups": []} for state in states]}, path)


def by_number(path: Path, states: list[State]) -> None:
    by_name(path, [{NAMES.index(name): value for name, value in state.items()} for state in states])


@pytest.mark.parametrize("write", [in_shards, by_name, by_number])
@pytest.mark.parametrize(
    ("saved", "frozen", "without"),
    [
        ([["0.weight", "0.bias"], ["1.weight"]], [], ["1.bias"]),
        ([["0.weight"], ["1.weight"]], ["0.bias"], ["1.bias"]),
        ([NAMES[:2], NAMES[2:]], [], []),
        ([["0.bias"], []], [], ["0.weight"]),  # an optimizer without any state loads as it is
        ([[], []], [], []),
    ],
    ids=["one", "frozen", "none", "an optimizer without", "both without"],
)
def test_what_has_no_state(
    write: Callable[..., None], saved: list[list[str]], frozen: list[str], without: list[str], tmp_path: Path
) -> None:
    write(tmp_path / "checkpoint", [{name: {"exp_avg": torch.ones(2)} for name in names} for names in saved])
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    known = dict(model.named_parameters())
    for name in frozen:
        known[name].requires_grad = False
    optimizers = [torch.optim.Adam(layer.parameters()) for layer in model]
    found = _without_state(tmp_path / "checkpoint", model, optimizers, weights_only=True)
    assert [name for name, parameter in known.items() if any(parameter is each for each in found)] == without


def test_entries_deeper_than_one_key_count(tmp_path: Path) -> None:
    in_shards(tmp_path / "checkpoint", [{"0.weight": {"a": {"b": torch.ones(2)}}}])
    model = nn.Sequential(nn.Linear(2, 2))
    found = _without_state(tmp_path / "checkpoint", model, [torch.optim.Adam(model.parameters())], None)
    assert [tuple(parameter.shape) for parameter in found] == [(2,)]


@pytest.mark.parametrize("fails", [False, True])
def test_parameters_without_state_need_no_gradient_while_it_loads(fails: bool, tmp_path: Path) -> None:
    by_name(tmp_path / "checkpoint", [{"0.weight": {"exp_avg": torch.ones(2)}}])
    model = nn.Sequential(nn.Linear(2, 2))
    seen: list[list[bool]] = []

    class Strategy:
        restore_checkpoint_after_setup, device_mesh = True, None

        def broadcast(self, path: Path) -> Path:
            return path

        def load_checkpoint(self, path: Path, weights_only: bool | None = None) -> str:
            seen.append([parameter.requires_grad for parameter in model.parameters()])
            if fails:
                raise OSError("the disk is gone")
            return "loaded"

    strategy: Any = Strategy()
    strategy.model = model
    trainer: Any = SimpleNamespace(strategy=strategy, optimizers=[torch.optim.Adam(model.parameters())])
    undo = load_without_state(trainer)
    if fails:
        with pytest.raises(OSError, match="the disk is gone"):
            strategy.load_checkpoint(tmp_path / "checkpoint", True)
    else:
        assert strategy.load_checkpoint(tmp_path / "checkpoint", True) == "loaded"
    assert seen == [[True, False]]
    assert all(parameter.requires_grad for parameter in model.parameters())
    for _ in range(2):
        undo()
    assert "load_checkpoint" not in vars(strategy)


@pytest.mark.parametrize("attributes", [{"restore_checkpoint_after_setup": False, "device_mesh": None},
                                        {"restore_checkpoint_after_setup": True}])  # fmt: skip
def test_other_strategies_are_left_as_they_are(attributes: dict[str, Any]) -> None:
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(**attributes))
    load_without_state(trainer)()
    assert vars(trainer.strategy) == attributes
