"""What an audit found, as plain data; knows nobody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Audit = Literal["frozen", "moved", "inputs", "buffers", "ranks"]
Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Finding:
    """One thing that an audit found.

    Args:
        audit: Which audit: ``frozen`` (weights and optimizer state planned frozen), ``moved`` (groups planned to
            train), ``buffers`` (of frozen modules), ``inputs`` or ``ranks`` (processes that have gone apart).
        kind: What about it: ``value``, ``optimizer_state`` or ``buffer`` of something frozen that moved;
            ``no_gradient``, ``unmoved`` or ``stalled`` for something planned to train; ``unused``, ``dead``,
            ``metadata`` or ``conditional`` for an input, ``stale`` for a declaration about one that no longer holds;
            ``place`` where ranks stand at different places in the schedule, ``copies`` where they hold different bits of
            the same parameter.
        severity: ``error`` breaks the guarantee, ``warning`` is likely a mistake, ``info`` is to be known.
        message: What moved, when, why, and what to change.
        cause: ``gradient`` (one was there at the update, so the gate was bypassed), ``optimizer`` (it moves parameters
            whose gradient is None), ``tied`` (shares memory with something that trained), ``outside`` (written to by
            something else), or what the audit names.
        epoch: The epoch it was found in, from 0.
        parameter: FQN of the parameter or buffer.
        group: The group that it belongs to.
        first_update: The updates that had been made when the interval began in which it happened.
        last_update: The updates that had been made when the interval ended.
        module: For inputs: FQN of the module, ``''`` for the root.
        argument: For inputs: the leaf path of the argument, as one would write it inside ``forward``.
        confirmed: For inputs: whether the code or a replay confirmed it.
        module_class: For inputs: the name of the module's class.
        calls: For inputs: how many calls made something of it, and how many were handed it.
        bytes_passed: For inputs: the most bytes handed over in one call that made nothing of them.
        bytes_sole: For inputs: the most of them that nothing but the call held.
        bytes_kept: For inputs: the most of them made within the forward and still alive after it.
        source: For inputs: file and line of the module's ``forward``.
        ranks: Under several processes, the ranks that found it, where not all of them did.

    Example:
        >>> Finding(audit="frozen", kind="value", severity="error", message="moved", epoch=3).epoch
        3
    """

    audit: Audit
    kind: str
    severity: Severity
    message: str
    cause: str | None = None
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

    def as_dict(self) -> dict[str, Any]:
        """The finding as builtins, without the fields that its audit does not fill."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Finding:
        """The finding that `as_dict` wrote, also after it went through JSON."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
        return cls(**values)


def once_a_class(findings: Sequence[Finding]) -> list[Finding]:
    """One finding for each class and argument, which says in how many further modules of the class it is so too."""
    first: dict[tuple[str | None, str | None, str], list[Finding]] = {}
    for finding in findings:
        first.setdefault((finding.module_class, finding.argument, finding.kind), []).append(finding)
    told = []
    for same in first.values():
        more = f" The same in {len(same) - 1} more of its class: {some_modules(same[1:])}." if len(same) > 1 else ""
        told.append(replace(same[0], message=same[0].message + more))
    return told


def some_modules(findings: Sequence[Finding], shown: int = 3) -> str:
    """The modules that findings are about, the first of them by name."""
    names = [repr(finding.module) for finding in findings]
    return ", ".join(names[:shown]) + (", …" if len(names) > shown else "")


class FreezeViolation(RuntimeError):  # noqa: N818 - the name is public and says what happened
    """Something planned frozen moved, or a module is handed what it never uses.

    Raised at an epoch's end, after a checkpoint was saved.

    Args:
        findings: The errors that were found.
        checkpoint: Where the run was saved before it stopped, or None where nothing could be saved.
        switched: Whether it was ``LIGHTNING_FREEZE_AUDIT`` that asked for the audit.
        unsaved: Why nothing was saved, where that is known.
    """

    def __init__(
        self,
        findings: Sequence[Finding],
        checkpoint: str | None = None,
        switched: bool = False,
        unsaved: str = "",
    ) -> None:
        self.findings = list(findings)
        self.checkpoint = checkpoint
        self._switched, self._unsaved = switched, unsaved
        shown = "\n".join(f"  - {finding.message}" for finding in self.findings[:10])
        more = f"\n  … and {len(self.findings) - 10} more (see .findings)" if len(self.findings) > 10 else ""
        nothing = f"Nothing was saved, since {unsaved}." if unsaved else "Nothing was saved."
        saved = f"The run was saved to {checkpoint!r} before it stopped." if checkpoint else nothing
        super().__init__(
            f"{len(self.findings)} violation(s): {self._what()}.\n{shown}{more}\n"
            f"{saved} To go on{'' if self._all_of('ranks') else ' all the same'}, {self._way_out()}"
        )

    def _what(self) -> str:
        if self._all_of("inputs"):
            return "modules are handed what they never use"
        if self._all_of("ranks"):
            return "the processes of the run have gone apart"
        return "what was planned frozen moved"

    def _way_out(self) -> str:
        if self._all_of("ranks"):
            return "resume from a checkpoint that was made before they went apart."
        mode = "set LIGHTNING_FREEZE_AUDIT=warn" if self._switched else "set on_finding='warn'"
        if not self._all_of("inputs"):
            return f"{mode}."
        known = "name a whitelist in LIGHTNING_FREEZE_WHITELIST" if self._switched else "whitelist what is known"
        return f"{mode}, or {known}: `lightning-freeze inputs --config <yours>` writes the list."

    def _all_of(self, audit: Audit) -> bool:
        return bool(self.findings) and all(finding.audit == audit for finding in self.findings)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.findings, self.checkpoint, self._switched, self._unsaved)
