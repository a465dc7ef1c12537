"""Where the backward work of frozen groups can be skipped, and the reason given."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from lightning_freeze import UnsupportedError
from lightning_freeze.holds.run_context import RunContext, compiled
from lightning_freeze.holds.skip_decision import Decision, choose


class Blocks(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.Tanh()) for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class FullyShardedDataParallel(nn.Module):
    """Not FSDP1, but called as it is."""


class Sharded(nn.Parameter):
    """A parameter that says that it is a shard, as a DTensor does."""

    def to_local(self) -> None: ...


def ddp(**options: Any) -> Any:
    """A wrapper as `choose` sees one, without processes."""
    made = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(made)
    made.static_graph = options.get("static_graph", False)
    made.find_unused_parameters = options.get("find_unused_parameters", False)
    return made


MODEL = Blocks(2)
ALONE = RunContext(MODEL, MODEL)
HOOKED = Blocks(1)
next(HOOKED.parameters()).register_post_accumulate_grad_hook(lambda parameter: None)
SETS = [frozenset({"a"}), frozenset({"b"})]


def chosen(asked: Any, run: RunContext) -> Decision:
    return choose(asked, run, SETS, {})


def test_one_process_skips() -> None:
    assert chosen("auto", ALONE) == chosen(True, ALONE) == Decision(True, "there is only one process")
    assert chosen(False, ALONE) == Decision(False, "as asked by `skip_backward: false`")


def test_plain_ddp_is_sent_zeros_and_one_that_looks_for_unused_parameters_is_not() -> None:
    plain, looking = ddp(), ddp(find_unused_parameters=True)
    found = chosen("auto", replace(ALONE, wrapper=plain, world=2))
    assert found.skips
    assert found.reducer is plain
    assert found.why == "DDP is sent gradients of zero for what is frozen"
    found = chosen("auto", replace(ALONE, wrapper=looking, world=2))
    assert found == Decision(True, "DDP looks for unused parameters itself")


def test_fsdp2_skips() -> None:
    sharded = Blocks(1)
    sharded.register_parameter("shard", Sharded(torch.zeros(1)))
    found = chosen("auto", RunContext(sharded, sharded, world=2, strategy="ModelParallelStrategy"))
    assert found == Decision(True, "the parameters are sharded")


@pytest.mark.parametrize(
    ("run", "why"),
    [
        (
            replace(ALONE, wrapper=ddp(static_graph=True), world=2),
            "DDP with static_graph=True .*without static_graph",
        ),
        (
            replace(ALONE, wrapper=ddp(), world=2, manual_optimization=True),
            "plain DDP waits in every backward .*ddp_find_unused_parameters_true",
        ),
        (replace(ALONE, wrapper=nn.Sequential(FullyShardedDataParallel())), "FSDP1 keeps several .*FSDP2"),
        (replace(ALONE, world=2, strategy="XLAStrategy"), "XLAStrategy distributes the run over 2 processes, .*'ddp'"),
        (
            replace(ALONE, manual_optimization=True, toggles="GAN.step"),
            "GAN.step calls `toggle_optimizer`.*done for you",
        ),
        (RunContext(HOOKED, ddp(), world=2), "a parameter has a hook of its own.*ddp_find_unused_parameters_true"),
        (
            replace(ALONE, fully_frozen="optimizer 1 can come to that: it waits"),
            "GradScaler, .*optimizer 1 .*bf16-mixed",
        ),
    ],
)
def test_where_it_is_unsafe_auto_says_why_and_true_is_refused(run: RunContext, why: str) -> None:
    found = chosen("auto", run)
    assert not found.skips
    assert re.search(why, found.why)
    with pytest.raises(UnsupportedError, match=rf"`skip_backward` is true, which is not safe here: .*{why}"):
        chosen(True, run)


def test_under_manual_optimization_skipping_is_chosen_by_the_user_alone() -> None:
    manual_optimization = replace(ALONE, manual_optimization=True)
    assert not chosen("auto", manual_optimization).skips
    assert "`skip_backward: true` skips anyway" in chosen("auto", manual_optimization).why
    assert chosen(True, manual_optimization).skips


def one_by_one(groups: list[str]) -> Iterator[frozenset[str]]:
    while True:
        yield from (frozenset({group}) for group in groups)


@pytest.mark.parametrize(("count", "skips"), [(6, True), (7, False)])
def test_a_compiled_model_skips_while_its_graphs_fit(count: int, skips: bool) -> None:
    """The limit is 8, two of them for validation and a smaller batch; what is said is measured below."""
    model = Blocks(count)
    model.compile(backend="eager")
    groups = {id(p): str(n) for n, block in enumerate(model.blocks) for p in block.parameters()}
    found = choose("auto", RunContext(model, model), one_by_one([str(n) for n in range(count)]), groups)
    assert found.skips == skips
    if not skips:
        assert "the model is compiled" in found.why
        assert "at least 9 where torch._dynamo.config.recompile_limit is 8" in found.why


def test_blocks_compiled_one_by_one_share_their_graphs() -> None:
    model = Blocks(20)
    for block in model.blocks:
        block.compile(backend="eager")
    assert list(compiled(model)) == [f"blocks.{n}" for n in range(20)]
    groups = {id(p): str(n) for n, block in enumerate(model.blocks) for p in block.parameters()}
    assert choose(True, RunContext(model, model), one_by_one([str(n) for n in range(20)]), groups).skips


def test_what_is_compiled_within_what_is_compiled_counts_once() -> None:
    model = nn.Sequential(Blocks(2))
    model[0].blocks[1].compile(backend="eager")
    assert list(compiled(model)) == ["0.blocks.1"]
    wrapped = nn.Sequential(torch.compile(model[0], backend="eager"))  # type: ignore[arg-type]
    assert list(compiled(wrapped)) == ["0"]


def test_a_compiled_method_is_seen_where_it_is_held() -> None:
    model = nn.Sequential(Blocks(2), Blocks(2))
    model[1].inner = torch.compile(model[1].blocks[0].forward, backend="eager")
    assert list(compiled(model)) == ["1"]


def test_torch_compiles_as_many_graphs_as_is_said() -> None:
    """A graph for each set, one more for a smaller batch and one for validation, on this version of torch."""
    torch._dynamo.reset()
    model, graphs = Blocks(3), []
    model.compile(backend=lambda graph, _: graphs.append(graph) or graph.forward)
    for _ in range(2):
        for trained in model.blocks:
            for block in model.blocks:
                block.requires_grad_(block is trained)
            for size in (3, 3, 2):
                model(torch.ones(size, 2)).sum().backward()
    assert len(graphs) == 3 + 1
    model.requires_grad_(True)
    with torch.no_grad():
        model.eval()(torch.ones(3, 2))
    assert len(graphs) == 3 + 1 + 1
    torch._dynamo.reset()
