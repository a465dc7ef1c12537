"""Rows of an embedding that no batch ever used move all the same: weight decay acts on a gradient of zero.

The embedding has 200 rows; the batches use the first 50. AdamW sees one parameter with a gradient that is zero in the other
rows, and decays these; so does Adam where a row was used before, by momentum. No audit of whole parameters can call that a
violation: the parameter trains. The cure is to give the frozen rows a parameter of their own, which a `FreezeScheduler` then
holds and audits bit for bit.

Run it::

    python examples/embedding_decay.py
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pytorch_lightning import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, embedding
from torch.utils.data import DataLoader, TensorDataset

from lightning_freeze import FreezeAudit, FreezeScheduler, Phase, Phases

ROWS, USED, WIDTH = 200, 50, 16


class OneParameter(LightningModule):
    """A word's class from its row."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(ROWS, WIDTH)
        self.head = nn.Linear(WIDTH, 5)

    def rows(self) -> Tensor:
        """All rows, one below the other."""
        return self.words.weight

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self.head(embedding(batch[0], self.rows())), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)


class TwoParameters(OneParameter):
    """The same, the rows in use and the others each a parameter."""

    def __init__(self) -> None:
        super().__init__()
        used, others = self.words.weight.detach().split([USED, ROWS - USED])
        self.words = nn.ParameterDict({"used": used.clone(), "others": others.clone()})

    def rows(self) -> Tensor:
        return torch.cat([self.words["used"], self.words["others"]])


def fit(model: OneParameter, callback: FreezeAudit | FreezeScheduler) -> float:
    """Fit; returns the most that an element of a row moved that no batch uses."""
    before = model.rows()[USED:].detach().clone()
    words = torch.randint(USED, (2000,))
    batches = DataLoader(TensorDataset(words, words % 5), batch_size=50)
    trainer = Trainer(
        max_epochs=5, callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, batches)
    return float((model.rows()[USED:].detach() - before).abs().max())


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Fit three times; returns how far the rows that no batch uses moved."""
    only_used = FreezeScheduler(Phases([Phase(["words.used"])]), {"others": "words.others"})
    moved = {}
    print("rows that no batch uses moved by at most:")
    for name, kind, callback in (
        ("one parameter", OneParameter, FreezeAudit()),
        ("two parameters", TwoParameters, FreezeAudit()),
        ("two parameters, one of them frozen", TwoParameters, only_used),
    ):
        seed_everything(1)
        moved[name] = fit(kind(), callback)
        print(f"{name}: {moved[name]:.6f}; findings of the audit: {len(callback.findings)}")
    return moved


if __name__ == "__main__":
    main()
