"""What the seam to Lightning reads off a Trainer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, TensorDataset

from lightning_freeze.trainer.seam import batch_sizes_vary

TEN = TensorDataset(torch.zeros(10, 1))


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(10))


@pytest.mark.parametrize(
    ("loader", "batches", "variable_batch_size"),
    [
        (DataLoader(TEN, batch_size=5), 2, False),
        (DataLoader(TEN, batch_size=4), 3, True),
        (DataLoader(TEN, batch_size=4, drop_last=True), 2, False),
        (DataLoader(TEN, batch_size=4), 2, False),  # limit_train_batches leaves the smaller one out
        (DataLoader(TEN, batch_sampler=BatchSampler(SequentialSampler(TEN), 5, False)), 2, True),
        (DataLoader(TEN, batch_size=None), 10, True),
        (DataLoader(Stream(), batch_size=5), 2, True),
        ([torch.zeros(2)] * 3, 3, True),
        ([DataLoader(TEN, batch_size=5), DataLoader(TEN, batch_size=2)], 5, False),
        ([DataLoader(TEN, batch_size=5), DataLoader(TEN, batch_size=3)], 4, True),
        ({"a": DataLoader(TEN, batch_size=5)}, 2, True),
    ],
)
def test_whether_batches_may_differ_in_size(loader: Any, batches: int, variable_batch_size: bool) -> None:
    """Where it cannot be seen, they may."""
    trainer: Any = SimpleNamespace(train_dataloader=loader, num_training_batches=batches)
    assert batch_sizes_vary(trainer) == variable_batch_size
