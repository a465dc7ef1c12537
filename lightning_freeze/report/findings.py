"""What an audit found, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from rich.markup import escape
from rich.table import Table

from lightning_freeze.errors import counted
from lightning_freeze.report.table import as_html, new_table

Audit = Literal["frozen", "moved", "inputs", "buffers", "ranks"]
Severity = Literal["error", "warning", "info"]
OfFrozen = Literal["value", "optimizer_state", "buffer"]
OfTraining = Literal["no_gradient", "unmoved", "stalled"]
OfInputs = Literal["unused", "dead", "metadata", "conditional"]
Kind = OfFrozen | OfTraining | OfInputs | Literal["stale", "place", "copies"]
"""Each has a page in ``report/kinds``, which ``lightning-freeze explain KIND`` prints."""
Cause = (
    OfTraining
    | Literal["gradient", "optimizer", "tied", "replaced", "outside", "cache", "statistics"]
    | Literal["never_used", "shape_only", "conditional", "stale", "place", "copies"]
)
"""Each is a heading of the page of its kind."""
_EXPLAIN = "lightning-freeze explain"


@dataclass(frozen=True)
class Finding:
    """One thing that an audit found.

    Args:
        audit: Which audit: ``frozen`` (weights and optimizer state planned frozen), ``moved`` (groups planned to
            train), ``buffers`` (of frozen modules), ``inputs`` or ``ranks`` (processes that differ).
        kind: ``value``, ``optimizer_state`` or ``buffer`` of something frozen that moved; ``no_gradient``, ``unmoved`` or
            ``stalled`` for something planned to train; ``unused``, ``dead``, ``metadata`` or ``conditional`` for an
            input, ``stale`` for a declaration about one that no longer holds; ``place`` where ranks are at different
            places in the schedule, ``copies`` where they hold different bits of the same parameter.
        severity: ``error`` breaks the guarantee, ``warning`` is likely a mistake, ``info`` is for information.
        message: What moved, when, why, and what to change.
        cause: ``gradient`` (there was one at the update, so it leaked), ``optimizer`` (it moves parameters whose gradient
            is None), ``tied`` (shares memory with something that trained), ``replaced`` (another parameter took its place),
            ``outside`` (something else wrote to it), or what the audit names.
        epoch: The epoch it was found in, from 0.
        parameter: FQN of the parameter or buffer.
        group: The group that it belongs to.
        first_update: The updates made when the interval began in which it happened.
        last_update: The updates made when the interval ended.
        module: For inputs: FQN of the module, ``''`` for the root.
        argument: For inputs: the leaf path of the argument, as one would write it inside ``forward``.
        confirmed: For inputs: whether the code or a replay confirmed it.
        module_class: For inputs: the name of the module's class.
        calls: For inputs: how many calls used it, and how many were given it.
        bytes_passed: For inputs: the most bytes given in one call that did not use them.
        bytes_sole: For inputs: the most of them that nothing but the call held.
        bytes_kept: For inputs: the most of them made within the forward and still alive after it.
        source: For inputs: file and line of the module's ``forward``.
        ranks: Under several processes, the ranks that found it, where not all of them did.

    Example:
        >>> Finding(audit="frozen", kind="value", severity="error", message="moved", epoch=3).epoch
        3
    """

    audit: Audit
    kind: Kind
    severity: Severity
    message: str
    cause: Cause | None = None
    epoch: int | None = None
    parameter: str | None = None
    group: str | None = None
    first_update: int | None = None
    last_update: int | None = None
    module: str | None = None
    argument: str | None = None
    confirmed: bool | None = None
    module_class: str | None = None
    calls: tuple[int, int] | None = None
    bytes_passed: int | None = None
    bytes_sole: int | None = None
    bytes_kept: int | None = None
    source: tuple[str, int] | None = None
    ranks: tuple[int, ...] | None = None

    def __repr__(self) -> str:
        return f"Finding({', '.join(f'{name}={value!r}' for name, value in self.as_dict().items())})"

    def as_dict(self) -> dict[str, Any]:
        """The finding as builtins, without the fields that its audit does not fill."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Finding:
        """The finding that `as_dict` wrote, also after it went through JSON."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
        return cls(**values)

    @property
    def page(self) -> str:
        """The command that prints the page about findings of this kind."""
        return f"{_EXPLAIN} {self.kind}"

    @property
    def text(self) -> str:
        """The message, and where to read more."""
        return f"{self.message} More: `{self.page}`."


class Findings(list[Finding]):
    """A list of findings that shows as a table, in terminals by rich and in notebooks as HTML."""

    def __rich__(self) -> Table:
        table = new_table(f"findings: {len(self)}", ("severity", "kind", "what"), wrapped=("what",))
        for each in self:
            table.add_row(each.severity, each.kind, escape(each.message))
        return table

    _repr_html_ = as_html


def lacks_reason(reason: object, why: str) -> str:
    """What is wrong with the reason of an exception that a user declares; empty where it is a sentence."""
    fix = f"Say in a sentence why {why}: by it others decide later whether the entry is still right."
    return "" if isinstance(reason, str) and reason.strip() else f"{reason!r} is not a reason. {fix}"


def covered_nothing(audit: Audit, declared: str, found: str, why: str = "", **about: Any) -> Finding:
    """The finding about an exception that covered nothing: why it can match nothing, else what was found."""
    ends = f"which matches nothing: {why}" if why else f"{found}. Remove the entry, so that the list stays true."
    return Finding(audit, "stale", "warning", f"{declared}, {ends}", cause="stale", **about)


def once_a_class(findings: Sequence[Finding]) -> list[Finding]:
    """One finding for each class and argument; its message names further modules of the class."""
    alike: dict[tuple[str | None, str | None, str], list[Finding]] = {}
    for finding in findings:
        alike.setdefault((finding.module_class, finding.argument, finding.kind), []).append(finding)
    merged = []
    for first, *others in alike.values():
        more = f" The same in {len(others)} more of its class: {some_modules(others)}." if others else ""
        merged.append(replace(first, message=first.message + more))
    return merged


def some_modules(findings: Sequence[Finding], shown: int = 3) -> str:
    """The names of the first modules that findings are about."""
    names = [repr(finding.module) for finding in findings]
    return ", ".join(names[:shown]) + (", …" if len(names) > shown else "")


class FreezeViolation(RuntimeError):  # noqa: N818 - the name is public and says what happened
    """Something planned frozen moved, or a module is given what it never uses; raised after a checkpoint was saved.

    Args:
        findings: The errors that were found.
        checkpoint: Where the run was saved before it stopped, or None where nothing could be saved.
        switched: Whether the audit was switched on by ``LIGHTNING_FREEZE_AUDIT``.
        unsaved: Why nothing was saved, where that is known.
    """

    def __init__(
        self, findings: Sequence[Finding], checkpoint: str | None = None, switched: bool = False, unsaved: str = ""
    ) -> None:
        self.findings = Findings(findings)
        self.checkpoint = checkpoint
        self._switched, self._unsaved = switched, unsaved
        shown = "\n".join(f"  - {finding.message}" for finding in self.findings[:10])
        more = f"\n  … and {len(self.findings) - 10} more (see .findings)" if len(self.findings) > 10 else ""
        if checkpoint:
            saved = f"The run was saved to {checkpoint!r} before it stopped."
        else:
            saved = f"Nothing was saved, since {unsaved}." if unsaved else "Nothing was saved."
        what, way_out = self._what_and_way_out()
        kinds = " ".join(dict.fromkeys(finding.kind for finding in self.findings))
        how = f"{saved} To go on{way_out} More: `{_EXPLAIN} {kinds}`."
        super().__init__(f"{counted(len(self.findings), 'violation')}: {what}.\n{shown}{more}\n{how}")

    def _what_and_way_out(self) -> tuple[str, str]:
        audits = {finding.audit for finding in self.findings}
        if audits == {"ranks"}:
            return "the processes of the run differ", ", resume from a checkpoint that was made before that."
        mode = "set LIGHTNING_FREEZE_AUDIT=warn" if self._switched else "set on_finding='warn'"
        if audits != {"inputs"}:
            return "what was planned frozen moved", f" all the same, {mode}."
        known = "name a whitelist in LIGHTNING_FREEZE_WHITELIST" if self._switched else "whitelist what is known"
        listed = "`lightning-freeze inputs --config <yours>` writes the list."
        return "modules are passed what they never use", f" all the same, {mode}, or {known}: {listed}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.findings, self.checkpoint, self._switched, self._unsaved)
