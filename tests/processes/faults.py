"""What can go wrong between processes, made to go wrong; and what each of them then has. Run in pairs by `test_faults.py`."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from pytorch_lightning.plugins.precision import MixedPrecision
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch import distributed as dist
from torch.amp import GradScaler
from torch.distributed.fsdp import fully_shard

from lightning_freeze import (
    AlternatingFreeze,
    Every,
    FreezeAudit,
    FreezeController,
    FreezeScheduler,
    FreezeViolation,
    Phase,
    Phases,
    Pick,
    Until,
)
from tests.conftest import Net, batches, make_trainer
from tests.observer import Snapshots
from tests.probe.planted_optimizers import FillsZeros
from tests.processes.matrix import Cell, OnCPU, Stack, data, made, restored, whole

DDP = Cell("DDP", "32-true", 1, "auto", "every")


def rank() -> int:
    """This process's."""
    return int(os.environ["RANK"])


def join() -> None:
    """Make sure of a process group, as cases before this one may have left one."""
    if not dist.is_initialized():
        dist.init_process_group("gloo")


class At(pl.Callback):
    """Does something after a batch, on rank 1 alone."""

    def __init__(self, batch: int, what: Callable[[Any], None]) -> None:
        self.batch, self.what = batch, what

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.batch and trainer.global_rank == 1:
            self.what(module)


def stopped(fit: Callable[[], None]) -> dict[str, Any]:
    """What stopped a fit, as a rank sees it."""
    try:
        fit()
    except FreezeViolation as error:
        saved = error.checkpoint is not None and Path(error.checkpoint).exists()
        return {"kinds": [f.kind for f in error.findings], "text": str(error), "saved": saved}
    return {"kinds": [], "text": "", "saved": False}


# --- one rank writes ------------------------------------------------------------------------------------------------


def frozen_write(root: Path, every: int | None = None, audit_alone: bool = False) -> dict[str, Any]:
    """Rank 1 alone writes to a frozen weight, after the third of six batches."""
    model = Net()

    def write(module: Any) -> None:
        module.layer1.weight.data.mul_(1.01)

    audit = FreezeAudit(every_n_updates=every, inputs=False)
    scheduler: Any = audit if audit_alone else AlternatingFreeze("layer1", "layer2", every=4, audit=audit)
    if audit_alone:
        model.layer1.requires_grad_(False)
    seen: list[int] = []
    trainer = make_trainer(root, scheduler, At(2, write), Batches(seen), strategy="ddp", devices=2)
    return {
        **stopped(lambda: trainer.fit(model, batches(12))),
        "batches": len(seen),
        "findings": len(scheduler.findings),
    }


class Batches(pl.Callback):
    """Notes the batches that were begun."""

    def __init__(self, seen: list[int]) -> None:
        self.seen = seen

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(batch_idx)


def trained_write(root: Path, strategy: str = "DDP") -> dict[str, Any]:
    """Rank 1 alone writes to weights that train: the ranks are replicas no more."""

    def write(module: Any) -> None:
        if strategy == "DDP":
            module.layer1.weight.data[1].add_(0.5)
        module.layer2.bias.data.add_(0.5)

    cell = Cell(strategy, "32-true", 1, "auto", "every")
    trainer, model, scheduler = made(root, cell, At(5, write))
    found = stopped(lambda: trainer.fit(model, data(cell)))
    return {**found, "parameters": [f.parameter for f in scheduler.findings]}


# --- the ranks are not given the same --------------------------------------------------------------------------------


def another_schedule(root: Path) -> None:
    """Every rank a period of its own."""
    scheduler = AlternatingFreeze("layer1", "layer2", every=3 + rank())
    make_trainer(root, scheduler, strategy="ddp", devices=2).fit(Net(), batches(12))


def another_checkpoint(root: Path) -> None:
    """Every rank resumes from a checkpoint of its own, of another step, as from a local disk."""
    cell = DDP
    trainer, model, _ = made(root, cell, max_epochs=1)
    trainer.fit(model, data(cell))
    path = root.parent / f"{root.name}-{rank()}.ckpt"
    trainer.strategy.barrier()
    saved = trainer._checkpoint_connector.dump_checkpoint()
    saved["callbacks"]["lightning_freeze.FreezeScheduler"]["position"]["updates"]["bottom"] += rank()
    torch.save(saved, path)
    trainer, model, _ = made(root, cell, max_epochs=2)
    trainer.strategy.broadcast = lambda obj, src=0: obj  # type: ignore[method-assign]
    trainer.fit(model, data(cell), ckpt_path=str(path))


def counts_apart(root: Path) -> dict[str, Any]:
    """Rank 1 comes to count an update more, within the epoch."""
    trainer, model, scheduler = made(root, DDP)
    controller = At(3, lambda module: scheduler.controller._place.at.updates.__setitem__("bottom", 7))  # type: ignore[union-attr]
    trainer.callbacks.append(controller)  # type: ignore[attr-defined]
    return stopped(lambda: trainer.fit(model, data(DDP)))


# --- a process is lost ----------------------------------------------------------------------------------------------


class SameData(Stack):
    """Its data depend on rank, epoch and batch alone, so that a resumed run sees what the straight one saw."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        place = 1000 * self.trainer.global_rank + 100 * self.trainer.current_epoch + batch_idx
        generator = torch.Generator().manual_seed(place)
        x, y = torch.randn(2, 4, generator=generator), torch.randn(2, 3, generator=generator)
        return super().training_step([x, y], batch_idx)


class Killed(pl.Callback):
    """Kills rank 1 in the second epoch."""

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 1 and batch_idx == 4 and rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def interrupted(root: Path, kills: bool = False, path: str | None = None) -> dict[str, Any]:
    """A run of two epochs: as it is, with rank 1 killed in its middle, or gone on with from a checkpoint."""
    every = ModelCheckpoint(root, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    also = [every, Killed()] if kills else []
    trainer, _, scheduler = made(root, DDP, *also, max_epochs=2, enable_checkpointing=kills)
    model, error = SameData(DDP), ""
    try:
        trainer.fit(model, data(DDP), ckpt_path=path)
    except RuntimeError as lost:  # gloo's, of the connection
        error = type(lost).__name__
    return {
        "weights": whole(trainer, model),
        "updates": scheduler.updates,
        "error": error,
        "restored": restored(trainer, model),
    }


class Raises(pl.Callback):
    """A user's hook that fails, on these ranks, while something is frozen."""

    def __init__(self, ranks: tuple[int, ...]) -> None:
        self.ranks = ranks
        self.frozen = False

    def on_after_backward(self, trainer: Any, module: Any) -> None:
        if trainer.global_step == 4 and trainer.global_rank in self.ranks:
            self.frozen = not all(p.requires_grad for p in module.parameters())
            raise ValueError("a user's hook")


def hook_raises(root: Path, everywhere: bool, strategy: str) -> dict[str, Any]:
    """A user's hook fails on rank 1, or on both: on all ranks everything is undone."""
    raises = Raises((0, 1) if everywhere else (1,))
    cell = Cell(strategy, "32-true", 1, "auto", "every")
    saves = OnExceptionCheckpoint(root, "exception") if everywhere and strategy == "DDP" else pl.Callback()
    trainer, model, _ = made(root, cell, raises, saves, enable_checkpointing=True)
    error = ""
    try:
        trainer.fit(model, data(cell))
    except Exception as caught:
        error = type(caught).__name__
    found = {"error": error, "restored": restored(trainer, model), "frozen": raises.frozen}
    if not everywhere and rank() == 1:
        (root / "rank-1.json").write_text(json.dumps(found))
        os._exit(1)  # as a script that fails does: only then the other gets to know
    return found


# --- what ranks count ------------------------------------------------------------------------------------------------


class _OneOverflow(torch.autograd.Function):
    """Worth nothing forward; backward one infinity, in the first element."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        ctx.shape = weight.shape
        return weight.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        found = torch.zeros(ctx.shape)
        found.view(-1)[0] = float("inf")
        return found


class Slim(Net):
    """Layers of which a process may hold nothing."""

    def __init__(self, sharded: bool, overflows: tuple[int, ...] = ()) -> None:
        super().__init__(lambda model: torch.optim.AdamW(model.parameters(), lr=0.01))
        self.sharded, self.overflows, self.overflowing = sharded, overflows, False
        self.layer1, self.layer2 = nn.Linear(4, 1), nn.Linear(1, 3)
        self.layer2.register_forward_hook(
            self._overflow
        )  # before FSDP2's own, which takes the whole weights away again

    def configure_model(self) -> None:
        if self.sharded:
            for layer in (self.layer1, self.layer2):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])  # type: ignore[index]
            fully_shard(self, mesh=self.device_mesh["data_parallel"])  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layer1(x)
        return self.layer2(torch.tanh(hidden))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        self.overflowing = batch_idx in self.overflows
        return super().training_step(batch, batch_idx)

    def _overflow(self, layer: nn.Module, handed: Any, made: Tensor) -> Tensor:
        return made + _OneOverflow.apply(layer.bias) if self.overflowing else made


def empty_shards(root: Path, strategy: str) -> dict[str, Any]:
    """The biases of a layer lie on one rank as a whole; both count their updates, and neither finds anything."""
    schedule = Every({"biases": 2}, of="weights")
    groups: dict[str, Any] = {"biases": "**.bias", "weights": "**.weight"}
    scheduler = FreezeScheduler(schedule, groups, rest="error")
    sharded = strategy == "FSDP2"
    how = ModelParallelStrategy(2, 1) if sharded else OnCPU(use_orig_params=True, auto_wrap_policy={nn.Linear})
    model = Slim(sharded)
    trainer = make_trainer(root, scheduler, strategy=how, devices=2)
    trainer.fit(model, batches(10))
    sizes = {n: getattr(p, "to_local", lambda p=p: p)().numel() for n, p in model.named_parameters()}
    return {
        "updates": scheduler.updates,
        "findings": [finding.message for finding in scheduler.findings],
        "empty": sorted(name.split(".")[-1] for name, size in sizes.items() if size == 0),
    }


def overflow_in_one_shard(root: Path) -> dict[str, Any]:
    """An infinity in the shard of one rank skips the step on both, and neither counts it."""
    scheduler = AlternatingFreeze("layer1", "layer2", every=3)
    scaler = GradScaler("cpu", init_scale=2.0**4, growth_interval=1000)
    trainer = make_trainer(
        root,
        scheduler,
        strategy=ModelParallelStrategy(2, 1),
        devices=2,
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
    )
    trainer.fit(Slim(True, overflows=(2, 3)), batches(18))
    return {"updates": scheduler.updates, "findings": [finding.message for finding in scheduler.findings]}


class Deep(Net):
    """Six blocks, and a score that each rank logs as another value, rank 1 alone one that gets no better."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return super().forward(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        worse = 1.0 if self.trainer.global_rank else -1.5 * self.trainer.current_epoch
        self.log("score", worse, on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)


class Trace(pl.Callback):
    """What trains after each batch, under global seeds of each rank's own."""

    def __init__(self, scheduler: FreezeScheduler) -> None:
        self.scheduler = scheduler
        self.seen: list[list[str]] = []

    def on_train_start(self, trainer: Any, module: Any) -> None:
        for seed in (random.seed, torch.manual_seed):
            seed(100 + trainer.global_rank)

    def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
        self.seen.append(sorted(self.scheduler.trainable))


def draws(root: Path) -> dict[str, Any]:
    """Picks, and a phase that a metric ends, under other global seeds and other values on each rank."""
    schedule = Phases(
        [
            Phases([Phase(["ends"], updates=2, pick=Pick("blocks", count=2))], repeat=8),
            Phase(["ends"], until=Until("score", patience=1, max_epochs=3)),
            Phase(["ends"], pick=Pick("blocks", order="shuffle")),
        ]
    )
    groups: dict[str, Any] = {"blocks": {"each": "blocks.*"}, "ends": ["layer1", "layer2"]}
    scheduler = FreezeScheduler(schedule, groups, rest="error")
    trace = Trace(scheduler)
    trainer = make_trainer(root, scheduler, trace, strategy="ddp", devices=2, max_epochs=8)
    trainer.fit(Deep(), batches(12))
    weights = [float(p.double().sum()) for p in trainer.model.parameters()]  # type: ignore[union-attr]
    return {"seen": trace.seen, "weights": weights}


# --- what plain DDP needs --------------------------------------------------------------------------------------------


def untold(root: Path) -> str:
    """Plain DDP whose reducer is not told of what is frozen: the error."""
    from lightning_freeze.holds.ddp import ZeroGradsForDDP

    sends = ZeroGradsForDDP.after_backward
    ZeroGradsForDDP.after_backward = lambda self, steps: setattr(self, "_sent", True)  # type: ignore[method-assign]
    try:
        trainer, model, _ = made(root, DDP)
        trainer.fit(model, data(DDP))
    except RuntimeError as error:
        return str(error)
    finally:
        ZeroGradsForDDP.after_backward = sends  # type: ignore[method-assign]
    return ""


# --- what one rank meets alone, and forwards between the batches ------------------------------------------------------


class Wide(Stack):
    """With a batch norm in what freezes, and a validation."""

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)
        self.blocks[0] = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self(batch[0])


class Looks(pl.Callback):
    """Calls the model without gradients after each batch, as a probe would."""

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        with torch.no_grad():
            module(batch[0])


def looked_at(root: Path) -> dict[str, Any]:
    """FSDP2 leaves its outermost layer unsharded after each forward without a backward, and in the sanity check."""
    cell = Cell("FSDP2", "32-true", 1, "auto", "every")
    trainer, _, scheduler = made(root, cell, Looks(), num_sanity_val_steps=1)
    scheduler._options["frozen_modules"] = "eval"
    scheduler._groups = {"bottom": "blocks.0", "upper": ["blocks.1", "blocks.2"], "head": ["layer1", "layer2"]}
    scheduler._schedule = Phases([Phase(["head", "upper"])])
    model = Wide(cell)
    trainer.fit(model, data(cell), data(cell))
    norm = model.blocks[0][1]
    return {
        "updates": scheduler.updates,
        "tracked": int(norm.num_batches_tracked),
        "mean": norm.running_mean.tolist(),
        "findings": [finding.message for finding in scheduler.findings],
    }


def thaws_after_a_look(root: Path) -> dict[str, int]:
    """What thaws gets its gradient, though a forward without one came between."""
    cell = Cell("FSDP2", "32-true", 1, "auto", "phases")
    trainer, model, scheduler = made(root, cell, Looks())
    trainer.fit(model, data(cell))
    return scheduler.updates


def copies_after_validation(root: Path) -> dict[str, Any]:
    """Of four ranks the last writes to a copy of a shard; a validation follows before the epoch ends."""
    cell = Cell("FSDP2, hybrid, four processes", "32-true", 1, "auto", "every")

    class Writes(pl.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 5 and trainer.global_rank == 3:
                module.layer2.bias.to_local().data.add_(0.5)

    trainer, _, scheduler = made(root, cell, Writes())

    class Validated(Stack):
        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self(batch[0])

    found = stopped(lambda: trainer.fit(Validated(cell), data(cell), data(cell)))
    return {**found, "parameters": [f.parameter for f in scheduler.findings]}


class Branched(Net):
    """A layer that every second batch uses."""

    def __init__(self) -> None:
        super().__init__(lambda model: torch.optim.AdamW(model.parameters(), lr=0.01))
        self.layer1, self.layer2 = nn.Linear(4, 4), nn.Linear(4, 3)
        self.branch = nn.Linear(4, 4)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        self.takes = batch_idx % 2 == 0
        return super().training_step(batch, batch_idx)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.branch(x) if self.takes else x)


def branch(root: Path) -> dict[str, Any]:
    """FSDP1 keeps the bias of a layer on one rank: where the layer has no gradient, neither counts an update of it."""
    schedule = Phases([Phase(["all"])])
    scheduler = FreezeScheduler(schedule, {"branch": "branch", "others": ["layer1", "layer2"]}, rest="error")
    how = OnCPU(use_orig_params=True, auto_wrap_policy={nn.Linear})
    make_trainer(root, scheduler, strategy=how, devices=2).fit(Branched(), batches(12))
    return {"updates": scheduler.updates, "kinds": sorted({f.kind for f in scheduler.findings})}


def hand(root: Path) -> dict[str, Any]:
    """By hand, with comparisons within the epoch; rank 1 leaves out a step."""

    class Hand(Net):
        automatic_optimization = False

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
            loss = super().training_step(batch, batch_idx)
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            if batch_idx != 1 or rank() == 0:
                optimizer.step()
            return None

    model = Hand()
    model.automatic_optimization = False
    audit = FreezeAudit(every_n_updates=2, inputs=False)
    scheduler = AlternatingFreeze("layer1", "layer2", every=3, audit=audit)
    trainer = make_trainer(root, scheduler, strategy="ddp_find_unused_parameters_true", devices=2)
    return stopped(lambda: trainer.fit(model, batches(16)))


def second_try(root: Path) -> dict[str, Any]:
    """A fit within an ``except`` block, in which a checkpoint's comparison finds what rank 1 wrote."""
    cell = Cell("FSDP2", "32-true", 1, "auto", "phases")

    def write(module: Any) -> None:
        module.blocks[0].weight.to_local().data.add_(0.5)  # frozen at first

    every = ModelCheckpoint(root, every_n_train_steps=1, save_top_k=-1)
    trainer, model, _ = made(root, cell, At(0, write), every, enable_checkpointing=True)
    try:
        raise MemoryError("the first try")
    except MemoryError:
        return stopped(lambda: trainer.fit(model, data(cell)))


def cannot_save(root: Path) -> dict[str, Any]:
    """Rank 0 cannot write when a violation stops the run."""
    trainer, model, _ = made(root, DDP, At(5, lambda module: module.layer2.bias.data.add_(0.5)))
    original = trainer.strategy.save_checkpoint

    def save_checkpoint(*args: Any, **kwargs: Any) -> None:
        if rank() == 0:
            raise OSError("no space left")
        original(*args, **kwargs)

    trainer.strategy.save_checkpoint = save_checkpoint  # type: ignore[method-assign]
    return stopped(lambda: trainer.fit(model, data(DDP)))


def other_groups_in_one_checkpoint(root: Path) -> None:
    """What rank 1 goes on from was made with another schedule."""
    join()
    model = Net()
    ddp = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    controller = FreezeController(ddp, Every({"layer1": 2}, of="layer2"))
    controller.attach(optimizer)
    state = controller.state_dict()
    if rank() == 1:
        state["schedule"] = {**state["schedule"], "class_path": "Phases"}
    with controller:
        controller.begin(state=state)


def finds_at_the_end(root: Path) -> dict[str, Any]:
    """In a plain loop, rank 1 alone writes to something frozen, and to what its user froze, after the last epoch."""
    join()
    model = Net()
    model.own = nn.Parameter(torch.ones(3), requires_grad=False)
    ddp = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD([*model.layer1.parameters(), *model.layer2.parameters()], lr=0.1)
    with FreezeController(ddp, Phases([Phase(["layer2"])]), {"layer1": "layer1", "layer2": "layer2"}) as controller:
        controller.attach(optimizer)
        controller.begin()
        controller.begin_step()
        ddp(torch.ones(2, 4)).sum().backward()
        controller.after_backward()
        optimizer.step()
        if rank() == 1:
            model.own.data.add_(1.0)
        epoch = controller.end_epoch()
        if rank() == 1:
            model.layer1.weight.data.mul_(1.01)
        return {"epoch": [f.parameter for f in epoch], "end": [f.message for f in controller.finish()]}


def left_out(root: Path) -> dict[str, Any]:
    """Under DDP, which is told of what backward skips, an optimizer that is held by leaving out steps with closures."""
    seen = Snapshots("layer1")
    model = Net(lambda module: FillsZeros(module.parameters(), lr=0.1))
    scheduler = FreezeScheduler(Every({"layer1": 3}, of="layer2"))
    make_trainer(root, scheduler, seen, strategy="ddp", devices=2).fit(model, batches(16))
    controller = scheduler.controller
    assert controller is not None
    return {
        "moved": seen.moved(),
        "skips": controller.backward.skips,
        "updates": scheduler.updates,
        "findings": [finding.message for finding in scheduler.findings],
        "bits": [parameter.detach().numpy().tobytes().hex() for parameter in model.parameters()],
    }


def unmoved(root: Path) -> dict[str, Any]:
    """A rate that rounds everything away is told of, of layers of which a rank holds nothing, too."""
    model = Slim(True)
    model.make = lambda module: torch.optim.SGD(module.parameters(), lr=1e-30)
    scheduler = FreezeScheduler(Phases([Phase(["all"])]), {"layer1": "layer1", "layer2": "layer2"}, on_finding="warn")
    make_trainer(root, scheduler, strategy=ModelParallelStrategy(2, 1), devices=2).fit(model, batches(8))
    return {"parameters": sorted(str(f.parameter) for f in scheduler.findings if f.kind == "unmoved")}


# --- checkpoints -----------------------------------------------------------------------------------------------------


def saves(root: Path, strategy: str, save: str = "") -> dict[str, Any]:
    """Train an epoch and save it; with ``save``, FSDP2's checkpoint is ``sharded`` or ``whole``."""
    cell = Cell(strategy, "32-true", 1, "auto", "phases")
    trainer, model, scheduler = _made(root, cell, save, 1)
    trainer.fit(model, data(cell))
    trainer.save_checkpoint(root / "saved.ckpt")
    return {"weights": whole(trainer, model), "updates": scheduler.updates}


def loads(root: Path, strategy: str, path: str, save: str = "") -> dict[str, Any]:
    """Go on from there for an epoch; beside it, the run that was never interrupted."""
    cell = Cell(strategy, "32-true", 1, "auto", "phases")
    found = {}
    for name, ckpt_path in (("resumed", path), ("straight", None)):
        trainer, model, scheduler = _made(root, cell, save, 2)
        trainer.fit(model, data(cell), ckpt_path=ckpt_path)
        found[name] = {
            "weights": whole(trainer, model),
            "updates": scheduler.updates,
            "findings": [finding.message for finding in scheduler.findings],
            "restored": restored(trainer, model),
        }
    return found


def _made(root: Path, cell: Cell, save: str, epochs: int) -> Any:
    own: dict[str, Any] = {"max_epochs": epochs}
    if save:
        own["strategy"] = ModelParallelStrategy(2, 1, save_distributed_checkpoint=save == "sharded")
    trainer, model, scheduler = made(root, cell, **own)
    # A group that has not trained by the end of the first epoch: a checkpoint has no state of it.
    row = Phases([Phase(["head"], updates=5), Phase(["bottom"], updates=6), Phase(["upper", "head"], updates=2)], True)
    scheduler._schedule = row
    return trainer, model, scheduler


def post_local(root: Path) -> dict[str, Any]:
    """Ranks that average their weights now and then are not replicas in between, and are not taken for such."""
    from torch.distributed.algorithms.ddp_comm_hooks import post_localSGD_hook as post

    class Own(pl.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_rank == 1:
                module.layer2.weight.data.mul_(1.01)  # as a step of gradients of its own would

    state = post.PostLocalSGDState(process_group=None, subgroup=None, start_localSGD_iter=100)
    how = DDPStrategy(ddp_comm_state=state, ddp_comm_hook=post.post_localSGD_hook, model_averaging_period=50)
    scheduler = AlternatingFreeze("layer1", "layer2", every=3, skip_backward=False)
    trainer = make_trainer(root, scheduler, Own(), strategy=how, devices=2)
    trainer.fit(Net(), batches(12))
    return {"findings": [finding.message for finding in scheduler.findings], "updates": scheduler.updates}
