"""Across ranks, by threads in place of processes; real processes are in tests/processes."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import post_localSGD_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from lightning_freeze.audit.ranks import Ranks, copies_mismatch, copies_of, place_mismatch
from lightning_freeze.report.findings import Finding


class Meeting:
    """A place where threads hand over what each has, and get what all have."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.rounds = 0
        self._parts: list[Tensor] = [torch.empty(0)] * world
        self._barrier = threading.Barrier(world, timeout=20)

    def exchange(self, rank: int, part: Tensor) -> list[Tensor]:
        self._parts[rank] = part
        self._barrier.wait()
        found = list(self._parts)
        self.rounds += rank == 0
        self._barrier.wait()
        return found


class OneOf(Ranks):
    """A rank among threads."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        super().__init__()
        self._meeting, self._rank = meeting, rank

    @property
    def world(self) -> int:
        return self._meeting.world

    def gathered(self, part: Tensor) -> list[Tensor]:
        return [each.reshape(-1) for each in self._meeting.exchange(self._rank, part)]


def on_all(world: int, what: Callable[[Ranks, int], Any]) -> tuple[list[Any], int]:
    """What each of so many ranks gets, and how many times they gathered."""
    meeting = Meeting(world)
    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(lambda rank: what(OneOf(meeting, rank), rank), range(world))), meeting.rounds


def finding(message: str, severity: Any = "error", **more: Any) -> Finding:
    return Finding("frozen", "value", severity, message, epoch=1, **more)


def test_alone_nothing_is_gathered() -> None:
    ranks = Ranks()
    assert not ranks.is_distributed
    assert ranks.texts("mine") == ["mine"]
    assert ranks.means({"a": 2.0, "b": None}) == ({"a": 2.0, "b": None}, set())
    assert ranks.disagreement({"a": 1}) is None
    assert ranks.mismatch({(0, 1): [("w", 1)]}) is None
    found = [finding("moved")]
    assert ranks.merged(found) == found


def test_texts_of_any_length_come_from_each_rank() -> None:
    texts = ["", "é" * 40, "{}"]
    got, _ = on_all(3, lambda ranks, rank: ranks.texts(texts[rank]))
    assert [[text.strip() for text in each] for each in got] == [texts] * 3


@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), min_size=2, max_size=5))
def test_a_mean_is_of_those_that_have_a_value_and_the_same_on_all(values: list[float | None]) -> None:
    got, _ = on_all(len(values), lambda ranks, rank: ranks.means({"x": values[rank], "y": 1.0}))
    assert all(each == got[0] for each in got)
    there = [value for value in values if value is not None]
    means, partly = got[0]
    assert partly == ({"x"} if 0 < len(there) < len(values) else set())
    if there:
        assert means["x"] == pytest.approx(sum(there) / len(there), rel=1e-9, abs=1e-9)
    else:
        assert means["x"] is None
    assert means["y"] == 1.0


def test_a_value_that_is_not_finite_on_one_rank_is_so_on_all() -> None:
    got, _ = on_all(2, lambda ranks, rank: ranks.means({"x": math.nan if rank else 1.0}))
    assert all(math.isnan(means["x"]) for means, _ in got)


def test_ranks_at_the_same_place_agree_in_one_gather() -> None:
    place = {"updates": {"a": 3}, "phase": 2}
    assert on_all(3, lambda ranks, rank: ranks.disagreement(dict(place))) == ([None] * 3, 1)


def test_ranks_at_different_places_are_named_with_what_they_have() -> None:
    def place(rank: int) -> dict[str, object]:
        return {"updates": {"a": 3, "b": 1 + (rank == 2)}, "phase": 2, "best": None if rank == 2 else 0.5}

    got, _ = on_all(4, lambda ranks, rank: ranks.disagreement(place(rank)))
    assert got == [got[0]] * 4
    assert got[0] == "  best: rank 0 has 0.5, rank 2 has null\n  updates.b: rank 0 has 1, rank 2 has 2"
    text = place_mismatch(got[0], 3, 17).message
    assert "at the end of epoch 3" in text
    assert got[0] in text


def test_of_many_ranks_that_differ_the_number_is_said() -> None:
    got, _ = on_all(5, lambda ranks, rank: ranks.disagreement({"phase": rank}))
    assert got[0] == "  phase: rank 0 has 0, rank 1 has 1\n  and 3 more of 5 ranks differ from rank 0"


def test_what_all_have_found_is_said_once_and_what_one_has_found_with_its_rank() -> None:
    def found(rank: int) -> list[Finding]:
        return [finding("everywhere")] + [finding("here", parameter="w")] * (rank == 2) + [finding("some")] * (rank < 2)

    got, rounds = on_all(3, lambda ranks, rank: ranks.merged(found(rank)))
    assert got == [got[0]] * 3
    assert rounds == 1
    assert [(f.message, f.ranks) for f in got[0]] == [
        ("everywhere", None),
        ("on ranks 0, 1: some", (0, 1)),
        ("on rank 2: here", (2,)),
    ]
    assert got[0][2].parameter == "w"


def test_nothing_found_takes_one_gather() -> None:
    assert on_all(2, lambda ranks, rank: ranks.merged([])) == ([[], []], 1)


def test_of_many_findings_the_gravest_reach_all_so_that_all_stop() -> None:
    def found(rank: int) -> list[Finding]:
        return [*(finding(f"w{n}", "warning") for n in range(30)), finding("the error")] if rank else []

    got, _ = on_all(2, lambda ranks, rank: ranks.merged(found(rank)))
    assert got[0] == got[1]
    assert [f.message for f in got[0] if f.severity == "error"] == ["on rank 1: the error"]
    assert len(got[0]) == 21
    assert "and 11 findings more" in got[0][-1].message


@given(st.integers(1, 60), st.data())
def test_the_first_copy_that_differs_is_found_in_a_logarithm_of_rounds(number: int, data: st.DataObject) -> None:
    odd = data.draw(st.sets(st.integers(0, number - 1), min_size=1))
    world = data.draw(st.integers(2, 4))
    rank_of = data.draw(st.integers(0, world - 1))
    holders = tuple(range(world))

    def mismatch(ranks: Ranks, rank: int) -> Any:
        prints = [(f"w{n}", n + (1 << 100) * (rank == rank_of and n in odd)) for n in range(number)]
        return ranks.mismatch({holders: prints})

    got, rounds = on_all(world, mismatch)
    others = [rank for rank in range(world) if rank != rank_of]
    assert got == [(f"w{min(odd)}", sorted([[rank_of], others]))] * world
    assert rounds <= 4 + math.ceil(math.log2(number)) + 1


def test_copies_that_are_alike_take_one_gather() -> None:
    same = {(0, 1): [("w", 5), ("b", 1 << 127)]}
    assert on_all(2, lambda ranks, rank: ranks.mismatch(same)) == ([None, None], 1)


def test_ranks_that_hold_other_shards_are_no_copies_and_join_the_search_of_others() -> None:
    """Two shards, two copies of each; those of the second differ."""

    def mismatch(ranks: Ranks, rank: int) -> Any:
        holders = (rank % 2, rank % 2 + 2)
        return ranks.mismatch({holders: [("a", rank % 2), ("b", rank % 2 + 10 * (rank == 3))]})

    got, _ = on_all(4, mismatch)
    assert got == [("b", [[1], [3]])] * 4


# --- copies, of meshes and wrappers of processes that are not there ----------------------------------------------------


def test_the_finding_says_who_is_alike() -> None:
    text = copies_mismatch("blocks.0.weight", [[0, 2], [1]], 4, 30).message
    assert "'blocks.0.weight' should be the same on all ranks" in text
    assert "by the end of epoch 4 (update 30) is not: ranks 0, 2 and rank 1 hold different bits." in text


@pytest.fixture
def eight() -> Iterator[None]:
    """Rank 5 of eight that are not there."""
    dist.init_process_group("fake", rank=5, world_size=8, store=FakeStore())
    yield
    dist.destroy_process_group()


def digest_of(parameter: Tensor) -> int:
    return 7


def test_copies_are_where_the_mesh_of_a_dtensor_says(eight: None) -> None:
    mesh = init_device_mesh("cpu", (4, 2), mesh_dim_names=("copies", "shards"))
    whole = torch.zeros(4, 2)
    named = [
        ("everywhere", distribute_tensor(whole, mesh, [Replicate(), Replicate()])),
        ("hybrid", distribute_tensor(whole, mesh, [Replicate(), Shard(0)])),
        ("split", distribute_tensor(whole, mesh, [Shard(0), Shard(1)])),
        ("own mesh", distribute_tensor(whole, mesh["shards"], [Replicate()])),
        ("plain", nn.Parameter(whole)),
    ]
    found = copies_of(named, None, digest_of)
    assert found == {
        (0, 1, 2, 3, 4, 5, 6, 7): [("everywhere", 7)],
        (1, 3, 5, 7): [("hybrid", 7)],
        (4, 5): [("own mesh", 7)],
    }


def test_under_ddp_all_are_copies_but_what_it_ignores(eight: None) -> None:
    model = nn.Linear(2, 1)
    model._ddp_params_and_buffers_to_ignore = ["bias"]  # type: ignore[assignment]
    ddp = nn.parallel.DistributedDataParallel(model, init_sync=False)
    assert copies_of(model.named_parameters(), ddp, digest_of) == {tuple(range(8)): [("weight", 7)]}


def test_under_local_sgd_ranks_hold_no_copies(eight: None) -> None:
    ddp = nn.parallel.DistributedDataParallel(nn.Linear(2, 1), init_sync=False)
    state = post_localSGD_hook.PostLocalSGDState(process_group=None, subgroup=None, start_localSGD_iter=10)
    ddp.register_comm_hook(state, post_localSGD_hook.post_localSGD_hook)
    assert copies_of(ddp.module.named_parameters(), ddp, digest_of) == {}


def test_digests_on_a_device_are_read_as_the_ints_they_are(eight: None) -> None:
    mesh = init_device_mesh("cpu", (8,))
    named = [("w", distribute_tensor(torch.zeros(2), mesh, [Replicate()])), ("lazy", nn.Parameter(torch.zeros(1)))]
    found = copies_of(named[:1], None, lambda parameter: torch.tensor([-1, 3]))
    assert found == {tuple(range(8)): [("w", ((1 << 64) - 1 << 64) | 3)]}
