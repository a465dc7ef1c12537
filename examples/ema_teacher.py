"""A mean teacher: the student trains, the teacher is its slow average, and the audit lets the teacher move.

The teacher has ``requires_grad=False``, so the audit takes it for frozen. Your own code moves it, which is written down as
``groups: {teacher: {select: teacher, by: user}}``. Without that line the run stops at the first epoch's end: shown first.

Run it (it needs the extra ``demo``)::

    python examples/ema_teacher.py
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from lightning_freeze import FreezeAudit, FreezeScheduler, FreezeViolation, Phase, Phases
from lightning_freeze.demos import DigitsData


class MeanTeacher(LightningModule):
    """The student learns from labels, and to agree with its own average on noisy images."""

    def __init__(self) -> None:
        super().__init__()
        body = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU())
        self.student = nn.Sequential(body, nn.Linear(64, 10))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self.student(images + 0.1 * torch.randn_like(images))
        target = self.teacher(images + 0.1 * torch.randn_like(images)).softmax(1)
        return cross_entropy(logits, labels) + mse_loss(logits.softmax(1), target)

    def on_train_batch_end(self, *_: Any) -> None:
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                slow.lerp_(fast, 0.05)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        images, labels = batch
        for name in ("student", "teacher"):
            self.log(name, (getattr(self, name)(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.student.parameters(), lr=3e-3)


def fit(callback: Any, epochs: int) -> Trainer:
    seed_everything(1)
    trainer = Trainer(
        max_epochs=epochs, callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(MeanTeacher(), DigitsData())
    return trainer


def main(arguments: Sequence[str] | None = None) -> tuple[str, dict[str, float]]:
    """Fit without and with the exemption; returns what the audit said, and the accuracy of both networks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args(arguments)

    said = ""
    try:
        fit(FreezeAudit(), 1)
    except FreezeViolation as violation:
        said = violation.findings[0].message
    print(f"without the exemption: {said}")

    # The body first, then all of the student; only the model's own code moves the teacher.
    groups: dict[str, Any] = {"body": "student.0", "head": "student.1", "teacher": {"select": "teacher", "by": "user"}}
    phases = Phases([Phase(["body"], epochs=2), Phase(["all"])])
    freeze = FreezeScheduler(phases, groups)
    metrics = fit(freeze, options.epochs).callback_metrics
    accuracies = {name: float(metrics[name]) for name in ("student", "teacher")}
    shown = ", ".join(f"{name} {value:.1%}" for name, value in accuracies.items())
    print(f"with it: {len(freeze.findings)} findings; accuracy of the {shown}")
    return said, accuracies


if __name__ == "__main__":
    main()
