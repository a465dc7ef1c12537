"""Whether the backward work of what is frozen can be skipped, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch.nn.parallel import DistributedDataParallel

from lightning_freeze.errors import UnsupportedError
from lightning_freeze.holds.recompiles import recompiles
from lightning_freeze.holds.run_context import Circumstances
from lightning_freeze.holds.unsafe_skips import UNSAFE

SkipBackward = bool | Literal["auto"]
SKIP_BACKWARD: tuple[SkipBackward, ...] = ("auto", True, False)


@dataclass(frozen=True)
class Choice:
    """Whether the backward work of frozen groups is left out.

    Args:
        skips: Whether it is.
        why: In a few words, why.
        reducer: The DistributedDataParallel whose reducer waits to hear of every parameter, frozen ones included.
    """

    skips: bool
    why: str
    reducer: DistributedDataParallel | None = None


def choose(
    asked: SkipBackward, around: Circumstances, sets: Iterable[frozenset[str]], groups: Mapping[int, str]
) -> Choice:
    """Whether to leave out the backward work of what is frozen.

    Args:
        asked: What the user asked for.
        around: What is known of the run.
        sets: The sets of groups that the schedule comes to train; asked for where code is compiled alone.
        groups: Identity of a parameter to its group, of those that are frozen at times.

    Raises:
        UnsupportedError: It was asked for where it is not safe.

    Example:
        >>> from torch import nn
        >>> model = nn.Linear(2, 1)
        >>> choose("auto", Circumstances(model, model), [], {})
        Choice(skips=True, why='there is only one process', reducer=None)
    """
    if asked is False:
        return Choice(False, "as asked by `skip_backward: false`")
    unsafe = next(filter(None, (check(around) for check in UNSAFE)), None) or recompiles(around, sets, groups)
    if unsafe is not None and asked == "auto":
        return Choice(False, f"{unsafe.why}; {unsafe.fix}")
    if unsafe is not None:
        raise UnsupportedError(
            f"`skip_backward` is true, which is not safe here: {unsafe.why}. Set `skip_backward: auto`, which then only "
            f"empties the gradients; or, to skip: {unsafe.fix}."
        )
    if asked == "auto" and around.by_hand:
        return Choice(
            False,
            "the model steps its optimizers itself, so what trains can change within a batch (`skip_backward: true` "
            "skips all the same)",
        )
    return Choice(True, _where(around), around.plain_ddp)


def _where(around: Circumstances) -> str:
    if around.plain_ddp:
        return "DDP is told gradients of zero for what is frozen"
    if around.ddp:
        return "DDP looks for unused parameters itself"
    if around.world == 1:
        return "there is only one process"
    return "the parameters are sharded, and each process derives by its own"
