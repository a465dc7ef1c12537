"""A fit of which only the time is of interest: nothing is shown, logged or kept."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import pytorch_lightning

from lightning_freeze.demos import quiet


def quiet_fit(
    task: Any,
    batches: Iterable[Any],
    *callbacks: Any,
    device: str = "cpu",
    package: ModuleType = pytorch_lightning,
    **settings: Any,
) -> None:
    """Train under a Trainer without logger, bar, checkpoints, warnings or prints; one epoch by default.

    Args:
        task: The LightningModule.
        batches: What it trains on.
        callbacks: The Trainer's, in order.
        device: ``cpu`` or ``cuda``.
        package: Which of Lightning's two packages the Trainer is of.
        settings: Further arguments of the Trainer.
    """
    with tempfile.TemporaryDirectory() as folder, quiet():
        trainer = package.Trainer(
            callbacks=list(callbacks),
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            **{"max_epochs": 1, **settings},
        )
        trainer.fit(task, batches)
