"""Every example runs as it stands, does what its head says, and is short enough to be read."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests import notebook

pytest.importorskip("sklearn")

EXAMPLES = Path(__file__).parents[1] / "examples"
ELSEWHERE = {"comparison", "drift", "inputs", "plain_loop", "fabric_loop"}  # which tests of their own run

pytestmark = pytest.mark.filterwarnings("ignore:.*")  # what Lightning says of Trainers without logger or validation


@pytest.fixture(autouse=True)
def _in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def program(name: str) -> ModuleType:
    """An example, as a module."""
    found = importlib.util.spec_from_file_location(f"{name}_example", EXAMPLES / f"{name}.py")
    assert found is not None
    assert found.loader is not None
    module = sys.modules[found.name] = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def in_turn(result: Any) -> bool:
    updates, _ = result
    return abs(updates["weights"] - updates["architecture"]) <= 1


def backbone(found: Any) -> bool:
    """The backbone trains on in a straight run; resumed, Lightning's callback keeps it frozen, and ours does not."""
    moved = {name: min(by_epoch[2], by_epoch[3]) for name, (by_epoch, _, _) in found.items()}
    none = all(findings == 0 for _, _, findings in found.values())
    counted = (
        found["BackboneFinetuning"][1]["requires_grad=False"],
        found["BackboneFinetuning, resumed"][1]["requires_grad=False"],
    )
    return moved.pop("BackboneFinetuning, resumed") == 0 < min(moved.values()) and none and counted == (30, 0)


def embedding(moved: Any) -> bool:
    return moved["one parameter"] > 0.1 and moved["two parameters, one of them frozen"] == 0


# What it is called with, whether it is slow, and whether what it returns is as its head says.
RUNS: dict[str, tuple[list[str], bool, Callable[[Any], bool]]] = {
    "alternating": (["--epochs", "2"], False, lambda result: result[0] == {"slow": 10, "fast": 46} and result[1] > 0.5),
    "gan": (["--epochs", "1"], False, lambda updates: updates == {"generator": 5, "discriminator": 23}),
    "ema_teacher": (
        [],
        True,
        lambda result: "something else wrote to it" in result[0] and min(result[1].values()) > 0.8,
    ),
    "td3": ([], True, lambda result: result[0]["critics"] == 2 * result[0]["actor"] and result[2] > result[1] / 4),
    "darts": ([], True, in_turn),
    "lisa_gpt": ([], True, lambda losses: losses[1] < 3 < losses[0]),
    "unfreezing_vit": ([], True, lambda accuracies: accuracies[1] > 0.5 > accuracies[0]),
    "lora_in_turn": (["--own"], True, lambda result: result[0] == {"a": 115, "b": 115} and result[2] > result[1] + 0.2),
    "resumed_backbone": ([], True, backbone),
    "embedding_decay": ([], True, embedding),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if slow else []) for name, (_, slow, _) in RUNS.items()]
)
def test_an_example_runs_and_does_what_its_head_says(name: str, caplog: pytest.LogCaptureFixture) -> None:
    arguments, _, holds = RUNS[name]
    with caplog.at_level("INFO"):
        assert holds(program(name).main(arguments))
    assert "frozen intervals held, bit for bit" in caplog.text


@pytest.mark.slow
def test_pefts_own_factors_train_in_turn(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("peft")
    updates, before, after = program("lora_in_turn").main([])
    assert updates == {"a": 115, "b": 115}
    assert after > before + 0.2
    assert "PEFT: updates" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("alternating", ["--epochs", "1"]),
        ("gan", ["--epochs", "1"]),
        ("lisa_gpt", ["--steps", "20"]),
        ("unfreezing_vit", []),
    ],
)
def test_an_example_draws_its_picture(name: str, arguments: list[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    program(name).main([*arguments, "--picture", str(tmp_path / "picture.png")])
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_a_condition_can_fail() -> None:
    """A teacher that may move is a finding without its exemption; an embedding without a freeze moves."""
    assert not embedding({"one parameter": 0.7, "two parameters, one of them frozen": 0.7})
    assert not in_turn(({"weights": 20, "architecture": 10}, None))
    assert not backbone(
        {
            name: ({2: 1.0, 3: 1.0}, {"requires_grad=False": 30}, 0)
            for name in ("BackboneFinetuning", "BackboneFinetuning, resumed")
        }
    )


FILES = sorted(EXAMPLES.glob("*.py"))


def test_every_example_is_run() -> None:
    assert {path.stem for path in FILES} == RUNS.keys() | ELSEWHERE


@pytest.mark.parametrize("name", RUNS)
def test_a_head_says_how_to_run_it(name: str) -> None:
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert f"    python examples/{name}.py\n" in text
    assert len(text.splitlines()) <= 135
    commands = re.findall(rf"^    python examples/{name}\.py (.*?)(?: *#.*)?$", text, re.MULTILINE)
    for option in re.findall(r"--\w+", " ".join(commands)):
        assert f'"{option}"' in text


def test_the_page_of_results_names_every_example_and_its_pictures() -> None:
    text = (EXAMPLES / "programs.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\]\(([\w./]+)\)", text))
    assert {f"{name}.py" for name in RUNS} <= named
    assert [path for path in named if not (EXAMPLES / path).exists()] == []
    pictures = {path.name for path in EXAMPLES.glob("*.png")} & {f"{name}.png" for name in RUNS}
    assert pictures <= named
    assert all((EXAMPLES / name).stat().st_size < 80_000 for name in pictures)


# --- the notebook -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_notebook_runs_and_holds_its_own_outputs() -> None:
    stored = notebook.read()
    again = notebook.execute(notebook.read())

    def texts(book: Any) -> list[str]:
        return [
            "".join(o.get("text", []) or o["data"]["text/plain"])
            for cell in notebook.code_cells(book)
            for o in cell["outputs"]
        ]

    assert len(texts(stored)) == 4
    for before, after in zip(texts(stored), texts(again), strict=True):
        assert words(before) == words(after)
    assert "moved between updates 0 and 23" in texts(again)[-1]


def words(text: str) -> list[str]:
    """Without what another processor may round otherwise."""
    return re.sub(r"accuracy [\d.]+", "", text).split()


def test_the_notebook_compiles_and_was_run() -> None:
    cells = notebook.code_cells(notebook.read())
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        compile("".join(cell["source"]), "cell", "exec")
