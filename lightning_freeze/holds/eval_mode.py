"""Frozen modules held in eval mode, until each gets its own mode back."""

from __future__ import annotations

from collections.abc import Sequence

from torch.nn import Module

from lightning_freeze.holds.hold import Hold
from lightning_freeze.plan.membership import Split


class EvalModes(Hold):
    """Keeps frozen modules in eval mode: batch-norm statistics, dropout and spectral norm stay as they are."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[Module, bool]] = {}
        self._frozen: Sequence[Module] = ()

    def decided(self, split: Split) -> None:
        self.hold([module for _, module in split.frozen_modules])

    def before_forward(self) -> None:
        self.hold(self._frozen)

    def detach(self, bring_back: bool = True) -> None:
        self.hold(())

    def hold(self, modules: Sequence[Module]) -> None:
        """Hold exactly these; the others get back the mode that they had."""
        self._frozen = modules
        wanted = {id(module) for module in modules}
        for key in [key for key in self._held if key not in wanted]:
            module, training = self._held.pop(key)
            module.training = training
        # All modes are read before any is set: what `torch.compile` returns has the mode of the module inside.
        self._held.update({id(module): (module, module.training) for module in modules if id(module) not in self._held})
        for module in modules:
            if module.training:
                module.training = False
