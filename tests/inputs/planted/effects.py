"""What outlives the call: attributes, caches, buffers, globals, closures, things handed in and written to, and hooks."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cases import Built, case

_TAPS: list[Tensor] = []
_LATEST: dict[str, Tensor] = {}


@case(
    {
        ("", "x"): "used",
        ("", "position"): "unused",
        ("query", "input"): "used",
        ("key", "input"): "used",
        ("value", "input"): "used",
    }
)
def effects_kv_cache_appended() -> Built:
    """Keys and values of earlier steps are attended to; the position was forgotten."""
    torch.manual_seed(0)

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.keys: list[Tensor] = []
            self.values: list[Tensor] = []

        def forward(self, x: Tensor, position: Tensor) -> Tensor:
            self.keys.append(self.key(x))
            self.values.append(self.value(x))
            keys, values = torch.stack(self.keys, 1), torch.stack(self.values, 1)
            weights = torch.einsum("bd,btd->bt", self.query(x), keys).softmax(-1)
            return torch.einsum("bt,btd->bd", weights, values)

    steps = [(torch.randn(2, 4), torch.tensor([t])) for t in range(3)]
    return Step(), lambda module: [module(x, position) for x, position in steps]


@case(
    {
        ("", "x"): "used",
        ("", "pad"): "metadata",
        ("to_key", "input"): "used",
        ("to_value", "input"): "used",
    }
)
def effects_kv_cache_preallocated() -> Built:
    """The cache is a buffer written by slices and read up to the present; of the padding only the width is asked."""
    torch.manual_seed(0)

    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.to_key, self.to_value = nn.Linear(3, 3), nn.Linear(3, 3)
            self.register_buffer("keys", torch.zeros(2, 8, 3))
            self.register_buffer("values", torch.zeros(2, 8, 3))
            self.at = 0

        def forward(self, x: Tensor, pad: Tensor) -> Tensor:
            end = self.at + pad.shape[1]
            self.keys[:, self.at : end] = self.to_key(x)
            self.values[:, self.at : end] = self.to_value(x)
            self.at = end
            scores = x @ self.keys[:, :end].transpose(1, 2)
            return scores.softmax(-1) @ self.values[:, :end]

    chunks = [torch.randn(2, 3, 3), torch.randn(2, 2, 3)]

    def run(module: nn.Module) -> list[Tensor]:
        with torch.no_grad():
            return [module(chunk, torch.ones(chunk.shape[:2], dtype=torch.bool)) for chunk in chunks]

    return Cached(), run


@case({("", "x"): "used", ("", "memory"): "stored", ("out", "input"): "used", ("to_memory", "input"): "used"})
def effects_memory_written_never_read() -> Built:
    """The projected memory goes into the buffer, and the answer comes from `x` alone."""
    torch.manual_seed(0)

    class Writer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.to_memory, self.out = nn.Linear(3, 4), nn.Linear(3, 2)
            self.register_buffer("bank", torch.zeros(6, 4))

        def forward(self, x: Tensor, memory: Tensor) -> Tensor:
            written = self.to_memory(memory).detach()
            self.bank[: written.shape[0]] = written
            return self.out(x)

    x, memory = torch.randn(2, 3), torch.randn(4, 3)
    return Writer(), lambda module: module(x, memory)


@case(
    {
        ("", "x"): "used",
        ("", "aux"): "stored",
        ("", "weight"): "unused",
        ("encoder", "input"): "used",
        ("head", "input"): "used",
    }
)
def effects_hidden_kept_on_self() -> Built:
    """The hidden state is kept and returned through the head; `aux` is only kept."""
    torch.manual_seed(0)

    class Keeper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = nn.Linear(3, 4), nn.Linear(4, 1)
            self.hidden: Tensor | None = None
            self.aux: Tensor | None = None

        def forward(self, x: Tensor, aux: Tensor, weight: Tensor | None = None) -> Tensor:
            self.hidden = torch.tanh(self.encoder(x))
            self.aux = aux
            if weight is not None and not isinstance(weight, Tensor):
                raise TypeError("weight must be a tensor")
            return self.head(self.hidden)

    x, aux, weight = torch.randn(2, 3), torch.randn(2, 1), torch.ones(2)
    return Keeper(), lambda module: module(x, aux, weight=weight)


@case({("", "state"): "used", ("", "action"): "stored", ("", "done"): "unused", ("policy", "input"): "used"})
def effects_replay_deque() -> Built:
    """The replay holds states and actions; the policy sees the state; `done` was forgotten."""
    torch.manual_seed(0)

    class Agent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy = nn.Linear(4, 2)
            self.replay: deque[tuple[Tensor, Tensor]] = deque(maxlen=8)

        def forward(self, state: Tensor, action: Tensor, done: Tensor) -> Tensor:
            self.replay.append((state.detach(), action))
            return self.policy(state).softmax(-1)

    steps = [(torch.randn(1, 4), torch.tensor([step % 2]), torch.tensor([step == 2])) for step in range(3)]
    return Agent(), lambda module: [module(*step) for step in steps]


@case({("", "x"): "used", ("", "aux"): "stored", ("lin", "input"): "used"})
def effects_statistics_in_dict() -> Built:
    """Statistics of both are kept for the logger; only `x` is answered."""
    torch.manual_seed(0)

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(3, 3)
            self.stats: dict[str, Tensor] = {}

        def forward(self, x: Tensor, aux: Tensor) -> Tensor:
            with torch.no_grad():
                self.stats["mean"] = x.mean()
                self.stats["aux/norm"] = aux.square().sum().sqrt()
            return self.lin(x).tanh()

    x, aux = torch.randn(2, 3), torch.randn(2, 3)
    return Watched(), lambda module: module(x, aux)


class _Centred(nn.Module):
    """A running mean of `aux`, and whether the answer is centred by it."""

    def __init__(self, subtract: bool) -> None:
        super().__init__()
        self.subtract = subtract
        self.lin = nn.Linear(3, 3)
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor, aux: Tensor) -> Tensor:
        if self.training:
            self.mean.mul_(0.9).add_(aux.mean(0), alpha=0.1)
        x = self.lin(x)
        return x - self.mean if self.subtract else x


@case({("", "x"): "used", ("", "aux"): "stored", ("lin", "input"): "used"})
def effects_running_mean_only_kept() -> Built:
    torch.manual_seed(0)
    x, aux = torch.randn(2, 3), torch.randn(4, 3)
    return _Centred(subtract=False), lambda module: module(x, aux)


@case({("", "x"): "used", ("", "aux"): "used", ("lin", "input"): "used"})
def effects_running_mean_subtracted() -> Built:
    """Looks like state alone, but the state is read in the same call."""
    torch.manual_seed(0)
    x, aux = torch.randn(2, 3), torch.randn(4, 3)
    return _Centred(subtract=True), lambda module: module(x, aux)


@case({("", "x"): "used", ("", "aux"): "unused", ("lin", "input"): "used"})
def effects_running_mean_in_evaluation() -> Built:
    torch.manual_seed(0)
    x, aux = torch.randn(2, 3), torch.randn(4, 3)
    return _Centred(subtract=True).eval(), lambda module: module(x, aux)


@case({("", "x"): "used", ("", "aux"): "conditional", ("lin", "input"): "used"})
def effects_running_mean_training_then_evaluation() -> Built:
    torch.manual_seed(0)
    x, aux = torch.randn(2, 3), torch.randn(4, 3)

    def run(module: nn.Module) -> tuple[Tensor, Tensor]:
        return module.train()(x, aux), module.eval()(x, aux)

    return _Centred(subtract=False), run


class _Normed(nn.Module):
    """`aux` goes through a batch norm whose result nobody takes."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.lin = nn.BatchNorm1d(3), nn.Linear(3, 2)

    def forward(self, x: Tensor, aux: Tensor) -> Tensor:
        _ = self.bn(aux)
        return self.lin(x)


@case({("", "x"): "used", ("", "aux"): "stored", ("bn", "input"): "used", ("lin", "input"): "used"})
def effects_batchnorm_dropped_in_training() -> Built:
    """The result is dropped, but the running statistics keep the batch."""
    torch.manual_seed(0)
    x, aux = torch.randn(4, 3), torch.randn(4, 3)
    return _Normed(), lambda module: module(x, aux)


@case({("", "x"): "used", ("", "aux"): "dead", ("bn", "input"): "used", ("lin", "input"): "used"})
def effects_batchnorm_dropped_in_evaluation() -> Built:
    """In evaluation the statistics stay as they are, so nothing is left of it."""
    torch.manual_seed(0)
    x, aux = torch.randn(4, 3), torch.randn(4, 3)
    return _Normed().eval(), lambda module: module(x, aux)


@case({("", "x"): "used", ("", "aux"): "conditional", ("bn", "input"): "used", ("lin", "input"): "used"})
def effects_batchnorm_dropped_in_both() -> Built:
    torch.manual_seed(0)
    x, aux = torch.randn(4, 3), torch.randn(4, 3)

    def run(module: nn.Module) -> list[Tensor]:
        return [module.train(mode)(x, aux) for mode in (True, False)]

    return _Normed(), run


@case(
    {
        ("", "image"): "used",
        ("", "target"): "used",
        ("", "sample_weight"): "dead",
        ("conv", "input"): "used",
        ("bn", "input"): "used",
        ("act", "input"): "used",
        ("pool", "input"): "used",
        ("head", "input"): "used",
    }
)
def effects_convnet_weighted_loss_not_returned() -> Built:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.act = nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.ReLU()
            self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(2, 3)

        def forward(self, image: Tensor, target: Tensor, sample_weight: Tensor) -> Tensor:
            features = self.pool(self.act(self.bn(self.conv(image))))
            loss = F.cross_entropy(self.head(features.flatten(1)), target, reduction="none")
            weighted = loss * sample_weight
            weighted = weighted / sample_weight.sum()
            return loss.mean()

    image, target, weight = torch.randn(3, 1, 5, 5), torch.tensor([0, 2, 1]), torch.rand(3)
    return Net(), lambda module: module(image, target, weight).backward()


@case({("", "x"): "used", ("", "aux"): "stored", ("lin", "input"): "used"})
def effects_global_list() -> Built:
    torch.manual_seed(0)
    _TAPS.clear()

    class Tapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(2, 2)

        def forward(self, x: Tensor, aux: Tensor) -> Tensor:
            y = self.lin(x)
            _TAPS.append(aux - aux.mean())
            return y

    x, aux = torch.randn(2, 2), torch.randn(2)
    return Tapped(), lambda module: module(x, aux)


@case(
    {
        ("", "x"): "used",
        ("", "context"): "used",
        ("reader", "x"): "used",
        ("writer", "context"): "stored",
    }
)
def effects_global_read_by_sibling() -> Built:
    """One child leaves it in a global, the next picks it up there."""
    torch.manual_seed(0)
    _LATEST.clear()

    class Writer(nn.Module):
        def forward(self, context: Tensor) -> None:
            _LATEST["context"] = context.sigmoid()

    class Reader(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * _LATEST["context"]

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.writer, self.reader = Writer(), Reader()

        def forward(self, x: Tensor, context: Tensor) -> Tensor:
            self.writer(context)
            return self.reader(x)

    x, context = torch.randn(2, 3), torch.randn(3)
    return Pair(), lambda module: module(x, context)


@case({("", "x"): "used", ("", "aux"): "stored", ("", "mask"): "metadata"})
def effects_closure_kept() -> Built:
    torch.manual_seed(0)

    class Lazy(nn.Module):
        def forward(self, x: Tensor, aux: Tensor, mask: Tensor) -> Tensor:
            self.penalty = lambda: aux.abs().sum()
            return x.cumsum(0) / mask.numel()

    x, aux, mask = torch.randn(3), torch.randn(3), torch.ones(3)
    return Lazy(), lambda module: module(x, aux, mask)


@case({("", "x"): "used", ("", "target"): "used", ("", "aux"): "unused", ("lin", "input"): "used"})
def effects_closure_called_at_once() -> Built:
    """`aux` is named in a branch of the closure that is never taken."""
    torch.manual_seed(0)

    class Lossy(nn.Module):
        def __init__(self, weight: float) -> None:
            super().__init__()
            self.lin = nn.Linear(3, 1)
            self.weight = weight

        def forward(self, x: Tensor, target: Tensor, aux: Tensor) -> Tensor:
            prediction = self.lin(x).squeeze(-1)

            def loss() -> Tensor:
                found = F.mse_loss(prediction, target)
                return found + self.weight * aux.mean() if self.weight > 0 else found

            return loss()

    x, target, aux = torch.randn(4, 3), torch.randn(4), torch.randn(4)
    return Lossy(0.0), lambda module: module(x, target, aux)


@case({("", "x"): "used", ("", "aux"): "stored", ("lin", "input"): "used"})
def effects_list_handed_in() -> Built:
    torch.manual_seed(0)

    class Tapping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(2, 2)

        def forward(self, x: Tensor, aux: Tensor, taps: list[Tensor]) -> Tensor:
            h = self.lin(x)
            taps.append(h)
            taps.append(aux * 2)
            return h.relu()

    x, aux = torch.randn(2, 2), torch.randn(2)
    return Tapping(), lambda module: module(x, aux, [])


@case(
    {
        ("", "batch['x']"): "used",
        ("", "batch['hidden']"): "unused",
        ("", "batch['weight']"): "unused",
        ("lin", "input"): "used",
    }
)
def effects_batch_entry_overwritten() -> Built:
    """The old entry is replaced without a look at it."""
    torch.manual_seed(0)

    class Stage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(2, 2)

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            batch["hidden"] = self.lin(batch["x"]).relu()
            return batch["hidden"].sum(-1)

    x, hidden, weight = torch.randn(2, 2), torch.randn(2, 2), torch.rand(2)
    return Stage(), lambda module: module({"x": x, "hidden": hidden, "weight": weight})


@case({("", "x"): "used", ("", "aux"): "stored", ("", "beta"): "stored", ("lin", "input"): "used"})
def effects_dict_handed_in_filled() -> Built:
    torch.manual_seed(0)

    class Reporting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(2, 2)

        def forward(self, x: Tensor, aux: Tensor, beta: Tensor, extras: dict[str, Any]) -> Tensor:
            extras.setdefault("losses", {})["aux"] = beta * aux.square().mean()
            return self.lin(x)

    x, aux, beta = torch.randn(2, 2), torch.randn(3), torch.tensor(0.5)
    return Reporting(), lambda module: module(x, aux, beta, {})


@case({("", "x"): "used", ("", "counts"): "stored", ("", "total"): "stored", ("lin", "input"): "used"})
def effects_accumulator_tensor_handed_in() -> Built:
    """The running total is the caller's; it goes on outside the result."""
    torch.manual_seed(0)

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(2, 2)

        def forward(self, x: Tensor, counts: Tensor, total: Tensor) -> Tensor:
            total.add_(counts.sum(0))
            return self.lin(x)

    x, counts, total = torch.randn(2, 2), torch.ones(4, 3), torch.zeros(3)
    return Counting(), lambda module: module(x, counts, total)


@case({("", "points"): "used", ("", "cell"): "used", ("", "grid"): "used", ("", "origin"): "unused"})
def effects_scattered_into_grid_handed_in() -> Built:
    torch.manual_seed(0)

    class Pillars(nn.Module):
        def forward(self, points: Tensor, cell: Tensor, grid: Tensor, origin: Tensor) -> Tensor:
            grid.index_add_(0, cell, points)
            return grid.tanh()

    points, cell, origin = torch.randn(4, 2), torch.tensor([0, 2, 2, 1]), torch.zeros(2)
    return Pillars(), lambda module: module(points, cell, torch.full((3, 2), 0.1), origin)


class _Scores(nn.Module):
    """Attention whose mask is filled in by one of four ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def forward(self, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
        scores = q @ k.transpose(-1, -2)
        if self.way == "in place":
            scores.masked_fill_(mask, -1e9)
        elif self.way == "lost":
            scores.masked_fill(mask, -1e9)
        elif self.way == "through a view":
            scores.view(-1)[mask.view(-1)] = -1e9
        elif self.way == "on a copy":
            masked = scores.clone()
            masked[mask] = -1e9
        return scores.softmax(-1)


def _scored(way: str) -> Built:
    torch.manual_seed(0)
    q, k = torch.randn(2, 3), torch.randn(4, 3)
    mask = torch.tensor([[False, True, False, True], [True, False, False, False]])
    return _Scores(way), lambda module: module(q, k, mask)


@case({("", "q"): "used", ("", "k"): "used", ("", "mask"): "used"})
def effects_mask_filled_in_place() -> Built:
    return _scored("in place")


@case({("", "q"): "used", ("", "k"): "used", ("", "mask"): "dead"})
def effects_mask_filled_and_lost() -> Built:
    """The underscore is missing and the result is not taken."""
    return _scored("lost")


@case({("", "q"): "used", ("", "k"): "used", ("", "mask"): "used"})
def effects_mask_filled_through_a_view() -> Built:
    return _scored("through a view")


@case({("", "q"): "used", ("", "k"): "used", ("", "mask"): "dead"})
def effects_mask_filled_on_a_copy() -> Built:
    return _scored("on a copy")


class _Gated(nn.Module):
    """The first half of the features is gated, by way of storage shared with the result or not."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.shared = shared
        self.lin = nn.Linear(3, 4)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        h = self.lin(x)
        half = h.detach()[:, :2] if self.shared else h.detach()[:, :2].clone()
        half.mul_(gate)
        return h


@case({("", "x"): "used", ("", "gate"): "used", ("lin", "input"): "used"})
def effects_gate_written_through_detached_view() -> Built:
    """The detached view shares its storage with what is returned."""
    torch.manual_seed(0)
    x, gate = torch.randn(2, 3), torch.rand(2, 1)
    return _Gated(shared=True), lambda module: module(x, gate)


@case({("", "x"): "used", ("", "gate"): "dead", ("lin", "input"): "used"})
def effects_gate_written_into_clone() -> Built:
    torch.manual_seed(0)
    x, gate = torch.randn(2, 3), torch.rand(2, 1)
    return _Gated(shared=False), lambda module: module(x, gate)


class _Ignoring(nn.Module):
    """Takes a bias and does nothing with it itself."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 3)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.lin(x)


class _Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = _Ignoring()
        self.taps: list[Tensor] = []

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.inner(x, bias).relu()


@case(
    {
        ("", "x"): "used",
        ("", "bias"): "passed_through",
        ("inner", "x"): "used",
        ("inner", "bias"): "unused",
        ("inner.lin", "input"): "used",
    }
)
def effects_no_hook_on_ignoring_child() -> Built:
    torch.manual_seed(0)
    x, bias = torch.randn(2, 3), torch.randn(3)
    return _Around(), lambda module: module(x, bias)


@case(
    {
        ("", "x"): "used",
        ("", "bias"): "used",
        ("inner", "x"): "used",
        ("inner", "bias"): "used",
        ("inner.lin", "input"): "used",
    }
)
def effects_forward_hook_adds_ignored_argument() -> Built:
    """The forward ignores it, the hook on the module adds it to what the call returns."""
    torch.manual_seed(0)
    around, x, bias = _Around(), torch.randn(2, 3), torch.rand(3)
    around.inner.register_forward_hook(lambda module, args, output: output + args[1])
    return around, lambda module: module(x, bias)


@case(
    {
        ("", "x"): "used",
        ("", "bias"): "stored",
        ("inner", "x"): "used",
        ("inner", "bias"): "stored",
        ("inner.lin", "input"): "used",
    }
)
def effects_forward_hook_keeps_ignored_argument() -> Built:
    torch.manual_seed(0)
    around, x, bias = _Around(), torch.randn(2, 3), torch.rand(3)

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        around.taps.append(args[1].detach())

    around.inner.register_forward_hook(keep)
    return around, lambda module: module(x, bias)


@case({("", "x"): "used", ("lin", "input"): "used"})
def effects_pre_hook_scales_input() -> Built:
    torch.manual_seed(0)

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.lin(x)

    plain, x = Plain(), torch.randn(2, 3)
    plain.lin.register_forward_pre_hook(lambda module, args: (args[0] * 0.5,))
    return plain, lambda module: module(x)


@case(
    {
        ("", "x"): "used",
        ("", "scale"): "used",
        ("", "shift"): "passed_through",
        ("affine", "x"): "used",
        ("affine", "scale"): "used",
        ("affine", "shift"): "dead",
    }
)
def effects_pre_hook_reads_input() -> Built:
    """A pre-hook looks at the scale, the forward multiplies by it; the shifted value is not what is returned."""
    torch.manual_seed(0)

    class Affine(nn.Module):
        def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
            scaled = x * scale
            _shifted = scaled + shift
            return scaled

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.affine = Affine()
            self.seen: list[float] = []

        def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
            return self.affine(x, scale, shift).exp()

    outer, x, scale, shift = Outer(), torch.randn(3), torch.rand(3), torch.rand(3)
    outer.affine.register_forward_pre_hook(lambda module, args: outer.seen.append(float(args[1].mean())))
    return outer, lambda module: module(x, scale, shift)


@case(
    {
        ("", "image"): "used",
        ("", "augmented"): "used",
        ("", "label"): "unused",
        ("student", "input"): "used",
        ("momentum", "input"): "used",
    }
)
def effects_momentum_contrast_queue() -> Built:
    """Keys are compared with queries and then put into the queue."""
    torch.manual_seed(0)

    class Contrast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.momentum = nn.Linear(4, 3), nn.Linear(4, 3)
            self.register_buffer("queue", F.normalize(torch.randn(3, 6), dim=0))
            self.at = 0

        @torch.no_grad()
        def _enqueue(self, keys: Tensor) -> None:
            self.queue[:, self.at : self.at + len(keys)] = keys.T
            self.at = (self.at + len(keys)) % self.queue.shape[1]

        def forward(self, image: Tensor, augmented: Tensor, label: Tensor) -> Tensor:
            query = F.normalize(self.student(image), dim=1)
            with torch.no_grad():
                key = F.normalize(self.momentum(augmented), dim=1)
            positive = (query * key).sum(1, keepdim=True)
            logits = torch.cat([positive, query @ self.queue.clone()], dim=1)
            self._enqueue(key)
            return F.cross_entropy(logits / 0.07, torch.zeros(len(logits), dtype=torch.long))

    image, augmented, label = torch.randn(2, 4), torch.randn(2, 4), torch.tensor([0, 1])
    return Contrast(), lambda module: module(image, augmented, label)


@case({("", "query"): "used", ("", "key"): "stored", ("", "index"): "stored"})
def effects_bank_updated_after_logits() -> Built:
    """The bank is read first and written afterwards, so neither key nor index reaches these logits."""
    torch.manual_seed(0)

    class Bank(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("bank", torch.randn(5, 3))

        def forward(self, query: Tensor, key: Tensor, index: Tensor) -> Tensor:
            logits = query @ self.bank.T
            self.bank[index] = 0.5 * self.bank[index] + 0.5 * key
            return logits

    query, key, index = torch.randn(2, 3), torch.randn(2, 3), torch.tensor([1, 4])
    return Bank(), lambda module: module(query, key, index)


@case({("", "x"): "used", ("", "aux"): "dead", ("", "target"): "dead", ("lin", "input"): "used"})
def effects_losses_in_local_dict() -> Built:
    """The losses are gathered in a dict that ends with the call."""
    torch.manual_seed(0)

    class Gathering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(3, 3)

        def forward(self, x: Tensor, aux: Tensor, target: Tensor) -> Tensor:
            y = self.lin(x)
            losses = {"main": F.mse_loss(y, target)}
            losses["aux"] = aux.abs().mean()
            losses["total"] = losses["main"] + losses["aux"]
            return y

    x, aux, target = torch.randn(2, 3), torch.randn(2), torch.randn(2, 3)
    return Gathering(), lambda module: module(x, aux, target)


@case({("", "x"): "used", ("", "aux"): "dead", ("lin", "input"): "used"})
def effects_attribute_set_and_deleted() -> Built:
    torch.manual_seed(0)

    class Brief(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(3, 3)

        def forward(self, x: Tensor, aux: Tensor) -> Tensor:
            self.scratch = aux.exp()
            y = self.lin(x)
            del self.scratch
            return y

    x, aux = torch.randn(2, 3), torch.randn(2)
    return Brief(), lambda module: module(x, aux)


@case({("", "x"): "used", ("", "mask"): "used", ("block", "x"): "used", ("block.lin", "input"): "used"})
def effects_mask_set_on_child() -> Built:
    """The mask reaches the child as an attribute and not as an argument."""
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(3, 3)
            self.mask: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            y = self.lin(x)
            return y if self.mask is None else y * self.mask

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            self.block.mask = mask
            try:
                return self.block(x)
            finally:
                self.block.mask = None

    x, mask = torch.randn(2, 3), torch.tensor([1.0, 0.0, 1.0])
    return Outer(), lambda module: module(x, mask)


@case({("", "x"): "used", ("", "context"): "conditional", ("project", "input"): "used"})
def effects_context_cached_at_first_call() -> Built:
    """From the second call on the context is the first one's."""
    torch.manual_seed(0)

    class Conditioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(2, 3)
            self.cached: Tensor | None = None

        def forward(self, x: Tensor, context: Tensor) -> Tensor:
            if self.cached is None:
                self.cached = self.project(context)
            return x + self.cached

    calls = [(torch.randn(2, 3), torch.randn(2, 2)) for _ in range(2)]
    return Conditioned(), lambda module: [module(x, context) for x, context in calls]


@case({("", "x"): "used", ("", "aux"): "stored", ("", "other"): "stored"})
def effects_class_attribute_and_buffer() -> Built:
    torch.manual_seed(0)

    class Anchored(nn.Module):
        latest: Tensor | None = None

        def forward(self, x: Tensor, aux: Tensor, other: Tensor) -> Tensor:
            type(self).latest = aux.detach()
            self.register_buffer("anchor", other.mean(0))
            return x.sigmoid()

    x, aux, other = torch.randn(2), torch.randn(2), torch.randn(2, 2)
    return Anchored(), lambda module: module(x, aux, other)


@case({("", "batch['x']"): "used", ("", "batch['mask']"): "used", ("", "batch['id']"): "unused"})
def effects_batch_entries_popped() -> Built:
    torch.manual_seed(0)

    class Popping(nn.Module):
        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            batch.pop("id", None)
            mask = batch.pop("mask")
            return torch.where(mask, batch["x"], batch["x"].mean())

    x, mask = torch.randn(3), torch.tensor([True, False, True])
    return Popping(), lambda module: module({"x": x, "mask": mask, "id": torch.arange(3)})


@case({("", "x"): "used", ("", "aux"): "stored", ("", "offset"): "stored"})
def effects_generator_and_partial_kept() -> Built:
    torch.manual_seed(0)

    class Streaming(nn.Module):
        def _rows(self, aux: Tensor) -> Iterator[Tensor]:
            for row in aux:
                yield row * 2

        def forward(self, x: Tensor, aux: Tensor, offset: Tensor) -> Tensor:
            self.rows = self._rows(aux)
            self.shift = functools.partial(torch.add, offset)
            return x.square()

    x, aux, offset = torch.randn(2), torch.randn(2, 2), torch.randn(2)
    return Streaming(), lambda module: module(x, aux, offset)


class _Hyper(nn.Module):
    """The weights are handed in and copied into the layer, before or after it answers."""

    def __init__(self, before: bool) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 2, bias=False)
        self.before = before

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.before:
            self.lin.weight.data.copy_(weight)
        y = self.lin(x)
        if not self.before:
            self.lin.weight.data.lerp_(weight, 0.5)
        return y.relu()


@case({("", "x"): "used", ("", "weight"): "used", ("lin", "input"): "used"})
def effects_weight_copied_before() -> Built:
    torch.manual_seed(0)
    x, weight = torch.rand(2, 3), torch.rand(2, 3)
    return _Hyper(before=True), lambda module: module(x, weight)


@case({("", "x"): "used", ("", "weight"): "stored", ("lin", "input"): "used"})
def effects_weight_moved_afterwards() -> Built:
    torch.manual_seed(0)
    x, weight = torch.rand(2, 3), torch.rand(2, 3)
    layer = _Hyper(before=False)
    layer.lin.weight.data.abs_()
    return layer, lambda module: module(x, weight)


@case({("", "x"): "used", ("", "y"): "used", ("", "z"): "dead"})
def effects_out_buffer() -> Built:
    """Sums land in a scratch buffer by `out=`; what is written before is overwritten."""
    torch.manual_seed(0)

    class Scratch(nn.Module):
        def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
            scratch = torch.empty_like(x)
            torch.mul(x, z, out=scratch)
            torch.add(x, y, out=scratch)
            return scratch.clone()

    x, y, z = torch.randn(3), torch.randn(3), torch.randn(3)
    return Scratch(), lambda module: module(x, y, z)


@case({("", "x"): "used", ("", "reset"): "used", ("", "dt"): "unused", ("inp", "input"): "used"})
def effects_recurrent_state_on_self() -> Built:
    torch.manual_seed(0)

    class Leaky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inp = nn.Linear(2, 3)
            self.state = torch.zeros(1, 3)

        def forward(self, x: Tensor, reset: Tensor, dt: Tensor | None = None) -> Tensor:
            kept = torch.where(reset.unsqueeze(-1), torch.zeros_like(self.state), self.state)
            self.state = 0.9 * kept.detach() + self.inp(x)
            return self.state.tanh()

    resets = [torch.tensor([False]), torch.tensor([False]), torch.tensor([True])]
    calls = [(torch.randn(1, 2), reset, torch.tensor(0.1)) for reset in resets]
    return Leaky(), lambda module: [module(*call) for call in calls]
