"""Whether the backward work of what is frozen can be skipped, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch.nn.parallel import DistributedDataParallel

from lightning_freeze.errors import UnsupportedError
from lightning_freeze.holds.recompiles import recompiles
from lightning_freeze.holds.run_context import RunContext
from lightning_freeze.holds.unsafe_skips import UNSAFE

SkipBackward = bool | Literal["auto"]
SKIP_BACKWARD: tuple[SkipBackward, ...] = ("auto", True, False)


@dataclass(frozen=True)
class Decision:
    """Whether the backward work of frozen groups is left out.

    Args:
        skips: Whether it is.
        why: In a few words, why.
        reducer: The DistributedDataParallel whose reducer waits to hear of every parameter, frozen ones included.
    """

    skips: bool
    why: str
    reducer: DistributedDataParallel | None = None


def choose(asked: SkipBackward, run: RunContext, sets: Iterable[frozenset[str]], groups: Mapping[int, str]) -> Decision:
    """Whether to leave out the backward work of what is frozen.

    Args:
        asked: What the user asked for.
        run: What is known of the run.
        sets: The sets of groups that the schedule comes to train; asked for where code is compiled alone.
        groups: Identity of a parameter to its group, of those that are frozen at times.

    Raises:
        UnsupportedError: It was asked for where it is not safe.

    Example:
        >>> from torch import nn
        >>> model = nn.Linear(2, 1)
        >>> choose("auto", RunContext(model, model), [], {})
        Decision(skips=True, why='there is only one process', reducer=None)
    """
    if asked is False:
        return Decision(False, "as asked by `skip_backward: false`")
    unsafe = next(filter(None, (check(run) for check in UNSAFE)), None) or recompiles(run, sets, groups)
    if unsafe is not None and asked == "auto":
        return Decision(False, f"{unsafe.why}; {unsafe.fix}")
    if unsafe is not None:
        raise UnsupportedError(
            f"`skip_backward` is true, which is not safe here: {unsafe.why}. Set `skip_backward: auto`, which then only "
            f"empties the gradients; or, to skip: {unsafe.fix}."
        )
    if asked == "auto" and run.manual_optimization:
        return Decision(
            False,
            "the model steps its optimizers itself, so what trains can change within a batch (`skip_backward: true` "
            "skips all the same)",
        )
    return Decision(True, _where(run), run.plain_ddp)


def _where(run: RunContext) -> str:
    if run.plain_ddp:
        return "DDP is told gradients of zero for what is frozen"
    if run.ddp:
        return "DDP looks for unused parameters itself"
    if run.world == 1:
        return "there is only one process"
    return "the parameters are sharded, and each process derives by its own"
