"""The matrix of strategies, precisions, accumulation, skipping and schedules, by real processes; `matrix.py` runs all of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.pages import part
from tests.processes.matrix import (
    PAGE,
    PRECISIONS,
    STRATEGIES,
    Cell,
    cells,
    check,
    expected_refusal,
    faults,
    references,
    section,
)
from tests.processes.pairs import Outcome

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of Lightning's, about each strategy and precision

CELL = Cell("DDP", "32-true", 1, "auto", "phases")


def test_one_case_by_two_processes(tmp_path: Path) -> None:
    outcomes, problems = check([CELL], tmp_path)
    assert [len(found) for found in outcomes.values()] == [2]
    assert problems == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_matrix_and_the_readmes_table_of_it(tmp_path: Path) -> None:
    outcomes, problems = check(cells(), tmp_path)
    assert {cell.strategy for cell in outcomes} == set(STRATEGIES)
    assert {cell.precision for cell in outcomes} == set(PRECISIONS)
    assert problems == []
    assert part(PAGE, "matrix") == section(outcomes)


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """What a run says in which all holds, made of one process's."""
    alone = references([CELL], tmp_path_factory.mktemp("alone"))[CELL]
    expected = CELL.expected()
    made = {
        "moved": expected,
        "updates": {group: sum(turns) for group, turns in expected.items()},
        "findings": [],
        "restored": True,
        "skips": True,
        "weights": alone,
    }
    return made, alone


def changed(weights: dict[str, list[float]], by: float) -> dict[str, list[float]]:
    return {**weights, "layer1.bias": [weights["layer1.bias"][0] + by, *weights["layer1.bias"][1:]]}


def test_what_it_would_say_of_a_run_in_which_all_holds(held: Any) -> None:
    made, alone = held
    assert faults(CELL, [Outcome(made), Outcome(made)], alone) == []


@pytest.mark.parametrize(
    ("what", "value", "says"),
    [
        ("moved", lambda made: {**made["moved"], "bottom": [True] * 8}, "rank 1: moved"),
        ("updates", lambda made: {**made["updates"], "head": 5}, "rank 1: updates"),
        ("findings", lambda made: ["moved"], "rank 1: findings"),
        ("restored", lambda made: False, "rank 1: restored"),
        ("skips", lambda made: False, "rank 1: skips"),
        ("weights", lambda made: changed(made["weights"], 1e-9), "rank 1: equal on ranks"),
    ],
)
def test_and_what_of_one_in_which_it_does_not(what: str, value: Any, says: str, held: Any) -> None:
    """Sabotage: the matrix can fail."""
    made, alone = held
    found = faults(CELL, [Outcome(made), Outcome({**made, what: value(made)})], alone)
    assert len(found) == 1
    assert found[0].startswith(says)


def test_it_compares_with_one_process(held: Any) -> None:
    made, alone = held
    apart = {**made, "weights": changed(alone, 1e-4)}
    assert faults(CELL, [Outcome(apart), Outcome(apart)], alone) == ["0.0001 from one process, more than 2e-06"]


def test_a_refusal_must_be_the_one_expected_on_every_rank(held: Any) -> None:
    _, alone = held
    refused = Outcome(None, "UnsupportedError", "`skip_backward` is true, which is not safe here: …")
    insists = replace(CELL, strategy="FSDP1", skip=True)
    assert expected_refusal(insists) == "freeze"
    assert faults(insists, [refused, refused], alone) == []
    assert faults(CELL, [refused, refused], alone)[0] == "refused by freeze, not by None"
    assert faults(insists, [refused, Outcome(None, "gone")], alone)[0] == "refused by None, not by freeze"
