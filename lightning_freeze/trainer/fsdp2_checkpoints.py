"""Checkpoints of FSDP2 that hold no optimizer state of some parameters, which torch refuses to load."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from lightning_freeze.plan.selectors import clean_name

if TYPE_CHECKING:
    from pytorch_lightning import Trainer
    from torch.nn import Module, Parameter


def loads_later(trainer: Trainer) -> bool:
    """Whether a checkpoint, if any, is yet to be loaded when ``on_fit_start`` is called, as sharded strategies do it."""
    return bool(trainer.strategy.restore_checkpoint_after_setup)


class LateLoading:
    """Lets FSDP2's checkpoints be loaded that hold no optimizer state of some parameters; `remove` takes it away.

    Those are what never trained until then, or whose state was dropped. torch refuses to load the state of the others
    ("Missing optimizer state for parameter …") as long as they require gradients, so while it loads they do not.

    Args:
        trainer: The run's; its strategy's ``load_checkpoint`` is wrapped where that is FSDP2's.
    """

    def __init__(self, trainer: Trainer) -> None:
        strategy: Any = trainer.strategy
        self._strategy = strategy if loads_later(trainer) and hasattr(strategy, "device_mesh") else None
        if self._strategy is None:
            return
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

        vars(strategy)["load_checkpoint"] = load_checkpoint

    def remove(self) -> None:
        """As it was. Safe to call again."""
        if self._strategy is not None:
            vars(self._strategy).pop("load_checkpoint", None)
        self._strategy = None


def _without_state(
    path: Path, model: Module, optimizers: Iterable[Optimizer], weights_only: bool | None
) -> list[Parameter]:
    """The parameters that require a gradient and of which a checkpoint, sharded or in one file, holds no optimizer state."""
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
    """Of each optimizer the parameters whose state is in a folder of shards, where there are any."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    every = set(names)
    saved: dict[int, set[str]] = {}
    for key in FileSystemReader(path).read_metadata().state_dict_metadata:
        owner, _, entry = key.partition(".state.")
        while entry and entry not in every:  # "layer.weight.exp_avg", or deeper
            entry = entry.rpartition(".")[0]
        if entry and owner.startswith("optimizer_"):
            saved.setdefault(int(owner.removeprefix("optimizer_")), set()).add(entry)
    return saved


def _in_one_file(path: Path, names: Sequence[str], weights_only: bool | None) -> dict[int, set[str]]:
    """Of each optimizer the parameters whose state is in a file."""
    checkpoint = torch.load(path, mmap=True, map_location="cpu", weights_only=weights_only)
    return {
        number: {names[key] if isinstance(key, int) else clean_name(key) for key in state["state"]}
        for number, state in enumerate(checkpoint.get("optimizer_states", []))
    }
