"""``lightning-freeze groups``: groups that a model's structure suggests, as YAML."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from lightning_freeze.cli.command import Command, on_one_cpu
from lightning_freeze.plan.groups import group_parameters
from lightning_freeze.plan.schedule import REST
from lightning_freeze.plan.selectors import Selector
from lightning_freeze.plan.suggest import suggest_groups
from lightning_freeze.report.table import print_line
from lightning_freeze.trainer.seam import LightningModule, Trainer
from lightning_freeze.yaml_file import ConfigError


class GroupsCommand(Command):
    """Suggests groups for a model: embeddings, its blocks as a family, head, norms."""

    options = {"out": (Path, "also write the groups to this new file")}

    def __init__(self, given: Any) -> None:
        self._out: Path | None = given.get("out")
        if self._out is not None and self._out.exists():
            raise ConfigError(f"--out is {str(self._out)!r}, which exists already. Give another name.")

    def configure(self, trainer: Any) -> None:
        """Without callbacks, whose groups are still to be found."""
        on_one_cpu(trainer)
        trainer["callbacks"] = None

    def run(self, trainer: Trainer, model: LightningModule, fit: Callable[[], None]) -> None:
        """Print the groups, and write them."""
        model.trainer = trainer  # which its configure_model may need
        model.configure_model()
        text = groups_yaml(model, suggest_groups(model))
        console = Console()
        print_line(console, text, end="")
        if self._out is not None:
            self._out.parent.mkdir(parents=True, exist_ok=True)
            self._out.write_text(text, encoding="utf-8")
            print_line(console, f"# Written to {self._out}.")


def groups_yaml(model: LightningModule, groups: dict[str, Selector]) -> str:
    """Groups as one writes them under ``init_args``, with the size of each."""
    found = group_parameters(model, groups)
    every = {**found.members, **found.moved_by_user}
    sizes = {group: sum(m.parameter.numel() for m in members) for group, members in every.items()}
    total = sum(sizes.values())
    lines = [
        f"# Suggested for {type(model).__name__}, whose parameters have {total:,} elements that can train.",
        "groups:",
    ]
    written = {group: f"  {_flow(group)}: {_flow(selector)}" for group, selector in groups.items()}
    width = min(72, max(map(len, written.values())))
    for group, line in written.items():
        family = found.families.get(group)
        size = sum(sizes[name] for name in family or [group])
        of = f"{len(family)} groups, " if family else ""
        lines.append(f"{line:<{width}}  # {of}{size:,} elements, {size / total:.1%}")
    rest = [member.name for member in found.members.get(REST, ())]
    if rest:
        shown = ", ".join(rest[:4]) + ", …" * (len(rest) > 4)
        lines.append(f"# rest: {sizes[REST]:,} elements, {sizes[REST] / total:.1%}: {shown}")
    return "\n".join(lines) + "\n"


def _flow(selector: Selector) -> str:
    """A selector on one line of YAML, its patterns quoted."""
    text = yaml.safe_dump(selector, default_flow_style=True, width=10_000, sort_keys=False)
    return text.removesuffix("...\n").strip()
