"""The founding story holds: zeros move a frozen weight, None and lightning-freeze do not, not by one bit."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
pytestmark = pytest.mark.slow  # it measures

PROGRAM = Path(__file__).parents[1] / "examples" / "drift.py"
WAYS = ("zeros", "None", "lightning-freeze")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[str, Any]], Path]:
    """The program, run once over 12 steps: what it measured, and its picture."""
    specification = importlib.util.spec_from_file_location("drift_example", PROGRAM)
    program = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = program  # dataclasses look their module up
    specification.loader.exec_module(program)
    picture = tmp_path_factory.mktemp("drift") / "drift.png"
    return program.main(["--steps", "12", "--out", str(picture)]), picture


MOVED = {"SGD, momentum", "SGD, weight decay", "Adam", "AdamW"}
STOOD = {"SGD", "RMSprop", "Adagrad"}


def test_zeros_move_what_has_momentum_or_decay(run):
    drifts, _ = run
    assert set(drifts) == MOVED | STOOD
    assert all(drifts[name]["zeros"].frozen > 0 for name in MOVED)
    assert all(drifts[name]["zeros"].frozen == 0 for name in STOOD)


def test_zeros_move_the_state_even_where_the_weight_stands(run):
    drifts, _ = run
    assert {name: ways["zeros"].state for name, ways in drifts.items()} == {
        "SGD": set(),
        "SGD, momentum": {"momentum_buffer"},
        "SGD, weight decay": set(),
        "Adam": {"step", "exp_avg", "exp_avg_sq"},
        "AdamW": {"step", "exp_avg", "exp_avg_sq"},
        "RMSprop": {"step", "square_avg"},
        "Adagrad": {"step"},
    }


@pytest.mark.parametrize("way", ["None", "lightning-freeze"])
def test_without_a_gradient_nothing_moves_when_frozen(run, way):
    drifts, _ = run
    assert {name: ways[way].frozen for name, ways in drifts.items()} == dict.fromkeys(drifts, 0.0)
    assert not any(ways[way].state for ways in drifts.values())


def test_every_run_trained_in_its_own_steps(run):
    drifts, _ = run
    assert all(ways[way].trained > 0 for ways in drifts.values() for way in WAYS)


def test_the_callback_equals_the_loop_by_hand(run):
    drifts, _ = run
    for name, ways in drifts.items():
        assert torch.equal(ways["None"].final, ways["lightning-freeze"].final), name


def test_the_picture_is_there_and_not_blank(run):
    from matplotlib.image import imread

    _, picture = run
    pixels = imread(picture)
    assert pixels.shape[:2] == (450, 900)
    assert (pixels[..., :3] < 0.9).any(axis=-1).mean() > 0.02


def test_fewer_than_two_steps_are_refused(capsys):
    program = sys.modules["drift_example"]
    with pytest.raises(SystemExit):
        program.main(["--steps", "1"])
    assert "Give at least 2" in capsys.readouterr().err
