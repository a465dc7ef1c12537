"""`InputAudit`, and the watch over the batches of a Trainer that the other callbacks share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from lightning_freeze.audit.ranks import Ranks
from lightning_freeze.errors import ScheduleError, whole_number
from lightning_freeze.inputs.audit import InputsAudit
from lightning_freeze.inputs.declarations import parse_metadata, parse_whitelist
from lightning_freeze.inputs.messages import summary
from lightning_freeze.inputs.tracer import Tracer
from lightning_freeze.report.findings import Finding, Findings, once_a_class
from lightning_freeze.report.records import FILE_NAME, Recorder
from lightning_freeze.trainer import seam
from lightning_freeze.trainer.arguments import OnFinding
from lightning_freeze.trainer.base import Auditor, CreatedBy
from lightning_freeze.trainer.boundaries import _Boundaries
from lightning_freeze.trainer.declarations import read_declarations

_STOPPING = ("unused", "dead")
_SET_BY_TRAINER = ("_trainer", "_fabric")


class InputWatch:
    """An `InputsAudit` that is active in some batches of some epochs.

    Args:
        module: The root of the modules to watch.
        every_n_epochs: Watches every so many epochs.
        batches: Watches the first so many batches of an epoch, and of each validation in it.
        options: As for `InputsAudit`.
    """

    def __init__(self, module: seam.LightningModule, every_n_epochs: int = 1, batches: int = 1, **options: Any) -> None:
        self._every_n_epochs, self._batches = every_n_epochs, batches
        self.audit = InputsAudit(module, transparent=seam.redirects, without=_SET_BY_TRAINER, yields=True, **options)
        self._active = False
        self._reported: set[tuple[str | None, ...]] = set()

    def begin_batch(self, epoch: int, batch: int) -> None:
        """Watch this batch if it is due."""
        if self._active:
            self.end_batch()
        if batch < self._batches and epoch % self._every_n_epochs == 0 and Tracer.active is None:
            self._active = True  # first of all: `end_batch` undoes an installation that was interrupted, too
            self.audit.__enter__()

    def end_batch(self) -> None:
        """Stop watching; safe to call again."""
        if self._active:
            self._active = False
            self.audit.__exit__()

    def end_epoch(self, epoch: int) -> tuple[list[Finding], list[Finding]]:
        """The findings of the epoch, and those of them that are new in this run."""
        self.end_batch()
        findings = [replace(finding, epoch=epoch) for finding in self.audit.findings]
        fresh = [finding for finding in findings if self._key(finding) not in self._reported]
        self._reported |= {self._key(finding) for finding in fresh}
        self.audit.reset()
        return findings, fresh

    def end_run(self) -> list[Finding]:
        """The declarations that covered nothing in the run."""
        self.end_batch()
        return self.audit.stale

    @staticmethod
    def _key(finding: Finding) -> tuple[str | None, ...]:
        return finding.module, finding.module_class, finding.argument, finding.kind


class InputAudit(Auditor):
    """Checks that no module of a run is passed a tensor that it never uses.

    A fit watches the first batches of an epoch and of its validation: what only one of them uses is ``conditional``.
    ``validate``, ``test`` and ``predict`` watch the first batches of each dataloader. Findings are reported at the epoch's
    end, declarations that covered nothing at the run's. Training stays the same bit for bit; to confirm a finding, a copy
    of the module is run again, once. The idea is PaddlePaddle's ``UnusedVarCheck``, which checks inputs of operators.

    Args:
        every_n_epochs: Watches every so many epochs.
        batches: Watches the first so many batches of an epoch, and of each validation in it.
        on_finding: Whether confirmed findings stop the run at the epoch's end, after saving it, or warn. Only unused inputs
            and those computed and dropped stop it; parts of the model's own batch that it does not read, inputs used for
            their shape alone, used in some calls only, swallowed by ``**kwargs``, unconfirmed candidates, and
            declarations that cover nothing are reported.
        metadata_inputs: Inputs used for their shape, data type or device alone, as ``Class.argument``.
        whitelist: Inputs known to be unused: ``Class.argument`` to the reason, or to ``{reason: …, when: {…}}``, where
            ``when`` holds attributes of the module and the values under which the entry counts; or the path of a YAML file
            with the keys ``whitelist`` and ``metadata_inputs``, as ``lightning-freeze inputs`` writes it. In a
            configuration of ``lightning-freeze`` the path is relative to that file.
        replay: Whether to confirm by running copies of modules again. Otherwise only the bytecode confirms.

    Raises:
        ScheduleError: A number or ``on_finding`` is invalid; in a run: there is another such callback.
        ConfigError: The whitelist's file is missing, or cannot be read.
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
        known, shapes = read_declarations(Path(whitelist)) if isinstance(whitelist, str) else (whitelist or {}, [])
        parse_whitelist(known)
        self._options: dict[str, Any] = {
            "every_n_epochs": every_n_epochs,
            "batches": batches,
            "whitelist": known,
            "metadata_inputs": sorted(parse_metadata(metadata_inputs) | parse_metadata(shapes)),
            "replay": replay,
        }
        self._recorder: Recorder | None = None
        self._findings: list[Finding] = []
        self._verdicts: dict[tuple[str, str], str] = {}
        self._silent, self._said = False, ""

    @property
    def findings(self) -> Findings:
        """The findings of the last run, each input once."""
        return Findings(self._findings)

    @property
    def verdicts(self) -> dict[tuple[str, str], str]:
        """(FQN of the module; leaf path of the argument) to the verdict of the last watched epoch."""
        return dict(self._verdicts)

    def setup(self, trainer: seam.Trainer, pl_module: seam.LightningModule, stage: str) -> None:
        self._undo()
        audits = [c for c in trainer.callbacks if isinstance(c, InputAudit)]  # type: ignore[attr-defined]
        if self is not max(audits, key=lambda audit: get_args(CreatedBy).index(audit.created_by)):
            if self.created_by == "user":
                raise ScheduleError(
                    "the Trainer has two InputAudit callbacks, which would watch the same calls. Keep one."
                )
            return
        self._silent = any(audit.created_by == "command" for audit in audits)
        self._findings, self._verdicts, self._said = [], {}, ""
        self._inputs = InputWatch(pl_module, **self._options)
        _Boundaries(self).stand(trainer, first=True)
        path = seam.record_directory(trainer) / FILE_NAME  # on every rank: it may be broadcast
        writes = stage == "fit" and trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]
        self._recorder = Recorder(path) if writes and self.created_by != "switch" else None

    on_train_batch_start = on_test_batch_start = on_predict_batch_start = Auditor.on_validation_batch_start
    on_test_batch_end = on_predict_batch_end = Auditor.on_train_batch_end

    def on_train_epoch_end(self, trainer: seam.Trainer, pl_module: seam.LightningModule) -> None:
        self._report(trainer)

    def on_train_end(self, trainer: seam.Trainer, pl_module: seam.LightningModule) -> None:
        self._report_stale()

    def on_validation_epoch_end(self, trainer: seam.Trainer, pl_module: seam.LightningModule) -> None:
        if trainer.state.fn != "fit":
            self._report(trainer)
            self._report_stale()

    on_test_epoch_end = on_predict_epoch_end = on_validation_epoch_end

    def _report(self, trainer: seam.Trainer) -> None:
        """Report what was found in the epoch, and stop the run where that is asked for."""
        if self._inputs is None:
            return
        self._verdicts = dict(self._inputs.audit.verdicts) or self._verdicts
        findings, fresh = self._inputs.end_epoch(trainer.current_epoch)
        self._record(fresh)
        if self._silent:
            return
        errors = [*filter(self._stops_for, fresh)]
        for finding in once_a_class([finding for finding in fresh if finding not in errors]):
            if finding.severity == "warning":
                seam.rank_zero_warn(finding.text)
            else:
                seam.say(trainer, finding.message)
        if findings and (text := summary(findings)) != self._said:
            self._said = text
            seam.say(trainer, f"freeze, epoch {trainer.current_epoch}: {text}")
        if self._on_finding == "raise":
            self._stop_for(Ranks(trainer.strategy.root_device).merged(errors), trainer, "inputs")

    def _stops_for(self, finding: Finding) -> bool:
        confirmed = finding.severity == "warning" and bool(finding.confirmed)
        return self._on_finding == "raise" and confirmed and finding.kind in _STOPPING

    def _report_stale(self) -> None:
        stale = self._inputs.end_run() if self._inputs is not None else []
        self._record(stale)
        for finding in stale if not self._silent else ():
            seam.rank_zero_warn(finding.text)

    def _record(self, findings: Sequence[Finding]) -> None:
        self._findings += findings
        for finding in findings:
            if self._recorder is not None:
                self._recorder({"type": "finding", **finding.as_dict()})
