"""Across processes: whether all ranks stand at the same place, hold the same bits, and what each has found.

Everything is gathered by torchmetrics, in rows whose size depends on neither the number of parameters nor that of groups.
Only what is found wrong is told in full.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import xxhash
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchmetrics import Metric

from lightning_freeze.audit.fingerprint import Digest
from lightning_freeze.report.findings import Finding

_TOLD = 20
"""Findings that one rank tells of in full, the gravest first."""

_SEVERITIES = ("error", "warning", "info")
_SHOWN = 6

Holders = tuple[int, ...]
"""The ranks that hold copies of the same bits, in ascending order."""


def place_apart(difference: str, epoch: int, update: int) -> Finding:
    """The finding for ranks that stand at different places in the schedule.

    Args:
        difference: What `Ranks.disagreement` says.
        epoch: The epoch it was found in.
        update: The updates that this rank has counted.
    """
    return Finding(
        "ranks",
        "place",
        "error",
        f"the ranks do not train the same: at the end of epoch {epoch}\n{difference}\n  From here on they would train "
        "different groups. What trains follows from the counts of updates, so a step ran for one rank and not for another: a "
        "gradient that was None, a `training_step` that returned None, or an optimizer that was not stepped, on some ranks "
        "alone; or something has written to the schedule's state. Let every rank do the same; to go on, resume from a "
        "checkpoint of before.",
        cause="place",
        epoch=epoch,
        last_update=update,
    )


def copies_apart(name: str, sides: Sequence[Sequence[int]], epoch: int, update: int) -> Finding:
    """The finding for ranks that hold different bits of the same parameter.

    Args:
        name: Its FQN.
        sides: The ranks, sorted by what they hold.
        epoch: The epoch it was found in.
        update: The updates made so far.
    """
    groups = " and ".join(
        f"rank{'s' * (len(side) > 1)} {', '.join(map(str, side[:_SHOWN]))}{', …' * (len(side) > _SHOWN)}"
        for side in sides[:_SHOWN]
    )
    return Finding(
        "ranks",
        "copies",
        "error",
        f"{name!r} should be the same on all ranks, and by the end of epoch {epoch} (update {update}) is not: {groups} "
        f"hold different bits. It is the first such parameter in the model's order; others may have gone apart, too. Ranks stay alike "
        "as long as they begin alike and apply the same gradients: look for a write on some ranks alone, a backward that "
        "does not go through the wrapped model, an optimizer that draws random numbers, a parameter that did not require a "
        "gradient when DDP was built. Resume from a checkpoint, which all ranks load alike.",
        cause="copies",
        epoch=epoch,
        parameter=name,
        last_update=update,
    )


class _Gathered(Metric):
    """What each rank has, one after the other; their sizes may differ."""

    full_state_update = False
    parts: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("parts", [], dist_reduce_fx=None)

    def update(self, part: Tensor) -> None:
        self.parts.append(part)

    def compute(self) -> list[Tensor]:
        return list(self.parts)


class Ranks:
    """The processes of a run, as each of them sees the others. Its methods are called by all of them together.

    Args:
        device: Where what is gathered lies: on an accelerator for backends that know nothing else.

    Example:
        >>> Ranks().texts("alone")
        ['alone']
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        if self._device.type == "cpu" and _distributed() and torch.distributed.get_backend() == "nccl":
            self._device = torch.device("cuda", torch.cuda.current_device())  # it knows nothing of the CPU

    @property
    def many(self) -> bool:
        """Whether there are others."""
        return self.world > 1

    @property
    def world(self) -> int:
        """How many processes there are."""
        return torch.distributed.get_world_size() if _distributed() else 1

    def gathered(self, part: Tensor) -> list[Tensor]:
        """What each rank hands over, by rank, flat and on the CPU."""
        if not self.many:
            return [part.reshape(-1)]
        metric = _Gathered().to(self._device)
        metric.update(part.reshape(-1).to(self._device))
        parts = [each.reshape(-1) for each in metric.compute()]  # torchmetrics makes a scalar of what has one element
        return list(torch.cat(parts).cpu().split([part.numel() for part in parts]))  # with one wait for a device

    def texts(self, text: str) -> list[str]:
        """The text of each rank."""
        if not self.many:
            return [text]
        raw = torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8)
        return [bytes(part.tolist()).decode() for part in self.gathered(raw)]

    def means(self, values: Mapping[str, float | None]) -> tuple[dict[str, float | None], set[str]]:
        """Each value's mean over the ranks that have it, the same number on all; not finite where one is not.

        Args:
            values: The same names, in the same order, on every rank; None where this rank has no value.

        Returns:
            The means, and the names of which only some ranks have a value.
        """
        if not self.many:
            return dict(values), set()
        mine = [(0.0, 0.0) if value is None else (value, 1.0) for value in values.values()]
        rows = self.gathered(torch.tensor(mine, dtype=torch.float64))
        sums = torch.stack(rows).sum(0).reshape(-1, 2).tolist()
        found = dict(zip(values, sums, strict=True))
        partly = {name for name, (_, count) in found.items() if 0 < count < self.world}
        return {name: total / count if count else None for name, (total, count) in found.items()}, partly

    def disagreement(self, place: Mapping[str, object]) -> str | None:
        """What two ranks say of where they stand, where they say different things; None where all say the same.

        Args:
            place: Builtins, by what they are about.
        """
        if not self.many:
            return None
        text = json.dumps(place, sort_keys=True, default=repr)
        prints = self._rows(xxhash.xxh3_128_intdigest(text.encode()))
        if len(set(prints)) == 1:
            return None
        told = [json.loads(each) for each in self.texts(text)]
        other = next(rank for rank, each in enumerate(prints) if each != prints[0])
        more = sum(each != prints[0] for each in prints) - 1
        lines = [
            f"  {what}: rank 0 has {_shown(mine)}, rank {other} has {_shown(theirs)}"
            for key in told[0].keys() | told[other].keys()
            for what, mine, theirs in _apart(key, told[0].get(key), told[other].get(key))
        ]
        return "\n".join(sorted(lines)) + (
            f"\n  and {more} more of {len(prints)} ranks are not with rank 0" * bool(more)
        )

    def shared(self, found: Sequence[Finding]) -> list[Finding]:
        """What all ranks have found, the same list on each: what not every rank has found says which have.

        Of many findings of one rank the gravest are told, and the number of the others.
        """
        if not self.many or not any(int(row[0]) for row in self.gathered(torch.tensor([len(found)]))):
            return list(found)
        mine = sorted(found, key=lambda f: (_SEVERITIES.index(f.severity), f.parameter or "", f.message))
        told = [json.loads(each) for each in self.texts(json.dumps([each.as_dict() for each in _few(mine)]))]
        where: dict[str, set[int]] = {}
        for rank, findings in enumerate(told):
            for plain in findings:
                where.setdefault(json.dumps(plain, sort_keys=True), set()).add(rank)
        return [_found_by(Finding.from_dict(json.loads(p)), sorted(ranks), len(told)) for p, ranks in where.items()]

    def apart(self, copies: Mapping[Holders, Sequence[tuple[str, int | None]]]) -> tuple[str, list[list[int]]] | None:
        """The first parameter of which ranks that should hold the same bits do not, where there is one.

        It is searched by halves, in as many rounds as its number has binary digits. Where several sets of ranks hold
        copies, that is in the first such set that has gone apart.

        Args:
            copies: The parameters of this rank that others have, too, in the model's order, with their digests.

        Returns:
            Its name, and its holders, sorted by what they hold.
        """
        if not self.many:
            return None
        mine = {_key(holders): list(prints) for holders, prints in copies.items()}
        row = [
            number for key, prints in sorted(mine.items()) for number in (key, len(prints), *_halves(_joined(prints)))
        ]
        held: dict[int, set[tuple[int, ...]]] = {}
        for each in self.gathered(torch.tensor(row or [0, 0, 0, 0])):
            for key, *rest in each.reshape(-1, 4).tolist():
                held.setdefault(key, set()).add(tuple(rest))
        key = next((key for key in sorted(held) if len(held[key]) > 1), None)
        return None if key is None else self._first_apart(key, mine.get(key, []))

    def _first_apart(self, key: int, prints: Sequence[tuple[str, int | None]]) -> tuple[str, list[list[int]]]:
        holds = bool(prints)
        same, apart = 0, max(number or 0 for number in self._rows(len(prints)))
        while apart - same > 1:
            middle = (same + apart) // 2
            if len({each for each in self._rows(_joined(prints[:middle]) if holds else None) if each is not None}) == 1:
                same = middle
            else:
                apart = middle
        here = holds and same < len(prints)
        digests = self._rows((prints[same][1] or 0) if here else None)
        sides: dict[int, list[int]] = {}
        for rank, each in enumerate(digests):
            if each is not None:
                sides.setdefault(each, []).append(rank)
        name = next((text for text in self.texts(prints[same][0] if here else "") if text.strip()), "?")
        return name, sorted(sides.values())

    def _rows(self, number: int | None) -> list[int | None]:
        """An unsigned number of up to 128 bits, or None, from each rank."""
        row = [number is not None, *_halves(number or 0)]
        return [
            _whole(high, low) if there else None
            for there, high, low in torch.stack(self.gathered(torch.tensor(row))).tolist()
        ]


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def copies_of(
    named: Iterable[tuple[str, Tensor]], wrapper: nn.Module | None, print_of: Callable[[Tensor], Digest | None]
) -> dict[Holders, list[tuple[str, int | None]]]:
    """The digests of the parameters that other ranks are to hold bit for bit as well, by the ranks that hold them.

    Under DistributedDataParallel those are all, but what it was told to ignore; of a DTensor, its shard on the ranks that
    its mesh places beside this one. A parameter that a mesh does not know of says nothing of others.

    Args:
        named: FQN and parameter, in the model's order.
        wrapper: The DistributedDataParallel around the model, where there is one.
        print_of: Gives the digest of a parameter, None where there is none.
    """
    ddp = wrapper if isinstance(wrapper, DistributedDataParallel) and not _averages(wrapper) else None
    everyone = tuple(torch.distributed.get_process_group_ranks(ddp.process_group)) if ddp is not None else ()
    ignored = _ignored(ddp) if ddp is not None else set()
    found: dict[Holders, list[tuple[str, Digest | None]]] = {}
    for name, parameter in named:
        holders = (
            _beside(parameter) if hasattr(parameter, "device_mesh") else () if id(parameter) in ignored else everyone
        )
        if len(holders) > 1:
            found.setdefault(holders, []).append((name, print_of(parameter)))
    return {holders: _on_host(prints) for holders, prints in found.items()}


def _averages(ddp: DistributedDataParallel) -> bool:
    """Whether ranks go apart by intent, between averages of their weights."""
    hooks = getattr(ddp, "_comm_hooks", ())
    return any("post_localSGD" in getattr(hook, "__qualname__", "") for hook, *_ in hooks)


def _ignored(ddp: DistributedDataParallel) -> set[int]:
    names: set[str] = getattr(ddp, "parameters_to_ignore", set())
    return {id(parameter) for name, parameter in ddp.module.named_parameters(remove_duplicate=False) if name in names}


def _beside(parameter: Any) -> Holders:
    """The ranks that hold the same shard of a DTensor."""
    mesh = parameter.device_mesh
    coordinate = mesh.get_coordinate()
    if coordinate is None:  # this rank is not part of the mesh
        return ()
    index = tuple(
        slice(None) if placement.is_replicate() else coordinate[dimension]
        for dimension, placement in enumerate(parameter.placements)
    )
    return tuple(sorted(mesh.mesh[index].reshape(-1).tolist()))


def _on_host(prints: Sequence[tuple[str, Digest | None]]) -> list[tuple[str, int | None]]:
    """Digests as ints; those on a device are read with one wait for each."""
    waiting: dict[torch.device, list[Tensor]] = {}
    for _, each in prints:
        if isinstance(each, Tensor):
            waiting.setdefault(each.device, []).append(each)
    read = {device: iter(torch.stack(there).tolist()) for device, there in waiting.items()}
    return [(name, _whole(*next(read[p.device])) if isinstance(p, Tensor) else p) for name, p in prints]


def _joined(prints: Sequence[tuple[str, int | None]]) -> int:
    """One digest of several and their names."""
    return xxhash.xxh3_128_intdigest(repr(list(prints)).encode())


def _key(holders: Holders) -> int:
    return xxhash.xxh3_64_intdigest(repr(holders).encode()) >> 1  # a number that fits into an int64


def _halves(number: int) -> tuple[int, int]:
    """128 bits as two signed numbers of 64."""
    high, low = divmod(number, 1 << 64)
    return tuple(half - (1 << 64) if half >> 63 else half for half in (high, low))  # type: ignore[return-value]


def _whole(high: int, low: int) -> int:
    return ((high & 0xFFFFFFFFFFFFFFFF) << 64) | (low & 0xFFFFFFFFFFFFFFFF)


def _apart(what: str, mine: object, theirs: object) -> list[tuple[str, object, object]]:
    """What differs between two builtins: of mappings and lists, the entries."""
    if mine == theirs:
        return []
    if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
        keys = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
        return [found for key in keys[:_SHOWN] for found in _apart(f"{what}.{key}", mine.get(key), theirs.get(key))]
    if isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        pairs = enumerate(zip(mine, theirs, strict=True))
        return [found for n, (one, other) in pairs for found in _apart(f"{what}[{n}]", one, other)][:_SHOWN]
    return [(what, mine, theirs)]


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _few(found: Sequence[Finding]) -> list[Finding]:
    """Findings that can be told to all ranks: where there are many, the first of them and the number of the others."""
    if len(found) <= _TOLD:
        return list(found)
    rest = found[_TOLD:]
    more = replace(
        rest[0], parameter=None, message=f"and {len(rest)} findings more, of which the first: {rest[0].message}"
    )
    return [*found[:_TOLD], more]


def _found_by(finding: Finding, ranks: Sequence[int], world: int) -> Finding:
    if len(ranks) == world:
        return finding
    named = ", ".join(map(str, ranks[:_SHOWN])) + (f", … ({len(ranks)} of {world})" if len(ranks) > _SHOWN else "")
    message = f"on rank{'s' * (len(ranks) > 1)} {named}: {finding.message}"
    return replace(finding, message=message, ranks=tuple(ranks))
