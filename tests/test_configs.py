"""Every file in ``configs/`` runs, and the run's own report holds what the file promises."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_freeze.cli.main import main
from lightning_freeze.report.records import read_records
from lightning_freeze.report.steps import steps_of

CONFIGS = Path(__file__).parents[1] / "configs"
RUNS = [path for path in sorted(CONFIGS.glob("*.yaml")) if "model" in yaml.safe_load(path.read_text())]
ALONE = [path for path in sorted(CONFIGS.glob("*.yaml")) if path not in RUNS]

BATCHES = 17  # in one epoch; that turns go on over its end is for tests/test_recipes.py
FEW = 3  # in each epoch, where a schedule counts epochs
Step = tuple[int, frozenset[str]]

pytestmark = [
    # what Lightning says of the machine and of short runs, neither of which is a configuration's matter
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    # what the input audit finds in Swin is told as a warning, and looked at below
    pytest.mark.filterwarnings("ignore:.*Swinv2SelfOutput.*"),
    # the GAN has nothing to validate, and the digits come with a part for it
]


def both_every_fifth(steps: list[Step]) -> None:
    expected = [{"weight1", "weight2"} if n % 5 == 0 else {"weight2"} for n in range(BATCHES)]
    assert [groups for _, groups in steps] == expected
    assert Counter(g for _, groups in steps for g in groups)["weight1"] == ceil(BATCHES / 5)


def swin_every_fifth(steps: list[Step]) -> None:
    assert [groups for _, groups in steps] == [{"swin", "head"} if n % 5 == 0 else {"head"} for n in range(BATCHES)]


def in_turn(steps: list[Step]) -> None:
    assert [groups for _, groups in steps] == [{"weight1" if n % 6 == 5 else "weight2"} for n in range(BATCHES)]


def generator_with_every_fifth(steps: list[Step]) -> None:
    """The discriminator, the second optimizer, steps first; the generator goes with the first of every five."""
    expected: list[Step] = []
    for n in range(BATCHES):
        expected += [(1, frozenset({"discriminator"}))] + [(0, frozenset({"generator"}))] * (n % 5 == 0)
    assert steps == expected
    assert sum(groups == {"generator"} for _, groups in steps) == ceil(BATCHES / 5)


def probe_then_rounds(steps: list[Step]) -> None:
    rounds = [*["head"], *["backbone"] * 4] * 10
    alone = ["head"] * BATCHES + rounds
    expected = [{name} for name in alone] + [{"head", "backbone"}] * (2 * BATCHES)
    assert [groups for _, groups in steps] == expected[: len(steps)]
    assert len(steps) > len(alone), "the run ends before the last phase begins"


BLOCKS = [f"blocks/{i}" for i in range(8)]


def sets(steps: list[Step]) -> list[set[str]]:
    return [set(groups) for _, groups in steps]


def by_epoch(*expected: set[str]) -> Callable[[list[Step]], None]:
    """A set for each epoch, of which the last stays."""

    def promise(steps: list[Step]) -> None:
        assert sets(steps) == [groups for groups in expected for _ in range(FEW)]

    return promise


def a_block_for_five(steps: list[Step]) -> None:
    assert sets(steps) == [{BLOCKS[n // 5 % 8]} for n in range(BATCHES)]


def two_blocks_drawn_for_five(steps: list[Step]) -> None:
    found = sets(steps)
    draws = [found[n : n + 5] for n in range(0, len(found), 5)]
    for draw in draws:
        assert draw == [draw[0]] * len(draw)
        assert len(draw[0] & set(BLOCKS)) == 2
        assert "ends" in draw[0]
    assert len({frozenset(draw[0]) for draw in draws}) > 4


def in_stages(steps: list[Step]) -> None:
    found = sets(steps)
    stage = found.index({"head", "upper"})
    assert stage % FEW == 0
    assert 3 <= stage // FEW <= 8, "patience needs three epochs, and max_epochs ends it"
    assert found == [{"head"}] * stage + [{"head", "upper"}] * (len(found) - stage)


def at_two_periods(steps: list[Step]) -> None:
    assert sets(steps) == [
        {"head"} | ({"upper"} if n % 2 == 0 else set()) | ({"lower"} if n % 5 == 0 else set()) for n in range(BATCHES)
    ]


def b_then_a(steps: list[Step]) -> None:
    assert [groups - {"rest"} for groups in sets(steps)] == [{"ab"[n % 2 == 0]} for n in range(BATCHES)]


# What a run keeps to, its epochs, and the batches of each.
PROMISES: dict[str, tuple[Callable[[list[Step]], None], int, int]] = {
    "alternating.yaml": (both_every_fifth, 1, BATCHES),
    "phases.yaml": (in_turn, 1, BATCHES),
    "inputs.yaml": (swin_every_fifth, 1, BATCHES),
    "gan.yaml": (generator_with_every_fifth, 1, BATCHES),
    "probe_then_alternate.yaml": (probe_then_rounds, 5, BATCHES),
    "badam.yaml": (a_block_for_five, 1, BATCHES),
    "lisa.yaml": (two_blocks_drawn_for_five, 1, 2 * BATCHES),
    "gradual_unfreezing.yaml": (by_epoch({"head"}, {"head", *BLOCKS[7:]}, {"head", *BLOCKS[6:]}), 3, FEW),
    "unfreezing_on_plateau.yaml": (in_stages, 9, FEW),
    "progressive_freezing.yaml": (
        by_epoch(*[{*BLOCKS, "stem", "rest"}] * 2, *[{*BLOCKS[n:], "rest"} for n in (1, 2)]),
        4,
        FEW,
    ),
    "probe_then_finetune.yaml": (by_epoch({"head"}, {"head"}, {"head"}, {"head", "body"}), 4, FEW),
    "alternate_epochs.yaml": (by_epoch({"body"}, {"body"}, {"head"}, {"body"}), 4, FEW),
    "two_periods.yaml": (at_two_periods, 1, BATCHES),
    "freeze_norms_embeddings.yaml": (by_epoch({"rest"}, {"rest"}), 2, FEW),
    "lora_in_turn.yaml": (b_then_a, 1, BATCHES),
}


def run(config: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, epochs: int, batches: int) -> list[dict[str, Any]]:
    monkeypatch.setattr(sys, "argv", ["lightning-freeze"])  # LightningCLI warns of others than those it is handed
    monkeypatch.chdir(folder)
    main(
        [
            *("fit", "--config", str(config)),
            *("--trainer.max_epochs", str(epochs), "--trainer.limit_train_batches", str(batches)),
            *("--trainer.limit_val_batches", "1", "--trainer.num_sanity_val_steps", "0"),
            *("--trainer.enable_progress_bar", "false", "--trainer.enable_checkpointing", "false"),
            *(
                "--data.init_args.batch_size",
                "16",
                "--trainer.logger",
                "false",
                "--trainer.default_root_dir",
                str(folder),
            ),
        ]
    )
    return list(read_records(folder / "freeze_runs" / "freeze_audit.jsonl"))


@pytest.mark.parametrize("config", RUNS, ids=lambda path: path.name)
def test_run_does_what_the_config_promises(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert config.name in PROMISES, "a new configuration needs a promise here"
    promise, epochs, batches = PROMISES[config.name]
    records = run(config, tmp_path, monkeypatch, epochs, batches)
    steps = steps_of(records)
    promise(steps)
    counts = [record for record in records if record["type"] == "counts"]
    assert [record["epoch"] for record in counts] == list(range(epochs))
    assert counts[-1]["total"] == len(steps)
    updates = {group: count for group, count in counts[-1]["updates"].items() if count}
    assert updates == Counter(group for _, groups in steps for group in groups)
    assert counts[-1]["intervals"] > 0, "nothing was frozen and compared"
    assert [record for record in records if record["type"] == "finding" and record["severity"] == "error"] == []


def test_the_input_audit_of_a_real_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = run(CONFIGS / "inputs.yaml", tmp_path, monkeypatch, 2, 5)
    found = [record for record in records if record["type"] == "finding" and record["audit"] == "inputs"]
    assert {(record["module_class"], record["argument"], record["kind"]) for record in found} == {
        ("Swinv2SelfOutput", "input_tensor", "unused")
    }
    blocks = {f"model.swinv2.encoder.layers.{i}.blocks.{j}.attention.output" for i in (0, 1) for j in (0, 1)}
    assert {record["module"] for record in found} == blocks
    assert len(found) == len(blocks), "each is recorded once, in the first epoch"
    assert all(record["confirmed"] and record["epoch"] == 0 and record["calls"] == [0, 4] for record in found)


def test_every_promise_has_its_config() -> None:
    assert set(PROMISES) == {path.name for path in RUNS}


@pytest.mark.parametrize("schedule", ALONE, ids=lambda path: path.name)
def test_schedule_file_is_named_by_a_config(schedule: Path) -> None:
    named = [
        callback["init_args"].get("schedule")
        for path in RUNS
        for callback in yaml.safe_load(path.read_text())["trainer"]["callbacks"]
    ]
    assert schedule.name in named
