"""The matrix: strategies × precisions × accumulation × skip_backward × schedules, run by real processes.

``python -m tests.processes.matrix`` runs all of it and prints the table; ``--write`` puts it into the guide. In every case
an observer of its own looks, on every rank, at which bits each optimizer step has moved.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import FSDPPrecision, MixedPrecision
from pytorch_lightning.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import DataLoader, Subset

from lightning_freeze import Every, FreezeScheduler, Phase, Phases
from lightning_freeze.plan.selectors import clean_name
from tests.conftest import batches, make_trainer
from tests.pages import PAGES, write_part
from tests.processes.pairs import Case, Outcome, run_pairs

PAGE = PAGES["examples/guide/distributed.md"]

WINDOWS = 8
BATCH = 4  # of all processes together
GROUPS = {"bottom": ["blocks.0", "blocks.1"], "upper": "blocks.2", "head": ["layer1", "layer2"]}


class OnCPU(FSDPStrategy):
    """FSDP1 as Lightning runs it, on the CPU, which Lightning leaves to GPUs."""

    def _setup_model(self, model: nn.Module) -> nn.Module:
        return FullyShardedDataParallel(
            model,
            mixed_precision=self.mixed_precision_config,
            device_id=torch.device("cpu"),
            **self.kwargs,
        )


ALONE = ("one process", "one process, GAN in manual optimization")


class OnCPUPrecision(FSDPPrecision):
    """Lightning's precisions of FSDP1, which know of CUDA alone, on the CPU."""

    def __init__(self, precision: Any) -> None:
        super().__init__(precision)
        if self.scaler is not None:
            self.scaler = ShardedGradScaler(device="cpu", init_scale=2.0**4)

    def forward_context(self) -> Any:
        if "mixed" not in self.precision:
            return super().forward_context()
        return torch.autocast("cpu", torch.bfloat16 if self.precision == "bf16-mixed" else torch.float16)


STRATEGIES: dict[str, Any] = {
    **dict.fromkeys(ALONE, lambda: SingleDeviceStrategy("cpu")),
    "DDP": lambda: DDPStrategy(),
    "DDP, several buckets": lambda: DDPStrategy(bucket_cap_mb=1e-4),  # type: ignore[arg-type]
    "DDP, gradients as views": lambda: DDPStrategy(gradient_as_bucket_view=True),
    "DDP, unused parameters": lambda: DDPStrategy(find_unused_parameters=True),
    "DDP, static graph": lambda: DDPStrategy(static_graph=True),
    "DDP, compiled": lambda: DDPStrategy(),
    "DDP, GAN in manual optimization": lambda: DDPStrategy(find_unused_parameters=True),
    "FSDP1": lambda: OnCPU(use_orig_params=True, auto_wrap_policy={nn.Linear}),
    "FSDP1, flat parameters": lambda: OnCPU(use_orig_params=False, auto_wrap_policy={nn.Linear}),
    "FSDP2": lambda: ModelParallelStrategy(2, 1),
    "FSDP2, bfloat16 policy": lambda: ModelParallelStrategy(2, 1),
    "tensor parallel": lambda: ModelParallelStrategy(1, 2),
    "FSDP2, tensor parallel, four processes": lambda: ModelParallelStrategy(2, 2),
    "FSDP2, hybrid, four processes": lambda: ModelParallelStrategy(2, 2),
}
UNSKIPPED = ("DDP, static graph", "DDP, compiled", "FSDP1")
PRECISIONS = {
    "32-true": torch.float32,
    "bf16-mixed": torch.float32,
    "bf16-true": torch.bfloat16,
    "16-mixed": torch.float32,
    "16-true": torch.float16,
    "64-true": torch.float64,
}
# How far a weight may be from that of one process, of weights of some 0.5 that a step moves by some 0.01.
TOLERANCES = {
    "32-true": 2e-6,
    "bf16-mixed": 2e-3,
    "bf16-true": 2e-2,
    "16-mixed": 3e-4,
    "16-true": 3e-3,
    "64-true": 1e-13,
}
# For each schedule, which of a row of windows each group trains in.
SCHEDULES: dict[str, tuple[Any, Mapping[str, str]]] = {
    "every": (lambda: Every({"bottom": 3, "upper": 2}, of="head"), {"bottom": "100", "upper": "10", "head": "1"}),
    "phases": (
        lambda: Phases(
            [Phase(["head"], updates=2), Phase(["bottom"], updates=1), Phase(["upper", "head"], updates=1)], True
        ),
        {"bottom": "0010", "upper": "0001", "head": "1101"},
    ),
}
GAN_SCHEDULE: tuple[Any, Mapping[str, str]] = (
    lambda: Every({"generator": 3}, of="discriminator"),
    {"generator": "100", "discriminator": "1"},
)


@dataclass(frozen=True)
class Cell:
    """One case of the matrix."""

    strategy: str
    precision: str
    accumulate: int
    skip: Any
    schedule: str

    @property
    def name(self) -> str:
        """What its outcome is kept under."""
        return "-".join(str(part).replace(" ", "_") for part in asdict(self).values())

    @property
    def manual_optimization(self) -> bool:
        """Whether the model steps its optimizers itself."""
        return self.strategy.endswith("manual optimization")

    @property
    def world(self) -> int:
        """The processes that share it."""
        return 1 if self.strategy in ALONE else 4 if "four" in self.strategy else 2

    @property
    def share(self) -> tuple[int, int]:
        """Of how many parts of each batch this process gets which."""
        rank = int(os.environ.get("RANK", 0))
        if self.strategy.startswith("tensor") or self.world == 1:
            return 1, 0
        return (2, rank // 2) if "tensor" in self.strategy else (self.world, rank)

    def expected(self) -> dict[str, list[bool]]:
        """For each group, whether each window moves it."""
        _, row = GAN_SCHEDULE if self.manual_optimization else SCHEDULES[self.schedule]
        return {group: [turns[n % len(turns)] == "1" for n in range(WINDOWS)] for group, turns in row.items()}


def cells(**only: Sequence[Any]) -> list[Cell]:
    """The cases of the matrix, or those with these values alone."""
    axes: dict[str, Sequence[Any]] = {
        "strategy": list(STRATEGIES),
        "precision": list(PRECISIONS),
        "accumulate": (1, 2),
        "skip": ("auto", True, False),
        "schedule": list(SCHEDULES),
        **only,
    }
    every = [Cell(*values) for values in itertools.product(*axes.values())]
    # A model that steps by hand accumulates by hand, and has a schedule of its own. What insists on skipping does what `auto`
    # does, or is refused: it is asked once.
    return [
        c for c in every if (c.accumulate, c.schedule) == (1, "every") or not (c.manual_optimization or c.skip is True)
    ]


class _Common(pl.LightningModule):
    """What the models share: a forward in the precision asked for, and optimizers that a gradient of zero would move."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell = cell

    def batch(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        x, y = (part.to(PRECISIONS[self.cell.precision]) for part in batch)
        return x, y

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(module.parameters(), lr=0.02, momentum=0.9, weight_decay=0.1)


class Stack(_Common):
    """Three blocks and two layers above them."""

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.layer1, self.layer2 = nn.Linear(4, 8), nn.Linear(8, 3)
        if cell.strategy == "DDP, compiled":
            self.blocks[0] = torch.compile(self.blocks[0], backend="eager")  # type: ignore[assignment]
            self.layer1 = torch.compile(self.layer1, backend="eager")  # type: ignore[assignment]

    def configure_model(self) -> None:
        mesh = self.device_mesh
        if "tensor parallel" in self.cell.strategy and mesh is not None:
            plan = {"layer1": ColwiseParallel(), "layer2": RowwiseParallel()}
            parallelize_module(self, mesh["tensor_parallel"], plan)
        if self.cell.strategy.startswith("FSDP2") and mesh is not None:
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if "policy" in self.cell.strategy else None
            over = mesh if "hybrid" in self.cell.strategy else mesh["data_parallel"]
            options: dict[str, Any] = {"mesh": over, **({"mp_policy": policy} if policy else {})}
            for block in self.blocks:
                fully_shard(block, **options)
            fully_shard(self, **options)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.layer2(torch.tanh(self.layer1(x)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = self.batch(batch)
        return nn.functional.mse_loss(self(x).to(y.dtype), y)

    def configure_optimizers(self) -> Any:
        return self.optimizer(self)


class GAN(_Common):
    """Two networks in manual optimization, the discriminator first."""

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)
        self.automatic_optimization = False
        self.generator, self.discriminator = nn.Linear(4, 4), nn.Linear(4, 1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        real, _ = self.batch(batch)
        for turn, optimizer in zip((1, 0), reversed(self.optimizers()), strict=True):  # type: ignore[call-overload]
            fake = self.generator(real)
            score = self.discriminator(torch.cat([real, fake.detach()]) if turn else fake).mean()
            optimizer.zero_grad()
            self.manual_backward(score if turn else -score)
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [self.optimizer(self.generator), self.optimizer(self.discriminator)]


class Observed(pl.Callback):
    """Whether each window moved each group, bit for bit, in what this process holds of it."""

    def __init__(self, accumulate: int) -> None:
        self.accumulate = accumulate
        self.moved: dict[str, list[bool]] = {}
        self._before: dict[str, list[bytes]] = {}

    def _held(self, module: pl.LightningModule) -> dict[str, list[bytes]]:
        groups = (
            {"generator": [module.generator], "discriminator": [module.discriminator]}
            if isinstance(module, GAN)
            else {
                "bottom": [module.blocks[0], module.blocks[1]],
                "upper": [module.blocks[2]],
                "head": [module.layer1, module.layer2],
            }
        )  # type: ignore[index]
        return {
            group: [_bits(p) for one in modules for p in one.parameters()]  # type: ignore[union-attr]
            for group, modules in groups.items()
        }

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx % self.accumulate == 0:
            self._before = self._held(module)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % self.accumulate == 0:
            for group, held in self._held(module).items():
                self.moved.setdefault(group, []).append(held != self._before[group])


def _bits(parameter: Any) -> bytes:
    """What this process holds of a parameter, bit for bit."""
    local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return local.detach().contiguous().view(torch.uint8).numpy().tobytes()  # type: ignore[no-any-return]


def whole(trainer: pl.Trainer, module: nn.Module) -> dict[str, list[float]]:
    """Every weight, put together from what the processes hold."""
    wrapped = trainer.strategy.model
    if isinstance(wrapped, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(wrapped, writeback=False):
            return _numbers(module)
    return _numbers(module)


def _numbers(module: nn.Module) -> dict[str, list[float]]:
    full = {name: p.full_tensor() if hasattr(p, "full_tensor") else p for name, p in module.named_parameters()}
    return {name: p.detach().double().reshape(-1).tolist() for name, p in full.items()}


def made(
    root: Path, cell: Cell, *callbacks: pl.Callback, **options: Any
) -> tuple[pl.Trainer, pl.LightningModule, FreezeScheduler]:
    """A Trainer, a model and its scheduler for a case.

    Args:
        root: Where the Trainer writes.
        cell: The case.
        callbacks: Beside the scheduler.
        options: Of the Trainer, instead of the case's own.
    """
    schedule, _ = GAN_SCHEDULE if cell.manual_optimization else SCHEDULES[cell.schedule]
    model: pl.LightningModule = GAN(cell) if cell.manual_optimization else Stack(cell)
    scheduler = FreezeScheduler(
        schedule(), None if cell.manual_optimization else GROUPS, rest="error", skip_backward=cell.skip
    )
    precision: dict[str, Any] = {"precision": cell.precision}
    if cell.strategy.startswith("FSDP1"):
        precision = {"plugins": [OnCPUPrecision(cell.precision)]}
    elif cell.precision == "16-mixed":  # on a CPU Lightning makes bf16 of it
        scaler = GradScaler("cpu", init_scale=2.0**4)
        precision = {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}
    own = {
        "strategy": STRATEGIES[cell.strategy](),
        "devices": cell.world,
        "accumulate_grad_batches": cell.accumulate,
        "use_distributed_sampler": False,
        **precision,
    }
    return make_trainer(root, scheduler, *callbacks, **{**own, **options}), model, scheduler


def run(root: Path, **axes: Any) -> dict[str, Any]:
    """Run one case in this process; under several, all of them call it together."""
    cell = Cell(**axes)
    observed = Observed(cell.accumulate)
    trainer, model, scheduler = made(root, cell, observed)
    trainer.fit(model, data(cell))
    choice = scheduler.controller.backward  # type: ignore[union-attr]
    return {
        "moved": observed.moved,
        "updates": scheduler.updates,
        "skips": choice.skips,
        "why": choice.why,
        "weights": whole(trainer, model),
        "findings": [finding.message for finding in scheduler.findings],
        "restored": restored(trainer, model),
    }


def restored(trainer: pl.Trainer, model: nn.Module) -> bool:
    """Whether nothing of ours is left on the model and its optimizers."""
    hooks = [h for o in trainer.optimizers for h in (o._optimizer_step_pre_hooks, o._optimizer_step_post_hooks)]
    loading = "load_checkpoint" in vars(trainer.strategy)
    return (
        all(p.requires_grad for p in model.parameters())
        and all(module.training for module in model.modules())
        and torch.backends.mha.get_fastpath_enabled()
        and not (any(hooks) or loading)
    )


def data(cell: Cell) -> DataLoader[Any]:
    """The batches of one process; those that hold parts of the same layers get the same of them."""
    shares, place = cell.share
    samples = batches(WINDOWS * cell.accumulate, size=BATCH).dataset
    mine = range(place, WINDOWS * cell.accumulate * BATCH, shares)
    return DataLoader(Subset(samples, mine), batch_size=BATCH // shares)


def outcomes_of(wanted: Sequence[Cell], root: Path) -> dict[Cell, list[Outcome]]:
    """What became of each case: in this process where it takes one alone, else in pairs of processes."""
    found: dict[Cell, list[Outcome]] = {}
    for cell in wanted:
        if cell.world == 1:
            try:
                found[cell] = [Outcome(run(root, **asdict(cell)))]
            except Exception as error:
                found[cell] = [Outcome(None, type(error).__name__, str(error))]
    pairs = {cell.name: cell for cell in wanted if cell.world > 1}
    cases = [Case(name, "tests.processes.matrix:run", asdict(c), world=c.world) for name, c in pairs.items()]
    found |= {pairs[name]: outcomes for name, outcomes in run_pairs(root, cases).items()}
    return {cell: found[cell] for cell in wanted}


# Who refuses what, by the text of the refusal: Lightning and we before training, torch in the middle.
REFUSALS = {
    "The `ModelParallelStrategy` does not support": "Lightning",
    "is not supported in FSDP": "Lightning",
    "expect_autograd_hooks_ INTERNAL ASSERT": "torch",
    "_amp_foreach_non_finite_check_and_unscale_.default: got mixed torch.Tensor and DTensor": "torch",
    "the strategy is FSDP with use_orig_params=False": "freeze",
    "`skip_backward` is true, which is not safe here": "freeze",
}


def expected_refusal(cell: Cell) -> str | None:
    """Who is to refuse a case."""
    if cell.strategy == "FSDP1, flat parameters":
        return "Lightning" if cell.precision == "64-true" else "freeze"
    if cell.precision == "64-true" and cell.strategy.startswith(("FSDP", "tensor")):
        return "Lightning"
    if cell.skip is True and (
        cell.strategy in UNSKIPPED or (cell.manual_optimization and cell.precision == "16-mixed")
    ):
        return (
            "freeze"  # the generator's optimizer would come to its step without any gradient, at which a scaler fails
        )
    if cell.strategy == "tensor parallel" and cell.precision == "16-mixed":
        return "torch"  # whose scaler cannot take split and whole parameters together
    return "torch" if cell.strategy == "DDP, static graph" and cell.accumulate > 1 else None


def refusal(outcomes: Sequence[Outcome]) -> str | None:
    """Who has refused a case, where all ranks were refused alike by one who is known to."""
    if not all(outcome.error for outcome in outcomes):
        return None
    who = {next((by for text, by in REFUSALS.items() if text in o.text), None) for o in outcomes}
    return who.pop() if len(who) == 1 else None


def faults(cell: Cell, outcomes: Sequence[Outcome], reference: Mapping[str, list[float]]) -> list[str]:
    """What does not hold of a case; nothing, if all is well.

    Args:
        cell: The case.
        outcomes: Of each rank.
        reference: The weights after the same run on one process.
    """
    wanted, refused = expected_refusal(cell), refusal(outcomes)
    if refused != wanted:
        texts = [f"rank {n}: {o.error}: {o.text[-2000:]}\n{o.trace[-2000:]}" for n, o in enumerate(outcomes)]
        return [f"refused by {refused}, not by {wanted}", *texts]
    if refused is not None:
        return []
    found = [f"rank {n}: {o.error}: {o.text[-2000:]}\n{o.trace[-2000:]}" for n, o in enumerate(outcomes) if o.error]
    if found:
        return found
    expected = cell.expected()
    for rank, outcome in enumerate(outcomes):
        made = outcome.result
        updates = {group: sum(turns) for group, turns in expected.items()}
        checks = {
            "moved": made["moved"] == expected,
            "updates": made["updates"] == updates,
            "findings": made["findings"] == [],
            "restored": made["restored"],
            "skips": made["skips"] == should_skip(cell),
            "equal on ranks": json.dumps(made["weights"])
            == json.dumps(outcomes[0].result["weights"]),  # -0.0 is not 0.0
        }
        found += [f"rank {rank}: {what}: {made.get(what)}" for what, holds in checks.items() if not holds]
    apart = distance(outcomes[0].result["weights"], reference)
    if not apart <= tolerance(cell):
        found.append(f"{apart:.3g} from one process, more than {tolerance(cell):.3g}")
    return found


def should_skip(cell: Cell) -> bool:
    """Whether the case leaves out backward work."""
    return cell.skip is True or (
        cell.skip == "auto" and not cell.manual_optimization and cell.strategy not in UNSKIPPED
    )


def tolerance(cell: Cell) -> float:
    """How far its weights may be from those of one process."""
    rounds = "bf16-mixed" if cell.strategy == "FSDP2, bfloat16 policy" else cell.precision
    return max(TOLERANCES[rounds], TOLERANCES[cell.precision])


def distance(weights: Mapping[str, list[float]], reference: Mapping[str, list[float]]) -> float:
    """The greatest difference of two weights of the same name, cleaned of what compiling adds."""
    clean = {clean_name(name): values for name, values in weights.items()}
    if clean.keys() != reference.keys():
        return math.inf
    return max(abs(a - b) for name in clean for a, b in zip(clean[name], reference[name], strict=True))


def references(wanted: Iterable[Cell], root: Path) -> dict[Cell, dict[str, list[float]]]:
    """For each case the weights of the same run on one process, which skips nothing."""
    alone = {cell: replace(cell, strategy=ALONE[cell.manual_optimization], skip=False) for cell in wanted}
    weights = {cell: run(root, **asdict(cell))["weights"] for cell in set(alone.values())}
    return {cell: weights[alone[cell]] for cell in wanted}


def table(outcomes: Mapping[Cell, Sequence[Outcome]]) -> str:
    """The table: what became of the cases of each strategy and precision."""
    lines = [
        f"| two processes, unless one is named | {' | '.join(PRECISIONS)} |",
        f"|---|{'---|' * len(PRECISIONS)}",
    ]
    for strategy in STRATEGIES:
        row = [
            _word({c: o for c, o in outcomes.items() if (c.strategy, c.precision) == (strategy, p)}) for p in PRECISIONS
        ]
        lines.append(f"| {strategy} | {' | '.join(row)} |")
    return "\n".join(lines)


def _word(outcomes: Mapping[Cell, Sequence[Outcome]]) -> str:
    """What to say of the cases of one strategy and precision."""
    ran = {cell: found for cell, found in outcomes.items() if refusal(found) is None}
    if any(outcome.error for found in ran.values() for outcome in found):
        return "fails"
    if not ran:
        return f"refused by {' and '.join(sorted({str(refusal(found)) for found in outcomes.values()}))}"
    skips = any(found[0].result["skips"] for cell, found in ran.items() if cell.skip == "auto")
    lacks = {refusal(found) for cell, found in outcomes.items() if cell.skip is not True} - {None}
    return ("skips" if skips else "holds") + (", not with accumulation" if lacks else "")


def section(outcomes: Mapping[Cell, Sequence[Outcome]]) -> str:
    """The part of the page that is made here."""
    held = sum(refusal(found) is None for found in outcomes.values())
    return f"{table(outcomes)}\n\n{held} runs held, {len(outcomes) - held} were refused.\n"


def check(wanted: Sequence[Cell], root: Path) -> tuple[dict[Cell, list[Outcome]], list[str]]:
    """Run cases; what became of them, and what does not hold."""
    outcomes = outcomes_of(wanted, root)
    alone = references([cell for cell in wanted if expected_refusal(cell) is None], root)
    problems = [f"{cell}: {fault}" for cell in wanted for fault in faults(cell, outcomes[cell], alone.get(cell, {}))]
    return outcomes, problems


def main(arguments: Sequence[str]) -> int:
    """Run all of it; 1 where something does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into the guide")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as root:
        outcomes, problems = check(cells(), Path(root))
    print(section(outcomes))
    print("\n".join(problems), file=sys.stderr)
    if asked.write and not problems:
        write_part(PAGE, "matrix", section(outcomes))
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
