"""The input audit along a Trainer's hooks, and the switch that turns the audits on without a line of code."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import yaml

from lightning_freeze._lightning import LightningModule, Trainer, log_directory, rank_zero_warn, redirects, say
from lightning_freeze._yaml import ConfigError, Place, read
from lightning_freeze.auditor import AskedBy, Auditor, OnFinding
from lightning_freeze.plan.schedule import ScheduleError, nearest, whole_number
from lightning_freeze.report.findings import Finding, once_a_class, some_modules
from lightning_freeze.report.records import FILE_NAME, Recorder
from lightning_freeze.witness.inputs.audit import InputsAudit
from lightning_freeze.witness.inputs.messages import summary
from lightning_freeze.witness.inputs.tracer import Tracer
from lightning_freeze.witness.inputs.whitelist import DeclarationError, parse_metadata, parse_whitelist
from lightning_freeze.witness.ranks import Ranks

WHITELIST_VARIABLE = "LIGHTNING_FREEZE_WHITELIST"
_TRAINERS_OWN = ("_trainer", "_fabric")
_KEYS = ("whitelist", "metadata_inputs")
_FAULTS = ("unused", "dead")
_RANKS: tuple[AskedBy, ...] = get_args(AskedBy)


class InputWatch:
    """An `InputsAudit` that is on in some batches of some epochs.

    Args:
        module: The root of the modules to watch.
        every_n_epochs: In every so many epochs.
        batches: In so many batches from the beginning of an epoch, and of each validation in it.
        options: As for `InputsAudit`.
    """

    def __init__(self, module: LightningModule, every_n_epochs: int = 1, batches: int = 1, **options: Any) -> None:
        self._every_n_epochs, self._batches = every_n_epochs, batches
        self.audit = InputsAudit(module, transparent=redirects, without=_TRAINERS_OWN, yields=True, **options)
        self._open = False
        self._told: set[tuple[str | None, ...]] = set()

    def begin_batch(self, epoch: int, batch: int) -> None:
        """A batch begins."""
        self.end_batch()
        if batch < self._batches and epoch % self._every_n_epochs == 0 and Tracer.active is None:
            self.audit.__enter__()
            self._open = True

    def end_batch(self) -> None:
        """A batch has ended, or something was raised in it."""
        if self._open:
            self._open = False
            self.audit.__exit__()

    def end_epoch(self, epoch: int) -> tuple[list[Finding], list[Finding]]:
        """An epoch has ended: what was found in it, and what of that is new in this run."""
        self.end_batch()
        findings = [replace(finding, epoch=epoch) for finding in self.audit.findings]
        fresh = [finding for finding in findings if self._key(finding) not in self._told]
        self._told |= {self._key(finding) for finding in fresh}
        self.audit.reset()
        return findings, fresh

    def end_run(self) -> list[Finding]:
        """The run has ended: the declarations that covered nothing in all of it."""
        self.end_batch()
        return self.audit.stale

    @staticmethod
    def _key(finding: Finding) -> tuple[str | None, ...]:
        return finding.module, finding.module_class, finding.argument, finding.kind


class InputAudit(Auditor):
    """Checks that no module of a run is handed a tensor that it never uses.

    In a fit, the first batches of an epoch and of its validation are watched, so that what only one of them uses is
    ``conditional``; in ``validate``, ``test`` and ``predict``, the first batches. Of several dataloaders, the first
    batches of each. Everything else runs as without it. What is found is told at the epoch's end, a declaration that
    covered nothing at the run's. Bit for bit the run stays the same; to confirm a finding, a copy of the module at
    fault is run again, once. The idea is PaddlePaddle's ``UnusedVarCheck``, which checks the inputs of operators.

    Args:
        every_n_epochs: Watch in every so many epochs.
        batches: Watch so many batches from the beginning of such an epoch, and of each validation in it.
        on_finding: Whether confirmed findings stop the run at the epoch's end, after saving it, or warn. Only what is
            never used and what is computed and dropped stops it; inputs used for their shape alone, used in some calls
            only, swallowed by ``**kwargs``, candidates that could not be confirmed, and declarations that cover
            nothing, are told.
        metadata_inputs: Inputs used for their shape, data type or device alone, as ``Class.argument``.
        whitelist: Inputs known not to be used: ``Class.argument`` to the reason, or to ``{reason: …, when: {…}}``,
            where ``when`` holds attributes of the module and the values under which the entry counts; or the path of a
            YAML file with the keys ``whitelist`` and ``metadata_inputs``, as ``lightning-freeze inputs`` writes it. In
            a configuration of ``lightning-freeze`` the file is found beside the one that names it.
        replay: Whether to confirm by running copies of modules again. Without, only what the bytecode proves is
            confirmed.

    Raises:
        ScheduleError: A number is none, or ``on_finding`` is neither word; in a run: there is another such callback.
        ConfigError: The whitelist's file is not there, or cannot be read.
        DeclarationError: The whitelist, or ``metadata_inputs``, cannot be read; in a run: what a class declares.
        FreezeViolation: In a run: a confirmed finding, with ``on_finding="raise"``.

    Example:
        >>> InputAudit(whitelist={"Block.mask": "the decoder's blocks share this signature"}).findings
        []
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        batches: int = 1,
        on_finding: OnFinding = "warn",
        metadata_inputs: list[str] | None = None,
        whitelist: dict[str, Any] | str | None = None,
        replay: bool = True,
    ) -> None:
        super().__init__(on_finding)
        whole_number(every_n_epochs, "every_n_epochs", "inputs are audited in every so many epochs")
        whole_number(batches, "batches", "so many batches of an epoch are audited")
        self._every_n_epochs, self._batches = every_n_epochs, batches
        known, shapes = read_declarations(Path(whitelist)) if isinstance(whitelist, str) else (whitelist or {}, [])
        parse_whitelist(known)
        self._options: dict[str, Any] = {
            "whitelist": known,
            "metadata_inputs": sorted(parse_metadata(metadata_inputs) | parse_metadata(shapes)),
            "replay": replay,
        }
        self._watch: InputWatch | None = None
        self._recorder: Recorder | None = None
        self._findings: list[Finding] = []
        self._verdicts: dict[tuple[str, str], str] = {}
        self._silent = False

    @property
    def findings(self) -> list[Finding]:
        """Everything that was found in the last run, each input once."""
        return list(self._findings)

    @property
    def verdicts(self) -> dict[tuple[str, str], str]:
        """(FQN of the module; leaf path of the argument) to the verdict of the last epoch that was watched."""
        return dict(self._verdicts)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """A run begins."""
        self._close()
        self._watch = None
        audits = [c for c in trainer.callbacks if isinstance(c, InputAudit)]  # type: ignore[attr-defined]
        first = max(audits, key=lambda audit: _RANKS.index(audit.asked_by))
        if self is not first:
            if self.asked_by == "user":
                raise ScheduleError(
                    "the Trainer has two InputAudit callbacks, which would watch the same calls. Keep one."
                )
            return
        self._silent = any(audit.asked_by == "command" for audit in audits)
        self._findings, self._verdicts = [], {}
        self._watch = InputWatch(pl_module, self._every_n_epochs, self._batches, **self._options)
        directory = log_directory(trainer)  # on every rank: it may be broadcast
        writes = stage == "fit" and trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]
        self._recorder = Recorder(directory / FILE_NAME) if writes and self.asked_by != "switch" else None

    def _begin(self, trainer: Trainer, batch: int) -> None:
        if self._watch is not None and not trainer.sanity_checking:
            self._watch.begin_batch(trainer.current_epoch if trainer.state.fn == "fit" else 0, batch)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Watch, if this batch is one of those."""
        self._begin(trainer, batch_idx)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Watch no more."""
        self._close()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell what was found in the epoch."""
        self._tell(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell what was declared in vain."""
        self._tell_stale()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Watch, if this batch is one of those."""
        self._begin(trainer, batch_idx)

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start
    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = on_train_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell what was found, unless it is a fit's validation: then the epoch's end tells."""
        if trainer.state.fn != "fit":
            self._tell(trainer)
            self._tell_stale()

    on_test_epoch_end = on_predict_epoch_end = on_validation_epoch_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave nothing behind."""
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave nothing behind."""
        self._close()

    def _close(self) -> None:
        if self._watch is not None:
            self._watch.end_batch()

    def _tell(self, trainer: Trainer) -> None:
        if self._watch is None:
            return
        verdicts: dict[tuple[str, str], str] = dict(self._watch.audit.verdicts)
        self._verdicts = verdicts or self._verdicts
        findings, fresh = self._watch.end_epoch(trainer.current_epoch)
        self._take(fresh)
        if self._silent:
            return
        raises = self._on_finding == "raise"
        errors = [f for f in fresh if raises and f.severity == "warning" and f.confirmed and f.kind in _FAULTS]
        for finding in once_a_class([f for f in fresh if f not in errors]):
            (rank_zero_warn if finding.severity == "warning" else lambda text: say(trainer, text))(finding.message)
        if findings:
            say(trainer, f"freeze, epoch {trainer.current_epoch}: {summary(findings)}")
        if raises:
            self._stop_for(Ranks(trainer.strategy.root_device).shared(errors), trainer, "inputs")

    def _tell_stale(self) -> None:
        stale = self._watch.end_run() if self._watch is not None else []
        self._take(stale)
        for finding in stale if not self._silent else ():
            rank_zero_warn(finding.message)

    def _take(self, findings: Sequence[Finding]) -> None:
        self._findings += findings
        for finding in findings:
            if self._recorder is not None:
                self._recorder({"type": "finding", **finding.as_dict()})


# ---- declarations in a file


def read_declarations(path: Path, named_by: Place | None = None) -> tuple[dict[str, Any], list[str]]:
    """The whitelist and the metadata inputs of a YAML file.

    Args:
        path: A file with the keys ``whitelist`` and ``metadata_inputs``, either or both.
        named_by: The value that names the file, if one does.

    Raises:
        ConfigError: With file, line and key.
    """
    command = f"`lightning-freeze inputs --config <config without this line> --out {path}`"
    root = read(path, named_by, f" To write it, run {command}.")
    items = root.items()
    for key, place in items.items():
        if key not in _KEYS:
            near = ", ".join(map(repr, nearest(key, _KEYS) or _KEYS))
            raise place.error(f"{key!r} is no key of a whitelist's file. Nearest: {near}.")
    if not items:
        raise root.error("the file must be a mapping with the key `whitelist` or `metadata_inputs`.")
    plain = {key: place.plain() for key, place in items.items()}
    known: Mapping[str, Any] = plain.get("whitelist") or {}
    shapes: list[str] = plain.get("metadata_inputs") or []
    try:
        parse_whitelist(known)
        parse_metadata(shapes)
    except DeclarationError as error:
        raise place_of(root, error).error(error.problem) from None
    return dict(known), list(shapes)


def draft(findings: Sequence[Finding], today: str) -> tuple[dict[str, Any], list[str]]:
    """A whitelist and metadata inputs that cover findings, each reason saying that nobody has judged it yet.

    Args:
        findings: What is there today.
        today: The date, for the reasons.

    Example:
        >>> one = Finding(audit="inputs", kind="unused", severity="warning", message="…", module="encoder.0",
        ...               module_class="Block", argument="mask", confirmed=True)
        >>> draft([one], "2030-01-01")
        ({'Block.mask': "unused in 'encoder.0' on 2030-01-01; not judged yet"}, [])
    """
    kinds: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.kind != "stale":
            kinds.setdefault(f"{finding.module_class}.{finding.argument}", []).append(finding)
    known: dict[str, Any] = {}
    shapes = []
    for key, same in kinds.items():
        if all(finding.kind == "metadata" for finding in same):
            shapes.append(key)
            continue
        what = " or ".join(dict.fromkeys(finding.kind for finding in same))
        known[key] = f"{what} in {some_modules(same)} on {today}; not judged yet"
    return known, shapes


def write_declarations(path: Path, findings: Sequence[Finding], today: str) -> int:
    """Write, or add to, the file that makes what is there today known, so that only what is new is found.

    Entries that the file has already stay as they are; without a new one, so does the file.

    Args:
        path: The file.
        findings: What is there today.
        today: The date.

    Returns:
        How many entries are new.

    Raises:
        ConfigError: There is a file that cannot be read.
    """
    known, shapes = read_declarations(path) if path.exists() else ({}, [])
    drafted, further = draft(findings, today)
    new = {key: reason for key, reason in drafted.items() if key not in known}
    more = [key for key in further if key not in shapes]
    if path.exists() and not new and not more:
        return 0
    body = {"whitelist": {**known, **new}, "metadata_inputs": [*shapes, *more]}
    text = yaml.safe_dump({k: v for k, v in body.items() if v}, sort_keys=False, width=1000, allow_unicode=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_HEADER + (text if any(body.values()) else "whitelist: {}\n"), encoding="utf-8")
    return len(new) + len(more)


_HEADER = """\
# Inputs that modules are handed and do not use, as `lightning-freeze inputs` found them. For each: remove the input, or
# say in a sentence why it stays. An entry that no longer matches is itself found, so the list stays true.
# InputAudit(on_finding="raise", whitelist="<this file>") then stops a run for new ones only.
"""


def place_of(root: Place, error: DeclarationError) -> Place:
    """Where a declaration stands that cannot be read: the deepest key that the error's names.

    Args:
        root: The mapping that holds ``whitelist`` and ``metadata_inputs``.
        error: The error.
    """
    shapes = root.items().get("metadata_inputs", root)
    for index, place in enumerate(shapes.elements()):
        if error.key == f"metadata_inputs[{index}]":
            return place
    table = root.items().get("whitelist")
    entries = table.items() if table is not None else {}
    for key, place in entries.items():
        if error.key.startswith(f"whitelist[{key!r}]"):
            return place.items().get(error.key.rpartition("].")[2], place)
    return shapes if error.key.startswith("metadata") else table or root


# ---- the switch


def switched_on() -> list[Any]:
    """The audits that ``LIGHTNING_FREEZE_AUDIT`` asks for; they stand back where the Trainer has its own.

    Raises:
        ValueError: The variable holds neither ``warn`` nor ``raise``.
        ConfigError: The whitelist that ``LIGHTNING_FREEZE_WHITELIST`` names is not there, or cannot be read.
    """
    from lightning_freeze.callbacks import FreezeAudit

    mode: Any = os.environ["LIGHTNING_FREEZE_AUDIT"]
    if mode not in ("warn", "raise"):
        raise ValueError(
            f"the environment variable LIGHTNING_FREEZE_AUDIT is {mode!r}, but must be 'warn' or 'raise'; unset it to "
            "turn the audits off."
        )
    whitelist = os.environ.get(WHITELIST_VARIABLE) or None
    try:
        inputs = InputAudit.for_the("switch", on_finding=mode, whitelist=whitelist)
    except ConfigError as error:
        raise ConfigError(f"the environment variable {WHITELIST_VARIABLE} is {whitelist!r}: {error}") from None
    return [FreezeAudit.for_the("switch", on_finding=mode, inputs=False), inputs]
