"""What the release before wrote is read: its saved states, its records, and its plans, update for update.

``former.json`` was written by commit 001de44: each recipe in the plain loop of `tests/test_recipes.py`, with the state that
it had saved after the second batch of epoch 1, what it trained at each batch, and its records.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_freeze import FreezeController, read_report
from lightning_freeze.checkpoint import unpacked
from lightning_freeze.report.records import read_records
from lightning_freeze.report.run_table import summary_table
from lightning_freeze.report.steps import steps_of
from tests.loop import fit
from tests.recipes import arguments_of, model_of
from tests.test_recipes import BATCHES, EPOCHS, Loop

FORMER: dict[str, Any] = json.loads((Path(__file__).parent / "former.json").read_text(encoding="utf-8"))
SAVED = (1, 2)
IN_DEFAULT_SUITE = ("alternating", "lisa", "gradual_unfreezing", "unfreezing_on_plateau")

pytestmark = pytest.mark.filterwarnings("ignore:.*and did not move.*")


def seen(loop: Loop) -> list[Any]:
    return [[groups, updates] for groups, updates in loop.seen.values()]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in IN_DEFAULT_SUITE else pytest.mark.slow) for name in FORMER]
)
def test_its_plan_is_the_same_update_for_update_and_its_state_is_gone_on_from(name: str) -> None:
    straight = Loop(name)
    straight.run(saves=True)
    saved, expected = straight.saves[SAVED], FORMER[name]["seen"]
    assert seen(straight) == expected
    state, former = unpacked(json.loads(json.dumps(saved["controller"]))), FORMER[name]["state"]
    assert (state.pop("version"), former["version"]) == (2, 1)
    steps = [steps_of([{"type": "phase", **each["steps"]}]) for each in (state, former)]
    assert steps[0] == steps[1]
    assert {**state, "steps": former["steps"], "version": 1} == former
    resumed = Loop(name, {**saved, "controller": FORMER[name]["state"]})
    resumed.run()
    assert seen(resumed) == expected[SAVED[0] * BATCHES + SAVED[1] :]


@pytest.mark.parametrize("name", FORMER)
def test_its_records_are_read_and_its_report_is_made(name: str, tmp_path: Path) -> None:
    path = tmp_path / "freeze_audit.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in FORMER[name]["records"]), encoding="utf-8")
    records = list(read_records(path))
    made = steps_of(records)
    assert len(made) == EPOCHS * BATCHES
    last = FORMER[name]["seen"][-1][1]
    assert {group: sum(group in groups for _, groups in made) for group in last} == last
    assert all(isinstance(each["name"], str) for each in records[0]["optimizers"])
    assert read_report(path).total == EPOCHS * BATCHES
    table = summary_table(records)
    assert table.row_count == len(records[0]["groups"])
    assert "frozen intervals held, bit for bit" in str(table.caption)


def test_its_records_have_no_key_that_is_not_written_now() -> None:
    model, records = model_of("phases"), list[Any]()
    optimizer = model.configure_optimizers()
    with FreezeController(model, **arguments_of("phases"), record=records.append) as controller:
        controller.attach(optimizer, closures=True)
        controller.begin()
        fit(model, optimizer, controller, [None] * 2)
        controller.finish()
    keys = {record["type"]: record.keys() | {"version"} for record in records}
    former = {record["type"]: record.keys() for record in FORMER["phases"]["records"]}
    assert keys.keys() == former.keys()
    assert [kind for kind, found in former.items() if not found <= keys[kind]] == []
