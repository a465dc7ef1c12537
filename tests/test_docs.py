"""What the docstrings and the README show runs."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import lightning_freeze
from lightning_freeze.cli.config import build_schedule
from lightning_freeze.yaml_file import Place

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
MODULES = [m.name for m in pkgutil.walk_packages(lightning_freeze.__path__, "lightning_freeze.")]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


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


def test_the_first_two_commands_install_and_do_the_main_job_and_the_tests() -> None:
    first, second = blocks("bash")[:2]
    for command in (first, second):
        assert "-m venv" in command
        assert "pip install -c constraints.txt -e" in command
    assert first.rstrip().endswith("lightning-freeze fit --config configs/alternating.yaml")
    assert second.rstrip().endswith("pytest")


@pytest.mark.filterwarnings("ignore:.*")  # what Lightning says of a Trainer with default settings on this machine
def test_python_in_the_readme_runs(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    found = blocks("python")
    assert found
    for code in found:
        exec(compile(code, "README.md", "exec"), {})


def test_schedules_in_the_readme_can_be_built() -> None:
    built = []
    for text in blocks("yaml"):
        root = Place(Path("README.md"), "", yaml.compose(text, yaml.SafeLoader))
        built += [build_schedule(place) for place in root.walk() if place.key.rpartition(".")[2] == "schedule"]
    assert [type(schedule).__name__ for schedule in built] == ["Phases", "Every"]


def test_files_that_the_readme_names_are_there() -> None:
    root = Path(__file__).resolve().parents[1]
    named = re.findall(r"\]\((\w[^)]*)\)|`((?:examples|configs)/[\w.]+)`|`(\w+\.yaml)`", README)
    paths = [a or b or f"configs/{c}" for a, b, c in named if not a.startswith("https:")]
    assert len(paths) >= 6
    assert [path for path in paths if not (root / path).exists()] == []


def test_every_configuration_is_in_the_readmes_table() -> None:
    configs = Path(__file__).resolve().parents[1] / "configs"
    listed = set(re.findall(r"`(\w+\.yaml)`", README))
    assert {path.name for path in configs.glob("*.yaml")} - listed == set()
