"""Operators of every kind: what they read, and what only looks as if they did."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cases import Built, case


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(2)
    return kind()


@case({("", "x"): "used", ("", "gate"): "unused", ("proj", "input"): "used"})
def operators_chunk_half_of_it_dropped() -> Built:
    class Glu(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(3, 4)

        def forward(self, x: Tensor, gate: Tensor) -> Tensor:
            value, gates = self.proj(x).chunk(2, dim=-1)
            gate, _ = gates.chunk(2, dim=-1)
            return value * gate.sigmoid()

    return made(Glu), lambda model: model(torch.randn(2, 3), torch.randn(2, 1))


@case({("", "x"): "passed_through", ("", "y"): "used", ("", "z"): "dead"})
def operators_transposed_and_returned() -> Built:
    class ToChannelsFirst(nn.Module):
        def forward(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
            scale = z.abs().amax(-1, keepdim=True)
            y = y - y.mean(-1, keepdim=True)
            del scale
            return x.permute(0, 2, 1), y.mT

    return made(ToChannelsFirst), lambda model: model(*(torch.randn(2, 3, 4) for _ in range(3)))


@case({("", "frames"): "passed_through", ("", "weights"): "used", ("fc", "input"): "used"})
def operators_unbind_first_row_returned() -> Built:
    class Keyframe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 1)

        def forward(self, frames: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
            first, *_ = frames.unbind(1)
            return first, self.fc(weights)

    return made(Keyframe), lambda model: model(torch.randn(2, 3, 4), torch.randn(3, 2))


@case({("", "x"): "used", ("", "table"): "used", ("", "unused_rows"): "unused"})
def operators_rotary_by_slices() -> Built:
    class Rotary(nn.Module):
        def forward(self, x: Tensor, table: Tensor, unused_rows: Tensor) -> Tensor:
            cos, sin = table[: x.size(1)].cos(), table[: x.size(1)].sin()
            even, odd = x[..., ::2], x[..., 1::2]
            return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)

    return made(Rotary), lambda model: model(torch.randn(2, 3, 4), torch.randn(5, 2), torch.arange(3))


@case({("", "a"): "used", ("", "b"): "used", ("", "c"): "dead"})
def operators_slices_of_a_buffer_written() -> Built:
    class Assemble(nn.Module):
        def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
            out = torch.empty(a.size(0), 4)
            scratch = torch.empty(a.size(0), 4)
            out[:, :2] = a
            out[:, 2:] = b
            scratch[:, :2] = c
            scratch[:, 2:] = c
            return out

    return made(Assemble), lambda model: model(*(torch.randn(3, 2) for _ in range(3)))


@case({("", "a"): "used", ("", "b"): "used"})
def operators_written_through_a_view_of_a_view() -> Built:
    class Interleave(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            out = torch.zeros(a.numel() * 2)
            pairs = out.view(-1, 2)
            left, right = pairs.unbind(1)
            left.copy_(a)
            right.add_(b)
            return out

    return made(Interleave), lambda model: model(torch.randn(3), torch.randn(3))


@case({("", "values"): "used", ("", "slots"): "used", ("", "counts"): "dead"})
def operators_index_put() -> Built:
    class Dispatch(nn.Module):
        def forward(self, values: Tensor, slots: Tensor, counts: Tensor) -> Tensor:
            grid = values.new_zeros(5, values.size(1))
            grid[slots] = values
            load = torch.zeros(5)
            load[slots] = counts
            return grid

    return made(Dispatch), lambda model: model(torch.randn(3, 2), torch.tensor([4, 0, 2]), torch.rand(3))


@case({("", "x"): "used", ("", "edges"): "used", ("", "edge_weight"): "unused", ("lin", "input"): "used"})
def operators_scatter_of_messages() -> Built:
    class GraphConv(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(2, 2)

        def forward(self, x: Tensor, edges: Tensor, edge_weight: Tensor | None = None) -> Tensor:
            source, target = edges
            messages = self.lin(x).index_select(0, source)
            out = torch.zeros_like(x)
            return out.scatter_add_(0, target.unsqueeze(-1).expand_as(messages), messages)

    return made(GraphConv), lambda model: model(torch.randn(3, 2), torch.tensor([[0, 1, 2], [1, 2, 2]]), torch.rand(3))


@case({("", "x"): "used", ("", "y"): "used", ("", "z"): "dead"})
def operators_out_argument() -> Built:
    class Fused(nn.Module):
        def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
            product = torch.empty_like(x)
            torch.mul(x, y, out=product)
            spare = torch.empty_like(x)
            torch.add(product, z, out=spare)
            return product

    def run(model: nn.Module) -> Any:
        return model(torch.randn(3), torch.randn(3), torch.randn(3))

    return made(Fused), run


@case({("", "mask"): "used", ("", "x"): "used", ("", "other"): "metadata", ("fc", "input"): "used"})
def operators_where_against_zeros_like() -> Built:
    class Choose(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor, mask: Tensor, other: Tensor) -> Tensor:
            return torch.where(mask, self.fc(x), torch.zeros_like(other))

    def run(model: nn.Module) -> Any:
        return model(torch.randn(2, 3), torch.tensor([[True], [False]]), torch.randn(2, 3))

    return made(Choose), run


@case({("", "q"): "used", ("", "k"): "used", ("", "v"): "used", ("", "bias"): "used"})
def operators_sdpa_with_a_mask() -> Built:
    class Attend(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
            heads = [t.unflatten(-1, (2, 2)).transpose(1, 2) for t in (q, k, v)]
            out = F.scaled_dot_product_attention(*heads, attn_mask=bias)
            return out.transpose(1, 2).flatten(2)

    return made(Attend), lambda model: model(*(torch.randn(1, 3, 4) for _ in range(3)), torch.randn(3, 3))


@case(
    {
        ("", "x"): "used",
        ("", "mask"): "unused",
        ("qkv", "input"): "used",
        ("out", "input"): "used",
    }
)
def operators_sdpa_causal_and_the_mask_forgotten() -> Built:
    class SelfAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(4, 12)
            self.out = nn.Linear(4, 4)

        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            q, k, v = self.qkv(x).split(4, dim=-1)
            return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))

    return made(SelfAttention), lambda model: model(torch.randn(1, 3, 4), mask=torch.zeros(3, 3))


@case({("", "q"): "unused", ("", "k"): "used", ("", "v"): "used", ("key", "input"): "used", ("value", "input"): "used"})
def operators_sdpa_query_taken_from_the_key() -> Built:
    class CrossAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Linear(4, 4)
            self.key = nn.Linear(4, 4)
            self.value = nn.Linear(4, 4)

        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = self.key(k), self.key(k), self.value(v)
            return F.scaled_dot_product_attention(q, k, v)

    return made(CrossAttention), lambda model: model(*(torch.randn(1, 3, 4) for _ in range(3)))


@case(
    {
        ("", "x"): "used",
        ("", "memory"): "used",
        ("", "pad"): "used",
        ("attn", "query"): "used",
        ("attn", "key"): "used",
        ("attn", "value"): "used",
        ("attn", "key_padding_mask"): "used",
    }
)
def operators_multihead_with_padding() -> Built:
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor, memory: Tensor, pad: Tensor) -> Tensor:
            out, _ = self.attn(x, memory, memory * 0.5, key_padding_mask=~pad)
            return x + out

    def run(model: nn.Module) -> Any:
        return model(torch.randn(1, 2, 4), torch.randn(1, 3, 4), torch.tensor([[True, True, False]]))

    return made(Cross), run


@case(
    {
        ("", "x"): "used",
        ("", "mask"): "passed_through",
        ("attn", "query"): "used",
        ("attn", "key"): "used",
        ("attn", "value"): "used",
        ("attn", "attn_mask"): "metadata",
    }
)
def operators_multihead_float_mask_lost_to_the_causal_hint() -> Built:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            out, _ = self.attn(x, x + 1, x + 2, attn_mask=mask, is_causal=True, need_weights=False)
            return out

    return made(Block), lambda model: model(torch.randn(1, 3, 4), torch.randn(3, 3))


@case(
    {
        ("", "x"): "used",
        ("", "mask"): "passed_through",
        ("attn", "query"): "used",
        ("attn", "key"): "used",
        ("attn", "value"): "used",
        ("attn", "attn_mask"): "dead",
    }
)
def operators_multihead_bool_mask_lost_to_the_causal_hint() -> Built:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            out, _ = self.attn(x, x + 1, x + 2, attn_mask=mask, is_causal=True, need_weights=False)
            return out

    def run(model: nn.Module) -> Any:
        return model(
            torch.randn(1, 3, 4), torch.tensor([[False, True, True], [False, False, True], [True, False, False]])
        )

    return made(Block), run


@case(
    {
        ("", "x"): "used",
        ("", "pad"): "used",
        ("layer", "src"): "used",
        ("layer", "src_key_padding_mask"): "used",
        ("layer.self_attn", "query"): "used",
        ("layer.self_attn", "key"): "used",
        ("layer.self_attn", "value"): "used",
        ("layer.self_attn", "key_padding_mask"): "used",
        ("layer.dropout1", "input"): "used",
        ("layer.norm1", "input"): "used",
        ("layer.linear1", "input"): "used",
        ("layer.dropout", "input"): "used",
        ("layer.linear2", "input"): "used",
        ("layer.dropout2", "input"): "used",
        ("layer.norm2", "input"): "used",
    }
)
def operators_encoder_layer_in_training() -> Built:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=4, dropout=0.1, batch_first=True)

        def forward(self, x: Tensor, pad: Tensor) -> Tensor:
            return self.layer(x, src_key_padding_mask=pad)

    return made(Encoder), lambda model: model(torch.randn(1, 3, 4), torch.tensor([[False, False, True]]))


@case(
    {
        ("", "x"): "used",
        ("", "pad"): "used",
        ("", "positions"): "unused",
        ("layer", "src"): "used",
        ("layer", "src_key_padding_mask"): "used",
    }
)
def operators_encoder_layer_on_the_fast_path() -> Built:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=4, batch_first=True)

        def forward(self, x: Tensor, pad: Tensor, positions: Tensor) -> Tensor:
            return self.layer(x, src_key_padding_mask=pad)

    def run(model: nn.Module) -> Any:
        with torch.no_grad():
            return model(torch.randn(1, 3, 4), torch.tensor([[False, False, True]]), torch.arange(3))

    return made(Encoder).eval(), run


@case(
    {
        ("", "x"): "used",
        ("", "h0"): "used",
        ("", "c0"): "used",
        ("rnn", "input"): "used",
        ("rnn", "hx[0]"): "used",
        ("rnn", "hx[1]"): "used",
    }
)
def operators_lstm_with_a_first_state() -> Built:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(2, 3)

        def forward(self, x: Tensor, h0: Tensor, c0: Tensor) -> Tensor:
            out, _ = self.rnn(x, (h0[None], c0[None]))
            return out[-1]

    return made(Decoder), lambda model: model(torch.randn(4, 1, 2), torch.randn(1, 3), torch.randn(1, 3))


@case({("", "x"): "used", ("", "state"): "unused", ("rnn", "input"): "used", ("head", "input"): "used"})
def operators_gru_first_state_forgotten() -> Built:
    class Policy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(2, 3)
            self.head = nn.Linear(3, 1)

        def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
            if state is None:
                state = torch.zeros(1, x.size(1), 3)
            out, last = self.rnn(x)
            return self.head(out), last

    return made(Policy), lambda model: model(torch.randn(4, 1, 2), torch.randn(1, 1, 3))


@case(
    {
        ("", "x"): "used",
        ("", "h"): "used",
        ("", "dt"): "dead",
        ("cell", "input"): "used",
        ("cell", "hx"): "used",
    }
)
def operators_gru_cell_in_a_loop() -> Built:
    class Unroll(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(2, 3)

        def forward(self, x: Tensor, h: Tensor, dt: Tensor) -> Tensor:
            for step in range(x.size(0)):
                decayed = h * torch.exp(-dt[step])
                assert decayed.shape == h.shape
                h = self.cell(x[step], h)
            return h

    return made(Unroll), lambda model: model(torch.randn(3, 1, 2), torch.randn(1, 3), torch.rand(3))


@case({("", "q"): "used", ("", "k"): "used", ("", "pos"): "dead", ("", "gain"): "used"})
def operators_einsum_with_an_operand_left_out() -> Built:
    class Scores(nn.Module):
        def forward(self, q: Tensor, k: Tensor, pos: Tensor, gain: Tensor) -> Tensor:
            content = torch.einsum("bid,bjd,d->bij", q, k, gain)
            position = torch.einsum("bid,jd->bij", q, pos)
            scores = (content + position) if self.training and q.size(0) > 8 else content
            return scores.softmax(-1)

    return made(Scores), lambda model: model(
        torch.randn(1, 3, 2), torch.randn(1, 3, 2), torch.randn(3, 2), torch.rand(2)
    )


@case(
    {
        ("", "ids"): "used",
        ("", "position_ids"): "unused",
        ("", "type_ids"): "used",
        ("tokens", "input"): "used",
        ("positions", "input"): "used",
        ("types", "input"): "used",
    }
)
def operators_embedding_positions_made_anew() -> Built:
    class Embeddings(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(9, 2)
            self.positions = nn.Embedding(8, 2)
            self.types = nn.Embedding(2, 2)

        def forward(self, ids: Tensor, position_ids: Tensor, type_ids: Tensor) -> Tensor:
            position_ids = torch.arange(ids.size(1), device=ids.device)
            return self.tokens(ids) + self.positions(position_ids) + self.types(type_ids)

    def run(model: nn.Module) -> Any:
        return model(torch.tensor([[3, 8, 1]]), torch.tensor([[2, 3, 4]]), torch.tensor([[0, 0, 1]]))

    return made(Embeddings), run


@case(
    {
        ("", "ids"): "used",
        ("", "starts"): "used",
        ("", "weights"): "used",
        ("bag", "input"): "used",
        ("bag", "offsets"): "used",
        ("bag", "per_sample_weights"): "used",
    }
)
def operators_embedding_bag() -> Built:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = nn.EmbeddingBag(6, 2, mode="sum")

        def forward(self, ids: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
            return self.bag(ids, starts, weights)

    return made(Bag), lambda model: model(torch.tensor([1, 2, 5, 0]), torch.tensor([0, 2]), torch.rand(4))


@case({("", "x"): "used", ("", "skip"): "used", ("", "image"): "metadata", ("conv", "input"): "used"})
def operators_interpolated_to_the_size_of_another() -> Built:
    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 1, 1)

        def forward(self, x: Tensor, skip: Tensor, image: Tensor) -> Tensor:
            x = F.interpolate(x, size=skip.shape[-2:], mode="nearest")
            logits = self.conv(torch.cat([x, skip], dim=1))
            return F.interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=False)

    return made(Up), lambda model: model(torch.randn(1, 1, 2, 2), torch.randn(1, 1, 4, 4), torch.randn(1, 3, 8, 8))


@case({("", "x"): "used", ("", "skip"): "metadata", ("conv", "input"): "used"})
def operators_skip_connection_read_for_its_size_only() -> Built:
    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x: Tensor, skip: Tensor) -> Tensor:
            up = F.interpolate(x, size=skip.shape[2:])
            return self.conv(up).relu()

    return made(Up), lambda model: model(torch.randn(1, 1, 2, 2), torch.randn(1, 1, 4, 4))


@case({("", "re"): "used", ("", "im"): "used", ("", "window"): "dead"})
def operators_complex_spectrum() -> Built:
    class Spectrum(nn.Module):
        def forward(self, re: Tensor, im: Tensor, window: Tensor) -> Tensor:
            signal = torch.complex(re, im)
            windowed = signal * window
            del windowed
            return torch.fft.fft(signal).abs()

    return made(Spectrum), lambda model: model(torch.randn(4), torch.randn(4), torch.rand(4))


@case({("", "z"): "passed_through", ("", "w"): "used", ("", "phase"): "unused"})
def operators_complex_viewed_as_real() -> Built:
    class Split(nn.Module):
        def forward(self, z: Tensor, w: Tensor, phase: Tensor) -> tuple[Tensor, Tensor]:
            return torch.view_as_real(z), (w * w.conj()).real

    def run(model: nn.Module) -> Any:
        return model(*(torch.randn(3, dtype=torch.complex64) for _ in range(2)), torch.rand(3))

    return made(Split), run


@case({("", "x"): "used", ("", "edges"): "used", ("", "segments"): "used", ("", "names"): "unused"})
def operators_integers_and_buckets() -> Built:
    class Histogram(nn.Module):
        def forward(self, x: Tensor, edges: Tensor, segments: Tensor, names: Tensor) -> Tensor:
            bins = torch.bucketize(x, edges)
            flat = segments * (edges.numel() + 1) + bins
            return torch.bincount(flat, minlength=8)

    def run(model: nn.Module) -> Any:
        return model(torch.randn(6), torch.tensor([-0.5, 0.0, 0.5]), torch.tensor([0, 1, 0, 1, 0, 1]), torch.arange(2))

    return made(Histogram), run


@case({("", "scores"): "used", ("", "causal"): "used", ("", "pad"): "used", ("", "extra"): "dead"})
def operators_bool_masks_combined() -> Built:
    class Masked(nn.Module):
        def forward(self, scores: Tensor, causal: Tensor, pad: Tensor, extra: Tensor) -> Tensor:
            allowed = causal & ~pad[None]
            _narrowed = allowed & extra
            return scores.masked_fill(~allowed, -1e4).softmax(-1)

    def run(model: nn.Module) -> Any:
        causal = torch.ones(3, 3, dtype=torch.bool).tril()
        return model(torch.randn(3, 3), causal, torch.tensor([False, False, True]), torch.tensor([True, False, True]))

    return made(Masked), run


@case(
    {("", "x"): "used", ("", "keep"): "used", ("", "order"): "used", ("", "weight"): "unused", ("fc", "input"): "used"}
)
def operators_indexed_by_bool_and_by_integer() -> Built:
    class Select(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x: Tensor, keep: Tensor, order: Tensor, weight: Tensor) -> Tensor:
            kept = x[order][keep]
            return self.fc(kept).sum(0)

    def run(model: nn.Module) -> Any:
        keep = torch.tensor([True, False, True])
        return model(torch.randn(3, 2), keep, torch.tensor([2, 0, 1]), torch.rand(3))

    return made(Select), run


@case({("", "x"): "used", ("", "scores"): "used", ("", "prior"): "dead"})
def operators_scores_that_only_choose() -> Built:
    class TopOne(nn.Module):
        def forward(self, x: Tensor, scores: Tensor, prior: Tensor) -> Tensor:
            _posterior = scores + prior
            best = scores.topk(2, dim=1).indices
            return x.gather(1, best)

    def run(model: nn.Module) -> Any:
        return model(torch.randn(2, 4), torch.randn(2, 4), torch.randn(2, 4))

    return made(TopOne), run


@case({("", "x"): "used", ("", "memory"): "used", ("", "mask"): "unused", ("", "cache"): "metadata"})
def operators_tensors_of_size_zero() -> Built:
    class Recall(nn.Module):
        def forward(self, x: Tensor, memory: Tensor, mask: Tensor, cache: Tensor) -> Tensor:
            joined = torch.cat([memory, x], dim=0)
            return joined.cumsum(0) if cache.numel() == 0 else joined

    return made(Recall), lambda model: model(torch.randn(2, 3), torch.empty(0, 3), torch.empty(0), torch.empty(4, 0))


@case({("", "x"): "used", ("", "temperature"): "used", ("", "step"): "used", ("", "epoch"): "unused"})
def operators_scalars_as_tensors() -> Built:
    class Anneal(nn.Module):
        def forward(self, x: Tensor, temperature: Tensor, step: Tensor, epoch: Tensor) -> Tensor:
            weight = min(float(step) / 10, 1.0)
            return (x / temperature).softmax(-1) * weight

    def run(model: nn.Module) -> Any:
        return model(torch.randn(3), torch.tensor(0.7), torch.tensor(4), torch.tensor(1))

    return made(Anneal), run


@case({("", "a"): "used", ("", "b"): "used", ("", "t"): "used", ("", "lo"): "used", ("", "hi"): "unused"})
def operators_lerp_and_clamp() -> Built:
    class Blend(nn.Module):
        def forward(self, a: Tensor, b: Tensor, t: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
            mixed = torch.lerp(a, b, t)
            return mixed.clamp(min=lo)

    def run(model: nn.Module) -> Any:
        return model(torch.zeros(3), torch.ones(3), torch.tensor(0.25), torch.full((3,), 0.1), torch.ones(3))

    return made(Blend), run


@case(
    {
        ("", "left"): "used",
        ("", "right"): "used",
        ("", "bias"): "unused",
        ("mix", "input1"): "used",
        ("mix", "input2"): "used",
        ("near", "x1"): "used",
        ("near", "x2"): "used",
    }
)
def operators_bilinear_and_cosine() -> Built:
    class Match(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Bilinear(2, 2, 1)
            self.near = nn.CosineSimilarity()

        def forward(self, left: Tensor, right: Tensor, bias: Tensor) -> Tensor:
            return self.mix(left, right).squeeze(-1) + self.near(left, right)

    return made(Match), lambda model: model(torch.randn(3, 2), torch.randn(3, 2), torch.randn(3))


@case({("", "x"): "used", ("", "gamma"): "used", ("", "beta"): "dead", ("", "image"): "used", ("", "grid"): "used"})
def operators_grid_sample_and_functional_norm() -> Built:
    class Warp(nn.Module):
        def forward(self, x: Tensor, gamma: Tensor, beta: Tensor, image: Tensor, grid: Tensor) -> Tensor:
            shift = F.softplus(beta)
            normed = F.layer_norm(x, shift.shape, weight=gamma)
            warped = F.grid_sample(image, grid, align_corners=False)
            return warped.mean() + normed

    def run(model: nn.Module) -> Any:
        return model(*(torch.randn(*shape) for shape in [(2, 3), (3,), (3,), (1, 1, 4, 4), (1, 2, 2, 2)]))

    return made(Warp), run


@case({("", "xs[0]"): "used", ("", "xs[1]"): "used", ("", "ys[0]"): "used", ("", "ys[1]"): "unused"})
def operators_foreach() -> Built:
    class Average(nn.Module):
        def forward(self, xs: list[Tensor], ys: list[Tensor]) -> list[Tensor]:
            scaled = torch._foreach_mul(xs, 0.9)
            torch._foreach_add_(scaled[:1], ys[:1])
            return list(scaled)

    return made(Average), lambda model: model([torch.randn(2), torch.randn(3)], [torch.randn(2), torch.randn(3)])


@case({("", "x"): "used", ("", "w"): "used", ("", "z"): "unused"})
def operators_vmap() -> Built:
    class PerSample(nn.Module):
        def forward(self, x: Tensor, w: Tensor, z: Tensor) -> Tensor:
            def one(row: Tensor, weight: Tensor) -> Tensor:
                return torch.tanh(weight @ row)

            return torch.vmap(one)(x, w)

    return made(PerSample), lambda model: model(torch.randn(2, 3), torch.randn(2, 2, 3), torch.randn(2))


@case({("", "x"): "used", ("", "y"): "used", ("", "z"): "unused", ("act", "input"): "used", ("fc", "input"): "used"})
def operators_written_in_place_and_returned() -> Built:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)
            self.act = nn.ReLU(inplace=True)

        def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
            hidden = self.fc(x)
            hidden += y
            self.act(hidden)
            return hidden

    return made(Residual), lambda model: model(torch.randn(2, 3), torch.randn(2, 3), torch.randn(2, 3))


@case(
    {
        ("", "image"): "used",
        ("", "depth"): "unused",
        ("stem", "input"): "used",
        ("stem.0", "input"): "used",
        ("stem.1", "input"): "used",
        ("stem.2", "input"): "used",
        ("stem.3", "input"): "used",
        ("flat", "input"): "passed_through",
        ("head", "input"): "used",
    }
)
def operators_convolutions_and_a_flatten() -> Built:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.GELU(), nn.MaxPool2d(2))
            self.flat = nn.Flatten()
            self.head = nn.Linear(8, 2)

        def forward(self, image: Tensor, depth: Tensor) -> Tensor:
            return self.head(self.flat(self.stem(image)))

    return made(Net), lambda model: model(torch.randn(2, 1, 6, 6), torch.rand(2, 1, 6, 6))
