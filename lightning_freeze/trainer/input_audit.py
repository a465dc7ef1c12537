"""The input audit along a Trainer's hooks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from lightning_freeze.audit.ranks import Ranks
from lightning_freeze.errors import ScheduleError, whole_number
from lightning_freeze.inputs.declarations import parse_metadata, parse_whitelist
from lightning_freeze.inputs.messages import summary
from lightning_freeze.report.findings import Finding, once_a_class
from lightning_freeze.report.records import FILE_NAME, Recorder
from lightning_freeze.trainer.base import AskedBy, Auditor, OnFinding
from lightning_freeze.trainer.declarations import read_declarations
from lightning_freeze.trainer.input_watch import InputWatch
from lightning_freeze.trainer.seam import LightningModule, Trainer, log_directory, rank_zero_warn, say

_FAULTS = ("unused", "dead")
_RANKS: tuple[AskedBy, ...] = get_args(AskedBy)


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
        first = max(audits, key=lambda audit: _RANKS.index(audit.created_by))
        if self is not first:
            if self.created_by == "user":
                raise ScheduleError(
                    "the Trainer has two InputAudit callbacks, which would watch the same calls. Keep one."
                )
            return
        self._silent = any(audit.created_by == "command" for audit in audits)
        self._findings, self._verdicts = [], {}
        self._watch = InputWatch(pl_module, self._every_n_epochs, self._batches, **self._options)
        directory = log_directory(trainer)  # on every rank: it may be broadcast
        writes = stage == "fit" and trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]
        self._recorder = Recorder(directory / FILE_NAME) if writes and self.created_by != "switch" else None

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
        self._verdicts = dict(self._watch.audit.verdicts) or self._verdicts
        findings, fresh = self._watch.end_epoch(trainer.current_epoch)
        self._take(fresh)
        if self._silent:
            return
        errors = [finding for finding in fresh if self._raises_for(finding)]
        for finding in once_a_class([finding for finding in fresh if finding not in errors]):
            if finding.severity == "warning":
                rank_zero_warn(finding.message)
            else:
                say(trainer, finding.message)
        if findings:
            say(trainer, f"freeze, epoch {trainer.current_epoch}: {summary(findings)}")
        if self._on_finding == "raise":
            self._stop_for(Ranks(trainer.strategy.root_device).merged(errors), trainer, "inputs")

    def _raises_for(self, finding: Finding) -> bool:
        fault = finding.severity == "warning" and finding.confirmed and finding.kind in _FAULTS
        return self._on_finding == "raise" and bool(fault)

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
