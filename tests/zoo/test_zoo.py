"""The zoo's optimizers hold what is frozen, or are refused; and the zoo's own checks can fail."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch.optim import SGD

import lightning_freeze.setup
from lightning_freeze import OptimizerTraits
from tests.probe.planted_optimizers import DecaysAll
from tests.zoo import survey
from tests.zoo.__main__ import FILE
from tests.zoo.database import torchs
from tests.zoo.hand import observe
from tests.zoo.survey import Row, examine
from tests.zoo.table import faults, page
from tests.zoo.trial import TURNS, fit
from tests.zoo.zoo import NEEDS, PACKAGES, PLAIN, Specimen, classes, specimens, versions


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Packages are imported only where the zoo was asked for: some take seconds."""
    if "animal" in metafunc.fixturenames:
        asked = "zoo" in metafunc.config.getoption("markexpr").replace("not zoo", "")
        found = list(specimens()) if asked else []
        metafunc.parametrize("animal", found, ids=[f"{each.package}-{each.name}" for each in found])


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")  # of the packages, which have seen other days
def test_what_is_frozen_is_held_or_refused_and_the_probe_knew(animal: Specimen) -> None:
    row = examine(animal, versions().get(animal.package, ""))
    if row.not_built:
        pytest.skip(row.not_built)
    assert faults([row]) == []
    assert set(row.turns) == set(TURNS)


@pytest.mark.zoo
@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_has_optimizers(package: str) -> None:
    if package not in versions():
        pytest.skip(f"{package} is not installed: pip install -c constraints.txt -e '.[zoo]'")
    assert classes(package)


@pytest.mark.zoo
def test_each_exception_is_for_somebody() -> None:
    if not {"pytorch_optimizer", "bitsandbytes", "torch_optimizer", "dadaptation"} <= versions().keys():
        pytest.skip("not all of the packages are installed: pip install -c constraints.txt -e '.[zoo]'")
    found = [name for package in PACKAGES for kind in classes(package) for name in (kind, f"{package}.{kind}")]
    assert [key for key in (*NEEDS, *PLAIN) if not any(name.startswith(key) for name in found)] == []


SAMPLE = [*list(torchs())[::19], list(torchs())[-1]]


@pytest.mark.slow  # `tests/holds/test_optim_db.py` has all of them, in a plain loop
@pytest.mark.parametrize("specimen", SAMPLE, ids=[each.name for each in SAMPLE])
def test_torchs_own(specimen: Specimen) -> None:
    row = examine(specimen, torch.__version__)
    assert (row.not_built, faults([row])) == ("", [])
    expected = "refused" if specimen.name == "LBFGS" else "held"
    if "differentiable" in specimen.name:
        expected = "fails without us, too"
    assert set(row.turns.values()) == {expected}


def test_the_table_in_the_repository_tells_of_no_leak() -> None:
    """Written by `python -m tests.zoo --old .zoo --write`."""
    table = FILE.read_text(encoding="utf-8")
    assert not {"LEAK", "CRASH"} & set(table.replace("|", " ").split())
    assert [name for name in ("torch 2", "pytorch_optimizer 3.10", "pytorch_optimizer 4") if name not in table] == []


# --- the checks can fail ------------------------------------------------------------------------------------------------


class Remembers(SGD):
    """Writes into the state of whatever it holds."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["seen"] = self.state[p].get("seen", 0) + 1
        return loss


class Fails(SGD):
    """Fails where something has no gradient."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        if any(p.grad is None for group in self.param_groups for p in group["params"]):
            raise ZeroDivisionError("nothing to divide by")
        return loss


def specimen(kind: Any) -> Specimen:
    return Specimen("tests", kind.__name__, lambda model: kind(model.parameters(), lr=0.1))


def claims(**said: Any) -> Any:
    """A probe that says the same of everything."""
    traits = OptimizerTraits("Any", skips_none=True, holds_excluded=True, all_none_ok=True, late_first_step_ok=True)
    return lambda optimizer, closure=None: replace(traits, **{"steps_in_backward": False, **said})


@cache
def believed(kind: Any) -> Row:
    """What is found of an optimizer where the probe says that None holds."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(lightning_freeze.setup, "probe_optimizer", claims())
        patch.setattr(survey, "probe_optimizer", claims())
        return examine(specimen(kind), "")


@pytest.mark.parametrize("kind", [DecaysAll, Remembers])
def test_a_leak_is_seen_where_the_probe_is_wrong(kind: Any) -> None:
    row = believed(kind)
    assert set(row.turns.values()) == {"LEAK"}
    for turn in TURNS:
        assert any(fault.startswith(f"tests {kind.__name__}, {turn}: the ") for fault in faults([row]))
    assert f"tests {kind.__name__}: skips_none is False, and the probe says True" in faults([row])
    assert "**alternating: the" in page([row])


def test_a_crash_is_seen_where_the_probe_is_wrong() -> None:
    row = believed(Fails)
    assert set(row.turns.values()) == {"CRASH in training"}
    assert "ZeroDivisionError: nothing to divide by" in faults([row])[0]


@pytest.mark.parametrize("kind", [DecaysAll, Remembers, Fails])
def test_with_the_true_probe_they_are_held(kind: Any) -> None:
    row = examine(specimen(kind), "")
    assert (row.way, set(row.turns.values()), faults([row])) == ("left out", {"held"}, [])


def test_a_wrong_verdict_is_off_the_diagonal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        survey, "probe_optimizer", claims(skips_none=False, holds_excluded=True, reasons={"skips_none": "no"})
    )
    row = Row("tests", "", "SGD")
    survey.compare(specimen(SGD), row)
    assert row.off_diagonal == ["skips_none"]
    assert "- tests SGD: skips_none is True, and the probe says False" in page([row])


def test_a_false_count_of_updates_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    turn = TURNS["alternating"]
    wrong = replace(turn, trains=lambda n: turn.trains(n) | {"layer1"})
    assert "updates instead of" in fit(specimen(SGD), wrong).leak


def test_what_fails_without_us_is_told_apart() -> None:
    class Never(SGD):
        def step(self, closure: Any = None) -> Any:
            raise LookupError("not without my data")

    outcome = fit(specimen(Never), TURNS["alternating"])
    assert (outcome.word, outcome.fails) == ("fails without us, too", False)
    assert observe(specimen(Never)).fails == "LookupError: not without my data"


def test_what_does_not_move_is_told() -> None:
    idle = Specimen("tests", "SGD", lambda model: SGD(model.parameters(), lr=0.0))
    assert fit(idle, TURNS["cyclic"]).still == ("layer1", "layer2")
    assert "does not move" in observe(idle).fails
