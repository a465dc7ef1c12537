"""`lightning-freeze explain`: every kind and every cause that the code can produce has its page."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import get_args

import pytest

import lightning_freeze
from lightning_freeze import Finding
from lightning_freeze.cli.explain import KINDS, page
from lightning_freeze.cli.main import main
from lightning_freeze.report.findings import Cause

PACKAGE = Path(lightning_freeze.__file__).parent
CAUSES = [cause for part in get_args(Cause) for cause in get_args(part)]


def causes(kind: str) -> list[str]:
    """The causes that a page explains."""
    return re.findall(r"^### `(\w+)`$", page(kind), re.MULTILINE)


def test_each_page_belongs_to_a_kind() -> None:
    """`Finding` takes no other kind: mypy, in strict mode, holds the code to the type that `KINDS` is made from."""
    assert {path.stem for path in (PACKAGE / "report" / "kinds").iterdir()} == set(KINDS)
    hints = Finding.__annotations__
    assert (hints["kind"], hints["cause"]) == ("Kind", "Cause | None")


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_says_what_it_is_how_grave_and_why(kind: str) -> None:
    text = page(kind)
    assert text.startswith(f"# `{kind}`: ")
    assert re.search(r"\*\*(error|warning|information)\*\*", text)
    assert causes(kind)
    assert set(causes(kind)) <= set(CAUSES)


def test_every_cause_is_on_a_page() -> None:
    assert {cause for kind in KINDS for cause in causes(kind)} == set(CAUSES)


def test_the_code_produces_every_kind_and_cause() -> None:
    """What no code names has a page for nothing."""
    named = set()
    for path in PACKAGE.rglob("*.py"):
        if path.name != "findings.py":
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            named |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert {*KINDS, *CAUSES} - named == set()


CAUSES_OF = {  # as functions of `audit/causes.py` return them
    "_of_parameter": ("value", "optimizer_state"),
    "_replaced": ("value", "optimizer_state"),
    "_of_buffer": ("buffer",),
}


@pytest.mark.parametrize("function", CAUSES_OF)
def test_the_pages_of_what_is_frozen_have_the_causes_that_are_found(function: str) -> None:
    tree = ast.parse((PACKAGE / "audit" / "causes.py").read_text(encoding="utf-8"))
    found = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)
    returned = {
        node.value.elts[0].value
        for node in ast.walk(found)
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple)
    }
    assert returned
    for kind in CAUSES_OF[function]:
        assert returned <= set(causes(kind))


def test_it_prints_pages_and_lists_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    main(["explain", "value", "stale"])
    said = capsys.readouterr().out
    assert "value: a frozen weight moved" in said
    assert "stale: a declaration covers nothing" in said
    main(["explain"])
    said = capsys.readouterr().out
    assert all(f"{kind}: " in said for kind in KINDS)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["unmovd"], "'unmovd' is not a kind of finding. Did you mean 'unmoved'? Known: value, "),
        (["gradient"], "'gradient' is a cause of value, optimizer_state: lightning-freeze explain value."),
        (["--all"], "unrecognized arguments: --all. lightning-freeze explain --help lists the options."),
    ],
)
def test_errors_teach(arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["explain", *arguments])
    assert ended.value.code == 2
    assert error in capsys.readouterr().err
