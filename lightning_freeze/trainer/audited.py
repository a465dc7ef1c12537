"""What the callbacks share: hooks around an engine that audits, and the report of what it finds."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console

from lightning_freeze.audit.requires_grad import RequiresGradWatch
from lightning_freeze.controller import FreezeController
from lightning_freeze.errors import whole_number
from lightning_freeze.inputs.messages import summary
from lightning_freeze.report.findings import Finding
from lightning_freeze.report.records import FILE_NAME, Record, Recorder
from lightning_freeze.report.run_table import epoch_line, summary_table
from lightning_freeze.trainer.base import Auditor, OnFinding
from lightning_freeze.trainer.input_audit import InputAudit
from lightning_freeze.trainer.input_watch import InputWatch
from lightning_freeze.trainer.seam import (
    BarText,
    LightningModule,
    Trainer,
    log_directory,
    rank_zero_only,
    rank_zero_warn,
    say,
)

_UNJUDGED = "unjudged"


class _Audited(Auditor):
    """What the callbacks share: hooks around an engine that audits, and the report of what it finds."""

    def __init__(self, on_finding: OnFinding, every_n_updates: int | None, inputs: bool) -> None:
        super().__init__(on_finding)
        if every_n_updates is not None:
            whole_number(every_n_updates, "every_n_updates", "the audit compares after that many updates, too")
        self._every_n_updates = every_n_updates
        self._engine: FreezeController | RequiresGradWatch | None = None
        self._recorder: Recorder | None = None
        self._records: list[Record] = []
        self._judged = self._checked = 0
        self._handled: BaseException | None = None
        self._running = False
        self._bar: BarText | None = None
        self._audits_inputs = inputs
        self._writes = True
        self._inputs: InputWatch | None = None

    def dry_run(self) -> None:
        """Leave no file behind, and let the inputs be: this fit is only looked at."""
        self._writes = self._audits_inputs = False

    @property
    def findings(self) -> list[Finding]:
        """Everything that the audits have found in the last fit."""
        return list(self._engine.findings) if self._engine is not None else []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A batch begins; between epochs' ends the audit may be due."""
        if self._engine is None:
            return
        self._engine.begin_step(trainer.current_epoch)
        if self._inputs is not None:
            self._inputs.begin_batch(trainer.current_epoch, batch_idx)
        if (
            self._every_n_updates is not None
            and self._made(trainer, pl_module) - self._checked >= self._every_n_updates
        ):
            self._checked = self._made(trainer, pl_module)
            self._engine.audit.check()
            self._judge(trainer)

    def _made(self, trainer: Trainer, pl_module: LightningModule) -> int:
        """The updates so far; of several processes the steps, which are as many on all of them, whatever has happened."""
        if trainer.world_size > 1:
            loop = trainer.fit_loop.epoch_loop
            return int(trainer.global_step if pl_module.automatic_optimization else loop.total_batch_idx)
        return self._engine.total if self._engine is not None else 0

    @property
    def _together(self) -> bool:
        """Whether ranks do what is done now together: not where one of them saves because of an exception."""
        return sys.exc_info()[1] is self._handled

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """The batch's inputs are watched no more."""
        if self._inputs is not None:
            self._inputs.end_batch()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """A fit's validation says of inputs, too, whether they are used."""
        if self._inputs is not None and not trainer.sanity_checking:
            self._inputs.begin_batch(trainer.current_epoch, batch_idx)

    on_validation_batch_end = on_train_batch_end

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The audits of the epoch, its line, its metrics; a violation stops the run."""
        if self._engine is None or self._engine.epoch > trainer.current_epoch:  # ended before the run was resumed
            return
        self._tell_inputs(trainer, self._engine)
        self._checked = self._made(trainer, pl_module)
        self._engine.end_epoch()
        if self.created_by == "switch":
            return self._judge(trainer)
        counts = next(record for record in reversed(self._records) if record["type"] == "counts")
        self._log(trainer, pl_module, counts)
        say(trainer, epoch_line(counts, counts["updates_before_epoch"]))
        self._judge(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A last comparison, and the table."""
        if self._engine is None:
            return
        if self._inputs is not None and (stale := self._inputs.end_run()):
            self._engine.log.add(stale)
            rank_zero_warn(f"freeze: {summary(stale)}. See .findings")
        self._engine.finish()
        if self.created_by != "switch":
            self._print_table()
        self._judge(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Compare what is saved; a finding is acted upon at the epoch's end."""
        if self._engine is not None and trainer.training:
            self._engine.audit.check(all_ranks=self._together)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Record what was done, and undo what was changed."""
        try:
            if self._engine is not None and self._running:
                self._engine.holds.explain(exception)
                self._engine.flush()
        finally:
            self._undo()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Undo what was changed."""
        self._undo()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Undo what was changed."""
        self._undo()

    def _begin_report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._undo()
        self._handled = sys.exc_info()[1]  # where the fit is itself a second try
        others = any(isinstance(callback, InputAudit) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        self._inputs = InputWatch(pl_module) if self._audits_inputs and not others else None
        self._records = []
        self._judged = self._checked = 0
        directory = log_directory(trainer)  # on every rank: it may be broadcast
        here = trainer.is_global_zero and not trainer.fast_dev_run and self.created_by != "switch"  # type: ignore[attr-defined]
        self._recorder = Recorder(directory / FILE_NAME) if here and self._writes else None

    def _record(self, record: Record) -> None:
        # For the table: not the steps of every epoch, which are as long as the run, and of the counts only the last.
        if record["type"] == "counts":
            self._records = [before for before in self._records if before["type"] != "counts"]
        if record["type"] != "phase":
            self._records.append(record)
        if self._recorder is not None:
            self._recorder(record)

    def _undo(self) -> None:
        self._running = False
        if self._engine is not None:
            self._engine.detach(bring_back=False)  # Lightning's teardown takes optimizer state to host memory anyway
        if self._inputs is not None:
            self._inputs.end_batch()
            self._inputs = None
        if self._bar is not None:
            self._bar.remove()
            self._bar = None

    def _log(self, trainer: Trainer, pl_module: LightningModule, counts: Record) -> None:
        if trainer.barebones:
            return
        values = {f"freeze/{group}/updates": float(number) for group, number in counts["updates"].items()}
        values |= {f"freeze/findings/{severity}": float(number) for severity, number in counts["findings"].items()}
        pl_module.log_dict(values, on_step=False, on_epoch=True, sync_dist=trainer.world_size > 1, reduce_fx="max")

    def _tell_inputs(self, trainer: Trainer, engine: FreezeController | RequiresGradWatch) -> None:
        """What the modules do with their inputs, in one line an epoch."""
        if self._inputs is None:
            return
        findings, fresh = self._inputs.end_epoch(trainer.current_epoch)
        engine.log.add(fresh)
        if findings:
            line = f"freeze, epoch {trainer.current_epoch}: {summary(findings)}. See .findings, or `lightning-freeze inputs`"
            serious = any(finding.severity == "warning" for finding in findings)
            (rank_zero_warn if serious else lambda text: say(trainer, text))(line)

    def _judge(self, trainer: Trainer) -> None:
        """Act upon the findings since the last time."""
        fresh = self.findings[self._judged :]
        self._judged += len(fresh)
        for finding in fresh:
            if finding.audit == "inputs":  # told in one line
                continue
            if finding.severity == "info":
                say(trainer, f"freeze: {finding.message}")
            elif finding.severity == "warning" or self._on_finding == "warn":
                rank_zero_warn(finding.message)
        if self._on_finding == "warn":
            return
        self._stop_for([finding for finding in fresh if finding.severity == "error"], trainer, "freeze")

    @rank_zero_only
    def _print_table(self) -> None:
        Console().print(summary_table(self._records))


def _is(one: object, other: object) -> bool:
    return one is other
