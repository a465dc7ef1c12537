"""Two real processes: what one does alone is found on both, what one loses stops both, and nothing hangs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.processes.faults import loads, saves
from tests.processes.matrix import TOLERANCES, distance
from tests.processes.pairs import Case, Outcomes
from tests.processes.test_pairs import case, stopped_by_rank_1

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of Lightning's, about each strategy
    pytest.mark.slow,  # tests/processes/test_pairs.py has the one case that `pytest` alone runs
]


CASES = [
    case("frozen_write", "frozen_write_within", every=1),
    case("frozen_write", "frozen_write_audit", audit_alone=True),
    case("trained_write"),
    case("trained_write", "trained_write_tp", strategy="tensor parallel"),
    case("another_schedule"),
    case("another_checkpoint"),
    case("counts_apart"),
    case("post_local"),
    *(case("hook_raises", f"hook_raises_{s}", everywhere=True, strategy=s) for s in ("DDP", "FSDP2")),
    case("empty_shards", "empty_fsdp1", strategy="FSDP1"),
    case("empty_shards", "empty_fsdp2", strategy="FSDP2"),
    case("overflow_in_one_shard"),
    case("draws"),
    case("looked_at"),
    case("thaws_after_a_look"),
    case("branch"),
    case("hand"),
    case("second_try"),
    case("cannot_save"),
    case("other_groups_in_one_checkpoint"),
    case("finds_at_the_end"),
    case("left_out"),
    case("unmoved"),
    case("interrupted", "straight"),
    case("saves", "saves_ddp", strategy="DDP"),
    *(case("saves", f"saves_{how}", strategy="FSDP2", save=how) for how in ("sharded", "whole")),
    case("untold"),
    case("interrupted", "killed", kills=True),
    case("hook_raises", everywhere=False, strategy="DDP"),
    Case("copies_after_validation", "tests.processes.faults:copies_after_validation", world=4),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pairs")


@pytest.fixture(scope="module")
def outcomes(root: Path) -> Outcomes:
    return Outcomes(root, CASES)


Found = Callable[[str], list[Any]]


@pytest.fixture
def found(outcomes: Outcomes) -> Found:
    """What each rank made of a case, of which neither failed."""
    return outcomes.results


@pytest.mark.parametrize(("name", "seen"), [("frozen_write_within", 3), ("frozen_write_audit", 6)])
def test_a_frozen_weight_that_one_rank_writes_to_stops_both_alike(name: str, seen: int, found: Found) -> None:
    for made in found(name):
        stopped_by_rank_1(made, seen)


@pytest.mark.parametrize(("name", "first"), [("trained_write", "layer1.weight"), ("trained_write_tp", "layer2.bias")])
def test_replicas_that_have_gone_apart_are_found_by_name_on_both(name: str, first: str, found: Found) -> None:
    """Under DDP all parameters are copies, under tensor parallelism those that are not split."""
    for made in found(name):
        assert made["kinds"] == ["copies"]
        assert made["parameters"] == [first]
        assert f"{first!r} should be the same on all ranks" in made["text"]
        assert "rank 0 and rank 1 hold different bits" in made["text"]
        assert "the processes of the run differ" in made["text"]
        assert "To go on, resume from a checkpoint that was made before" in made["text"]
        assert made["saved"]


def test_copies_of_a_shard_are_compared_after_a_validation_too(found: Found) -> None:
    """Which leaves FSDP2's outermost layer unsharded, so that its module shows other parameters."""
    results = found("copies_after_validation")
    assert len(results) == 4
    for made in results:
        assert made["kinds"] == ["copies"]
        assert made["parameters"] == ["layer2.bias"]
        assert "rank 1 and rank 3 hold different bits" in made["text"]


def test_what_is_held_in_eval_mode_stands_still_under_fsdp2_after_a_sanity_check(found: Found) -> None:
    for made in found("looked_at"):
        assert made["updates"] == {"bottom": 0, "upper": 8, "head": 8}
        assert made["tracked"] == 0
        assert made["mean"] == [0.0] * 4
        assert made["findings"] == []


def test_what_thaws_under_fsdp2_gets_its_gradient_whatever_was_called_in_between(found: Found) -> None:
    for made in found("thaws_after_a_look"):
        assert made == {"bottom": 2, "upper": 2, "head": 6}


def test_under_fsdp1_a_layer_without_a_gradient_counts_on_neither_rank(found: Found) -> None:
    for made in found("branch"):
        assert made == {"updates": {"branch": 3, "others": 6}, "kinds": []}


def test_ranks_that_step_otherwise_by_hand_are_found_and_do_not_hang(found: Found) -> None:
    for made in found("hand"):
        assert {"place", "copies"} <= set(made["kinds"])
        assert "rank 0 has 8, rank 1 has 7" in made["text"]


def test_a_fit_within_an_except_block_stops_on_both(found: Found) -> None:
    for made in found("second_try"):
        assert made["kinds"] == ["value"]
        assert "on rank 1: 'blocks.0.weight'" in made["text"]


@pytest.mark.filterwarnings("ignore:the run could not be saved")
def test_a_rank_that_cannot_save_leaves_none_waiting(found: Found) -> None:
    for made in found("cannot_save"):
        assert made["kinds"] == ["copies"]
        assert not made["saved"]
        assert "Nothing was saved" in made["text"]


def test_a_state_that_one_rank_refuses_is_refused_by_all(outcomes: Outcomes) -> None:
    first, second = outcomes["other_groups_in_one_checkpoint"]
    assert (first.error, second.error) == ("ScheduleError", "ScheduleError"), first.trace + second.trace
    assert "refused: rank 0 has" in first.text
    assert "rank 1 has" in first.text
    assert "another schedule" in second.text


def test_in_a_plain_loop_both_are_told_also_at_the_end(found: Found) -> None:
    for made in found("finds_at_the_end"):
        assert made["epoch"] == ["own"]
        assert len(made["end"]) == 1
        assert made["end"][0].startswith("on rank 1: 'layer1.weight'")


def test_an_optimizer_that_is_held_by_leaving_out_is_so_under_ddp(found: Found) -> None:
    first, second = found("left_out")
    assert first["skips"] is True
    assert first["moved"] == [True, False, False, True, False, False, True, False]
    assert first["updates"] == {"layer1": 3, "layer2": 8}
    assert first["findings"] == []
    assert second == first


def test_what_no_rank_moves_is_told_of_under_fsdp2(found: Found) -> None:
    for made in found("unmoved"):
        assert {"layer1.weight", "layer1.bias", "layer2.weight"} <= set(made["parameters"])


def test_ranks_that_average_their_weights_now_and_then_are_no_replicas(found: Found) -> None:
    for made in found("post_local"):
        assert made == {"findings": [], "updates": {"slow": 2, "fast": 6}}


def test_another_schedule_on_one_rank_is_refused_on_both_and_names_both(outcomes: Outcomes) -> None:
    for outcome in outcomes["another_schedule"]:
        assert outcome.error == "ScheduleError"
        assert "the ranks do not agree, before training" in outcome.text
        assert "schedule.init_args.periods.slow: rank 0 has 3, rank 1 has 4" in outcome.text


def test_ranks_that_resume_from_different_places_are_refused(outcomes: Outcomes) -> None:
    for outcome in outcomes["another_checkpoint"]:
        assert outcome.error == "ScheduleError", outcome.trace
        assert "where training begins" in outcome.text
        assert "updates.bottom: rank 0 has 3, rank 1 has 4" in outcome.text


def test_counts_that_go_apart_within_an_epoch_stop_both_at_its_end(found: Found) -> None:
    for made in found("counts_apart"):
        assert "place" in made["kinds"]
        assert "the ranks do not train the same: at the end of epoch 0" in made["text"]
        assert "updates.bottom: rank 0 has 3, rank 1 has 7" in made["text"]
        assert made["saved"]


@pytest.mark.parametrize("strategy", ["DDP", "FSDP2"])
def test_an_exception_on_all_ranks_undoes_everything_on_each(strategy: str, found: Found, root: Path) -> None:
    for made in found(f"hook_raises_{strategy}"):
        assert made == {"error": "ValueError", "restored": True, "frozen": True}
    if strategy == "DDP":  # saved by Lightning's own callback, while the exception is handled
        assert (root / "hook_raises_DDP" / "exception.ckpt").exists()


def test_an_exception_on_one_rank_undoes_everything_on_both(outcomes: Outcomes, root: Path) -> None:
    first, second = outcomes["hook_raises"]
    assert first.result["error"] not in ("", "ValueError"), "rank 0 has not heard of it"
    assert first.result["restored"]
    assert second.error == "gone"
    assert json.loads((root / "hook_raises" / "rank-1.json").read_text()) == {
        "error": "ValueError",
        "restored": True,
        "frozen": True,
    }


def test_a_killed_rank_ends_the_other_and_the_last_checkpoint_goes_on_exactly(outcomes: Outcomes, found: Found) -> None:
    first, second = outcomes["killed"]
    assert second.error == "gone"
    assert first.result["error"] != ""
    assert first.result["restored"]
    last = max(outcomes.root.glob("killed/*.ckpt"), key=lambda path: path.stat().st_mtime)
    outcomes.run(case("interrupted", "goes_on", path=str(last)))
    for made, never_stopped in zip(found("goes_on"), found("straight"), strict=True):
        assert made == never_stopped
        assert made["error"] == ""


@pytest.mark.parametrize("strategy", ["fsdp1", "fsdp2"])
def test_a_group_of_which_a_rank_holds_nothing_counts_alike(strategy: str, found: Found) -> None:
    made = found(f"empty_{strategy}")
    assert any(each["empty"] for each in made), "no rank is without a part of it"
    for each in made:
        assert each["updates"] == {"biases": 3, "weights": 5}
        assert each["findings"] == []


def test_an_overflow_in_the_shard_of_one_rank_counts_on_neither(found: Found) -> None:
    for made in found("overflow_in_one_shard"):
        assert made == {"updates": {"slow": 3, "fast": 7}, "findings": []}


def test_two_processes_with_different_global_seeds_draw_the_same_groups(found: Found) -> None:
    """And end a phase together, by the mean of what they logged, where they logged different values."""
    first, second = found("draws")
    assert first == second
    sets = first["seen"]
    assert len({tuple(groups) for groups in sets[:16]}) >= 5, "the draws differ from each other"
    # The phase of the metric begins after 16 updates, in epoch 2 of six batches, and the mean sinks: it lasts its three
    # epochs, which it would not if rank 1 were heard alone.
    assert sets[15:30] == [["ends"]] * 15
    assert len(sets[14]) == 3
    assert len(sets[30]) == 2
    assert len(sets[-1]) == 2


def test_plain_ddp_fails_without_being_told_of_what_is_frozen(outcomes: Outcomes) -> None:
    """Should torch mend this, the telling can go."""
    texts = [str(outcome.result or outcome.text) for outcome in outcomes["untold"]]
    assert any("parameters that were not used in producing the loss" in text for text in texts), texts


@pytest.mark.parametrize("how", ["sharded", "whole"])
def test_fsdp2_goes_on_from_its_checkpoints_of_groups_that_never_trained(
    how: str, outcomes: Outcomes, found: Found
) -> None:
    assert found(f"saves_{how}")[0]["updates"]["upper"] == 0
    path = str(outcomes.root / f"saves_{how}" / "saved.ckpt")
    outcomes.run(case("loads", f"loads_{how}", strategy="FSDP2", path=path, save=how))
    for made in found(f"loads_{how}"):
        assert made["resumed"] == made["straight"]
        assert made["resumed"]["updates"] == {"bottom": 6, "upper": 2, "head": 10}
        assert made["resumed"]["findings"] == []
        assert made["resumed"]["restored"]


def close(one: Any, other: Any) -> bool:
    return distance(one["weights"], other["weights"]) <= TOLERANCES["32-true"] and one["updates"] == other["updates"]


def test_ddp_goes_on_from_a_checkpoint_of_one_process(outcomes: Outcomes, found: Found, tmp_path: Path) -> None:
    saves(tmp_path, "one process")
    outcomes.run(case("loads", "loads_alone", strategy="DDP", path=str(tmp_path / "saved.ckpt")))
    for made in found("loads_alone"):
        assert close(made["resumed"], made["straight"])
        assert made["resumed"]["findings"] == []


def test_one_process_goes_on_from_a_checkpoint_of_ddp(found: Found, root: Path, tmp_path: Path) -> None:
    found("saves_ddp")
    made = loads(tmp_path, "one process", str(root / "saves_ddp" / "saved.ckpt"))
    assert close(made["resumed"], made["straight"])
    assert made["resumed"]["findings"] == []
