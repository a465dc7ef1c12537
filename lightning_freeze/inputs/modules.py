"""The names of modules in the audited tree, and which ``forward`` a call runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from itertools import pairwise

from torch import nn

WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "OffloadWrapper": "_checkpoint_wrapped_module",
}
"""Classes of torch that only wrap a module, and the name under which they hold it."""


class Tree:
    """The modules of a tree by name, as it is now: modules may be added while it is watched.

    Args:
        root: The root of the tree.
        transparent: Says of a module whether its call is none of its ``forward``.
    """

    def __init__(self, root: nn.Module, transparent: Callable[[nn.Module], bool]) -> None:
        self._root, self._transparent = root, transparent
        self._names: dict[int, tuple[weakref.ref[nn.Module], str]] = {}
        self._strangers: set[int] = set()
        self._wrappers: dict[type, str] = {}

    def read(self) -> None:
        """Name every module; a wrapped one has the name of its wrapper."""
        self._names = {}
        self._strangers = set()
        waiting: list[tuple[nn.Module, str]] = [(self._root, "")]
        while waiting:
            module, name = waiting.pop()
            if id(module) in self._names:
                continue
            self._names[id(module)] = weakref.ref(module), name
            wrapped = WRAPPERS.get(wrapper_of(module))
            prefix = f"{name}." if name else ""
            for part, child in reversed(module._modules.items()):
                if child is not None:
                    waiting.append((child, name if part == wrapped else prefix + part))

    def named(self) -> list[tuple[str, nn.Module | None]]:
        """All names with their modules; None for one that is gone."""
        return [(name, module()) for module, name in self._names.values()]

    def _name_of(self, module: nn.Module) -> str | None:
        reference, name = self._names.get(id(module), (None, None))
        return name if reference is not None and reference() is module else None

    def locate(self, module: nn.Module) -> tuple[str, nn.Module, bool] | None:
        """A module's FQN, the module whose ``forward`` it runs, and whether it is opaque; None for one not audited."""
        name = self._name_of(module)
        if name is None and id(module) not in self._strangers:
            self.read()
            name = self._name_of(module)
        if name is None:
            self._strangers.add(id(module))
            return None
        kind = self._wrappers.get(type(module))
        if kind is None:
            kind = self._wrappers[type(module)] = wrapper_of(module)
        if kind == "OptimizedModule":
            return name, module._orig_mod, True  # type: ignore[return-value]
        if kind in WRAPPERS or self._transparent(module):
            return None
        return name, module, module._compiled_call_impl is not None

    def forget_strangers(self) -> None:
        """Modules that are none of the tree's may become so."""
        self._strangers.clear()


def kind_of(module: nn.Module) -> type:
    """A module's class; where `fully_shard` made one of its own for it, what it was before."""
    mro = type(module).__mro__
    for made, before in pairwise(mro[1:4]):
        if made.__name__ == "FSDPModule":
            return before
    return mro[0]


def wrapper_of(module: nn.Module) -> str:
    """The name of a module's class where it is torch's own."""
    kind = kind_of(module)
    return kind.__name__ if kind.__module__.startswith("torch.") else ""
