from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from lightning_freeze import FreezeController
from lightning_freeze.audit.ranks import Ranks
from lightning_freeze.report.findings import Finding
from tests.benchmarks import scale
from tests.benchmarks.scale import Apart, Cost, Costs, Simulated, Size, Wire, change_at

TENS, THOUSANDS, LAYERS = Size(1, 1, 2, 1), Size(12, 12, 2, 1), Size(1, 1, 4, 1)
FIRST = (change_at(2), "a change that a metric made")
"""Where layers of FSDP2 train for the first time that were frozen as a whole until then."""
CHANGES = (change_at(0), change_at(4), change_at(10), *FIRST)


@functools.cache
def simulated(size: Size, world: int, groups: int = 2) -> Simulated:
    return scale.simulate(size, world, groups, timed=0)


def traffic(costs: Costs) -> dict[str, tuple[dict[str, int], int, int]]:
    return {what: cost.traffic for what, cost in costs.items()}


def test_what_is_sent_does_not_grow_with_the_number_of_parameters() -> None:
    few, many = simulated(TENS, 8), simulated(THOUSANDS, 8)
    assert (few.parameters, many.parameters) == (21, 2100)
    assert traffic(few.costs) == traffic(many.costs)
    assert few.costs["epoch's end"].messages > 0 < few.costs["start of a fit"].messages


def test_what_is_sent_does_not_grow_with_the_number_of_layers_and_groups() -> None:
    assert traffic(simulated(TENS, 8).costs) == traffic(simulated(LAYERS, 8, 18).costs)


def test_what_is_sent_grows_with_the_number_of_ranks_only_as_rows_do() -> None:
    two, eight = simulated(TENS, 2).costs, simulated(TENS, 8).costs
    for what, cost in traffic(two).items():
        calls, handed, received = traffic(eight)[what]
        assert (calls, handed, received) == (*cost[:2], 7 * cost[2]), what


@pytest.mark.parametrize("size", [TENS, THOUSANDS, LAYERS])
def test_a_step_and_a_change_send_nothing_whatever_the_size(size: Size) -> None:
    costs = simulated(size, 8).costs
    for what in ("the rest of a step", change_at(1), *CHANGES, "a metric is logged"):
        assert costs[what].traffic == ({}, 0, 0), what
    assert all(costs[what].read.total() > 0 == costs[change_at(1)].read.total() for what in CHANGES)


def test_where_backward_is_not_skipped_the_first_change_sends_nothing_either() -> None:
    costs = scale.simulate(THOUSANDS, 8, counted=1, timed=0, metric=False, skip_backward=False).costs
    assert costs[FIRST[0]].messages == 0 < costs[FIRST[0]].read.total()


def test_values_are_read_once_as_the_first_step_begins() -> None:
    fit = simulated(THOUSANDS, 8)
    assert fit.costs["start of a fit"].read == {}
    read = fit.costs[change_at(0)].read
    assert read[scale.READ[0]] + read[scale.READ[1]] == fit.nbytes


def test_an_epochs_end_reads_this_ranks_values_once_and_what_optimizers_hold_for_the_frozen_ones() -> None:
    held, end = simulated(THOUSANDS, 8).nbytes, simulated(THOUSANDS, 8).costs["epoch's end"]
    values = 4 * (7 * 2 * 12 + 2 * 2)  # of a block: two rows of each layer, two numbers of each norm
    steps = 4 * 9  # AdamW's `step`
    assert end.read == {scale.READ[0]: held - values, scale.READ[1]: values, scale.READ[2]: 2 * values + steps}
    assert 0 < values < held


def test_a_collective_that_grows_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def gathers_all(controller: FreezeController, epoch: int | None = None) -> list[Finding]:
        whole = torch.cat([scale.local(p).flatten() for p in controller.audit._module.parameters()])
        Ranks().gathered(whole)
        return []

    monkeypatch.setattr(FreezeController, "compare_ranks", gathers_all)
    few, many = (
        scale.simulate(size, 8, counted=1, timed=0, metric=False).costs["epoch's end"] for size in (TENS, THOUSANDS)
    )
    assert few.messages == many.messages
    assert few.handed < many.handed


def test_the_search_for_copies_that_differ_grows_with_the_logarithm() -> None:
    calls = {}
    for tensors, odd in ((10, 0), (10, 9), (100, 37)):
        cost, found = scale.apart(tensors, 8, odd)
        assert found == (f"{odd}.weight", [[0, 1, 2, 3, 5, 6, 7], [4]])
        calls[tensors, odd] = cost.messages / 3  # a gather is a barrier, sizes and rows
    assert calls[10, 0] <= 4 + math.ceil(math.log2(10))
    assert calls[10, 0] < calls[100, 37] <= 4 + math.ceil(math.log2(100))


def test_where_all_copies_differ_every_rank_names_the_same_two_ranks_of_one_shard() -> None:
    assert scale.all_apart(3, 8)[1] in [("layer_0", [[rank], [rank + 4]]) for rank in range(4)]


def test_the_search_does_not_grow_with_the_number_of_shards_that_have_gone_apart() -> None:
    two, eight = (scale.all_apart(10, world)[0] for world in (4, 16))
    assert (two.calls, two.handed) == (eight.calls, eight.handed)
    assert two.messages > 0


def test_ranks_that_find_different_things_are_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def own(ranks: Ranks, copies: dict[tuple[int, int], object]) -> Apart:
        return "layer_0", [[rank] for rank in next(iter(copies))]

    monkeypatch.setattr(Ranks, "mismatch", own)
    with pytest.raises(RuntimeError, match="the ranks have found different things"):
        scale.all_apart(3, 8)


def test_places_that_differ_are_told_in_full() -> None:
    few, told = scale.places_apart(TENS, 8, 2)
    many, _ = scale.places_apart(THOUSANDS, 8, 2)
    assert "total: rank 0 has 0, rank 7 has 7" in told
    assert few.traffic == many.traffic
    assert scale.places_apart(TENS, 8, 18)[0].handed > few.handed


def test_what_moved_is_told_to_all_ranks() -> None:
    cost, found = scale.found_on_every_rank(TENS, 8, 2, 2)
    clean = simulated(TENS, 8).costs["epoch's end"]
    assert found == 2
    assert cost.messages == clean.messages  # what moved goes with the gather of its number
    assert cost.handed > clean.handed


def test_what_is_logged_is_a_number_for_each_group() -> None:
    few, many = scale.logged(2, 8), scale.logged(20, 8)
    assert 0 < many.handed - few.handed <= 18 * 2 * 4  # updates and a learning rate


def test_what_is_not_known_is_not_passed_over() -> None:
    with scale.group_of(2), Wire(Cost(), scale.one_of_all()), pytest.raises(NotImplementedError, match="count it here"):
        dist.broadcast(torch.ones(1), src=0)
    assert not dist.is_initialized()


def test_a_layer_that_is_made_whole_is_not_passed_over() -> None:
    with scale.group_of(2):
        layer: Any = scale.sharded(TENS, 2).get_submodule("blocks.0")
        with Wire(Cost(), scale.one_of_all()), pytest.raises(NotImplementedError, match="count it here"):
            layer.unshard()


def test_the_tables_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    scale.main(["--quick", "--ranks", "4"])
    printed = capsys.readouterr().out
    assert "## A fit: 1,448 parameters on 4 ranks" in printed
    for said in (
        "| epoch's end |",
        "of that, 4 groups",
        "copies apart: all of 10 parameters, of all 2 shards",
        "| 4 groups |",
    ):
        assert said in printed, said


def test_what_the_page_says_of_messages_is_so() -> None:
    """Messages and what is handed over do not depend on the size, so a tiny model tells."""
    page = (Path(__file__).resolve().parents[2] / "examples" / "scale.md").read_text(encoding="utf-8")
    rows = {cells[0]: cells for line in page.splitlines() if len(cells := line.strip("| ").split(" | ")) == 9}
    costs = simulated(TENS, 8).costs
    said = {what: tuple(rows[what][5:8]) for what in costs}
    sent = {what: (cost.messages, cost.handed, cost.received // 7 * 1023) for what, cost in costs.items()}
    assert said == {what: tuple(f"{number:,}" for number in numbers) for what, numbers in sent.items()}
    assert len(said) == 12


@pytest.mark.parametrize("number", ["3", "2"])
def test_ranks_that_cannot_hold_copies_are_refused(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scale.main(["--ranks", number])
    assert f"--ranks is {number}. Give an even number of at least 4." in capsys.readouterr().err
