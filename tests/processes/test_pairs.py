"""The harness of real processes, and the one case of a fault that `pytest` alone runs; `test_faults.py` has the others."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.processes.pairs import Case, Outcomes, run_pairs

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of Lightning's, about each strategy


def case(function: str, name: str = "", **arguments: Any) -> Case:
    """A case of `faults.py`."""
    return Case(name or function, f"tests.processes.faults:{function}", arguments)


def stopped_by_rank_1(made: dict[str, Any], batches: int) -> None:
    """A write to something frozen, by rank 1 alone, has stopped this rank after so many batches."""
    assert made["kinds"] == ["value"]
    assert "on rank 1: 'layer1.weight'" in made["text"]
    assert made["saved"]
    assert made["batches"] == batches
    assert made["findings"] == 1


def test_a_frozen_weight_that_one_rank_writes_to_stops_both_alike(tmp_path: Path) -> None:
    for made in Outcomes(tmp_path, [case("frozen_write")]).results("frozen_write"):
        stopped_by_rank_1(made, 6)


@pytest.mark.slow
def test_a_case_that_hangs_ends_by_its_deadline_and_the_next_one_runs(tmp_path: Path) -> None:
    """A collective that one rank never joins."""
    here = "tests.processes.test_pairs"
    found = run_pairs(tmp_path, [Case("hangs", f"{here}:hangs", deadline=3.0), Case("fine", f"{here}:fine")])
    assert {outcome.error for outcome in found["hangs"]} == {"gone"}
    assert "in hangs" in found["hangs"][1].text
    assert [outcome.result for outcome in found["fine"]] == [1, 1]


def test_a_case_that_fails_is_no_result(tmp_path: Path) -> None:
    outcomes = Outcomes(tmp_path, [Case("raises", "tests.processes.test_pairs:raises")])
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        outcomes.results("raises")


def hangs(root: Path) -> None:
    time.sleep(60)


def fine(root: Path) -> int:
    return 1


def raises(root: Path) -> float:
    return 1 / 0
