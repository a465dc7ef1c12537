"""Reads that leave no operator behind: numbers, arrays, text, pointers, truth values; and what only asks for the shape."""

from __future__ import annotations

import copy
import io
import logging
import math
import pickle
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cases import Built, case

_log = logging.getLogger("planted.readers")
_log.propagate = False
_log.setLevel(logging.INFO)
_sink = logging.StreamHandler(io.StringIO())
if not _log.handlers:
    _log.addHandler(_sink)


@case({("", "x"): "used", ("", "lengths"): "used", ("", "mask"): "unused", ("lin", "input"): "used"})
def readers_lengths_as_list() -> Built:
    """The lengths are read as Python numbers and cut the sequences; the mask is not needed any more."""
    torch.manual_seed(0)

    class Pooling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(2, 3)

        def forward(self, x: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
            h = self.lin(x)
            return torch.stack([row[:n].mean(0) for row, n in zip(h, lengths.tolist(), strict=True)])

    x, lengths = torch.randn(2, 4, 2), torch.tensor([2, 4])
    mask = torch.arange(4) < lengths[:, None]
    return Pooling(), lambda module: module(x, lengths, mask)


@case({("", "x"): "used", ("", "ids"): "used", ("", "aux"): "dead"})
def readers_ids_collected_as_list() -> Built:
    """The ids leave as a list that a logger keeps; the mean of `aux` stays a tensor and is lost."""
    torch.manual_seed(0)

    class Collecting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[int] = []

        def forward(self, x: Tensor, ids: Tensor, aux: Tensor) -> Tensor:
            self.names.extend(ids.tolist())
            _centre = aux.mean()
            return x.log_softmax(-1)

    x, ids, aux = torch.randn(2, 3), torch.tensor([7, 8]), torch.randn(2)
    return Collecting(), lambda module: module(x, ids, aux)


@case({("", "x"): "used", ("", "threshold"): "used", ("", "temperature"): "used"})
def readers_item_as_threshold() -> Built:
    torch.manual_seed(0)

    class Clipped(nn.Module):
        def forward(self, x: Tensor, threshold: Tensor, temperature: Tensor) -> Tensor:
            limit = threshold.item()
            return (x.clamp(min=-limit, max=limit) / max(temperature.item(), 1e-3)).softmax(-1)

    x = torch.tensor([[1.5, -0.2, -3.0], [0.3, 2.0, 0.1]])
    return Clipped(), lambda module: module(x, torch.tensor(0.8), torch.tensor(0.7))


@case({("", "x"): "used", ("", "aux"): "used", ("", "other"): "stored", ("lin", "input"): "used"})
def readers_item_logged() -> Built:
    """A number has left torch; a tensor kept for the log is stored."""
    torch.manual_seed(0)

    class Logging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(3, 1)
            self.log: dict[str, Any] = {}

        def forward(self, x: Tensor, aux: Tensor, other: Tensor) -> Tensor:
            self.log["aux"] = aux.mean().item()
            self.log["other"] = other.mean()
            return self.lin(x)

    x, aux, other = torch.randn(2, 3), torch.randn(2), torch.randn(2)
    return Logging(), lambda module: module(x, aux, other)


@case({("", "x"): "used", ("", "aux"): "used", ("", "other"): "metadata"})
def readers_printed_values_and_shape() -> Built:
    torch.manual_seed(0)

    class Chatty(nn.Module):
        def forward(self, x: Tensor, aux: Tensor, other: Tensor) -> Tensor:
            page = io.StringIO()
            print("aux", aux, file=page)
            print("other", tuple(other.shape), other.dtype, other.device, file=page)
            return x.cumsum(-1)

    x, aux, other = torch.randn(2, 2), torch.randn(2), torch.randn(2)
    return Chatty(), lambda module: module(x, aux, other)


@case({("", "x"): "used", ("", "aux"): "used", ("", "scale"): "used", ("", "name"): "metadata"})
def readers_formatted() -> Built:
    torch.manual_seed(0)

    class Titled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.title = ""

        def forward(self, x: Tensor, aux: Tensor, scale: Tensor, name: Tensor) -> Tensor:
            self.title = f"aux {aux.mean():.3f} of {name.ndim} dimensions, "
            self.title += "scale %.2f" % scale  # noqa: UP031
            return x.tan()

    x, aux = torch.randn(2), torch.randn(3)
    return Titled(), lambda module: module(x, aux, torch.tensor(0.25), torch.zeros(1, 1))


@case({("", "x"): "used", ("", "loud"): "used", ("", "silent"): "unused", ("", "lost"): "dead"})
def readers_logger_levels() -> Built:
    """What is logged below the level is never formatted, so its values are never looked at."""
    torch.manual_seed(0)

    class Levelled(nn.Module):
        def forward(self, x: Tensor, loud: Tensor, silent: Tensor, lost: Tensor) -> Tensor:
            _log.info("batch %s", loud)
            _log.debug("silent %s", silent)
            _log.debug("lost %s", lost.norm())
            return x.abs().sum()

    x, loud, silent, lost = torch.randn(3), torch.randn(2), torch.randn(2), torch.randn(2)
    return Levelled(), lambda module: module(x, loud, silent, lost)


@case({("", "x"): "used", ("", "mask"): "used", ("lin", "input"): "used"})
def readers_mask_asked_for_any() -> Built:
    """The mask decides whether anything is masked, by its truth value and then as an operand."""
    torch.manual_seed(0)

    class Maybe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(3, 3)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            h = self.lin(x)
            if mask.any():
                h = h.masked_fill(mask, 0.0)
            return h

    x, mask = torch.randn(2, 3), torch.tensor([[False, True, False], [False, False, False]])
    return Maybe(), lambda module: [module(x, mask), module(x, torch.zeros_like(mask))]


@case({("", "x"): "used", ("", "valid"): "used", ("", "aux"): "conditional", ("lin", "input"): "used"})
def readers_flag_chooses_branch() -> Built:
    """`valid` leaves only by `if`; `aux` is taken in one of the two calls."""
    torch.manual_seed(0)

    class Choosing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(3, 3)

        def forward(self, x: Tensor, valid: Tensor, aux: Tensor) -> Tensor:
            h = self.lin(x)
            if not valid:
                return h
            return h + aux

    x, aux = torch.randn(2, 3), torch.randn(3)
    return Choosing(), lambda module: [module(x, torch.tensor(flag), aux) for flag in (True, False)]


@case({("", "x"): "used", ("", "scale"): "used", ("", "k"): "used", ("", "aux"): "unused"})
def readers_float_and_int() -> Built:
    torch.manual_seed(0)

    class Top(nn.Module):
        def forward(self, x: Tensor, scale: Tensor, k: Tensor, aux: Tensor | None = None) -> Tensor:
            values, _ = (x * float(scale)).topk(int(k), dim=-1)
            return values

    x, aux = torch.randn(2, 5), torch.randn(2)
    return Top(), lambda module: module(x, torch.tensor(0.5), torch.tensor(2), aux=aux)


@case({("", "x"): "used", ("", "task"): "used", ("heads.1", "input"): "used"})
def readers_index_of_python_list() -> Built:
    """A tensor picks the head, as an index into a Python list."""
    torch.manual_seed(0)

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
            self.scales = [1.0, 0.5]

        def forward(self, x: Tensor, task: Tensor) -> Tensor:
            return self.heads[int(task)](x) * self.scales[task]

    return Heads(), lambda module: module(torch.ones(1, 2), torch.tensor(1))


@case({("", "x"): "used", ("", "others"): "metadata", ("", "weights"): "metadata", ("lin", "input"): "used"})
def readers_length_and_numel() -> Built:
    torch.manual_seed(0)

    class Averaged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(2, 2)

        def forward(self, x: Tensor, others: Tensor, weights: Tensor) -> Tensor:
            loss = self.lin(x).square().sum() / len(others)
            return loss / weights.numel()

    x, others, weights = torch.randn(2, 2), torch.randn(3, 2), torch.rand(2)
    return Averaged(), lambda module: module(x, others, weights)


@case({("", "x"): "used", ("", "table"): "used", ("lin", "input"): "used"})
def readers_pointer_as_cache_key() -> Built:
    """Whether the table is a known one is asked of its address."""
    torch.manual_seed(0)

    class Keyed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(2, 2)
            self.known: set[int] = set()

        def forward(self, x: Tensor, table: Tensor) -> Tensor:
            self.known.add(table.data_ptr())
            return self.lin(x)

    x, table = torch.randn(2, 2), torch.randn(4, 2)
    return Keyed(), lambda module: module(x, table)


@case({("", "x"): "used", ("", "boxes"): "used", ("", "anchors"): "used", ("", "names"): "unused"})
def readers_handed_over_by_dlpack() -> Built:
    """Boxes go to numpy and come back; anchors go and stay there."""
    torch.manual_seed(0)

    class Bridge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.foreign: Any = None

        def forward(self, x: Tensor, boxes: Tensor, anchors: Tensor, names: Tensor) -> Tensor:
            back = torch.from_dlpack(np.from_dlpack(boxes).copy())
            self.foreign = np.from_dlpack(anchors)
            return x + back

    x, boxes, anchors = torch.randn(2, 4), torch.randn(2, 4), torch.randn(3, 4)
    return Bridge(), lambda module: module(x, boxes, anchors, torch.arange(2))


@case({("", "x"): "used", ("", "packed"): "used"})
def readers_bytes_of_storage() -> Built:
    torch.manual_seed(0)

    class Bytes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.checksum = 0

        def forward(self, x: Tensor, packed: Tensor) -> Tensor:
            self.checksum = sum(packed.untyped_storage().tolist()) % 251
            return x.neg()

    x, packed = torch.randn(2), torch.tensor([1, 2, 3], dtype=torch.uint8)
    return Bytes(), lambda module: module(x, packed)


@case({("", "x"): "used", ("", "rows"): "used", ("", "ignored"): "dead", ("", "counted"): "metadata"})
def readers_iterated_rows() -> Built:
    """One tensor's rows are added to the answer, another's to a total that is dropped, the third's are only counted."""
    torch.manual_seed(0)

    class Rows(nn.Module):
        def forward(self, x: Tensor, rows: Tensor, ignored: Tensor, counted: Tensor) -> Tensor:
            total = torch.zeros(2)
            for row in rows:
                x = x + row
            for row in ignored:
                total = total + row.abs()
            for _ in range(len(counted)):
                x = x * 0.5
            return x

    x, rows, ignored, counted = torch.randn(2), torch.randn(3, 2), torch.randn(3, 2), torch.randn(2, 2)
    return Rows(), lambda module: module(x, rows, ignored, counted)


@case({("", "x"): "used", ("", "scores"): "used", ("", "boxes"): "unused"})
def readers_sorted_by_numpy() -> Built:
    """The order is found in numpy, and indexes the features."""
    torch.manual_seed(0)

    class Sorting(nn.Module):
        def forward(self, x: Tensor, scores: Tensor, boxes: Tensor) -> Tensor:
            order = np.argsort(-scores.detach().cpu().numpy(), kind="stable")
            return x[torch.from_numpy(order.copy())][:2]

    x, scores, boxes = torch.randn(4, 3), torch.tensor([0.1, 0.9, 0.4, 0.6]), torch.randn(4, 4)
    return Sorting(), lambda module: module(x, scores, boxes)


@case({("", "x"): "used", ("", "aux"): "used", ("", "target"): "used", ("", "sample"): "metadata"})
def readers_arrays_for_a_metric() -> Built:
    """A metric is computed outside torch from two tensors; of the third it takes the shape."""
    torch.manual_seed(0)

    class Metric(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.error = 0.0
            self.zeros = np.zeros(0)

        def forward(self, x: Tensor, aux: Tensor, target: Tensor, sample: Tensor) -> Tensor:
            self.error = float(np.abs(np.asarray(aux) - target.numpy()).mean())
            self.zeros = np.zeros(sample.shape)
            return x.softmax(-1)

    x, aux, target, sample = torch.randn(2, 2), torch.randn(3), torch.randn(3), torch.randn(2, 1)
    return Metric(), lambda module: module(x, aux, target, sample)


@case({("", "x"): "used", ("", "anchor"): "used", ("", "steps"): "used"})
def readers_deep_copy_is_stepped() -> Built:
    """A deep copy of the anchor walks towards `x` and is returned."""
    torch.manual_seed(0)

    class Walking(nn.Module):
        def forward(self, x: Tensor, anchor: Tensor, steps: Tensor) -> Tensor:
            at = copy.deepcopy(anchor)
            for _ in range(int(steps)):
                at += 0.25 * (x - at)
            return at

    x, anchor = torch.randn(3), torch.randn(3)
    return Walking(), lambda module: module(x, anchor, torch.tensor(2))


@case({("", "x"): "used", ("", "state"): "used", ("", "snapshot"): "used", ("", "aux"): "unused"})
def readers_pickled_and_saved() -> Built:
    torch.manual_seed(0)

    class Saving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.page = b""
            self.file = io.BytesIO()

        def forward(self, x: Tensor, state: Tensor, snapshot: Tensor, aux: Tensor) -> Tensor:
            self.page = pickle.dumps(state)
            torch.save({"snapshot": snapshot}, self.file)
            return x.relu()

    x, state, snapshot, aux = torch.randn(2), torch.randn(2), torch.randn(2), torch.randn(2)
    return Saving(), lambda module: module(x, state, snapshot, aux)


@case({("", "x"): "used", ("", "tokens"): "used", ("", "positions"): "unused"})
def readers_token_contained() -> Built:
    """`in` compares and asks for a truth value."""
    torch.manual_seed(0)

    class Stopping(nn.Module):
        def forward(self, x: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
            return x * 0.5 if 3 in tokens else x * 2.0

    x, positions = torch.randn(2), torch.arange(3)
    return Stopping(), lambda module: [module(x, torch.tensor(ids), positions) for ids in ([1, 3, 2], [1, 1, 2])]


@case({("", "x"): "used", ("", "table"): "unused", ("", "previous"): "unused", ("lin", "input"): "used"})
def readers_compared_by_identity() -> Built:
    """`is` looks at neither of them."""
    torch.manual_seed(0)

    class Same(nn.Module):
        def __init__(self, known: list[Tensor]) -> None:
            super().__init__()
            self.lin = nn.Linear(2, 2)
            self.known = known

        def forward(self, x: Tensor, table: Tensor, previous: Tensor | None) -> Tensor:
            fresh = not any(known is table for known in self.known)
            h = self.lin(x)
            return h * 0.5 if fresh and previous is not None else h

    x, table, previous = torch.randn(2, 2), torch.randn(2), torch.randn(2)
    return Same([torch.zeros(2)]), lambda module: module(x, table, previous)


@case({("", "x"): "used", ("", "left"): "used", ("", "right"): "used", ("", "near"): "used"})
def readers_equal_as_truth() -> Built:
    """Equality comes back as a Python truth value."""
    torch.manual_seed(0)

    class Equal(nn.Module):
        def forward(self, x: Tensor, left: Tensor, right: Tensor, near: Tensor) -> Tensor:
            if torch.equal(left, right) or torch.allclose(left, near):
                return x.exp()
            return x.sin()

    x, left = torch.randn(2), torch.randn(2)
    return Equal(), lambda module: module(x, left, left + 1, left.clone())


@case({("", "x"): "used", ("", "aux"): "used", ("", "frame"): "metadata", ("lin", "input"): "used"})
def readers_assertions() -> Built:
    """One assertion looks at values, the other at shapes."""
    torch.manual_seed(0)

    class Careful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(2, 2)

        def forward(self, x: Tensor, aux: Tensor, frame: Tensor) -> Tensor:
            if not torch.isfinite(aux).all():
                raise ValueError("aux is not finite")
            if frame.dim() != 2 or frame.size(0) != x.size(0):
                raise ValueError(f"frame has shape {tuple(frame.shape)}")
            return self.lin(x)

    x, aux, frame = torch.randn(2, 2), torch.randn(3), torch.randn(2, 5)
    return Careful(), lambda module: module(x, aux, frame)


@case({("", "x"): "used", ("", "left"): "used", ("", "right"): "used", ("", "centre"): "dead"})
def readers_greatest_of_tensors() -> Built:
    """Python's `max` compares two tensors by their truth value; torch's keeps a tensor that is not taken."""
    torch.manual_seed(0)

    class Greatest(nn.Module):
        def forward(self, x: Tensor, left: Tensor, right: Tensor, centre: Tensor) -> Tensor:
            bound = max(left, right)
            torch.maximum(bound, centre)
            return x.clamp(max=0.0) * bound

    x = torch.tensor([-1.0, 2.0])
    return Greatest(), lambda module: module(x, torch.tensor(0.3), torch.tensor(0.9), torch.tensor(0.5))


@case({("", "x"): "used", ("", "tolerance"): "used", ("", "start"): "metadata"})
def readers_iterated_until_converged() -> Built:
    """The start is only a template for zeros; the tolerance ends the loop."""
    torch.manual_seed(0)

    class Fixpoint(nn.Module):
        def forward(self, x: Tensor, tolerance: Tensor, start: Tensor) -> Tensor:
            z = torch.zeros_like(start)
            step = torch.full((), torch.inf)
            while step > tolerance:
                new = 0.5 * (z + x)
                step = (new - z).abs().max()
                z = new
            return z

    x, start = torch.randn(3), torch.randn(3)
    return Fixpoint(), lambda module: module(x, torch.tensor(0.05), start)


@case({("", "parts[0]"): "used", ("", "parts[1]"): "used", ("", "weights"): "used", ("", "scale"): "used"})
def readers_builtin_sum_and_sqrt() -> Built:
    torch.manual_seed(0)

    class Summed(nn.Module):
        def forward(self, parts: list[Tensor], weights: Tensor, scale: Tensor) -> Tensor:
            return sum(part * weight for part, weight in zip(parts, weights, strict=True)) / math.sqrt(scale)

    parts = [torch.randn(2), torch.randn(2)]
    return Summed(), lambda module: module(parts, torch.rand(2), torch.tensor(4.0))


@case(
    {
        ("", "x"): "used",
        ("", "mask"): "metadata",
        ("", "like"): "metadata",
        ("", "target"): "metadata",
        ("", "batch['pad']"): "metadata",
        ("lin", "input"): "used",
    }
)
def readers_templates_only() -> Built:
    """Four tensors lend their shape or their dtype, one of them by its first row."""
    torch.manual_seed(0)

    class Templates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(3, 1)

        def forward(self, x: Tensor, mask: Tensor, like: Tensor, target: Tensor, batch: dict[str, Tensor]) -> Tensor:
            h = self.lin(x).expand_as(mask)
            h = h + like.new_zeros(h.shape)
            h = h.type_as(target)
            return h * torch.ones(batch["pad"][0].shape, dtype=h.dtype)

    x, mask, like = torch.randn(2, 3), torch.rand(2, 4), torch.rand(5)
    pad = torch.ones(2, 4, dtype=torch.bool)
    return Templates(), lambda module: module(x, mask, like, torch.zeros(1, dtype=torch.float64), {"pad": pad})


@case({("", "x"): "used", ("", "like"): "metadata", ("", "grid"): "metadata", ("", "image"): "metadata"})
def readers_moved_and_resized_like() -> Built:
    torch.manual_seed(0)

    class Resizing(nn.Module):
        def forward(self, x: Tensor, like: Tensor, grid: Tensor, image: Tensor) -> Tensor:
            h = x.to(like).view_as(grid)
            return F.interpolate(h, size=image.shape[-2:], mode="nearest")

    x, grid, image = torch.randn(1, 8), torch.randn(1, 2, 2, 2), torch.randn(1, 3, 4, 4)
    return Resizing(), lambda module: module(x, torch.zeros(1, dtype=torch.float64), grid, image)


@case({("", "x"): "used", ("", "aux"): "metadata", ("", "table"): "conditional"})
def readers_dtype_chooses_branch() -> Built:
    torch.manual_seed(0)

    class Typed(nn.Module):
        def forward(self, x: Tensor, aux: Tensor, table: Tensor) -> Tensor:
            if aux.dtype == torch.float64:
                return x.sin()
            return x.sin() + table.sum()

    x, table = torch.randn(2), torch.randn(2)
    return Typed(), lambda module: [module(x, torch.ones(1, dtype=d), table) for d in (torch.float32, torch.float64)]


@case(
    {
        ("", "x"): "used",
        ("", "lengths"): "used",
        ("", "h0"): "unused",
        ("cell", "input"): "used",
        ("cell", "hx"): "used",
    }
)
def readers_steps_up_to_the_longest() -> Built:
    """The longest length bounds the loop; the initial state that was handed in is replaced by zeros."""
    torch.manual_seed(0)

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(2, 3)

        def forward(self, x: Tensor, lengths: Tensor, h0: Tensor | None = None) -> Tensor:
            h = torch.zeros(x.shape[0], 3)
            for t in range(int(lengths.max())):
                h = self.cell(x[:, t], h)
            return h

    x, h0 = torch.randn(2, 4, 2), torch.randn(2, 3)
    return Recurrent(), lambda module: module(x, torch.tensor([2, 3]), h0)


@case({("", "pair"): "used", ("", "weights"): "used", ("", "rest"): "metadata"})
def readers_unpacked() -> Built:
    """Unpacking goes along the first dimension."""
    torch.manual_seed(0)

    class Unpacked(nn.Module):
        def forward(self, pair: Tensor, weights: Tensor, rest: Tensor) -> Tensor:
            left, right = pair
            first, *_others = list(weights)
            count, _width = rest.shape
            return (left - right) * first / count

    pair, weights, rest = torch.randn(2, 3), torch.rand(3), torch.randn(4, 1)
    return Unpacked(), lambda module: module(pair, weights, rest)


@case({("", "x"): "used", ("", "aux"): "used", ("", "shown"): "metadata"})
def readers_text_of_an_error() -> Built:
    """The text of a caught error quotes the values of one and the shape of the other."""
    torch.manual_seed(0)

    class Quoting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def forward(self, x: Tensor, aux: Tensor, shown: Tensor) -> Tensor:
            try:
                raise ValueError(f"cannot use {aux!r} with a tensor of shape {list(shown.shape)}")
            except ValueError as error:
                self.errors.append(str(error))
            return x.floor()

    x, aux, shown = torch.randn(2), torch.randn(2), torch.randn(2)
    return Quoting(), lambda module: module(x, aux, shown)


@case({("", "ids"): "used", ("", "x"): "conditional", ("lin", "input"): "used"})
def readers_answers_memoised_by_ids() -> Built:
    """The third call finds its answer under the first one's ids, and does not look at `x`."""
    torch.manual_seed(0)

    class Memo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(2, 2)
            self.memo: dict[str, Tensor] = {}

        def forward(self, ids: Tensor, x: Tensor) -> Tensor:
            key = str(tuple(ids.tolist()))
            if key not in self.memo:
                self.memo[key] = self.lin(x)
            return self.memo[key] + 1

    calls = [(torch.tensor(ids), torch.randn(1, 2)) for ids in ([1, 2], [3, 4], [1, 2])]
    return Memo(), lambda module: [module(*call) for call in calls]


@case({("", "x"): "used", ("", "aux"): "conditional", ("", "verbose"): "used"})
def readers_number_when_verbose() -> Built:
    torch.manual_seed(0)

    class Verbose(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shown: list[float] = []

        def forward(self, x: Tensor, aux: Tensor, verbose: Tensor) -> Tensor:
            if verbose:
                self.shown.append(round(float(aux.std()), 4))
            return x.sqrt()

    x, aux = torch.rand(2), torch.randn(3)
    return Verbose(), lambda module: [module(x, aux, torch.tensor(flag)) for flag in (False, True)]


@case(
    {
        ("", "x"): "used",
        ("", "aux"): "used",
        ("", "mask"): "passed_through",
        ("", "extra"): "passed_through",
        ("probe", "x"): "used",
        ("probe", "aux"): "used",
        ("probe", "mask"): "metadata",
        ("probe", "extra"): "unused",
    }
)
def readers_child_that_probes() -> Built:
    """The child reads a number of one, the width of the next and nothing of the third."""
    torch.manual_seed(0)

    class Probe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reading = 0.0

        def forward(self, x: Tensor, aux: Tensor, mask: Tensor, extra: Tensor) -> Tensor:
            self.reading = aux.max().item()
            return x.view(-1, mask.size(-1)).sum(0)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.probe = Probe()

        def forward(self, x: Tensor, aux: Tensor, mask: Tensor, extra: Tensor) -> Tensor:
            return self.probe(x, aux, mask=mask, extra=extra).relu()

    x, aux, mask, extra = torch.rand(2, 4), torch.randn(3), torch.ones(2, 2), torch.randn(1)
    return Outer(), lambda module: module(x, aux, mask, extra)


@case({("", "batch['x']"): "used", ("", "batch['n']"): "used", ("", "batch['id']"): "unused"})
def readers_batch_keys_walked() -> Built:
    """Every entry is named and typed in a loop; only two are looked into."""
    torch.manual_seed(0)

    class Walking(nn.Module):
        def forward(self, batch: dict[str, Any]) -> Tensor:
            known = {key for key, value in batch.items() if isinstance(value, Tensor)}
            if not {"x", "n"} <= known:
                raise KeyError("x and n are needed")
            return batch["x"][: int(batch["n"])].sum(0)

    batch = {"x": torch.randn(4, 2), "n": torch.tensor(3), "id": torch.tensor(11), "name": "first"}
    return Walking(), lambda module: module(batch)


@case({("", "x"): "used", ("", "noise"): "dead", ("", "seed"): "used"})
def readers_seed_of_a_generator() -> Built:
    """The seed becomes a Python number; the noise that was handed in is made ready and not taken."""
    torch.manual_seed(0)

    class Noisy(nn.Module):
        def forward(self, x: Tensor, noise: Tensor, seed: Tensor) -> Tensor:
            noise = noise * 0.1
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed.item()))
            return x + noise

    x, noise = torch.randn(3), torch.randn(3)
    return Noisy(), lambda module: module(x, noise, torch.tensor(5))
