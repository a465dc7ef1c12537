"""Shapes, dtypes and devices consulted, and values read by what looks like no more than that."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cases import Built, case


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    return kind()


@case({("", "x"): "used", ("", "mask"): "metadata", ("fc", "input"): "used"})
def shapes_size_of_the_mask_only() -> Built:
    class Pool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            length = mask.size(1)
            return self.fc(x).sum(1) / length

    return made(Pool), lambda model: model(torch.randn(2, 4, 3), torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]))


@case({("", "x"): "used", ("", "mask"): "used", ("fc", "input"): "used"})
def shapes_sum_of_the_mask_as_a_number() -> Built:
    class Pool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            length = int(mask.sum(1).max())
            return self.fc(x).sum(1) / length

    return made(Pool), lambda model: model(torch.randn(2, 4, 3), torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]))


@case({("", "x"): "used", ("", "keep"): "used", ("", "marks"): "used", ("", "names"): "metadata"})
def shapes_counted_by_nonzero_and_by_selection() -> Built:
    class Normalise(nn.Module):
        def forward(self, x: Tensor, keep: Tensor, marks: Tensor, names: Tensor) -> Tensor:
            kept = keep.nonzero().shape[0]
            marked = len(names[marks])
            return x / max(kept, 1) + marked

    def run(model: nn.Module) -> Any:
        return model(torch.randn(3), torch.tensor([0, 1, 1]), torch.tensor([True, False, False]), torch.arange(3))

    return made(Normalise), run


@case({("", "x"): "used", ("", "ref"): "metadata", ("", "like"): "metadata", ("", "kind"): "metadata"})
def shapes_constructors_modelled_on_arguments() -> Built:
    class Noise(nn.Module):
        def forward(self, x: Tensor, ref: Tensor, like: Tensor, kind: Tensor) -> Tensor:
            base = torch.zeros_like(ref)
            ones = like.new_ones(x.size(0))
            more = torch.full_like(kind, 0.5)
            return x + base + ones + more

    return made(Noise), lambda model: model(*(torch.randn(3) for _ in range(4)))


@case({("", "x"): "used", ("", "wide"): "metadata", ("", "flat"): "metadata", ("", "kind"): "metadata"})
def shapes_shaped_as_another() -> Built:
    class Shaped(nn.Module):
        def forward(self, x: Tensor, wide: Tensor, flat: Tensor, kind: Tensor) -> Tensor:
            spread = x.unsqueeze(0).expand_as(wide)
            line = (spread * 2).view_as(flat)
            return line.type_as(kind).cumsum(0)

    def run(model: nn.Module) -> Any:
        return model(torch.randn(3), torch.randn(2, 3), torch.randn(6), torch.zeros(1, dtype=torch.float64))

    return made(Shaped), run


@case({("", "x"): "used", ("", "target"): "metadata", ("fc", "input"): "used"})
def shapes_moved_to_another() -> Built:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2).double()

        def forward(self, x: Tensor, target: Tensor) -> Tensor:
            return self.fc(x.to(target))

    return made(Cast), lambda model: model(torch.randn(1, 2), torch.zeros(4, dtype=torch.float64))


@case({("", "x"): "used", ("", "mask"): "metadata", ("", "ids"): "metadata"})
def shapes_dtype_and_device_only() -> Built:
    class Bias(nn.Module):
        def forward(self, x: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
            low = torch.finfo(mask.dtype).tiny
            steps = torch.arange(x.size(-1), device=ids.device)
            if mask.is_floating_point() and not ids.is_cuda:
                return x + low + steps
            return x

    return made(Bias), lambda model: model(torch.randn(2, 3), torch.ones(2, 3), torch.zeros(2, dtype=torch.long))


@case({("", "query"): "used", ("", "key"): "metadata", ("", "value"): "used", ("score", "input"): "used"})
def shapes_key_read_for_its_width() -> Built:
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score = nn.Linear(2, 3)

        def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            scale = key.shape[-1] ** -0.5
            weights = (self.score(query) * scale).softmax(-1)
            return weights @ value

    return made(Attend), lambda model: model(torch.randn(1, 3, 2), torch.randn(1, 3, 2), torch.randn(1, 3, 2))


@case({("", "x"): "used", ("", "mask"): "metadata", ("", "pair"): "metadata"})
def shapes_of_a_row_and_of_a_transpose() -> Built:
    class Rows(nn.Module):
        def forward(self, x: Tensor, mask: Tensor, pair: Tensor) -> Tensor:
            width = mask[0].shape[0]
            height = pair.transpose(0, 1).size(0)
            return x[:height, :width].relu()

    return made(Rows), lambda model: model(torch.randn(4, 4), torch.ones(2, 3), torch.ones(3, 2))


@case({("", "x"): "used", ("", "mask"): "metadata", ("", "weight"): "used", ("fc", "input"): "used"})
def shapes_asserted_equal_then_forgotten() -> Built:
    class Checked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
            if mask.shape != x.shape[:2]:
                raise ValueError(f"mask of {tuple(mask.shape)} for an input of {tuple(x.shape)}")
            if mask.dim() != 2 or weight.dim() != 1:
                raise ValueError("wrong number of dimensions")
            return self.fc(x) * weight[:, None, None]

    return made(Checked), lambda model: model(torch.randn(2, 3, 2), torch.ones(2, 3), torch.rand(2))


@case({("", "x"): "used", ("", "weight"): "used", ("", "mask"): "metadata"})
def shapes_values_asserted() -> Built:
    class Checked(nn.Module):
        def forward(self, x: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
            if not bool((weight >= 0).all()):
                raise ValueError("negative weights")
            if mask.numel() != x.numel():
                raise ValueError("mask of another size")
            return x.exp()

    return made(Checked), lambda model: model(torch.randn(3), torch.rand(3), torch.ones(3))


@case({("", "x"): "used", ("", "other"): "metadata", ("", "third"): "used"})
def shapes_broadcast_to_another() -> Built:
    class Spread(nn.Module):
        def forward(self, x: Tensor, other: Tensor, third: Tensor) -> Tensor:
            shape = torch.broadcast_shapes(x.shape, other.shape)
            return x.expand(shape).cumsum(-1) * torch.ones_like(third) + third.mean()

    return made(Spread), lambda model: model(torch.randn(3), torch.randn(2, 3), torch.randn(1, 3))


@case({("", "x"): "used", ("", "image"): "metadata", ("conv", "input"): "used", ("conv.0", "input"): "used"})
def shapes_padded_to_the_size_of_the_image() -> Built:
    class Crop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Sequential(nn.Conv2d(1, 1, 3))

        def forward(self, x: Tensor, image: Tensor) -> Tensor:
            out = self.conv(x)
            height, width = image.shape[-2:]
            return F.pad(out, (0, width - out.size(-1), 0, height - out.size(-2)))

    return made(Crop), lambda model: model(torch.randn(1, 1, 4, 4), torch.rand(1, 3, 4, 4))


@case({("", "x"): "used", ("", "lengths"): "used", ("", "mask"): "metadata"})
def shapes_arange_up_to_a_tensor() -> Built:
    class Positions(nn.Module):
        def forward(self, x: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
            longest = int(lengths.max())
            steps = torch.arange(longest)
            offset = torch.arange(mask.size(0)).sum()
            return x[:longest] + steps[:, None] + offset

    return made(Positions), lambda model: model(torch.randn(4, 2), torch.tensor([2, 3]), torch.ones(3))


@case({("", "x"): "used", ("", "n"): "used", ("", "groups"): "used", ("", "shape"): "metadata"})
def shapes_reshaped_by_a_scalar_tensor() -> Built:
    class Regroup(nn.Module):
        def forward(self, x: Tensor, n: Tensor, groups: Tensor, shape: Tensor) -> tuple[Tensor, int]:
            rows = x.reshape(int(n), -1) * 2
            parts = rows.split(groups.tolist(), dim=0)
            return torch.stack([part.sum() for part in parts]), shape.ndim

    return made(Regroup), lambda model: model(torch.randn(12), torch.tensor(3), torch.tensor([1, 2]), torch.ones(2, 1))


@case({("", "x"): "used", ("", "labels"): "used", ("", "classes"): "metadata"})
def shapes_number_of_distinct_labels() -> Built:
    class Balance(nn.Module):
        def forward(self, x: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
            present = torch.unique(labels).numel()
            return x * present / len(classes)

    return made(Balance), lambda model: model(torch.randn(3), torch.tensor([0, 2, 2]), torch.arange(4))


@case({("", "x"): "used", ("", "mask"): "metadata", ("layer", "x"): "used", ("layer", "mask_shape"): "metadata"})
def shapes_handed_down_as_an_empty_tensor() -> Built:
    class Layer(nn.Module):
        def forward(self, x: Tensor, mask_shape: Tensor) -> Tensor:
            return x.tanh().expand(mask_shape.shape)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Layer()

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.layer(x, mask.new_empty(mask.size()))

    return made(Model), lambda model: model(torch.randn(3), torch.ones(2, 3))


@case(
    {
        ("", "x"): "used",
        ("", "mask"): "passed_through",
        ("layer", "x"): "used",
        ("layer", "mask"): "metadata",
        ("layer.fc", "input"): "used",
    }
)
def shapes_child_reads_the_length_of_the_mask() -> Built:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.fc(x) / len(mask)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Layer()

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.layer(x, mask=mask)

    return made(Model), lambda model: model(torch.randn(3, 2), torch.ones(3))


@case(
    {
        ("", "x"): "used",
        ("", "mask"): "metadata",
        ("layer", "x"): "used",
        ("layer", "mask"): "unused",
    }
)
def shapes_parent_checks_what_the_child_ignores() -> Built:
    class Layer(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return x.softmax(-1)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Layer()

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            if mask.shape[-1] != x.shape[-1]:
                mask = mask[..., : x.shape[-1]]
            return self.layer(x, mask)

    return made(Model), lambda model: model(torch.randn(2, 3), torch.ones(2, 3))


@case({("", "x"): "used", ("", "mask"): "used", ("", "other"): "unused"})
def shapes_masked_mean_with_a_count() -> Built:
    class Mean(nn.Module):
        def forward(self, x: Tensor, mask: Tensor, other: Tensor | None = None) -> Tensor:
            count = torch.count_nonzero(mask).clamp(min=1)
            return x.sum() / count

    return made(Mean), lambda model: model(torch.randn(3), torch.tensor([1, 0, 1]), torch.randn(3))


@case({("", "x"): "used", ("", "flag"): "used", ("", "other"): "metadata"})
def shapes_truth_of_a_tensor_and_of_its_length() -> Built:
    class Switch(nn.Module):
        def forward(self, x: Tensor, flag: Tensor, other: Tensor) -> Tensor:
            if flag and len(other):
                return -x
            return x * 1.5

    return made(Switch), lambda model: model(torch.randn(3), torch.tensor(True), torch.ones(2))


@case({("", "x"): "used", ("", "y"): "used", ("", "z"): "unused"})
def shapes_equal_to_another() -> Built:
    class Compare(nn.Module):
        def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
            if torch.equal(x, y):
                return x.square()
            return x.abs()

    def run(model: nn.Module) -> Any:
        x = torch.tensor([-3.0, 2.0])
        return model(x, x.clone(), x)

    return made(Compare), run


@case({("", "ids"): "metadata", ("", "past"): "metadata", ("", "weight"): "used", ("table", "input"): "used"})
def shapes_positions_from_the_length_of_the_ids() -> Built:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(8, 2)

        def forward(self, ids: Tensor, past: Tensor, weight: Tensor) -> Tensor:
            start, length = past.shape[1], ids.shape[1]
            steps = torch.arange(start, start + length, dtype=ids.dtype, device=ids.device)
            return self.table(steps)[None].expand(*ids.shape, -1) * weight

    return made(Positions), lambda model: model(torch.tensor([[4, 7]]), torch.randn(1, 3, 2), torch.rand(2))


@case({("", "x"): "used", ("", "mask"): "metadata", ("", "shape"): "metadata"})
def shapes_returned_or_used_as_numbers() -> Built:
    class Report(nn.Module):
        def forward(self, x: Tensor, mask: Tensor, shape: Tensor) -> dict[str, Any]:
            return {"out": x.log_softmax(-1), "mask_shape": tuple(mask.shape), "bytes": shape.numel() * 4}

    return made(Report), lambda model: model(torch.randn(2, 3), torch.ones(2, 3), torch.randn(5))


@case({("", "x"): "used", ("", "mask"): "used"})
def shapes_zeros_like_plus_the_mask_itself() -> Built:
    class Additive(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            bias = torch.zeros_like(mask)
            bias.masked_fill_(mask == 0, -100.0)
            return (x + bias).softmax(-1)

    return made(Additive), lambda model: model(torch.randn(2, 3), torch.tensor([[1.0, 1, 0], [1, 0, 0]]))


@case({("", "x"): "used", ("", "aux"): "dead", ("", "ref"): "dead", ("lin", "input"): "used"})
def shapes_of_something_computed() -> Built:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(2, 3)

        def forward(self, x: Tensor, aux: Tensor, ref: Tensor) -> Tensor:
            hidden = self.lin(aux)
            noise = torch.zeros_like(ref * 2)
            return x.mean(-1, keepdim=True) + torch.ones(hidden.shape[-1]) + noise

    return made(Sized), lambda model: model(torch.randn(2, 3), torch.randn(2, 2), torch.randn(3))
