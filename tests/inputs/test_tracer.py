"""What single cases cannot show of the tracer: labels that grow old, threads, names, and that it leaves no trace."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import FSDPModule
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

from lightning_freeze import audit_inputs
from lightning_freeze.inputs.audit import InputsAudit
from lightning_freeze.inputs.labels import Labels
from lightning_freeze.inputs.thread import Thread
from lightning_freeze.inputs.tracer import LOCAL, READERS, Tracer


class Block(nn.Module):
    """Uses x, and never the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.linear(x)


class Calls(nn.Module):
    """Hands x and mask to what it holds."""

    def __init__(self, child: Any) -> None:
        super().__init__()
        self.child = child

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.child(x, mask)


def t(*shape: int) -> Tensor:
    return torch.ones(*(shape or (2, 4)))


def verdicts(module: nn.Module, *args: Any, replay: bool = False) -> dict[Any, Any]:
    with audit_inputs(module, replay=replay) as audit:
        module(*(args or (t(), t())))
    assert audit.failure is None, audit.failure
    return dict(audit.verdicts)


# --- labels that grow old


class Keeps(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        self.kept = x * 2
        return x + 1


class Takes(nn.Module):
    """Returns what another kept, and nothing of its own input."""

    def __init__(self, other: Any) -> None:
        super().__init__()
        self.others = [other]

    def forward(self, y: Tensor) -> Tensor:
        return self.others[0].kept


class Siblings(nn.Module):
    """Two children, one after the other: their inputs get the same bit."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Keeps()
        self.second = Takes(self.first)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.first(x)
        return self.second(y)


def test_a_bit_that_is_handed_out_again_is_told_from_an_old_label() -> None:
    found = verdicts(Siblings())
    assert found["second", "y"] == "unused"
    assert found["", "x"] == "used"
    assert found["", "y"] == "passed_through"


def test_without_stamps_the_old_label_would_be_taken_for_the_new(monkeypatch: Any) -> None:
    monkeypatch.setattr(Labels, "valid", lambda self, stamp: (1 << self.top) - 1)
    assert verdicts(Siblings())["second", "y"] == "used"


class KeepsBetween(nn.Module):
    """Uses in one call what it kept in the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: Tensor | None = None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        before, self.kept = self.kept, x * 2
        return y if before is None else before


def test_labels_of_an_earlier_outermost_call_say_nothing() -> None:
    module = KeepsBetween()
    with audit_inputs(module, replay=False) as audit:
        module(t(), t())
        audit.reset()
        module(t(), t())
    assert audit.verdicts == {("", "x"): "stored", ("", "y"): "unused"}


class Loops(nn.Module):
    """Calls one child many times, with something new each time."""

    def __init__(self) -> None:
        super().__init__()
        self.child = Block()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for step in range(50):
            x = self.child(x, mask * step)
        return x


def test_many_calls_of_one_child_do_not_mix() -> None:
    module = Loops()
    with audit_inputs(module, replay=False) as audit:
        module(t(), t())
    assert audit.verdicts["child", "mask"] == "unused"
    assert audit.verdicts["", "mask"] == "passed_through"
    assert [f.calls for f in audit.findings] == [(0, 50)]


def labels() -> Labels:
    return Labels([], lambda tensor: [])


def test_a_label_is_of_one_tensor_and_not_of_a_number() -> None:
    one, other, held = t(), t(), labels()
    held.top = 3
    held.put(one, 1, 2)
    assert held.look(one) == (1, 2)
    held.labels[id(other)] = (weakref.ref(one), 1, 2, held.stamp)  # as if `one` were gone and `other` in its place
    assert held.look(other) == (0, 0)


def test_a_label_keeps_no_tensor_alive() -> None:
    held, one = labels(), t()
    held.put(one, 1, 0)
    seen = weakref.ref(one)
    del one
    assert seen() is None


class Frees(nn.Module):
    """Notes whether what it made is gone as soon as it lets go of it."""

    def forward(self, x: Tensor) -> Tensor:
        made = x * 2
        self.seen = [weakref.ref(made)]
        del made
        self.gone = self.seen[0]() is None
        return x + 1


def test_tensors_go_when_they_would_go_without() -> None:
    module = Frees()
    verdicts(module, t())
    assert module.gone


def test_modules_and_inputs_go_with_the_audit() -> None:
    module, x = Calls(Block()), t()
    references = [weakref.ref(module), weakref.ref(module.child), weakref.ref(x)]
    verdicts(module, x, t())
    del module, x
    gc.collect()
    assert [reference() for reference in references] == [None] * 3


# --- threads


def test_threads_have_stacks_of_their_own() -> None:
    module, barrier = Calls(Block()), threading.Barrier(4)

    class Waits(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            barrier.wait(20)
            y = x * 2
            barrier.wait(20)
            return y

    module.child = Waits()
    with audit_inputs(module, replay=False) as audit, ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda n: module(t() * n, t()), range(4)))
    assert audit.failure is None
    assert [float(result[0, 0]) for result in results] == [0, 2, 4, 6]
    assert audit.verdicts["child", "mask"] == "unused"
    assert audit.verdicts["", "mask"] == "passed_through"
    assert audit.verdicts["", "x"] == audit.verdicts["child", "x"] == "used"
    assert [f.calls for f in audit.findings] == [(0, 4)]


class InAThread(nn.Module):
    """Runs its child in another thread, where no label of its own stack is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.child = Block()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(self.child, x, mask).result()


def test_what_a_child_does_in_another_thread_is_no_confirmed_fault_of_its_parent() -> None:
    module = InAThread()
    with audit_inputs(module) as audit:
        module(t(), t())
    assert audit.failure is None
    assert audit.verdicts["child", "mask"] == "unused"
    assert audit.verdicts["", "x"] == "used"
    assert {(f.module, f.argument) for f in audit.findings if f.confirmed} <= {("child", "mask"), ("", "mask")}


def thread(audit: InputsAudit) -> Thread:
    return Thread(audit._tracer, audit._tracer.give_up)


def test_a_thread_that_stands_aside_does_not_switch_another_s_audit_off() -> None:
    module = Block()
    with audit_inputs(module) as audit:
        installed = nn.Module.__call__
        first, second = audit._tracer.suspended(thread(audit)), audit._tracer.suspended(thread(audit))
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        second.__exit__(None, None, None)
        assert nn.Module.__call__ is installed
        module(t(), t())
    assert audit.verdicts["", "mask"] == "unused"


def test_standing_aside_nested_and_after_the_end() -> None:
    call = nn.Module.__call__
    audit = audit_inputs(Block())
    with audit:
        aside = audit._tracer.suspended(thread(audit))
        aside.__enter__()
    aside.__exit__(None, None, None)  # the audit has ended in between
    assert nn.Module.__call__ is call
    assert "shape" not in vars(Tensor)


# --- strangers


class Function(nn.Module):
    """Outside the audited tree."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x * 3


class CallsStranger(nn.Module):
    def __init__(self, stranger: Any) -> None:
        super().__init__()
        self.strangers = [stranger]  # a plain list, so that it is no submodule

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.strangers[0](x, mask)


class UsesBoth(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x * mask


def test_a_module_outside_the_tree_gets_no_verdict_and_is_looked_through() -> None:
    assert verdicts(CallsStranger(UsesBoth())) == {("", "x"): "used", ("", "mask"): "used"}
    assert verdicts(CallsStranger(Function())) == {("", "x"): "used", ("", "mask"): "unused"}


def test_a_stranger_called_on_its_own_is_not_watched() -> None:
    module, stranger = Block(), Function()
    with audit_inputs(module) as audit:
        stranger(t(), t())
        assert torch._C._len_torch_dispatch_stack() == 0
    assert audit.verdicts == {}


def test_a_stranger_in_the_place_of_a_module_that_is_gone_has_not_its_name() -> None:
    module = Calls(Function())
    with audit_inputs(module) as audit:
        for _ in range(200):
            number = id(module.child)
            module.child = None
            stranger = Function()
            if id(stranger) == number:
                break
            module.child = Function()
            audit._tree.read()
        else:
            pytest.skip("memory was never used again")
        stranger(t(), t())
    assert audit.verdicts == {}


# --- names


class Shares(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = Block()
        self.again = self.first

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.again(self.first(x, mask), mask)


def test_a_shared_module_has_the_name_that_named_modules_gives_it() -> None:
    module = Shares()
    with audit_inputs(module) as audit:
        module(t(), t())
    assert {name for name, _ in audit.verdicts} == {name for name, _ in module.named_modules()}
    assert [(f.module, f.calls) for f in audit.findings] == [("first", (0, 2))]


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")  # type: ignore[return-value]


WRAPPED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "compiled root": (lambda: compiled(Block()), ""),
    "compiled child": (lambda: Calls(compiled(Block())), "child"),
    "data parallel root": (lambda: nn.DataParallel(Block()), ""),
    "data parallel child": (lambda: Calls(nn.DataParallel(Block())), "child"),
    "checkpoint wrapper": (lambda: Calls(checkpoint_wrapper(Block())), "child"),
    "wrapped twice": (lambda: nn.DataParallel(Calls(checkpoint_wrapper(compiled(Block())))), "child"),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_leave_no_trace_in_names(name: str) -> None:
    make, where = WRAPPED[name]
    module = make()
    with audit_inputs(module) as audit:
        module(t(), t())
    assert audit.failure is None, audit.failure
    assert audit.verdicts[where, "mask"] == "unused"
    assert audit.verdicts[where, "x"] == "used"
    assert [(f.module, f.module_class, f.argument, f.confirmed) for f in audit.findings] == [
        (where, "Block", "mask", True)
    ]
    words = ("_orig_mod", "_checkpoint_wrapped_module", "module")
    assert not [key for key, _ in audit.verdicts if any(part in words for part in key.split("."))]


def in_place(module: nn.Module) -> nn.Module:
    module.compile(backend="eager")
    return module


def test_a_module_compiled_in_place_is_judged_by_its_code() -> None:
    module = Calls(in_place(Block()))
    assert verdicts(module)["child", "mask"] == "unused"


def sharded() -> nn.Module:
    module = Block()
    module.__class__ = type("FSDPBlock", (FSDPModule, Block), {})
    return module


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


class Owner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x @ self.weight


def parametrized() -> nn.Module:
    module = Owner()
    parametrize.register_parametrization(module, "weight", Doubled())
    return module


@pytest.mark.parametrize(("make", "kind"), [(sharded, "Block"), (parametrized, "Owner")])
def test_classes_that_torch_makes_are_called_as_the_user_calls_them(make: Any, kind: str) -> None:
    module = make()
    assert type(module).__name__ != kind
    with audit_inputs(module) as audit:
        module(t(), t())
    assert [f.module_class for f in audit.findings] == [kind]
    with audit_inputs(module, whitelist={f"{kind}.mask": "why"}) as audit:
        module(t(), t())
    assert audit.findings == []


def test_a_weight_normed_linear_is_a_linear() -> None:
    module = parametrizations.weight_norm(nn.Linear(4, 4))
    assert verdicts(module, t())["", "input"] == "used"


# --- it changes nothing


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True), 2, enable_nested_tensor=False
        )
        self.norm = nn.BatchNorm1d(5)
        self.block = Calls(Block8())

    def forward(self, x: Tensor, how: str = "") -> Tensor:
        x = self.norm(self.inner(x))
        if how:
            return checkpoint(self.block, x, x.detach() * 1, use_reentrant=how == "reentrant")  # type: ignore[no-any-return]
        return self.block(x, x.detach())


class Block8(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if mask is None:
            return x
        return nn.functional.dropout(self.linear(x), 0.3, self.training) * mask.shape[-1]


def facts(how: str, audited: bool) -> list[Tensor]:
    torch.manual_seed(0)
    module, x = Mixed(), torch.randn(3, 5, 8, requires_grad=True)
    module.train("eval" not in how)
    audit = audit_inputs(module)
    if audited:
        audit.__enter__()
    try:
        with (
            torch.set_grad_enabled("no_grad" not in how),
            torch.autocast("cpu", torch.bfloat16, enabled="autocast" in how),
        ):
            y = module(x, how if "reentrant" in how else "")
        if y.requires_grad:
            y.float().square().sum().backward()
    finally:
        if audited:
            audit.__exit__(None, None, None)
    assert not audited or (audit.failure is None and audit.verdicts["block.child", "mask"] == "metadata")
    grads = [p.grad for p in (x, *module.parameters()) if p.grad is not None]
    return [y.detach(), *grads, *module.state_dict().values(), torch.get_rng_state()]


@pytest.mark.parametrize(
    "how", ["train", "eval", "eval no_grad", "train autocast", "eval no_grad autocast", "reentrant", "not reentrant"]
)
def test_outputs_gradients_state_and_random_numbers_are_bit_for_bit_the_same(how: str) -> None:
    plainly, watched = facts(how, False), facts(how, True)
    assert len(plainly) == len(watched)
    for one, two in zip(plainly, watched, strict=True):
        assert one.dtype == two.dtype
        assert torch.equal(one.reshape(-1).view(torch.uint8), two.reshape(-1).view(torch.uint8))


def test_the_fast_path_of_attention_is_taken_as_without(monkeypatch: Any) -> None:
    taken: list[bool] = []
    original = torch._transformer_encoder_layer_fwd  # type: ignore[attr-defined]

    def counts(*args: Any, **kwargs: Any) -> Any:
        taken.append(Tracer.active is not None)
        return original(*args, **kwargs)

    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", counts)
    facts("eval no_grad", False)
    facts("eval no_grad", True)
    assert taken == [False, False, True, True]


def test_tracing_within_an_audit_gives_the_same_graph_and_the_audit_goes_on() -> None:
    module = Calls(Block())
    plainly = torch.fx.symbolic_trace(Block().linear).code
    with audit_inputs(module) as audit:
        assert torch.fx.symbolic_trace(module.child.linear).code == plainly
        module(t(), t())
    assert audit.verdicts["child", "mask"] == "unused"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
def test_nothing_stays_installed_whatever_is_raised(error: Any) -> None:
    class Raises(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            raise error

    call, module = nn.Module.__call__, Calls(Raises())
    with pytest.raises(error), audit_inputs(module):
        module(t(), t())
    assert nn.Module.__call__ is call
    assert torch._C._len_torch_dispatch_stack() == 0
    assert Tracer.active is None
    assert not getattr(getattr(LOCAL, "thread", None), "frames", [])


def test_one_that_yields_stands_back_for_another() -> None:
    yields, other = InputsAudit(Block(), yields=True), audit_inputs(Block())
    call = nn.Module.__call__
    with yields:
        with other:
            other.module(t(), t())
            assert Tracer.active is other._tracer
        yields.module(t(), t())
    assert nn.Module.__call__ is call
    assert other.verdicts["", "mask"] == "unused"
    assert yields.verdicts == {}


def test_what_others_put_over_ours_stays_and_ours_passes_calls_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their `__call__` and `size` are there after the audit, and the audit watches each call once, then and later."""
    audit, calls = audit_inputs(Block(), replay=False), []
    call, size = nn.Module.__call__, vars(Tensor).get("size")
    with monkeypatch.context() as patch:
        with audit:
            ours, our_size = nn.Module.__call__, Tensor.size

            def theirs(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
                calls.append(module)
                return ours(module, *args, **kwargs)

            patch.setattr(nn.Module, "__call__", theirs)
            patch.setattr(Tensor, "size", lambda tensor, *args: our_size(tensor, *args))
            their_size = vars(Tensor)["size"]
            audit.module(t(), t())
            with audit._tracer.suspended(Thread(audit._tracer, print)):
                assert nn.Module.__call__ is theirs
        assert nn.Module.__call__ is theirs
        assert vars(Tensor)["size"] is their_size
        assert {tally.calls for tally in audit._tallies.values()} == {1}
        audit.module(t(), t())  # nothing watches
        assert t(2).size() == (2,)
        with audit:
            audit.module(t(), t())
        assert {tally.calls for tally in audit._tallies.values()} == {2}
        assert nn.Module.__call__ is theirs
        assert len(calls) == 6
    assert nn.Module.__call__ is ours, "which they found"
    with audit:
        audit.module(t(), t())
    assert {tally.calls for tally in audit._tallies.values()} == {3}
    nn.Module.__call__ = call  # type: ignore[method-assign]
    READERS.remove()
    assert vars(Tensor).get("size") is size


def test_audits_of_many_threads_leave_nothing_behind() -> None:
    before = {**vars(Tensor)}, nn.Module.__call__

    def come_and_go() -> None:
        audit = InputsAudit(Block(), replay=False, yields=True)
        for _ in range(20):
            with audit:
                audit.module(t(), t())

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(come_and_go) for _ in range(4)]:
            done.result()
    assert ({**vars(Tensor)}, nn.Module.__call__) == before
