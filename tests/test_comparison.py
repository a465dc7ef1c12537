"""The comparison counts what the schedules say, and tells of every seed. Which way is better, or faster, is not tested."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lightning_freeze.demos import DigitsMixer

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
pytestmark = pytest.mark.slow  # it measures

PROGRAM = Path(__file__).parents[1] / "examples" / "comparison.py"
EPOCHS, BATCHES = 2, 6
STEPS = EPOCHS * BATCHES
SIZES = {name: parameter.numel() for name, parameter in DigitsMixer().named_parameters()}
ALL = sum(SIZES.values())
BLOCKS = range(8)


def block(number: int) -> int:
    return sum(size for name, size in SIZES.items() if name.startswith(f"blocks.{number}."))


HEAD = sum(size for name, size in SIZES.items() if name.startswith(("norm.", "head.")))
STEM = sum(size for name, size in SIZES.items() if name.startswith(("embed.", "position")))
UPPER, LOWER = sum(map(block, BLOCKS[4:])), STEM + sum(map(block, BLOCKS[:4]))

# What each schedule of `configs/` says of the step of that number, written out by hand.
TRAINED: dict[str, Callable[[int], int]] = {
    "full training": lambda step: ALL,
    "alternating": lambda step: HEAD + UPPER * (step % 2 == 0) + LOWER * (step % 5 == 0),
    "BAdam's cycle": lambda step: block(step // 5 % 8),
    "LISA's draws": lambda step: HEAD + STEM + 2 * block(0),  # whichever two: they are of one size
    "gradual unfreezing": lambda step: HEAD + sum(map(block, BLOCKS[8 - step // BATCHES :])),
}


@pytest.fixture(scope="module")
def program() -> ModuleType:
    specification = importlib.util.spec_from_file_location("comparison_example", PROGRAM)
    program = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = program  # dataclasses look their module up
    specification.loader.exec_module(program)
    return program


@pytest.fixture(scope="module")
def run(program: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list[Any]], Path]:
    """The program, run once: what it measured, and the folder that it wrote to."""
    folder = tmp_path_factory.mktemp("comparison")
    options = {"--seeds": 1, "--epochs": EPOCHS, "--batches": BATCHES, "--out": folder}
    return program.main([str(word) for option in options.items() for word in option]), folder


def test_the_parts_written_out_here_are_the_whole() -> None:
    assert HEAD + UPPER + LOWER == ALL
    assert {block(number) for number in BLOCKS} == {block(0)}


def test_every_way_ran(run) -> None:
    results, _ = run
    assert list(results) == list(TRAINED)
    for runs in results.values():
        (one,) = runs
        assert one.steps == len(one.seconds) == len(one.trained) == STEPS
        assert len(one.accuracy) == EPOCHS
        assert all(
            0 <= accuracy <= 1 and math.isclose(accuracy * 359 % 1, 0, abs_tol=1e-9) for accuracy in one.accuracy
        )
        assert one.elements == ALL


@pytest.mark.parametrize("way", TRAINED)
def test_what_trained_is_what_the_schedule_says(run, way: str) -> None:
    results, _ = run
    (one,) = results[way]
    said = [TRAINED[way](step) for step in range(STEPS)]
    assert one.trained == said
    assert one.share == sum(said) / (STEPS * ALL)


def adamw_bytes(names: list[str]) -> int:
    """Two averages of four-byte floats for each element, and a count of steps for each parameter."""
    return sum(2 * 4 * SIZES[name] + 4 for name in names)


def test_the_optimizer_state_is_what_a_hand_counts(run) -> None:
    results, _ = run
    assert results["full training"][0].state_bytes == adamw_bytes(list(SIZES))
    last = [name for name in SIZES if name.startswith("blocks.2.")]
    assert results["BAdam's cycle"][0].state_bytes == adamw_bytes(
        last
    )  # 12 updates, five a block; the others' is dropped


def test_the_same_seed_gives_the_same_accuracy_twice(program: ModuleType, run) -> None:
    results, _ = run
    again = program.measure([0], EPOCHS, BATCHES)
    assert {way: one.accuracy for way, (one,) in again.items()} == {
        way: one.accuracy for way, (one,) in results.items()
    }


def test_a_run_that_fails_ends_the_others(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(program.WAYS, "LISA's draws", "nowhere.yaml")
    with pytest.raises(Exception, match=r"nowhere\.yaml"):
        program.measure([0], 10_000, 1)


def test_the_table_has_each_way(program: ModuleType, run) -> None:
    results, _ = run
    table = program.rows(results)
    assert [row[0] for row in table] == list(TRAINED)
    assert all(len(row) == len(program.HEADINGS) and all(row) for row in table)
    assert program.make_table(results).row_count == len(TRAINED)


def fake(program: ModuleType, ends: list[float]) -> list[Any]:
    """Runs of two epochs of one step, which end at these accuracies."""
    return [program.Run(10, [10, 10], [1.0, 2.0], [0.1, end], 100, 2) for end in ends]


def test_the_report_lists_every_seed(program: ModuleType) -> None:
    ends = {way: [0.5 + 0.1 * place + 0.01 * seed for seed in range(3)] for place, way in enumerate(TRAINED)}
    results = {way: fake(program, values) for way, values in ends.items()}
    lines = program.markdown(results, range(3), 2, "the command").splitlines()
    assert "| way | seed 0 | seed 1 | seed 2 |" in lines
    for way, values in ends.items():
        assert f"| {way} | {' | '.join(f'{100 * value:.2f}' for value in values)} |" in lines
        assert any(line.startswith(f"| {way} | {100 * values[1]:.2f} ± 1.00 | ") for line in lines)
    assert any("alternating +10.00 (higher 3)" in line for line in lines)
    assert any(line.startswith("`the command`, once") for line in lines)


def test_the_report_written_names_its_command_and_the_picture(run) -> None:
    _, folder = run
    report = (folder / "comparison.md").read_text(encoding="utf-8")
    assert f"`python examples/comparison.py --seeds 1 --epochs {EPOCHS} --batches {BATCHES}`" in report
    assert "| way | seed 0 |" in report
    assert str(folder) not in report
    assert "](comparison.png)" in report


def test_the_picture_is_there_and_not_blank(run) -> None:
    from matplotlib.image import imread

    _, folder = run
    pixels = imread(folder / "comparison.png")
    assert pixels.shape[:2] == (520, 1100)
    assert (pixels[..., :3] < 0.9).any(axis=-1).mean() > 0.02


def test_no_seed_is_refused(program: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(["--seeds", "0"])
    assert "Give at least 1" in capsys.readouterr().err
