"""What a resume does to Lightning's BackboneFinetuning, and what `FreezeAudit` says: the backbone is frozen again, for good.

Open report: https://github.com/Lightning-AI/pytorch-lightning/issues/21901. The callback freezes the backbone whenever a fit
begins and unfreezes it in one epoch only; a run that is resumed after that epoch keeps it in the optimizer, with a learning
rate, and with ``requires_grad=False``. No frozen weight moves, so `FreezeAudit` has no finding: it cannot know that the backbone was meant to
train. What it does show is the count: in the straight run the group that began frozen gets updates again, in the resumed
one none. A `FreezeScheduler` goes on where it was.

Run it (it needs the extra ``demo``)::

    python examples/resumed_backbone.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import BackboneFinetuning
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_freeze import FreezeAudit, FreezeScheduler, Phase, Phases, read_report
from lightning_freeze.demos import DigitsData


class Classifier(LightningModule):
    def __init__(self, all_parameters: bool) -> None:
        super().__init__()
        self.all_parameters = all_parameters
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU())
        self.head = nn.Linear(64, 10)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # BackboneFinetuning adds the backbone itself; FreezeScheduler takes an optimizer over everything.
        return torch.optim.Adam((self if self.all_parameters else self.head).parameters(), lr=1e-3)


class Watch(Callback):
    """Notes how far the backbone has moved by each epoch's end."""

    def __init__(self) -> None:
        self.moved: dict[int, float] = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.before = pl_module.backbone[1].weight.detach().clone()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.moved[trainer.current_epoch] = float((pl_module.backbone[1].weight.detach() - self.before).abs().max())


def run(make: Any, folder: str, until: int, resume: bool = False) -> tuple[dict[int, float], dict[str, int], int]:
    """Fit to an epoch and save; returns how the backbone moved in each, the counted updates, and the findings."""
    seed_everything(1)
    callbacks, watch, saved = make(), Watch(), Path(folder, "saved.ckpt")
    trainer = Trainer(
        max_epochs=until, limit_train_batches=10, callbacks=[*callbacks, watch], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    model = Classifier(all_parameters=any(isinstance(each, FreezeScheduler) for each in callbacks))
    trainer.fit(model, DigitsData(), ckpt_path=str(saved) if resume else None, weights_only=False)
    trainer.save_checkpoint(saved)
    return watch.moved, read_report(folder).updates, len(callbacks[-1].findings)


def lightnings() -> list[Any]:
    return [BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=1e-4), FreezeAudit()]


def ours() -> list[Any]:
    return [
        FreezeScheduler(Phases([Phase(["head"], epochs=1), Phase(["all"])]), {"head": "head", "backbone": "backbone"})
    ]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run both callbacks, straight and resumed after two of four epochs; returns what `run` did for each."""
    found: dict[str, Any] = {}
    for name, make in (("BackboneFinetuning", lightnings), ("FreezeScheduler", ours)):
        with tempfile.TemporaryDirectory() as folder:
            found[name] = run(make, folder, 4)
        with tempfile.TemporaryDirectory() as folder:
            run(make, folder, 2)
            found[f"{name}, resumed"] = run(make, folder, 4, resume=True)
    print("\nin epochs 2 and 3 a weight of the backbone moved by at most, and what the audit counted in all:")
    for name, (moved, updates, findings) in found.items():
        print(f"  {name:28} {moved[2]:.6f} {moved[3]:.6f}   updates {updates}, findings: {findings}")
    return found


if __name__ == "__main__":
    main()
