"""The audit changes nothing: the same seeded run with and without it, compared bit for bit, and nothing left behind.

A scenario is a function that is run twice, the second time under an audit, and gives back all that is to be the same.
Most of its models have inputs that they do not use, since it is in the replay of findings that side effects lurk.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import functools
import gc
import io
import itertools
import logging
import os
import random
import re
import subprocess
import sys
import threading
import time
import types
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.function import FunctionCtx
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from lightning_freeze import audit_inputs
from lightning_freeze.inputs.tracer import LOCAL, Tracer

# ------------------------------------------------------------------------------------------------- the comparison


class Run:
    """Hands a scenario the audit, or nothing in its place, and keeps the audits that it handed out."""

    def __init__(self, audited: bool) -> None:
        self.audited = audited
        self.audits: list[Any] = []

    @contextlib.contextmanager
    def __call__(self, module: nn.Module, **options: Any) -> Iterator[None]:
        if not self.audited:
            yield
            return
        with audit_inputs(module, **options) as audit:
            self.audits.append(audit)
            yield


Scenario = Callable[[Run], Any]


def facts(value: Any, path: str = "") -> dict[str, Any]:
    """Whatever is to be the same, flat, with tensors as their bytes."""
    if isinstance(value, Tensor):
        return {path: tensor_facts(value)}
    if isinstance(value, np.ndarray):
        return {path: (str(value.dtype), value.shape, value.tobytes())}
    if isinstance(value, Mapping):
        items: Any = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    elif isinstance(value, (str, bytes, bool, int, float, type(None), torch.dtype, type)):
        return {path: (type(value), repr(value))}
    else:
        raise TypeError(f"nothing is known of how to compare a {type(value).__name__}")
    found: dict[str, Any] = {path: (type(value).__name__, len(value))}
    for key, item in items:
        found |= facts(item, f"{path}/{key}")
    return found


def tensor_facts(tensor: Tensor) -> Any:
    kind, grad = type(tensor).__name__, type(tensor.grad_fn).__name__
    tensor = tensor.detach()
    about = (kind, grad, str(tensor.dtype), str(tensor.layout), tensor.device.type)
    if tensor.device.type == "meta" or kind == "FakeTensor":
        return (*about, tuple(tensor.shape))
    if tensor.is_nested:
        return (*about, [tensor_facts(part) for part in tensor.unbind()])
    if tensor.is_sparse:
        tensor = tensor.coalesce()
        return (*about, tensor_facts(tensor.indices()), tensor_facts(tensor.values()))
    if hasattr(tensor, "to_local"):
        return (*about, tensor_facts(tensor.to_local()))
    flat = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor).reshape(-1)
    return (*about, tuple(tensor.shape), tensor.stride(), bytes(flat.view(torch.uint8).numpy()))


def random_states() -> list[Any]:
    numbers: Any = np.random.get_state()
    return [torch.get_rng_state(), str(random.getstate()), numbers[1], numbers[2]]


def seed() -> None:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


OWNERS: tuple[Any, ...] = (Tensor, torch, FunctionCtx, nn.Module, torch._C.TensorBase, torch.autograd.Function)


def installed() -> dict[tuple[int, str], Any]:
    """The very objects that an audit could have replaced."""
    return {(index, name): value for index, owner in enumerate(OWNERS) for name, value in vars(owner).items()}


def left_behind(before: dict[tuple[int, str], Any]) -> list[str]:
    """What is not as it was before an audit."""
    now = installed()
    names = [f"{OWNERS[k[0]].__name__}.{k[1]}" for k in before if k not in now or now[k] is not before[k]]
    names += [f"{OWNERS[k[0]].__name__}.{k[1]}" for k in now if k not in before and OWNERS[k[0]] is not torch]
    if Tracer.active is not None:
        names.append("Tracer.active")
    if _get_current_dispatch_mode_stack():
        names.append("a dispatch mode")
    thread = getattr(LOCAL, "thread", None)
    if thread is not None and (thread.frames or thread.quiet):
        names.append("a frame")
    return names


def differences(scenario: Scenario) -> tuple[list[str], Run]:
    """Where two runs of a scenario differ, and the audited one."""
    seed()
    plainly = facts([scenario(Run(False)), random_states()])
    before = installed()
    run = Run(True)
    seed()
    audited = facts([scenario(run), random_states()])
    assert left_behind(before) == []
    keys = sorted(plainly.keys() | audited.keys())
    return [key for key in keys if key not in plainly or key not in audited or plainly[key] != audited[key]], run


def check(scenario: Scenario, *, finds: bool | None = None, watches: bool = True) -> None:
    """A scenario is the same with and without the audit, and the audit did its work in it."""
    found, run = differences(scenario)
    assert found == []
    assert run.audits
    assert [audit.failure for audit in run.audits if audit.failure is not None] == []
    if watches:
        assert any(audit.verdicts for audit in run.audits)
    if finds is not None:
        assert any(audit.findings for audit in run.audits) == finds


def everything(module: nn.Module, output: Any) -> list[Any]:
    """A run's outputs, gradients, parameters and buffers."""
    grads = {name: parameter.grad for name, parameter in module.named_parameters()}
    return [output, grads, dict(module.named_parameters()), dict(module.named_buffers())]


def trained(module: nn.Module, run: Run, *args: Any, steps: int = 2, **kwargs: Any) -> list[Any]:
    """A few optimizer steps of a module under the audit, and all that they lead to."""
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    outputs = []
    with run(module):
        for _ in range(steps):
            optimizer.zero_grad()
            output = module(*args, **kwargs)
            output.float().square().sum().backward()
            optimizer.step()
            outputs.append(output)
    return everything(module, outputs)


def test_the_comparison_can_fail() -> None:
    def one_bit(run: Run) -> Any:
        return torch.tensor([0.0, -0.0 if run.audited else 0.0])

    def another_type(run: Run) -> Any:
        return {"a": 1 if run.audited else True}

    def one_draw(run: Run) -> Any:
        return torch.rand(1) if run.audited else None

    def one_python_draw(run: Run) -> Any:
        random.random() if run.audited else None

    def one_numpy_draw(run: Run) -> Any:
        np.random.rand() if run.audited else None

    def one_missing(run: Run) -> Any:
        return [1] if run.audited else [1, 2]

    def another_graph(run: Run) -> Any:
        x = torch.ones(1, requires_grad=True)
        return x + 0 if run.audited else x - 0

    for scenario in (one_bit, another_type, one_draw, one_python_draw, one_numpy_draw, one_missing, another_graph):
        assert differences(scenario)[0] != [], scenario.__name__

    before = installed()
    assert left_behind(before) == []
    with audit_inputs(nn.Identity()):
        assert {"Module.__call__", "Tensor.shape", "Tensor.numel", "Tracer.active"} <= set(left_behind(before))
    with TorchDispatchMode():
        assert left_behind(before) == ["a dispatch mode"]
    with pytest.raises(TypeError, match="nothing is known"):
        facts(object())


# ------------------------------------------------------------------------------------------------- models


class Block(nn.Module):
    """Uses ``x``; ``mask`` goes unused and ``scale`` is computed with for nothing."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: Tensor | None = None) -> Tensor:
        if scale is not None:
            _ = scale * 2
        return x + self.dropout(self.norm(torch.relu(self.linear(x))))


class Net(nn.Module):
    """Two such blocks, of which it may run each in a function of the caller's choice, as a checkpoint."""

    def __init__(self, dropout: float = 0.0, wrap: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(dropout), Block(dropout)])
        self.wrap = wrap

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for block in self.blocks:
            run = block if self.wrap is None else functools.partial(self.wrap, block)
            x = run(x, mask, scale=x * 0.5)
        return x


def inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 4), torch.rand(6, 4) > 0.5


class Unused(nn.Module):
    """Whatever a function makes of ``x``; ``extra`` is computed with for nothing, so that it is run again."""

    def __init__(self, body: Callable[[Any, Tensor], Any], **attributes: Any) -> None:
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)
        self.body = types.MethodType(body, self)

    def forward(self, x: Tensor, extra: Tensor) -> Any:
        _ = extra + 1
        return self.body(x)


def twice(run: Run, module: nn.Module, *args: Any) -> list[Any]:
    """Two calls of a module under the audit."""
    with run(module):
        return [module(*(args or (torch.randn(2, 3), torch.ones(2)))) for _ in range(2)]


# ------------------------------------------------------------------------------------------------- modes of running


def test_training() -> None:
    check(lambda run: trained(Net(0.5), run, *inputs()), finds=True)


def test_without_replay() -> None:
    def scenario(run: Run) -> Any:
        model, (x, mask) = Net(0.5), inputs()
        with run(model, replay=False):
            output = model(x, mask)
        output.sum().backward()
        return everything(model, output)

    check(scenario, finds=True)


@pytest.mark.parametrize(
    "mode",
    [contextlib.nullcontext, torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)],
    ids=["eval", "no_grad", "inference_mode", "autocast"],
)
@pytest.mark.parametrize("training", [True, False])
def test_modes(mode: Callable[[], Any], training: bool) -> None:
    def scenario(run: Run) -> Any:
        model, (x, mask) = Net(0.5).train(training), inputs()
        with mode(), run(model):
            outputs = [model(x, mask), model(x, mask)]
        if outputs[0].requires_grad:
            sum(output.float().sum() for output in outputs).backward()
        return everything(model, outputs)

    check(scenario, finds=True)


def test_autocast_training() -> None:
    def scenario(run: Run) -> Any:
        model, (x, mask) = Net(0.5), inputs()

        def step(*args: Any) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return nn.Module.__call__(model, *args)

        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        with run(model):
            for _ in range(3):
                optimizer.zero_grad()
                step(x, mask).float().sum().backward()
                optimizer.step()
        return everything(model, None)

    check(scenario, finds=True)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant: bool) -> None:
    def wrap(block: nn.Module, x: Tensor, mask: Tensor, scale: Tensor) -> Tensor:
        return checkpoint(functools.partial(block, scale=scale), x, mask, use_reentrant=reentrant)

    check(lambda run: trained(Net(0.5, wrap), run, inputs()[0].requires_grad_(), inputs()[1]), finds=True)


# every operator that a replay could run beside the module, so that a cache of results would be put out of step
OPERATORS = [
    torch.ops.aten.addmm.default,
    torch.ops.aten.clone.default,
    torch.ops.aten.detach.default,
    torch.ops.aten.flip.default,
    torch.ops.aten.full_like.default,
    torch.ops.aten.mul.Tensor,
    torch.ops.aten.add.Tensor,
    torch.ops.aten.relu.default,
]


@pytest.mark.parametrize("policy", [CheckpointPolicy.MUST_SAVE, CheckpointPolicy.PREFER_SAVE])
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_selective_checkpointing(operator: Any, policy: CheckpointPolicy) -> None:
    def save(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        return policy if op == operator else CheckpointPolicy.PREFER_RECOMPUTE

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor, extra: Tensor) -> Tensor:
            _ = extra.detach() * 2
            return torch.relu(self.linear(x * 2 + 1)).clone() * x

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last = Inner(), Inner()

        def region(self, x: Tensor, extra: Tensor) -> Tensor:
            return self.last(self.inner(x.sin(), extra) * 3, extra)

        def forward(self, x: Tensor, extra: Tensor) -> Tensor:
            context = functools.partial(create_selective_checkpoint_contexts, save)
            return checkpoint(self.region, x, extra, use_reentrant=False, context_fn=context)

    check(lambda run: trained(Outer(), run, torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)))


# ------------------------------------------------------------------------------------------------- torch.compile


@pytest.fixture
def fresh() -> Iterator[None]:
    """Nothing compiled yet."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def can_build() -> bool:
    """Whether this machine can build what inductor writes."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    with contextlib.suppress(Exception):
        return bool(get_cpp_compiler())
    return False


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, extra: Tensor) -> Tensor:
        _ = extra * 2
        return torch.relu(self.linear(x)).reshape(x.shape[0], -1) * x.size(-1)


class Calls(nn.Module):
    """Calls something that it was given, beside a module of its own."""

    def __init__(self, part: Any) -> None:
        super().__init__()
        self.part = part
        self.own = Small()

    def forward(self, x: Tensor, extra: Tensor) -> Tensor:
        return self.own(self.part(x, extra), extra)


def plain_function(x: Tensor, extra: Tensor) -> Tensor:
    return torch.tanh(x) * x.shape[0] + x.size(1) + x.numel() + x.dim()


SOME = nn.Linear(4, 4)


def function_with_module(x: Tensor, extra: Tensor) -> Tensor:
    return torch.tanh(SOME(x)) * x.shape[0]


class Doubling(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2 + 0 * ctx.saved_tensors[0]


def function_with_autograd(x: Tensor, extra: Tensor) -> Tensor:
    return Doubling.apply(x) + extra.data.sum()


def function_that_asks(x: Tensor, extra: Tensor) -> Tensor:
    count = torch.numel(x) + x.stride(0) + len(x) + extra.element_size()
    if torch.is_floating_point(x) and x.is_floating_point() and not torch.is_complex(x):
        return x.new_zeros(x.shape) + count + extra.type_as(x).expand_as(x) + x.to(extra.dtype)
    return x.view_as(x)


def compiled_model(how: str, backend: Any, **options: Any) -> nn.Module:
    if how == "module":
        return torch.compile(Small(), backend=backend, **options)  # type: ignore[return-value]
    if how == "compile()":
        model = Small()
        model.compile(backend=backend, **options)
        return model
    if how == "child":
        return Calls(torch.compile(Small(), backend=backend, **options))
    if how == "child.compile()":
        part = Small()
        part.compile(backend=backend, **options)
        return Calls(part)
    function = {
        "function": plain_function,
        "function with a module": function_with_module,
        "function with autograd": function_with_autograd,
        "function that asks": function_that_asks,
    }[how]
    return Calls(torch.compile(function, backend=backend, **options))


HOW = [
    "module", "compile()", "child", "child.compile()", "function", "function with a module", "function with autograd",
    "function that asks",
]  # fmt: skip


class Counter:
    """A backend that counts the graphs that it is given and the runs of what it made of them."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.graphs, self.runs = inner, 0, 0

    def __call__(self, graph: Any, example: Any) -> Any:
        self.graphs += 1
        made = self.inner(graph, example)

        def compiled(*args: Any) -> Any:
            self.runs += 1
            return made(*args)

        return compiled


def eager_backend(graph: Any, example: Any) -> Any:
    return graph.forward


def aot_backend(graph: Any, example: Any) -> Any:
    from torch._dynamo.backends.debugging import aot_eager

    return aot_eager(graph, example)


def recompiled() -> list[Any]:
    """What torch counts of graphs, breaks and recompilations."""
    return [dict(counters["stats"]), dict(counters["graph_break"]), sum(counters["recompiles"].values())]


ORDERS = ["compiled before", "compiled within", "compiled after"]
INNERS = {"eager": eager_backend, "aot_eager": aot_backend}


def compiled_cases() -> Iterator[Any]:
    """Every way to compile, inside and in time; one of each way is not slow, and each of the others among them."""
    for n, how in enumerate(HOW):
        for i, (inner, backend) in enumerate(INNERS.items()):
            for o, order in enumerate(ORDERS):
                core = (i, o) == (n % len(INNERS), n % len(ORDERS))
                marks = () if core else pytest.mark.slow
                yield pytest.param(how, backend, order, marks=marks, id=f"{how}-{inner}-{order}")


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(("how", "inner", "order"), list(compiled_cases()))
def test_what_is_compiled_stays_compiled(how: str, inner: Any, order: str) -> None:
    def scenario(run: Run) -> Any:
        torch._dynamo.reset()
        counters.clear()
        backend = Counter(inner)
        model = compiled_model(how, backend, fullgraph=True)
        x, extra = torch.randn(3, 4), torch.randn(3, 4)
        outputs, counts = [], []

        def step() -> None:
            output = model(x, extra)
            output.sum().backward()
            outputs.append(output)
            counts.append([backend.graphs, backend.runs, *recompiled()])

        if order == "compiled before":
            step()
        if order == "compiled after":
            with run(model):
                pass
        with run(model):
            if order != "compiled after":
                step()
                step()
        step()
        step()
        assert backend.graphs == 1
        assert backend.runs == len(outputs)
        return [counts, everything(model, outputs)]

    check(scenario, watches=order != "compiled after")


@pytest.mark.slow
@pytest.mark.usefixtures("fresh")
def test_compiled_by_inductor_stays_compiled() -> None:
    if not can_build():
        pytest.skip("no C++ compiler")

    def scenario(run: Run) -> Any:
        torch._dynamo.reset()
        counters.clear()
        model = compiled_model("function", "inductor", fullgraph=True)
        x, extra = torch.randn(3, 4), torch.randn(3, 4)
        outputs = []
        for audited in (False, True, False):
            with torch.no_grad(), run(model) if audited else contextlib.nullcontext():
                outputs.append(model(x, extra))
        assert counters["stats"]["unique_graphs"] == 1
        return [recompiled(), everything(model, outputs)]

    check(scenario)


class Method(nn.Module):
    """A part of its forward is compiled as a method."""

    def __init__(self, backend: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.scale = 2
        self.helper = types.MethodType(torch.compile(Method.plain_helper, backend=backend), self)

    def plain_helper(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(x)) * self.scale

    def forward(self, x: Tensor, extra: Tensor) -> Tensor:
        _ = extra + 1
        return self.helper(x)


class DecoratedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, extra: Tensor) -> Tensor:
        _ = extra + 1
        return self.linear(x)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("kind", ["method", "forward", "closure over a module"])
def test_replay_compiles_nothing(kind: str) -> None:
    def scenario(run: Run) -> Any:
        torch._dynamo.reset()
        counters.clear()
        counter = CompileCounter()
        if kind == "method":
            model: nn.Module = Method(counter)
        elif kind == "forward":
            made = type("Decorated", (DecoratedForward,), {})
            made.forward = torch.compile(DecoratedForward.forward, backend=counter)
            model = made()
        else:
            linear = nn.Linear(4, 4)
            model = Unused(torch.compile(lambda self, x: linear(x) * 2, backend=counter), linear=linear)
        x, extra = torch.randn(3, 4), torch.randn(3, 4)
        outputs = [model(x, extra)]
        with run(model):
            outputs += [model(x, extra), model(x, extra)]
        outputs.append(model(x, extra))
        return [counter.frame_count, recompiled(), everything(model, outputs)]

    check(scenario)


FIRST = """
import sys
import torch
from torch import nn
from lightning_freeze import audit_inputs

class M(nn.Module):
    def forward(self, x):
        return x + 1

def counts(x):
    if torch.is_floating_point(x):
        return x * torch.numel(x)
    return x

def check():
    CHECK

model = M()
x = torch.ones(3)
if sys.argv[1] == "audited":
    with audit_inputs(model):
        model(x)
        check()
check()
"""

FIRST_TIMES = {
    "script": "torch.jit.script(counts)(x)",
    "compile": "torch.compile(counts, backend='eager', fullgraph=True)(x)",
    "overrides": "import torch.overrides as o; assert o.resolve_name(torch.numel) == 'torch.numel', 'other'",
}


@pytest.mark.slow
@pytest.mark.parametrize("what", FIRST_TIMES)
def test_tables_that_torch_builds_once_are_not_built_of_wrappers(what: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(FIRST.replace("CHECK", FIRST_TIMES[what]))
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-W", "ignore", str(program), "audited"]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]


# ------------------------------------------------------------------------------------------------- tracers of torch


def script_me(x: Tensor) -> Tensor:
    return x * x.size(0) + x.numel() + x.dim()


def script_that_asks(x: Tensor) -> Tensor:
    if torch.is_floating_point(x):
        return x * torch.numel(x)
    return x


@pytest.mark.slow
@pytest.mark.parametrize("function", [script_me, script_that_asks])
def test_scripting_within(function: Any) -> None:
    def scenario(run: Run) -> Any:
        class Scripts(nn.Module):
            def forward(self, x: Tensor, extra: Tensor) -> Tensor:
                _ = extra + 1
                return scripted(x)

        model = Scripts()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with run(model):
                torch.jit._state._clear_class_state()
                copied = types.FunctionType(function.__code__, function.__globals__)
                copied.__annotations__ = {"x": Tensor, "return": Tensor}
                scripted = torch.jit.script(function)
                outputs = [model(torch.randn(3, 4), torch.ones(1)) for _ in range(3)]
        return [outputs, str(scripted.graph).partition("#")[0]]

    check(scenario)


@pytest.mark.parametrize("how", ["script", "trace"])
def test_scripted_children(how: str) -> None:
    def scenario(run: Run) -> Any:
        model = Calls(nn.Identity())
        x, extra = torch.randn(3, 4), torch.randn(3, 4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.part = torch.jit.script(Small()) if how == "script" else torch.jit.trace(Small(), (x, extra))
        return trained(model, run, x, extra)

    check(scenario)


def test_jit_trace_within() -> None:
    def scenario(run: Run) -> Any:
        model, x, extra = Small(), torch.randn(3, 4), torch.randn(3, 4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with run(model):
                model(x, extra)
                traced = torch.jit.trace(model, (x, extra))
        # the classes of a trace are numbered, and the lines that it came from are no part of what it computes
        return [re.sub(r"___torch_mangle_\d+\.| *#.*", "", str(traced.graph)), traced(x, extra)]

    check(scenario)


@pytest.mark.parametrize("strict", [True, False])
def test_export_within(strict: bool) -> None:
    def scenario(run: Run) -> Any:
        torch._dynamo.reset()
        model, x, extra = Small(), torch.randn(3, 4), torch.randn(3, 4)
        with run(model):
            model(x, extra)
            program = torch.export.export(model, (x, extra), strict=strict)
        return [program.graph_module.code, program.module()(x, extra)]

    check(scenario)


def test_make_fx_and_symbolic_trace_within() -> None:
    from torch.fx import symbolic_trace
    from torch.fx.experimental.proxy_tensor import make_fx

    def asks(x: Tensor) -> Any:
        return x * torch.numel(x) + x.shape[0] + x.size(1)

    def scenario(run: Run) -> Any:
        model, x, extra = Small(), torch.randn(3, 4), torch.randn(3, 4)
        with run(model):
            model(x, extra)
            codes = [make_fx(model)(x, extra).code, make_fx(asks)(x).code]
            codes += [
                make_fx(model, tracing_mode="fake", _allow_non_fake_inputs=True)(x, extra).code,
                symbolic_trace(model).code,
            ]
            graph = symbolic_trace(asks)
        model(x, extra)
        targets = [node.target is torch.numel for node in graph.graph.nodes]
        return [codes, graph.code, targets, graph(x)]

    check(scenario)


def test_fake_tensors() -> None:
    def scenario(run: Run) -> Any:
        model, x, extra = Small(), torch.randn(3, 4), torch.randn(3, 4)
        with run(model):
            real = model(x, extra)
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                fake = model(mode.from_tensor(x), mode.from_tensor(extra))
            with FakeTensorMode():
                made = Small()
        with run(made):
            other = made(next(made.parameters()), next(made.parameters()))
        return [real, fake, other]

    check(scenario)


def test_function_transforms() -> None:
    from torch.func import functional_call, grad, jvp, stack_module_state, vmap

    def scenario(run: Run) -> Any:
        model, x, extra = Small(), torch.randn(5, 4), torch.randn(5, 4)
        parameters = dict(model.named_parameters())

        def loss(given: Any, one: Tensor, other: Tensor) -> Tensor:
            return functional_call(model, given, (one[None], other[None])).sum()

        with run(model):
            called = functional_call(model, {k: v * 2 for k, v in parameters.items()}, (x, extra))
            gradients = vmap(grad(loss), (None, 0, 0))(parameters, x, extra)
            stacked, _ = stack_module_state([Small(), Small()])  # type: ignore[list-item]
            ensemble = vmap(lambda p: functional_call(model, p, (x, extra)))(stacked)
            mixed = vmap(lambda one: model(one[None], extra[:1]))(x)
            forward = jvp(lambda one: model(one, extra), (x,), (torch.ones_like(x),))
        return [called, gradients, ensemble, mixed, list(forward), everything(model, None)]

    check(scenario)


# ------------------------------------------------------------------------------------------------- modules of torch


class Log(TorchDispatchMode):
    """Keeps the names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["encoder", "layer", "attention"])
def test_the_fast_path_of_attention_stays_on(kind: str) -> None:
    def scenario(run: Run) -> Any:
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        model: nn.Module = {
            "encoder": lambda: nn.TransformerEncoder(layer, 2),
            "layer": lambda: layer,
            "attention": lambda: nn.MultiheadAttention(8, 2, batch_first=True),
        }[kind]().eval()
        x = torch.randn(2, 5, 8)
        padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
        with Log() as log, torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with run(model):
                output = model(x, x, x) if kind == "attention" else model(x, src_key_padding_mask=padding)
        fast = "_native_multi_head_attention" if kind == "attention" else "_transformer_encoder_layer_fwd"
        assert any(fast in name for name in log.names), log.names
        return [output, log.names]

    check(scenario)


class Shop(nn.Module):
    """Many kinds of layers, called with inputs that some do not use."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3, padding=1)
        self.lstm = nn.LSTM(4, 4, 2, dropout=0.3, batch_first=True)
        self.gru = nn.GRU(4, 4, batch_first=True, bidirectional=True)
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.4, batch_first=True)
        self.norm = nn.BatchNorm1d(4)
        self.old = nn.utils.parametrizations.weight_norm(nn.Linear(8, 4))
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
        self.dropouts = nn.Sequential(nn.Dropout(0.2), nn.AlphaDropout(0.2), nn.FeatureAlphaDropout(0.1), nn.RReLU())
        self.pool = nn.FractionalMaxPool2d(2, output_ratio=0.9)

    def forward(self, x: Tensor, extra: Tensor) -> Tensor:
        _ = extra * 2
        x = self.conv(x.transpose(1, 2)).transpose(1, 2)
        x, _ = self.lstm(x)
        x = self.old(self.gru(x)[0])
        x = x + self.attention(x, x, x)[0]
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return self.pool(self.spectral(self.dropouts(x)))


@pytest.mark.parametrize("training", [True, False])
def test_many_layers(training: bool) -> None:
    check(lambda run: trained(Shop().train(training), run, torch.randn(3, 5, 4), torch.randn(2)), finds=True)


def test_spectral_norm_of_old() -> None:
    def scenario(run: Run) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = Small()
            nn.utils.spectral_norm(model.linear)
            nn.utils.prune.l1_unstructured(model.linear, "bias", amount=1) if hasattr(nn.utils, "prune") else None
        return trained(model, run, torch.randn(3, 4), torch.randn(3, 4))

    check(scenario, finds=True)


def test_lazy_modules() -> None:
    def scenario(run: Run) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.ReLU())
            size = len(list(model.parameters()))
            with run(model):
                outputs = [model(torch.randn(3, 4)), model(torch.randn(3, 4))]
        outputs[0].sum().backward()
        return [size, everything(model, outputs)]

    check(scenario)


def test_uninitialized_parameters_can_be_asked() -> None:
    def scenario(run: Run) -> Any:
        lazy = nn.parameter.UninitializedParameter()
        model = Unused(lambda self, x: x * lazy.is_floating_point() + lazy.element_size() * lazy.dtype.itemsize)
        return twice(run, model)

    def asked(run: Run) -> Any:
        try:
            return scenario(run)
        except ValueError as error:
            return str(error)

    check(asked, watches=False)


def test_packed_sequences_and_embeddings() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(9, 4, sparse=True)
            self.lstm = nn.LSTM(4, 4, batch_first=True)

        def forward(self, tokens: Tensor, lengths: Tensor, extra: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(self.embedding(tokens), lengths, True, enforce_sorted=False)
            return nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0]

    def scenario(run: Run) -> Any:
        model = Model()
        with run(model):
            output = model(torch.randint(9, (3, 5)), torch.tensor([5, 2, 3]), torch.ones(1))
        output.sum().backward()
        return everything(model, output)

    check(scenario, finds=True)


def test_quantized_dynamic() -> None:
    def scenario(run: Run) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = torch.ao.quantization.quantize_dynamic(Small().eval(), {nn.Linear}, dtype=torch.qint8)
            with run(model), torch.no_grad():
                return [model(torch.randn(3, 4), torch.randn(3, 4)) for _ in range(2)]

    check(scenario, finds=True)


def test_meta_device() -> None:
    def scenario(run: Run) -> Any:
        with torch.device("meta"):
            model = Net(0.5)
            args = inputs()
        return trained(model, run, *args)

    check(scenario, finds=True)


# ------------------------------------------------------------------------------------------------- side effects


def counted_hooks(run: Run) -> Any:
    model, features = Net(0.1), []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, output: features.append(output.detach().clone()))
        block.register_forward_pre_hook(lambda module, args: features.append(args[0].detach().clone()))
    model.register_forward_hook(lambda m, args, kwargs, output: features.append(len(kwargs)), with_kwargs=True)
    return [trained(model, run, *inputs()), features]


def global_hooks(run: Run) -> Any:
    seen: list[str] = []
    handles = [
        nn.modules.module.register_module_forward_hook(lambda m, a, o: seen.append("after " + type(m).__name__)),
        nn.modules.module.register_module_forward_pre_hook(lambda m, a: seen.append("before " + type(m).__name__)),
    ]
    try:
        return [trained(Net(), run, *inputs()), seen]
    finally:
        for handle in handles:
            handle.remove()


SEEN: list[str] = []
STATS = types.SimpleNamespace(calls=0)
GENERATOR = torch.Generator()
NUMBERS = np.random.default_rng(0)
TOTAL = 0


def global_list(self: Any, x: Tensor) -> Tensor:
    SEEN.append("called")
    return x * len(SEEN)


def global_counter(self: Any, x: Tensor) -> Tensor:
    global TOTAL
    TOTAL += 1
    return x * TOTAL


def global_object(self: Any, x: Tensor) -> Tensor:
    STATS.calls += 1
    return x * STATS.calls


def global_generator(self: Any, x: Tensor) -> Tensor:
    return x * torch.rand(2, 3, generator=GENERATOR)


def global_numpy_generator(self: Any, x: Tensor) -> Tensor:
    return x * NUMBERS.random()


def class_counter(self: Any, x: Tensor) -> Tensor:
    Unused.calls = getattr(Unused, "calls", 0) + 1  # type: ignore[attr-defined]
    return x * Unused.calls  # type: ignore[attr-defined]


def own_counter(self: Any, x: Tensor) -> Tensor:
    self.calls += 1
    self.history.append(self.calls)
    self.table[self.calls] = "called"
    return x * self.calls


class Methods(nn.Module):
    """Writes elsewhere in a method that forward calls."""

    def note(self) -> None:
        SEEN.append("noted")

    def forward(self, x: Tensor, extra: Tensor) -> Tensor:
        _ = extra + 1
        self.note()
        return x * len(SEEN)


class GlobalInForward(nn.Module):
    def forward(self, x: Tensor, extra: Tensor) -> Tensor:
        _ = extra + 1
        SEEN.append("in forward")
        return x * len(SEEN)


class GlobalObjectInForward(nn.Module):
    def forward(self, x: Tensor, extra: Tensor) -> Tensor:
        _ = extra + 1
        STATS.calls += 1
        return x * STATS.calls


class ClassCounter(nn.Module):
    calls = 0

    def forward(self, x: Tensor, extra: Tensor) -> Tensor:
        _ = extra + 1
        ClassCounter.calls += 1
        return x * ClassCounter.calls


class OwnTypeCounter(nn.Module):
    calls = 0

    def forward(self, x: Tensor, extra: Tensor) -> Tensor:
        _ = extra + 1
        type(self).calls += 1
        return x * self.calls


class GlobalGenerator(nn.Module):
    def forward(self, x: Tensor, extra: Tensor) -> Tensor:
        _ = extra + 1
        return x * torch.rand(2, 3, generator=GENERATOR)


class GlobalNumpyGenerator(nn.Module):
    def forward(self, x: Tensor, extra: Tensor) -> Tensor:
        _ = extra + 1
        return x * float(NUMBERS.random())


class DefaultArgument(nn.Module):
    def forward(self, x: Tensor, extra: Tensor, cache: list[int] = []) -> Tensor:  # noqa: B006
        _ = extra + 1
        cache.append(1)
        return x * len(cache)


class FunctionAttribute(nn.Module):
    def forward(self, x: Tensor, extra: Tensor) -> Tensor:
        _ = extra + 1
        calls = getattr(tick, "calls", 0) + 1
        tick.calls = calls  # type: ignore[attr-defined]
        return x * calls


def tick() -> None: ...


class Slots:
    __slots__ = ("calls",)

    def __init__(self) -> None:
        self.calls = 0


class Resource:
    """What closes itself when it is dropped."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __del__(self) -> None:
        SEEN.append(f"closed {self.name}")


KEPT: list[Resource] = []


def reset_globals() -> None:
    global TOTAL, NUMBERS
    KEPT.clear()
    gc.collect()
    SEEN.clear()
    STATS.calls = TOTAL = 0
    ClassCounter.calls = OwnTypeCounter.calls = 0
    Unused.calls = 0  # type: ignore[attr-defined]
    tick.calls = 0  # type: ignore[attr-defined]
    assert DefaultArgument.forward.__defaults__ is not None
    DefaultArgument.forward.__defaults__[0].clear()
    GENERATOR.manual_seed(0)
    NUMBERS = np.random.default_rng(0)


def of_class(kind: Callable[[], nn.Module]) -> Scenario:
    return lambda run: twice(run, kind())


def of_body(body: Callable[[Any, Tensor], Any], **attributes: Callable[[], Any]) -> Scenario:
    return lambda run: twice(run, Unused(body, **{name: make() for name, make in attributes.items()}))


def with_list(run: Run) -> Any:
    collected: list[Tensor] = []
    model = Unused(lambda self, x: (self.collect(x.clone()), x)[1], collect=collected.append)
    return [twice(run, model), collected]


def with_function(run: Run) -> Any:
    collected: list[Tensor] = []
    model = Unused(lambda self, x: (self.collect(x), x)[1], collect=lambda x: collected.append(x.clone()))
    return [twice(run, model), collected]


def with_partial(run: Run) -> Any:
    collected: list[Any] = []
    note = functools.partial(lambda into, x: into.append(x.clone()), collected)
    return [twice(run, Unused(lambda self, x: (self.collect(x), x)[1], collect=note)), collected]


def with_iterator(run: Run) -> Any:
    return twice(run, Unused(lambda self, x: x * next(self.numbers), numbers=itertools.count(1)))


def with_own_iterator(run: Run) -> Any:
    return twice(run, Unused(lambda self, x: x * next(self.numbers), numbers=(n for n in range(1, 9))))


def with_array(run: Run) -> Any:
    def body(self: Any, x: Tensor) -> Tensor:
        self.counts += 1
        return x * int(self.counts[0])

    model = Unused(body, counts=np.zeros(2, dtype=np.int64))
    return [twice(run, model), model.counts]


def with_bytearray(run: Run) -> Any:
    def body(self: Any, x: Tensor) -> Tensor:
        self.data.append(1)
        return x * len(self.data)

    return twice(run, Unused(body, data=bytearray()))


def with_slots(run: Run) -> Any:
    def body(self: Any, x: Tensor) -> Tensor:
        self.state.calls += 1
        return x * self.state.calls

    return twice(run, Unused(body, state=Slots()))


def with_numpy_generator(run: Run) -> Any:
    return twice(run, Unused(lambda self, x: x * self.numbers.random(), numbers=np.random.default_rng(3)))


def with_numpy_random_state(run: Run) -> Any:
    return twice(run, Unused(lambda self, x: x * self.numbers.rand(), numbers=np.random.RandomState(3)))


def with_python_random(run: Run) -> Any:
    return twice(run, Unused(lambda self, x: x * self.numbers.random(), numbers=random.Random(3)))


def with_generator(run: Run) -> Any:
    made = torch.Generator().manual_seed(3)
    model = Unused(lambda self, x: x * torch.rand(2, 3, generator=self.made), made=made)
    return [twice(run, model), made.get_state()]


def given_generator(run: Run) -> Any:
    class Draws(nn.Module):
        def forward(self, x: Tensor, extra: Tensor, generator: torch.Generator) -> Tensor:
            _ = extra + 1
            return x * torch.rand(2, 3, generator=generator)

    made = torch.Generator().manual_seed(3)
    return [twice(run, Draws(), torch.ones(2, 3), torch.ones(1), made), made.get_state()]


def global_draws(run: Run) -> Any:
    return twice(
        run,
        Unused(lambda self, x: x * random.random() * float(np.random.rand()) * functional.dropout(x) + torch.rand(1)),
    )


def with_tensor(run: Run) -> Any:
    def body(self: Any, x: Tensor) -> Tensor:
        self.count += 1
        return x * self.count

    model = Unused(body, count=torch.zeros(1))
    return [twice(run, model), model.count]


def with_tensor_written_through_numpy(run: Run) -> Any:
    def body(self: Any, x: Tensor) -> Tensor:
        self.view[0] += 1
        return x * self.count

    count = torch.zeros(1)
    return [twice(run, Unused(body, count=count, view=count.numpy())), count]


def with_tensor_in_a_list(run: Run) -> Any:
    def body(self: Any, x: Tensor) -> Tensor:
        self.memory.append(x.detach())
        self.memory[0].mul_(2)
        return x * len(self.memory)

    model = Unused(body, memory=[])
    return [twice(run, model), model.memory]


def with_stringio(run: Run) -> Any:
    out = io.StringIO()
    model = Unused(lambda self, x: (self.out.write("called\n"), x)[1], out=out)
    return [twice(run, model), out.getvalue()]


def with_queue(run: Run) -> Any:
    import queue

    simple: Any = queue.SimpleQueue()
    model = Unused(lambda self, x: (self.out.put(1), x * self.out.qsize())[1], out=simple)
    return [twice(run, model), simple.qsize()]


def with_deque(run: Run) -> Any:
    def body(self: Any, x: Tensor) -> Tensor:
        self.last.append(float(x.sum()))
        self.counts["calls"] += 1
        return x * self.counts["calls"]

    model = Unused(body, last=collections.deque(maxlen=3), counts=collections.Counter())
    return [twice(run, model), list(model.last)]


def with_resource(run: Run) -> Any:
    kept = Resource("file")
    KEPT.append(kept)  # so that it is dropped after both runs, whoever holds the model
    result = twice(run, Unused(lambda self, x: x * 2, kept=kept))
    gc.collect()
    return [result, list(SEEN), kept.name]


def with_parameter_grad(run: Run) -> Any:
    """Test-time training: a forward that runs a backward of its own."""

    def body(self: Any, x: Tensor) -> Tensor:
        with torch.enable_grad():
            self.linear(x.detach()).square().sum().backward()
        return self.linear(x)

    model = Unused(body, linear=nn.Linear(3, 3))
    return everything(model, twice(run, model))


def with_autograd_grad(run: Run) -> Any:
    def body(self: Any, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        energy = self.linear(x).square().sum()
        return torch.autograd.grad(energy, x, create_graph=True)[0]

    model = Unused(body, linear=nn.Linear(3, 3))
    outputs = twice(run, model)
    sum(output.sum() for output in outputs).backward()
    return everything(model, outputs)


def with_inner_optimizer(run: Run) -> Any:
    def body(self: Any, x: Tensor) -> Tensor:
        with torch.enable_grad():
            self.optimizers[0].zero_grad()
            self.linear(x.detach()).square().sum().backward()
            self.optimizers[0].step()
        return self.linear(x)

    linear = nn.Linear(3, 3)
    model = Unused(body, linear=linear, optimizers=[torch.optim.Adam(linear.parameters(), lr=0.1)])
    state = model.optimizers[0].state_dict  # type: ignore[index]
    return [everything(model, twice(run, model)), state()["state"]]


def parameter_hooks(run: Run) -> Any:
    """A hook that is run for a parameter's gradient, of a forward with a backward in it."""
    seen: list[Tensor] = []

    def body(self: Any, x: Tensor) -> Tensor:
        out = self.linear(x.detach())
        gradient = torch.autograd.grad(out.sum(), self.linear.weight)[0]
        return self.linear(x) + gradient.sum()

    model = Unused(body, linear=nn.Linear(3, 3))
    model.linear.weight.register_hook(lambda grad: seen.append(grad.clone()))  # type: ignore[union-attr]
    return [twice(run, model), seen]


def written_arguments(run: Run) -> Any:
    class Writes(nn.Module):
        def forward(self, x: Tensor, bag: dict[str, Tensor], out: list[Tensor], extra: Tensor) -> Tensor:
            _ = extra + 1
            x.add_(1)
            bag["b"] = bag["a"] * 2
            out.append(x.clone())
            return bag["b"]

    x, bag, out = torch.ones(2), {"a": torch.ones(2)}, []
    return [twice(run, Writes(), x, bag, out, torch.ones(1)), x, bag, out]


def deleted_arguments(run: Run) -> Any:
    class Deletes(nn.Module):
        def forward(self, x: Tensor, bag: dict[str, Tensor], mask: Tensor) -> Tensor:
            bag.pop("a", None)
            y = x * 2
            del x, bag, mask
            return y

    bag = {"a": torch.ones(2)}
    return [twice(run, Deletes(), torch.ones(2), bag, torch.ones(1)), bag]


def lazy_mapping(run: Run) -> Any:
    class Lazy(collections.UserDict):  # type: ignore[type-arg]
        loads = 0

        def __getitem__(self, key: Any) -> Any:
            self.loads += 1
            return super().__getitem__(key)

    class Model(nn.Module):
        def forward(self, batch: Any, extra: Tensor) -> Tensor:
            return batch["a"] + 1

    batch = Lazy(a=torch.ones(2), b=torch.ones(2))
    return [twice(run, Model(), batch, torch.ones(1)), batch.loads]


def hook_on_an_argument(run: Run) -> Any:
    def body(self: Any, x: Tensor) -> Tensor:
        x.register_hook(lambda grad: grad * 2)
        return x * 1

    leaf = torch.ones(2, 3, requires_grad=True)
    outputs = twice(run, Unused(body), leaf * 1, torch.ones(2))
    sum(output.sum() for output in outputs).backward()
    return [outputs, leaf.grad]


def attribute_of_an_argument(run: Run) -> Any:
    def body(self: Any, x: Tensor) -> Tensor:
        x.calls = getattr(x, "calls", 0) + 1  # type: ignore[attr-defined]
        return x * 1

    x = torch.ones(2, 3)
    return [twice(run, Unused(body), x, torch.ones(2)), x.calls]  # type: ignore[attr-defined]


class HoldsForAll(nn.Module):
    """Its class holds a container for all of its objects."""

    store: dict[str, Tensor] = {}

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor, unused: Tensor) -> Tensor:
        _ = unused + 1
        out = self.linear(x)
        self.store[str(len(self.store))] = out
        return out.detach()


def held_by_a_class(run: Run) -> Any:
    HoldsForAll.store.clear()
    model = HoldsForAll()
    outputs = twice(run, model)
    sum(output.sum() for output in model.store.values()).backward()
    return [everything(model, outputs), len(model.store)]


def with_tensor_data(run: Run) -> Any:
    def body(self: Any, x: Tensor) -> Tensor:
        self.sum.data = self.sum.data + 1
        return x * self.sum

    model = Unused(body, sum=torch.ones(1))
    return [twice(run, model), model.sum]


def state_of_an_outer_call(run: Run) -> Any:
    def inner(self: Any, x: Tensor) -> Tensor:
        self.state += 1
        return x * self.state

    child = Unused(inner, state=None)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.child = child

        def forward(self, x: Tensor, unused: Tensor) -> Tensor:
            self.child.state = x * 0  # type: ignore[assignment]
            return self.child(x, unused)  # type: ignore[no-any-return]

    return [twice(run, Outer()), child.state]


def in_an_executor(run: Run) -> Any:
    def body(self: Any, x: Tensor) -> Tensor:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            pool.submit(SEEN.append, 1).result()
            return pool.submit(lambda: (print("called"), x * 2)[1]).result()

    return twice(run, Unused(body))


def method_with_a_cache(run: Run) -> Any:
    class Tables(nn.Module):
        @functools.lru_cache  # noqa: B019 - the point
        def table(self, n: int) -> Tensor:
            return torch.ones(n)

        def forward(self, x: Tensor, unused: Tensor) -> Tensor:
            _ = unused + 1
            return x * self.table(3)

    return [twice(run, Tables()), Tables.table.cache_info().currsize]


SIDE_EFFECTS: dict[str, Scenario] = {
    "hooks": counted_hooks,
    "global hooks": global_hooks,
    "global list": of_class(GlobalInForward),
    "global list in a method": of_class(Methods),
    "global list in a bound function": of_body(global_list),
    "global counter in a bound function": of_body(global_counter),
    "global object": of_class(GlobalObjectInForward),
    "global object in a bound function": of_body(global_object),
    "global generator": of_class(GlobalGenerator),
    "global numpy generator": of_class(GlobalNumpyGenerator),
    "class counter": of_class(ClassCounter),
    "counter of its own type": of_class(OwnTypeCounter),
    "class counter in a bound function": of_body(class_counter),
    "default argument": of_class(DefaultArgument),
    "function attribute": of_class(FunctionAttribute),
    "own counter": of_body(own_counter, calls=int, history=list, table=dict),
    "random numbers": global_draws,
    **{
        function.__name__.replace("_", " "): function
        for function in (
            with_list, with_function, with_partial, with_iterator, with_own_iterator, with_array, with_bytearray,
            with_slots, with_numpy_generator, with_numpy_random_state, with_python_random, with_generator,
            given_generator, with_tensor, with_tensor_written_through_numpy, with_tensor_in_a_list, with_stringio,
            with_queue, with_deque, with_resource, with_parameter_grad, with_autograd_grad, with_inner_optimizer,
            hook_on_an_argument, attribute_of_an_argument, held_by_a_class, with_tensor_data, state_of_an_outer_call,
            in_an_executor, method_with_a_cache, parameter_hooks, written_arguments, deleted_arguments, lazy_mapping,
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SIDE_EFFECTS)
def test_side_effects_are_not_repeated(name: str) -> None:
    def scenario(run: Run) -> Any:
        reset_globals()
        result = SIDE_EFFECTS[name](run)
        return [result, list(SEEN), STATS.calls, TOTAL, GENERATOR.get_state(), str(NUMBERS.bit_generator.state)]

    check(scenario)
    reset_globals()


@pytest.mark.parametrize("where", ["stdout", "stderr", "sys.stderr.write"])
def test_nothing_is_printed_twice(where: str, capfd: pytest.CaptureFixture[str]) -> None:
    def body(self: Any, x: Tensor) -> Tensor:
        if where == "sys.stderr.write":
            sys.stderr.write("called\n")
        else:
            print("called", file=getattr(sys, where))
        return x * 2

    def scenario(run: Run) -> Any:
        capfd.readouterr()
        return [twice(run, Unused(body)), list(capfd.readouterr())]

    check(scenario)


def test_nothing_is_logged_twice(caplog: pytest.LogCaptureFixture) -> None:
    def body(self: Any, x: Tensor) -> Tensor:
        logging.getLogger("some.model").warning("called")
        return x * 2

    def scenario(run: Run) -> Any:
        caplog.clear()
        return [twice(run, Unused(body)), [record.getMessage() for record in caplog.records]]

    check(scenario)


@pytest.mark.parametrize("action", ["default", "always", "once"])
def test_nothing_is_warned_of_twice(action: Any) -> None:
    def body(self: Any, x: Tensor) -> Tensor:
        warnings.warn("called", UserWarning, stacklevel=1)
        return x * 2

    def scenario(run: Run) -> Any:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter(action)
            globals().pop("__warningregistry__", None)
            result = twice(run, Unused(body))
        return [result, [str(one.message) for one in caught]]

    check(scenario)


def test_other_threads_are_heard_during_a_replay() -> None:
    """While one thread runs a module again, another may log, print, warn and draw random numbers."""

    def body(self: Any, x: Tensor) -> Tensor:
        time.sleep(0.1)
        return x * 2

    def scenario(run: Run) -> Any:
        heard: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
        logger = logging.getLogger("some.other.thread")
        logger.addHandler(handler)
        logger.propagate = False
        stop, sent = threading.Event(), []

        def talk() -> None:
            while not stop.is_set():
                sent.append(1)
                logger.warning("hello")
                time.sleep(0.01)

        talker = threading.Thread(target=talk)
        talker.start()
        try:
            result = twice(run, Unused(body))
        finally:
            stop.set()
            talker.join()
            logger.removeHandler(handler)
        return [result, len(sent) - len(heard)]

    check(scenario)


def test_the_users_modes_see_no_operator_of_a_replay() -> None:
    def scenario(run: Run) -> Any:
        model, (x, mask) = Net(), inputs()
        with Log() as log, run(model):
            output = model(x, mask)
        return [output, log.names]

    check(scenario, finds=True)


def test_the_users_function_modes_see_nothing_of_the_audit() -> None:
    from torch.overrides import TorchFunctionMode

    names: list[str] = []

    class Functions(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(getattr(func, "__name__", str(func)))
            return func(*args, **(kwargs or {}))

    def scenario(run: Run) -> Any:
        names.clear()
        model, (x, mask) = Net(), inputs()
        with run(model), Functions():
            output = model(x, mask)
        return [output, list(names)]

    check(scenario, finds=True)


def test_saved_tensors_hooks_and_gradient_hooks() -> None:
    def scenario(run: Run) -> Any:
        model, (x, mask), seen = Net(), inputs(), []
        x.requires_grad_()
        x.register_hook(lambda grad: seen.append(grad.clone()))
        model.blocks[0].register_full_backward_hook(lambda m, given, got: seen.append(got[0].clone()))
        model.blocks[1].register_full_backward_pre_hook(lambda m, got: seen.append(got[0].clone()))

        def pack(tensor: Tensor) -> Tensor:
            seen.append(tensor.detach().clone())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), run(model):
            output = model(x, mask)
            output.sum().backward()
        return [everything(model, output), seen]

    check(scenario, finds=True)


def test_double_backward() -> None:
    def scenario(run: Run) -> Any:
        model, (x, mask) = Net().eval(), inputs()
        x.requires_grad_()
        with run(model):
            (gradient,) = torch.autograd.grad(model(x, mask).square().sum(), x, create_graph=True)
            gradient.square().sum().backward()
        return [gradient, x.grad, everything(model, None)]

    check(scenario, finds=True)


# ------------------------------------------------------------------------------------------------- kinds of tensors


class Functional(Tensor):
    """Tells of what is called on it, and does some of it itself."""

    seen: list[str] = []
    handled: dict[Any, Any] = {}

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(getattr(func, "__name__", str(func)))
        if func in cls.handled:
            return cls.handled[func](*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs or {})


Functional.handled = {
    Tensor.size: lambda self, *args: 100,
    torch.numel: lambda self: 1000,
    Tensor.dim: lambda self: 7,
}


def functional_subclass(run: Run) -> Any:
    Functional.seen.clear()
    x = torch.randn(2, 3).as_subclass(Functional)
    outputs = twice(run, Unused(lambda self, x: torch.relu(x) * x.shape[0]), x, x * 2)
    return [outputs, list(Functional.seen)]


def functional_subclass_that_handles(run: Run) -> Any:
    x = torch.randn(2, 3).as_subclass(Functional)
    return twice(run, Unused(lambda self, x: [x.size(), x.dim(), torch.numel(x)]), x, torch.ones(1))


class Refuses(Tensor):
    """Knows two functions and no other."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") not in ("add", "__get__"):
            raise TypeError(f"{func.__name__} is not known")
        return super().__torch_function__(func, types, args, kwargs or {})


def refusing_subclass(run: Run) -> Any:
    class Writes(nn.Module):
        def forward(self, x: Tensor, other: Tensor, extra: Tensor) -> Any:
            buffer = torch.zeros(2, 3)
            buffer.copy_(other)
            return [torch.add(x, 1), x.shape[0], x.dtype, buffer]

    model = Writes()
    x = torch.ones(2, 3).as_subclass(Refuses)
    with run(model):
        output = model(x, torch.ones(2, 3), torch.ones(1))
    return [output[0].as_subclass(Tensor), *output[1:]]


def wrapper_subclass(run: Run) -> Any:
    from torch.testing._internal.two_tensor import TwoTensor

    x = TwoTensor(torch.randn(3, 4), torch.randn(3, 4))
    output = twice(run, Small(), x, x * 2)
    return [[one.a, one.b] for one in output]


def sparse(run: Run) -> Any:
    class Model(nn.Module):
        def forward(self, x: Tensor, y: Tensor, extra: Tensor) -> Any:
            _ = extra * 2
            return [torch.sparse.mm(x, y), x * 2, x.shape[0]]

    x = torch.eye(3).to_sparse()
    return twice(run, Model(), x, torch.randn(3, 3), torch.eye(3).to_sparse())


def nested(run: Run) -> Any:
    x = torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)], layout=torch.jagged)
    output = twice(run, Unused(lambda self, x: torch.relu(x) * 2), x, x * 2)
    return [list(one.unbind()) for one in output]


def views(run: Run) -> Any:
    x = torch.randn(4, 6)
    outputs = twice(run, Unused(lambda self, x: x.t().contiguous()[:, 1:]), x[::2].expand(2, 2, 6)[0], x.t()[:0])
    return [outputs, [one.is_contiguous() for one in outputs]]


KINDS = [
    functional_subclass, functional_subclass_that_handles, refusing_subclass, wrapper_subclass, sparse, nested, views,
]  # fmt: skip


@pytest.mark.parametrize("scenario", KINDS, ids=lambda scenario: scenario.__name__)
def test_kinds_of_tensors(scenario: Scenario) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(scenario)


# ------------------------------------------------------------------------------------------------- ways of calling


def test_an_exception_goes_through_unchanged() -> None:
    raised = ValueError("mine")

    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Unused(lambda self, x: x)

        def forward(self, x: Tensor, fail: bool) -> Tensor:
            x = self.inner(x, x * 2)
            if fail:
                raise raised
            return x

    model = Fails()
    before = installed()
    with pytest.raises(ValueError, match="mine") as caught, audit_inputs(model):
        model(torch.ones(1), True)
    assert caught.value is raised
    assert raised.__cause__ is None
    assert raised.__context__ is None
    assert left_behind(before) == []
    with audit_inputs(model) as audit:
        with pytest.raises(ValueError, match="mine"):
            model(torch.ones(1), True)
        model(torch.ones(1), False)
    assert audit.failure is None
    assert audit.verdicts["", "x"] == "passed_through"
    assert left_behind(before) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RecursionError, StopIteration])
def test_exceptions_of_every_kind(error: type[BaseException]) -> None:
    def body(self: Any, x: Tensor) -> Tensor:
        raise error

    before = installed()
    model = Unused(body)
    with audit_inputs(model) as audit, pytest.raises(error):
        model(torch.ones(1), torch.ones(1))
    assert audit.failure is None
    assert left_behind(before) == []


def test_two_audits_at_once() -> None:
    before, model = installed(), Net()
    with audit_inputs(model) as audit:
        held = installed()
        with pytest.raises(RuntimeError, match="already running in this process.*Leave its `with` block first"):
            audit_inputs(model).__enter__()
        assert left_behind(held) == ["Tracer.active"]
        with pytest.raises(RuntimeError, match="already running"), audit:
            pass
        model(*inputs())
        assert audit.verdicts
    assert left_behind(before) == []
    with audit_inputs(model):
        pass
    assert left_behind(before) == []


def test_threads() -> None:
    def scenario(run: Run) -> Any:
        model = Net().eval()
        given = [inputs() for _ in range(4)]
        outputs: list[Any] = [None] * 4

        def work(index: int) -> None:
            for _ in range(5):
                outputs[index] = model(*given[index])

        with run(model):
            threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return everything(model, outputs)

    check(scenario, finds=True)


@pytest.mark.usefixtures("fresh")
def test_threads_that_stand_aside() -> None:
    """What is opaque takes the wrappers off and puts them back, in each thread that calls it."""

    class Opaque(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            time.sleep(0.0005)
            return x.clone()

    part = Opaque()
    part._compiled_call_impl = part._call_impl
    model = nn.Sequential(part, nn.ReLU())
    before, failures = installed(), []

    def work() -> None:
        try:
            for _ in range(40):
                model(torch.ones(2))
        except BaseException as error:
            failures.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with audit_inputs(model):
            held = installed()
            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert nn.Module.__call__ is held[OWNERS.index(nn.Module), "__call__"]  # still watching
    finally:
        sys.setswitchinterval(interval)
        if Tracer.active is not None:
            Tracer.active.remove()
    assert failures == []
    assert left_behind(before) == []


def test_generator_forward() -> None:
    def body(self: Any, x: Tensor) -> Iterator[Tensor]:
        for factor in range(3):
            yield self.linear(x) * factor

    def scenario(run: Run) -> Any:
        model = Unused(body, linear=nn.Linear(3, 3))
        with run(model):
            return list(model(torch.randn(2, 3), torch.ones(1)))

    check(scenario)


def test_deep_recursion() -> None:
    class Deep(nn.Module):
        def __init__(self, below: nn.Module | None) -> None:
            super().__init__()
            self.below = below

        def forward(self, x: Tensor, extra: Tensor) -> Tensor:
            return x + 1 if self.below is None else self.below(x, extra)

    def scenario(run: Run) -> Any:
        model: nn.Module = Deep(None)
        for _ in range(100):
            model = Deep(model)
        with run(model):
            return model(torch.ones(1), torch.ones(1))

    check(scenario)


def test_data_loader_in_a_thread() -> None:
    from torch.utils.data import DataLoader, TensorDataset

    def scenario(run: Run) -> Any:
        model = Net(0.3)
        data = TensorDataset(torch.randn(12, 4), torch.rand(12, 4) > 0.5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with run(model):
            for x, mask in DataLoader(data, batch_size=4, shuffle=True):
                optimizer.zero_grad()
                model(x, mask).sum().backward()
                optimizer.step()
        return everything(model, None)

    check(scenario, finds=True)


def test_a_model_is_not_kept_alive() -> None:
    model = Net()
    with audit_inputs(model):
        model(*inputs())
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


def test_calibration_calls_none_of_the_users_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    calibrated: dict[tuple[bool, bool], int] = {}
    monkeypatch.setattr("lightning_freeze.inputs.audit.SOLE", calibrated)
    seen: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, a, o: seen.append(type(m).__name__))
    try:
        with Log() as log, audit_inputs(nn.Identity()):
            pass
    finally:
        handle.remove()
    assert seen == []
    assert log.names == []
    assert len(calibrated) == 3


# ------------------------------------------------------------------------------------------------- Hugging Face


@pytest.mark.parametrize("cache", ["dynamic", "static", "none"])
def test_generate(cache: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, bos_token_id=1, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip

    def scenario(run: Run) -> Any:
        model = transformers.LlamaForCausalLM(config).eval()
        options = {"cache_implementation": "static"} if cache == "static" else {"use_cache": cache == "dynamic"}
        tokens, mask = torch.tensor([[1, 2, 3], [0, 4, 5]]), torch.tensor([[1, 1, 1], [0, 1, 1]])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with run(model):
                sampled = model.generate(tokens, attention_mask=mask, max_new_tokens=4, do_sample=True, **options)
                made = transformers.DynamicCache(config=config)
                output = model(tokens, attention_mask=mask, past_key_values=made, use_cache=True)
                again = model(tokens[:, :1], past_key_values=made, use_cache=True)
        return [sampled, output.logits, again.logits, made.get_seq_length()]

    check(scenario)


# ------------------------------------------------------------------------------------------------- several processes


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    store = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_ddp_of_one() -> None:
    def scenario(run: Run) -> Any:
        return trained(nn.parallel.DistributedDataParallel(Net(0.5)), run, *inputs())

    check(scenario, finds=True)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("training", [True, False])
def test_fsdp(training: bool) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    def scenario(run: Run) -> Any:
        mesh = init_device_mesh("cpu", (1,))
        model = Net(0.5)
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        if training:
            return trained(model, run, *inputs())
        model.eval()
        with run(model), torch.no_grad():
            output = model(*inputs())
        return [output, dict(model.named_parameters()), [type(p).__name__ for p in model.parameters()]]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(scenario, finds=True)


def of_two(rank: int, root: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{root}/store", rank=rank, world_size=2)

    def scenario(run: Run) -> Any:
        model = nn.parallel.DistributedDataParallel(Net(0.5), find_unused_parameters=True)
        torch.manual_seed(rank)
        return trained(model, run, *inputs())

    check(scenario, finds=True)
    torch.distributed.destroy_process_group()
    Path(root, f"done-{rank}").touch()


@pytest.mark.slow
def test_ddp_of_two(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(of_two, (str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    assert len(list(tmp_path.glob("done-*"))) == 2


# ------------------------------------------------------------------------------------------------- several threads


@pytest.mark.slow
def test_other_threads_run_while_an_audit_is_first_made() -> None:
    """In a process of its own: what the first audit measures is measured once."""
    program = """
import threading, torch
from torch import nn
from lightning_freeze import audit_inputs
linear, results, go = nn.Linear(2, 2), [], True
def work():
    while go:
        results.append(linear(torch.ones(2)))
thread = threading.Thread(target=work)
thread.start()
while len(results) < 100: pass
module = nn.Linear(2, 2)
with audit_inputs(module):
    module(torch.ones(2))
go = False
thread.join()
print(sum(result is None for result in results))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert (done.stdout.strip(), done.returncode) == ("0", 0), done.stderr


def test_two_replays_at_once_leave_the_streams_and_loggers_as_they_were() -> None:
    def slow(seconds: float) -> Callable[[Any, Tensor], Tensor]:
        def body(self: Any, x: Tensor) -> Tensor:
            time.sleep(seconds)
            return x * 2

        return body

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([Unused(slow(0.1)), Unused(slow(0.15))])

    pair = Pair()
    before = (sys.stdout, sys.stderr, logging.Logger.handle, warnings._showwarnmsg)  # type: ignore[attr-defined]
    with audit_inputs(pair) as audit, concurrent.futures.ThreadPoolExecutor(2) as pool:
        done = [pool.submit(part, torch.ones(3), torch.ones(2)) for part in pair.parts]
        assert all(torch.equal(future.result(), torch.full((3,), 2.0)) for future in done)
    assert (sys.stdout, sys.stderr, logging.Logger.handle, warnings._showwarnmsg) == before  # type: ignore[attr-defined]
    assert audit.failure is None
    assert [(f.kind, f.confirmed) for f in audit.findings] == [("dead", True)] * 2


def test_a_run_that_is_profiled_is_not_replayed_and_stays_profiled() -> None:
    import cProfile

    def scenario(run: Run) -> Any:
        profile = cProfile.Profile()
        with profile:
            result = twice(run, Unused(lambda self, x: x * 2))
        return [result, sys.getprofile() is None]

    check(scenario)
    run = Run(True)
    with cProfile.Profile():
        scenario(run)
    assert [(f.kind, f.confirmed) for audit in run.audits for f in audit.findings] == [("dead", False)]
