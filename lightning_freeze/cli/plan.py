"""``lightning-freeze plan``: what a run will train when, before it runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from rich.console import Console

from lightning_freeze.cli.command import Command, at_least_one, on_one_cpu
from lightning_freeze.cli.forecast import Horizon, forecast
from lightning_freeze.cli.metrics_file import read_metrics
from lightning_freeze.report.plan_picture import draw_plan
from lightning_freeze.report.plan_table import print_plan
from lightning_freeze.report.table import print_line
from lightning_freeze.trainer.seam import LightningModule, Trainer


@dataclass
class PlanCommand(Command):
    """``lightning-freeze plan``: what a run will train when, before it runs, by the code that the run itself asks.

    Args:
        rest: The arguments of the fit.
        out: Where to draw the picture, if anywhere.
        horizon: How far to look.
        metrics: The file with metrics of an earlier run, for phases that wait for one.
    """

    name = "plan"
    about = "what a run will train when, before it runs"
    rest: list[str]
    out: Path | None
    horizon: Horizon
    metrics: Path | None
    _world: int | None = 1

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Self:
        """The command that these arguments ask for."""
        parser = argparse.ArgumentParser(
            "lightning-freeze plan",
            description="Show what a run will train when, without running it: a table of groups and phases, and with --out "
            "a picture. Model, data and optimizers are made as `fit` makes them, on one CPU process. Everything else is as "
            "for `lightning-freeze fit`; with --ckpt_path it shows how that run would go on.",
        )
        parser.add_argument("--updates", type=int, help="optimizer steps to show; by default the whole run")
        parser.add_argument("--epochs", type=int, help="epochs to show; by default the whole run")
        parser.add_argument("--batches", type=int, help="training batches an epoch; by default as many as the data has")
        parser.add_argument(
            "--metrics", type=Path, help="metrics.csv of an earlier run, for phases that end by a metric"
        )
        parser.add_argument("--out", type=Path, help="the picture to draw (plan.png, plan.svg, plan.pdf)")
        given, rest = parser.parse_known_args(arguments)
        at_least_one(parser, given, "updates", "epochs", "batches")
        if given.out is not None and given.out.suffix not in (".png", ".svg", ".pdf"):
            parser.error(
                f"--out is {str(given.out)!r}, but must end in .png, .svg or .pdf. Nearest: {given.out.stem}.png."
            )
        if given.out is not None and find_spec("matplotlib") is None:
            parser.error(
                "--out needs matplotlib, the extra `plot`: pip install -c constraints.txt -e '.[plot]' in a checkout."
            )
        horizon = Horizon(given.updates, given.epochs, given.batches)
        return cls(rest, given.out, horizon, given.metrics)

    def configure(self, trainer: Any) -> None:
        """On one CPU process, whatever the run is to have."""
        self._world = on_one_cpu(trainer)

    def run(self, trainer: Trainer, model: LightningModule, fit: Callable[[], None]) -> None:
        """Look at the run, print the tables, draw the picture."""
        metrics = read_metrics(self.metrics) if self.metrics is not None else {}
        found = forecast(trainer, fit, replace(self.horizon, world=self._world, metrics=metrics))
        console = Console()
        print_plan(console, found.steps, found.sizes, found.first, found.held)
        for note in found.notes:
            print_line(console, f"- {note}")
        if self.out is not None:
            title = type(model).__name__
            draw_plan(self.out, found.trained, found.sizes, epochs=found.epochs, title=title, held=found.held)
            print_line(console, f"The picture is in {self.out}.")
