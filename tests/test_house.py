"""The plan of the house: imports go one way, and importing the package loads nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_freeze

ROOT = Path(lightning_freeze.__file__).parent
ROOMS = ["plan", "gate", "witness", "report"]
KERNEL = "witness/fingerprint_triton.py"
KNOWN = {
    "report/findings.py": set(),
    KERNEL: set(),
    "witness/fingerprint.py": {KERNEL},
}  # of those that know nobody else


def imports_of(file: Path) -> set[str]:
    """The modules of this package that a file imports, as paths below it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            if name.startswith("lightning_freeze"):
                found.add(name.removeprefix("lightning_freeze").lstrip(".").replace(".", "/") + ".py")
    return found


def knows_torch_or_lightning(file: Path) -> set[str]:
    text = ast.parse(file.read_text(encoding="utf-8"))
    roots = {
        (name or "").partition(".")[0]
        for node in ast.walk(text)
        for name in (
            [node.module]
            if isinstance(node, ast.ImportFrom)
            else [a.name for a in getattr(node, "names", [])]
            if isinstance(node, ast.Import)
            else []
        )
    }
    return roots & {"torch", "pytorch_lightning", "lightning"}


FILES = {str(path.relative_to(ROOT)): path for path in sorted(ROOT.rglob("*.py"))}


@pytest.mark.parametrize("name", FILES)
def test_a_room_knows_no_later_room_but_findings(name: str) -> None:
    room = name.partition("/")[0]
    known = imports_of(FILES[name])
    if name in KNOWN:
        assert known == KNOWN[name]
    elif room in ROOMS:
        later = ROOMS[ROOMS.index(room) + 1 :]
        assert {k for k in known if k.partition("/")[0] in later and k != "report/findings.py"} == set()
        assert not known & {"controller.py", "callbacks.py", "cli.py", "_lightning.py", "demos.py"}
    elif name == "controller.py":
        assert not known & {"callbacks.py", "cli.py", "commands.py", "forecast.py", "_lightning.py", "demos.py"}


@pytest.mark.parametrize("name", [n for n in FILES if n.partition("/")[0] in ROOMS or n == "controller.py"])
def test_nothing_below_the_callbacks_knows_lightning(name: str) -> None:
    assert knows_torch_or_lightning(FILES[name]) <= {"torch"}


@pytest.mark.parametrize("name", ["schedule", "every", "pick", "until", "phase", "phases", "preview"])
def test_schedules_know_no_torch(name: str) -> None:
    assert knows_torch_or_lightning(FILES[f"plan/{name}.py"]) == set()


def test_the_test_of_imports_can_fail(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("from lightning_freeze.callbacks import X\nimport torch.nn\n")
    assert imports_of(bad) == {"callbacks.py"}
    assert knows_torch_or_lightning(bad) == {"torch"}


def loaded_after(code: str) -> set[str]:
    program = f"{code}\nimport sys; print(' '.join(m for m in sys.modules))"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(out.stdout.split())


def test_importing_the_package_loads_neither_torch_nor_lightning() -> None:
    assert not loaded_after("import lightning_freeze") & {"torch", "pytorch_lightning", "lightning"}


def test_schedules_can_be_used_without_torch() -> None:
    assert "torch" not in loaded_after(
        "from lightning_freeze import Every, Phases, Phase, Pick, Until, Schedule, ScheduleError"
    )


def test_every_public_name_is_there_and_documented() -> None:
    for name in lightning_freeze.__all__:
        value = getattr(lightning_freeze, name)
        assert value.__doc__, name
    assert set(lightning_freeze.__all__) <= set(dir(lightning_freeze))
    with pytest.raises(AttributeError, match="has no attribute 'Evry'"):
        _ = lightning_freeze.Evry  # type: ignore[attr-defined]
