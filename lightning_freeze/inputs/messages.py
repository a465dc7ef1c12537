"""What a finding about an input says: what is wrong, why, and the mend as code. Pure: no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

from lightning_freeze.report.findings import Finding

from .declarations import Known
from .verdicts import Tally

CAUSE = {"unused": "never_used", "dead": "never_used", "metadata": "shape_only", "conditional": "conditional"}
"""The three causes that PaddlePaddle's ``UnusedVarCheck`` tells apart, each with its own mend."""


def describe(tally: Tally) -> Finding:
    """The finding about an input that goes unused in some call."""
    kind = tally.verdict
    confirmed = sum(tally.confirmed.values()) > 0
    serious = confirmed and kind in ("unused", "dead") and not tally.swallowed and not tally.of_torch
    return Finding(
        audit="inputs",
        kind=kind,
        severity="warning" if serious else "info",
        message=_message(tally, confirmed),
        cause=CAUSE[kind],
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


def stale(key: str, known: Known | None, why: str = "") -> Finding:
    """The finding about a declaration that does nothing.

    Args:
        key: Its key.
        known: The whitelist's entry, or None for one of ``metadata_inputs``.
        why: Why it can match nothing; empty where its input was used in every call.
    """
    kind, _, argument = key.partition(".")
    if known is None:
        what = f"metadata_inputs: {key!r} is declared to be used for its shape alone"
        used = ", but its values were used in every call. Remove the entry."
    else:
        under = f" under {dict(known.when)}" if known.when else ""
        what = f"whitelist: {key!r} ({known.reason}) is listed as not used{under}"
        used = ", but was used in every call. Remove the entry, so that the list stays true."
    return Finding(
        audit="inputs",
        kind="stale",
        severity="warning",
        message=f"{what}, which matches nothing: {why}" if why else what + used,
        cause="stale",
        module_class=kind,
        argument=argument,
        confirmed=True,
    )


def summary(findings: Sequence[Finding], shown: int = 4) -> str:
    """All findings of an epoch in one line, the same input of many modules of a class named once.

    Example:
        >>> one = Finding(audit="inputs", kind="unused", severity="warning", message="…", module_class="Block",
        ...               argument="mask", confirmed=True)
        >>> summary([one, one])
        'inputs: 2 of those handed to modules are not used: Block.mask (unused, 2 modules)'
    """
    found = Counter(
        (f"{f.module_class}.{f.argument}", f.kind, bool(f.confirmed)) for f in findings if f.kind != "stale"
    )
    ranked = sorted(found.items(), key=lambda item: (not item[0][2], item[0][1] in ("metadata", "conditional")))
    words = []
    for (key, kind, confirmed), count in ranked[:shown]:
        what = kind if confirmed else f"{kind}, not confirmed"
        words.append(f"{key} ({what}, {count} modules)" if count > 1 else f"{key} ({what})")
    if len(ranked) > shown:
        words.append(f"and {len(ranked) - shown} more")
    parts = [f"{found.total()} of those handed to modules are not used: {', '.join(words)}"] if found else []
    stale_keys = [f"{f.module_class}.{f.argument}" for f in findings if f.kind == "stale"]
    if stale_keys:
        parts.append(f"declared in vain: {', '.join(stale_keys)}")
    return f"inputs: {'; '.join(parts)}"


def _message(tally: Tally, confirmed: bool) -> str:
    kind = tally.verdict
    module = f"{tally.module!r} ({tally.module_class})" if tally.module else f"the root ({tally.module_class})"
    where = f", {PurePath(tally.source[0]).name}:{tally.source[1]}" if tally.source else ""
    parts = [f"{module}{where} is handed `{tally.argument}` {_WHAT[kind]} {_calls(tally)}."]
    if tally.handed_by:
        parts.append(f"It comes down from {_way(tally.handed_by)}.")
    parts.append(_size(tally))
    if not confirmed:
        parts.append("This is a candidate: neither the code nor a replay could confirm it.")
    parts.append(_mend(tally))
    return " ".join(part for part in parts if part)


_WHAT = {
    "unused": "and never uses it",
    "dead": "and computes with it, but what it computes reaches neither its result nor its state",
    "metadata": "and uses nothing of it but its shape, data type or device",
    "conditional": "and uses it in some calls only",
}


def _way(handed_by: Sequence[tuple[str, str]]) -> str:
    """Where an input was first handed in, and by whom it was last handed on."""
    named = [f"`{argument}` of {name!r}" if name else f"`{argument}` of the root" for name, argument in handed_by]
    between = len(named) - 2
    return " → ".join([named[0], *([f"({between} between)"] if between > 0 else []), *named[1:][-1:]])


def _calls(tally: Tally) -> str:
    return f"(used in {tally.used} of {tally.calls} calls)" if tally.calls > 1 else "(one call)"


def _size(tally: Tally) -> str:
    words = [f"{_bytes(tally.bytes_passed)} a call"]
    if tally.bytes_sole:
        words.append(f"{_bytes(tally.bytes_sole)} held by the call alone")
    if tally.bytes_kept:
        words.append(f"{_bytes(tally.bytes_kept)} kept alive after the forward")
    return f"It is {', '.join(words)}."


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _mend(tally: Tally) -> str:
    key = f"{tally.module_class}.{tally.argument}"
    keep = f"or, where it must stay, whitelist it: `{key}: <the reason>`"
    whole = tally.argument == tally.name
    removed = f"`def forward(self, …)` without `{tally.name}`" if whole else f"do without `{tally.argument}`"
    if tally.of_torch:
        return f"It is torch's own code: do not pass it where {tally.module_class} is called in this way, {keep}."
    if tally.swallowed:
        return (
            f"Cause: it is swallowed by `**{tally.name}`. Stop passing it where {tally.module_class} is called; {keep}."
        )
    match tally.verdict:
        case "metadata":
            declared = f'"{tally.argument}"' if "'" in tally.argument else f"'{tally.argument}'"
            return (
                f"Cause: only its shape is used. Declare it: `metadata_inputs = ({declared},)` in class "
                f"{tally.module_class}; or pass `{tally.argument}.shape` instead, so that its memory can go."
            )
        case "conditional":
            return (
                "Cause: it is used under a condition. Pass it only then, or whitelist it with the condition: "
                f"`{key}: {{reason: <why>, when: {{<attribute>: <value>}}}}`."
            )
        case "dead":
            return (
                "Cause: never used, what is computed from it is dropped. Return or use what is computed from it, or remove the computation and the "
                f"argument: {removed}, {keep}."
            )
        case _:
            named = (
                " The code does name it, but nothing came of that in the calls that were watched: see under which "
                f"condition it does before you remove it, and whitelist it with that: `{key}: {{reason: <why>, when: "
                "{<attribute>: <value>}}`."
            )
            loaded = "" if tally.confirmed["bytecode"] else named
            return (
                f"Cause: never used. Remove it: {removed}, and from the calls of {tally.module_class}; {keep}.{loaded}"
            )
