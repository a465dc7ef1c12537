"""FSDP2 checkpoints that lack the optimizer state of some parameters, which torch refuses to load."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from lightning_freeze.plan.selectors import clean_name
from lightning_freeze.trainer import seam


def loads_later(trainer: seam.Trainer) -> bool:
    """Whether checkpoints are loaded after ``on_fit_start``, as sharded strategies do."""
    return bool(trainer.strategy.restore_checkpoint_after_setup)


def load_without_state(trainer: seam.Trainer) -> Callable[[], object]:
    """Let FSDP2 load checkpoints that lack the optimizer state of some parameters; returns what undoes it.

    Those never trained, or their state was dropped. torch raises "Missing optimizer state for parameter …" for them while
    they require gradients, so during the load they do not.
    """
    strategy: Any = trainer.strategy
    if not loads_later(trainer) or not hasattr(strategy, "device_mesh"):
        return lambda: None
    original = strategy.load_checkpoint

    def load_checkpoint(checkpoint_path: Any, weights_only: bool | None = None, **kwargs: Any) -> Any:
        path = Path(strategy.broadcast(checkpoint_path))
        stateless = _without_state(path, strategy.model, trainer.optimizers, weights_only)
        for parameter in stateless:
            parameter.requires_grad = False
        try:
            return original(checkpoint_path, weights_only, **kwargs)
        finally:
            for parameter in stateless:
                parameter.requires_grad = True

    own = vars(strategy)
    own["load_checkpoint"] = load_checkpoint
    return lambda: own.pop("load_checkpoint") if own.get("load_checkpoint") is load_checkpoint else None


def _without_state(
    path: Path, model: Module, optimizers: Iterable[Optimizer], weights_only: bool | None
) -> list[Parameter]:
    """The parameters that require gradients and have no optimizer state in a checkpoint."""
    names = {id(p): clean_name(name) for name, p in model.named_parameters()}
    all_names = list(names.values())
    saved = _in_shards(path, all_names) if path.is_dir() else _in_one_file(path, all_names, weights_only)
    return [
        parameter
        for number, optimizer in enumerate(optimizers)
        for group in optimizer.param_groups
        for parameter in group["params"]
        if saved.get(number) and parameter.requires_grad and names[id(parameter)] not in saved[number]
    ]


def _in_shards(path: Path, names: Sequence[str]) -> dict[int, set[str]]:
    """Optimizer to the parameters whose state is in a folder of shards."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    known = set(names)
    saved: dict[int, set[str]] = {}
    for key in FileSystemReader(path).read_metadata().state_dict_metadata:
        owner, _, entry = key.partition(".state.")
        while entry and entry not in known:  # "layer.weight.exp_avg", or deeper
            entry = entry.rpartition(".")[0]
        if entry and owner.startswith("optimizer_"):
            saved.setdefault(int(owner.removeprefix("optimizer_")), set()).add(entry)
    return saved


def _in_one_file(path: Path, names: Sequence[str], weights_only: bool | None) -> dict[int, set[str]]:
    """Optimizer to the parameters whose state is in one file."""
    checkpoint = torch.load(path, mmap=True, map_location="cpu", weights_only=weights_only)
    return {
        number: {names[key] if isinstance(key, int) else clean_name(key) for key in state["state"]}
        for number, state in enumerate(checkpoint.get("optimizer_states", []))
    }
