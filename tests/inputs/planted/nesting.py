"""Parents and children: who is blamed for an argument that is handed down, and over several calls."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cases import Built, case


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(4)
    return kind()


class Masked(nn.Module):
    """A layer that reads its mask, unless it was told not to."""

    def __init__(self, reads: bool = True) -> None:
        super().__init__()
        self.reads = reads
        self.fc = nn.Linear(2, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        out = self.fc(x).tanh()
        if self.reads and mask is not None:
            out = out * mask.unsqueeze(-1)
        return out


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, 2), torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])


@case(
    {
        ("", "x"): "used",
        ("", "mask"): "passed_through",
        ("layer", "x"): "used",
        ("layer", "mask"): "unused",
        ("layer.fc", "input"): "used",
    }
)
def nesting_child_ignores_the_mask() -> Built:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Masked(reads=False)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.layer(x, mask)

    return made(Model), lambda model: model(*batch())


@case(
    {
        ("", "x"): "used",
        ("", "mask"): "passed_through",
        ("model", "x"): "used",
        ("model", "mask"): "passed_through",
        ("model.block", "x"): "used",
        ("model.block", "mask"): "passed_through",
        ("model.block.layer", "x"): "used",
        ("model.block.layer", "mask"): "unused",
        ("model.block.layer.fc", "input"): "used",
    }
)
def nesting_deep_chain_ignored_at_the_bottom() -> Built:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Masked(reads=False)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return x + self.layer(x, mask=mask)

    class Middle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.block(x, mask).relu()

    class Top(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Middle()

        def forward(self, x: Tensor, mask: Tensor) -> dict[str, Tensor]:
            return {"out": self.model(x, mask)}

    return made(Top), lambda model: model(*batch())


@case(
    {
        ("", "x"): "used",
        ("", "mask"): "used",
        ("block", "x"): "used",
        ("block", "mask"): "used",
        ("block.layer", "x"): "used",
        ("block.layer", "mask"): "used",
        ("block.layer.fc", "input"): "used",
    }
)
def nesting_deep_chain_used_at_the_bottom() -> Built:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Masked()

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.layer(x, mask)

    class Top(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.block(x, mask)

    return made(Top), lambda model: model(*batch())


@case(
    {
        ("", "x"): "used",
        ("", "mask"): "passed_through",
        ("layer", "x"): "used",
        ("layer", "mask"): "unused",
        ("layer.fc", "input"): "used",
    }
)
def nesting_child_ignores_what_was_computed_from_the_mask() -> Built:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Masked(reads=False)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            extended = (1.0 - mask) * -1e4
            return self.layer(x, extended)

    return made(Model), lambda model: model(*batch())


@case(
    {
        ("", "x"): "used",
        ("", "mask"): "passed_through",
        ("layer", "x"): "used",
        ("layer", "mask"): "unused",
        ("layer.fc", "input"): "used",
    }
)
def nesting_child_ignores_a_view_of_the_mask() -> Built:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Masked(reads=False)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.layer(x, mask[:, None, :].squeeze(1))

    return made(Model), lambda model: model(*batch())


@case(
    {
        ("", "source"): "used",
        ("", "target"): "used",
        ("", "pad"): "unused",
        ("source_embed", "input"): "used",
    }
)
def nesting_one_module_under_two_names() -> Built:
    class Translate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.source_embed = nn.Embedding(5, 2)
            self.target_embed = self.source_embed

        def forward(self, source: Tensor, target: Tensor, pad: Tensor) -> Tensor:
            return self.source_embed(source).mean(1) + self.target_embed(target).mean(1)

    def run(model: nn.Module) -> Any:
        return model(torch.tensor([[1, 2]]), torch.tensor([[3, 4]]), torch.zeros(1, 2))

    return made(Translate), run


@case(
    {
        ("", "x"): "used",
        ("", "mask"): "used",
        ("layer", "x"): "used",
        ("layer", "mask"): "used",
        ("layer.fc", "input"): "used",
    }
)
def nesting_called_twice_once_without_the_mask() -> Built:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Masked()

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.layer(self.layer(x, mask))

    return made(Model), lambda model: model(*batch())


@case(
    {
        ("", "x"): "used",
        ("", "mask"): "used",
        ("layer", "x"): "used",
        ("layer", "mask"): "conditional",
        ("layer.fc", "input"): "used",
    }
)
def nesting_called_twice_and_ignored_once() -> Built:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x: Tensor, mask: Tensor, last: bool = False) -> Tensor:
            out = self.fc(x)
            return out if last else out * mask.unsqueeze(-1)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Layer()

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.layer(self.layer(x, mask), mask, last=True)

    return made(Model), lambda model: model(*batch())


@case(
    {
        ("", "x"): "used",
        ("", "mask"): "used",
        ("layers.0", "x"): "used",
        ("layers.0", "mask"): "used",
        ("layers.0.fc", "input"): "used",
        ("layers.1", "x"): "used",
        ("layers.1", "mask"): "unused",
        ("layers.1.fc", "input"): "used",
        ("layers.2", "x"): "used",
        ("layers.2", "mask"): "used",
        ("layers.2.fc", "input"): "used",
    }
)
def nesting_layers_of_which_one_ignores_the_mask() -> Built:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Masked(), Masked(reads=False), Masked()])

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            for layer in self.layers:
                x = x + layer(x, mask)
            return x

    return made(Stack), lambda model: model(*batch())


@case(
    {
        ("", "x"): "used",
        ("", "mask"): "passed_through",
        ("layers.0", "x"): "used",
        ("layers.0", "mask"): "unused",
        ("layers.0.fc", "input"): "used",
        ("layers.1", "x"): "used",
        ("layers.1", "mask"): "unused",
        ("layers.1.fc", "input"): "used",
    }
)
def nesting_layers_that_all_ignore_the_mask() -> Built:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Masked(reads=False) for _ in range(3)])

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            for layer in self.layers[:2]:
                x = layer(x, mask)
            return x

    return made(Stack), lambda model: model(*batch())


class Mixer(nn.Module):
    """Query against key; the key is read only when `crossed`."""

    def __init__(self, crossed: bool) -> None:
        super().__init__()
        self.crossed = crossed
        self.fc = nn.Linear(2, 2)

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        out = self.fc(query)
        return out @ key.mT if self.crossed else out @ out.mT


@case(
    {
        ("", "x"): "used",
        ("mixer", "query"): "used",
        ("mixer", "key"): "unused",
        ("mixer.fc", "input"): "used",
    }
)
def nesting_same_tensor_twice_second_ignored() -> Built:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixer = Mixer(crossed=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.mixer(x, x)

    return made(Model), lambda model: model(torch.randn(3, 2))


@case(
    {
        ("", "x"): "used",
        ("mixer", "query"): "used",
        ("mixer", "key"): "used",
        ("mixer.fc", "input"): "used",
    }
)
def nesting_same_tensor_twice_both_used() -> Built:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixer = Mixer(crossed=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.mixer(x, x)

    return made(Model), lambda model: model(torch.randn(3, 2))


@case(
    {
        ("", "x"): "used",
        ("", "pos"): "passed_through",
        ("inner", "x"): "used",
        ("inner", "q_pos"): "unused",
        ("inner", "k_pos"): "unused",
    }
)
def nesting_same_tensor_twice_both_ignored() -> Built:
    class Inner(nn.Module):
        def forward(self, x: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
            return x.softmax(-1)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor, pos: Tensor) -> Tensor:
            return self.inner(x, pos, k_pos=pos)

    return made(Model), lambda model: model(torch.randn(2, 3), torch.randn(2, 3))


@case(
    {
        ("", "x"): "used",
        ("", "pos"): "used",
        ("inner", "x"): "used",
        ("inner", "q_pos"): "unused",
        ("inner", "k_pos"): "used",
    }
)
def nesting_same_tensor_twice_first_ignored() -> Built:
    class Inner(nn.Module):
        def forward(self, x: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
            queries, keys = x, x + k_pos
            return queries @ keys.mT

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor, pos: Tensor) -> Tensor:
            return self.inner(x, pos, pos)

    return made(Model), lambda model: model(torch.randn(2, 3), torch.randn(2, 3))


@case(
    {
        ("", "x"): "used",
        ("", "mask"): "unused",
        ("block", "input"): "used",
        ("block.0", "input"): "used",
        ("block.1", "input"): "used",
        ("block.2", "input"): "used",
    }
)
def nesting_residual_block() -> Built:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 3), nn.Tanh())

        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return x + self.block(x)

    return made(Residual), lambda model: model(torch.randn(2, 3), torch.ones(2))


@case({("", "x"): "passed_through", ("", "y"): "used", ("block", "input"): "used", ("other", "input"): "used"})
def nesting_residual_whose_branch_is_lost() -> Built:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Linear(3, 3)
            self.other = nn.Linear(3, 3)

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            residual = x
            branch = self.block(x)
            branch = self.other(y)
            return residual, branch

    return made(Residual), lambda model: model(torch.randn(2, 3), torch.randn(2, 3))


@case(
    {
        ("", "x"): "used",
        ("", "task"): "passed_through",
        ("base", "input"): "used",
        ("adapter", "x"): "used",
        ("adapter", "task"): "unused",
        ("adapter.down", "input"): "used",
        ("adapter.up", "input"): "used",
    }
)
def nesting_adapter_blind_to_its_task() -> Built:
    class Adapter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Linear(3, 1, bias=False)
            self.up = nn.Linear(1, 3, bias=False)

        def forward(self, x: Tensor, task: Tensor) -> Tensor:
            return 0.5 * self.up(self.down(x))

    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Linear(3, 3)
            self.adapter = Adapter()

        def forward(self, x: Tensor, task: Tensor) -> Tensor:
            return self.base(x) + self.adapter(x, task)

    return made(Adapted), lambda model: model(torch.randn(2, 3), torch.tensor([0, 1]))


@case(
    {
        ("", "x"): "used",
        ("", "jitter"): "passed_through",
        ("router", "x"): "used",
        ("router", "jitter"): "unused",
        ("router.gate", "input"): "used",
        ("experts.0", "input"): "used",
        ("experts.2", "input"): "used",
    }
)
def nesting_mixture_of_experts() -> Built:
    class Router(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(2, 3)
            with torch.no_grad():
                self.gate.weight.zero_()
                self.gate.bias.copy_(torch.tensor([2.0, 0.0, 1.0]))
                self.gate.weight[0, 0] = 0.01

        def forward(self, x: Tensor, jitter: Tensor | None = None) -> tuple[Tensor, Tensor]:
            weights, chosen = self.gate(x).softmax(-1).topk(2, dim=-1)
            return weights / weights.sum(-1, keepdim=True), chosen

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = Router()
            self.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))

        def forward(self, x: Tensor, jitter: Tensor) -> Tensor:
            weights, chosen = self.router(x, jitter)
            out = torch.zeros_like(x)
            for number, expert in enumerate(self.experts):
                rows, slots = torch.where(chosen == number)
                if rows.numel() == 0:
                    continue
                out.index_add_(0, rows, expert(x[rows]) * weights[rows, slots, None])
            return out

    return made(Experts), lambda model: model(torch.randn(4, 2), torch.rand(4, 3))


@case(
    {
        ("", "x"): "used",
        ("", "mask"): "conditional",
        ("early", "input"): "used",
        ("late", "x"): "used",
        ("late", "mask"): "used",
        ("late.fc", "input"): "used",
    }
)
def nesting_early_exit_in_one_of_two_calls() -> Built:
    class EarlyExit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.early = nn.Linear(2, 2)
            self.late = Masked()

        def forward(self, x: Tensor, mask: Tensor, enough: float = 0.0) -> Tensor:
            first = self.early(x)
            if first.abs().max() > enough:
                return first
            return self.late(first, mask)

    def run(model: nn.Module) -> Any:
        return model(*batch(), enough=-1.0), model(*batch(), enough=1e6)

    return made(EarlyExit), run


@case({("", "x"): "used", ("", "noise"): "conditional", ("", "labels"): "unused", ("fc", "input"): "used"})
def nesting_conditional_on_the_mode() -> Built:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor, noise: Tensor, labels: Tensor) -> Tensor:
            if self.training:
                x = x + noise
            return self.fc(x)

    def run(model: nn.Module) -> Any:
        arguments = torch.randn(2, 3), torch.randn(2, 3), torch.tensor([0, 1])
        return model.train()(*arguments), model.eval()(*arguments)

    return made(Noisy), run


@case(
    {
        ("", "x"): "used",
        ("", "mask"): "conditional",
        ("", "aux"): "dead",
        ("", "size"): "metadata",
        ("", "tag"): "used",
    }
)
def nesting_verdicts_merged_over_calls() -> Built:
    class Stage(nn.Module):
        def forward(self, x: Tensor, mask: Tensor, aux: Tensor, size: Tensor, tag: Tensor, stage: int) -> Any:
            if stage == 0:
                _aux_loss = aux.square().mean()
                return x * mask, tag
            return x[: size.size(0)].sum() + len(mask), tag + 1

    def run(model: nn.Module) -> Any:
        arguments = [torch.randn(3) for _ in range(5)]
        return [model(*arguments, stage) for stage in range(2)]

    return made(Stage), run


@case({("", "x"): "used", ("", "mask"): "unused", ("", "scale"): "used", ("fc", "input"): "used"})
def nesting_failed_call_does_not_count() -> Built:
    class Strict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x: Tensor, mask: Tensor, scale: Tensor) -> Tensor:
            if x.dim() != 2:
                raise ValueError(f"{float((x * mask).sum()):.2f} in {x.dim()} dimensions")
            return self.fc(x) * scale

    def run(model: nn.Module) -> Any:
        with suppress(ValueError):
            model(torch.randn(2), torch.ones(2), torch.tensor(1.0))
        return model(torch.randn(1, 2), torch.ones(2), torch.tensor(2.0))

    return made(Strict), run


@case(
    {
        ("", "x"): "used",
        ("", "labels"): "passed_through",
        ("drop", "input"): "passed_through",
        ("fc", "input"): "used",
        ("keep", "input"): "passed_through",
    }
)
def nesting_identities() -> Built:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Identity()
            self.fc = nn.Linear(2, 2)
            self.keep = nn.Identity()

        def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            return self.fc(self.drop(x)), self.keep(labels)

    return made(Net), lambda model: model(torch.randn(1, 2), torch.tensor([1]))


@case(
    {
        ("", "x"): "used",
        ("", "mask"): "used",
        ("first", "x"): "used",
        ("first", "mask"): "passed_through",
        ("second", "x"): "used",
        ("second", "mask"): "used",
    }
)
def nesting_mask_handed_back_by_one_child_to_the_next() -> Built:
    class First(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
            return x.relu(), mask

    class Second(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return (x * mask).sum(-1)

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = First()
            self.second = Second()

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.second(*self.first(x, mask))

    return made(Chain), lambda model: model(torch.randn(2, 3), torch.ones(2, 3))


@case(
    {
        ("", "x"): "used",
        ("", "aux"): "dead",
        ("probe", "x"): "used",
        ("probe", "mask"): "used",
        ("probe.fc", "input"): "used",
        ("head", "input"): "used",
    }
)
def nesting_result_of_the_child_dropped() -> Built:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.probe = Masked()
            self.head = nn.Linear(2, 1)

        def forward(self, x: Tensor, aux: Tensor) -> Tensor:
            self.probe(x, aux)
            return self.head(x)

    return made(Model), lambda model: model(*batch())


@case(
    {
        ("", "x"): "used",
        ("", "guess"): "passed_through",
        ("refine", "x"): "used",
        ("refine", "previous"): "conditional",
        ("refine.fc", "input"): "used",
    }
)
def nesting_refined_in_a_loop_without_the_first_guess() -> Built:
    class Refine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x: Tensor, previous: Tensor, step: int) -> Tensor:
            out = self.fc(x)
            return out if step == 0 else out + 0.5 * previous

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.refine = Refine()

        def forward(self, x: Tensor, guess: Tensor) -> Tensor:
            for step in range(3):
                guess = self.refine(x, guess, step)
            return guess

    return made(Loop), lambda model: model(torch.randn(1, 2), torch.randn(1, 2))


@case(
    {
        ("", "ids"): "used",
        ("", "memory"): "passed_through",
        ("", "mask"): "used",
        ("embed", "input"): "used",
        ("decoder", "x"): "used",
        ("decoder", "memory"): "passed_through",
        ("decoder", "mask"): "used",
        ("decoder.self_attn", "x"): "used",
        ("decoder.self_attn", "mask"): "used",
        ("decoder.self_attn.fc", "input"): "used",
        ("decoder.cross_attn", "query"): "used",
        ("decoder.cross_attn", "key"): "unused",
        ("decoder.cross_attn.fc", "input"): "used",
    }
)
def nesting_decoder_whose_cross_attention_looks_at_itself() -> Built:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.self_attn = Masked()
            self.cross_attn = Mixer(crossed=False)

        def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
            x = x + self.self_attn(x, mask)
            return self.cross_attn(x, memory)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(5, 2)
            self.decoder = Decoder()

        def forward(self, ids: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
            hidden = self.decoder(self.embed(ids), memory=memory, mask=mask)
            return F.normalize(hidden, dim=-1)

    return made(Model), lambda model: model(torch.tensor([[1, 2]]), torch.randn(1, 2, 2), torch.tensor([[1.0, 0.0]]))


@case(
    {
        ("", "x"): "used",
        ("", "y"): "used",
        ("", "z"): "unused",
        ("teacher", "input"): "used",
        ("student", "input"): "used",
    }
)
def nesting_teacher_without_gradients() -> Built:
    class Distil(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = nn.Linear(2, 3)
            self.student = nn.Linear(2, 3)

        def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
            with torch.no_grad():
                target = self.teacher(y).softmax(-1)
            return F.kl_div(self.student(x).log_softmax(-1), target, reduction="batchmean")

    def run(model: nn.Module) -> Any:
        loss = model(torch.randn(2, 2), torch.randn(2, 2), torch.randn(2, 2))
        loss.backward()
        return loss

    return made(Distil), run


@case(
    {
        ("", "x"): "used",
        ("", "domain"): "unused",
        ("heads.b", "input"): "used",
        ("body", "input"): "used",
    }
)
def nesting_heads_of_which_one_is_called() -> Built:
    class MultiDomain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(2, 2)
            self.heads = nn.ModuleDict({name: nn.Linear(2, 1) for name in "abc"})
            self.active = "b"

        def forward(self, x: Tensor, domain: Tensor) -> Tensor:
            return self.heads[self.active](self.body(x).relu())

    return made(MultiDomain), lambda model: model(torch.randn(2, 2), torch.tensor([0, 2]))


@case({("", "ids"): "used", ("", "mask"): "dead", ("embed", "input"): "used"})
def nesting_weights_tied_to_the_embedding() -> Built:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(5, 2)

        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            hidden = self.embed(ids)
            pooled = (hidden * mask[..., None]).sum(1)
            pooled = hidden.mean(1)
            return F.linear(pooled, self.embed.weight)

    return made(Tied), lambda model: model(torch.tensor([[1, 4]]), torch.tensor([[1.0, 0.0]]))
