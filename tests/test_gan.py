"""A GAN in manual optimization: one generator update for five of the discriminator, in both orders of stepping."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lightning_freeze import Every, FreezeController, FreezeScheduler, Phase, Phases
from lightning_freeze.report.records import read_records
from lightning_freeze.report.steps import steps_of
from tests.conftest import batches

STEPS = 23
SCHEDULES = {
    "every": lambda: Every({"generator": 5}, of="discriminator"),
    "phases": lambda: Phases([Phase(["discriminator"], updates=5), Phase(["generator"], updates=1)], repeat=True),
}


class GAN(pl.LightningModule):
    """Steps its optimizers in the order given; an empty order steps none."""

    def __init__(self, order: tuple[int, ...], raw: bool = False) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.order = order
        self.raw = raw
        self.generator = nn.Linear(4, 4)
        self.discriminator = nn.Linear(4, 1)
        self.moved: list[tuple[bool, bool]] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        before = [p.detach().clone() for p in (self.generator.weight, self.discriminator.weight)]
        for index in self.order:
            optimizer = self.optimizers(use_pl_optimizer=not self.raw)[index]  # type: ignore[index]
            optimizer.zero_grad()
            fake = self.generator(batch[0])
            score = self.discriminator(fake if index == 0 else torch.cat([batch[0], fake.detach()])).mean()
            self.manual_backward(-score if index == 0 else score)
            optimizer.step()
        after = (self.generator.weight, self.discriminator.weight)
        moved = [not torch.equal(old, new) for old, new in zip(before, after, strict=True)]
        self.moved.append((moved[0], moved[1]))

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [
            torch.optim.Adam(self.generator.parameters(), lr=0.01),
            torch.optim.Adam(self.discriminator.parameters(), lr=0.01),
        ]


@pytest.mark.parametrize("raw", [False, True], ids=["lightning", "raw"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["generator first", "discriminator first"])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_one_generator_update_for_five(kind: str, order: tuple[int, ...], raw: bool, trainer: Any) -> None:
    scheduler, model = FreezeScheduler(SCHEDULES[kind]()), GAN(order, raw)
    fit = trainer(scheduler)
    fit.fit(model, batches(STEPS))
    steps = [next(iter(groups)) for _, groups in steps_of(read_records(fit_records(fit)))]
    of_discriminator = steps.count("discriminator")
    of_generator = [steps[:n].count("discriminator") for n, group in enumerate(steps) if group == "generator"]
    # Under `Every` the generator goes with the first of each five, under phases it follows them.
    apart = [after - before for before, after in pairwise(of_generator)]
    assert len(apart) >= 3
    assert apart == [5] * len(apart)
    assert of_discriminator == scheduler.updates["discriminator"] == sum(moved for _, moved in model.moved)
    assert len(of_generator) == scheduler.updates["generator"] == sum(moved for moved, _ in model.moved)
    if kind == "every":
        assert of_discriminator == STEPS
        assert len(of_generator) == -(-STEPS // 5)
    assert scheduler.findings == []


def fit_records(fit: pl.Trainer) -> Any:
    from pathlib import Path

    return Path(fit.default_root_dir) / "freeze_runs" / "freeze_audit.jsonl"


@pytest.mark.parametrize(
    ("kind", "steps", "stalled"), [("every", (0,), "1"), ("phases", (0,), "1"), ("phases", (1,), "0")]
)
@pytest.mark.filterwarnings("ignore:optimizer . .Adam., which holds:UserWarning")  # what is asserted on
def test_a_stalled_optimizer_is_found(kind: str, steps: tuple[int, ...], stalled: str, trainer: Any) -> None:
    scheduler = FreezeScheduler(SCHEDULES[kind]())
    trainer(scheduler).fit(GAN(steps), batches(12))
    found = [finding for finding in scheduler.findings if finding.kind == "stalled"]
    assert len(found) == 1
    assert found[0].message.startswith(f"optimizer {stalled} (Adam), which holds")
    assert "never stepped in epoch 0" in found[0].message


def test_the_other_network_keeps_every_bit_while_one_trains_alone(trainer: Any) -> None:
    model = GAN((1, 0))
    trainer(FreezeScheduler(SCHEDULES["phases"]())).fit(model, batches(12))
    # Five of the discriminator, the generator in the batch of the fifth, and again.
    assert [moved for moved, _ in model.moved] == ([False] * 4 + [True]) * 2 + [False] * 2
    assert [moved for _, moved in model.moved] == [True] * 12


class ManyUpdatesInOneBatch(GAN):
    """Five discriminator steps in each batch, then one of the generator."""

    def __init__(self) -> None:
        super().__init__((1, 1, 1, 1, 1, 1, 1, 0))


@pytest.mark.parametrize("kind", SCHEDULES)
def test_more_steps_in_a_batch_than_the_phase_has(kind: str, trainer: Any) -> None:
    """Seven are asked for, five are made: the optimizer that has made its share waits, frozen."""
    scheduler = FreezeScheduler(SCHEDULES[kind]())
    trainer(scheduler).fit(ManyUpdatesInOneBatch(), batches(4))
    if kind == "phases":
        assert scheduler.updates == {"generator": 4, "discriminator": 20}
    else:  # 28 of the discriminator; the generator is asked four times and is due each time
        assert scheduler.updates == {"generator": 4, "discriminator": 28}
    assert [f for f in scheduler.findings if f.severity == "error"] == []


class ClipsByHand(GAN):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        super().training_step(batch, batch_idx)
        self.clip_gradients(self.optimizers()[0], gradient_clip_val=1.0)  # type: ignore[index,arg-type]


def test_clipping_by_hand_is_warned_about_once(trainer: Any) -> None:
    with pytest.warns(UserWarning, match=r"ClipsByHand.training_step clips gradients itself.*will_train") as caught:
        trainer(FreezeScheduler(SCHEDULES["every"]())).fit(ClipsByHand((1, 0)), batches(3))
    assert len([w for w in caught if "clips gradients" in str(w.message)]) == 1


CRITIC = (Phase(["critic"], updates=1), Phase(["critic"], updates=2))
BOTH, ACTOR = Phase(["critic", "actor"], updates=1), Phase(["actor"], updates=1)


class ActorCritic:
    """A plain loop in which the critic steps first, so many times in each batch, and then the actor."""

    def __init__(self, phases: list[Any], change: Any, inner: int = 1) -> None:
        torch.manual_seed(0)
        self.model = nn.ModuleDict({"actor": nn.Linear(2, 2), "critic": nn.Linear(2, 1)})
        self.optimizers = {name: torch.optim.Adam(part.parameters(), lr=0.01) for name, part in self.model.items()}
        self.order = ["critic"] * inner + ["actor"]
        self.controller = FreezeController(self.model, Phases(phases, repeat=True, change=change))
        self.controller.attach(*self.optimizers.values())

    def batch(self) -> str:
        """One batch; the initial of each that moved."""
        moved = ""
        self.controller.begin_step()
        for name in self.order:
            before = self.model[name].weight.detach().clone()
            self.optimizers[name].zero_grad()
            self.model["critic"](self.model["actor"](torch.ones(3, 2))).sum().backward()
            self.optimizers[name].step()
            moved += name[0] * (not torch.equal(before, self.model[name].weight))
        return moved


@pytest.mark.parametrize(
    ("phases", "change", "inner", "expected"),
    [
        ([CRITIC[0], BOTH], "step", 1, "ca c ca c ca c"),
        ([CRITIC[0], BOTH], None, 1, "ca c ca c ca c"),
        ([CRITIC[0], BOTH], "batch", 1, "c ca c ca c ca"),
        ([CRITIC[1], BOTH], "batch", 1, "c c ca c c ca"),
        ([CRITIC[1], ACTOR], "step", 1, "c ca c ca c ca"),
        ([CRITIC[1], ACTOR], "batch", 1, "c c a c c a"),
        ([CRITIC[1], ACTOR], "step", 2, "cca cca cca cca cca cca"),
        ([CRITIC[1], ACTOR], "batch", 2, "cc a cc a cc a"),
        ([CRITIC[0], ACTOR], "batch", 2, "cc a cc a cc a"),
    ],
)
def test_what_trains_changes_after_a_step_or_a_batch(phases: list[Any], change: Any, inner: int, expected: str) -> None:
    for saved in (None, 1, 2, 3):
        run, rows = ActorCritic(phases, change, inner), []
        run.controller.begin()
        for number in range(6):
            if number == saved:
                state = run.controller.state_dict()
                run.controller.attach(*run.optimizers.values())
                run.controller.begin(state=state)
            rows.append(run.batch())
        assert " ".join(rows) == expected
        assert run.controller.updates == {"critic": expected.count("c"), "actor": expected.count("a")}
        assert run.controller.end_epoch() == run.controller.finish() == []
        run.controller.detach()


def test_by_batch_a_pause_and_an_epochs_end_know_what_trains_next() -> None:
    run = ActorCritic([CRITIC[0], ACTOR], "batch")
    run.controller.begin()
    run.batch()
    assert run.controller.trainable == {"critic"}
    run.controller.pause()
    assert run.controller.trainable == {"actor"}
    run.batch()
    run.controller.end_epoch()
    assert run.controller.trainable == {"critic"}
    run.controller.detach()
