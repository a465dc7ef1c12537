"""Holding frozen modules in eval mode, and giving every module its mode back."""

from __future__ import annotations

from collections.abc import Sequence

from torch.nn import Module


class EvalModes:
    """Keeps modules in eval mode while they are frozen: batch-norm statistics, dropout and spectral norm stand still."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[Module, bool]] = {}

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
