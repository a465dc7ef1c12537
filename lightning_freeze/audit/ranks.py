"""Across processes: whether all ranks stand at the same place, hold the same bits, and what each has found.

Everything is gathered by torchmetrics, in rows whose size depends on neither the number of parameters nor that of groups.
Only what is found wrong is told in full.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import xxhash
from torch import Tensor
from torchmetrics import Metric

from lightning_freeze.audit.fingerprint import signed, unsigned
from lightning_freeze.audit.replicas import Holders
from lightning_freeze.errors import ScheduleError
from lightning_freeze.holds.run_context import world_size
from lightning_freeze.report.findings import Finding

_TOLD = 20
"""Findings that one rank tells of in full, the gravest first."""

_SEVERITIES = ("error", "warning", "info")
_SHOWN = 6


def place_mismatch(difference: str, epoch: int, update: int) -> Finding:
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
        if self._device.type == "cpu" and world_size() > 1 and torch.distributed.get_backend() == "nccl":
            self._device = torch.device("cuda", torch.cuda.current_device())  # it knows nothing of the CPU

    @property
    def many(self) -> bool:
        """Whether there are others."""
        return self.world > 1

    @property
    def world(self) -> int:
        """How many processes there are."""
        return world_size()

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
        prints = self._numbers(xxhash.xxh3_128_intdigest(text.encode()))
        others = [rank for rank, each in prints.items() if each != prints[0]]
        if not others:
            return None
        other, more = others[0], len(others) - 1
        told = [json.loads(each) for each in self.texts(text)]
        lines = [
            f"  {what}: rank 0 has {_shown(mine)}, rank {other} has {_shown(theirs)}"
            for key in told[0].keys() | told[other].keys()
            for what, mine, theirs in _differences(key, told[0].get(key), told[other].get(key))
        ]
        rest = f"\n  and {more} more of {len(prints)} ranks are not with rank 0" if more else ""
        return "\n".join(sorted(lines)) + rest

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
            number
            for key, prints in sorted(mine.items())
            for number in (key, len(prints), *_halves(_digest_of(prints)))
        ]
        held: dict[int, set[tuple[int, ...]]] = {}
        for each in self.gathered(torch.tensor(row or [0, 0, 0, 0])):
            for key, *rest in each.reshape(-1, 4).tolist():
                held.setdefault(key, set()).add(tuple(rest))
        key = next((key for key in sorted(held) if len(held[key]) > 1), None)
        return None if key is None else self._first_apart(mine.get(key, []))

    def _first_apart(self, prints: Sequence[tuple[str, int | None]]) -> tuple[str, list[list[int]]]:
        longest = max(self._numbers(len(prints)).values())

        def is_apart(length: int) -> bool:
            return len(set(self._numbers(_digest_of(prints[:length]) if prints else None).values())) > 1

        first = bisect_left(range(1, longest), True, key=is_apart)
        here = first < len(prints)
        name, digest = prints[first] if here else ("", None)
        held = self._numbers((digest or 0) if here else None)
        sides = [[rank for rank, each in held.items() if each == one] for one in set(held.values())]
        return next((text for text in self.texts(name) if text.strip()), "?"), sorted(sides)

    def _numbers(self, number: int | None) -> dict[int, int]:
        """An unsigned number of up to 128 bits from each rank that has one."""
        rows = self.gathered(torch.tensor([number is not None, *_halves(number or 0)]))
        return {
            rank: unsigned(high, low) for rank, (there, high, low) in enumerate(torch.stack(rows).tolist()) if there
        }


def _halves(number: int) -> tuple[int, int]:
    """128 bits as two signed numbers of 64."""
    high, low = divmod(number, 1 << 64)
    return signed(high), signed(low)


def _digest_of(prints: Sequence[tuple[str, int | None]]) -> int:
    """One digest of several and their names."""
    return xxhash.xxh3_128_intdigest(repr(list(prints)).encode())


def _key(holders: Holders) -> int:
    return xxhash.xxh3_64_intdigest(repr(holders).encode()) >> 1  # a number that fits into an int64


def _differences(what: str, mine: object, theirs: object) -> list[tuple[str, object, object]]:
    """What differs between two builtins: of mappings and lists, the entries."""
    match mine, theirs:
        case dict(), dict():
            keys = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
            return [
                found
                for key in keys[:_SHOWN]
                for found in _differences(f"{what}.{key}", mine.get(key), theirs.get(key))
            ]
        case list(), list() if len(mine) == len(theirs):
            pairs = enumerate(zip(mine, theirs, strict=True))
            return [found for n, (one, other) in pairs for found in _differences(f"{what}[{n}]", one, other)][:_SHOWN]
    return [(what, mine, theirs)] if mine != theirs else []


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


def refuse_mismatch(when: str, what: str, difference: str | None) -> None:
    """Refuse a run whose ranks would train different groups.

    Args:
        when: When they were compared.
        what: What to look at.
        difference: How they differ; None if they do not.

    Raises:
        ScheduleError: They do.
    """
    if difference is not None:
        raise ScheduleError(
            f"the ranks do not agree, {when}:\n{difference}\nThey would train different groups. Give all of them the "
            f"same: look at {what}."
        )
