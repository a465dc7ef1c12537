"""Arguments that arrive in containers: which leaf of them is read, under which path."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .cases import Built, case


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    return kind()


class Pair(NamedTuple):
    left: Tensor
    right: Tensor | None = None


@dataclass
class Sample:
    image: Tensor
    label: Tensor | None = None
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Padded:
    values: Tensor
    mask: Tensor

    @property
    def mean(self) -> Tensor:
        return (self.values * self.mask).sum(1) / self.mask.sum(1)


@case({("", "batch['tokens']"): "used", ("", "batch['mask']"): "unused", ("proj", "input"): "used"})
def containers_dict_key_never_read() -> Built:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(4, 3)

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.proj(batch["tokens"]).mean(1)

    return made(Encoder), lambda model: model({"tokens": torch.randn(2, 5, 4), "mask": torch.ones(2, 5)})


@case(
    {
        ("", "batch['age']"): "used",
        ("", "batch['height']"): "used",
        ("", "batch['weight']"): "used",
        ("towers.age", "input"): "used",
        ("towers.height", "input"): "used",
        ("towers.weight", "input"): "used",
    }
)
def containers_dict_read_in_a_loop() -> Built:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.towers = nn.ModuleDict({name: nn.Linear(1, 2) for name in ("age", "height", "weight")})

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            total = 0
            for name, value in batch.items():
                total = total + self.towers[name](value)
            return total

    columns = ("age", "height", "weight")
    return made(Table), lambda model: model({name: torch.randn(3, 1) for name in columns})


@case(
    {
        ("", "batch['ids']"): "used",
        ("", "batch['attn_mask']"): "unused",
        ("", "batch['bias']"): "used",
        ("embed", "input"): "used",
    }
)
def containers_dict_key_misspelt_in_get() -> Built:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(7, 3)

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            hidden = self.embed(batch["ids"])
            mask = batch.get("attention_mask")
            if mask is not None:
                hidden = hidden * mask.unsqueeze(-1)
            bias = batch.get("bias")
            if bias is not None:
                hidden = hidden + bias
            return hidden

    def run(model: nn.Module) -> Any:
        return model({"ids": torch.arange(4)[None], "attn_mask": torch.ones(1, 4), "bias": torch.randn(3)})

    return made(Encoder), run


@case({("", "batch['x']"): "unused", ("", "batch['y']"): "used", ("", "extra"): "used", ("head", "input"): "used"})
def containers_dict_entry_replaced_before_it_is_read() -> Built:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, batch: dict[str, Tensor], extra: Tensor) -> Tensor:
            batch = {**batch, "x": extra}
            return self.head(batch["x"] + batch["y"])

    return made(Net), lambda model: model({"x": torch.randn(2, 3), "y": torch.randn(2, 3)}, torch.randn(2, 3))


@case(
    {("", "batch['x']"): "used", ("", "batch['weight']"): "unused", ("net", "x"): "used", ("net.fc", "input"): "used"}
)
def containers_dict_popped_from_a_copy() -> Built:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x).relu()

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Inner()

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            batch = dict(batch)
            batch.pop("weight", None)
            return self.net(**batch)

    return made(Outer), lambda model: model({"x": torch.randn(2, 3), "weight": torch.ones(2)})


@case(
    {
        ("", "batch['feat_a']"): "used",
        ("", "batch['feat_b']"): "used",
        ("", "batch['feature_c']"): "unused",
        ("", "batch['y']"): "unused",
        ("head", "input"): "used",
    }
)
def containers_dict_keys_filtered_by_prefix() -> Built:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 1)

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            columns = [batch[name] for name in sorted(batch) if name.startswith("feat_")]
            return self.head(torch.cat(columns, dim=-1))

    def run(model: nn.Module) -> Any:
        return model({name: torch.randn(3, 2) for name in ("feat_b", "feature_c", "y", "feat_a")})

    return made(Net), run


@case(
    {("", "pyramid[8]"): "used", ("", "pyramid[16]"): "used", ("", "pyramid[32]"): "unused", ("lat", "input"): "used"}
)
def containers_dict_with_numbers_as_keys() -> Built:
    class Neck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.strides = (8, 16)
            self.lat = nn.Conv2d(2, 2, 1)

        def forward(self, pyramid: dict[int, Tensor]) -> list[Tensor]:
            return [self.lat(pyramid[stride]) for stride in self.strides]

    return made(Neck), lambda model: model({s: torch.randn(1, 2, 32 // s, 32 // s) for s in (8, 16, 32)})


@case({("", "batch['x']"): "used", ("", "batch['mask']"): "unused", ("", "groups['a']"): "used"})
def containers_ordered_and_default_dict() -> Built:
    class Net(nn.Module):
        def forward(self, batch: OrderedDict[str, Any], groups: dict[str, Tensor]) -> Tensor:
            return batch["x"] * groups["a"] + len(batch)

    def run(model: nn.Module) -> Any:
        groups: defaultdict[str, Tensor] = defaultdict(lambda: torch.zeros(3))
        groups["a"] = torch.randn(3)
        return model(OrderedDict(x=torch.randn(3), mask=torch.ones(3), note="left"), groups)

    return made(Net), run


@case({("", "batch['x']"): "used", ("", "batch['names']"): "unused", ("", "n"): "used"})
def containers_dict_counted_but_not_read() -> Built:
    class Net(nn.Module):
        def forward(self, batch: dict[str, Tensor], n: Tensor) -> Tensor:
            if "names" not in batch:
                raise KeyError("names")
            return batch["x"] / len(batch) + n

    return made(Net), lambda model: model({"x": torch.randn(2), "names": torch.arange(2)}, torch.tensor(3.0))


@case(
    {
        ("", "levels[0]"): "used",
        ("", "levels[1]"): "used",
        ("", "levels[2]"): "used",
        ("", "levels[3]"): "unused",
        ("reduce", "input"): "used",
    }
)
def containers_list_without_its_last() -> Built:
    class Neck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reduce = nn.Linear(2, 2)

        def forward(self, levels: list[Tensor]) -> list[Tensor]:
            return [self.reduce(level) for level in levels[:-1]]

    return made(Neck), lambda model: model([torch.randn(2, 2) for _ in range(4)])


@case(
    {
        ("", "frames[0]"): "used",
        ("", "frames[1]"): "used",
        ("", "frames[2]"): "used",
        ("", "times"): "unused",
        ("pool", "input"): "used",
    }
)
def containers_list_stacked() -> Built:
    class Video(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.Linear(3, 1)

        def forward(self, frames: list[Tensor], times: Tensor | None = None) -> Tensor:
            clip = torch.stack(frames, dim=1)
            return self.pool(clip).amax(1)

    return made(Video), lambda model: model([torch.randn(2, 3) for _ in range(3)], times=torch.arange(3.0))


@case({("", "mixed[0]"): "used", ("", "mixed[3]"): "unused", ("", "mixed[4][0]"): "used"})
def containers_list_of_mixed_things() -> Built:
    class Net(nn.Module):
        def forward(self, mixed: list[Any]) -> Tensor:
            x, power, mode, _, (shift,) = mixed
            x = x**power
            return x + shift if mode == "add" else x - shift

    return made(Net), lambda model: model([torch.randn(3), 2, "add", torch.ones(3), (torch.randn(3),)])


@case(
    {
        ("", "xs[0]"): "used",
        ("", "xs[1]"): "used",
        ("", "xs[2]"): "unused",
        ("", "gates[0]"): "used",
        ("", "gates[1]"): "used",
    }
)
def containers_lists_zipped_to_the_shorter() -> Built:
    class Gated(nn.Module):
        def forward(self, xs: list[Tensor], gates: list[Tensor]) -> Tensor:
            return sum(x * gate.sigmoid() for x, gate in zip(xs, gates, strict=False))

    return made(Gated), lambda model: model([torch.randn(3) for _ in range(3)], [torch.randn(3) for _ in range(2)])


@case({("", "x"): "used", ("", "state[0]"): "used", ("", "state[1]"): "unused", ("cell", "input"): "used"})
def containers_tuple_second_half_dropped() -> Built:
    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.Linear(6, 3)

        def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            h, _ = state
            h = torch.tanh(self.cell(torch.cat([x, h], -1)))
            return h, torch.zeros_like(h)

    return made(Cell), lambda model: model(torch.randn(2, 3), (torch.randn(2, 3), torch.randn(2, 3)))


@case({("", "pair.left"): "used", ("", "pair.right"): "unused", ("fc", "input"): "used"})
def containers_namedtuple_by_attribute() -> Built:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, pair: Pair) -> Tensor:
            left = self.fc(pair.left)
            right = self.fc(pair.left)
            return (left - right).square().sum(-1)

    return made(Siamese), lambda model: model(Pair(torch.randn(2, 3), torch.randn(2, 3)))


@case({("", "pair.left"): "unused", ("", "pair.right"): "used", ("fc", "input"): "used"})
def containers_namedtuple_by_index() -> Built:
    class Pick(nn.Module):
        def __init__(self, which: int = 1) -> None:
            super().__init__()
            self.which = which
            self.fc = nn.Linear(3, 2)

        def forward(self, pair: Pair) -> Tensor:
            return self.fc(pair[self.which])

    return made(Pick), lambda model: model(Pair(torch.randn(2, 3), torch.randn(2, 3)))


@case(
    {
        ("", "pair.left"): "used",
        ("", "pair.right"): "unused",
        ("inner", "pair.left"): "used",
        ("inner", "pair.right"): "used",
    }
)
def containers_namedtuple_field_replaced() -> Built:
    class Inner(nn.Module):
        def forward(self, pair: Pair) -> Tensor:
            assert pair.right is not None
            return pair.left @ pair.right.mT

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, pair: Pair) -> Tensor:
            return self.inner(pair._replace(right=torch.eye(3)))

    return made(Outer), lambda model: model(Pair(torch.randn(2, 3), torch.randn(3, 3)))


@case({("", "sample.image"): "used", ("", "sample.label"): "unused", ("conv", "input"): "used"})
def containers_dataclass_label_not_read() -> Built:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, sample: Sample) -> Tensor:
            if isinstance(sample.label, Tensor) and not self.training:
                return self.conv(sample.image).mean((2, 3))
            return self.conv(sample.image).amax((2, 3))

    return made(Net), lambda model: model(Sample(torch.randn(2, 1, 4, 4), torch.tensor([0, 1])))


@case(
    {
        ("", "sample.image"): "used",
        ("", "sample.meta['weight']"): "used",
        ("", "sample.meta['crop'][0]"): "used",
        ("", "sample.meta['crop'][1]"): "unused",
    }
)
def containers_dataclass_with_a_dict_in_it() -> Built:
    class Net(nn.Module):
        def forward(self, sample: Sample) -> Tensor:
            top = int(sample.meta["crop"][0])
            return sample.image[..., top:, :].mean((-2, -1)) * sample.meta["weight"]

    def run(model: nn.Module) -> Any:
        meta = {"weight": torch.rand(2, 1), "crop": [torch.tensor(1), torch.tensor(2)], "file": "a.png"}
        return model(Sample(torch.randn(2, 1, 4, 4), meta=meta))

    return made(Net), run


@case({("", "padded.values"): "used", ("", "padded.mask"): "used", ("head", "input"): "used"})
def containers_dataclass_mask_read_by_a_property() -> Built:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(1, 1)

        def forward(self, padded: Padded) -> Tensor:
            return self.head(padded.mean.unsqueeze(-1))

    return made(Net), lambda model: model(Padded(torch.randn(2, 3), torch.tensor([[1.0, 1, 0], [1, 0, 0]])))


@case(
    {
        ("", "sample.image"): "used",
        ("", "sample.label"): "unused",
        ("net", "sample.image"): "used",
        ("net.fc", "input"): "used",
    }
)
def containers_dataclass_field_set_to_none() -> Built:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, sample: Sample) -> Tensor:
            logits = self.fc(sample.image)
            return logits if sample.label is None else logits - sample.label

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Inner()

        def forward(self, sample: Sample) -> Tensor:
            return self.net(replace(sample, label=None))

    return made(Outer), lambda model: model(Sample(torch.randn(2, 3), torch.randn(2, 2)))


@case(
    {
        ("", "out['logits']"): "used",
        ("", "out['hidden_states'][0]"): "unused",
        ("", "out['hidden_states'][1]"): "used",
        ("", "labels"): "used",
        ("loss", "input"): "used",
        ("loss", "target"): "used",
    }
)
def containers_model_output_by_attribute() -> Built:
    from transformers.utils import ModelOutput

    @dataclass
    class Output(ModelOutput):
        loss: Tensor | None = None
        logits: Tensor | None = None
        hidden_states: tuple[Tensor, ...] | None = None

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loss = nn.CrossEntropyLoss()

        def forward(self, out: Any, labels: Tensor) -> Tensor:
            return self.loss(out.logits, labels) + out.hidden_states[-1].square().mean()

    def run(model: nn.Module) -> Any:
        hidden = (torch.randn(2, 3), torch.randn(2, 3))
        return model(Output(logits=torch.randn(2, 4), hidden_states=hidden), torch.tensor([1, 3]))

    return made(Head), run


@case(
    {
        ("", "ids"): "used",
        ("", "mask"): "passed_through",
        ("backbone", "ids"): "used",
        ("backbone", "mask"): "unused",
        ("backbone.embed", "input"): "used",
        ("head", "out['last_hidden_state']"): "used",
        ("head", "out['pooled']"): "unused",
        ("head.fc", "input"): "used",
    }
)
def containers_model_output_between_children() -> Built:
    from transformers.utils import ModelOutput

    @dataclass
    class Output(ModelOutput):
        last_hidden_state: Tensor | None = None
        pooled: Tensor | None = None
        attentions: Tensor | None = None

    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(5, 3)

        def forward(self, ids: Tensor, mask: Tensor | None = None) -> Any:
            hidden = self.embed(ids)
            return Output(last_hidden_state=hidden, pooled=hidden.mean(1))

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, out: Any) -> Tensor:
            return self.fc(out[0][:, 0])

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = Backbone()
            self.head = Head()

        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            return self.head(self.backbone(ids, mask=mask))

    return made(Model), lambda model: model(torch.tensor([[1, 2, 0]]), torch.ones(1, 3))


@case(
    {
        ("", "batch['views'][0]['image']"): "used",
        ("", "batch['views'][0]['pose']"): "used",
        ("", "batch['views'][1]['image']"): "used",
        ("", "batch['views'][1]['pose']"): "unused",
        ("", "batch['target'].left"): "passed_through",
        ("fc", "input"): "used",
    }
)
def containers_nested_three_deep() -> Built:
    class Stereo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
            first, second = batch["views"]
            shared = self.fc(torch.stack([first["image"], second["image"]])).mean(0)
            return {"depth": shared * first["pose"], "target": batch["target"].left}

    def run(model: nn.Module) -> Any:
        views = [{"image": torch.randn(2, 3), "pose": torch.randn(2)} for _ in range(2)]
        return model({"views": views, "target": Pair(torch.randn(2))})

    return made(Stereo), run


@case({("", "x"): "used", ("", "kw['mask']"): "unused", ("", "kw['scale']"): "used", ("fc", "input"): "used"})
def containers_keywords_swallowed() -> Built:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor, **kw: Any) -> Tensor:
            return self.fc(x) * kw.get("scale", 1.0)

    return made(Layer), lambda model: model(torch.randn(2, 3), mask=torch.ones(2), scale=torch.tensor(0.5), flag=True)


@case(
    {
        ("", "x"): "used",
        ("", "kw['gain']"): "used",
        ("", "kw['bias']"): "passed_through",
        ("layer", "x"): "used",
        ("layer", "gain"): "used",
        ("layer", "ignored['bias']"): "unused",
    }
)
def containers_keywords_forwarded() -> Built:
    class Layer(nn.Module):
        def forward(self, x: Tensor, gain: Tensor | None = None, **ignored: Any) -> Tensor:
            return x if gain is None else x * gain

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Layer()

        def forward(self, x: Tensor, **kw: Any) -> Tensor:
            return self.layer(x, **kw)

    return made(Wrapper), lambda model: model(torch.randn(3), bias=torch.randn(3), gain=torch.randn(3))


@case({("", "features[0]"): "used", ("", "features[1]"): "used", ("", "features[2]"): "used", ("fc", "input"): "used"})
def containers_star_arguments_concatenated() -> Built:
    class Fuse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 2)

        def forward(self, *features: Tensor) -> Tensor:
            return self.fc(torch.cat(features, dim=-1))

    return made(Fuse), lambda model: model(torch.randn(2, 1), torch.randn(2, 2), torch.randn(2, 3))


@case(
    {
        ("", "args[0]"): "used",
        ("", "args[1]"): "passed_through",
        ("", "args[2]"): "passed_through",
        ("block", "x"): "used",
        ("block", "rest[0]"): "unused",
        ("block", "rest[1]"): "unused",
    }
)
def containers_star_arguments_handed_down() -> Built:
    class Block(nn.Module):
        def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
            return torch.tanh(x)

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, *args: Tensor) -> Tensor:
            return self.block(*args)

    return made(Checkpointed), lambda model: model(torch.randn(3), torch.ones(3), torch.zeros(3))


@case({("", "x"): "used", ("fc", "input"): "used"})
def containers_defaults_not_passed() -> Built:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(
            self, x: Tensor, mask: Tensor | None = None, *, bias: Tensor | None = None, heads: int = 2
        ) -> Tensor:
            return self.fc(x) * heads

    return made(Net), lambda model: model(torch.randn(1, 2), bias=None)


@case({("", "x"): "used", ("", "scale"): "used", ("", "shift"): "unused"})
def containers_keyword_only_and_positional_only() -> Built:
    class Film(nn.Module):
        def forward(self, x: Tensor, /, scale: Tensor, *, shift: Tensor | None = None) -> Tensor:
            return x * (1 + scale)

    return made(Film), lambda model: model(torch.randn(3), shift=torch.randn(3), scale=torch.randn(3))


@case({("", "batch['x']"): "used", ("", "batch['mask']"): "used"})
def containers_none_in_one_of_two_calls() -> Built:
    class Pool(nn.Module):
        def forward(self, batch: dict[str, Tensor | None]) -> Tensor:
            x, mask = batch["x"], batch["mask"]
            assert x is not None
            return x.mean(0) if mask is None else (x * mask).sum(0)

    def run(model: nn.Module) -> Any:
        return model({"x": torch.randn(3, 2), "mask": None}), model({"x": torch.randn(3, 2), "mask": torch.ones(3, 1)})

    return made(Pool), run


@case({("", "x"): "used", ("", "mask"): "unused"})
def containers_absent_then_ignored() -> Built:
    class Pool(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            pooled = x.mean(0)
            if mask is None:
                return pooled
            return pooled * 1.0

    def run(model: nn.Module) -> Any:
        return model(torch.randn(3, 2)), model(torch.randn(3, 2), None), model(torch.randn(3, 2), torch.ones(3))

    return made(Pool), run


@case({("", "inputs['x']"): "used", ("", "inputs['y']"): "used", ("", "extras[0]"): "unused", ("fc", "input"): "used"})
def containers_same_tensor_in_two_containers() -> Built:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, inputs: dict[str, Tensor], extras: list[Tensor]) -> Tensor:
            return self.fc(inputs["x"] + inputs["y"])

    def run(model: nn.Module) -> Any:
        x = torch.randn(2, 3)
        return model({"x": x, "y": torch.randn(2, 3)}, [x])

    return made(Net), run


@case({("", "batch['anchor']"): "used", ("", "batch['positive']"): "used", ("fc", "input"): "used"})
def containers_same_tensor_under_two_keys() -> Built:
    class Contrast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.fc(batch["anchor"]) @ self.fc(batch["positive"]).mT

    def run(model: nn.Module) -> Any:
        x = torch.randn(2, 3)
        return model({"anchor": x, "positive": x})

    return made(Contrast), run


@case(
    {
        ("", "x"): "used",
        ("", "lengths"): "used",
        ("rnn", "input.data"): "used",
        ("rnn", "input.batch_sizes"): "used",
    }
)
def containers_packed_sequence_made_inside() -> Built:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(2, 3, batch_first=True)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = pack_padded_sequence(x, lengths, batch_first=True)
            _, (last, _) = self.rnn(packed)
            return last[-1]

    return made(Reader), lambda model: model(torch.randn(3, 4, 2), torch.tensor([4, 2, 1]))


@case(
    {
        ("", "x"): "used",
        ("", "lengths"): "used",
        ("rnn", "input.data"): "used",
        ("rnn", "input.batch_sizes"): "used",
        ("rnn", "input.sorted_indices"): "passed_through",
        ("rnn", "input.unsorted_indices"): "used",
    }
)
def containers_packed_sequence_out_of_order() -> Built:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(2, 3, batch_first=True)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            out, _ = self.rnn(packed)
            padded, _ = pad_packed_sequence(out, batch_first=True)
            return padded.sum(1)

    return made(Reader), lambda model: model(torch.randn(3, 4, 2), torch.tensor([1, 4, 2]))


@case({("", "packed.data"): "used", ("", "packed.batch_sizes"): "unused", ("fc", "input"): "used"})
def containers_packed_sequence_read_as_a_bag() -> Built:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, packed: PackedSequence) -> Tensor:
            return self.fc(packed.data).mean(0)

    return made(Bag), lambda model: model(pack_padded_sequence(torch.randn(3, 2, 2), torch.tensor([3, 1])))


@case({("", "x"): "used", ("", "y"): "used", ("", "z"): "unused", ("fc", "input"): "used"})
def containers_local_list_collects_features() -> Built:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
            features = [x]
            features.append(self.fc(y))
            dropped = [z]
            features += dropped[1:]
            return torch.cat(features, dim=-1)

    return made(Dense), lambda model: model(torch.randn(2, 2), torch.randn(2, 2), torch.randn(2, 2))


@case(
    {
        ("", "x"): "used",
        ("", "labels"): "passed_through",
        ("", "names"): "unused",
        ("", "spans"): "passed_through",
        ("fc", "input"): "used",
    }
)
def containers_result_is_a_nested_dict() -> Built:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 4)

        def forward(self, x: Tensor, labels: Tensor, names: Tensor, spans: Tensor) -> dict[str, Any]:
            logits = self.fc(x)
            return {"out": {"logits": logits, "labels": labels}, "spans": [spans[:, 0], spans[:, 1]]}

    def run(model: nn.Module) -> Any:
        return model(torch.randn(2, 3), torch.tensor([1, 2]), torch.arange(2), torch.tensor([[0, 1], [2, 3]]))

    return made(Net), run


@case({("", "x"): "used", ("", "y"): "used", ("", "z"): "unused"})
def containers_result_inside_a_plain_object() -> Built:
    class Prediction:
        def __init__(self, mean: Tensor, spread: Tensor) -> None:
            self.mean = mean
            self.spread = spread

    class Gaussian(nn.Module):
        def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Any:
            return Prediction(mean=x * 2, spread=torch.nn.functional.softplus(y))

    return made(Gaussian), lambda model: model(torch.randn(2), torch.randn(2), torch.randn(2))


@case({("", "x"): "used", ("", "options['mask']"): "unused"})
def containers_unknown_object_has_no_leaves() -> Built:
    class Bag:
        def __init__(self, values: Tensor) -> None:
            self.values = values

    class Net(nn.Module):
        def forward(self, x: Tensor, bag: Bag, options: dict[str, Any]) -> Tensor:
            return x + bag.values

    return made(Net), lambda model: model(torch.randn(2), Bag(torch.randn(2)), {"mask": torch.ones(2), "k": 3})
