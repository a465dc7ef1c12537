"""One call of one module: its inputs, and what is seen of them while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .leaves import Leaf, Signature, leaves_of, signature_of
from .verdicts import Fate

AUTOCAST = {"cpu": torch._C.DispatchKey.AutocastCPU, "cuda": torch._C.DispatchKey.AutocastCUDA}


@dataclass(slots=True)
class Marks:
    """What was seen of inputs while a call ran, as `Fate` has it of one, in its order, here one bit for each."""

    left: int = 0
    kept: int = 0
    read: int = 0
    metadata: int = 0
    handed: int = 0
    handed_computed: int = 0

    def add(self, other: Marks, bits: int) -> None:
        """Add what another call saw of some inputs."""
        self.read |= other.read & bits
        self.metadata |= other.metadata & bits
        self.left |= other.left & bits
        self.kept |= other.kept & bits
        self.handed |= other.handed & bits
        self.handed_computed |= other.handed_computed & bits


class Frame:
    """One call of one module, while it runs and when it ends.

    Args:
        module: The module that is called.
        name: Its FQN.
        target: The module whose ``forward`` runs: itself, or what a compiled module was made of.
        opaque: Its operators cannot be followed: it is compiled or scripted.
        args: Positional arguments.
        kwargs: Keyword arguments.
    """

    def __init__(
        self, module: nn.Module, name: str, target: nn.Module, opaque: bool, args: tuple[Any, ...], kwargs: Any
    ) -> None:
        self.module, self.name, self.target, self.opaque = module, name, target, opaque
        self.args, self.kwargs = args, kwargs
        self.signature: Signature = signature_of(target.forward)
        self.leaves: list[Leaf] = leaves_of(self.signature, args, kwargs)
        self.references: list[int] = []
        self.fates: list[Fate] = []
        self.twice: set[int] = set()  # the leaves whose tensor came more than once
        self.base = self.start = self.created = 0  # its first bit, its stamp, and how many labels there were before it
        self.marks = Marks()
        self.wrote = self.wrote_parameter = False
        self.autocast = [device for device in AUTOCAST if torch.is_autocast_enabled(device)]
        self.before: tuple[tuple[Any, ...], dict[str, Any]] | None = None  # the arguments, where the call changes them
