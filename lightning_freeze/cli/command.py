"""What our commands over the configuration of a fit have in common: most do not run it."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from argparse import SUPPRESS
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentError

from lightning_freeze.yaml_file import ConfigError

if TYPE_CHECKING:
    from lightning_freeze.trainer.seam import LightningModule, Trainer


class Command(ABC):
    """A command over the configuration of a fit, made of the options that are given."""

    options: dict[str, tuple[type, str]]
    """Option to its type and its line in ``--help``."""

    @classmethod
    def add_options(cls, parser: Any) -> None:
        """Add its options; what is not given stays out of ``--print_config``, which is a fit's."""
        for name, (kind, line) in cls.options.items():
            parser.add_argument(f"--{name}", type=kind, default=SUPPRESS, help=line)

    @abstractmethod
    def __init__(self, given: Any) -> None: ...

    def configure(self, trainer: Any) -> None:  # noqa: B027 - most are content with it
        """Change the arguments of the Trainer, a namespace of jsonargparse."""

    @property
    def callbacks(self) -> list[Any]:
        """Callbacks added to those of the configuration."""
        return []

    @abstractmethod
    def run(self, trainer: Trainer, model: LightningModule, fit: Callable[[], None]) -> None:
        """Run it; `fit` fits the model."""


def parse(parser: Any, arguments: Sequence[str]) -> Any:
    """The arguments of a command that needs no fit."""
    try:
        return parser.parse_args(arguments)
    except ArgumentError as error:
        raise ConfigError(f"{error}. {parser.prog} --help lists the options.") from error


def at_least_one(given: Any, *names: str) -> None:
    """Refuse a number below 1."""
    for name in names:
        if given.get(name, 1) < 1:
            raise ConfigError(f"--{name} is {given[name]}, but must be at least 1.")


def check_picture(option: str, path: Path) -> None:
    """Refuse a picture that cannot be drawn."""
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise ConfigError(
            f"{option} is {str(path)!r}, but must end in .png, .svg or .pdf. Did you mean {path.stem}.png?"
        )
    if find_spec("matplotlib") is None:
        raise ConfigError(
            f"{option} needs matplotlib, the extra `plot`: pip install -c constraints.txt -e '.[plot]' in a checkout."
        )


def on_one_cpu(trainer: Any) -> int | None:
    """Let a fit run in this process, on the CPU and without Lightning's messages.

    Returns:
        The processes that the configuration asks for; None where the machine decides.
    """
    from lightning_freeze.trainer.seam import LOGGERS, one_cpu, refuse_strategy

    for logger in LOGGERS:
        logger.setLevel(logging.WARNING)
    if "deepspeed" in str(trainer.get("strategy")).lower():
        refuse_strategy(type("DeepSpeedStrategy", (), {})())  # by its name, as a fit does
    each = _processes(trainer.get("devices"), trainer.get("accelerator"))
    nodes = int(trainer.get("num_nodes") or 1)
    for key, value in one_cpu(trainer.get("precision")).items():
        trainer[key] = value
    return each * nodes if each is not None else None


def _processes(devices: Any, accelerator: Any) -> int | None:
    """How many processes a node has by the Trainer's ``devices``, in any notation."""
    if isinstance(devices, str) and devices.strip("-").replace(",", "").isdigit():
        devices = int(devices) if "," not in devices else [part for part in devices.split(",") if part]
    if isinstance(devices, list):
        return len(devices)
    if isinstance(devices, int):
        return devices if devices > 0 else None
    return 1 if accelerator in ("cpu", "mps") else None
