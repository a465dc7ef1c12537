"""What tests share: a small model, small data, and a Trainer that writes nothing to the screen."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the two packages say of themselves while they are imported
    import lightning.pytorch  # noqa: F401
    import pytorch_lightning as pl

import hypothesis
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.process_state import changes, state

torch.set_num_threads(1)

# No deadlines: timings are noisy on shared cores. In CI the same examples every time, so that a failure is the change's.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("suite")


def pytest_collection_finish() -> None:
    """Everything imported lives as long as the process: `gc.collect()`, which tests call, need not walk it.

    Nor does `gc.get_referrers`, which the input audit asks who holds a tensor: it sees what a test itself has made.
    """
    gc.collect()
    gc.freeze()


class Net(pl.LightningModule):
    """Two linear layers; ``make`` builds the optimizer from the model."""

    def __init__(self, make: Callable[[nn.Module], Any] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer1 = nn.Linear(4, 8, bias=False)
        self.layer2 = nn.Linear(8, 3, bias=False)
        self.make = make or (lambda model: torch.optim.AdamW(model.parameters(), lr=0.01))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer2(torch.tanh(self.layer1(x)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return self.make(self)


def batches(count: int, size: int = 4, seed: int = 0) -> DataLoader[Any]:
    """``count`` batches of fixed data in fixed order."""
    made = torch.Generator().manual_seed(seed)
    x = torch.randn(count * size, 4, generator=made)
    y = torch.randn(count * size, 3, generator=made)
    return DataLoader(TensorDataset(x, y), batch_size=size)


def make_trainer(root: Path, *callbacks: Any, **options: Any) -> pl.Trainer:
    """A quiet Trainer on the CPU that writes below ``root``."""
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "max_epochs": 1,
        "default_root_dir": str(root),
    }
    return pl.Trainer(callbacks=list(callbacks), **{**quiet, **options})


@pytest.fixture(autouse=True)
def leaves_the_process_as_it_was() -> Iterator[None]:
    """No test depends on what ran before it in the process."""
    environment, before = dict(os.environ), state()
    yield
    left = changes(before)
    os.environ.clear()
    os.environ.update(environment)
    assert left == [], "a test has changed what those after it share"


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., pl.Trainer]:
    """`make_trainer` in the test's own folder."""
    return lambda *callbacks, **options: make_trainer(tmp_path, *callbacks, **options)
