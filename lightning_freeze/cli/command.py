"""``lightning-freeze plan|groups|inputs``: commands of our own, each over what ``fit`` would run.

`probe`, which needs no configuration, is in `probe_command`.
"""

from __future__ import annotations

import argparse
import datetime
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import yaml
from rich.console import Console

from lightning_freeze.cli.forecast import Forecast, Horizon, forecast, read_metrics
from lightning_freeze.plan.groups import group_parameters
from lightning_freeze.plan.schedule import REST
from lightning_freeze.plan.selectors import Selector
from lightning_freeze.plan.suggest import suggest_groups
from lightning_freeze.report.inputs_table import print_inputs
from lightning_freeze.report.plan_picture import draw_plan
from lightning_freeze.report.plan_table import print_plan
from lightning_freeze.trainer.declarations import write_declarations
from lightning_freeze.trainer.input_audit import InputAudit
from lightning_freeze.trainer.seam import LightningModule, Trainer, refuse_strategy


class Command(ABC):
    """A command that takes the configuration of a fit."""

    name: ClassVar[str]
    rest: list[str]
    """The arguments of the fit."""

    @property
    def as_fit(self) -> list[str]:
        """The arguments of the fit that it makes use of."""
        return ["fit", *self.rest]

    @property
    def callbacks(self) -> list[Any]:
        """Callbacks that it adds to those of the configuration."""
        return []

    def configure(self, trainer: Any) -> None:  # noqa: B027 - most are content with it
        """Change how the Trainer is to be made.

        Args:
            trainer: jsonargparse's namespace of the Trainer's arguments.
        """

    @abstractmethod
    def run(self, trainer: Trainer, model: LightningModule, fit: Callable[[], None]) -> None:
        """Do it, once everything is made.

        Args:
            trainer: The Trainer.
            model: The model.
            fit: Fits the model.
        """


COMMANDS = {
    "plan": "what a run will train when, before it runs",
    "groups": "groups that a model's structure suggests",
    "inputs": "what modules are handed and never use, as a whitelist",
    "probe": "what any optimizer does to a frozen weight, by every way of freezing (needs no configuration)",
}
LIGHTNING_LOGGERS = ("pytorch_lightning", "lightning.pytorch")


def command_of(arguments: Sequence[str]) -> Command | None:
    """The command that the arguments give, if it is one of ours that takes the configuration of a fit."""
    makers = {"inputs": _inputs, "plan": _plan, "groups": _groups}
    return makers[arguments[0]](arguments[1:]) if arguments and arguments[0] in makers else None


def _at_least_one(parser: argparse.ArgumentParser, given: argparse.Namespace, *names: str) -> None:
    for name in names:
        value = getattr(given, name)
        if value is not None and value < 1:
            parser.error(f"--{name} is {value}, but must be at least 1.")


def _hush() -> None:
    """What Lightning says of devices and of itself while a Trainer is made is no matter of ours."""
    for package in LIGHTNING_LOGGERS:
        logging.getLogger(package).setLevel(logging.WARNING)


def _on_one_cpu(trainer: Any) -> int | None:
    """Let a fit that is only looked at run in this process.

    Args:
        trainer: The namespace of the Trainer's arguments.

    Returns:
        The processes that the configuration asks for; None where it leaves that to the machine.

    Raises:
        UnsupportedError: The run would refuse the strategy.
    """
    if "deepspeed" in str(trainer.get("strategy")).lower():
        refuse_strategy(type("DeepSpeedStrategy", (), {})())  # by its name, as a fit does
    each = _processes(trainer.get("devices"), trainer.get("accelerator"))
    nodes = int(trainer.get("num_nodes") or 1)
    # The CPU has none of these; what takes their place has the same bytes.
    others = dict.fromkeys(("16-true", "transformer-engine", "transformer-engine-float16"), "bf16-true")
    others |= dict.fromkeys(("16", "16-mixed"), "32-true")
    trainer["precision"] = others.get(str(trainer.get("precision")), trainer.get("precision"))
    for key, value in {
        **{"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "enable_progress_bar": False},
        **{"enable_model_summary": False, "num_sanity_val_steps": 0, "plugins": None, "profiler": None},
    }.items():
        trainer[key] = value
    return each * nodes if each is not None else None


def _processes(devices: Any, accelerator: Any) -> int | None:
    """How many processes a node has by the Trainer's ``devices``, in any way of writing it."""
    if isinstance(devices, str) and devices.strip("-").replace(",", "").isdigit():
        devices = int(devices) if "," not in devices else [part for part in devices.split(",") if part]
    if isinstance(devices, list):
        return len(devices)
    if isinstance(devices, int):
        return devices if devices > 0 else None
    return 1 if accelerator in ("cpu", "mps") else None


# --- inputs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InputsCommand(Command):
    """``lightning-freeze inputs``: a fit of a batch or a few under the input audit, and a whitelist of what it found.

    Args:
        rest: The arguments of the fit.
        out: The whitelist's file.
        batches: How many batches to run.
        audit: The callback; it stands back where the configuration brings its own. Either is silent: the table tells.
    """

    name = "inputs"
    rest: list[str]
    out: Path
    batches: int
    audit: InputAudit

    @property
    def as_fit(self) -> list[str]:
        """A fit of a few batches."""
        return [*super().as_fit, f"--trainer.fast_dev_run={self.batches}"]

    @property
    def callbacks(self) -> list[Any]:
        """The audit."""
        return [self.audit]

    def run(self, trainer: Trainer, model: LightningModule, fit: Callable[[], None]) -> None:
        """Fit; then print what was found, and write it down."""
        fit()
        callbacks: Sequence[Any] = trainer.callbacks  # type: ignore[attr-defined]
        own = [c for c in callbacks if isinstance(c, InputAudit) and c.asked_by == "user"]
        findings = (own[0] if own else self.audit).findings
        new = write_declarations(self.out, findings, datetime.date.today().isoformat())
        console = Console()
        if findings:
            print_inputs(console, findings)
        if new:
            said = f"{new} new {'entry' if new == 1 else 'entries'} written to {self.out}. Judge each; then keep it so:"
        elif any(finding.kind != "stale" for finding in findings):
            said = f"Nothing new: {self.out} lists all of it already. To keep it so:"
        else:
            said = "Nothing was found: every input is used, or declared. To keep it so:"
        keep = f"  InputAudit(on_finding='raise', whitelist={str(self.out)!r})"
        console.print(f"{said}\n{keep}", markup=False, highlight=False, soft_wrap=True)


def _inputs(arguments: Sequence[str]) -> Command:
    parser = argparse.ArgumentParser(
        "lightning-freeze inputs",
        description="Run a batch of training and one of validation under the input audit, print what modules are "
        "handed and do not use, and write a whitelist of it, so that an old project starts clean and only what is "
        "new is found. Everything else is as for `lightning-freeze fit`.",
    )
    parser.add_argument("--out", type=Path, default=Path("inputs.yaml"), help="the file to write, or to add to")
    parser.add_argument(
        "--batches", type=int, default=1, help="batches to run and to watch, of training and then of validation"
    )
    given, rest = parser.parse_known_args(arguments)
    _at_least_one(parser, given, "batches")
    return InputsCommand(rest, given.out, given.batches, InputAudit.for_the("command", batches=given.batches))


# --- plan -----------------------------------------------------------------------------------------------------------


@dataclass
class PlanCommand(Command):
    """``lightning-freeze plan``: what a run will train when, before it runs, by the code that the run itself asks.

    Args:
        rest: The arguments of the fit.
        out: Where to draw the picture, if anywhere.
        horizon: How far to look.
        metrics: The file with metrics of an earlier run, for phases that wait for one.
    """

    name = "plan"
    rest: list[str]
    out: Path | None
    horizon: Horizon
    metrics: Path | None
    _world: int | None = 1

    def configure(self, trainer: Any) -> None:
        """On one CPU process, whatever the run is to have."""
        _hush()
        self._world = _on_one_cpu(trainer)

    def run(self, trainer: Trainer, model: LightningModule, fit: Callable[[], None]) -> None:
        """Look at the run, print the tables, draw the picture."""
        metrics = read_metrics(self.metrics) if self.metrics is not None else {}
        found = forecast(trainer, fit, replace(self.horizon, world=self._world, metrics=metrics))
        console = Console()
        print_plan(console, found.steps, found.sizes, found.first, found.held)
        for note in found.notes:
            console.print(f"- {note}", markup=False, highlight=False, soft_wrap=True)
        if self.out is not None:
            self._draw(found, type(model).__name__)
            console.print(f"The picture is in {self.out}.", markup=False, highlight=False, soft_wrap=True)

    def _draw(self, found: Forecast, title: str) -> None:
        assert self.out is not None
        draw_plan(self.out, found.trained, found.sizes, epochs=found.epochs, title=title, held=found.held)


def _plan(arguments: Sequence[str]) -> Command:
    parser = argparse.ArgumentParser(
        "lightning-freeze plan",
        description="Show what a run will train when, without running it: a table of groups and phases, and with --out "
        "a picture. Model, data and optimizers are made as `fit` makes them, on one CPU process. Everything else is as "
        "for `lightning-freeze fit`; with --ckpt_path it shows how that run would go on.",
    )
    parser.add_argument("--updates", type=int, help="optimizer steps to show; by default the whole run")
    parser.add_argument("--epochs", type=int, help="epochs to show; by default the whole run")
    parser.add_argument("--batches", type=int, help="training batches an epoch; by default as many as the data has")
    parser.add_argument("--metrics", type=Path, help="metrics.csv of an earlier run, for phases that end by a metric")
    parser.add_argument("--out", type=Path, help="the picture to draw (plan.png, plan.svg, plan.pdf)")
    given, rest = parser.parse_known_args(arguments)
    _at_least_one(parser, given, "updates", "epochs", "batches")
    if given.out is not None and given.out.suffix not in (".png", ".svg", ".pdf"):
        parser.error(f"--out is {str(given.out)!r}, but must end in .png, .svg or .pdf. Nearest: {given.out.stem}.png.")
    if given.out is not None and find_spec("matplotlib") is None:
        parser.error(
            "--out needs matplotlib, the extra `plot`: pip install -c constraints.txt -e '.[plot]' in a checkout."
        )
    horizon = Horizon(given.updates, given.epochs, given.batches)
    return PlanCommand(rest, given.out, horizon, given.metrics)


# --- groups ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GroupsCommand(Command):
    """``lightning-freeze groups``: groups that a model's structure suggests, as YAML.

    Args:
        rest: The arguments of the fit.
        out: The file to write, if any.
    """

    name = "groups"
    rest: list[str]
    out: Path | None

    def configure(self, trainer: Any) -> None:
        """Nothing of the Trainer is needed: least of all callbacks whose groups are still to be found."""
        _hush()
        _on_one_cpu(trainer)
        trainer["callbacks"] = None

    def run(self, trainer: Trainer, model: LightningModule, fit: Callable[[], None]) -> None:
        """Print the groups, and write them."""
        model.trainer = trainer  # which it may ask
        model.configure_model()  # a model may make its layers there
        text = groups_yaml(model, suggest_groups(model))
        console = Console()
        console.print(text, markup=False, highlight=False, soft_wrap=True, end="")
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.out.write_text(text, encoding="utf-8")
            console.print(f"# Written to {self.out}.", markup=False, highlight=False, soft_wrap=True)


def groups_yaml(model: LightningModule, groups: dict[str, Selector]) -> str:
    """Groups as one writes them under ``init_args``, with the size of each.

    Args:
        model: The model.
        groups: Group to selector.
    """
    found = group_parameters(model, groups)
    sizes = {group: sum(m.parameter.numel() for m in members) for group, members in found.members.items()}
    total = sum(sizes.values())
    lines = [f"# Suggested for {type(model).__name__}, whose parameters have {total:,} elements that can train."]
    lines.append("groups:")
    written = [f"  {_flow(group)}: {_flow(selector)}" for group, selector in groups.items()]
    width = min(72, max(map(len, written)))
    for (group, _), line in zip(groups.items(), written, strict=True):
        family = found.families.get(group)
        size = sum(sizes[name] for name in family) if family else sizes[group]
        of = f"{len(family)} groups, " if family else ""
        lines.append(f"{line:<{width}}  # {of}{size:,} elements, {size / total:.1%}")
    left = [member.name for member in found.members.get(REST, ())]
    if left:
        shown = ", ".join(left[:4]) + (", …" if len(left) > 4 else "")
        lines.append(f"# rest: {sizes[REST]:,} elements, {sizes[REST] / total:.1%}: {shown}")
    return "\n".join(lines) + "\n"


def _flow(selector: Selector) -> str:
    """A selector on one line of YAML, its patterns quoted."""
    text = yaml.safe_dump(selector, default_flow_style=True, width=10_000, sort_keys=False)
    return text.removesuffix("...\n").strip()


def _groups(arguments: Sequence[str]) -> Command:
    parser = argparse.ArgumentParser(
        "lightning-freeze groups",
        description="Suggest groups for a model: embeddings, its blocks as a family, head, norms. Prints the YAML that "
        "goes under the callback's `init_args`. Everything else is as for `lightning-freeze fit`.",
    )
    parser.add_argument("--out", type=Path, help="also write it to this file, which must not be there yet")
    given, rest = parser.parse_known_args(arguments)
    if given.out is not None and given.out.exists():
        raise SystemExit(
            f"lightning-freeze: error: --out is {str(given.out)!r}, which is there already. Give another name."
        )
    return GroupsCommand(rest, given.out)
