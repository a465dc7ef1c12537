"""Plan, hold and prove which parameters train at each optimizer step, in PyTorch Lightning.

Everything flows one way: *plan* (who trains now), *hold* (keep the others exactly as they are), *audit* (prove it),
*report* (say it). Names are loaded when they are first used (PEP 562): ``import lightning_freeze`` alone loads neither
torch nor Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_freeze.audit.fingerprint import fingerprint as fingerprint
    from lightning_freeze.controller import FreezeController as FreezeController
    from lightning_freeze.errors import ScheduleError as ScheduleError
    from lightning_freeze.errors import SelectionError as SelectionError
    from lightning_freeze.errors import UnsupportedError as UnsupportedError
    from lightning_freeze.inputs.audit import audit_inputs as audit_inputs
    from lightning_freeze.plan.every import Every as Every
    from lightning_freeze.plan.groups import resolve_groups as resolve_groups
    from lightning_freeze.plan.phase import Phase as Phase
    from lightning_freeze.plan.phases import Phases as Phases
    from lightning_freeze.plan.pick import Pick as Pick
    from lightning_freeze.plan.schedule import Schedule as Schedule
    from lightning_freeze.plan.suggest import suggest_groups as suggest_groups
    from lightning_freeze.plan.until import Until as Until
    from lightning_freeze.probe.probe import OptimizerTraits as OptimizerTraits
    from lightning_freeze.probe.probe import probe_optimizer as probe_optimizer
    from lightning_freeze.report.findings import Finding as Finding
    from lightning_freeze.report.findings import FreezeViolation as FreezeViolation
    from lightning_freeze.report.run_report import RunReport as RunReport
    from lightning_freeze.report.run_report import read_report as read_report
    from lightning_freeze.trainer.freeze_audit import FreezeAudit as FreezeAudit
    from lightning_freeze.trainer.input_audit import InputAudit as InputAudit
    from lightning_freeze.trainer.preview_run import preview_run as preview_run
    from lightning_freeze.trainer.scheduler import AlternatingFreeze as AlternatingFreeze
    from lightning_freeze.trainer.scheduler import FreezeScheduler as FreezeScheduler

__version__ = "0.1.0"

_NAMES = {
    "audit.fingerprint": ["fingerprint"],
    "controller": ["FreezeController"],
    "errors": ["ScheduleError", "SelectionError", "UnsupportedError"],
    "inputs.audit": ["audit_inputs"],
    "plan.every": ["Every"],
    "plan.groups": ["resolve_groups"],
    "plan.phase": ["Phase"],
    "plan.phases": ["Phases"],
    "plan.pick": ["Pick"],
    "plan.schedule": ["Schedule"],
    "plan.suggest": ["suggest_groups"],
    "plan.until": ["Until"],
    "probe.probe": ["OptimizerTraits", "probe_optimizer"],
    "report.findings": ["Finding", "FreezeViolation"],
    "report.run_report": ["RunReport", "read_report"],
    "trainer.freeze_audit": ["FreezeAudit"],
    "trainer.input_audit": ["InputAudit"],
    "trainer.preview_run": ["preview_run"],
    "trainer.scheduler": ["AlternatingFreeze", "FreezeScheduler"],
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
