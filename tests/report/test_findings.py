"""Findings as plain data, and the violation that carries them."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest

from lightning_freeze import Finding, FreezeViolation
from lightning_freeze.report.findings import Findings
from lightning_freeze.report.table import as_text

ERROR = Finding("frozen", "value", "error", "'w' moved", cause="outside", epoch=1, parameter="w", group="g")


def test_a_finding_is_json_without_empty_fields() -> None:
    assert json.loads(json.dumps(ERROR.as_dict())) == {
        "audit": "frozen",
        "kind": "value",
        "severity": "error",
        "message": "'w' moved",
        "cause": "outside",
        "epoch": 1,
        "parameter": "w",
        "group": "g",
    }


def test_a_violation_says_what_moved_and_what_was_saved() -> None:
    text = str(FreezeViolation([ERROR], "run.ckpt"))
    assert "1 violation: what was planned frozen moved" in text
    assert "- 'w' moved" in text
    assert "saved to 'run.ckpt'" in text
    assert "on_finding='warn'" in text


def test_a_violation_without_a_checkpoint_says_so_and_a_long_one_is_cut() -> None:
    text = str(FreezeViolation([ERROR] * 13))
    assert "Nothing was saved" in text
    assert "13 violations" in text
    assert "… and 3 more" in text


def test_a_violation_survives_being_sent_between_processes() -> None:
    error = FreezeViolation([ERROR], "run.ckpt")
    again = pickle.loads(pickle.dumps(error))
    assert again.findings == [ERROR]
    error = FreezeViolation([INPUT], switched=True, unsaved="it rains")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


INPUT = Finding("inputs", "unused", "warning", "'a' is passed `b`", module="a", argument="b", module_class="A")


@pytest.mark.parametrize(
    ("finding", "switched", "way"),
    [
        (ERROR, False, "set on_finding='warn'."),
        (ERROR, True, "set LIGHTNING_FREEZE_AUDIT=warn."),
        (
            INPUT,
            False,
            "set on_finding='warn', or whitelist what is known: `lightning-freeze inputs --config <yours>` writes the "
            "list.",
        ),
        (
            INPUT,
            True,
            "set LIGHTNING_FREEZE_AUDIT=warn, or name a whitelist in LIGHTNING_FREEZE_WHITELIST: `lightning-freeze "
            "inputs --config <yours>` writes the list.",
        ),
    ],
)
def test_a_violation_says_how_to_go_on(finding: Finding, switched: bool, way: str) -> None:
    text = str(FreezeViolation([finding], switched=switched))
    assert text.endswith(f"To go on all the same, {way} More: `lightning-freeze explain {finding.kind}`.")


def test_findings_and_violations_say_where_to_read_more() -> None:
    assert ERROR.text == "'w' moved More: `lightning-freeze explain value`."
    kinds = [Finding("ranks", "copies", "error", "differ"), ERROR, ERROR]
    assert str(FreezeViolation(kinds)).endswith("More: `lightning-freeze explain copies value`.")


def test_a_violation_says_why_nothing_was_saved() -> None:
    assert "Nothing was saved, since it rains." in str(FreezeViolation([ERROR], unsaved="it rains"))


NAMED = Finding("frozen", "value", "error", "'<b>' [bold]moved", parameter="<b>", epoch=3)


def test_findings_are_a_list_that_shows_itself() -> None:
    found = Findings([NAMED])
    assert isinstance(found, list)
    assert (found, Findings()) == ([NAMED], [])
    assert repr(found) == (
        "[Finding(audit='frozen', kind='value', severity='error', message=\"'<b>' [bold]moved\", epoch=3, parameter='<b>')]"
    )
    assert pickle.loads(pickle.dumps(found))[0] == NAMED
    text = as_text(found)
    assert "findings: 1" in text
    assert "'<b>' [bold]moved" in text
    html = found._repr_html_()
    assert html.startswith("<pre")
    assert "&lt;b&gt;" in html
    assert "<b>" not in html


def test_html_is_made_in_a_notebook_without_showing_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """There a console of rich's shows by itself what is printed to it."""
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    shown: list[Any] = []
    monkeypatch.setattr("rich.jupyter.display", lambda *what: shown.append(what))
    assert Findings([NAMED])._repr_html_().startswith("<pre")
    assert "findings: 1" in as_text(Findings([NAMED]))
    assert shown == []
