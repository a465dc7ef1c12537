"""``python -m tests.benchmarks.recompiles``: how many graphs torch compiles for a schedule of so many trainable sets."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytorch_lightning
import torch
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.utils.data import DataLoader

from lightning_freeze import FreezeAudit, FreezeScheduler, Phase, Phases, Pick
from tests.benchmarks.quiet import quiet_fit
from tests.pages import PAGES, write_part
from tests.threads import threads

PAGE = PAGES["examples/guide/compiled.md"]
SETS = (2, 4, 8, 12)
RAISED = 64
"""The recompile limit where backward is skipped by all means; torch's own is 8."""

What = Literal["model", "blocks"]
WHAT: tuple[What, ...] = ("model", "blocks")
ASKED: tuple[bool | Literal["auto"], ...] = (False, "auto", True)


class Block(nn.Module):
    """One layer with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Add what the layer says."""
        return x + torch.tanh(self.linear(x))


class Row(pytorch_lightning.LightningModule):
    """Blocks in a row."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        """Through all blocks."""
        for block in self.blocks:
            x = block(x)
        return x

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Any loss."""
        return self(batch).square().mean()

    def configure_optimizers(self) -> Any:
        """Any optimizer."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


@dataclass(frozen=True)
class Recompiles:
    """What one fit compiled.

    Args:
        sets: How many sets of groups the schedule trains, one block each.
        what: Whether the whole model was compiled, or its blocks one by one.
        asked: The scheduler's `skip_backward`.
        skips: Whether backward was skipped.
        first: The graphs of the first batch.
        graphs: Those of the whole fit, in which every set trains twice.
        limit: torch's recompile limit in this fit.
        passed: Whether that limit was hit.
    """

    sets: int
    what: What
    asked: bool | Literal["auto"]
    skips: bool
    first: int
    graphs: int
    limit: int
    passed: bool


def count(sets: int, what: What, asked: bool | Literal["auto"]) -> Recompiles:
    """Fit a compiled model by a schedule that trains one block after the other, and count its graphs.

    Args:
        sets: The blocks.
        what: What is compiled.
        asked: The scheduler's `skip_backward`; where it is True, the recompile limit is raised.
    """
    compiled, after = 0, []

    def backend(graph: Any, _: Any) -> Callable[..., Any]:
        nonlocal compiled
        compiled += 1
        return graph.forward  # type: ignore[no-any-return]

    class Counts(pytorch_lightning.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            after.append(compiled)

    model = Row(sets)
    parts: Iterable[nn.Module] = [model] if what == "model" else model.blocks
    for part in parts:
        part.compile(backend=backend)
    row = Phases([Phase([], updates=1, pick=Pick("blocks", order="forward"))], repeat=True)
    audit = FreezeAudit(inputs=False)
    scheduler = FreezeScheduler(row, {"blocks": {"each": "blocks.*"}}, "freeze", asked, audit=audit)
    limit = RAISED if asked is True else torch._dynamo.config.recompile_limit
    torch._dynamo.reset()
    passed = False
    with threads(1), torch._dynamo.config.patch(recompile_limit=limit, fail_on_recompile_limit_hit=True):
        try:
            quiet_fit(model, DataLoader(torch.ones(3 * 2 * sets, 4), batch_size=3), scheduler, Counts())  # type: ignore[arg-type]
        except FailOnRecompileLimitHit:
            passed = True
    torch._dynamo.reset()
    assert scheduler.controller is not None
    return Recompiles(sets, what, asked, scheduler.controller.backward.skips, after[0], after[-1], limit, passed)


def measure(sets: Sequence[int] = SETS) -> list[Recompiles]:
    """A fit for each number of sets, each way to compile, and each `skip_backward`.

    Args:
        sets: How many sets the schedules have.
    """
    return [count(number, what, asked) for what in WHAT for asked in ASKED for number in sets]


def markdown(rows: Sequence[Recompiles]) -> str:
    """A table with a line for each way, and a column for each number of sets."""
    sets = sorted({row.sets for row in rows})
    head = ["compiled", "`skip_backward`", *[f"{number} sets" for number in sets]]
    lines = [head, ["---", "---", *["--:"] * len(sets)]]
    for what in WHAT:
        for asked in ASKED:
            mine = {row.sets: row for row in rows if (row.what, row.asked) == (what, asked)}
            if mine:
                limit = f" (limit {RAISED})" if asked is True else ""
                way = ["the whole model" if what == "model" else "each block", f"{str(asked).lower()}{limit}"]
                lines.append(way + [_cell(mine.get(number)) for number in sets])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(row: Recompiles | None) -> str:
    if row is None:
        return ""
    return f"{row.graphs}{', skips' if row.skips else ''}{', limit passed' if row.passed else ''}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the table; with ``--write`` also put it into the guide."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.recompiles", description=(__doc__ or "").strip())
    parser.add_argument("--write", action="store_true", help="put the table into the guide")
    options = parser.parse_args(arguments)
    table = markdown(measure())
    print(f"Graphs that torch {torch.__version__} compiles in a fit in which each set trains twice.\n\n{table}")
    if options.write:
        write_part(PAGE, "recompiles", f"{table}\n")


if __name__ == "__main__":
    main()
