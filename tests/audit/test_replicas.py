"""Copies on several ranks: where they are, of meshes and wrappers of processes that are not there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import post_localSGD_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from lightning_freeze.audit.replicas import copies_apart, copies_of


def test_the_finding_says_who_is_alike() -> None:
    text = copies_apart("blocks.0.weight", [[0, 2], [1]], 4, 30).message
    assert "'blocks.0.weight' should be the same on all ranks" in text
    assert "by the end of epoch 4 (update 30) is not: ranks 0, 2 and rank 1 hold different bits." in text


@pytest.fixture
def eight() -> Iterator[None]:
    """Rank 5 of eight that are not there."""
    dist.init_process_group("fake", rank=5, world_size=8, store=FakeStore())
    yield
    dist.destroy_process_group()


def print_of(parameter: Tensor) -> int:
    return 7


def test_copies_are_where_the_mesh_of_a_dtensor_says(eight: None) -> None:
    mesh = init_device_mesh("cpu", (4, 2), mesh_dim_names=("copies", "shards"))
    whole = torch.zeros(4, 2)
    named = [
        ("everywhere", distribute_tensor(whole, mesh, [Replicate(), Replicate()])),
        ("hybrid", distribute_tensor(whole, mesh, [Replicate(), Shard(0)])),
        ("split", distribute_tensor(whole, mesh, [Shard(0), Shard(1)])),
        ("own mesh", distribute_tensor(whole, mesh["shards"], [Replicate()])),
        ("plain", nn.Parameter(whole)),
    ]
    found = copies_of(named, None, print_of)
    assert found == {
        (0, 1, 2, 3, 4, 5, 6, 7): [("everywhere", 7)],
        (1, 3, 5, 7): [("hybrid", 7)],
        (4, 5): [("own mesh", 7)],
    }


def test_under_ddp_all_are_copies_but_what_it_was_told_to_ignore(eight: None) -> None:
    model = nn.Linear(2, 1)
    model._ddp_params_and_buffers_to_ignore = ["bias"]  # type: ignore[assignment]
    ddp = nn.parallel.DistributedDataParallel(model, init_sync=False)
    assert copies_of(model.named_parameters(), ddp, print_of) == {tuple(range(8)): [("weight", 7)]}


def test_ranks_that_average_now_and_then_hold_no_copies(eight: None) -> None:
    ddp = nn.parallel.DistributedDataParallel(nn.Linear(2, 1), init_sync=False)
    state = post_localSGD_hook.PostLocalSGDState(process_group=None, subgroup=None, start_localSGD_iter=10)
    ddp.register_comm_hook(state, post_localSGD_hook.post_localSGD_hook)
    assert copies_of(ddp.module.named_parameters(), ddp, print_of) == {}


def test_digests_on_a_device_are_read_as_the_ints_they_are(eight: None) -> None:
    mesh = init_device_mesh("cpu", (8,))
    named = [("w", distribute_tensor(torch.zeros(2), mesh, [Replicate()])), ("lazy", nn.Parameter(torch.zeros(1)))]
    found = copies_of(named[:1], None, lambda parameter: torch.tensor([-1, 3]))
    assert found == {tuple(range(8)): [("w", ((1 << 64) - 1 << 64) | 3)]}
