"""Composes the finding about an input: what is wrong, why, and the fix as code. Pure: no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath
from typing import cast

from lightning_freeze.report.findings import Cause, Finding, OfInputs

from .verdicts import Tally

CAUSE: dict[OfInputs, Cause] = {"unused": "never_used", "dead": "never_used", "metadata": "shape_only"}
"""With ``conditional``, the three causes of PaddlePaddle's ``UnusedVarCheck``."""

_WHAT = {
    "unused": "and never uses it",
    "dead": "and computes with it, but what it computes reaches neither its result nor its state",
    "metadata": "and uses nothing of it but its shape, data type or device",
    "conditional": "and uses it in some calls only",
}

_USE = {
    "unused": "never used. Use it",
    "dead": "never used, what is computed from it is dropped. Return or use what is computed from it",
}


def describe(tally: Tally) -> Finding:
    """The finding about an input that is not used in some call."""
    kind, confirmed = cast(OfInputs, tally.verdict), tally.confirmed.total() > 0
    spare = tally.swallowed or tally.of_torch or (tally.in_batch and kind == "unused")
    serious = confirmed and kind in ("unused", "dead") and not spare
    return Finding(
        audit="inputs",
        kind=kind,
        severity="warning" if serious else "info",
        message=_message(tally, confirmed),
        cause=CAUSE.get(kind, "conditional"),
        module=tally.module,
        argument=tally.argument,
        confirmed=confirmed,
        module_class=tally.module_class,
        calls=(tally.used, tally.calls),
        bytes_passed=tally.bytes_passed,
        bytes_sole=tally.bytes_sole,
        bytes_kept=tally.bytes_kept,
        source=tally.source,
    )


def summary(findings: Sequence[Finding], shown: int = 4) -> str:
    """All findings of an epoch in one line, confirmed ones first.

    Example:
        >>> one = Finding(audit="inputs", kind="unused", severity="warning", message="…", module_class="Block",
        ...               argument="mask", confirmed=True)
        >>> summary([one, one])
        'inputs: 2 unused: Block.mask (unused, 2 modules)'
    """
    keys = [f"{finding.module_class}.{finding.argument}" for finding in findings]
    of_kind = list(zip(keys, findings, strict=True))
    unmatched = [key for key, finding in of_kind if finding.kind == "stale"]
    found = Counter((key, each.kind, bool(each.confirmed)) for key, each in of_kind if each.kind != "stale")
    ranked = sorted(found.items(), key=lambda item: (not item[0][2], item[0][1] in ("metadata", "conditional")))
    words = []
    for (key, kind, confirmed), count in ranked[:shown]:
        what = kind if confirmed else f"{kind}, not confirmed"
        words.append(f"{key} ({what}, {count} modules)" if count > 1 else f"{key} ({what})")
    if len(ranked) > shown:
        words.append(f"and {len(ranked) - shown} more")
    parts = [f"{found.total()} unused: {', '.join(words)}"] if found else []
    if unmatched:
        parts.append(f"declarations that match nothing: {', '.join(unmatched)}")
    return f"inputs: {'; '.join(parts)}"


def _message(tally: Tally, confirmed: bool) -> str:
    module = f"{tally.module!r} ({tally.module_class})" if tally.module else f"the root ({tally.module_class})"
    where = f", {PurePath(tally.source[0]).name}:{tally.source[1]}" if tally.source else ""
    calls = f"(used in {tally.used} of {tally.calls} calls)" if tally.calls > 1 else "(one call)"
    parts = [f"{module}{where} is passed `{tally.argument}` {_WHAT[tally.verdict]} {calls}."]
    if tally.handed_by:
        parts.append(f"It comes down from {_path(tally.handed_by)}.")
    sizes = [f"{_bytes(tally.bytes_passed)} a call"]
    if tally.bytes_sole:
        sizes.append(f"{_bytes(tally.bytes_sole)} held by the call alone")
    if tally.bytes_kept:
        sizes.append(f"{_bytes(tally.bytes_kept)} kept alive after the forward")
    parts.append(f"It is {', '.join(sizes)}.")
    if not confirmed:
        parts.append("This is a candidate: neither the code nor a replay could confirm it.")
    return " ".join([*parts, _fix(tally)])


def _path(handed_by: Sequence[tuple[str, str]]) -> str:
    """Where an input was first passed in, and by which module it was last passed on."""
    named = [f"`{argument}` of {name!r}" if name else f"`{argument}` of the root" for name, argument in handed_by]
    between = [f"({len(named) - 2} between)"] if len(named) > 2 else []
    return " → ".join([named[0], *between, *named[1:][-1:]])


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _fix(tally: Tally) -> str:
    kind, argument = tally.module_class, tally.argument
    whitelist = f"whitelist it: `{kind}.{argument}: <the reason>`"
    under = f"`{kind}.{argument}: {{reason: <why>, when: {{<attribute>: <value>}}}}`"
    if argument == tally.name:
        removed = f"remove it: `def forward(self, …)` without `{argument}`, and from the calls of {kind}"
    else:
        removed = f"remove it: call {kind} without `{argument}`"
    if tally.of_torch:
        return f"It is torch's own code: do not pass it where {kind} is called in this way, or {whitelist}."
    if tally.swallowed:
        return f"Cause: it is swallowed by `**{tally.name}`. Use it; {removed}; or {whitelist}."
    if tally.verdict == "metadata":
        return (
            f"Cause: only its shape is used. Declare it: `metadata_inputs = ({argument!r},)` in class {kind}; or pass "
            f"`{argument}.shape` instead, so that its memory can go."
        )
    if tally.verdict == "conditional":
        return f"Cause: it is used under a condition. Pass it only then, or whitelist it with that: {under}."
    fix = f"Cause: {_USE[tally.verdict]}; {removed}; or {whitelist}."
    if tally.in_batch and tally.verdict == "unused":
        fix += " A batch may hold more than its model reads, so this stops no run."
    if tally.loaded and tally.verdict == "unused":
        fix += (
            " The code does name it, but used it in no call that was watched: before you remove it, find the condition "
            f"under which it is used, and whitelist it with that: {under}."
        )
    return fix
