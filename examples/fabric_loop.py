"""The loop of ``plain_loop.py`` with Lightning Fabric: devices, processes and precision are options, the loop stays yours.

Run it (it needs the extra ``demo``)::

    python examples/fabric_loop.py
    python examples/fabric_loop.py --devices 2 --precision bf16-mixed
    python examples/fabric_loop.py --epochs 10 --resume fabric_loop.ckpt
    python examples/fabric_loop.py --devices 2 --strategy fsdp2 --accumulate 2 --out sharded.ckpt
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler

from lightning_freeze import Every, Finding, FreezeController, FreezeViolation
from lightning_freeze.demos import DigitsData


def shard(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """FSDP2: each layer, then what is left."""
    for layer in (*model.children(), model):
        fully_shard(layer, mesh=mesh["data_parallel"])
    return model


def train(fabric: Fabric, options: argparse.Namespace) -> nn.Module:
    """Train a network of two layers, in one of the processes; returns it."""
    digits = DigitsData()
    digits.setup("fit")
    sampler = DistributedSampler(digits.train, fabric.world_size, fabric.global_rank)
    # Not by fabric.setup_dataloaders, which counts epochs by itself, from 0 after a resume, too.
    batches = DataLoader(digits.train, batch_size=64, sampler=sampler)

    fabric.seed_everything(0, verbose=False)
    layers = OrderedDict(weight1=nn.Linear(64, 32, bias=False), relu=nn.ReLU(), weight2=nn.Linear(32, 10, bias=False))
    model = fabric.setup_module(nn.Sequential(layers))
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(model.parameters(), lr=0.01))
    state: dict[str, Any] = {"model": model, "optimizer": optimizer}
    saved = fabric.load(options.resume, state)["controller"] if options.resume else None

    def stop_on(findings: list[Finding], checkpoint: str | None) -> None:
        errors = [finding for finding in findings if finding.severity == "error"]
        if errors:  # all processes know of all of them, so they stop together
            raise FreezeViolation(errors, checkpoint)

    # It takes what `fabric.setup` made, model and optimizers. `with` undoes everything at the end, and after an error.
    with FreezeController(model, Every({"weight1": 5}, of="weight2"), say=fabric.print) as controller:
        controller.attach(optimizer, scaler=options.precision == "16-mixed")
        controller.begin(state=saved)
        for epoch in range(controller.epoch, options.epochs):
            sampler.set_epoch(epoch)
            model.train()
            for number, batch in enumerate(batches, start=1):
                images, labels = fabric.to_device(batch)
                controller.begin_step()  # for every batch, also within an accumulation
                steps = number % options.accumulate == 0 or number == len(batches)
                with fabric.no_backward_sync(model, enabled=not steps):
                    loss = nn.functional.cross_entropy(model(images.flatten(1)), labels)
                    fabric.backward(loss / options.accumulate)
                controller.after_backward()  # zero gradients for DDP; frozen gradients set to None under a GradScaler
                if steps:
                    controller.before_optimizer_step(optimizer)  # so that clipping sees only what trains
                    fabric.clip_gradients(model, optimizer, max_norm=1.0)
                    optimizer.step()
                    optimizer.zero_grad()

            findings = controller.end_epoch()
            fabric.save(options.out, {**state, "controller": controller.state_dict()})  # all wait until it is done
            stop_on(findings, str(options.out))

            model.eval()
            with torch.no_grad():
                images, labels = (fabric.to_device(held) for held in digits.held_out.tensors)
                accuracy = (model(images.flatten(1)).argmax(1) == labels).float().mean()
            fabric.print(f"epoch {epoch}: accuracy {accuracy:.3f}, updates {controller.updates}")
        stop_on(controller.finish(), None)
    return model


def main(arguments: Sequence[str] | None = None) -> nn.Module:
    """Start the processes and train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--accumulate", type=int, default=1, help="batches whose gradients make one optimizer step")
    parser.add_argument("--out", type=Path, default=Path("fabric_loop.ckpt"), help="where it saves after each epoch")
    parser.add_argument("--resume", type=Path, help="what it saved, to go on from")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--strategy", choices=("auto", "ddp", "fsdp2"), default="auto")
    parser.add_argument("--precision", default="32-true", help="32-true, bf16-mixed, 16-mixed, …")
    options = parser.parse_args(arguments)
    # By default it takes the processes of a node for parts of one layer (tensor parallel), who share their data.
    fsdp2 = ModelParallelStrategy(shard, data_parallel_size=options.devices, tensor_parallel_size=1)
    strategy = fsdp2 if options.strategy == "fsdp2" else options.strategy
    chosen = {"accelerator": options.accelerator, "devices": options.devices, "precision": options.precision}
    fabric = Fabric(strategy=strategy, **chosen)
    fabric.launch()
    return train(fabric, options)


if __name__ == "__main__":
    main()
