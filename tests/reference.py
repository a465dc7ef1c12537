"""``python -m tests.reference --write``: what pages show of docstrings and of a run; without ``--write`` it prints it.

It writes ``examples/reference.md`` from the public docstrings, the list of programs in ``examples/README.md`` from theirs, and
below the README's example what that example prints.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import json
import logging
import os
import re
import sys
import tempfile
import textwrap
import warnings
from typing import Any
from unittest.mock import patch

import lightning_freeze
from lightning_freeze.cli.main import COMMANDS
from tests.pages import ROOT, blocks, write_part

REFERENCE = ROOT / "examples" / "reference.md"
README, INDEX = ROOT / "README.md", ROOT / "examples" / "README.md"
NOISE = re.compile(r"(GPU|TPU|HPU) available|💡|`Trainer|$")
"""Lines of Lightning's own, of which the README shows none."""
_HEAD = """# Reference

Made from the docstrings by `python -m tests.reference --write`; not edited here. All names are importable from
`lightning_freeze`.

"""
_SECTIONS = {"Args": "Arguments", "Raises": "Raises", "Returns": "Returns", "Example": "Example", "Yields": "Yields"}


def reference() -> str:
    """The page: every public name with its signature and docstring, and the commands."""
    names = "\n".join(f"- [`{name}`](#{name.lower()})" for name in lightning_freeze.__all__)
    commands = "\n".join(f"| `lightning-freeze {name}` | {line} |" for name, line in COMMANDS.items())
    entries = "\n".join(_entry(name) for name in lightning_freeze.__all__)
    return (
        f"{_HEAD}{names}\n\n## Commands\n\n| command | what it does |\n|---|---|\n{commands}\n\n## Names\n\n{entries}"
    )


def _entry(name: str) -> str:
    value = getattr(lightning_freeze, name)
    public = [f"### {name}", _signature(name, value), _markdown(inspect.getdoc(value) or "")]
    members = [
        (key, member)
        for key, member in vars(value).items()
        if inspect.isclass(value)
        and not key.startswith("_")
        and not re.match("on_|setup$|teardown$|state_|load_state", key)
    ]
    rows = [
        f"| `{key}` | {line} |"
        for key, member in members
        if (inspect.isfunction(member) or isinstance(member, property))
        and (line := (inspect.getdoc(member) or "").partition("\n")[0].replace("|", "\\|"))
    ]
    if rows:
        public.append("\n".join(["| member | what it does |", "|---|---|", *rows]))
    return "\n\n".join(public) + "\n"


def _signature(name: str, value: Any) -> str:
    """How it is called; on a line for each parameter where that is long."""
    parameters = [*map(str, inspect.signature(value).parameters.values())]
    call = f"{name}({', '.join(parameters)})"
    if len(call) > 100:
        call = "\n    ".join([f"{name}(", *(f"{each}," for each in parameters)]) + "\n)"
    call = re.sub(r"<function \S+ at 0x\w+>", "…", re.sub(r": '([^']*)'", r": \1", call))
    return f"```text\n{call}\n```"


def _markdown(text: str) -> str:
    """A docstring as Markdown: sections are bold words, arguments a list, examples code."""
    parts = re.split(rf"^({'|'.join(_SECTIONS)}):\n", text, flags=re.MULTILINE)
    shown = [_inline(parts[0].strip())]
    for section, body in zip(parts[1::2], parts[2::2], strict=True):
        indented, _, after = re.sub(r"\n\n(?=\S)", "\0", body, count=1).partition("\0")
        inside = textwrap.dedent(indented).strip("\n")
        if section == "Example":
            shown.append(f"```pycon\n{inside.rstrip()}\n```")
        else:
            items = re.sub(r"\n +", " ", inside)
            shown.append(
                f"**{_SECTIONS[section]}**\n\n" + re.sub(r"^(?:(\w+): )?", _item, _inline(items), flags=re.MULTILINE)
            )
        if after.strip():
            shown.append(_inline(after.strip()))
    return "\n\n".join(shown)


def _item(match: re.Match[str]) -> str:
    return f"- `{match[1]}`: " if match[1] else "- "


def _inline(text: str) -> str:
    return text.replace("``", "`")


def programs() -> str:
    """What each program shows, by the first line of its docstring; of a notebook, by its title."""
    rows = ["| file | what it shows |", "|---|---|"]
    for path in sorted((ROOT / "examples").glob("*.py")) + sorted((ROOT / "examples").glob("*.ipynb")):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".py":
            line = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
        else:
            line = json.loads(text)["cells"][0]["source"][0].lstrip("# ").strip() + ", a notebook."
        rows.append(f"| [{path.name}]({path.name}) | {_inline(line)} |")
    if (ROOT / "examples" / "programs.md").exists():
        rows += ["", "[What they print](programs.md), with pictures."]
    return "\n".join(rows) + "\n"


def example_output() -> str:
    """What the README's example prints, but for Lightning's own lines."""
    code = next(block.code for block in blocks(README.read_text(encoding="utf-8"), "python"))
    said, logger = io.StringIO(), logging.getLogger("pytorch_lightning")
    logger.addHandler(handler := logging.StreamHandler(said))
    with contextlib.ExitStack() as stack:
        stack.callback(logger.removeHandler, handler)
        stack.enter_context(contextlib.chdir(stack.enter_context(tempfile.TemporaryDirectory())))
        stack.enter_context(contextlib.redirect_stdout(said))
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        stack.enter_context(patch.dict(os.environ, COLUMNS="100"))
        exec(code, {"__name__": "__main__"})
    lines = [line.rstrip() for line in said.getvalue().splitlines() if not NOISE.match(line)]
    return "```text\n" + "\n".join(lines) + "\n```\n"


if __name__ == "__main__":
    if "--write" in sys.argv:
        REFERENCE.write_text(reference(), encoding="utf-8")
        write_part(INDEX, "programs", programs())
        write_part(README, "output", example_output())
    else:
        print(reference(), programs(), example_output(), sep="\n")
