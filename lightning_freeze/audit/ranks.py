"""Across ranks: whether all are at the same place and hold the same bits, and what each has found.

What torchmetrics gathers grows with neither the parameters nor the groups; only what is found wrong is sent in full.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import xxhash
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_freeze.audit.fingerprint import Digest, to_builtins, unsigned
from lightning_freeze.errors import ScheduleError
from lightning_freeze.holds.run_context import world_size
from lightning_freeze.report.findings import Finding

_SENT = 20  # findings of one rank, the gravest first, that reach the others
_SHOWN = 6
_SEVERITIES = ("error", "warning", "info")
Replicas = tuple[int, ...]  # the ranks that hold copies of the same bits, in ascending order


class Ranks:
    """The processes of a run, as each of them sees the others. All of them call its methods together."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        if self._device.type == "cpu" and world_size() > 1 and torch.distributed.get_backend() == "nccl":
            self._device = torch.device("cuda", torch.cuda.current_device())  # NCCL gathers nothing on the CPU

    @property
    def is_distributed(self) -> bool:
        """Whether there are several processes."""
        return self.world > 1

    @property
    def world(self) -> int:
        """The number of processes."""
        return world_size()

    def gathered(self, part: Tensor) -> list[Tensor]:
        """The tensor of each rank, flat and on the CPU."""
        if not self.is_distributed:
            return [part.reshape(-1)]
        parts = gather_all_tensors(part.reshape(-1).to(self._device))
        return list(torch.cat(parts).cpu().split([part.numel() for part in parts]))  # with one wait for a device

    def texts(self, text: str) -> list[str]:
        """The text of each rank, a blank where it is empty."""
        if not self.is_distributed:
            return [text]
        raw = torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8)
        return [bytes(part.tolist()).decode() for part in self.gathered(raw)]

    def means(self, values: Mapping[str, float | None]) -> tuple[dict[str, float | None], set[str]]:
        """Each value's mean over the ranks where it is not None, and the names of those that are None on some.

        All ranks give the same names in the same order and get the same means, not finite where a value is not.
        """
        mine = [(0.0, 0.0) if value is None else (value, 1.0) for value in values.values()]
        rows = self.gathered(torch.tensor(mine, dtype=torch.float64))
        sums = torch.stack(rows).sum(0).reshape(-1, 2).tolist()
        found = dict(zip(values, sums, strict=True))
        partly = {name for name, (_, count) in found.items() if 0 < count < self.world}
        return {name: total / count if count else None for name, (total, count) in found.items()}, partly

    def disagreement(self, place: Mapping[str, object]) -> str | None:
        """How another rank's place, of builtins by what they are about, differs from rank 0's; None where none does."""
        if not self.is_distributed:
            return None
        text = json.dumps(place, sort_keys=True, default=repr)
        numbers = self._numbers(_number(text))
        others = [rank for rank, number in numbers.items() if number != numbers[0]]
        if not others:
            return None
        texts = self.texts(text)
        mine, theirs = json.loads(texts[0]), json.loads(texts[others[0]])
        lines = [
            f"  {what}: rank 0 has {_shown(one)}, rank {others[0]} has {_shown(other)}"
            for key in mine.keys() | theirs.keys()
            for what, one, other in _differences(key, mine.get(key), theirs.get(key))
        ]
        rest = f"\n  and {len(others) - 1} more of {len(numbers)} ranks differ from rank 0" if len(others) > 1 else ""
        return "\n".join(sorted(lines)) + rest

    def merged(self, found: Sequence[Finding]) -> list[Finding]:
        """What all ranks have found, the same list on each; what only some have found names them.

        Of many findings of one rank the gravest are sent, and the number of the others.
        """
        if not self.is_distributed:
            return list(found)
        mine = sorted(found, key=lambda f: (_SEVERITIES.index(f.severity), f.parameter or "", f.message))
        if rest := mine[_SENT:]:
            message = f"and {len(rest)} findings more, of which the first: {rest[0].message}"
            mine[_SENT:] = [replace(rest[0], parameter=None, message=message)]
        found_by: dict[Finding, set[int]] = {}
        for rank, text in enumerate(self.texts(json.dumps([finding.as_dict() for finding in mine]))):
            for plain in json.loads(text):
                found_by.setdefault(Finding.from_dict(plain), set()).add(rank)
        return [_found_by(finding, sorted(ranks), self.world) for finding, ranks in found_by.items()]

    def mismatch(
        self, copies: Mapping[Replicas, Sequence[tuple[str, int | None]]]
    ) -> tuple[str, list[list[int]]] | None:
        """The first parameter whose copies differ, and its ranks by what they hold; None where all are alike.

        It is searched by halves, in as many rounds as its number has binary digits; where `copies_of` finds several sets of
        ranks, in the first of them whose bits differ.
        """
        mine = {_number(replicas): list(digests) for replicas, digests in copies.items()}
        row = [number for key, digests in mine.items() for number in (key, _number(digests))]
        held: dict[int, set[int]] = {}
        for each in self.gathered(torch.tensor(row or [0, 0])):
            for key, number in each.reshape(-1, 2).tolist():
                held.setdefault(key, set()).add(number)
        key = next((key for key in sorted(held) if len(held[key]) > 1), None)
        return None if key is None else self._first_mismatch(mine.get(key, []))

    def _first_mismatch(self, digests: Sequence[tuple[str, int | None]]) -> tuple[str, list[list[int]]]:
        def differs(length: int) -> bool:
            return len(set(self._numbers(_number(digests[:length]) if digests else None).values())) > 1

        longest = max(self._numbers(len(digests)).values())
        first = bisect_left(range(1, longest), True, key=differs)
        name, digest = digests[first] if first < len(digests) else ("", None)
        held = self._numbers(_number(digest) if name else None)
        sides = [[rank for rank, each in held.items() if each == one] for one in set(held.values())]
        return next((text for text in self.texts(name) if text.strip()), "?"), sorted(sides)

    def _numbers(self, number: int | None) -> dict[int, int]:
        """The number, which is not negative, of each rank that has one."""
        rows = self.gathered(torch.tensor([-1 if number is None else number]))
        return {rank: int(row) for rank, row in enumerate(rows) if row >= 0}


def _number(value: object) -> int:
    """A digest of builtins that fits into an int64 and is not negative."""
    return xxhash.xxh3_64_intdigest(repr(value).encode()) >> 1


def _differences(what: str, mine: object, theirs: object) -> list[tuple[str, object, object]]:
    """What differs between two builtins: of mappings and lists, the entries."""
    match mine, theirs:
        case dict(), dict():
            pairs = [(f"{what}.{key}", mine.get(key), theirs.get(key)) for key in mine | theirs]
        case list(), list() if len(mine) == len(theirs):
            pairs = [(f"{what}[{n}]", one, other) for n, (one, other) in enumerate(zip(mine, theirs, strict=True))]
        case _:
            return [(what, mine, theirs)] if mine != theirs else []
    return [found for pair in pairs for found in _differences(*pair)][:_SHOWN]


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _found_by(finding: Finding, ranks: Sequence[int], world: int) -> Finding:
    if len(ranks) == world:
        return finding
    named = ", ".join(map(str, ranks[:_SHOWN])) + (f", … ({len(ranks)} of {world})" if len(ranks) > _SHOWN else "")
    message = f"on rank{'s' * (len(ranks) > 1)} {named}: {finding.message}"
    return replace(finding, message=message, ranks=tuple(ranks))


def copies_of(
    named: Iterable[tuple[str, Tensor]], wrapper: nn.Module | None, digest_of: Callable[[Tensor], Digest | None]
) -> dict[Replicas, list[tuple[str, int | None]]]:
    """The digests of the parameters that other ranks are to hold bit for bit as well, by the ranks that hold them.

    Under DistributedDataParallel those are all that it does not ignore; of a DTensor, its shard on the ranks that its mesh
    replicates it on. Of a parameter without a mesh nothing else is known. Names and parameters are in the model's order.
    """
    everyone: Replicas = ()
    ignored = set()
    if isinstance(wrapper, DistributedDataParallel) and not _is_local_sgd(wrapper):
        everyone = tuple(torch.distributed.get_process_group_ranks(wrapper.process_group))
        names: set[str] = getattr(wrapper, "parameters_to_ignore", set())
        ignored = {id(p) for name, p in wrapper.module.named_parameters(remove_duplicate=False) if name in names}
    copied = []
    for name, parameter in named:
        replicas = _replicas(parameter, () if id(parameter) in ignored else everyone)
        if len(replicas) > 1:
            copied.append((replicas, name, digest_of(parameter)))
    found: dict[Replicas, list[tuple[str, int | None]]] = {}
    for (replicas, name, _), digest in zip(copied, to_builtins([digest for *_, digest in copied]), strict=True):
        found.setdefault(replicas, []).append((name, unsigned(*digest) if isinstance(digest, list) else digest))
    return found


def _is_local_sgd(ddp: DistributedDataParallel) -> bool:
    """Whether ranks differ on purpose, until their weights are averaged."""
    return any("post_localSGD" in getattr(hook, "__qualname__", "") for hook, *_ in getattr(ddp, "_comm_hooks", ()))


def _replicas(parameter: Any, of_plain: Replicas) -> Replicas:
    """The ranks that hold the same shard of a DTensor, or those of a plain parameter."""
    if not hasattr(parameter, "device_mesh"):
        return of_plain
    coordinate = parameter.device_mesh.get_coordinate()
    if coordinate is None:  # this rank is not part of the mesh
        return ()
    index = tuple(
        slice(None) if placement.is_replicate() else coordinate[dimension]
        for dimension, placement in enumerate(parameter.placements)
    )
    return tuple(sorted(parameter.device_mesh.mesh[index].reshape(-1).tolist()))


def place_mismatch(difference: str, epoch: int, update: int) -> Finding:
    """The finding for ranks at different places of the schedule, of which `Ranks.disagreement` says how."""
    message = (
        f"the ranks do not train the same: at the end of epoch {epoch}\n{difference}\n  From here on they would train "
        "different groups. A step ran on some ranks only (a gradient that was None, a `training_step` that returned None, an "
        "optimizer that was not stepped), or something has written to the schedule's state. Let every rank do the same; to "
        "go on, resume from an earlier checkpoint."
    )
    return Finding("ranks", "place", "error", message, cause="place", epoch=epoch, last_update=update)


def copies_mismatch(name: str, sides: Sequence[Sequence[int]], epoch: int, update: int) -> Finding:
    """The finding for a parameter of which ranks, sorted by what they hold, hold different bits."""
    groups = " and ".join(
        f"rank{'s' * (len(side) > 1)} {', '.join(map(str, side[:_SHOWN]))}{', …' * (len(side) > _SHOWN)}"
        for side in sides[:_SHOWN]
    )
    message = (
        f"{name!r} should be the same on all ranks, and by the end of epoch {epoch} (update {update}) is not: {groups} hold "
        "different bits. It is the first such parameter in the model's order. Look for a write on some ranks only, a "
        "backward that does not go through the wrapped model, an optimizer that draws random numbers, a parameter that did "
        "not require a gradient when DDP was built. To go on, resume from a checkpoint, which all ranks load alike."
    )
    return Finding("ranks", "copies", "error", message, cause="copies", epoch=epoch, parameter=name, last_update=update)


def refuse_mismatch(when: str, what: str, difference: str | None) -> None:
    """Raise a ScheduleError where ranks differ: when they were compared, what to look at, and how they differ."""
    if difference is not None:
        raise ScheduleError(
            f"the ranks do not agree, {when}:\n{difference}\nThey would train different groups. Give all of them the "
            f"same: look at {what}."
        )
