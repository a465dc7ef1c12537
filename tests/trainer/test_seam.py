"""The seam to Lightning: which packages it imports, and what it reads off a Trainer."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import TQDMProgressBar
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, TensorDataset

import lightning_freeze
from lightning_freeze.trainer import seam
from lightning_freeze.trainer.seam import batch_sizes_vary
from tests.trainer.import_order import OURS

ROOT = Path(lightning_freeze.__file__).parent

TEN = TensorDataset(torch.zeros(10, 1))


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(10))


@pytest.mark.parametrize(
    ("loader", "batches", "variable_batch_size"),
    [
        (DataLoader(TEN, batch_size=5), 2, False),
        (DataLoader(TEN, batch_size=4), 3, True),
        (DataLoader(TEN, batch_size=4, drop_last=True), 2, False),
        (DataLoader(TEN, batch_size=4), 2, False),  # limit_train_batches leaves the smaller one out
        (DataLoader(TEN, batch_sampler=BatchSampler(SequentialSampler(TEN), 5, False)), 2, True),
        (DataLoader(TEN, batch_size=None), 10, True),
        (DataLoader(Stream(), batch_size=5), 2, True),
        ([torch.zeros(2)] * 3, 3, True),
        ([DataLoader(TEN, batch_size=5), DataLoader(TEN, batch_size=2)], 5, False),
        ([DataLoader(TEN, batch_size=5), DataLoader(TEN, batch_size=3)], 4, True),
        ({"a": DataLoader(TEN, batch_size=5)}, 2, True),
    ],
)
def test_whether_batches_may_differ_in_size(loader: Any, batches: int, variable_batch_size: bool) -> None:
    """Where it cannot be seen, they may."""
    trainer: Any = SimpleNamespace(train_dataloader=loader, num_training_batches=batches)
    assert batch_sizes_vary(trainer) == variable_batch_size


# --- both packages ---------------------------------------------------------------------------------------------------


def imported_roots(text: str) -> set[str]:
    nodes = list(ast.walk(ast.parse(text)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.partition(".")[0] for name in names}


def test_the_seam_alone_imports_lightning() -> None:
    lightning = {"pytorch_lightning", "lightning", "lightning_fabric"}
    found = {str(f.relative_to(ROOT)) for f in ROOT.rglob("*.py") if imported_roots(f.read_text("utf-8")) & lightning}
    assert found == {"trainer/seam.py"}


def test_a_name_that_the_seam_does_not_have() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'LightningModul'"):
        _ = seam.LightningModul  # type: ignore[attr-defined]


ORDERS = [*permutations((*seam.PACKAGES, OURS)), *((package, OURS) for package in seam.PACKAGES)]
IN_DEFAULT_SUITE = ("pytorch_lightning", OURS, "lightning.pytorch")


@pytest.mark.parametrize(
    "order",
    [pytest.param(o, id=" ".join(o), marks=() if o == IN_DEFAULT_SUITE else pytest.mark.slow) for o in ORDERS],
)
def test_each_order_of_imports(order: tuple[str, ...], tmp_path: Path) -> None:
    """Both Trainers and LightningCLIs accept the callbacks; a project of one package never loads the other."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            (str(ROOT.parent), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", ""))
        ),
    }
    if len(order) == 2:
        environment["LIGHTNING_FREEZE_AUDIT"] = "warn"
    program = [sys.executable, "-W", "ignore", "-m", "tests.trainer.import_order", *order]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == " ".join(("accepted", *order))


def test_a_bars_own_metrics_are_there_again() -> None:
    bar = TQDMProgressBar()
    own = vars(bar)["get_metrics"] = lambda *_: {"mine": 1}
    remove = seam.add_bar_text(SimpleNamespace(progress_bar_callback=bar), "train", lambda: "head")  # type: ignore[arg-type]
    assert bar.get_metrics(None, None) == {"mine": 1, "train": "head"}  # type: ignore[arg-type]
    remove()
    assert bar.get_metrics is own
    remove = seam.add_bar_text(SimpleNamespace(progress_bar_callback=bar), "train", lambda: "head")  # type: ignore[arg-type]
    later = vars(bar)["get_metrics"] = lambda *_: {"later": 1}
    remove()
    assert bar.get_metrics is later
    del vars(bar)["get_metrics"]
    seam.add_bar_text(SimpleNamespace(progress_bar_callback=bar), "train", lambda: "head")()  # type: ignore[arg-type]
    assert "get_metrics" not in vars(bar)


@pytest.mark.slow
def test_a_seam_that_was_executed_twice_lets_lightning_be_imported() -> None:
    """As after ``%autoreload``, or where a test forgets modules; classes of before inherit from what comes later, too."""
    code = """
import sys
from lightning_freeze import FreezeScheduler as before
for name in [name for name in sys.modules if name.split(".")[0] == "lightning_freeze"]:
    del sys.modules[name]
from lightning_freeze import FreezeScheduler as after
import pytorch_lightning
assert before is not after
assert issubclass(before, pytorch_lightning.Callback) and issubclass(after, pytorch_lightning.Callback)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, env=os.environ, timeout=120)
