"""What a finding about an input says: the cause, the fix as code, and the severity that goes with the proof."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from lightning_freeze.inputs.declarations import Known, stale
from lightning_freeze.inputs.messages import describe, summary
from lightning_freeze.inputs.verdicts import Tally
from lightning_freeze.report.findings import Finding


def tally(verdicts: dict[Any, int] | None = None, *, argument: str = "mask", name: str = "mask", **more: Any) -> Tally:
    counted: Counter[Any] = Counter(verdicts or {"unused": 1})
    return Tally("encoder.1", "Block", argument, name, verdicts=counted, **{"confirmed": Counter(replay=1), **more})


# name: (tally, severity, cause, what the message holds)
DESCRIBED: dict[str, tuple[Tally, str, str, list[str]]] = {
    "unused": (
        tally(),
        "warning",
        "never_used",
        ["'encoder.1' (Block)", "`mask` and never uses it", "(one call)", "Cause: never used. Use it; remove it: ", "without `mask`", "`Block.mask: <the reason>`"],
    ),
    "dead": (
        tally({"dead": 2}),
        "warning",
        "never_used",
        ["computes with it", "neither its result nor its state", "(used in 0 of 2 calls)", "Return or use what is computed"],
    ),
    "metadata": (
        tally({"metadata": 1}),
        "info",
        "shape_only",
        ["nothing of it but its shape", "Declare it: `metadata_inputs = ('mask',)` in class Block", "`mask.shape`"],
    ),
    "conditional": (
        tally({"unused": 1, "used": 3}),
        "info",
        "conditional",
        ["in some calls only (used in 3 of 4 calls)", "under a condition", "`Block.mask: {reason: <why>, when: {"],
    ),
    "a candidate": (
        tally(confirmed=Counter()),
        "info",
        "never_used",
        ["This is a candidate: neither the code nor a replay could confirm it."],
    ),
    "swallowed": (
        tally(argument="kw['m']", name="kw", swallowed=True),
        "info",
        "never_used",
        ["`kw['m']`", "swallowed by `**kw`. Use it; remove it: call Block without `kw['m']`; or", "`Block.kw['m']: <the reason>`"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DESCRIBED)
def test_severity_cause_and_fix(name: str) -> None:
    given, severity, cause, words = DESCRIBED[name]
    finding = describe(given)
    assert (finding.audit, finding.kind, finding.severity, finding.cause) == ("inputs", given.verdict, severity, cause)
    assert finding.confirmed is bool(given.confirmed)
    assert [word for word in words if word not in finding.message] == []
    assert ("candidate" in finding.message) is not finding.confirmed


def test_every_field_comes_from_the_tally() -> None:
    given = tally({"unused": 1, "used": 2}, source=("/a/b.py", 7), bytes_passed=64, bytes_sole=32, bytes_kept=16)
    found = describe(given)
    assert (found.module, found.module_class, found.argument, found.calls) == ("encoder.1", "Block", "mask", (2, 3))
    assert (found.bytes_passed, found.bytes_sole, found.bytes_kept) == (64, 32, 16)
    assert found.source == ("/a/b.py", 7)
    assert "b.py:7" in found.message
    assert "It is 64 B a call, 32 B held by the call alone, 16 B kept alive after the forward." in found.message
    assert all(value is None for value in (found.parameter, found.group, found.first_update, found.last_update))


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (3 << 20, "3.0 MiB"), (5 << 30, "5.0 GiB"), (3 << 40, "3072.0 GiB")],
)  # fmt: skip
def test_bytes_are_read_by_people(size: int, words: str) -> None:
    assert f"It is {words} a call." in describe(tally(bytes_passed=size)).message


def test_the_root_has_no_name() -> None:
    root = Tally("", "Net", "x", "x", verdicts=Counter(unused=1), confirmed=Counter(bytecode=1))
    assert describe(root).message.startswith("the root (Net) is passed `x`")
    assert describe(root).module == ""


def test_the_way_down_is_told_from_the_outside_in() -> None:
    given = tally(handed_by=(("", "attention_mask"), ("encoder", "mask")))
    message = describe(given).message
    assert (
        0
        < message.index("It comes down from `attention_mask`")
        < message.index("→")
        < message.index("`mask` of 'encoder'.")
    )
    assert "comes down" not in describe(tally()).message


@pytest.mark.parametrize("verdict", ["unused", "dead", "metadata"])
@pytest.mark.parametrize(("argument", "name"), [("batch['a']", "batch"), ("args[1]", "args"), ("bag.b", "bag")])
def test_the_fix_for_one_leaf_of_a_container_leaves_the_others_alone(verdict: Any, argument: str, name: str) -> None:
    message = describe(tally({verdict: 1}, argument=argument, name=name)).message
    assert f"`{argument}`" in message
    assert f"without `{name}`" not in message
    assert f"metadata_inputs = ({name!r},)" not in message


@pytest.mark.parametrize(
    ("argument", "name", "key"),
    [("mask", "mask", "Block.mask"), ("kw['m']", "kw", "Block.kw['m']"), ("bag.b", "bag", "Block.bag.b")],
)
def test_the_key_by_which_to_declare(argument: str, name: str, key: str) -> None:
    assert f"whitelist it: `{key}: <the reason>`" in describe(tally(argument=argument, name=name)).message


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (tally(loaded=True), True),
        (tally(loaded=True, confirmed=Counter()), True),
        (tally(), False),  # it does not, or that cannot be known
        (tally(argument="batch['a']", name="batch"), False),  # the code may name another leaf of the batch
        (tally(argument="batch['a']", name="batch", in_batch=True), False),
    ],
    ids=["by a replay", "a candidate", "not named", "a leaf of a container", "of the root's batch"],
)
def test_an_unused_input_has_three_ways_and_that_the_code_names_it_is_said_of_the_very_leaf(
    given: Tally, says: bool
) -> None:
    message = describe(given).message
    assert ("The code does name it" in message) is says
    assert "Use it; remove it: " in message
    assert f"; or whitelist it: `Block.{given.argument}: <the reason>`" in message


@pytest.mark.parametrize(
    ("verdict", "in_batch", "severity"),
    [("unused", True, "info"), ("unused", False, "warning"), ("dead", True, "warning"), ("metadata", True, "info")],
)
def test_what_the_root_does_not_read_of_its_batch_is_for_information(
    verdict: Any, in_batch: bool, severity: str
) -> None:
    found = describe(tally({verdict: 1}, argument="batch['a']", name="batch", in_batch=in_batch))
    assert (found.severity, found.confirmed) == (severity, True)
    assert ("may hold more than its model reads" in found.message) is (in_batch and verdict == "unused")


# --- one line


def found(argument: str, kind: str = "unused", confirmed: bool = True, of: str = "Block") -> Finding:
    return Finding(
        audit="inputs", kind=kind, severity="info", message="", module_class=of, argument=argument, confirmed=confirmed
    )


@pytest.mark.parametrize(
    ("findings", "line"),
    [
        ([found("a")], "inputs: 1 unused: Block.a (unused)"),
        ([found("a")] * 3, "inputs: 3 unused: Block.a (unused, 3 modules)"),
        (
            [found("c", confirmed=False), found("m", "metadata"), found("d", "dead")],
            "inputs: 3 unused: Block.d (dead), Block.m (metadata), Block.c (unused, not confirmed)",
        ),
        (
            [found(name) for name in "abcdef"],
            "inputs: 6 unused: Block.a (unused), Block.b (unused), Block.c (unused), Block.d (unused), and 2 more",
        ),
    ],
)
def test_one_line_with_the_surest_first(findings: list[Finding], line: str) -> None:
    assert summary(findings) == line
    assert "\n" not in line


def test_a_declaration_that_no_longer_holds_is_not_counted_as_an_input_that_goes_unused() -> None:
    entry = stale("Block.mask", Known("Block.mask", "why"))
    assert summary([found("a"), entry]).startswith("inputs: 1 unused: Block.a (unused); ")
    assert summary([entry]) == "inputs: declarations that match nothing: Block.mask"
