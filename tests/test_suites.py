"""Outcomes of other projects' tests are compared by test, and only a listed difference is no failure."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import suites

FILE = """
import os
def test_passes(): pass
def test_skips():
    import pytest; pytest.skip()
def test_without(): assert not os.environ.get("LIGHTNING_FREEZE_AUDIT")
def test_warns(): assert os.environ.get("LIGHTNING_FREEZE_AUDIT") != "warn"
"""


@pytest.mark.slow
def test_what_differs_under_the_audit_is_printed_and_only_a_listed_test_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "test_theirs.py").write_text(FILE)
    excused = {"*::test_warns": "counts warnings"}
    monkeypatch.setitem(suites.SUITES, "lightning", suites.Suite("theirs", ("test_theirs.py",), (), excused))
    assert suites.main(["lightning", str(tmp_path), "-n=0"]) == 1
    printed = capsys.readouterr().out
    assert "warn: test_theirs::test_without: passed → failure\n" in printed
    assert "raise: test_theirs::test_without: passed → failure\n" in printed
    assert "warn: test_theirs::test_warns: passed → failure (listed: counts warnings)\n" in printed
    assert printed.endswith("4 tests; 2 differ without a reason\n")


def test_a_test_that_was_not_run_differs() -> None:
    assert suites.differences({"a": "passed", "b": "skipped"}, {"a": "passed", "c": "failure"}) == {
        "b": "skipped → not run",
        "c": "not run → failure",
    }


def test_another_folder_is_no_checkout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        suites.main(["lightning", str(tmp_path)])
    assert "has no tests/tests_pytorch: it is not a checkout of lightning" in capsys.readouterr().err
