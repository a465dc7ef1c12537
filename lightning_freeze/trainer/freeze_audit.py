"""`FreezeAudit`, and what it shares with `FreezeScheduler`: hooks around an engine, and the report of its findings."""

from __future__ import annotations

import sys
from functools import partial
from importlib.util import find_spec
from io import BytesIO
from typing import TYPE_CHECKING, Any

from lightning_freeze.audit.exempt import exempt_groups
from lightning_freeze.errors import SelectionError, Shortened, whole_number
from lightning_freeze.inputs.messages import summary
from lightning_freeze.report.findings import Findings, FreezeViolation
from lightning_freeze.report.records import FILE_NAME, Record, Recorder
from lightning_freeze.report.run_table import epoch_line, notes, summary_table
from lightning_freeze.report.table import as_text
from lightning_freeze.trainer import seam
from lightning_freeze.trainer.arguments import OnFinding
from lightning_freeze.trainer.base import Auditor
from lightning_freeze.trainer.boundaries import _Boundaries
from lightning_freeze.trainer.input_audit import InputAudit, InputWatch

if TYPE_CHECKING:
    from lightning_freeze.audit.requires_grad import RequiresGradWatch
    from lightning_freeze.controller import FreezeController


class _Audited(Auditor):
    """Hooks around an engine that audits weights, and the report of its findings."""

    _engine: FreezeController | RequiresGradWatch | None = None

    def __init__(self, on_finding: OnFinding, every_n_updates: int | None, inputs: bool, verbose: bool) -> None:
        super().__init__(on_finding)
        self._verbose = verbose
        self._said: dict[str | None, object] = {}  # what was said last, so that it is said again only where it changes
        if every_n_updates is not None:
            whole_number(every_n_updates, "every_n_updates", "the audit compares after that many updates, too")
        self._every_n_updates = every_n_updates
        self._recorder: Recorder | None = None
        self._records: list[Record] = []
        self._acted_on = self._compared_at = 0
        self._handled: BaseException | None = None
        self._running = False
        self._audits_inputs = inputs
        self._writes = True

    def dry_run(self) -> None:
        """Write no file, audit no inputs, and say nothing for information."""
        self._writes = self._audits_inputs = self._verbose = False

    @property
    def findings(self) -> Findings:
        """Everything that the audits found in the last fit."""
        return Findings(self._engine.findings if self._engine is not None else ())

    def on_train_batch_start(
        self, trainer: seam.Trainer, pl_module: seam.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._engine is None:
            return
        if not self._engine.audit.begun:
            self._begin_epoch(trainer)
        epoch = trainer.current_epoch
        self._engine.begin_step(epoch, trainer.optimizers)
        if self._inputs is not None:
            self._inputs.begin_batch(epoch, batch_idx)
        if self._every_n_updates is None:
            return
        updates = self._updates_so_far(trainer, pl_module)
        if updates - self._compared_at >= self._every_n_updates:
            self._compared_at = updates
            self._engine.audit.check()
            self._act_on_findings(trainer)

    def _begin_epoch(self, trainer: seam.Trainer) -> None:
        """An epoch's first batch begins."""
        if self._engine is not None and getattr(trainer.fit_loop, "_skip_backward", False):
            # StochasticWeightAveraging ends with an epoch that trains nothing: batch norm, in train mode, sees the average.
            self._engine.audit.finish()
            self._engine.holds.detach(False)
            self._act_on_findings(trainer)

    def _updates_so_far(self, trainer: seam.Trainer, pl_module: seam.LightningModule) -> int:
        """The updates, or with several processes the steps, whose number is the same on all ranks."""
        if trainer.world_size > 1:
            loop = trainer.fit_loop.epoch_loop
            return int(trainer.global_step if pl_module.automatic_optimization else loop.total_batch_idx)
        return self._engine.total if self._engine is not None else 0

    @property
    def _all_ranks(self) -> bool:
        """Whether all ranks run this hook together: not where one of them saves because of an exception."""
        return sys.exc_info()[1] is self._handled

    def on_train_epoch_end(self, trainer: seam.Trainer, pl_module: seam.LightningModule) -> None:
        if self._engine is None or self._engine.epoch > trainer.current_epoch:  # ended before the run was resumed
            return
        self._report_inputs(trainer, self._engine)
        self._compared_at = self._updates_so_far(trainer, pl_module)
        self._engine.end_epoch()
        counts = next(record for record in reversed(self._records) if record["type"] == "counts")
        if self.created_by != "switch":
            self._log(trainer, pl_module, counts)
        self._say(trainer, epoch_line(counts, counts["updates_before_epoch"]))
        self._act_on_findings(trainer)

    def on_train_end(self, trainer: seam.Trainer, pl_module: seam.LightningModule) -> None:
        if self._engine is None:
            return
        if self._inputs is not None and (stale := self._inputs.end_run()):
            self._engine.log.add(stale)
            seam.rank_zero_warn(f"freeze: {summary(stale)}. See .findings")
        self._engine.finish()
        self._say(trainer, as_text(summary_table(self._records)))
        self._draw(trainer, self._engine.log.run)
        self._act_on_findings(trainer)

    def on_save_checkpoint(self, trainer: seam.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if self._engine is not None and trainer.training:
            self._engine.audit.check(all_ranks=self._all_ranks)

    def _explain(self, trainer: seam.Trainer, exception: BaseException) -> None:
        if self._engine is not None and self._running:
            self._engine.holds.explain(exception)
            (self._engine.audit.record_epoch if self._engine.audit.begun else self._engine.audit.flush)()
            if isinstance(exception, SelectionError) and trainer.world_size == 1:  # other ranks may not come here
                saved = seam.save_before_stopping(trainer, "freeze-selection")
                exception.add_note(
                    f"freeze: the run was saved to {saved!r}." if saved else "freeze: the run was not saved."
                )
            if not isinstance(exception, (Shortened, FreezeViolation)):  # which say how to go on
                table = as_text(summary_table(self._records))
                self._say(trainer, f"{table}\nfreeze: the run was interrupted. {seam.how_to_go_on(trainer)}")

    def _begin_report(self, trainer: seam.Trainer, pl_module: seam.LightningModule) -> None:
        self._undo()
        _Boundaries(self).stand(trainer, first=True)
        self._handled = sys.exc_info()[1]  # where the fit is itself a second try
        others = any(isinstance(callback, InputAudit) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        self._inputs = InputWatch(pl_module) if self._audits_inputs and not others else None
        self._records, self._said = [], {}
        self._acted_on = self._compared_at = 0
        path = seam.record_directory(trainer) / FILE_NAME  # on every rank: it may be broadcast
        writes = self._writes and trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]
        self._recorder = Recorder(path) if writes and self.created_by != "switch" else None
        if self._recorder is not None and path.parent.name == seam.RUNS:
            seam.say(trainer, f"freeze: the records of this run are written to {path}.")

    def _record(self, record: Record) -> None:
        # The table needs no steps, which are as many as the run is long, and only the last counts.
        if record["type"] == "counts":
            self._records = [before for before in self._records if before["type"] != "counts"]
        if record["type"] != "phase":
            self._records.append(record)
        if self._recorder is not None:
            self._recorder(record)

    def _undo(self) -> None:
        self._running = False
        if self._engine is not None:  # Lightning's teardown takes optimizer state to host memory anyway
            self._removals.append(partial(self._engine.detach, bring_back=False))
        super()._undo()

    def _say(self, trainer: seam.Trainer, text: str) -> None:
        if self._verbose:
            seam.say(trainer, text)

    def _log(self, trainer: seam.Trainer, pl_module: seam.LightningModule, counts: Record) -> None:
        if trainer.barebones:
            return
        values = {f"freeze/{group}/updates": float(number) for group, number in counts["updates"].items()}
        values |= {f"freeze/findings/{severity}": float(number) for severity, number in counts["findings"].items()}
        if len(counts["lr"]) <= 32:  # of more groups, the records alone have them
            values |= {f"freeze/{group}/lr": rate for group, rate in counts["lr"].items()}
        values |= {"freeze/phase": float(counts["phase"])} if counts["phase"] is not None else {}
        how: dict[str, Any] = {"sync_dist": trainer.world_size > 1, "reduce_fx": "max", "add_dataloader_idx": False}
        pl_module.log_dict(values, on_step=False, on_epoch=True, **how)

    def _draw(self, trainer: seam.Trainer, run: str) -> None:  # the timeline, for TensorBoard
        boards: list[Any] = [board for board in trainer.loggers if "TensorBoardLogger" in str(type(board).__mro__)]
        if not boards or self._recorder is None or find_spec("matplotlib") is None:
            return
        try:
            from matplotlib.image import imread

            from lightning_freeze.report.run_report import read_report  # not before a fit's end

            drawn = BytesIO()  # with what lies around the axes, which `add_figure` cuts off
            read_report(self._recorder.path, run).to_png().savefig(drawn, format="png", bbox_inches="tight")
            for board in boards:
                drawn.seek(0)
                board.experiment.add_image("freeze/timeline", imread(drawn), trainer.global_step, dataformats="HWC")
        except Exception as error:  # a picture ends no run
            seam.rank_zero_warn(f"TensorBoard got no timeline of the run: {type(error).__name__}: {error}")

    def _report_inputs(self, trainer: seam.Trainer, engine: FreezeController | RequiresGradWatch) -> None:
        """Report the epoch's findings about inputs, in one line."""
        if self._inputs is None:
            return
        findings, fresh = self._inputs.end_epoch(trainer.current_epoch)
        engine.log.add(fresh)
        if (text := summary(findings)) == self._said.get("inputs"):
            return
        self._said["inputs"] = text
        line = f"freeze, epoch {trainer.current_epoch}: {text}. See .findings, or `lightning-freeze inputs`"
        if any(finding.severity == "warning" for finding in findings):
            seam.rank_zero_warn(line)
        elif findings:
            self._say(trainer, line)

    def _act_on_findings(self, trainer: seam.Trainer, unsaved: str = "") -> None:
        fresh = self.findings[self._acted_on :]
        self._acted_on += len(fresh)
        reported = [finding for finding in fresh if finding.audit != "inputs"]  # which are reported in one line
        for line in notes(reported, self._said):
            self._say(trainer, f"freeze: {line}")
        for finding in reported:
            if finding.severity == "warning" or (finding.severity == "error" and self._on_finding == "warn"):
                seam.rank_zero_warn(finding.text)
        if self._on_finding == "raise":
            self._stop_for([finding for finding in fresh if finding.severity == "error"], trainer, "freeze", unsaved)


class FreezeAudit(_Audited):
    """Proves that parameters with ``requires_grad=False`` keep every bit, and that the others move.

    It schedules nothing: for runs that freeze by other means, such as BackboneFinetuning, PEFT or code of one's own. As
    the ``audit`` of a `FreezeScheduler`, it says how the scheduler audits.

    Args:
        every_n_updates: Also compare after every so many optimizer steps, for runs of one long epoch.
        on_finding: Whether a violation stops the run, after saving it, or warns. Default: as the scheduler's, and ``raise``
            without one.
        inputs: Whether to audit, in the first batch of an epoch and the first of its validation, that every module uses
            its inputs; findings are warnings. An `InputAudit` in the same Trainer replaces this.
        exempt: Selectors of parameters that your own code moves, with a reason: ``{"teacher": "moved by EMA"}``. They are
            not audited; one that nothing moves in a whole run is a finding. Beside a `FreezeScheduler`, each is a
            group with ``by: user``.
        verbose: Whether to print the tables at the start and the end, an epoch's line and what is for information.

    Raises:
        ScheduleError: An argument is invalid, such as an exemption without a reason.
        SelectionError: In a run: an exemption matches no parameter.
        FreezeViolation: In a run: a frozen parameter moved.

    Example:
        >>> FreezeAudit(every_n_updates=1000).findings
        []
    """

    _engine: RequiresGradWatch | None = None

    def __init__(
        self,
        every_n_updates: int | None = None,
        on_finding: OnFinding | None = None,
        inputs: bool = True,
        exempt: dict[str, Any] | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__("raise" if on_finding is None else on_finding, every_n_updates, inputs, verbose)
        self.exempt = exempt_groups(exempt or {})
        self.every_n_updates, self.on_finding, self.inputs, self.verbose = every_n_updates, on_finding, inputs, verbose

    def on_fit_start(self, trainer: seam.Trainer, pl_module: seam.LightningModule) -> None:
        from lightning_freeze.audit.requires_grad import RequiresGradWatch  # not before a fit

        if self.created_by == "switch" and any(isinstance(c, _Audited) and c is not self for c in trainer.callbacks):  # type: ignore[attr-defined]
            self._engine = None
            return
        self._begin_report(trainer, pl_module)
        self._engine = RequiresGradWatch(
            pl_module,
            suspects=seam.averaging_callbacks(trainer),
            record=self._record,
            say=lambda line: self._say(trainer, line),
            exempt=self.exempt,
        )
        self._engine.audit.ends_later = True
        self._engine.attach(*trainer.optimizers, run=seam.run_context(trainer, pl_module))

    def on_train_start(self, trainer: seam.Trainer, pl_module: seam.LightningModule) -> None:
        if self._engine is not None:
            self._engine.begin(trainer.current_epoch, seam.resumes(trainer))
            self._running = True
