"""What the user's own code moves, with a reason: exempt from the audits, and reported where nothing moved it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import compress

import torch
from torch import nn

from lightning_freeze.audit.fingerprint import Digest, differ, digests, to_builtins
from lightning_freeze.audit.ranks import Ranks
from lightning_freeze.errors import ScheduleError
from lightning_freeze.plan.groups import Groups
from lightning_freeze.plan.selectors import ParamNames, Selector, check_selector
from lightning_freeze.report.findings import Finding, covered_nothing, lacks_reason


def exempt_groups(exempt: object) -> dict[str, Selector]:
    """The groups with ``by: user`` that a user's mapping of selectors to reasons stands for."""
    if not isinstance(exempt, Mapping):
        fix = "but must map selectors to reasons: {'teacher': 'moved by EMA'}."
        raise ScheduleError(f"`exempt` is {exempt!r}, {fix}", key="exempt")
    groups: dict[str, Selector] = {}
    for selector, reason in exempt.items():
        group = f"exempt.{selector}"
        if problem := lacks_reason(reason, "your own code moves it"):
            raise ScheduleError(f"`{group}`: {problem}", key=group)
        groups[group] = {"select": selector, "by": f"user: {reason}"}
        check_selector(group, groups[group])
    return groups


class Exemptions:
    """Whether what the user moves did move over a run, by name: the user may replace the parameters themselves."""

    def __init__(self, module: nn.Module, groups: Groups) -> None:
        self._module, self._before = module, dict[str, Digest | None]()
        self.reasons = groups.reasons
        moved = groups.moved_by_user.values()
        group_of = {id(member.parameter): member.group for members in moved for member in members}
        named = ParamNames(module).parameters if moved else {}
        self.names = {name: group_of[id(p)] for name, p in named.items() if id(p) in group_of}

    def begin(self, whole: bool) -> None:
        """A run begins: remember the bits, if it is a whole one and not resumed."""
        self._before = self._digests() if whole else {}

    def unmoved(self, ranks: Ranks) -> list[Finding]:
        """The groups that kept every bit since `begin` on all ranks, which call it together."""
        if not self._before:
            return []
        now = self._digests()
        flags = to_builtins([name not in now or differ(old, now[name]) for name, old in self._before.items()])
        moved = {self.names[name] for name in compress(self._before, flags)}
        rows = ranks.gathered(torch.tensor([group not in moved for group in self.reasons]))
        declared, found = "{!r} (by {}) is exempt from the audits".format, "but kept every bit in the whole run"
        kept = compress(self.reasons.items(), torch.stack(rows).all(0).tolist())
        return [
            covered_nothing("frozen", declared(group.removeprefix("exempt."), why), found, group=group)
            for group, why in kept
        ]

    def _digests(self) -> dict[str, Digest | None]:
        named = ParamNames(self._module).parameters if self.names else {}
        found = {name: named[name] for name in self.names if name in named}
        return dict(zip(found, digests(found.values()), strict=True))
