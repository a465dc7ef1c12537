"""LoRA's two factors in turn, B for an update, then A for one, as in AltLoRA (arXiv 2505.12455).

With one factor fixed, the product is linear in the other. The model comes from PEFT where that is installed (the extra
``peft``), else the layer below takes its place; the selectors fit both. The base weights are frozen by ``requires_grad=False``:
they belong to no group, and the audit of the run watches the factors.

Run it (it needs the extra ``demo``)::

    python examples/lora_in_turn.py
    python examples/lora_in_turn.py --own      # without PEFT
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.util import find_spec

import torch
from pytorch_lightning import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lightning_freeze import FreezeScheduler, Phase, Phases
from lightning_freeze.demos import DigitsData

QUIET = {
    "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False,
}  # fmt: skip


class LoRALinear(nn.Module):
    """A frozen layer and an update of low rank beside it."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


def with_lora(network: nn.Module, own: bool) -> nn.Module:
    """The network, its linear layers given factors of rank 4."""
    if own:
        for index in (1, 3):
            network[index] = LoRALinear(network[index], 4)
        return network
    from peft import LoraConfig, get_peft_model

    return get_peft_model(network, LoraConfig(r=4, lora_alpha=4, target_modules=["1", "3"]))


class Classifier(LightningModule):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)


@torch.no_grad()
def accuracy(model: Classifier, images: Tensor, labels: Tensor) -> float:
    return float((model.network(images).argmax(1) == labels).float().mean())


def main(arguments: Sequence[str] | None = None) -> tuple[dict[str, int], float, float]:
    """Train upright digits, tune to mirrored ones; returns the updates, and the accuracy before and after."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--own", action="store_true", help="the layer of this file, also where PEFT is installed")
    options = parser.parse_args(arguments)
    own = options.own or find_spec("peft") is None

    seed_everything(1)
    digits = DigitsData()
    digits.setup("fit")
    images, labels = digits.train.tensors
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    Trainer(max_epochs=10, **QUIET).fit(Classifier(network), digits.train_dataloader())

    model = Classifier(with_lora(network, own))
    in_turn = Phases([Phase(["b"], updates=1), Phase(["a"], updates=1)], repeat=True)  # B first: it begins at zero
    freeze = FreezeScheduler(in_turn, {"a": "**.lora_A.**", "b": "**.lora_B.**"})
    mirrored = DataLoader(TensorDataset(images.flip(2), labels), batch_size=64, shuffle=True)
    test_images, test_labels = digits.held_out.tensors
    before = accuracy(model, test_images.flip(2), test_labels)
    Trainer(max_epochs=10, callbacks=[freeze], **QUIET).fit(model, mirrored)
    after = accuracy(model, test_images.flip(2), test_labels)

    print(f"{'the layer of this file' if own else 'PEFT'}: updates {freeze.updates}; findings: {len(freeze.findings)}")
    print(f"accuracy on mirrored digits: {before:.0%} before, {after:.0%} after")
    return freeze.updates, before, after


if __name__ == "__main__":
    main()
