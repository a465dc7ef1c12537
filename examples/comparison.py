"""Five ways to train one network on real digits: everything always, alternating, BAdam, LISA, gradual unfreezing.

The schedules are those of ``configs/``, read from there. All else is the same for every way: the model, the data, the
order of the batches, the optimizer with its hyper-parameters, the number of batches. Nothing is tuned for any of them, and
every seed is shown. The ways take turns, an epoch each, so that their step times meet the same machine.

Run it::

    python examples/comparison.py --seeds 5 --epochs 24 --out examples
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from threading import Condition
from typing import Any

import pytorch_lightning as pl
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_freeze import FreezeAudit, FreezeScheduler
from lightning_freeze.cli.config import build_schedule
from lightning_freeze.demos import DigitsData, DigitsMixer, quiet
from lightning_freeze.yaml_file import read

CONFIGS = Path(__file__).parents[1] / "configs"
FULL = "full training"
WAYS: dict[str, str | None] = {
    FULL: None,
    "alternating": "two_periods.yaml",
    "BAdam's cycle": "badam.yaml",
    "LISA's draws": "lisa.yaml",
    "gradual unfreezing": "gradual_unfreezing.yaml",
}
COLORS = dict(zip(WAYS, ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7"), strict=True))  # Okabe and Ito's


@dataclass
class Run:
    """What was measured of one way under one seed.

    Args:
        elements: Elements of all parameters together.
        trained: For each optimizer step, how many of them had a gradient in it, and so were updated.
        seconds: For each batch, the wall time from its start to its end.
        accuracy: For each epoch, the share of the held-out images that were read rightly after it.
        state_bytes: What the tensors in the optimizer's state took up at the end.
        steps: How many steps the optimizer made.
    """

    elements: int = 0
    trained: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    state_bytes: int = 0
    steps: int = 0

    @property
    def share(self) -> float:
        """The mean over the steps of the share of elements trained."""
        return sum(self.trained) / (self.elements * len(self.trained))


Results = dict[str, list[Run]]


class Turns:
    """Lets threads run one at a time, in a fixed round.

    Args:
        names: Who takes part, in order.

    Attributes:
        stopped: Whether one of them has failed, so that the others need not go on.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._order = deque(names)
        self._changed = Condition()
        self.stopped = False

    def take(self, name: str) -> None:
        """Wait for one's turn."""
        with self._changed:
            self._changed.wait_for(lambda: self._order[0] == name)

    def give(self, name: str, *, stays: bool) -> None:
        """Let the next one run; who does not stay has no further turn."""
        with self._changed:
            self._order.remove(name)
            if stays:
                self._order.append(name)
            self._changed.notify_all()


class Measure(pl.Callback):
    """Measures one run, and hands the turn on after each epoch. Asks the scheduler nothing: gradients and state tell.

    It comes before the scheduler, so that the time of a batch holds all that the scheduler does in it.

    Args:
        way: Whose turn is taken and given.
        turns: The round.
    """

    def __init__(self, way: str, turns: Turns) -> None:
        self.run = Run()
        self._way, self._turns = way, turns
        self._began = 0.0

    def on_train_batch_start(self, *args: Any) -> None:
        self._began = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *args: Any) -> None:
        self.run.seconds.append(time.perf_counter() - self._began)
        self.run.trained.append(sum(p.numel() for p in module.parameters() if p.grad is not None))

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        images = len(trainer.val_dataloaders.dataset)
        self.run.accuracy.append(round(float(trainer.callback_metrics["val_accuracy"]) * images) / images)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._turns.give(self._way, stays=True)
        self._turns.take(self._way)
        trainer.should_stop |= self._turns.stopped

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        state = [value for held in trainer.optimizers[0].state.values() for value in held.values()]
        self.run.state_bytes = sum(v.numel() * v.element_size() for v in state if isinstance(v, Tensor))
        self.run.elements = sum(p.numel() for p in module.parameters())
        self.run.steps = trainer.global_step


def scheduler(config: str) -> FreezeScheduler:
    """The callback of a configuration as it stands, but for the input audit, which is turned off."""
    (callback,) = read(CONFIGS / config).items()["trainer"].items()["callbacks"].elements()
    given = callback.items()["init_args"].items()
    plain = {key: place.plain() for key, place in given.items() if key != "schedule"}
    return FreezeScheduler(build_schedule(given["schedule"]), audit=FreezeAudit(inputs=False), **plain)


def run_way(way: str, seed: int, epochs: int, batches: int | None, turns: Turns) -> Run:
    """Train once. A generator of its own orders the batches, the same for each method, whichever trains in between.

    Args:
        way: One of `WAYS`.
        seed: What the weights at the beginning and the order of the batches follow from.
        epochs: How long.
        batches: How many an epoch has; None for all.
        turns: The round.
    """
    turns.take(way)
    try:
        data = DigitsData()
        data.setup("fit")
        order = torch.Generator().manual_seed(seed)
        loader = DataLoader(data.train, batch_size=data.batch_size, shuffle=True, generator=order)
        torch.manual_seed(seed)
        model, measure, config = DigitsMixer(), Measure(way, turns), WAYS[way]
        with tempfile.TemporaryDirectory() as folder:
            trainer = pl.Trainer(
                callbacks=[measure] if config is None else [measure, scheduler(config)],
                max_epochs=epochs,
                limit_train_batches=batches,
                num_sanity_val_steps=0,
                accelerator="cpu",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=folder,
            )
            trainer.fit(model, loader, data.val_dataloader())
        return measure.run
    except BaseException:
        turns.stopped = True
        raise
    finally:
        turns.give(way, stays=False)


def measure(seeds: Sequence[int], epochs: int, batches: int | None = None) -> Results:
    """Way to its runs, one for each seed; the round begins with another way each time."""
    results: Results = {way: [] for way in WAYS}
    screen = Console(stderr=True)
    ways = list(WAYS)
    for number, seed in enumerate(seeds):
        begun = time.perf_counter()
        first = number % len(ways)
        order = ways[first:] + ways[:first]
        turns = Turns(order)
        with quiet(), ThreadPoolExecutor(len(ways)) as pool:
            futures = {way: pool.submit(run_way, way, seed, epochs, batches, turns) for way in order}
            try:
                for way, future in futures.items():
                    results[way].append(future.result())
            except BaseException:  # Ctrl-C reaches this thread alone
                turns.stopped = True
                raise
        screen.print(f"seed {seed}: {time.perf_counter() - begun:.0f} s for {len(ways)} runs", highlight=False)
    return results


# --- what the numbers say -------------------------------------------------------------------------------------------


def ratios(results: Results, way: str) -> list[float]:
    """Each step's time beside the median step of full training under the same seed in the same epoch, the turn next door."""
    found: list[float] = []
    for run, full in zip(results[way], results[FULL], strict=True):
        in_epoch = len(run.seconds) // len(run.accuracy)
        for begin in range(0, len(run.seconds), in_epoch):
            beside = statistics.median(full.seconds[begin : begin + in_epoch])
            found += [seconds / beside for seconds in run.seconds[begin : begin + in_epoch]]
    return found


def finals(runs: Sequence[Run]) -> list[float]:
    """The accuracy at the end, in percent, for each seed."""
    return [100 * run.accuracy[-1] for run in runs]


HEADINGS = (
    "way",
    "accuracy, %: mean ± sd",
    "min–max",
    "optimizer steps",
    "trainable share",
    "optimizer state, KiB",
    "step time ÷ full",
    "quartiles",
    "all steps ÷ full",
)


def rows(results: Results) -> list[tuple[str, ...]]:
    """The table under `HEADINGS`, a row for each way."""
    return [(way, *_cells(results, way)) for way in results]


def _cells(results: Results, way: str) -> Iterator[str]:
    runs = results[way]
    ends = finals(runs)
    spread = f" ± {statistics.stdev(ends):.2f}" if len(ends) > 1 else ""
    yield f"{statistics.fmean(ends):.2f}{spread}"
    yield f"{min(ends):.2f}–{max(ends):.2f}"
    yield _alike(f"{run.steps:,}" for run in runs)
    yield _alike(f"{run.share:.1%}" for run in runs)
    yield _alike(f"{run.state_bytes / 1024:,.1f}" for run in runs)
    low, middle, high = torch.tensor(ratios(results, way)).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    yield f"{middle:.2f}"
    yield f"{low:.2f}–{high:.2f}"
    yield f"{_total(runs) / _total(results[FULL]):.2f}"


def _alike(texts: Iterator[str]) -> str:
    """What every seed says; where they differ, each."""
    return ", ".join(dict.fromkeys(texts))


def _total(runs: Sequence[Run]) -> float:
    return sum(sum(run.seconds) for run in runs)


def _seeds(results: Results) -> str:
    number = len(results[FULL])
    return f"{number} seed{'s' * (number != 1)}"


def in_words(results: Results) -> str:
    """What is seen, computed from the numbers, and what must be known to read them."""
    ends = {way: finals(runs) for way, runs in results.items()}
    full = ends[FULL]
    beside = []
    for way in [way for way in results if way != FULL]:
        difference = statistics.fmean(ends[way]) - statistics.fmean(full)
        pairs = list(zip(ends[way], full, strict=True))
        counts = {"lower": sum(a < b for a, b in pairs), "higher": sum(a > b for a, b in pairs)}
        counts["the same"] = len(pairs) - sum(counts.values())
        beside.append(f"{way} {difference:+.2f} ({', '.join(f'{key} {n}' for key, n in counts.items() if n)})")
    least = min((way for way in results if way != FULL), key=lambda way: results[way][0].state_bytes)
    saved = results[least][0].state_bytes / results[FULL][0].state_bytes
    return (
        f"Mean accuracy beside full training's, in points, and the number of seeds of {len(full)} in which it is lower, "
        f"higher or the same: {'; '.join(beside)}. One of the 359 held-out images is 0.28 points, and the sd is over "
        "seeds on this one split, so a difference of a few tenths may well be chance. "
        "Every way makes the same number of optimizer steps, but one that trains a small share of the weights in each "
        "makes fewer updates of every weight, and nothing was retuned to make up for that. "
        "All begin from random weights, whereas BAdam, LISA and gradual unfreezing were made for fine-tuning a "
        "pretrained network: how they do there, this does not say. "
        "BAdam's configuration never trains what is no block (the head stays as it was drawn), and gradual unfreezing's "
        "also lowers the learning rate from block to block. "
        "A step is shorter by the backward work on what is frozen, which is skipped, and by the optimizer's, which is much "
        "here, with a hundred tiny tensors, and would be little in a large model; it is longer by the scheduler and its "
        "weight audit, which takes fingerprints in the steps in which groups change. "
        "Optimizer state of frozen groups is kept, but for BAdam's cycle and LISA's draws, whose configurations drop it "
        f"(`optimizer_state: reset`): the least among the schedules is {least}'s, {saved:.1%} of full training's."
    )


TITLE = "Five ways to train an eight-block mixer on digits"


def make_table(results: Results) -> Table:
    """The table, for the terminal: ranges stand below what they are the range of."""
    table = Table(
        title=f"{TITLE}, {_seeds(results)}",
        caption=(
            "Accuracy on the held-out digits after the last epoch. Share trained: of the parameters' elements, averaged "
            "over the steps. Step time: from a batch's start to its end, beside the median step of full training in the "
            "same epoch and seed; median and quartiles over all steps. State: the optimizer's, at the end."
        ),
        caption_justify="left",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        show_edge=False,
    )
    for heading in (
        "way",
        "accuracy, %\nmean ± sd\nmin–max",
        "steps",
        "share\ntrained",
        "state,\nKiB",
        "step time\n÷ full\nquartiles",
        "sum\n÷ full",
    ):
        table.add_column(heading, justify="left" if heading == "way" else "right", no_wrap=True)
    for way, accuracy, extremes, steps, share, state, ratio, quartiles, total in rows(results):
        table.add_row(way, f"{accuracy}\n{extremes}", steps, share, state, f"{ratio}\n{quartiles}", total)
    return table


def _markdown_table(headings: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(results: Results, seeds: Sequence[int], epochs: int, command: str) -> str:
    """The whole report."""
    packages = ("torch", "pytorch-lightning", "lightning-freeze", "scikit-learn")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    each = [(way, *(f"{end:.2f}" for end in finals(runs))) for way, runs in results.items()]
    schedules = "; ".join(f"{way}: `configs/{config}`" for way, config in WAYS.items() if config is not None)
    steps = results[FULL][0].steps
    return "\n\n".join(
        [
            f"# {TITLE}",
            "![Accuracy on the held-out digits after each epoch, mean and range over the seeds, and every seed's last]"
            "(comparison.png)",
            _markdown_table(HEADINGS, rows(results)),
            "Accuracy at the end, %, of every seed:",
            _markdown_table(["way", *(f"seed {seed}" for seed in seeds)], each),
            "## What is seen",
            in_words(results),
            "## How it was made",
            f"`{command}`, once, and this file is as it was written. Python {platform.python_version()}, {versions}; a "
            f"machine with {os.cpu_count()} CPUs, shared with other work, one thread used. The model is `DigitsMixer` "
            f"({results[FULL][0].elements:,} elements in its parameters) and the data `DigitsData` (scikit-learn's digits: "
            "1,438 to learn from, 359 held out, always the same ones; the held-out images choose nothing, so they serve for "
            f"the curve and for the result at its end). AdamW at learning rate {DigitsMixer().lr:g} and torch's other "
            f"defaults, batches of {DigitsData().batch_size}, {epochs} epochs, {steps:,} batches, for every way; a seed "
            "gives the weights at the beginning and the order of the batches, alike for every way. "
            f"{FULL.capitalize()} has no callback of this library. The others have the scheduler of a shipped "
            f"configuration ({schedules}) as it stands, but for the input audit, which is off; the weight audit is on, and "
            "would have stopped a run in which a frozen weight moved. LISA's draws follow from the schedule's own seed, so "
            "they are the same under every seed here. The ways run in one process and take turns, an epoch each.",
            "- *accuracy*: of the held-out images after the last epoch; sd is the sample's standard deviation over seeds.\n"
            "- *trainable share*: elements of parameters that had a gradient when the optimizer stepped, of all; the mean "
            "over the steps.\n"
            "- *optimizer state*: bytes of all tensors in `optimizer.state` after the last step, counted.\n"
            "- *step time ÷ full*: wall time from `on_train_batch_start` to `on_train_batch_end`, beside the median step of "
            "full training under the same seed in the same epoch; median and quartiles over all steps of all seeds. Full "
            "training's own row shows the noise. *all steps ÷ full*: the sums.",
        ]
    )


# --- the picture ----------------------------------------------------------------------------------------------------


def draw(results: Results, epochs: int, path: Path) -> None:
    """Curves with bands on the left, every seed's end on the right; a line leads from each curve to its name between."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 5.2), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    curves = figure.add_axes((0.06, 0.19, 0.46, 0.64))
    dots = figure.add_axes((0.75, 0.19, 0.23, 0.64))
    numbers = range(1, epochs + 1)
    ways = sorted(results, key=lambda way: -statistics.fmean(finals(results[way])))
    curves.set_yscale("logit")
    curves.set_ylim(0.05, 0.9986)
    curves.set_yticks([share / 100 for share in TICKS], [f"{share:g} %" for share in TICKS])
    curves.minorticks_off()
    curves.set_xlim(1, max(epochs, 2))
    dots.set_ylim(len(ways) - 0.5, -0.5)
    for place, way in enumerate(ways):
        runs, color = results[way], COLORS[way]
        # A logit has no end at 100 %: what is nearer to it than half an image is drawn there.
        by_epoch = [[min(value, 1 - 0.5 / 359) for value in values] for values in _by_epoch(runs)]
        means = [statistics.fmean(values) for values in by_epoch]
        low, high = [min(values) for values in by_epoch], [max(values) for values in by_epoch]
        curves.fill_between(numbers, low, high, color=color, alpha=0.13, linewidth=0)
        curves.plot(numbers, means, color=color, linewidth=1.8, clip_on=False)
        to_figure = figure.transFigure.inverted()
        end = to_figure.transform(curves.transData.transform((epochs, means[-1])))
        row = to_figure.transform(dots.transData.transform((0, place)))[1]
        figure.add_artist(Line2D([end[0] + 0.004, 0.563], [end[1], row], color=color, linewidth=0.8, alpha=0.7))
        figure.text(0.568, row, way, ha="left", va="center", color=color, fontsize=11.5, fontweight="bold")
        ends = finals(runs)
        offsets = [0.13 * (number - (len(ends) - 1) / 2) for number in range(len(ends))]
        dots.plot(
            ends, [place + o for o in offsets], "o", markersize=6, color=color, alpha=0.75, markeredgewidth=0, zorder=3
        )
        mean = statistics.fmean(ends)
        dots.plot([mean, mean], [place - 0.38, place + 0.38], color=color, linewidth=2.2, zorder=4)
    curves.xaxis.set_major_locator(MaxNLocator(integer=True))
    curves.set_xlabel("epoch", color="#444444")
    curves.set_title(
        "after each epoch: mean, and range over the seeds", fontsize=10.5, color="#444444", loc="left", pad=12
    )
    dots.set_yticks([])
    dots.margins(x=0.08)
    dots.set_xlabel("accuracy, %", color="#444444")
    dots.set_title("at the end: each seed, the mean", fontsize=10.5, color="#444444", loc="left", pad=12)
    for axes in (curves, dots):
        axes.grid(axis="y" if axes is curves else "x", color="#e6e6e6", linewidth=0.8, zorder=0)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, colors="#333333")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color("#999999")
    figure.text(0.02, 0.935, "Accuracy on held-out digits, by who trains when", fontsize=15, fontweight="bold")
    figure.text(
        0.02,
        0.03,
        f"DigitsMixer of eight blocks from random weights, {_seeds(results)}, {results[FULL][0].steps:,} optimizer steps "
        "each, the same AdamW for every way; nothing tuned.\nLeft, the scale (logit) is stretched towards 100 %; one "
        "held-out image is 0.28 points.",
        fontsize=8.5,
        color="#555555",
        linespacing=1.4,
    )
    figure.savefig(path)


TICKS = (10, 20, 40, 60, 80, 90, 95, 98, 99, 99.7)


def _by_epoch(runs: Sequence[Run]) -> Iterator[tuple[float, ...]]:
    """For each epoch the accuracy of every seed."""
    return zip(*(run.accuracy for run in runs), strict=True)


def main(arguments: Sequence[str] | None = None) -> Results:
    """Measure, print the table, write the report and the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds: 0, 1, …")
    parser.add_argument(
        "--epochs", type=int, default=24, help="of each run; gradual unfreezing trains all from the 10th"
    )
    parser.add_argument("--batches", type=int, help="training batches in an epoch; by default all 23")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of comparison.md and .png")
    options = parser.parse_args(arguments)
    for name in ("seeds", "epochs", "batches"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} is {value}, but nothing would be trained. Give at least 1.")
    if find_spec("matplotlib") is None:  # said before the measurement, not after it
        parser.error("the picture needs matplotlib: pip install -c constraints.txt -e '.[demo,plot]'.")
    torch.set_num_threads(1)
    seeds = range(options.seeds)
    results = measure(seeds, options.epochs, options.batches)
    Console().print(make_table(results))
    command = f"python examples/comparison.py --seeds {options.seeds} --epochs {options.epochs}"
    if options.batches is not None:
        command += f" --batches {options.batches}"
    options.out.mkdir(parents=True, exist_ok=True)
    report, picture = options.out / "comparison.md", options.out / "comparison.png"
    report.write_text(markdown(results, seeds, options.epochs, command) + "\n", encoding="utf-8")
    draw(results, options.epochs, picture)
    print(f"report: {report}\npicture: {picture}")
    return results


if __name__ == "__main__":
    main()
