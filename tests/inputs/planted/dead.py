"""Values that are computed and reach nothing, and values that only seem to be lost."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cases import Built, case


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(5)
    return kind()


@case({("", "x"): "used", ("", "aux"): "dead", ("lin1", "input"): "used", ("lin2", "input"): "used"})
def dead_second_branch_dropped() -> Built:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin1 = nn.Linear(2, 2)
            self.lin2 = nn.Linear(2, 2)

        def forward(self, x: Tensor, aux: Tensor) -> Tensor:
            _ = self.lin2(aux)
            return self.lin1(x)

    return made(Two), lambda model: model(torch.randn(1, 2), torch.randn(1, 2))


@case({("", "image"): "dead", ("", "text"): "used", ("see", "input"): "used", ("read", "input"): "used"})
def dead_result_overwritten_by_the_next() -> Built:
    class Fusion(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.see = nn.Linear(2, 2)
            self.read = nn.Linear(3, 2)

        def forward(self, image: Tensor, text: Tensor) -> Tensor:
            features = self.see(image).relu()
            features = self.read(text).relu()
            return features.sum(-1)

    return made(Fusion), lambda model: model(torch.randn(1, 2), torch.randn(1, 3))


@case({("", "image"): "used", ("", "text"): "used", ("see", "input"): "used", ("read", "input"): "used"})
def dead_not_when_the_next_adds_to_it() -> Built:
    class Fusion(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.see = nn.Linear(2, 2)
            self.read = nn.Linear(3, 2)

        def forward(self, image: Tensor, text: Tensor) -> Tensor:
            features = self.see(image).relu()
            features += self.read(text).relu()
            return features.sum(-1)

    return made(Fusion), lambda model: model(torch.randn(1, 2), torch.randn(1, 3))


@case({("", "x"): "used", ("", "aux"): "used", ("", "bias"): "unused", ("lin", "input"): "used"})
def dead_not_when_multiplied_by_zero() -> Built:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(2, 2)
            self.weight = 0.0

        def forward(self, x: Tensor, aux: Tensor, bias: Tensor) -> Tensor:
            return self.lin(x) + self.weight * aux

    return made(Weighted), lambda model: model(torch.randn(1, 2), torch.randn(1, 2), torch.randn(2))


@case({("", "x"): "used", ("", "labels"): "dead", ("head", "input"): "used", ("aux", "input"): "used"})
def dead_auxiliary_head_and_its_loss() -> Built:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(2, 3)
            self.aux = nn.Linear(2, 3)

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.head(x)
            aux_loss = F.cross_entropy(self.aux(x), labels)
            output = {"logits": logits}
            if not self.training:
                output["aux_loss"] = aux_loss
            return output

    return made(Classifier), lambda model: model(torch.randn(2, 2), torch.tensor([0, 2]))


@case({("", "x"): "used", ("", "labels"): "used", ("head", "input"): "used", ("aux", "input"): "used"})
def dead_not_when_the_auxiliary_loss_is_returned() -> Built:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(2, 3)
            self.aux = nn.Linear(2, 3)

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Any]:
            logits = self.head(x)
            aux_loss = F.cross_entropy(self.aux(x), labels)
            return {"logits": logits, "log": {"aux_loss": aux_loss.item()}}

    return made(Classifier), lambda model: model(torch.randn(2, 2), torch.tensor([0, 2]))


@case(
    {
        ("", "x"): "used",
        ("", "boxes"): "dead",
        ("", "labels"): "used",
        ("", "weights"): "dead",
        ("cls", "input"): "used",
        ("reg", "input"): "used",
        ("entropy", "input"): "used",
        ("entropy", "target"): "used",
        ("smooth", "input"): "used",
        ("smooth", "target"): "used",
    }
)
def dead_loss_term_forgotten_in_the_sum() -> Built:
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cls = nn.Linear(2, 3)
            self.reg = nn.Linear(2, 4)
            self.entropy = nn.CrossEntropyLoss()
            self.smooth = nn.SmoothL1Loss(reduction="none")

        def forward(self, x: Tensor, boxes: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
            losses = {
                "cls": self.entropy(self.cls(x), labels),
                "reg": (self.smooth(self.reg(x), boxes).sum(-1) * weights).mean(),
            }
            return sum(value for name, value in losses.items() if name in ("cls", "regression"))

    def run(model: nn.Module) -> Any:
        loss = model(torch.randn(2, 2), torch.rand(2, 4), torch.tensor([1, 0]), torch.rand(2))
        loss.backward()
        return loss

    return made(Detector), run


@case({("", "x"): "used", ("", "mean"): "used", ("", "logvar"): "dead", ("", "target"): "used"})
def dead_divergence_of_a_variational_loss() -> Built:
    class Elbo(nn.Module):
        def forward(self, x: Tensor, mean: Tensor, logvar: Tensor, target: Tensor) -> Tensor:
            divergence = -0.5 * (1 + logvar - logvar.exp()).sum(-1)
            assert divergence.ndim == 1
            reconstruction = (x - target).square().sum(-1)
            divergence = 0.5 * mean.square().sum(-1)
            return (reconstruction + divergence).mean()

    return made(Elbo), lambda model: model(*(torch.randn(2, 3) for _ in range(4)))


@case({("", "x"): "used", ("", "memory"): "dead", ("fc", "input"): "used"})
def dead_result_replaced_by_zeros() -> Built:
    class Recall(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x: Tensor, memory: Tensor) -> Tensor:
            recalled = self.fc(memory).softmax(-1)
            recalled = torch.zeros_like(recalled)
            return self.fc(x) + recalled

    return made(Recall), lambda model: model(torch.randn(1, 2), torch.randn(1, 2))


@case({("", "x"): "used", ("", "old"): "dead", ("", "older"): "dead", ("", "kept"): "used"})
def dead_wholly_overwritten_in_place() -> Built:
    class Reuse(nn.Module):
        def forward(self, x: Tensor, old: Tensor, older: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            buffer = old * 2
            buffer.copy_(x)
            spare = older.exp()
            spare.zero_()
            third = kept.exp()
            third[0] = 0.0
            return buffer, spare, third

    return made(Reuse), lambda model: model(*(torch.randn(3) for _ in range(4)))


@case({("", "x"): "used", ("", "mask"): "used", ("", "fill"): "used"})
def dead_not_when_masked_by_a_constant() -> Built:
    class Fill(nn.Module):
        def forward(self, x: Tensor, mask: Tensor, fill: Tensor) -> Tensor:
            return torch.where(mask > 0.5, x.masked_fill(mask <= 0, -1.0), fill)

    return made(Fill), lambda model: model(torch.randn(4), torch.tensor([1.0, 0.0, 0.7, 0.2]), torch.randn(4))


@case({("", "scores"): "used", ("", "mask"): "dead", ("", "bias"): "dead"})
def dead_masked_scores_not_the_ones_normalised() -> Built:
    class Softmax(nn.Module):
        def forward(self, scores: Tensor, mask: Tensor, bias: Tensor) -> Tensor:
            biased = scores + bias
            masked = biased.masked_fill(mask == 0, float("-inf"))
            masked = masked - masked.amax(-1, keepdim=True)
            return scores.softmax(-1)

    return made(Softmax), lambda model: model(torch.randn(2, 3), torch.ones(2, 3), torch.randn(3))


@case({("", "scores"): "used", ("", "mask"): "dead"})
def dead_out_of_place_fill_taken_for_in_place() -> Built:
    class Softmax(nn.Module):
        def forward(self, scores: Tensor, mask: Tensor) -> Tensor:
            scores = scores / 2
            scores.masked_fill(mask == 0, -1e9)
            return scores.softmax(-1)

    return made(Softmax), lambda model: model(torch.randn(2, 3), torch.tensor([[1, 1, 0], [1, 0, 0]]))


@case({("", "scores"): "used", ("", "mask"): "used"})
def dead_not_when_filled_in_place() -> Built:
    class Softmax(nn.Module):
        def forward(self, scores: Tensor, mask: Tensor) -> Tensor:
            scores = scores / 2
            scores.masked_fill_(mask == 0, -1e9)
            return scores.softmax(-1)

    return made(Softmax), lambda model: model(torch.randn(2, 3), torch.tensor([[1, 1, 0], [1, 0, 0]]))


@case({("", "x"): "used", ("", "target"): "used", ("", "teacher"): "used", ("fc", "input"): "used"})
def dead_not_when_detached() -> Built:
    class Distil(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x: Tensor, target: Tensor, teacher: Tensor) -> Tensor:
            soft = teacher.detach().softmax(-1)
            hard = F.mse_loss(self.fc(x), target.detach().clone())
            return hard + (soft.detach() * self.fc(x)).mean()

    return made(Distil), lambda model: model(*(torch.randn(2, 2) for _ in range(3)))


@case({("", "x"): "used", ("", "codes"): "used", ("", "usage"): "dead"})
def dead_not_behind_a_straight_through_estimator() -> Built:
    class Quantise(nn.Module):
        def forward(self, x: Tensor, codes: Tensor, usage: Tensor) -> Tensor:
            nearest = torch.cdist(x, codes).argmin(-1)
            _usage = usage.index_add(0, nearest, torch.ones(x.size(0)))
            quantised = codes[nearest]
            return x + (quantised - x).detach()

    return made(Quantise), lambda model: model(torch.randn(2, 2), torch.randn(3, 2), torch.zeros(3))


@case({("", "x"): "passed_through", ("", "y"): "used", ("", "z"): "dead"})
def dead_detached_and_handed_back() -> Built:
    class Stop(nn.Module):
        def forward(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
            cut = (z * y).detach()
            del cut
            return x[:, :1], y.detach() * 2

    return made(Stop), lambda model: model(*(torch.randn(2, 2) for _ in range(3)))


@case({("", "x"): "used", ("", "rewards"): "used", ("", "values"): "used", ("", "dones"): "dead"})
def dead_mask_of_the_returns() -> Built:
    class Returns(nn.Module):
        def forward(self, x: Tensor, rewards: Tensor, values: Tensor, dones: Tensor) -> Tensor:
            running = torch.zeros(())
            returns: list[Tensor] = []
            for step in reversed(range(rewards.numel())):
                alive = 1.0 - dones[step]
                discount = 0.9 * alive
                discount = 0.9
                running = rewards[step] + discount * running
                returns.insert(0, running)
            advantage = torch.stack(returns) - values.detach()
            return -(x.log_softmax(0) * advantage).mean()

    def run(model: nn.Module) -> Any:
        return model(torch.randn(3), torch.randn(3), torch.randn(3), torch.tensor([0.0, 0.0, 1.0]))

    return made(Returns), run


@case({("", "xs[0]"): "dead", ("", "xs[1]"): "dead", ("", "xs[2]"): "used", ("fc", "input"): "used"})
def dead_loop_keeps_only_the_last() -> Built:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, xs: list[Tensor]) -> Tensor:
            out = torch.zeros(1, 2)
            for x in xs:
                out = self.fc(x)
            return out

    return made(Last), lambda model: model([torch.randn(1, 2) for _ in range(3)])


@case({("", "xs[0]"): "used", ("", "xs[1]"): "used", ("", "xs[2]"): "dead", ("fc", "input"): "used"})
def dead_collected_but_cut_off() -> Built:
    class Window(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, xs: list[Tensor]) -> Tensor:
            rows = [self.fc(x) for x in xs]
            return torch.stack(rows[:2]).mean(0)

    return made(Window), lambda model: model([torch.randn(1, 2) for _ in range(3)])


@case(
    {
        ("", "x"): "used",
        ("", "style"): "passed_through",
        ("mapping", "input"): "used",
        ("mapping.0", "input"): "used",
        ("mapping.1", "input"): "used",
        ("inject", "x"): "used",
        ("inject", "style"): "unused",
    }
)
def dead_mapped_for_a_child_that_ignores_it() -> Built:
    class Inject(nn.Module):
        def forward(self, x: Tensor, style: Tensor) -> Tensor:
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)

    class Styled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mapping = nn.Sequential(nn.Linear(2, 3), nn.LeakyReLU(0.2))
            self.inject = Inject()

        def forward(self, x: Tensor, style: Tensor) -> Tensor:
            return self.inject(x, style=self.mapping(style))

    return made(Styled), lambda model: model(torch.randn(1, 3), torch.randn(1, 2))


@case(
    {
        ("", "x"): "used",
        ("", "aux"): "passed_through",
        ("layer", "x"): "used",
        ("layer", "aux"): "dead",
        ("layer.main", "input"): "used",
        ("layer.side", "input"): "used",
    }
)
def dead_inside_the_child() -> Built:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main = nn.Linear(2, 2)
            self.side = nn.Linear(2, 2)

        def forward(self, x: Tensor, aux: Tensor) -> Tensor:
            gate = self.side(aux).sigmoid()
            out = self.main(x)
            _gated = out * gate
            return out

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Layer()

        def forward(self, x: Tensor, aux: Tensor) -> Tensor:
            return self.layer(x, aux).tanh()

    return made(Model), lambda model: model(torch.randn(1, 2), torch.randn(1, 2))


@case(
    {
        ("", "x"): "used",
        ("", "aux"): "dead",
        ("first", "input"): "used",
        ("second", "input"): "used",
        ("third", "input"): "used",
        ("out", "input"): "used",
    }
)
def dead_long_chain_of_children_dropped_at_its_end() -> Built:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(2, 3)
            self.second = nn.LayerNorm(3)
            self.third = nn.Linear(3, 2)
            self.out = nn.Linear(2, 2)

        def forward(self, x: Tensor, aux: Tensor) -> Tensor:
            hidden = self.third(self.second(self.first(aux)).relu())
            context = torch.cat([hidden, x], dim=-1)
            _, kept = context.split(2, dim=-1)
            del context, hidden, kept
            return self.out(x)

    return made(Chain), lambda model: model(torch.randn(1, 2), torch.randn(1, 2))


@case({("", "x"): "used", ("", "weights"): "used", ("", "debug"): "dead", ("fc", "input"): "used"})
def dead_statistics_kept_in_a_local_dict() -> Built:
    class Logged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 1)

        def forward(self, x: Tensor, weights: Tensor, debug: Tensor) -> Tensor:
            stats = {"mean": debug.mean(), "norm": debug.norm(), "weight": weights.sum()}
            return self.fc(x) / stats["weight"]

    return made(Logged), lambda model: model(torch.randn(3, 2), torch.rand(3), torch.randn(3))


@case(
    {
        ("", "x"): "used",
        ("", "noise"): "used",
        ("", "level"): "dead",
        ("", "schedule"): "used",
        ("net", "input"): "used",
    }
)
def dead_noise_level_of_a_denoiser() -> Built:
    class Denoiser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(2, 2)

        def forward(self, x: Tensor, noise: Tensor, level: Tensor, schedule: Tensor) -> Tensor:
            frequencies = torch.exp(-torch.arange(2.0))
            embedding = torch.cat([(level[:, None] * frequencies).sin(), (level[:, None] * frequencies).cos()], -1)
            keep = schedule.cumprod(0)[-1]
            noisy = keep.sqrt() * x + (1 - keep).sqrt() * noise
            assert embedding.size(0) == noisy.size(0)
            return F.mse_loss(self.net(noisy), noise)

    def run(model: nn.Module) -> Any:
        loss = model(torch.randn(2, 2), torch.randn(2, 2), torch.tensor([1.0, 3.0]), torch.tensor([0.9, 0.8]))
        loss.backward()
        return loss

    return made(Denoiser), run


@case({("", "x"): "used", ("", "limits"): "used", ("", "temperature"): "used", ("", "penalty"): "dead"})
def dead_not_when_read_as_a_number() -> Built:
    class Sample(nn.Module):
        def forward(self, x: Tensor, limits: Tensor, temperature: Tensor, penalty: Tensor) -> Tensor:
            k = int(limits.min())
            logits = x / max(temperature.item(), 1e-3)
            penalised = logits - penalty
            penalised = logits
            return penalised.topk(k, dim=-1).values

    def run(model: nn.Module) -> Any:
        return model(torch.randn(2, 4), torch.tensor([3, 2]), torch.tensor(0.5), torch.rand(4))

    return made(Sample), run


@case({("", "x"): "used", ("", "flow"): "used", ("", "confidence"): "dead", ("conv", "input"): "used"})
def dead_half_of_a_stacked_result() -> Built:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(1, 1, 1)

        def forward(self, x: Tensor, flow: Tensor, confidence: Tensor) -> Tensor:
            outputs = {"flow": self.conv(flow) + x, "confidence": self.conv(confidence).sigmoid()}
            ordered = [outputs[name] for name in sorted(outputs)]
            return ordered[-1]

    return made(Head), lambda model: model(*(torch.randn(1, 1, 3) for _ in range(3)))
