"""The layout of the package: imports go one way, and importing the package loads nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_freeze

ROOT = Path(lightning_freeze.__file__).parent
FILES = {str(path.relative_to(ROOT)): path for path in sorted(ROOT.rglob("*.py"))}
ORDER = ["errors.py", "yaml_file.py", "plan", "holds", "probe", "audit", "checkpoint.py", "loop.py", "setup.py"]
ORDER += ["attachment.py", "controller.py", "trainer", "cli"]
"""Each imports what stands before it, and itself."""
BESIDE = {"report": {"errors.py", "yaml_file.py", "plan", "report"}, "inputs": {"inputs"}}
"""What stands beside that row: `report` from `audit` upwards may be imported, `inputs` from `trainer` upwards."""
FIRST_USER = {"report": "audit", "inputs": "trainer"}
EVERYBODYS = "report/findings.py"
DEMOS = "demos.py"  # of the command line and of examples alone


def imports_of(file: Path) -> set[str]:
    """The files of this package that a file imports, as paths below it; also those that are not there."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            inside = file.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = ".".join([*(["lightning_freeze", *inside] if node.level else []), *filter(None, [node.module])])
            names = [f"{module}.{alias.name}" for alias in node.names]
            names = [name if path_of(name) in FILES else module for name in names]
        else:
            continue
        found |= {path_of(name) for name in names if name.partition(".")[0] == "lightning_freeze"}
    return found


def path_of(module: str) -> str:
    """Where a module is, below the package."""
    path = module.removeprefix("lightning_freeze").lstrip(".").replace(".", "/")
    packages = (f"{path}/__init__.py", "__init__.py" if not path else "")
    return next((name for name in packages if name in FILES), f"{path}.py")


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


def part(name: str) -> str:
    """The subpackage of a file, or the file itself at the top."""
    return name.partition("/")[0]


def may_import(name: str, other: str) -> bool:
    """Whether a file may import another."""
    mine, theirs = part(name), part(other)
    if other == EVERYBODYS or mine in ("__init__.py", DEMOS):
        return True
    if mine == "cli" and other in ("__init__.py", DEMOS):
        return True
    if mine in BESIDE:
        return theirs in BESIDE[mine]
    if theirs in FIRST_USER:
        return ORDER.index(mine) >= ORDER.index(FIRST_USER[theirs])
    return theirs in ORDER and ORDER.index(theirs) <= ORDER.index(mine)


@pytest.mark.parametrize("name", FILES)
def test_imports_go_one_way(name: str) -> None:
    files = [
        other if other in FILES else f"{other.removesuffix('.py')}/__init__.py" for other in imports_of(FILES[name])
    ]
    assert [other for other in files if not may_import(name, other)] == []


def test_there_is_no_circle() -> None:
    graph = {name: imports_of(path) & FILES.keys() for name, path in FILES.items() if name != "__init__.py"}
    while leaves := {name for name, known in graph.items() if not known & graph.keys() - {name}}:
        graph = {name: known for name, known in graph.items() if name not in leaves}
    assert graph == {}


MAY_NAME_PARAM_GROUPS = {
    "cli/probe_table.py": "measures an optimizer of its own, without a model",
    "trainer/fsdp2_checkpoints.py": "fills in state that a sharded checkpoint lacks",
}


def names_of(file: Path) -> set[str]:
    """The attributes and words that code names, without docstrings and comments."""
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def test_who_holds_what_is_asked_in_one_place() -> None:
    """`plan/membership.py` knows the param groups; holds change them for a step, and the probe makes its own."""
    found = {name for name, path in FILES.items() if "param_groups" in names_of(path)}
    others = {name for name in found if part(name) not in ("holds", "probe") and name != "plan/membership.py"}
    assert others == MAY_NAME_PARAM_GROUPS.keys()


def test_the_controller_names_no_hold() -> None:
    holds = {path.removeprefix("holds/") for path in FILES if path.startswith("holds/")}
    allowed = {
        "hold.py",
        "run_context.py",
        "skip_decision.py",
        "optimizer_state.py",
    }  # the protocol, and words of options
    known = {name.removeprefix("holds/") for name in imports_of(FILES["controller.py"]) if name.startswith("holds/")}
    assert known <= allowed
    assert known <= holds


def test_there_are_few_files_at_the_top() -> None:
    assert len([name for name in FILES if "/" not in name]) <= 9


@pytest.mark.parametrize("name", [n for n in FILES if part(n) not in ("trainer", "cli", DEMOS, "__init__.py")])
def test_nothing_below_the_trainer_knows_lightning(name: str) -> None:
    assert knows_torch_or_lightning(FILES[name]) <= {"torch"}


@pytest.mark.parametrize("name", ["schedule", "every", "pick", "until", "phase", "phases", "preview"])
def test_schedules_know_no_torch(name: str) -> None:
    assert knows_torch_or_lightning(FILES[f"plan/{name}.py"]) == set()


def test_the_test_of_imports_can_fail(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("from lightning_freeze.trainer.base import X\nimport torch.nn\n")
    assert imports_of(bad) == {"trainer/base.py"}
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
