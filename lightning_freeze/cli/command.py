"""What the commands of our own have in common: each goes over what ``fit`` would run, and all but one do not run it."""

from __future__ import annotations

import argparse
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Self

from lightning_freeze.trainer.seam import LightningModule, Trainer, refuse_strategy

_LOGGERS = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch")]

_ONE_CPU = {
    **{"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "enable_progress_bar": False},
    **{"enable_model_summary": False, "num_sanity_val_steps": 0, "plugins": None, "profiler": None},
}
# The CPU has none of these; what takes their place has the same bytes.
_PRECISIONS = {
    **dict.fromkeys(("16-true", "transformer-engine", "transformer-engine-float16"), "bf16-true"),
    **dict.fromkeys(("16", "16-mixed"), "32-true"),
}


class Command(ABC):
    """A command that takes the configuration of a fit."""

    name: ClassVar[str]
    about: ClassVar[str]
    """What it shows, for ``--help``."""
    rest: list[str]
    """The arguments of the fit."""

    @classmethod
    @abstractmethod
    def parse(cls, arguments: Sequence[str]) -> Self:
        """The command that these arguments ask for, those of the fit among them."""

    @property
    def as_fit(self) -> list[str]:
        """The arguments of the fit that it makes use of."""
        return ["fit", *self.rest]

    @property
    def callbacks(self) -> list[Any]:
        """Callbacks that it adds to those of the configuration."""
        return []

    def configure(self, trainer: Any) -> None:  # noqa: B027 - most are content with it
        """Change how the Trainer is to be made.

        Args:
            trainer: jsonargparse's namespace of the Trainer's arguments.
        """

    @abstractmethod
    def run(self, trainer: Trainer, model: LightningModule, fit: Callable[[], None]) -> None:
        """Do it, once everything is made.

        Args:
            trainer: The Trainer.
            model: The model.
            fit: Fits the model.
        """


def at_least_one(parser: argparse.ArgumentParser, given: argparse.Namespace, *names: str) -> None:
    """Refuse a number below 1."""
    for name in names:
        value = getattr(given, name)
        if value is not None and value < 1:
            parser.error(f"--{name} is {value}, but must be at least 1.")


@contextmanager
def log_levels_restored() -> Iterator[None]:
    """Undo what a command changes of the levels of Lightning's loggers."""
    levels = [logger.level for logger in _LOGGERS]
    try:
        yield
    finally:
        for logger, level in zip(_LOGGERS, levels, strict=True):
            logger.setLevel(level)


def on_one_cpu(trainer: Any) -> int | None:
    """Let a fit that is only looked at run in this process, where Lightning keeps quiet about devices and itself.

    Args:
        trainer: The namespace of the Trainer's arguments.

    Returns:
        The processes that the configuration asks for; None where it leaves that to the machine.

    Raises:
        UnsupportedError: The run would refuse the strategy.
    """
    for logger in _LOGGERS:
        logger.setLevel(logging.WARNING)
    if "deepspeed" in str(trainer.get("strategy")).lower():
        refuse_strategy(type("DeepSpeedStrategy", (), {})())  # by its name, as a fit does
    each = _processes(trainer.get("devices"), trainer.get("accelerator"))
    nodes = int(trainer.get("num_nodes") or 1)
    trainer["precision"] = _PRECISIONS.get(str(trainer.get("precision")), trainer.get("precision"))
    for key, value in _ONE_CPU.items():
        trainer[key] = value
    return each * nodes if each is not None else None


def _processes(devices: Any, accelerator: Any) -> int | None:
    """How many processes a node has by the Trainer's ``devices``, in any way of writing it."""
    if isinstance(devices, str) and devices.strip("-").replace(",", "").isdigit():
        devices = int(devices) if "," not in devices else [part for part in devices.split(",") if part]
    if isinstance(devices, list):
        return len(devices)
    if isinstance(devices, int):
        return devices if devices > 0 else None
    return 1 if accelerator in ("cpu", "mps") else None
