"""How far a "frozen" weight drifts: zero gradients against None against lightning-freeze, under seven optimizers.

A network of two linear layers learns real handwritten digits, and its first layer is to be updated
with every second step only. On the odd steps its output is detached, so the loss says nothing to it, and
``zero_grad(set_to_none=False)`` leaves zeros as its gradient. Zeros are a gradient, though: momentum goes on rolling,
weight decay goes on shrinking, Adam's averages go on pushing. The weight moves.

Run it::

    python examples/drift.py --steps 200 --out examples/drift.png
"""

from __future__ import annotations

import argparse
import itertools
import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop
from torch.utils.data import DataLoader

from lightning_freeze import AlternatingFreeze
from lightning_freeze.demos import DigitsData, TwoLayerNet, quiet

Batch = list[Tensor]

OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], Optimizer]] = {
    "SGD": lambda p: SGD(p, lr=0.1),
    "SGD, momentum": lambda p: SGD(p, lr=0.1, momentum=0.9),
    "SGD, weight decay": lambda p: SGD(p, lr=0.1, weight_decay=5e-4),
    "Adam": lambda p: Adam(p, lr=0.01),
    "AdamW": lambda p: AdamW(p, lr=0.01),
    "RMSprop": lambda p: RMSprop(p, lr=0.01),
    "Adagrad": lambda p: Adagrad(p, lr=0.01),
}

WAYS = ("zeros", "None", "lightning-freeze")


@dataclass
class Drift:
    """What became of layer1's weight and of its optimizer state, step by step.

    Args:
        frozen: Summed L2 distance that the weight moved over the steps in which it was to stay frozen.
        trained: The same over the steps in which it was to move, for scale.
        state: The entries of its optimizer state that changed in a frozen step.
        final: The weight after the last step.
    """

    frozen: float = 0.0
    trained: float = 0.0
    state: set[str] = field(default_factory=set)
    final: Tensor | None = None
    _before: tuple[Tensor, dict[str, Any]] | None = field(default=None, repr=False)

    def before_step(self, weight: nn.Parameter, optimizer: Optimizer) -> None:
        """Remember the weight and its state."""
        held = {k: v.clone() if isinstance(v, Tensor) else v for k, v in optimizer.state.get(weight, {}).items()}
        self._before = (weight.detach().clone(), held)

    def after_step(self, weight: nn.Parameter, optimizer: Optimizer, *, is_frozen: bool) -> None:
        """Add up what changed since `before_step`."""
        assert self._before is not None
        old, held = self._before
        self.final = weight.detach().clone()
        distance = float(torch.linalg.vector_norm((self.final - old).double()))
        if not is_frozen:
            self.trained += distance
            return
        self.frozen += distance
        now = optimizer.state.get(weight, {})
        self.state |= {key for key in now.keys() | held.keys() if not _same(held.get(key), now.get(key))}


def _same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) and isinstance(other, Tensor) else one == other


def is_frozen(step: int) -> bool:
    """Whether layer1 is to stay frozen: on odd steps."""
    return step % 2 == 1


def first_batches(steps: int) -> list[Batch]:
    """The first batches of digits, in an order that every run shares."""
    torch.manual_seed(1)
    data = DigitsData()
    data.setup("fit")
    epochs = itertools.chain.from_iterable(data.train_dataloader() for _ in itertools.count())
    return list(itertools.islice(epochs, steps))


def make_model() -> TwoLayerNet:
    """The same model each time."""
    torch.manual_seed(0)
    return TwoLayerNet()


def plain_loop(
    make: Callable[[Iterable[nn.Parameter]], Optimizer], batches: Sequence[Batch], *, to_none: bool
) -> Drift:
    """Train in a plain loop; on odd steps layer1 is cut off from the loss.

    Args:
        make: Makes the optimizer.
        batches: One for each step.
        to_none: Whether layer1's gradient is then set to None, or left as the zeros of ``set_to_none=False``.
    """
    model, drift = make_model(), Drift()
    optimizer = make(model.parameters())
    weight = model.layer1.weight
    for step, (images, labels) in enumerate(batches):
        optimizer.zero_grad(set_to_none=False)
        hidden = functional.relu(model.layer1(images.flatten(1)))
        if is_frozen(step):
            hidden = hidden.detach()
        functional.cross_entropy(model.layer2(hidden), labels).backward()
        if is_frozen(step) and to_none:
            weight.grad = None
        drift.before_step(weight, optimizer)
        optimizer.step()
        drift.after_step(weight, optimizer, is_frozen=is_frozen(step))
    return drift


class Measure(pl.Callback):
    """Measures layer1 around every training batch, and so around every optimizer step. Asks the scheduler nothing."""

    def __init__(self) -> None:
        self.drift = Drift()

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Batch, step: int) -> None:
        self.drift.before_step(module.layer1.weight, trainer.optimizers[0])

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Batch, step: int
    ) -> None:
        self.drift.after_step(module.layer1.weight, trainer.optimizers[0], is_frozen=is_frozen(step))


def lightning_run(make: Callable[[Iterable[nn.Parameter]], Optimizer], batches: Sequence[Batch]) -> Drift:
    """Train under Lightning's Trainer; the model has no code for freezing, the callback does it."""
    model, measure = make_model(), Measure()
    model.configure_optimizers = lambda: make(model.parameters())  # type: ignore[method-assign]
    freeze = AlternatingFreeze(slow="layer1", fast="layer2", every=2)
    with tempfile.TemporaryDirectory() as folder, quiet():
        trainer = pl.Trainer(
            callbacks=[freeze, measure],
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(model, DataLoader(list(batches), batch_size=None))  # type: ignore[arg-type]
    return measure.drift


def measure(steps: int) -> dict[str, dict[str, Drift]]:
    """Optimizer to way of freezing to drift."""
    batches = first_batches(steps)
    return {
        name: {
            "zeros": plain_loop(make, batches, to_none=False),
            "None": plain_loop(make, batches, to_none=True),
            "lightning-freeze": lightning_run(make, batches),
        }
        for name, make in OPTIMIZERS.items()
    }


def in_words(distance: float) -> str:
    """A distance to two digits; exactly 0 and nothing else is ``0``."""
    return "0" if distance == 0 else f"{distance:.2g}"


def make_table(drifts: dict[str, dict[str, Drift]], steps: int) -> Table:
    """The numbers, and which entries of the optimizer state moved with zeros."""
    table = Table(
        title=f"How far layer1 moved in the {steps // 2} steps in which it was frozen",
        caption=(
            "Summed L2 distance; 0 is exact. “share” is that distance beside the one moved in the steps that were its "
            "own. “state moved”: the entries that the optimizer keeps for layer1 and that changed in frozen steps. A "
            "running average that decays meanwhile makes the next true step larger; Adagrad's step count matters only "
            "with lr_decay. Momentum is 0.9, weight decay 5e-4 (AdamW's 0.01); RMSprop and Adagrad move the weight, "
            "too, once they have momentum or weight decay."
        ),
        caption_justify="left",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("optimizer", no_wrap=True)
    table.add_column("zeros", justify="right")
    table.add_column("share", justify="right")
    table.add_column("state moved")
    for name in ("None", "lightning-\nfreeze"):
        table.add_column(name, justify="right")
        table.add_column("state\nmoved")
    for name, ways in drifts.items():
        cells: list[str] = []
        for way in WAYS:
            drift = ways[way]
            color = "red" if drift.frozen else "green"
            cells.append(f"[{color}]{in_words(drift.frozen)}[/]")
            if way == "zeros":
                cells.append(f"{drift.frozen / drift.trained:.1%}" if drift.frozen else "")
            cells.append("\n".join(sorted(drift.state)) or "no")
        table.add_row(name, *cells)
    return table


def draw(drifts: dict[str, dict[str, Drift]], steps: int, path: Path) -> None:
    """Three bars for each optimizer on a logarithmic axis; a 0 stands where there is no bar."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colors = {"zeros": "#d1495b", "None": "#8d99ae", "lightning-freeze": "#00798c"}
    labels = {
        "zeros": "detached, gradient of zeros",
        "None": "detached, gradient None",
        "lightning-freeze": "lightning-freeze",
    }
    moved = [drift.frozen for ways in drifts.values() for drift in ways.values() if drift.frozen]
    floor = 10 ** (math.floor(math.log10(min(moved, default=1.0))) - 1)
    ceiling = 10 ** (math.log10(max(moved, default=10.0)) + 0.45)
    figure = Figure(figsize=(9, 4.5), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.085, 0.22, 0.895, 0.57))
    width = 0.26
    sans = {"family": "DejaVu Sans", "fontsize": 11.5}
    for number, way in enumerate(WAYS):
        for place, ways in enumerate(drifts.values()):
            value = ways[way].frozen
            x = place + (number - 1) * (width + 0.02)
            if value:
                axes.bar(x, value - floor, width, bottom=floor, color=colors[way], zorder=3)
            at = max(value, floor) * 1.12
            text = in_words(value) + ("*" if not value and ways[way].state else "")
            axes.text(x, at, text, ha="center", va="bottom", color=colors[way], **sans)
        axes.bar(0, 0, color=colors[way], label=labels[way])
    axes.set_yscale("log")
    axes.set_ylim(floor, ceiling)
    axes.set_xlim(-0.55, len(drifts) - 0.45)
    axes.set_xticks(range(len(drifts)), [name.replace(", ", "\n") for name in drifts], fontsize=10)
    axes.set_ylabel("distance moved (log scale)", color="#444444")
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8, zorder=0)
    axes.minorticks_off()
    axes.tick_params(length=0, colors="#333333")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#999999")
    figure.text(0.02, 0.93, "A frozen weight moves when its gradient is zero", fontsize=15, fontweight="bold")
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.085, 1.02), ncols=3, frameon=False, fontsize=10.5, handlelength=1.0,
        handleheight=1.0, columnspacing=1.8,
    )  # fmt: skip
    figure.text(
        0.02,
        0.025,
        f"Two-layer network on scikit-learn's digits: L2 distance that layer1 moved, summed over its {steps // 2} "
        "frozen steps. 0 is exact.\n* the weight stays; its optimizer state moves.",
        fontsize=8.5,
        color="#555555",
        linespacing=1.4,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, Drift]]:
    """Measure, print the table, save the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of each run; half of them are frozen")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".png"), help="where the picture goes")
    options = parser.parse_args(arguments)
    if options.steps < 2:
        parser.error(f"--steps is {options.steps}, but the second step is the first frozen one. Give at least 2.")
    if find_spec("matplotlib") is None:  # said before the measurement, not after it
        parser.error("the picture needs matplotlib: pip install -c constraints.txt -e '.[demo,plot]'.")
    drifts = measure(options.steps)
    Console().print(make_table(drifts, options.steps))
    draw(drifts, options.steps, options.out)
    print(f"picture: {options.out}")
    return drifts


if __name__ == "__main__":
    main()
