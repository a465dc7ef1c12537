"""What the docstrings and the pages show runs, and every link leads somewhere."""

from __future__ import annotations

import ast
import contextlib
import doctest
import importlib
import importlib.util
import inspect
import io
import os
import pkgutil
import re
import shlex
import sys
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

import lightning_freeze
from lightning_freeze import FreezeScheduler
from lightning_freeze.cli.config import build_schedule, explain
from lightning_freeze.cli.main import COMMANDS, main
from lightning_freeze.plan.selectors import check_selector
from lightning_freeze.trainer.declarations import read_declarations
from lightning_freeze.yaml_file import read
from tests.pages import PAGES, ROOT, blocks, part
from tests.reference import INDEX, README, REFERENCE, example_output, programs, reference

MODULES = [m.name for m in pkgutil.walk_packages(lightning_freeze.__path__, "lightning_freeze.")]
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}
CONTRIBUTING, CHANGELOG = ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"
LINKED = {**TEXTS, **{path.name: path.read_text("utf-8") for path in (CONTRIBUTING, CHANGELOG) if path.exists()}}
"""Tests of an installed package have no `CONTRIBUTING.md` beside them."""


def pages_with(*languages: str) -> list[str]:
    return [name for name, text in TEXTS.items() if blocks(text, *languages)]


# --- docstrings


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, name
    assert doctest.testmod(module).failed == 0


def test_every_public_class_and_function_has_an_example() -> None:
    missing = []
    for name in lightning_freeze.__all__:
        value = getattr(lightning_freeze, name)
        error = inspect.isclass(value) and issubclass(value, Exception)
        if ">>>" not in value.__doc__ and not error and name != "Schedule":
            missing.append(name)
    assert missing == []


def test_the_reference_is_made_from_the_docstrings() -> None:
    assert REFERENCE.read_text(encoding="utf-8") == reference(), "run `python -m tests.reference --write`"


# --- the README


def test_the_readme_is_an_introduction() -> None:
    text = TEXTS["README.md"]
    assert len(text.splitlines()) <= 160
    assert len(text.split()) <= 1400


def test_the_first_two_commands_install_and_do_the_main_job_and_the_tests() -> None:
    first, second = (block.code for block in blocks(TEXTS["README.md"], "bash")[:2])
    for command in (first, second):
        assert "-m venv" in command
        assert "pip install -c constraints.txt -e" in command
    assert first.rstrip().endswith("lightning-freeze fit --config configs/alternating.yaml")
    assert second.rstrip().endswith("pytest")


def test_the_output_below_the_readmes_example_is_what_it_prints() -> None:
    assert part(README, "output") == example_output(), "run `python -m tests.reference --write`"


def test_the_readme_in_chinese_has_the_same_sections_code_and_links() -> None:
    text, chinese = TEXTS["README.md"], TEXTS["examples/README.zh-CN.md"]
    assert len(re.findall("^## ", chinese, re.MULTILINE)) == len(re.findall("^## ", text, re.MULTILINE))
    for language in ("bash", "yaml", "sh", "bibtex"):
        assert [b.code for b in blocks(chinese, language)] == [b.code for b in blocks(text, language)]
    code, chinese_code = (ast.parse(blocks(each, "python")[0].code).body for each in (text, chinese))
    assert [*map(ast.dump, chinese_code[:-1])] == [*map(ast.dump, code)], "but for what it prints at its end"
    links = {target.removeprefix("examples/") for target in re.findall(r"\]\(([^)]*)\)", text)}
    links -= {"README.zh-CN.md", "CONTRIBUTING.md", "CHANGELOG.md"}
    assert links <= set(re.findall(r"\]\(([^)]*)\)", chinese))


# --- blocks of code


@pytest.mark.filterwarnings("ignore:.*")  # what Lightning says of a Trainer with default settings on this machine
@pytest.mark.parametrize("name", [name for name in pages_with("python") if name != "README.md"])  # see above
def test_python_runs_and_prints_what_is_shown(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page are one program."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(TEXTS[name], "python"):
        code = compile("\n" * block.line + block.code, str(PAGES[name]), "exec")
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec(code, names)
        if block.output is not None:
            assert said.getvalue().endswith(block.output), f"{name}, line {block.line}"


@pytest.mark.parametrize("name", pages_with("py"))
def test_code_of_other_libraries_is_python(name: str) -> None:
    for block in blocks(TEXTS[name], "py"):
        compile(block.code, name, "exec", flags=ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def built(path: Path) -> list[str]:
    """The keys of a file of YAML that mean something to us, each built as a run would build it."""
    root = read(path)
    explain([root])  # builds our callbacks
    done = ["callbacks"] if "trainer" in root.items() else []
    if root.items().keys() & {"phases", "class_path"}:
        build_schedule(root)
        done.append("schedule file")
    if root.items().keys() & {"whitelist", "metadata_inputs"}:
        read_declarations(path)
        done.append("whitelist")
    if done:
        return done
    for key, place in root.items().items():
        assert key in inspect.signature(FreezeScheduler).parameters, f"{place.where}: not an argument"
        if key == "schedule":
            build_schedule(place)
        elif key == "groups":
            for group, selector in place.items().items():
                check_selector(group, selector.plain())
        done.append(key)
    return done


@pytest.mark.parametrize("name", pages_with("yaml"))
def test_yaml_can_be_built(name: str, tmp_path: Path) -> None:
    (tmp_path / "inputs.yaml").write_text("metadata_inputs: [Upsample.like]\n")
    for block in blocks(TEXTS[name], "yaml"):
        path = tmp_path / "block.yaml"
        path.write_text(block.code, encoding="utf-8")
        assert built(path), f"{name}, line {block.line}: nothing of ours"


def commands() -> list[tuple[str, str]]:
    """Each line of a shell that calls our command, with its page."""
    found = []
    for name, text in TEXTS.items():
        for block in blocks(text, "sh", "bash", "console"):
            for line in block.code.splitlines():
                shown = line.removeprefix("$ ").rpartition("&& ")[2]
                if shown.startswith("lightning-freeze ") and (block.language != "console" or line.startswith("$ ")):
                    found.append((name, shown.partition(" > ")[0]))
        found += [(name, word) for word in re.findall(r"`(lightning-freeze \w[^`]*)`", text)]
    return sorted(set(found))


@cache
def options(command: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit):
        main([command, "--help"])
    return said.getvalue()


@pytest.mark.parametrize(("name", "line"), commands())
def test_commands_and_their_options_exist(name: str, line: str) -> None:
    _, command, *words = shlex.split(line.replace("<yours>", "FILE"))
    if command in ("--help", "--print_completion"):
        return
    for each in command.split("|"):
        assert each in COMMANDS
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    ours = {"--lr", "--betas", "--trainer.callbacks.init_args.optimizer_state", "--trainer.callbacks.init_args.KEY"}
    assert [option for option in given - ours if option not in options(command.partition("|")[0])] == []
    files = [word for word in words if word.startswith(("configs/", "examples/"))]
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_files_and_modules_that_are_run_exist() -> None:
    for name, text in TEXTS.items():
        for module in re.findall(r"python -m (tests[\w.]*)", text):
            assert importlib.util.find_spec(module), f"{name}: {module}"
        for script in re.findall(r"(?:python|processes?|torchrun)[^`\n]* (examples/\w+\.py)", text):
            assert (ROOT / script).exists(), f"{name}: {script}"


def test_every_configuration_is_on_the_page_about_schedules() -> None:
    listed = set(re.findall(r"`(\w+\.yaml)`", TEXTS["examples/guide/schedules.md"]))
    assert {path.name for path in (ROOT / "configs").glob("*.yaml")} - listed == set()


def test_everything_is_in_the_index() -> None:
    assert part(INDEX, "programs") == programs(), "run `python -m tests.reference --write`"
    listed = set(re.findall(r"\]\(([\w/.]+)", TEXTS["examples/README.md"]))
    pages = {name.removeprefix("examples/") for name in TEXTS if name.startswith("examples/")}
    assert pages - listed == {"README.md", "README.zh-CN.md"}


def not_run(words: list[str]) -> bool:
    """Whether a command names what the reader has, or only itself."""
    readers = {"FILE", "KIND", "CLASS", "run.yaml", "--all", "--help", "--print_completion"}
    return (
        bool(readers & {*words})
        or words[0] not in COMMANDS
        or (len(words) == 1 and words[0] not in ("explain", "schema"))
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*")
def test_commands_on_the_pages_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the pages, in one folder."""
    for folder in ("configs", "examples"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-freeze"])
    ran = []
    for line in dict.fromkeys(
        ["lightning-freeze fit --config configs/alternating.yaml", *(line for _, line in commands())]
    ):
        _, *words = shlex.split(line)
        if not not_run(words):
            main(words)
            ran.append(words[0])
    assert {"fit", "plan", "groups", "probe", "report", "explain", "schema"} <= set(ran)


@pytest.mark.slow
def test_consoles_show_what_is_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """But for trailing spaces; ``…`` stands for what follows."""
    monkeypatch.setenv("COLUMNS", "100")
    for name in pages_with("console"):
        for block in blocks(TEXTS[name], "console"):
            command, *shown = block.code.removesuffix("…\n").splitlines()
            main(shlex.split(command)[2:])
            printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
            assert printed[: len(shown)] == shown, f"{name}, line {block.line}"


# --- links


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of the headings of a page."""
    headings = re.findall(
        r"^#{1,6} (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", LINKED)
def test_links_lead_somewhere(name: str) -> None:
    text = re.sub(r"^```.*?^```$", "", LINKED[name], flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = unquote(target).partition("#")
        linked = os.path.normpath(os.path.join(os.path.dirname(name), path)) if path else name
        if linked not in LINKED:
            assert (ROOT / linked).exists() or linked in ("CONTRIBUTING.md", "CHANGELOG.md"), f"{name} → {target}"
        elif anchor:
            assert anchor in anchors(LINKED[linked]), f"{name} → {target}"


def test_a_wrong_anchor_is_found() -> None:
    assert anchors("# What `x` does, and why\n```sh\n# no heading\n```\n## 中文") == {"what-x-does-and-why", "中文"}
