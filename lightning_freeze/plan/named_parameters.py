"""A model's parameters by name, followed through a run: code replaces and adds parameters while it trains."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch.nn import Module, Parameter
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from lightning_freeze.errors import listed
from lightning_freeze.plan.selectors import ParamNames


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
        self._known: set[int] = set()
        self.refresh()

    def refresh(self) -> list[str]:
        """Read the model's parameters; the lines that say what was replaced and what was added."""
        before, known = self.by_name, self._known
        self.names = ParamNames(self.module)
        self.by_name = self.names.parameters
        new = [name for name, parameter in self.by_name.items() if id(parameter) not in known]
        self._known = {id(None), *map(id, self.by_name.values())}
        self._owners = {id(module) for module in self.module.modules()}
        kinds = {"replaced": [n for n in new if n in before], "added": [n for n in new if n not in before]}
        return [f"{len(found)} parameter(s) were {what}: {listed(found)}." for what, found in kinds.items() if found]

    def changed(self, walk: bool = False) -> bool:
        """Whether the model has a parameter that was not there; with ``walk``, also where no hook saw an assignment."""
        if not (self.touched or walk):
            return False
        self.touched = False
        now = (id(p) for module in self.module.modules() for p in module._parameters.values())
        return not self._known.issuperset(now)

    def replaced(self) -> dict[int, Parameter]:
        """The identity of each parameter that is gone, and the one that has its name now."""
        now = ParamNames(self.module).parameters
        present = set(map(id, now.values()))
        pairs = ((old, now[name]) for name, old in reversed(self.by_name.items()) if name in now)
        return {id(old): new for old, new in pairs if id(old) not in present}

    def owner(self, name: str) -> Callable[[], Parameter | None]:
        """Gives the parameter of a name as it is now; None where it is gone."""
        path, _, key = name.rpartition(".")
        module = self.names.modules.get(path, self.module)
        return lambda: module._parameters.get(key)

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
