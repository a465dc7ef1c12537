"""Two real processes on gloo: frozen bits hold on each, a violation on one stops both, both draw the same groups, and skipping
backward work changes no bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HOLDS = """
from pathlib import Path
import torch
import pytorch_lightning as pl
from lightning_freeze import AlternatingFreeze, FreezeViolation
from tests.conftest import Net, batches, make_trainer

class Observed(pl.Callback):
    def __init__(self, sabotage):
        self.sabotage, self.moved = sabotage, []
    def on_train_batch_start(self, trainer, module, *rest):
        self.before = module.layer1.weight.detach().clone()
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.moved.append(not torch.equal(self.before, module.layer1.weight))
        if self.sabotage and batch_idx == 2 and trainer.global_rank == 1:
            module.layer1.weight.data.mul_(1.01)

def run(sabotage):
    scheduler, observed = AlternatingFreeze("layer1", "layer2", every=3), Observed(sabotage)
    trainer = make_trainer(root, scheduler, observed, strategy="ddp", devices=2)
    caught = None
    try:
        trainer.fit(Net(), batches(12))
    except FreezeViolation as error:
        caught = error
    expected = [step % 3 == 0 for step in range(6)]
    assert observed.moved == expected, observed.moved
    if sabotage:
        assert caught is not None and caught.checkpoint is not None and Path(caught.checkpoint).exists()
        assert len(caught.findings) == trainer.global_rank  # the write was on rank 1
        assert ("1 more on other ranks" in str(caught)) == (trainer.global_rank == 0)
    else:
        assert caught is None and scheduler.findings == []
        assert scheduler.updates == {"slow": 2, "fast": 6}
    Path(root, f"{sabotage}-{trainer.global_rank}").touch()

if __name__ == "__main__":
    run(sabotage=False)
    run(sabotage=True)
"""


DRAWS = """
import json, random
from pathlib import Path
import torch
import pytorch_lightning as pl
from torch import nn
from lightning_freeze import FreezeScheduler, Phase, Phases, Pick, Until
from tests.conftest import Net, batches, make_trainer

class Deep(Net):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(6))

    def forward(self, x):
        for block in self.blocks:
            x = torch.tanh(block(x))
        return super().forward(x)

    def training_step(self, batch, batch_idx):
        # Each rank logs another value, and rank 1 alone one that gets no better.
        worse = 1.0 if self.trainer.global_rank else -1.5 * self.trainer.current_epoch
        self.log("score", worse, on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)

class Trace(pl.Callback):
    seen = []
    def on_train_start(self, trainer, module):
        for seed in (random.seed, torch.manual_seed):
            seed(100 + trainer.global_rank)
    def on_train_batch_end(self, trainer, module, *rest):
        self.seen.append(sorted(scheduler.trainable))

if __name__ == "__main__":
    schedule = Phases([
        Phases([Phase(["ends"], updates=2, pick=Pick("blocks", count=2))], repeat=8),
        Phase(["ends"], until=Until("score", patience=1, max_epochs=3)),
        Phase(["ends"], pick=Pick("blocks", order="shuffle")),
    ])
    scheduler = FreezeScheduler(schedule, {"blocks": {"each": "blocks.*"}, "ends": ["layer1", "layer2"]}, rest="error")
    trace = Trace()
    trainer = make_trainer(root, scheduler, trace, strategy="ddp", devices=2, max_epochs=8)
    trainer.fit(Deep(), batches(12))
    weights = [float(p.double().sum()) for p in trainer.model.parameters()]
    Path(root, f"{trainer.global_rank}.json").write_text(json.dumps([trace.seen, weights]))
"""


SKIPS = """
import itertools, json
from pathlib import Path
import torch
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from lightning_freeze import FreezeScheduler, Phase, Phases, UnsupportedError
from lightning_freeze.gate.backward import BackwardSkip
from tests.conftest import Net, batches, make_trainer

STRATEGIES = {
    "plain": lambda: DDPStrategy(),
    "views": lambda: DDPStrategy(gradient_as_bucket_view=True),
    "unused": lambda: DDPStrategy(find_unused_parameters=True),
    "static": lambda: DDPStrategy(static_graph=True),
    "fsdp2": lambda: ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
}

class Deep(Net):
    def __init__(self, sharded):
        super().__init__(lambda model: torch.optim.AdamW(model.parameters(), lr=0.01))
        self.sharded, self.gradients = sharded, []
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def configure_model(self):
        if self.sharded:
            for block in self.blocks:
                fully_shard(block, mesh=self.device_mesh["data_parallel"])
            fully_shard(self, mesh=self.device_mesh["data_parallel"])

    def forward(self, x):
        for block in self.blocks:
            x = torch.tanh(block(x))
        return super().forward(x)

    def on_after_backward(self):
        self.gradients.append([p.grad is not None for p in self.parameters()])

def run(strategy, accumulate, skip):
    # It ends within the phase that freezes all but the head, so that the last step is one of those.
    row = Phases([Phase(["all"], updates=2), Phase(["head"], updates=2), Phase(["upper"], updates=3)], repeat=True)
    groups = {"bottom": ["blocks.0", "blocks.1"], "upper": "blocks.2", "head": ["layer1", "layer2"]}
    scheduler, model = FreezeScheduler(row, groups, skip_backward=skip), Deep(strategy == "fsdp2")
    trainer = make_trainer(
        root, scheduler, strategy=STRATEGIES[strategy](), devices=2, accumulate_grad_batches=accumulate, max_epochs=2
    )
    trainer.fit(model, batches(2 * 5 * accumulate, size=2))
    assert scheduler.findings == [] and scheduler.controller.total == 10
    local = {name: getattr(p, "to_local", lambda p=p: p)().detach() for name, p in model.named_parameters()}
    return scheduler.controller.backward, local, model.gradients

if __name__ == "__main__":
    seen = {}
    for strategy, accumulate in itertools.product(STRATEGIES, (1, 3)):
        if (strategy, accumulate) == ("static", 3):
            continue  # torch itself fails at a static graph within no_sync
        choice, skipped, without = run(strategy, accumulate, "auto")
        _, done, within = run(strategy, accumulate, False)
        assert choice.skips == (strategy != "static"), (strategy, choice)
        assert all(torch.equal(skipped[name], done[name]) for name in done), (strategy, accumulate)
        if choice.skips:
            assert sum(map(sum, without)) < sum(map(sum, within)), "nothing was skipped"
        if strategy != "fsdp2":
            seen[f"{strategy} {accumulate}"] = [float(p.double().sum()) for p in skipped.values()]
    def silent(skip):
        pass

    BackwardSkip.tell, tell = silent, BackwardSkip.tell
    try:
        run("plain", 1, True)
    except RuntimeError as error:
        assert "parameters that were not used in producing the loss" in str(error), error  # Lightning's words for it
    else:
        raise AssertionError("plain DDP did without being told: then it need not be")
    BackwardSkip.tell = tell
    try:
        run("static", 1, True)
    except UnsupportedError as error:
        assert "static_graph" in str(error)
    else:
        raise AssertionError("static_graph was not refused")
    rank = torch.distributed.get_rank()
    Path(root, f"{rank}.json").write_text(json.dumps(seen))
"""


PARTS = {"holds": HOLDS, "draws": DRAWS, "skips": SKIPS}

ALL = """
import sys, traceback
from pathlib import Path

sys.path.insert(0, {here!r})
if __name__ == "__main__":
    root = Path(sys.argv[1])
    for name, code in {parts!r}.items():
        (root / name).mkdir(exist_ok=True)
        try:
            exec(compile(code, name, "exec"), {{"__name__": "__main__", "root": root / name}})
        except Exception:
            (root / name / "failed").write_text(traceback.format_exc())
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the parts have left what they found, one after the other in one pair of processes."""
    root = tmp_path_factory.mktemp("ddp")
    program = root / "program.py"
    program.write_text(ALL.format(here=str(Path(__file__).resolve().parents[1]), parts=PARTS))
    command = [sys.executable, "-W", "ignore", str(program), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=270, cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]
    return root


def part(ran: Path, name: str) -> Path:
    """A part's folder, if it went through."""
    failed = ran / name / "failed"
    assert not failed.exists(), failed.read_text()[-2000:]
    return ran / name


def test_frozen_bits_hold_and_a_violation_on_one_process_stops_both(ran: Path) -> None:
    assert {path.name for path in part(ran, "holds").glob("*-?")} == {"False-0", "False-1", "True-0", "True-1"}


def test_two_processes_with_different_global_seeds_draw_the_same_groups(ran: Path) -> None:
    """And end a phase together, by the mean of what they logged, where they logged different values."""
    folder = part(ran, "draws")
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    sets, _ = first
    assert len({tuple(groups) for groups in sets[:16]}) >= 5, "the draws differ from each other"
    # The phase of the metric begins after 16 updates, in epoch 2 of six batches, and the mean sinks: it lasts its three
    # epochs, which it would not if rank 1 were heard alone.
    assert sets[15:30] == [["ends"]] * 15
    assert len(sets[14]) == 3
    assert len(sets[30]) == 2
    assert len(sets[-1]) == 2


def test_skipping_changes_no_bit_under_any_strategy(ran: Path) -> None:
    """Plain DDP (also with gradients as views), DDP that looks for unused parameters, FSDP2; static_graph is left alone."""
    folder = part(ran, "skips")
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1))
    assert len(first) == 7
    assert first == second, "the ranks have gone apart"
