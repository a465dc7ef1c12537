"""Two real processes on gloo: frozen bits hold on each, and a violation on one stops both."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from pathlib import Path
import torch
import pytorch_lightning as pl
from lightning_freeze import AlternatingFreeze, FreezeViolation
from tests.conftest import Net, batches, make_trainer

root = Path(sys.argv[1])

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


def test_two_processes(tmp_path: Path) -> None:
    here = Path(__file__).resolve().parents[1]
    program = tmp_path / "program.py"
    program.write_text(f"import sys; sys.path.insert(0, {str(here)!r})\n{PROGRAM}")
    command = [sys.executable, "-W", "ignore", str(program), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=270, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path.name for path in tmp_path.glob("*-?")} == {"False-0", "False-1", "True-0", "True-1"}
