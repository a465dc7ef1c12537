"""A training loop in plain PyTorch: weight1 is updated once for every five updates of weight2, audited bit for bit.

One process, or several under DistributedDataParallel, on whatever devices there are. It saves after each epoch, and goes on
from there with ``--resume``. Every line that lightning-freeze asks for names the ``controller``.

Run it (it needs the extra ``demo``)::

    python examples/plain_loop.py
    torchrun --nproc-per-node 2 examples/plain_loop.py --accumulate 2
    python examples/plain_loop.py --epochs 10 --resume plain_loop.pt
"""

from __future__ import annotations

import argparse
import os
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from lightning_freeze import Every, Finding, FreezeController, FreezeViolation
from lightning_freeze.demos import DigitsData


def train(options: argparse.Namespace, rank: int, world: int) -> nn.Module:
    """Train a network of two layers, in one of the processes; returns it."""
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else "cpu"
    digits = DigitsData()
    digits.setup("fit")
    sampler = DistributedSampler(digits.train, world, rank)  # of one process, too: its order follows from the epoch
    batches = DataLoader(digits.train, batch_size=64, sampler=sampler)

    torch.manual_seed(0)
    layers = OrderedDict(weight1=nn.Linear(64, 32, bias=False), relu=nn.ReLU(), weight2=nn.Linear(32, 10, bias=False))
    model = nn.Sequential(layers).to(device)
    called = DistributedDataParallel(model) if world > 1 else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    saved = torch.load(options.resume, map_location=device, weights_only=True) if options.resume else None
    if saved is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])

    def stop_on(findings: list[Finding], checkpoint: str | None) -> None:
        errors = [finding for finding in findings if finding.severity == "error"]
        if errors:  # all processes know of all of them, so they stop together
            raise FreezeViolation(errors, checkpoint)

    # It is given what is called, and so learns of DDP. `with` undoes everything at the end, and after an error.
    say = print if rank == 0 else lambda line: None
    with FreezeController(called, Every({"weight1": 5}, of="weight2"), say=say) as controller:
        controller.attach(optimizer)
        controller.begin(state=saved and saved["controller"])
        for epoch in range(controller.epoch, options.epochs):
            sampler.set_epoch(epoch)
            model.train()
            for number, (images, labels) in enumerate(batches, start=1):
                controller.begin_step()  # for every batch, also within an accumulation
                steps = number % options.accumulate == 0 or number == len(batches)
                with nullcontext() if steps or world == 1 else called.no_sync():
                    logits = called(images.flatten(1).to(device))
                    loss = nn.functional.cross_entropy(logits, labels.to(device))
                    (loss / options.accumulate).backward()
                controller.after_backward()  # zero gradients for DDP
                if steps:
                    controller.before_optimizer_step(optimizer)  # so that clipping sees only what trains
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    optimizer.zero_grad()

            findings = controller.end_epoch()
            if rank == 0:
                kept = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save({**kept, "controller": controller.state_dict()}, options.out)
            if world > 1:
                dist.barrier()  # torchrun ends them all with the first that fails, so nobody fails before it is saved
            stop_on(findings, str(options.out))

            model.eval()
            with torch.no_grad():
                images, labels = (held.to(device) for held in digits.held_out.tensors)
                accuracy = (model(images.flatten(1)).argmax(1) == labels).float().mean()
            say(f"epoch {epoch}: accuracy {accuracy:.3f}, updates {controller.updates}")
        stop_on(controller.finish(), None)
    return model


def main(arguments: Sequence[str] | None = None) -> nn.Module:
    """Join the other processes, if there are any, and train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--accumulate", type=int, default=1, help="batches whose gradients make one optimizer step")
    parser.add_argument("--out", type=Path, default=Path("plain_loop.pt"), help="where it saves after each epoch")
    parser.add_argument("--resume", type=Path, help="a file that it saved, to go on from")
    options = parser.parse_args(arguments)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        return train(options, rank, world)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        return train(options, rank, world)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
