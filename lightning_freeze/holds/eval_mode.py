"""Holding frozen modules in eval mode, and giving every module its mode back."""

from __future__ import annotations

from collections.abc import Sequence

from torch.nn import Module

from lightning_freeze.holds.hold import Hold
from lightning_freeze.plan.membership import Split


class EvalModes(Hold):
    """Keeps modules in eval mode while they are frozen: batch-norm statistics, dropout and spectral norm stay as they are."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[Module, bool]] = {}
        self._frozen: Sequence[Module] = ()

    def decided(self, split: Split) -> None:
        self._frozen = [module for _, module in split.frozen_modules]
        self.hold(self._frozen)

    def before_forward(self) -> None:
        self.hold(self._frozen)

    def detach(self, bring_back: bool = True) -> None:
        self._frozen = ()
        self.release()

    def hold(self, modules: Sequence[Module]) -> None:
        """Hold exactly these; the others get back the mode that they had."""
        wanted = {id(module) for module in modules}
        for key in [key for key in self._held if key not in wanted]:
            module, training = self._held.pop(key)
            module.training = training
        for module in modules:
            if id(module) not in self._held:
                self._held[id(module)] = (module, module.training)
            module.training = False

    def release(self) -> None:
        """Give every module back the mode that it had."""
        self.hold(())
