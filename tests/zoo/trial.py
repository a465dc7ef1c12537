"""A real fit of an optimizer under each schedule, and an observer of its own that compares bits after every step."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from lightning_freeze import Every, FreezeScheduler, Phase, Phases, SelectionError, UnsupportedError
from lightning_freeze.probe.verdict import hold_method
from tests.conftest import make_trainer
from tests.zoo.hand import states, values
from tests.zoo.net import LAYERS, ZooNet, data
from tests.zoo.zoo import Specimen

LONG = 20


@dataclass(frozen=True)
class Turn:
    """A schedule of the zoo.

    Args:
        schedule: Makes it.
        trains: Step to the layers that it trains, said once more, independently of it.
        steps: How many steps a fit has.
    """

    schedule: Callable[[], Any]
    trains: Callable[[int], set[str]]
    steps: int


TURNS: Mapping[str, Turn] = {
    "alternating": Turn(
        lambda: Every({"layer1": 5}, of="layer2"), lambda n: {"layer2"} | ({"layer1"} if n % 5 == 0 else set()), 26
    ),
    "cyclic": Turn(
        lambda: Phases([Phase(["layer1"], updates=2), Phase(["layer2"], updates=LONG)], repeat=True),
        lambda n: {"layer1"} if n % (LONG + 2) < 2 else {"layer2"},
        2 * (LONG + 2),
    ),
    "from step 0": Turn(
        lambda: Phases([Phase(["layer2"], updates=LONG), Phase(["layer1", "layer2"], updates=6)]),
        lambda n: {"layer2"} if n < LONG else {"layer1", "layer2"},
        LONG + 6,
    ),
}


@dataclass(frozen=True)
class Outcome:
    """What became of one fit.

    Args:
        way: How what was frozen was held: ``none``, ``excluded``, or ``unknown``, which is ``none``, unproved.
        refused: The refusal before the first step.
        leak: The first of what was frozen that moved.
        crash: What was raised, where the same fit does not raise it without us.
        without_us: What was raised, where it is raised without us, too.
        still: The layers that were planned to train and never moved.
        told: What the audit found.
    """

    way: str = ""
    refused: str = ""
    leak: str = ""
    crash: str = ""
    without_us: str = ""
    still: tuple[str, ...] = ()
    told: tuple[str, ...] = ()

    @property
    def fails(self) -> bool:
        """Whether it is what must not be."""
        return bool(self.leak or self.crash)

    @property
    def word(self) -> str:
        """It in a word."""
        if self.fails:
            return "LEAK" if self.leak else "CRASH in training"
        if self.without_us:
            return "fails without us, too"
        return "refused" if self.refused else "held"


class Observer(pl.Callback):
    """The bits of both layers, values and optimizer state, before the first step and after each."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def _look(self, trainer: pl.Trainer, net: Any) -> None:
        self.seen.append(
            {layer: (values(net.layer(layer)), states(net.layer(layer), trainer.optimizers[0])) for layer in LAYERS}
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._look(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any) -> None:
        self._look(trainer, pl_module)

    @property
    def steps(self) -> int:
        return len(self.seen) - 1

    def leak(self, turn: Turn) -> str:
        """The first frozen thing that moved."""
        for n in range(self.steps):
            for layer in set(LAYERS) - turn.trains(n):
                (value, state), (later, state_later) = self.seen[n][layer], self.seen[n + 1][layer]
                if value != later or state != state_later:
                    return f"the {'value' if value != later else 'state'} of {layer} in step {n}"
        return ""

    def still(self, turn: Turn) -> tuple[str, ...]:
        """The layers that no planned update moved."""
        planned = {layer: [n for n in range(self.steps) if layer in turn.trains(n)] for layer in LAYERS}
        moved = {
            layer
            for layer, steps in planned.items()
            if any(self.seen[n][layer][0] != self.seen[n + 1][layer][0] for n in steps)
        }
        return tuple(layer for layer in LAYERS if planned[layer] and layer not in moved)


def fit(specimen: Specimen, turn: Turn) -> Outcome:
    """A fit under a schedule."""
    scheduler, observer = FreezeScheduler(turn.schedule()), Observer()
    try:
        _run(specimen, turn.steps, scheduler, observer)
    except (UnsupportedError, SelectionError) as error:
        if observer.steps > 0:
            return Outcome(crash=f"refused in step {observer.steps}: {error}")
        return Outcome(refused=str(error))
    except Exception as error:  # third-party code of any kind
        return _raised(specimen, turn, observer, error)
    traits = scheduler.controller.traits[0]  # type: ignore[union-attr]
    planned = {layer: sum(layer in turn.trains(n) for n in range(turn.steps)) for layer in LAYERS}
    leak = observer.leak(turn)
    if not leak and dict(scheduler.updates) != planned:
        leak = f"counted {dict(scheduler.updates)} updates instead of {planned}"
    return Outcome(
        way=hold_method(traits, 0),
        leak=leak,
        still=observer.still(turn),
        told=tuple(finding.message for finding in scheduler.findings),
    )


def _raised(specimen: Specimen, turn: Turn, observer: Observer, error: Exception) -> Outcome:
    said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if leak := observer.leak(turn):
        return Outcome(leak=f"{leak}; then {said}")
    try:
        _run(specimen, turn.steps)
    except Exception as alone:
        if type(alone) is type(error):
            return Outcome(without_us=said)
    return Outcome(crash=f"in step {max(0, observer.steps)}: {said}")


def _run(specimen: Specimen, steps: int, *callbacks: Any) -> None:
    with _quiet(), tempfile.TemporaryDirectory() as root:
        trainer = make_trainer(Path(root), *callbacks, limit_train_batches=steps)
        trainer.fit(ZooNet(specimen), data(specimen, steps))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing said: three fits of hundreds of optimizers would say much."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
