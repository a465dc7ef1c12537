"""`lightning-freeze schema`: what an editor checks is what a run takes."""

from __future__ import annotations

import copy
import inspect
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import lightning_freeze
from lightning_freeze import AlternatingFreeze, Every, FreezeAudit, FreezeScheduler, Phase, Phases, Pick, Until
from lightning_freeze.cli.main import main

SCHEMA = json.loads((Path(lightning_freeze.__file__).parent / "cli" / "schedule.schema.json").read_text("utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
LISA = {
    "repeat": True,
    "phases": [{"train": ["ends"], "pick": {"family": "layers", "count": 2, "order": "random"}, "updates": 50}],
}
SCHEDULER = {"schedule": LISA, "groups": {"layers": {"each": "model.layers.*"}}, "rest": "freeze"}


def at(whole: Any, path: str, value: Any) -> Any:
    """A copy with another value at a path, such as ``phases.0.updates``."""
    whole = copy.deepcopy(whole)
    *above, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = whole
    for part in above:
        place = place[part]
    place[last] = value
    return whole


def in_run(**init_args: Any) -> dict[str, Any]:
    callback = {"class_path": "lightning_freeze.FreezeScheduler", "init_args": init_args}
    return {"trainer": {"callbacks": [callback]}, "model": {"class_path": "mine.Model"}}


def test_it_is_a_schema_and_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    main(["schema"])
    assert json.loads(capsys.readouterr().out) == SCHEMA


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_what_ships_is_valid(path: Path) -> None:
    VALIDATOR.validate(yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("kind", [FreezeScheduler, AlternatingFreeze, FreezeAudit, Every, Phases, Phase, Pick, Until])
def test_it_has_the_keys_that_the_class_has(kind: type) -> None:
    known = SCHEMA["$defs"][kind.__name__]
    parameters = inspect.signature(kind).parameters
    assert set(parameters) <= set(known["properties"])
    assert set(known["properties"]) - set(parameters) <= {"verbose"}
    needed = {name for name, parameter in parameters.items() if parameter.default is parameter.empty}
    assert set(known.get("required", ())) == needed


@pytest.mark.parametrize(
    "valid",
    [
        {"phases": [{"train": ["all"]}]},
        {"class_path": "Phases", "init_args": {"phases": [{"class_path": "Phase", "init_args": {"train": ["a"]}}]}},
        at(LISA, "phases.0", {"repeat": 3, "phases": LISA["phases"]}),
        at(LISA, "phases.0.lr", {"layers": {"decay": 0.4}, "ends": [1, 0.5]}),
        {
            "phases": [
                {"train": ["a"], "updates": 1, "epochs": None, "until": None, "pick": None, "lr": None, "ramp": None}
            ]
        },
        in_run(**SCHEDULER),
        in_run(schedule="in_turn.yaml", audit={"every_n_updates": 10}),
        in_run(schedule=LISA, groups={"a": ["b", {"except": "b.c"}], "t": {"select": "t", "by": "user: an EMA"}}),
        {"trainer": {"callbacks": {"class_path": "mine.Callback", "init_args": {"anything": 1}}}},
    ],
)
def test_it_takes(valid: Any) -> None:
    VALIDATOR.validate(valid)


@pytest.mark.parametrize(
    "wrong",
    [
        {"schedule": LISA},
        {"phases": []},
        {"phases": [{"updates": 3}]},
        {"class_path": "Every"},
        {"class_path": "Evry", "init_args": {"periods": {"a": 2}}},
        {"class_path": "Every", "init_args": {"periods": {"a": 0}}},
        {"class_path": "Every", "init_args": {"periods": {}}},
        at(LISA, "phases.0.train", "ends"),
        at(LISA, "phases.0.updates", 0),
        at(LISA, "phases.0.updates", "50"),
        at(LISA, "phases.0.epochs", 3),
        at(LISA, "phases.0.update", 3),
        at(LISA, "phases.0.pick.order", "randomly"),
        at(LISA, "phases.0.pick.drawn", "frozen"),
        at(LISA, "phases.0.lr", {"ends": 0}),
        at(LISA, "phases.0", {"train": ["a"], "until": {"metric": "loss", "mode": "less"}}),
        at(LISA, "phases.0", {"repeat": True, "phases": LISA["phases"]}),
        at(LISA, "phases.0", {"seed": 3, "phases": LISA["phases"]}),
        at(LISA, "repeat", 0),
        at(LISA, "change", "epoch"),
        in_run(**SCHEDULER | {"rest": "frozen"}),
        in_run(**SCHEDULER | {"groups": {"layers": {"every": "model.layers.*"}}}),
        in_run(**SCHEDULER | {"skip_backward": "always"}),
        in_run(**SCHEDULER | {"optimiser_state": "keep"}),
        in_run(groups={"a": "b"}),
    ],
)
def test_it_refuses(wrong: Any) -> None:
    assert not VALIDATOR.is_valid(wrong)
