"""``lightning-freeze groups``: groups that a model's structure suggests, as YAML."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml
from rich.console import Console

from lightning_freeze.cli.command import Command, on_one_cpu
from lightning_freeze.plan.groups import group_parameters
from lightning_freeze.plan.schedule import REST
from lightning_freeze.plan.selectors import Selector
from lightning_freeze.plan.suggest import suggest_groups
from lightning_freeze.report.table import print_line
from lightning_freeze.trainer.seam import LightningModule, Trainer


@dataclass(frozen=True)
class GroupsCommand(Command):
    """``lightning-freeze groups``: groups that a model's structure suggests, as YAML.

    Args:
        rest: The arguments of the fit.
        out: The file to write, if any.
    """

    name = "groups"
    about = "groups that a model's structure suggests"
    rest: list[str]
    out: Path | None

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Self:
        """The command that these arguments ask for."""
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
        return cls(rest, given.out)

    def configure(self, trainer: Any) -> None:
        """Nothing of the Trainer is needed: least of all callbacks whose groups are still to be found."""
        on_one_cpu(trainer)
        trainer["callbacks"] = None

    def run(self, trainer: Trainer, model: LightningModule, fit: Callable[[], None]) -> None:
        """Print the groups, and write them."""
        model.trainer = trainer  # which it may ask
        model.configure_model()  # a model may make its layers there
        text = groups_yaml(model, suggest_groups(model))
        console = Console()
        print_line(console, text, end="")
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.out.write_text(text, encoding="utf-8")
            print_line(console, f"# Written to {self.out}.")


def groups_yaml(model: LightningModule, groups: dict[str, Selector]) -> str:
    """Groups as one writes them under ``init_args``, with the size of each.

    Args:
        model: The model.
        groups: Group to selector.
    """
    found = group_parameters(model, groups)
    sizes = {group: sum(m.parameter.numel() for m in members) for group, members in found.members.items()}
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
