"""A model's parameters by name, followed through a run: code replaces and adds parameters while it trains."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from lightning_freeze.errors import counted, listed
from lightning_freeze.plan.selectors import ParamNames, clean_name


class NamedParameters:
    """A model's parameters as they were last read, and whether the model has others now.

    torch calls registration hooks before most assignments (`torch.nn.modules.module.register_module_parameter_registration_hook`);
    what they do not see, such as ``ModuleList.insert``, `changed` finds by walking over the modules. A parameter that is gone
    for a while is no change: FSDP1 shows none in a forward.
    """

    def __init__(self, module: Module) -> None:
        self.touched = False  # whether a parameter or module was assigned to the model since `changed` was called
        self.module = module
        self._hooks: list[Any] = []
        self.by_name: dict[str, Parameter] = {}  # every name with its parameter, as they were last read
        self.refresh()

    def refresh(self) -> list[str]:
        """Read the model's parameters; the lines that say what was replaced and what was added."""
        before, known = self.by_name, set(map(id, self.by_name.values()))
        self.names = ParamNames(self.module)
        self.by_name = self.names.parameters
        self._owners = {id(module) for module in self.module.modules()}
        kinds = {
            "replaced": [name for name, p in self.by_name.items() if before.get(name, p) is not p],
            "added": [name for name, p in self.by_name.items() if name not in before and id(p) not in known],
            "removed": self._gone(self.by_name, before),
        }
        return [f"{counted(len(them), 'parameter')} {what}: {listed(them)}." for what, them in kinds.items() if them]

    def changed(self, walk: bool = False) -> bool:
        """Whether a name is new, gone, or another parameter's; with ``walk``, also where no hook saw an assignment."""
        if not (self.touched or walk):
            return False
        self.touched = False
        self._owners = {id(module) for module in self.module.modules()}
        named = self.module.named_parameters(remove_duplicate=False)
        now = {clean_name(name): parameter for name, parameter in named}
        others = any(self.by_name.get(name) is not parameter for name, parameter in now.items())
        return others or bool(self._gone(now, self.by_name))

    def _gone(self, now: Mapping[str, Parameter], before: Mapping[str, Parameter]) -> list[str]:
        """The names that the model has no more, neither of a parameter nor of a tensor computed from one."""
        there = set(map(id, now.values()))
        missing = [name for name, p in before.items() if name not in now and id(p) not in there]
        modules = {clean_name(name): module for name, module in self.module.named_modules()} if missing else {}
        places = [name.rpartition(".") for name in missing]
        found = [getattr(modules.get(path), key, None) for path, _, key in places]
        return [name for name, tensor in zip(missing, found, strict=True) if not isinstance(tensor, Tensor)]

    def replaced(self) -> list[tuple[str, Parameter, Parameter]]:
        """Each name that has another parameter, with the one before and the one now."""
        now = ParamNames(self.module).parameters
        return [(name, old, now[name]) for name, old in self.by_name.items() if now.get(name, old) is not old]

    def attach(self) -> None:
        """See assignments from here on. Safe to call again."""
        me = weakref.ref(self)  # the hooks are the process's, and must not keep a model alive

        def assigned(module: Module, name: str, value: object) -> None:
            names = me()
            if names is not None and id(module) in names._owners:
                names.touched = True

        if not self._hooks:
            self._hooks = [
                register_module_parameter_registration_hook(assigned),
                register_module_module_registration_hook(assigned),
            ]
            self._last_way_out = weakref.finalize(self, _remove, self._hooks)

    def detach(self) -> None:
        """Remove the hooks. Safe to call again."""
        _remove(self._hooks)


def _remove(hooks: list[Any]) -> None:
    while hooks:
        hooks.pop().remove()
