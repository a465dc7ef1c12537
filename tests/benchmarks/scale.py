"""``python -m tests.benchmarks.scale``: what the audits cost one rank of 1,024 that share 100 billion parameters.

This process is rank 0. The others are not there: torch's "fake" process group lets one process take part in a group of
any size. What rank 0 holds is there in full (its shards of an FSDP2 model, and their optimizer state), and the code that
runs on it is the library's own, so the bytes that it reads and its messages and their sizes are counted, not estimated.
What a gather brings from ranks that are not there is made up: each has what this rank has, as long as nothing is wrong.
Where ranks are to differ, those that differ are run as well, in threads.

Nothing is sent, so nothing is said of the time that messages take on the wire. Prints tables in Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal, TypeVar
from unittest import mock

import torch
import torch.distributed as dist
from lightning_fabric.utilities.distributed import _sync_ddp_if_available
from pytorch_lightning.trainer.connectors.logger_connector.result import _ResultCollection
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_freeze import FreezeController, FreezeScheduler, Phase, Phases, Until
from lightning_freeze.audit import moved
from lightning_freeze.audit.fingerprint import digest
from lightning_freeze.audit.frozen import WatchedSet
from lightning_freeze.audit.ranks import Ranks, copies_of
from lightning_freeze.holds.skip_decision import SkipBackward
from lightning_freeze.inputs.mode import remember_flags, restore_flags
from lightning_freeze.report.findings import Finding
from tests.threads import threads

READ = ("what may train", "frozen values", "frozen optimizer state")
"""What the audits read, by what for."""

CYCLE = 5
"""Steps of an epoch: with phases of two updates, epochs end within a phase and at the end of one in turn."""

COUNTED, TIMED = 3, 3
"""Epochs in which bytes and messages are counted, and those after them in which nothing but the clock runs."""

READS, LATENCY, LINK = 1e12, 1e-3, 25e9
"""What is assumed where times are computed: bytes digested in a second, seconds for each message, bytes received in a second."""


# --- the model ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """A stack of a language model's blocks: four linear layers of attention, three of an MLP, two norms each.

    Args:
        width: Of the residual stream.
        mlp: Of the MLP.
        blocks: How many.
        vocabulary: Rows of the embedding and of the head.
    """

    width: int
    mlp: int
    blocks: int
    vocabulary: int

    def model(self) -> nn.Module:
        """The model, without memory."""
        with torch.device("meta"):
            return _Stack(self)


HUGE = Size(12288, 32768, 54, 128256)
TENTH = Size(3840, 10240, 54, 128256)
SMALL = Size(1152, 3072, 6, 1024)
QUICK = Size(8, 16, 2, 8)
"""To see that all runs."""


class _Block(nn.Module):
    def __init__(self, width: int, mlp: int) -> None:
        super().__init__()
        for name in ("q", "k", "v", "o"):
            self.add_module(name, nn.Linear(width, width, bias=False))
        self.gate, self.up = nn.Linear(width, mlp, bias=False), nn.Linear(width, mlp, bias=False)
        self.down = nn.Linear(mlp, width, bias=False)
        self.norm_1, self.norm_2 = nn.RMSNorm(width), nn.RMSNorm(width)


class _Stack(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size.vocabulary, size.width)
        self.blocks = nn.ModuleList(_Block(size.width, size.mlp) for _ in range(size.blocks))
        self.norm = nn.RMSNorm(size.width)
        self.head = nn.Linear(size.width, size.vocabulary, bias=False)


@contextlib.contextmanager
def group_of(world: int) -> Iterator[None]:
    """This process is rank 0 of so many, none of which is there."""
    with mock.patch.object(sys, "excepthook", sys.excepthook):  # torch sets one that names the rank
        dist.init_process_group("fake", rank=0, world_size=world, store=FakeStore())
        try:
            yield
        finally:
            dist.destroy_process_group()


def mesh_of(world: int, replicas: int) -> DeviceMesh:
    """All ranks in a row, or so many copies of a row."""
    if replicas == 1:
        return init_device_mesh("cpu", (world,))
    return init_device_mesh("cpu", (replicas, world // replicas), mesh_dim_names=("copies", "shards"))


def sharded(size: Size, world: int, replicas: int = 1) -> nn.Module:
    """A model of which this rank's shards are there, filled with random numbers.

    Args:
        size: Of the model.
        world: The ranks of the process group.
        replicas: Over how many ranks each shard is copied: with 1, as by FSDP, no two ranks hold the same.
    """
    mesh = mesh_of(world, replicas)
    if size.width > 1000:
        gc.collect()  # a model holds itself, and the last one may still be there
    model = size.model()
    for block in model.blocks:  # type: ignore[union-attr]
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            local(parameter).normal_(std=0.02, generator=generator)
    return model


def local(tensor: Tensor) -> Tensor:
    """What of a tensor is on this rank."""
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor.detach()


def held(model: nn.Module) -> tuple[int, int]:
    """Parameters in all, and bytes of those on this rank."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(local(p).nbytes for p in parameters)


def groups_of(model: nn.Module, number: int) -> dict[str, list[str]]:
    """The parameters of the blocks in so many groups of neighbours; the embedding, the head and the last norm in none."""
    names = [name for name, _ in model.named_parameters() if name.startswith("blocks.")]
    if not 2 <= number <= len(names):
        raise ValueError(f"{len(names)} parameters cannot be sorted into {number} groups. Ask for 2 to {len(names)}.")
    found: dict[str, list[str]] = {}
    for place, name in enumerate(names):
        found.setdefault(f"group_{place * number // len(names)}", []).append(name)
    return found


# --- what is counted ---------------------------------------------------------------------------------------------------


@dataclass
class Cost:
    """What something cost this rank.

    Args:
        calls: Collective to how often it was called.
        handed: Bytes that this rank handed over to the collectives.
        received: Bytes that they brought from other ranks.
        read: Bytes digested, by what for.
        seconds: How long it took, each time that only this was measured.
    """

    calls: Counter[str] = field(default_factory=Counter)
    handed: int = 0
    received: int = 0
    read: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    @property
    def messages(self) -> int:
        """Collectives called, barriers included."""
        return self.calls.total()

    @property
    def traffic(self) -> tuple[dict[str, int], int, int]:
        """All that is said of messages."""
        return dict(self.calls), self.handed, self.received


class Meeting:
    """Where the ranks that are run meet in each collective; those that are not run have what one of these has.

    Args:
        sides: For each rank of the group, the number of the one that is run in its stead.
    """

    def __init__(self, sides: Sequence[int]) -> None:
        self._sides = sides
        self._rows: list[Tensor] = [torch.empty(0)] * (max(sides) + 1)
        self.all_there = threading.Barrier(len(self._rows), timeout=60)

    def rows(self, who: int, mine: Tensor) -> list[Tensor]:
        """What each rank hands over."""
        self._rows[who] = mine.clone()
        self.all_there.wait()
        rows = [self._rows[side] for side in self._sides]
        self.all_there.wait()
        return rows


class Wire(TorchDispatchMode):
    """Counts each collective that torch is asked for, whoever asks, and answers it.

    A gather of rows is answered by what each rank hands over. One that nobody should ask for is refused, such as that by
    which FSDP2 makes a layer whole.

    Args:
        cost: Counted into.
        meeting: Of the ranks that are run.
        who: The number of the one that runs here.
    """

    def __init__(self, cost: Cost, meeting: Meeting, who: int = 0) -> None:
        super().__init__()
        self._cost, self._meeting, self._who = cost, meeting, who

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it does without DTensors what it has to do, and that is seen here
        name, space = func._overloadpacket.__name__, func.namespace
        if space in ("c10d", "_c10d_functional") and name != "wait_tensor":
            self._cost.calls[name.strip("_")] += 1
            if name == "allgather_":
                self._rows(*args[:2])
                return func([[torch.empty(0)]], [torch.empty(0)], *args[2:], **(kwargs or {}))
            if name == "allreduce_":
                self._count(sum(each.nbytes for each in args[0]), sum(each.nbytes for each in args[0]))
            elif name != "barrier":
                raise NotImplementedError(f"{func} was called, of which it is not known what it sends: count it here.")
        return func(*args, **(kwargs or {}))

    def _rows(self, outputs: Sequence[Sequence[Tensor]], inputs: Sequence[Tensor]) -> None:
        for here, mine in zip(outputs, inputs, strict=True):
            for there, row in zip(here, self._meeting.rows(self._who, mine), strict=True):
                there.copy_(row)
            self._count(mine.nbytes, mine.nbytes * (len(here) - 1))

    def _count(self, handed: int, received: int) -> None:
        self._cost.handed += handed
        self._cost.received += received


def one_of_all() -> Meeting:
    """All ranks have what this one has."""
    return Meeting([0] * dist.get_world_size())


@contextlib.contextmanager
def readings(cost: Cost) -> Iterator[None]:
    """Counts what the audits hand over to be digested."""

    def count(what: str, values: object) -> None:
        cost.read[what] += sum(local(each).nbytes for each in tree_leaves(values) if isinstance(each, Tensor))

    def all_of(tensors: Any) -> Any:
        tensors = list(tensors)
        count(READ[0], tensors)
        return digests(tensors)

    def of_set(watched: WatchedSet, *arguments: Any) -> Any:
        count(READ[1], [each.read() for each in watched.watched])
        count(READ[2], watched._states())
        return read(watched, *arguments)

    digests, read = moved.digests, WatchedSet.read
    with mock.patch.object(moved, "digests", all_of), mock.patch.object(WatchedSet, "read", of_set):
        yield


Found = TypeVar("Found")
Apart = tuple[str, list[list[int]]] | None
"""What `Ranks.mismatch` finds."""

Mode = Literal["count", "time", "neither"]


class Costs(dict[str, Cost]):
    """Costs by what they are of; counted once, timed as often as asked."""

    @contextlib.contextmanager
    def of(self, what: str, mode: Mode = "count") -> Iterator[None]:
        """What the block costs."""
        if mode == "count":
            cost = Cost()
            with readings(cost), Wire(cost, one_of_all()):
                yield
            self.setdefault(what, cost)
        else:
            begin = time.perf_counter()
            yield
            if mode == "time" and what in self:
                self[what].seconds.append(time.perf_counter() - begin)


# --- what is run -------------------------------------------------------------------------------------------------------


class Run:
    """A controller over a sharded model, with gradients given to it.

    Args:
        model: The model.
        groups: Into how many groups its blocks are sorted; two halves of them take turns.
        until: Whether the turns end by a metric; else each lasts two updates.
        skip_backward: As the controller takes it.
    """

    def __init__(
        self, model: nn.Module, groups: int = 2, until: bool = False, skip_backward: SkipBackward = "auto"
    ) -> None:
        self.model = model
        selectors = groups_of(model, groups)
        names = list(selectors)
        halves = (names[: groups // 2], names[groups // 2 :])
        ends: dict[str, Any] = {"until": Until("loss", patience=1)} if until else {"updates": 2}
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)
        self._gradients = {
            parameter: DTensor.from_local(
                torch.full_like(local(parameter), 1e-3),
                parameter.device_mesh,
                parameter.placements,
                run_check=False,
                shape=parameter.shape,
                stride=parameter.stride(),
            )
            for parameter in model.parameters()
            if isinstance(parameter, DTensor)
        }
        self.controller = FreezeController(
            model,
            Phases([Phase(half, **ends) for half in halves], repeat=True),
            selectors,
            skip_backward=skip_backward,
            say=lambda line: None,
        )

    def start(self) -> None:
        """Before the first step."""
        self.controller.attach(self.optimizer)
        self.controller.begin()

    def step(self, costs: Costs, what: str, mode: Mode) -> None:
        """A batch: what its beginning costs counts as a change, if there is one; the rest must cost nothing."""
        with costs.of(what, mode):
            self.controller.begin_step()
        for parameter, gradient in self._gradients.items():
            parameter.grad = gradient if parameter.requires_grad else None
        with costs.of("the rest of a step", "count" if mode == "count" else "neither"):
            self.controller.before_optimizer_step(self.optimizer)
            self.optimizer.step()

    def end_epoch(self, costs: Costs, what: str = "epoch's end", mode: Mode = "count") -> list[Finding]:
        """An epoch ends."""
        with costs.of(what, mode):
            return self.controller.end_epoch()


def change_at(step: int) -> str:
    """What a step of a run with turns of two updates begins with, counted from 0."""
    if step == 0:
        return "the first step: one half freezes"
    if step % 2:
        return "a step without a change"
    if step % CYCLE == 0:
        return "a change right after an epoch's end"
    return "the first change: a half trains that has not yet" if step == 2 else "a change: one half for the other"


@dataclass(frozen=True)
class Simulated:
    """A fit that was simulated.

    Args:
        costs: What it cost rank 0.
        world: The ranks.
        groups: The groups.
        parameters: Of the model in all.
        nbytes: Of the parameters on this rank.
    """

    costs: Costs
    world: int
    groups: int
    parameters: int
    nbytes: int


def simulate(
    size: Size,
    world: int,
    groups: int = 2,
    replicas: int = 1,
    counted: int = COUNTED,
    timed: int = TIMED,
    metric: bool = True,
    skip_backward: SkipBackward = "auto",
) -> Simulated:
    """The costs of a fit.

    Args:
        size: Of the model.
        world: The ranks.
        groups: Into how many groups the blocks are sorted.
        replicas: Over how many ranks each shard is copied.
        counted: In how many epochs bytes and messages are counted.
        timed: How many are timed, after those.
        metric: Whether a fit follows in which a metric ends the turns.
        skip_backward: As the controller takes it.
    """
    costs = Costs()
    with group_of(world), threads(1):
        model = sharded(size, world, replicas)
        run = Run(model, groups, skip_backward=skip_backward)
        with costs.of("start of a fit"):
            run.start()
        for step in range(CYCLE * (counted + timed)):
            mode: Mode = "count" if step < CYCLE * counted else "time"
            run.step(costs, change_at(step), mode)
            if step % CYCLE == CYCLE - 1 and (found := run.end_epoch(costs, mode=mode)):
                raise RuntimeError(f"nothing was to be found, and there was: {found[0].message}")
        for _ in range(timed):
            run.controller.detach()
            with costs.of("start of a fit", "time"):
                run.start()
            with costs.of(change_at(0), "time"):
                run.controller.begin_step()
        run.controller.detach()
        if metric:
            _until(model, groups, costs, skip_backward)
        return Simulated(costs, world, groups, *held(model))


def _until(model: nn.Module, groups: int, costs: Costs, skip_backward: SkipBackward) -> None:
    """Turns that a metric ends: its mean over the ranks, and their comparison where it was heard late."""
    run = Run(model, groups, until=True, skip_backward=skip_backward)
    run.start()
    before = run.controller.trainable
    for number, value in enumerate((1.0, 2.0, 2.0)):
        run.step(costs, "a change that a metric made" if number == 2 else "a step without a change", "count")
        with costs.of("a metric's mean over the ranks"):
            mean = Ranks().means({"loss": value})[0]["loss"]
        if mean != value:
            raise RuntimeError(f"all ranks have {value}, and their mean is {mean}")
        with costs.of("a metric is logged"):
            run.controller.metrics.log({"loss": mean})
        run.end_epoch(costs)
        with costs.of("the comparison after a metric that was logged late"):
            run.controller.compare_ranks()
        with costs.of("the comparison after a metric that was logged late", "time"):
            run.controller.compare_ranks()
    if run.controller.trainable == before:
        raise RuntimeError("the metric was to end the phase, and did not")
    run.controller.detach()


def found_on_every_rank(size: Size, world: int, groups: int, written: int) -> tuple[Cost, int]:
    """The cost of an epoch's end at which so many frozen parameters have moved, and the findings that it tells."""
    costs = Costs()
    with group_of(world), threads(1):
        run = Run(sharded(size, world), groups)
        run.start()
        run.step(costs, "", "neither")
        held_still = [p for p in run.model.parameters() if not p.requires_grad]
        for parameter in held_still[:written]:
            local(parameter).add_(1.0)
        found = run.end_epoch(costs)
        run.controller.detach()
    return costs["epoch's end"], len(found)


def apart(tensors: int, world: int, odd: int) -> tuple[Cost, Apart]:
    """The cost to a rank that is right of the search for the first parameter whose copies differ, and what both find.

    Two ranks are run: this one, and the last of those that hold copies of its shards, in which one parameter differs. The
    other ranks have what this one has.

    Args:
        tensors: How many parameters there are.
        world: The ranks.
        odd: The number of the one that differs.
    """
    with group_of(world):
        mesh = mesh_of(world, 2)
        layers = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(tensors))
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        copies = copies_of(layers.named_parameters(), layers, digest)
        with torch.no_grad():
            local(list(layers.parameters())[odd]).add_(1.0)
        others = copies_of(layers.named_parameters(), layers, digest)
        sides = [0] * world
        sides[world // 2] = 1
        return _together(sides, [lambda: Ranks().mismatch(copies), lambda: Ranks().mismatch(others)], [0, world // 2])


def all_apart(tensors: int, world: int) -> tuple[Cost, Apart]:
    """The same, where the copies of every shard differ: every rank is run, and all find the same."""
    shards = world // 2
    names = [f"layer_{number}" for number in range(tensors)]
    with group_of(world):
        copies = [
            {(rank % shards, rank % shards + shards): [(name, 1 + (rank >= shards)) for name in names]}
            for rank in range(world)
        ]
        return _together(range(world), [functools.partial(Ranks().mismatch, each) for each in copies], range(world))


def places_apart(size: Size, world: int, groups: int) -> tuple[Cost, str | None]:
    """The cost of telling that the last rank stands at another place of the schedule, and what is told."""
    with group_of(world):
        run = Run(sharded(size, world), groups)
        run.start()
        place = run.controller._place.where()
        run.controller.detach()
        sides = [*[0] * (world - 1), 1]
        asks = [functools.partial(Ranks().disagreement, each) for each in (place, {**place, "total": 7})]
        return _together(sides, asks, [0, world - 1])


def _together(sides: Sequence[int], asks: Sequence[Callable[[], Found]], ranks: Sequence[int]) -> tuple[Cost, Found]:
    """What several ranks do at once, each in a thread: the cost to the first, and what all find."""
    meeting, here = Meeting(sides), threading.local()
    costs = [Cost() for _ in ranks]
    found: list[Any] = [None] * len(ranks)

    def run(who: int) -> None:
        here.rank = ranks[who]
        remember_flags()
        try:
            with Wire(costs[who], meeting, who):
                found[who] = asks[who]()
        except BaseException:
            meeting.all_there.abort()
            raise
        finally:
            restore_flags()

    workers = [threading.Thread(target=run, args=(who,)) for who in range(1, len(ranks))]

    def get_rank(group: object = None) -> int:  # torchmetrics asks which row is its own
        return int(here.rank)

    with mock.patch.object(dist, "get_rank", get_rank):
        for worker in workers:
            worker.start()
        try:
            run(0)
        finally:
            for worker in workers:
                worker.join()
    if any(each != found[0] for each in found):
        raise RuntimeError(f"the ranks have found different things: {found}")
    return costs[0], found[0]


def logged(groups: int, world: int) -> Cost:
    """The cost of what the callback logs at an epoch's end, by Lightning's own code."""
    cost = Cost()
    names, none = [f"group_{n}" for n in range(groups)], {"error": 0, "warning": 0, "info": 0}
    counts = {"updates": dict.fromkeys(names, 1), "findings": none, "lr": dict.fromkeys(names, 0.1), "phase": 1}
    told: dict[str, Any] = {}

    def log_dict(values: dict[str, float], **how: Any) -> None:
        told.update(values=values, how=how)

    with group_of(world):
        trainer: Any = SimpleNamespace(barebones=False, world_size=world)
        FreezeScheduler._log(mock.Mock(), trainer, SimpleNamespace(log_dict=log_dict), counts)  # type: ignore[arg-type]
        results = _ResultCollection(training=True)
        with Wire(cost, one_of_all()):
            for name, value in told["values"].items():
                number = torch.tensor(value)
                results.log("on_train_epoch_end", name, number, sync_dist_fn=_sync_ddp_if_available, **told["how"])
            results.metrics(on_step=False)
    return cost


# --- what is printed ---------------------------------------------------------------------------------------------------


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column is text, the others are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def megabytes(number: int) -> str:
    """Bytes as MB, in as many digits as say something."""
    return "0" if not number else f"{number / 1e6:,.1f}" if number >= 1e5 else f"{number / 1e6:.2g}"


def seconds(cost: Cost) -> str:
    """The median, where there is one."""
    return f"{statistics.median(cost.seconds):.3f}" if cost.seconds else "–"


def events_table(costs: Costs) -> str:
    """What each event of a fit costs."""
    head = ["event", *(f"read: {what}, MB" for what in READ), "read in all, MB"]
    head += ["messages", "handed over, B", "received, B", "seconds"]
    rows = [
        [
            what,
            *(megabytes(cost.read[kind]) for kind in READ),
            megabytes(cost.read.total()),
            f"{cost.messages:,}",
            f"{cost.handed:,}",
            f"{cost.received:,}",
            seconds(cost),
        ]
        for what, cost in costs.items()
    ]
    return markdown(head, rows)


def computed_table(costs: Costs) -> str:
    """What the counted bytes and messages come to elsewhere, if reading and messages take what is assumed."""
    rows = []
    for what, cost in costs.items():
        parts = (cost.read.total() / READS, cost.messages * LATENCY, cost.received / LINK)
        rows.append([what, *(f"{1e3 * part:,.2f}" for part in (*parts, sum(parts)))])
    assumed = (f"read at {READS / 1e12:g} TB/s", f"{1e3 * LATENCY:g} ms a message", f"received at {LINK / 1e9:g} GB/s")
    return markdown(["event, in ms", *assumed, "together"], rows)


def runs_table(runs: Mapping[str, Simulated]) -> str:
    """The same events of several fits, each beside its parameters, ranks and groups."""
    rows = []
    for name, run in runs.items():
        start, change, end = (run.costs[what] for what in ("start of a fit", change_at(4), "epoch's end"))
        rows.append(
            [
                name,
                *(f"{number:,}" for number in (run.parameters, run.world, run.groups)),
                megabytes(run.nbytes),
                f"{start.messages} / {start.handed:,} / {start.received:,}",
                str(change.messages),
                f"{end.messages} / {end.handed:,} / {end.received:,}",
                megabytes(end.read.total()),
                seconds(end),
            ]
        )
    head = ["fit", "parameters", "ranks", "groups", "held by this rank, MB"]
    traffic = "messages / bytes handed over / received"
    head += [f"start: {traffic}", "a change: messages", f"epoch's end: {traffic}"]
    return markdown([*head, "epoch's end: read, MB", "epoch's end: seconds"], rows)


def wrong_table(small: Size, worlds: Sequence[int], tensors: Sequence[int], few: Sequence[int]) -> str:
    """What it costs to tell what is wrong.

    Args:
        small: The size of a model of which frozen parameters move.
        worlds: Numbers of ranks.
        tensors: Numbers of parameters, one of which differs on one rank.
        few: Numbers of ranks on which every parameter differs.
    """
    rows: list[tuple[str, int, Cost]] = []
    for written in (1, small.blocks * 4):  # of the half that is frozen, which has 9 for each two blocks
        cost, found = found_on_every_rank(small, worlds[-1], 2, written)
        rows.append((f"{written} frozen parameter(s) moved on every rank: {found} finding(s)", worlds[-1], cost))
    for groups in (2, small.blocks * 9):
        cost, _ = places_apart(small, worlds[-1], groups)
        rows.append((f"one rank is elsewhere in the schedule, of {groups} groups", worlds[-1], cost))
    for world in worlds:
        for number in tensors:
            cost, _ = apart(number, world, number // 3)
            rows.append((f"copies apart: 1 of {number:,} parameters, on one rank", world, cost))
    for world in few:
        cost, _ = all_apart(tensors[0], world)
        rows.append((f"copies apart: all of {tensors[0]:,} parameters, of all {world // 2} shards", world, cost))
    head = ["what is wrong", "ranks", "messages", "handed over, B", "received, B"]
    return markdown(
        head, [[what, f"{world:,}", f"{c.messages:,}", f"{c.handed:,}", f"{c.received:,}"] for what, world, c in rows]
    )


def logs_table(worlds: Sequence[int], groups: Sequence[int]) -> str:
    """What the logging of counts costs."""
    found = [(world, number, logged(number, world)) for world in worlds for number in groups]
    rows = [[f"{n:,} groups", f"{w:,}", f"{c.messages:,}", f"{c.handed:,}", f"{c.received:,}"] for w, n, c in found]
    return markdown(["logged at an epoch's end", "ranks", "messages", "handed over, B", "received, B"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Count, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scale", description=(__doc__ or "").strip())
    parser.add_argument("--quick", action="store_true", help="tiny models, to see that it runs; seconds mean nothing")
    parser.add_argument("--ranks", type=int, default=1024, help="how many share the model; by default 1024")
    options = parser.parse_args(arguments)
    if options.ranks < 4 or options.ranks % 2:
        parser.error(f"--ranks is {options.ranks}. Give an even number of at least 4.")
    huge, tenth, small = (QUICK, QUICK, QUICK) if options.quick else (HUGE, TENTH, SMALL)
    many = options.ranks
    groups = (2, 4) if options.quick else (2, 20, 200)
    full = simulate(huge, many, groups[0], counted=1, timed=0) if options.quick else simulate(huge, many)
    title = f"{full.parameters:,} parameters on {many:,} ranks, {full.nbytes:,} bytes of them on this one"
    print(f"## A fit: {title}\n\n{events_table(full.costs)}")
    print(f"## The same, computed for an accelerator\n\n{computed_table(full.costs)}")
    less: dict[str, Any] = {"counted": 1, "timed": 0 if options.quick else TIMED, "metric": False}
    print("## Parameters, groups, ranks\n")
    runs = {
        "all of it": full,
        "a tenth of the parameters": simulate(tenth, many, groups[0], **less),
        "of that, each shard on two ranks (HSDP)": simulate(tenth, many, groups[0], replicas=2, **less),
    }
    for number in groups[1:]:
        runs[f"of that, {number} groups"] = simulate(tenth, many, number, **less)
    for world in () if options.quick else (2, 64, many):
        runs[f"a small one, {world:,} ranks"] = simulate(small, world, groups[0], **less)
    print(runs_table(runs))
    print("## Where something is wrong\n")
    wrong = ((many,), (10,), (4,)) if options.quick else ((64, many), (10, 100, 1000), (4, 16, 64))
    print(wrong_table(small, *wrong))
    print("## Logging\n")
    print(logs_table((2, many), groups))


if __name__ == "__main__":
    main()
