"""Fits whose model, blocks or optimizer step is compiled: what is frozen holds, counts are right, graphs are few."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.utils.data import DataLoader, TensorDataset

from lightning_freeze import AlternatingFreeze, FreezeAudit, FreezeScheduler, Phase, Phases, Pick
from lightning_freeze.holds.skip_decision import Decision
from lightning_freeze.plan.selectors import clean_name
from tests.conftest import Net
from tests.observer import same

# Where a compiled block gets what another has computed, torch looks at its `.grad`, and hides its own warning of that from
# all but those to whom warnings are errors.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


class Graphs:
    """A backend that runs what it is given as it is, and counts: what was compiled, and how often a graph ran."""

    def __init__(self) -> None:
        self.compiled = self.runs = 0

    def __call__(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        self.compiled += 1

        def run(*args: Any) -> Any:
            self.runs += 1
            return graph.forward(*args)

        return run


LIMIT = 5
"""Of graphs, lower than torch's own, so that less is compiled here until it is reached."""


@pytest.fixture(autouse=True)
def graphs() -> Iterator[Graphs]:
    """Nothing is compiled yet, and nothing is left compiled."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=LIMIT):
        yield Graphs()
    torch._dynamo.reset()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x))


class Deep(Net):
    """Blocks in a row, of which one trains at a time; ``when`` is the hook in which ``how`` compiles."""

    def __init__(self, how: Any = None, when: str = "", count: int = 3) -> None:
        super().__init__()
        self.how, self.when = how, when
        self.blocks = nn.ModuleList(Block() for _ in range(count))
        self._compile_in("__init__")

    def _compile_in(self, hook: str) -> None:
        if self.when == hook:
            self.how(self)

    def configure_model(self) -> None:
        self._compile_in("configure_model")

    def setup(self, stage: str) -> None:
        self._compile_in("setup")

    def on_fit_start(self) -> None:
        self._compile_in("on_fit_start")

    def on_train_start(self) -> None:
        self._compile_in("on_train_start")

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return super().forward(x)


class Validated(Deep):
    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self(batch[0])


def rows(count: int) -> DataLoader[Any]:
    """So many rows in batches of four, of which the last may be smaller."""
    made = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(count, 4, generator=made), torch.randn(count, 3, generator=made)), 4)


def one_block_at_a_time(skip: Any, **options: Any) -> FreezeScheduler:
    row = Phases([Phase([], updates=1, pick=Pick("blocks", order="forward"))], repeat=True)
    options = {"rest": "freeze", "audit": FreezeAudit(inputs=False), **options}
    return FreezeScheduler(row, {"blocks": {"each": "blocks.*"}}, skip_backward=skip, **options)


class Held(pl.Callback):
    """Which parameters each batch has changed, beside those that were to train, and how much was compiled by then."""

    def __init__(self, scheduler: FreezeScheduler, graphs: Graphs | None = None) -> None:
        self.scheduler, self.graphs = scheduler, graphs
        self.changed: list[set[str]] = []
        self.planned: list[set[str]] = []
        self.compiled: list[int] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        assert self.scheduler.controller is not None
        names = self.scheduler.controller.groups.names()
        self.planned.append({name for group in self.scheduler.trainable for name in names.get(group, ())})
        self._before = {name: parameter.detach().clone() for name, parameter in pl_module.named_parameters()}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        now = dict(pl_module.named_parameters())
        self.changed.append({clean_name(n) for n, old in self._before.items() if not torch.equal(old, now[n])})
        self.compiled.append(self.graphs.compiled if self.graphs is not None else 0)


def weights(model: Any) -> dict[str, Tensor]:
    return {clean_name(name): parameter.detach() for name, parameter in model.named_parameters()}


def fitted(
    trainer: Any, model: Any, scheduler: FreezeScheduler, data: Any, graphs: Any = None, *more: Any, **options: Any
) -> Held:
    """Fit, and see that just what is planned moves in each batch."""
    held = Held(scheduler, graphs)
    trainer(scheduler, held, **options).fit(model, data, *more)
    assert held.changed == held.planned
    return held


def whole(graphs: Graphs) -> Any:
    return lambda model: model.compile(backend=graphs)


def in_place(graphs: Graphs) -> Any:
    return lambda model: [block.compile(backend=graphs) for block in model.blocks]


def wrapped(graphs: Graphs) -> Any:
    def how(model: Any) -> None:
        for place, block in enumerate(model.blocks):
            if isinstance(block, Block):  # Lightning calls some hooks twice
                model.blocks[place] = torch.compile(block, backend=graphs)  # type: ignore[call-overload]

    return how


PLACES: Any = {
    "blocks wrapped in __init__": (wrapped, "__init__"),
    "blocks in place in __init__": (in_place, "__init__"),
    "whole in __init__": (whole, "__init__"),
    "blocks wrapped in configure_model": (wrapped, "configure_model"),
    "whole in setup": (whole, "setup"),
    "blocks in place in on_fit_start": (in_place, "on_fit_start"),
    "whole in on_train_start": (whole, "on_train_start"),
    "blocks wrapped in on_train_start": (wrapped, "on_train_start"),
    "whole before fit": (None, ""),
}


def places() -> Iterator[Any]:
    """Every place, skipped under and not; one of the two for each place is not slow."""
    for number, place in enumerate(PLACES):
        for skip in ("auto", False):
            marks = () if (skip == "auto") == (number % 2 == 0) else pytest.mark.slow
            yield pytest.param(place, skip, marks=marks, id=f"{place}-{skip}")


@pytest.mark.parametrize(("place", "skip"), list(places()))
def test_wherever_a_model_is_compiled_each_bit_is_that_of_an_uncompiled_run(
    place: str, skip: Any, graphs: Graphs, trainer: Any
) -> None:
    """Three sets, two rounds: one graph for each set where backward is skipped, and never a second one where it is not."""
    expected, reference = Deep(), one_block_at_a_time(False)
    fitted(trainer, expected, reference, rows(24))
    how, when = PLACES[place]
    model: Any = Deep(how and how(graphs), when)
    scheduler = one_block_at_a_time(skip)
    given = torch.compile(model, backend=graphs) if how is None else model
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=8):
        held = fitted(trainer, given, scheduler, rows(24), graphs)
    assert same(weights(model), weights(expected))
    assert scheduler.updates == {"blocks/0": 2, "blocks/1": 2, "blocks/2": 2}
    assert scheduler.controller is not None
    assert reference.controller is not None
    assert scheduler.controller.groups.names() == reference.controller.groups.names()
    assert scheduler.controller.backward.skips == (skip == "auto")
    assert graphs.runs >= 6, "nothing was compiled"
    if skip is False:
        assert set(held.compiled) == {held.compiled[0]}
    else:
        # Blocks share: frozen below, training, frozen above.
        assert held.compiled[-1] == 3


@pytest.mark.parametrize(("count", "skips"), [(LIMIT - 2, True), (LIMIT - 1, False)])
def test_auto_keeps_within_the_limit(count: int, skips: bool, graphs: Graphs, trainer: Any) -> None:
    """With a validation whose last batch is smaller; at the limit torch would fail here, as the next test shows."""
    model, scheduler = Validated(whole(graphs), "setup", count), one_block_at_a_time("auto")
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        fitted(trainer, model, scheduler, rows(4 * (count + 2)), graphs, rows(6), max_epochs=2)
    assert scheduler.controller is not None
    assert scheduler.controller.backward.skips == skips
    assert graphs.compiled == (count if skips else 1) + 2


def test_skipping_all_the_same_would_pass_the_limit(graphs: Graphs, trainer: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("lightning_freeze.setup.choose", lambda *_: Decision(True, "not asked"))
    model, scheduler = Deep(whole(graphs), "setup", 4), one_block_at_a_time("auto")
    with (
        torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=3),
        pytest.raises(FailOnRecompileLimitHit),
    ):
        fitted(trainer, model, scheduler, rows(4 * 4), graphs)


def test_raising_the_limit_skips_more_sets(graphs: Graphs, trainer: Any) -> None:
    model, scheduler = Deep(whole(graphs), "setup", LIMIT), one_block_at_a_time(True)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=LIMIT + 2):
        fitted(trainer, model, scheduler, rows(4 * (LIMIT + 2)), graphs)
    assert graphs.compiled == LIMIT


def test_what_is_compiled_after_the_fit_began_is_counted_before_the_first_step(graphs: Graphs, trainer: Any) -> None:
    count = LIMIT + 2
    expected, model = Deep(count=count), Deep(whole(graphs), "on_train_start", count)
    fitted(trainer, expected, one_block_at_a_time(False), rows(4 * count))
    scheduler = one_block_at_a_time("auto")
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        held = fitted(trainer, model, scheduler, rows(4 * count), graphs)
    assert not scheduler.controller.backward.skips  # type: ignore[union-attr]
    assert max(held.compiled) == 1
    assert same(weights(model), weights(expected))


@pytest.mark.parametrize(("limit", "skips"), [(8, True), (7, False)])
def test_a_smaller_last_batch_is_counted_with_each_set(limit: int, skips: bool, graphs: Graphs, trainer: Any) -> None:
    """It comes with another of three sets in each epoch: twice the graphs, and two for validation."""
    count, data, epochs = 3, rows(4 * 3 + 2), 4
    expected = Deep(count=count)
    fitted(trainer, expected, one_block_at_a_time(False), data, max_epochs=epochs)
    model, scheduler = Deep(whole(graphs), "setup", count), one_block_at_a_time("auto")
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=limit):
        fitted(trainer, model, scheduler, data, graphs, max_epochs=epochs)
    assert scheduler.controller.backward.skips == skips  # type: ignore[union-attr]
    assert same(weights(model), weights(expected))
    if not skips:
        assert "for each batch size" in scheduler.controller.backward.why  # type: ignore[union-attr]
        assert "drop_last=True" in scheduler.controller.backward.why  # type: ignore[union-attr]


def test_past_the_limit_training_is_right_all_the_same(graphs: Graphs, trainer: Any, monkeypatch: Any) -> None:
    """Batches that `auto` could not see to be uneven: torch runs what is new to it uncompiled."""
    monkeypatch.setattr("lightning_freeze.trainer.seam.batch_sizes_vary", lambda trainer: False)
    data, epochs = rows(4 * 6 + 2), 4
    expected = Deep(count=LIMIT - 2)
    fitted(trainer, expected, one_block_at_a_time(False), data, max_epochs=epochs)
    model = Deep(whole(graphs), "setup", LIMIT - 2)
    held = fitted(trainer, model, one_block_at_a_time("auto"), data, graphs, max_epochs=epochs)
    assert same(weights(model), weights(expected))
    assert max(held.compiled) == LIMIT
    assert graphs.runs > len(held.compiled) / 2, "what was compiled before is used no more"


class ByHand(Net):
    """Steps its optimizer itself, by a function that may be compiled."""

    def __init__(self, make: Any = None, count: int = 0) -> None:
        super().__init__(make)
        self.automatic_optimization = False
        self.blocks = nn.ModuleList(Block() for _ in range(count))
        self.compile_step: Any = lambda step: step

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return super().forward(x)

    def on_train_start(self) -> None:
        self.step = self.compile_step(self.optimizers(use_pl_optimizer=False).step)  # type: ignore[union-attr]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        nn.functional.mse_loss(self(batch[0]), batch[1]).backward()
        self.step()


def close(model: Any, expected: Any) -> None:
    """A compiled step may round otherwise: by some units in the last place of weights around one."""
    for name, weight in weights(expected).items():
        torch.testing.assert_close(weights(model)[name], weight, rtol=0, atol=1e-5)


def slow_and_fast(skip: Any = "auto", **options: Any) -> FreezeScheduler:
    row = Phases([Phase(["all"], updates=1), Phase(["layer2"], updates=2)], repeat=True)
    return FreezeScheduler(row, {"layer1": "layer1", "layer2": "layer2"}, skip_backward=skip, **options)


@pytest.mark.parametrize(
    ("how", "skip", "state"),
    [("step", True, "keep"), ("step", False, "keep"), ("function", False, "keep"), ("step", True, "reset")],
)
def test_a_compiled_step_holds_what_is_frozen(how: str, skip: bool, state: Any, graphs: Graphs, trainer: Any) -> None:
    """One graph for each set of gradients; state that is dropped is new to torch each time."""
    expected, model = ByHand(), ByHand()
    fitted(trainer, expected, slow_and_fast(False, optimizer_state=state), rows(36))
    if how == "step":
        model.compile_step = lambda step: torch.compile(step, backend=graphs)
    else:
        model.compile_step = lambda step: torch.compile(lambda: step(), backend=graphs)
    scheduler = slow_and_fast(skip, optimizer_state=state)
    fitted(trainer, model, scheduler, rows(36), graphs)
    assert scheduler.updates == {"layer1": 3, "layer2": 9}
    close(model, expected)
    if state == "keep":
        assert (graphs.compiled, graphs.runs) == (2, 9)


def test_a_compiled_step_with_its_closure_soon_needs_no_more_graphs(graphs: Graphs, trainer: Any) -> None:
    """Lightning's own loop, whose step runs training_step and backward; what our hooks count is not compiled with it."""

    def compiled(model: nn.Module) -> Any:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        optimizer.step = torch.compile(optimizer.step, backend=graphs)  # type: ignore[method-assign]
        return optimizer

    expected, model, scheduler = Net(), Net(compiled), AlternatingFreeze("layer1", "layer2", every=3)
    fitted(trainer, expected, AlternatingFreeze("layer1", "layer2", every=3), rows(36))
    with torch._dynamo.config.patch(recompile_limit=8):  # so that it is not the limit that ends it
        held = fitted(trainer, model, scheduler, rows(36), graphs)
    assert scheduler.updates == {"slow": 3, "fast": 9}
    close(model, expected)
    assert held.compiled[0] > 0
    assert set(held.compiled[3:]) == {held.compiled[-1]}, held.compiled


def test_a_compiled_step_with_more_sets_than_graphs_is_right(graphs: Graphs, trainer: Any) -> None:
    def sgd(model: nn.Module) -> Any:
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    expected, model = ByHand(sgd, LIMIT + 2), ByHand(sgd, LIMIT + 2)
    model.compile_step = lambda step: torch.compile(step, backend=graphs)
    fitted(trainer, expected, one_block_at_a_time(False), rows(4 * (LIMIT + 4)))
    scheduler = one_block_at_a_time(False)
    fitted(trainer, model, scheduler, rows(4 * (LIMIT + 4)), graphs)
    assert scheduler.updates == {f"blocks/{n}": 1 + (n < 2) for n in range(LIMIT + 2)}
    assert 2 < graphs.compiled <= LIMIT
    close(model, expected)
