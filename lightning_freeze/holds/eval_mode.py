"""Frozen modules held in eval mode, until each gets its own mode back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch.nn import Module

from lightning_freeze.holds.hold import Hold
from lightning_freeze.holds.patch import Patch
from lightning_freeze.plan.membership import Split


class EvalModes(Hold):
    """Keeps frozen modules in eval mode: batch-norm statistics, dropout and spectral norm stay as they are.

    A mode that the user sets meanwhile, by ``train()`` or ``eval()``, is the one that the module gets back.
    """

    def __init__(self) -> None:
        self._held: dict[int, tuple[Module, bool]] = {}
        self._frozen: Sequence[Module] = ()
        # By name, the modes of what was held last: a copy in its place has the mode of the hold.
        self._modes: dict[str, bool] = {}
        self._patch = Patch.of(Module, "train", _noting)

    def attach(self) -> None:
        self._patch.add(self)

    def decided(self, split: Split) -> None:
        named, before = dict(split.frozen_modules), self._modes
        self.hold([*named.values()], {id(module): before.get(name, False) for name, module in named.items()})
        self._modes = {name: self._held[id(module)][1] for name, module in named.items()}

    def before_forward(self) -> None:
        self.hold(self._frozen)

    def detach(self, bring_back: bool = True) -> None:
        self.hold(())
        self._patch.discard(self)

    def hold(self, modules: Sequence[Module], modes: Mapping[int, bool] | None = None) -> None:
        """Hold exactly these; the others get back the mode that they had.

        Args:
            modules: The modules.
            modes: The modes of what had their names before, by the identity of a module.
        """
        self._frozen = modules
        wanted = {id(module): module for module in modules}
        if wanted.keys() != self._held.keys():
            self._exchange(wanted, modes or {})
        for module in modules:
            if module.training:
                module.training = False

    def _exchange(self, wanted: Mapping[int, Module], modes: Mapping[int, bool]) -> None:
        for key in [key for key in self._held if key not in wanted]:
            module, training = self._held.pop(key)
            if not self._held_elsewhere(key):
                module.training = training
        # All modes are read before any is set: what `torch.compile` returns has the mode of the module inside.
        new = {key: each for key, each in wanted.items() if key not in self._held}
        own = {key: (each, each.training or modes.get(key, False)) for key, each in new.items()}
        self._held.update({key: self._held_elsewhere(key) or mode for key, mode in own.items()})

    def _held_elsewhere(self, key: int) -> tuple[Module, bool] | None:
        """The module and its own mode, where another run holds it, too."""
        return next((each._held[key] for each in self._patch.users() if each is not self and key in each._held), None)

    def release(self, root: Module) -> list[Module]:
        """Give what is held in a module its own modes, which `train` is about to set."""
        held = [module for module in root.modules() if id(module) in self._held]
        for module in held:
            module.training = self._held[id(module)][1]
        return held

    def note(self, root: Module, training: bool, held: Sequence[Module]) -> None:
        """Keep the modes that were set; eval mode around what is held is passing, as for validation."""
        if training or id(root) in self._held:
            self._held.update({id(module): (module, module.training) for module in held})


def _noting(original: Callable[..., Any], users: Callable[[], Iterator[EvalModes]]) -> Callable[..., Any]:
    inside = threading.local()

    def train(self: Module, mode: bool = True) -> Any:
        root = vars(inside).setdefault("root", self)
        if root is not self:  # a module within one whose mode is being set
            return original(self, mode)
        released = [(user, user.release(self)) for user in users()]
        try:
            return original(self, mode)
        finally:
            del inside.root
            for user, held in released:
                user.note(self, mode, held)

    return train
