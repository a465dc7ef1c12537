"""Copies of the same parameter on several ranks: which ranks hold them, with which bits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_freeze.audit.fingerprint import Digest, settled, unsigned
from lightning_freeze.report.findings import Finding

_SHOWN = 6

Holders = tuple[int, ...]
"""The ranks that hold copies of the same bits, in ascending order."""


def copies_of(
    named: Iterable[tuple[str, Tensor]], wrapper: nn.Module | None, print_of: Callable[[Tensor], Digest | None]
) -> dict[Holders, list[tuple[str, int | None]]]:
    """The digests of the parameters that other ranks are to hold bit for bit as well, by the ranks that hold them.

    Under DistributedDataParallel those are all, but what it was told to ignore; of a DTensor, its shard on the ranks that
    its mesh places beside this one. A parameter that a mesh does not know of says nothing of others.

    Args:
        named: FQN and parameter, in the model's order.
        wrapper: The DistributedDataParallel around the model, where there is one.
        print_of: Gives the digest of a parameter, None where there is none.
    """
    everyone, ignored = _under_ddp(wrapper)
    found: dict[Holders, list[tuple[str, Digest | None]]] = {}
    for name, parameter in named:
        if hasattr(parameter, "device_mesh"):
            holders = _holders_of_shard(parameter)
        else:
            holders = () if id(parameter) in ignored else everyone
        if len(holders) > 1:
            found.setdefault(holders, []).append((name, print_of(parameter)))
    return {holders: _on_host(prints) for holders, prints in found.items()}


def _under_ddp(wrapper: nn.Module | None) -> tuple[Holders, set[int]]:
    """The ranks that DistributedDataParallel keeps alike, and the identities of the parameters that it ignores."""
    if not isinstance(wrapper, DistributedDataParallel) or _is_local_sgd(wrapper):
        return (), set()
    names: set[str] = getattr(wrapper, "parameters_to_ignore", set())
    named = wrapper.module.named_parameters(remove_duplicate=False)
    everyone = torch.distributed.get_process_group_ranks(wrapper.process_group)
    return tuple(everyone), {id(parameter) for name, parameter in named if name in names}


def _is_local_sgd(ddp: DistributedDataParallel) -> bool:
    """Whether ranks go apart by intent, between averages of their weights."""
    hooks = getattr(ddp, "_comm_hooks", ())
    return any("post_localSGD" in getattr(hook, "__qualname__", "") for hook, *_ in hooks)


def _holders_of_shard(parameter: Any) -> Holders:
    """The ranks that hold the same shard of a DTensor."""
    mesh = parameter.device_mesh
    coordinate = mesh.get_coordinate()
    if coordinate is None:  # this rank is not part of the mesh
        return ()
    index = tuple(
        slice(None) if placement.is_replicate() else coordinate[dimension]
        for dimension, placement in enumerate(parameter.placements)
    )
    return tuple(sorted(mesh.mesh[index].reshape(-1).tolist()))


def _on_host(prints: Sequence[tuple[str, Digest | None]]) -> list[tuple[str, int | None]]:
    found = settled([each for _, each in prints])
    return [
        (name, unsigned(*each) if isinstance(each, list) else each)
        for (name, _), each in zip(prints, found, strict=True)
    ]


def copies_apart(name: str, sides: Sequence[Sequence[int]], epoch: int, update: int) -> Finding:
    """The finding for ranks that hold different bits of the same parameter.

    Args:
        name: Its FQN.
        sides: The ranks, sorted by what they hold.
        epoch: The epoch it was found in.
        update: The updates made so far.
    """
    groups = " and ".join(
        f"rank{'s' * (len(side) > 1)} {', '.join(map(str, side[:_SHOWN]))}{', …' * (len(side) > _SHOWN)}"
        for side in sides[:_SHOWN]
    )
    return Finding(
        "ranks",
        "copies",
        "error",
        f"{name!r} should be the same on all ranks, and by the end of epoch {epoch} (update {update}) is not: {groups} "
        f"hold different bits. It is the first such parameter in the model's order; others may have gone apart, too. Ranks stay alike "
        "as long as they begin alike and apply the same gradients: look for a write on some ranks alone, a backward that "
        "does not go through the wrapped model, an optimizer that draws random numbers, a parameter that did not require a "
        "gradient when DDP was built. Resume from a checkpoint, which all ranks load alike.",
        cause="copies",
        epoch=epoch,
        parameter=name,
        last_update=update,
    )
