"""Ways through a forward: branches, loops, errors, generators, threads, decorators, and the shapes of real models."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import types
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cases import Built, case


@case({("", "x"): "used", ("", "score"): "used", ("", "left"): "conditional", ("", "right"): "conditional"})
def control_branch_by_score() -> Built:
    torch.manual_seed(0)

    class Branching(nn.Module):
        def forward(self, x: Tensor, score: Tensor, left: Tensor, right: Tensor) -> Tensor:
            if score.mean() > 0:
                return x + left
            return x - right

    x, left, right = torch.randn(2), torch.randn(2), torch.randn(2)
    return Branching(), lambda module: [module(x, torch.full((3,), s), left, right) for s in (0.2, -0.2)]


class _Smoothing(nn.Module):
    """Label noise while training only."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 2)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        logits = self.lin(x)
        if self.training:
            logits = logits + noise
        return logits.log_softmax(-1)


@case({("", "x"): "used", ("", "noise"): "used", ("lin", "input"): "used"})
def control_noise_in_training() -> Built:
    torch.manual_seed(0)
    x, noise = torch.randn(2, 3), torch.randn(2, 2)
    return _Smoothing(), lambda module: module(x, noise)


@case({("", "x"): "used", ("", "noise"): "unused", ("lin", "input"): "used"})
def control_noise_in_evaluation() -> Built:
    torch.manual_seed(0)
    x, noise = torch.randn(2, 3), torch.randn(2, 2)
    return _Smoothing().eval(), lambda module: module(x, noise)


@case({("", "x"): "used", ("", "noise"): "conditional", ("lin", "input"): "used"})
def control_noise_in_both() -> Built:
    torch.manual_seed(0)
    x, noise = torch.randn(2, 3), torch.randn(2, 2)
    return _Smoothing(), lambda module: [module.train(mode)(x, noise) for mode in (True, False)]


@case(
    {
        ("", "x"): "used",
        ("", "lengths"): "used",
        ("", "times"): "metadata",
        ("cell", "input"): "used",
        ("cell", "hx"): "used",
    }
)
def control_loop_over_time() -> Built:
    """The steps are counted off the times; finished rows keep their state."""
    torch.manual_seed(0)

    class Stepping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.RNNCell(2, 3)

        def forward(self, x: Tensor, lengths: Tensor, times: Tensor) -> Tensor:
            h = x.new_zeros(x.size(1), 3)
            for t in range(times.size(0)):
                new = self.cell(x[t], h)
                h = torch.where((t < lengths)[:, None], new, h)
            return h

    x, times = torch.randn(3, 2, 2), torch.linspace(0, 1, 3)
    return Stepping(), lambda module: module(x, torch.tensor([1, 3]), times)


@case(
    {
        ("", "x"): "used",
        ("", "limit"): "used",
        ("", "extra"): "unused",
        ("layers.0", "input"): "used",
        ("layers.1", "input"): "used",
    }
)
def control_early_exit() -> Built:
    """The loop ends before the layer that would have taken the extra input."""
    torch.manual_seed(0)

    class Exiting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(4))

        def forward(self, x: Tensor, limit: Tensor, extra: Tensor) -> Tensor:
            for index, layer in enumerate(self.layers):
                if index >= limit:
                    break
                x = layer(x + extra if index == 3 else x).tanh()
            return x

    x, extra = torch.randn(1, 2), torch.randn(2)
    return Exiting(), lambda module: module(x, torch.tensor(2), extra)


class _Strict(nn.Module):
    """Refuses sequences that are too long, after it has read the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.lin(x) * mask
        if x.shape[0] > 2:
            raise ValueError(f"at most 2 rows, not {x.shape[0]}")
        return h


class _Falling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.strict, self.simple = _Strict(), nn.Linear(3, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        try:
            return self.strict(x, mask)
        except ValueError:
            return self.simple(x)


@case({("", "x"): "used", ("", "mask"): "dead", ("strict.lin", "input"): "used", ("simple", "input"): "used"})
def control_child_raises_and_parent_falls_back() -> Built:
    """The child multiplied by the mask before it gave up; the fallback knows no mask."""
    torch.manual_seed(0)
    x, mask = torch.randn(3, 3), torch.rand(3, 1)
    return _Falling(), lambda module: module(x, mask)


@case(
    {
        ("", "x"): "used",
        ("", "mask"): "conditional",
        ("strict", "x"): "used",
        ("strict", "mask"): "used",
        ("strict.lin", "input"): "used",
        ("simple", "input"): "used",
    }
)
def control_child_raises_once() -> Built:
    torch.manual_seed(0)
    calls = [(torch.randn(rows, 3), torch.rand(rows, 1)) for rows in (2, 3)]
    return _Falling(), lambda module: [module(*call) for call in calls]


@case({("", "x"): "used", ("", "aux"): "unused", ("lin", "input"): "used"})
def control_call_that_raises_does_not_count() -> Built:
    """`aux` was read only by the call that failed."""
    torch.manual_seed(0)

    class Fussy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(2, 2)

        def forward(self, x: Tensor, aux: Tensor, bound: float) -> Tensor:
            y = self.lin(x)
            if bound < 0:
                y = y + aux
                raise ValueError("the bound is negative")
            return y.clamp(-bound, bound)

    x, aux = torch.randn(2, 2), torch.randn(2)

    def run(module: nn.Module) -> Tensor:
        with contextlib.suppress(ValueError):
            module(x, aux, -1.0)
        return module(x, aux, 10.0)

    return Fussy(), run


@case({("", "x"): "used", ("", "widths"): "used", ("", "rest"): "unused", ("lin", "input"): "used"})
def control_generator_consumed_inside() -> Built:
    """The generator also carries the rest along, and never comes to use it."""
    torch.manual_seed(0)

    class Chunked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(2, 2)

        def _chunks(self, x: Tensor, widths: Tensor, rest: Tensor) -> Iterator[Tensor]:
            for chunk, width in zip(x.split(1), widths, strict=True):
                yield self.lin(chunk) / width
            if x.shape[0] == 0:
                yield rest

        def forward(self, x: Tensor, widths: Tensor, rest: Tensor) -> Tensor:
            return torch.cat(list(self._chunks(x, widths, rest)))

    x, widths, rest = torch.randn(3, 2), torch.rand(3) + 1, torch.randn(1, 2)
    return Chunked(), lambda module: module(x, widths, rest)


@case({("", "x"): "used", ("", "scale"): "used"})
def control_forward_is_a_generator() -> Built:
    """What is returned is a generator that has yet to read its arguments."""
    torch.manual_seed(0)

    class Yielding(nn.Module):
        def forward(self, x: Tensor, scale: Tensor) -> Iterator[Tensor]:
            for row in x:
                yield row * scale

    x, scale = torch.randn(3, 2), torch.rand(2)
    return Yielding(), lambda module: list(module(x, scale))


@case(
    {
        ("", "x"): "used",
        ("", "y"): "used",
        ("", "z"): "dead",
        ("left", "input"): "used",
        ("right", "input"): "used",
    }
)
def control_children_called_in_threads() -> Built:
    """Two towers run at once; a third piece of work is done and never asked for."""
    torch.manual_seed(0)

    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(2, 3), nn.Linear(2, 3)

        def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
            with ThreadPoolExecutor(max_workers=2) as pool:
                left, right = pool.submit(self.left, x), pool.submit(self.right, y)
                pool.submit(torch.square, z)
            return (left.result() * right.result()).sum(-1)

    x, y, z = torch.randn(2, 2), torch.randn(2, 2), torch.randn(3)
    return Towers(), lambda module: module(x, y, z)


@case({("", "frames[0]"): "used", ("", "frames[1]"): "used", ("", "gain"): "used", ("", "rate"): "metadata"})
def control_tensors_used_in_threads() -> Built:
    torch.manual_seed(0)

    class Spectra(nn.Module):
        def forward(self, frames: tuple[Tensor, ...], gain: Tensor, rate: Tensor) -> Tensor:
            def one(frame: Tensor) -> Tensor:
                return (frame * gain).cumsum(0)[: rate.numel()]

            with ThreadPoolExecutor(max_workers=2) as pool:
                return torch.stack(list(pool.map(one, frames)))

    frames = torch.randn(4), torch.randn(4)
    return Spectra(), lambda module: module(frames, torch.rand(4), torch.ones(3))


@case({("", "x"): "used", ("", "prior"): "used", ("", "late"): "dead"})
def control_coroutines_awaited() -> Built:
    torch.manual_seed(0)

    class Awaiting(nn.Module):
        async def _scaled(self, x: Tensor, by: Tensor) -> Tensor:
            await asyncio.sleep(0)
            return x * by

        async def _all(self, x: Tensor, prior: Tensor, late: Tensor) -> Tensor:
            first, _second = await asyncio.gather(self._scaled(x, prior), self._scaled(x, late))
            return first

        def forward(self, x: Tensor, prior: Tensor, late: Tensor) -> Tensor:
            return asyncio.run(self._all(x, prior, late))

    x, prior, late = torch.randn(3), torch.rand(3), torch.rand(3)
    return Awaiting(), lambda module: module(x, prior, late)


@case(
    {
        ("", "logits"): "used",
        ("", "target"): "used",
        ("", "weight"): "used",
        ("", "aux"): "dead",
        ("", "mask"): "unused",
    }
)
def control_modules_made_on_the_fly() -> Built:
    """The criteria are no part of the tree; the second one's loss is dropped."""
    torch.manual_seed(0)

    class Criteria(nn.Module):
        def forward(self, logits: Tensor, target: Tensor, weight: Tensor, aux: Tensor, mask: Tensor) -> Tensor:
            loss = nn.CrossEntropyLoss(weight=weight)(logits, target)
            _other = nn.SmoothL1Loss()(nn.Softmax(dim=-1)(logits), aux)
            return loss

    inputs = torch.randn(2, 3), torch.tensor([0, 2]), torch.rand(3), torch.rand(2, 3), torch.ones(2)
    return Criteria(), lambda module: module(*inputs)


@case({("", "x"): "used", ("", "alpha"): "used", ("", "beta"): "unused"})
def control_lambda_looked_up() -> Built:
    """The lambda in the table takes two settings and needs one."""
    torch.manual_seed(0)
    table: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "leaky": lambda x, alpha, beta: torch.where(x > 0, x, alpha * x),
        "swish": lambda x, alpha, beta: x * (beta * x).sigmoid(),
    }

    class Activation(nn.Module):
        def __init__(self, kind: str) -> None:
            super().__init__()
            self.act = table[kind]

        def forward(self, x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
            return self.act(x, alpha, beta)

    x = torch.tensor([-1.0, 0.5, -0.3])
    return Activation("leaky"), lambda module: module(x, torch.tensor(0.1), torch.tensor(1.5))


def _in_double(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Hand every tensor over in double precision."""

    @functools.wraps(forward)
    def wrapper(self: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        args = tuple(arg.double() if isinstance(arg, Tensor) else arg for arg in args)
        kwargs = {key: arg.double() if isinstance(arg, Tensor) else arg for key, arg in kwargs.items()}
        return forward(self, *args, **kwargs)

    return wrapper


def _without_mask(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Drop the mask that old callers still send."""

    @functools.wraps(forward)
    def wrapper(self: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        kwargs.pop("mask", None)
        return forward(self, *args, **kwargs)

    return wrapper


def _opaque(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same without a trace of what is wrapped."""

    def wrapper(self: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        return forward(self, *args, **kwargs)

    return wrapper


@case({("", "x"): "used", ("", "scale"): "used", ("lin", "input"): "used"})
def control_decorator_converts() -> Built:
    torch.manual_seed(0)

    class Double(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(2, 2).double()

        @_in_double
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return self.lin(x) * scale

    x, scale = torch.randn(2, 2), torch.rand(2)
    return Double(), lambda module: module(x, scale=scale)


@case(
    {
        ("", "x"): "used",
        ("", "mask"): "passed_through",
        ("block", "x"): "used",
        ("block", "mask"): "unused",
    }
)
def control_decorator_pops_keyword() -> Built:
    """The forward would use the mask; the decorator takes it away first."""
    torch.manual_seed(0)

    class Block(nn.Module):
        @_without_mask
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return x.cumsum(-1) if mask is None else (x * mask).cumsum(-1)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return self.block(x, mask=mask).relu()

    x, mask = torch.randn(2, 3), torch.tensor([1.0, 1.0, 0.0])
    return Outer(), lambda module: module(x, mask)


@case({("", "args[0]"): "used", ("", "args[1]"): "unused", ("", "kwargs['scale']"): "used"})
def control_decorator_hides_names() -> Built:
    """Without the names the leaves are called by their places."""
    torch.manual_seed(0)

    class Hidden(nn.Module):
        @_opaque
        def forward(self, x: Tensor, mask: Tensor, scale: Tensor) -> Tensor:
            return x.square() * scale

    x, mask, scale = torch.randn(2), torch.ones(2), torch.rand(2)
    return Hidden(), lambda module: module(x, mask, scale=scale)


@case(
    {
        ("", "x"): "used",
        ("proj", "input"): "used",
        ("down", "input"): "used",
        ("up", "input"): "used",
    }
)
def control_forward_patched_with_low_rank() -> Built:
    """The layer's own forward is replaced on the instance by one that adds a low-rank path."""
    torch.manual_seed(0)

    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj, self.down, self.up = nn.Linear(3, 3), nn.Linear(3, 1), nn.Linear(1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.proj(x)

    adapted, x = Adapted(), torch.randn(2, 3)

    def patched(self: nn.Linear, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias) + adapted.up(adapted.down(input))

    adapted.proj.forward = types.MethodType(patched, adapted.proj)
    return adapted, lambda module: module(x)


@case(
    {
        ("", "x"): "used",
        ("", "mask"): "passed_through",
        ("attend", "q"): "used",
        ("attend", "bias"): "unused",
    }
)
def control_forward_patched_to_ignore() -> Built:
    """The replacement has names of its own, and no use for the second argument."""
    torch.manual_seed(0)

    class Attend(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return (x @ x.mT + mask).softmax(-1) @ x

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = Attend()

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.attend(x, mask) + x

    outer, x, mask = Outer(), torch.randn(2, 3), torch.randn(2, 2)

    def fast(q: Tensor, bias: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, q, q)

    outer.attend.forward = fast
    return outer, lambda module: module(x, mask)


class _Scripted(nn.Module):
    """Small enough to be scripted; ignores its mask."""

    def forward(self, x: Tensor, mask: Tensor, scale: Tensor) -> Tensor:
        if x.dim() > 2:
            return x.flatten(1) * mask
        return torch.tanh(x) * scale


def _script(made: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # scripting is on its way out, and still about
        return torch.jit.script(made)


@case(
    {
        ("", "x"): "used",
        ("", "mask"): "passed_through",
        ("", "scale"): "used",
        ("inner", "x"): "used",
        ("inner", "mask"): "unused",
        ("inner", "scale"): "used",
    }
)
def control_scripted_child_ignores_mask() -> Built:
    torch.manual_seed(0)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = _script(_Scripted())

        def forward(self, x: Tensor, mask: Tensor, scale: Tensor) -> Tensor:
            return self.inner(x, mask, scale) + 1

    x, mask, scale = torch.randn(2, 3), torch.ones(3), torch.rand(3)
    return Outer(), lambda module: module(x, mask, scale)


def _gelu_with_bias(x: Tensor, bias: Tensor) -> Tensor:
    y = x + bias
    return y * 0.5 * (1.0 + torch.tanh(0.79788456 * y * (1 + 0.044715 * y * y)))


@case({("", "x"): "used", ("", "bias"): "used", ("", "residual"): "dead", ("lin", "input"): "used"})
def control_scripted_function() -> Built:
    torch.manual_seed(0)

    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(3, 3)
            self.fused = _script(_gelu_with_bias)

        def forward(self, x: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
            y = self.fused(self.lin(x), bias)
            _skipped = residual + y
            return y

    x, bias, residual = torch.randn(2, 3), torch.randn(3), torch.randn(2, 3)
    return Fused(), lambda module: module(x, bias, residual)


class _Inner(nn.Module):
    """Compiled in the cases below; ignores its mask."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.lin(x).relu()


class _Summing(nn.Module):
    """Compiled in the cases below; adds its bias."""

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return (x + bias).sigmoid()


@case(
    {
        ("", "x"): "used",
        ("", "mask"): "passed_through",
        ("inner", "x"): "used",
        ("inner", "mask"): "unused",
    }
)
def control_compiled_child_ignores_mask() -> Built:
    """What is called inside the compiled part gets no verdicts of its own."""
    torch.manual_seed(0)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.compile(_Inner(), backend="eager")

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.inner(x, mask).sum(-1)

    x, mask = torch.randn(2, 3), torch.ones(2, 3)
    return Outer(), lambda module: module(x, mask)


@case(
    {
        ("", "x"): "used",
        ("", "bias"): "used",
        ("", "aux"): "dead",
        ("inner", "x"): "used",
        ("inner", "bias"): "used",
        ("head", "input"): "used",
    }
)
def control_compiled_child_used_and_dropped() -> Built:
    """The same compiled child is called twice, and its second answer dropped."""
    torch.manual_seed(0)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = torch.compile(_Summing(), backend="eager"), nn.Linear(3, 1)

        def forward(self, x: Tensor, bias: Tensor, aux: Tensor) -> Tensor:
            y = self.inner(x, bias)
            _other = self.inner(x, aux)
            return self.head(y)

    x, bias, aux = torch.randn(2, 3), torch.randn(3), torch.randn(3)
    return Outer(), lambda module: module(x, bias, aux)


@case({("", "x"): "used", ("", "mask"): "unused"})
def control_compiled_root() -> Built:
    torch.manual_seed(0)
    x, mask = torch.randn(2, 3), torch.ones(2, 3)
    return torch.compile(_Inner(), backend="eager"), lambda module: module(x, mask)


@case(
    {
        ("", "image"): "used",
        ("", "path"): "unused",
        ("net", "input"): "used",
        ("net.0", "input"): "used",
        ("net.1", "input"): "used",
        ("net.2", "input"): "passed_through",
        ("net.3", "input"): "used",
        ("net.4", "input"): "passed_through",
    }
)
def control_sequential_with_views() -> Built:
    """Flattening gives a view, and the identity gives back what it was given."""
    torch.manual_seed(0)

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2), nn.Identity())

        def forward(self, image: Tensor, path: Tensor) -> Tensor:
            return self.net(image).softmax(-1)

    image = torch.randn(2, 1, 4, 4)
    return Classifier(), lambda module: module(image, torch.tensor([3, 4]))


@case(
    {
        ("", "text"): "conditional",
        ("", "image"): "conditional",
        ("", "audio"): "unused",
        ("towers.text", "input"): "used",
        ("towers.image", "input"): "used",
    }
)
def control_module_dict_by_kind() -> Built:
    """Each call takes the tower it names, and nobody names the sound."""
    torch.manual_seed(0)

    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.towers = nn.ModuleDict({kind: nn.Linear(2, 2) for kind in ("text", "image", "audio")})

        def forward(self, kind: str, text: Tensor, image: Tensor, audio: Tensor) -> Tensor:
            match kind:
                case "text":
                    return self.towers["text"](text)
                case "image":
                    return self.towers[kind](image)
                case _:
                    return self.towers["audio"](audio)

    inputs = torch.randn(1, 2), torch.randn(1, 2), torch.randn(1, 2)
    return Routed(), lambda module: [module(kind, *inputs) for kind in ("text", "image")]


class _Chunks(nn.Module):
    """An LSTM over chunks of a sequence, whose state is handed on or forgotten."""

    def __init__(self, forgets: bool) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 1)
        self.forgets = forgets

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, state = self.lstm(x) if self.forgets else self.lstm(x, state)
        return self.head(h), state


def _chunked(forgets: bool) -> Built:
    torch.manual_seed(0)
    chunks = [torch.randn(1, 2, 2) for _ in range(3)]

    def run(module: nn.Module) -> list[Tensor]:
        answers, state = [], None
        for chunk in chunks:
            answer, state = module(chunk, state)
            answers.append(answer)
        return answers

    return _Chunks(forgets), run


@case(
    {
        ("", "x"): "used",
        ("", "state[0]"): "used",
        ("", "state[1]"): "used",
        ("lstm", "input"): "used",
        ("lstm", "hx[0]"): "used",
        ("lstm", "hx[1]"): "used",
        ("head", "input"): "used",
    }
)
def control_lstm_state_handed_on() -> Built:
    return _chunked(forgets=False)


@case(
    {
        ("", "x"): "used",
        ("", "state[0]"): "unused",
        ("", "state[1]"): "unused",
        ("lstm", "input"): "used",
        ("head", "input"): "used",
    }
)
def control_lstm_state_forgotten() -> Built:
    return _chunked(forgets=True)


@case(
    {
        ("", "source"): "used",
        ("", "code"): "dead",
        ("encoder", "input"): "used",
    }
)
def control_tied_modules() -> Built:
    """One module under two names is called by the first; its second answer is dropped."""
    torch.manual_seed(0)

    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(3, 2)
            self.twin = self.encoder

        def forward(self, source: Tensor, code: Tensor) -> Tensor:
            left = self.encoder(source)
            _right = self.twin(code)
            return left.square().sum(-1)

    source, code = torch.randn(2, 3), torch.randn(2, 3)
    return Siamese(), lambda module: module(source, code)


class _SelfAttention(nn.Module):
    """Attention as in the hub's models: a plain way with the mask, and a fast one that was never given it."""

    def __init__(self, fast: bool) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)
        self.fast = fast

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, ...]:
        batch, length, _ = hidden_states.shape
        q, k, v = self.qkv(hidden_states).view(batch, length, 3, 2, 2).permute(2, 0, 3, 1, 4)
        if self.fast and not output_attentions:
            context = F.scaled_dot_product_attention(q, k, v)
            return (self.out(context.transpose(1, 2).reshape(batch, length, 4)),)
        scores = q @ k.mT / 2**0.5
        if attention_mask is not None:
            scores = scores + attention_mask
        weights = scores.softmax(-1)
        if head_mask is not None:
            weights = weights * head_mask
        context = (weights @ v).transpose(1, 2).reshape(batch, length, 4)
        return (self.out(context), weights) if output_attentions else (self.out(context),)


class _Encoder(nn.Module):
    def __init__(self, fast: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.layer = nn.ModuleList([_SelfAttention(fast)])
        self.norm = nn.LayerNorm(4)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool = False,
    ) -> dict[str, Any]:
        hidden = self.embed(input_ids)
        if attention_mask is not None:
            attention_mask = (1.0 - attention_mask[:, None, None, :].to(hidden.dtype)) * -1e4
        attentions: tuple[Tensor, ...] = ()
        for layer in self.layer:
            outputs = layer(hidden, attention_mask, head_mask, output_attentions=output_attentions)
            hidden = self.norm(hidden + outputs[0])
            attentions += outputs[1:]
        return {"last_hidden_state": hidden, "attentions": attentions}


_IDS = torch.tensor([[1, 5, 2, 0], [4, 3, 0, 0]])
_TOP = {
    ("", "input_ids"): "used",
    ("", "token_type_ids"): "unused",
    ("embed", "input"): "used",
    ("layer.0", "hidden_states"): "used",
    ("layer.0.qkv", "input"): "used",
    ("layer.0.out", "input"): "used",
    ("norm", "input"): "used",
}


@case(_TOP | {("", "attention_mask"): "used", ("layer.0", "attention_mask"): "used"})
def control_encoder_with_plain_attention() -> Built:
    torch.manual_seed(0)
    return _Encoder(fast=False), lambda module: module(_IDS, (_IDS > 0).long(), token_type_ids=torch.zeros_like(_IDS))


@case(
    _TOP
    | {
        ("", "attention_mask"): "passed_through",
        ("", "head_mask"): "passed_through",
        ("layer.0", "attention_mask"): "unused",
        ("layer.0", "head_mask"): "unused",
    }
)
def control_encoder_with_fast_attention() -> Built:
    """The top makes a bias of the mask, and the fast way does not add it."""
    torch.manual_seed(0)
    mask, heads = (_IDS > 0).long(), torch.ones(1, 2, 1, 1)
    return _Encoder(fast=True), lambda module: module(_IDS, mask, torch.zeros_like(_IDS), head_mask=heads)


@case(_TOP | {("", "attention_mask"): "used", ("layer.0", "attention_mask"): "conditional"})
def control_encoder_mask_counts_with_attentions_asked() -> Built:
    """Only where the weights are asked for the plain way is taken, and the mask added."""
    torch.manual_seed(0)
    mask, types_ = (_IDS > 0).long(), torch.zeros_like(_IDS)
    return _Encoder(fast=True), lambda module: [
        module(_IDS, mask, types_, output_attentions=asked) for asked in (False, True)
    ]


@case(
    {
        ("", "z"): "used",
        ("", "real"): "used",
        ("", "label"): "passed_through",
        ("generator", "z"): "used",
        ("generator", "label"): "unused",
        ("generator.net", "input"): "used",
        ("discriminator", "input"): "used",
        ("discriminator.0", "input"): "used",
        ("discriminator.1", "input"): "used",
        ("discriminator.2", "input"): "used",
    }
)
def control_gan_with_unconditional_generator() -> Built:
    """The generator is given labels and draws without them."""
    torch.manual_seed(0)

    class Generator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(2, 3)

        def forward(self, z: Tensor, label: Tensor) -> Tensor:
            return self.net(z).tanh()

    class Gan(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.generator = Generator()
            self.discriminator = nn.Sequential(nn.Linear(3, 4), nn.LeakyReLU(0.2), nn.Linear(4, 1))

        def forward(self, z: Tensor, real: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
            fake = self.generator(z, label)
            judged_fake, judged_real = self.discriminator(fake.detach()), self.discriminator(real)
            ones, zeros = torch.ones_like(judged_real), torch.zeros_like(judged_fake)
            critic = F.binary_cross_entropy_with_logits(judged_real, ones)
            critic = critic + F.binary_cross_entropy_with_logits(judged_fake, zeros)
            return F.softplus(-self.discriminator(fake)).mean(), critic

    inputs = torch.randn(2, 2), torch.randn(2, 3), torch.tensor([0, 1])
    return Gan(), lambda module: module(*inputs)


class _Up(nn.Module):
    """One step up, with its skip or without."""

    def __init__(self, skips: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4 if skips else 2, 2, 3, padding=1)
        self.skips = skips

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(x, size=skip.shape[-1], mode="nearest")
        return self.conv(torch.cat([x, skip], 1) if self.skips else x).relu()


class _UNet(nn.Module):
    def __init__(self, skips: bool) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv1d(1, 2, 3, padding=1), nn.Conv1d(2, 2, 3, stride=2, padding=1)
        self.up = _Up(skips)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        skip = self.stem(x)
        return self.up(self.down(skip) + t[:, None, None], skip)


_UNET = {
    ("", "x"): "used",
    ("", "t"): "used",
    ("stem", "input"): "used",
    ("down", "input"): "used",
    ("up", "x"): "used",
    ("up", "skip"): "used",
    ("up.conv", "input"): "used",
}


@case(_UNET)
def control_unet() -> Built:
    torch.manual_seed(0)
    x, t = torch.randn(2, 1, 8), torch.rand(2)
    return _UNet(skips=True), lambda module: module(x, t)


@case(_UNET | {("up", "skip"): "metadata"})
def control_unet_skip_only_lends_its_size() -> Built:
    torch.manual_seed(0)
    x, t = torch.randn(2, 1, 8), torch.rand(2)
    return _UNet(skips=False), lambda module: module(x, t)


@case(
    {
        ("", "x"): "used",
        ("", "task"): "dead",
        ("gate", "input"): "used",
        ("experts.0", "input"): "used",
        ("experts.2", "input"): "used",
        ("task_bias", "input"): "used",
    }
)
def control_mixture_of_experts() -> Built:
    """Tokens go to their best expert, the second one gets none; the task's bias is made too late."""
    torch.manual_seed(0)

    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(3, 3, bias=False)
            nn.init.eye_(self.gate.weight)
            self.experts = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
            self.task_bias = nn.Embedding(2, 3)

        def forward(self, x: Tensor, task: Tensor) -> Tensor:
            logits = self.gate(x)
            weight, chosen = logits.softmax(-1).max(-1)
            out = torch.zeros_like(x)
            for index, expert in enumerate(self.experts):
                (rows,) = torch.where(chosen == index)
                if rows.numel():
                    out.index_add_(0, rows, expert(x[rows]) * weight[rows, None])
            logits = logits + self.task_bias(task)
            return out

    x = torch.tensor([[2.0, 0.0, 1.0], [0.1, -1.0, 3.0], [1.5, 0.0, 0.2]])
    return Mixture(), lambda module: module(x, torch.tensor(1))


class _Seq2Seq(nn.Module):
    """The target feeds the decoder while it is forced, and otherwise only says how long to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.embed = nn.GRU(2, 3, batch_first=True), nn.Embedding(5, 3)
        self.cell, self.out = nn.GRUCell(3, 3), nn.Linear(3, 5)

    def forward(self, source: Tensor, target: Tensor, forcing: bool) -> Tensor:
        _, h = self.encoder(source)
        h = h.squeeze(0)
        token = torch.zeros(source.size(0), dtype=torch.long)
        steps = []
        for t in range(target.size(1)):
            h = self.cell(self.embed(token), h)
            logits = self.out(h)
            steps.append(logits)
            token = target[:, t] if forcing else logits.argmax(-1)
        return torch.stack(steps, 1)


_SEQ2SEQ = {
    ("", "source"): "used",
    ("encoder", "input"): "used",
    ("embed", "input"): "used",
    ("cell", "input"): "used",
    ("cell", "hx"): "used",
    ("out", "input"): "used",
}


def _translated(*forcing: bool) -> Built:
    torch.manual_seed(0)
    source, target = torch.randn(2, 3, 2), torch.tensor([[1, 2, 4], [3, 0, 1]])
    return _Seq2Seq(), lambda module: [module(source, target, forced) for forced in forcing]


@case(_SEQ2SEQ | {("", "target"): "used"})
def control_seq2seq_forced() -> Built:
    return _translated(True)


@case(_SEQ2SEQ | {("", "target"): "metadata"})
def control_seq2seq_free() -> Built:
    return _translated(False)


@case(_SEQ2SEQ | {("", "target"): "conditional"})
def control_seq2seq_forced_then_free() -> Built:
    return _translated(True, False)


@case({("", "x"): "used", ("", "mask"): "conditional", ("lin", "input"): "used"})
def control_forward_calls_itself() -> Built:
    """The outer calls hand the mask on to themselves and the innermost adds it; below depth zero nobody does."""
    torch.manual_seed(0)

    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(2, 2)

        def forward(self, x: Tensor, mask: Tensor, depth: int) -> Tensor:
            if depth > 0:
                return self(x.tanh(), mask, depth - 1)
            return self.lin(x) + mask if depth == 0 else self.lin(x)

    x, mask = torch.randn(1, 2), torch.randn(2)
    return Nested(), lambda module: [module(x, mask, depth) for depth in (2, -1)]


@case(
    {
        ("", "x"): "used",
        ("", "pad"): "used",
        ("", "memory"): "unused",
        ("attn", "query"): "used",
        ("attn", "key"): "used",
        ("attn", "value"): "used",
        ("attn", "key_padding_mask"): "used",
        ("norm", "input"): "used",
    }
)
def control_multihead_attention() -> Built:
    """Cross attention was meant; the block attends to itself."""
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn, self.norm = nn.MultiheadAttention(4, 2, batch_first=True), nn.LayerNorm(4)

        def forward(self, x: Tensor, memory: Tensor, pad: Tensor) -> Tensor:
            attended, _ = self.attn(x, x, x, key_padding_mask=pad, need_weights=False)
            return self.norm(x + attended)

    x, memory = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    pad = torch.tensor([[False, False, True], [False, False, False]])
    return Block(), lambda module: module(x, memory, pad)


@case(
    {
        ("", "states[0]"): "used",
        ("", "states[1]"): "used",
        ("", "states[2]"): "unused",
        ("", "combine_weight"): "used",
        ("heads.0", "input"): "used",
        ("heads.1", "input"): "used",
    }
)
def control_zip_stops_at_the_shorter() -> Built:
    """There are three states and two heads, and `zip` does not mind."""
    torch.manual_seed(0)

    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleList(nn.Linear(width, 2) for width in (2, 3))

        def forward(self, states: list[Tensor], combine_weight: Tensor) -> Tensor:
            answers = [head(state) for head, state in zip(self.heads, states, strict=False)]
            return functools.reduce(lambda a, b: a * combine_weight + b, answers)

    states = [torch.randn(1, 2), torch.randn(1, 3), torch.randn(1, 4)]
    return Pyramid(), lambda module: module(states, torch.tensor(0.4))


@case({("", "x"): "used", ("", "bias"): "used", ("", "aux"): "unused", ("lin", "input"): "used"})
def control_callback_handed_in() -> Built:
    """What is done with the bias is up to a function that is handed in."""
    torch.manual_seed(0)

    class Calling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(2, 2)

        def forward(self, x: Tensor, bias: Tensor, aux: Tensor, then: Callable[..., Tensor]) -> Tensor:
            return then(self.lin(x), bias=bias, aux=aux)

    def add(x: Tensor, *, bias: Tensor, **_others: Tensor) -> Tensor:
        return x + bias

    x, bias, aux = torch.randn(1, 2), torch.randn(2), torch.randn(2)
    return Calling(), lambda module: module(x, bias, aux, add)


@case(
    {
        ("", "x"): "used",
        ("", "skip"): "conditional",
        ("", "rate"): "unused",
        ("layers.0", "input"): "used",
        ("layers.1", "input"): "used",
    }
)
def control_layer_dropped_in_training() -> Built:
    """While training the second layer is passed over, and the skip that it would add."""
    torch.manual_seed(0)

    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))

        def forward(self, x: Tensor, skip: Tensor, rate: Tensor) -> Tensor:
            x = self.layers[0](x)
            if self.training:
                return x
            return self.layers[1](x + skip)

    x, skip = torch.randn(1, 2), torch.randn(2)
    return Dropping(), lambda module: [module.train(mode)(x, skip, torch.tensor(0.5)) for mode in (True, False)]
