"""Custom functions, checkpoints, gradient and inference modes, autocast, hooks on tensors, torch.func, parametrizations."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call, grad, jacrev, jvp, vjp, vmap
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from .cases import Built, case


class _Scale(torch.autograd.Function):
    """The factor is an operand of the forward; the second factor is none of anything."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor, ignored: Tensor | None = None) -> Tensor:
        ctx.save_for_backward(factor)
        return x * factor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        (factor,) = ctx.saved_tensors
        return above * factor, None, None


@case({("", "x"): "used", ("", "factor"): "used", ("", "aux"): "dead", ("lin", "input"): "used"})
def autograd_function_used_in_forward() -> Built:
    torch.manual_seed(0)

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(2, 2)

        def forward(self, x: Tensor, factor: Tensor, aux: Tensor) -> Tensor:
            _weighted = aux * factor
            return _Scale.apply(self.lin(x), factor)

    x, factor, aux = torch.randn(2, 2), torch.rand(2), torch.randn(2)

    def run(module: nn.Module) -> Tensor:
        y = module(x, factor, aux)
        y.sum().backward()
        return y

    return Scaled(), run


@case({("", "x"): "used", ("", "factor"): "used", ("", "ignored"): "unused", ("lin", "input"): "used"})
def autograd_function_ignores_an_input() -> Built:
    """The function is given three tensors and never looks at the third."""
    torch.manual_seed(0)

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(2, 2)

        def forward(self, x: Tensor, factor: Tensor, ignored: Tensor) -> Tensor:
            return _Scale.apply(self.lin(x), factor, ignored)

    x, factor, ignored = torch.randn(2, 2), torch.rand(2), torch.randn(2)
    return Scaled(), lambda module: module(x, factor, ignored)


class _GradientMask(torch.autograd.Function):
    """The identity, but for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None]:
        return above * ctx.saved_tensors[0], None


class _Reversal(torch.autograd.Function):
    """Gradient reversal; the strength is an attribute of the context."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: Tensor) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * above, None


class _MaskAfterwards(torch.autograd.Function):
    """The same as `_GradientMask` in the newer style, with a context set up after the forward."""

    @staticmethod
    def forward(x: Tensor, mask: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None]:
        return above * ctx.saved_tensors[0], None


class _SumLike(torch.autograd.Function):
    """Of the second tensor only the shape is needed for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, like: Tensor) -> Tensor:
        ctx.shape = like.shape
        return x.sum(0)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None]:
        return above.expand(ctx.shape), None


class _Applying(nn.Module):
    """A linear layer, then the function with the second argument."""

    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.lin = nn.Linear(2, 3)
        self.function = function

    def forward(self, x: Tensor, extra: Tensor) -> Tensor:
        return self.function.apply(self.lin(x), extra)


def _applied(function: type[torch.autograd.Function]) -> Built:
    torch.manual_seed(0)
    x, extra = torch.randn(2, 2), torch.rand(2, 3)

    def run(module: nn.Module) -> tuple[Tensor, Tensor | None]:
        y = module(x, extra)
        y.square().sum().backward()
        return y, module.lin.weight.grad

    return _Applying(function), run


@case({("", "x"): "used", ("", "extra"): "used", ("lin", "input"): "used"})
def autograd_saved_for_backward_only() -> Built:
    return _applied(_GradientMask)


@case({("", "x"): "used", ("", "extra"): "used", ("lin", "input"): "used"})
def autograd_saved_when_setting_up_context() -> Built:
    return _applied(_MaskAfterwards)


@case({("", "x"): "used", ("", "extra"): "metadata", ("lin", "input"): "used"})
def autograd_shape_saved_for_backward() -> Built:
    return _applied(_SumLike)


@case(
    {
        ("", "x"): "used",
        ("", "strength"): "used",
        ("", "domain"): "unused",
        ("features", "input"): "used",
        ("label", "input"): "used",
        ("domain_head", "input"): "used",
    }
)
def autograd_gradient_reversal() -> Built:
    """The strength only turns gradients around, and is kept on the context for that."""
    torch.manual_seed(0)

    class Adversarial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.label, self.domain_head = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor, strength: Tensor, domain: Tensor) -> tuple[Tensor, Tensor]:
            h = self.features(x).relu()
            return self.label(h), self.domain_head(_Reversal.apply(h, strength))

    x = torch.randn(2, 3)

    def run(module: nn.Module) -> tuple[Tensor, Tensor | None]:
        label, domain = module(x, torch.tensor(0.3), torch.tensor([0, 1]))
        (label.sum() + domain.square().sum()).backward()
        return label, module.features.weight.grad

    return Adversarial(), run


class _Two(torch.autograd.Function):
    """Two results, one of each operand."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        return left * 2, right * 3

    @staticmethod
    def backward(ctx: Any, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        return left * 2, right * 3


@case({("", "left"): "used", ("", "right"): "dead", ("", "gain"): "used"})
def autograd_second_result_dropped() -> Built:
    torch.manual_seed(0)

    class First(nn.Module):
        def forward(self, left: Tensor, right: Tensor, gain: Tensor) -> Tensor:
            doubled, _tripled = _Two.apply(left, right)
            return doubled * gain

    left, right, gain = torch.randn(2, requires_grad=True), torch.randn(2, requires_grad=True), torch.rand(2)
    return First(), lambda module: module(left, right, gain)


@case({("", "x"): "used", ("", "codebook"): "used", ("", "temperature"): "unused", ("encode", "input"): "used"})
def autograd_straight_through_codebook() -> Built:
    """The value is the code's; the gradient is the encoder's."""
    torch.manual_seed(0)

    class Quantiser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode = nn.Linear(3, 2)

        def forward(self, x: Tensor, codebook: Tensor, temperature: Tensor) -> Tensor:
            z = self.encode(x)
            code = codebook[torch.cdist(z, codebook).argmin(-1)]
            return z + (code - z).detach()

    x, codebook = torch.randn(4, 3), torch.randn(4, 2)
    return Quantiser(), lambda module: module(x, codebook, torch.tensor(1.0))


@case({("", "x"): "used", ("", "logits"): "used", ("", "soft_target"): "dead"})
def autograd_straight_through_gate() -> Built:
    """The gate is hard going forward and soft going back; its distance from the target is not returned."""
    torch.manual_seed(0)

    class Gate(nn.Module):
        def forward(self, x: Tensor, logits: Tensor, soft_target: Tensor) -> Tensor:
            soft = logits.sigmoid()
            hard = (soft > 0.5).to(soft.dtype)
            with torch.no_grad():
                _gap = (soft - soft_target).abs().mean()
            return x * (hard.detach() - soft.detach() + soft)

    x, logits = torch.randn(3), torch.tensor([0.4, -0.3, 1.0], requires_grad=True)
    return Gate(), lambda module: module(x, logits, torch.rand(3))


class _MaskedBlock(nn.Module):
    """A layer that multiplies by the mask or ignores it."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 3)
        self.masked = masked

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.lin(x).tanh()
        return h * mask if self.masked else h


class _Checkpointed(nn.Module):
    """The block, checkpointed in one of the two ways or plainly called."""

    def __init__(self, masked: bool, reentrant: bool | None) -> None:
        super().__init__()
        self.block = _MaskedBlock(masked)
        self.reentrant = reentrant

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.reentrant is None:
            return self.block(x, mask) + 1
        return checkpoint(self.block, x, mask, use_reentrant=self.reentrant) + 1


def _checkpointed(masked: bool, reentrant: bool | None) -> Built:
    torch.manual_seed(0)
    x, mask = torch.randn(2, 3, requires_grad=True), torch.tensor([[1.0], [0.5]])

    def run(module: nn.Module) -> Tensor:
        y = module(x, mask)
        y.sum().backward()
        return y

    return _Checkpointed(masked, reentrant), run


_BLOCK_USES = {
    ("", "x"): "used",
    ("", "mask"): "used",
    ("block", "x"): "used",
    ("block", "mask"): "used",
    ("block.lin", "input"): "used",
}
_BLOCK_IGNORES = _BLOCK_USES | {("", "mask"): "passed_through", ("block", "mask"): "unused"}


@case(_BLOCK_USES)
def autograd_checkpoint_used() -> Built:
    return _checkpointed(masked=True, reentrant=False)


@case(_BLOCK_USES)
def autograd_checkpoint_reentrant_used() -> Built:
    return _checkpointed(masked=True, reentrant=True)


@case(_BLOCK_IGNORES)
def autograd_checkpoint_ignored() -> Built:
    return _checkpointed(masked=False, reentrant=False)


@case(_BLOCK_IGNORES)
def autograd_checkpoint_reentrant_ignored() -> Built:
    """The checkpoint saves every tensor it is given; still nothing is made of the mask's values."""
    return _checkpointed(masked=False, reentrant=True)


@case(_BLOCK_IGNORES)
def autograd_no_checkpoint_ignored() -> Built:
    return _checkpointed(masked=False, reentrant=None)


@case({("", "x"): "used", ("", "gate"): "used", ("", "aux"): "dead", ("lin", "input"): "used"})
def autograd_checkpoint_of_a_closure() -> Built:
    """The gate is not an argument of what is checkpointed but a variable around it."""
    torch.manual_seed(0)

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(3, 3)

        def forward(self, x: Tensor, gate: Tensor, aux: Tensor) -> Tensor:
            def inner(h: Tensor) -> Tensor:
                _lost = aux.sum()
                return self.lin(h).relu() * gate

            return checkpoint(inner, x, use_reentrant=False)

    x, gate, aux = torch.randn(2, 3), torch.rand(3), torch.randn(2)

    def run(module: nn.Module) -> Tensor:
        y = module(x, gate, aux)
        y.sum().backward()
        return y

    return Gated(), run


@case(
    {
        ("", "x"): "used",
        ("", "target"): "used",
        ("", "weight"): "metadata",
        ("layers.0", "input"): "used",
        ("layers.1", "input"): "used",
        ("layers.2", "input"): "used",
    }
)
def autograd_checkpoint_sequential() -> Built:
    torch.manual_seed(0)

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))

        def forward(self, x: Tensor, target: Tensor, weight: Tensor) -> Tensor:
            y = checkpoint_sequential(self.layers, 2, x, use_reentrant=False).squeeze(-1)
            return F.mse_loss(y, target, reduction="sum") / weight.size(0)

    x, target, weight = torch.randn(2, 2), torch.randn(2), torch.rand(2)

    def run(module: nn.Module) -> Tensor:
        loss = module(x, target, weight)
        loss.backward()
        return loss

    return Deep(), run


@case(
    {
        ("", "x"): "used",
        ("", "y"): "used",
        ("", "z"): "dead",
        ("student", "input"): "used",
        ("teacher", "input"): "used",
    }
)
def autograd_teacher_without_gradient() -> Built:
    """The teacher's answer to `y` is the target; its answer to `z` is dropped."""
    torch.manual_seed(0)

    class Distilled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.teacher = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
            with torch.no_grad():
                target = self.teacher(y).softmax(-1)
                _spare = self.teacher(z).softmax(-1)
            return F.cross_entropy(self.student(x), target)

    x, y, z = torch.randn(2, 3), torch.randn(2, 3), torch.randn(2, 3)

    def run(module: nn.Module) -> Tensor:
        loss = module(x, y, z)
        loss.backward()
        return loss

    return Distilled(), run


@case({("", "x"): "used", ("", "mask"): "used", ("", "ids"): "unused", ("lin", "input"): "used"})
def autograd_inference_mode() -> Built:
    torch.manual_seed(0)

    class Inferring(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(3, 3)

        @torch.inference_mode()
        def forward(self, x: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
            return self.lin(x).masked_fill_(mask, 0.0)

    x, mask = torch.randn(2, 3), torch.tensor([True, False, False])
    return Inferring(), lambda module: module(x, mask, torch.arange(2))


@case({("", "x"): "used", ("", "mask"): "dead", ("lin", "input"): "used"})
def autograd_inference_mode_around_the_call() -> Built:
    torch.manual_seed(0)

    class Masking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(3, 3)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            y = self.lin(x)
            y.masked_fill(mask, 0.0)
            return y[:, :2]

    x, mask = torch.randn(2, 3), torch.tensor([True, False, False])

    def run(module: nn.Module) -> Tensor:
        with torch.inference_mode():
            return module(x, mask)

    return Masking(), run


@case({("", "x"): "used", ("", "scale"): "dead", ("left", "input"): "used", ("right", "input"): "used"})
def autograd_autocast_leaf_to_two_children() -> Built:
    """The leaf is cast once and the cast is kept for the second layer, which reads it all the same."""
    torch.manual_seed(0)

    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                left, right = self.left(x), self.right(x)
                _scaled = right * scale
            return left.float(), right.float()

    x, scale = torch.randn(2, 4, requires_grad=True), torch.tensor(0.5)

    def run(module: nn.Module) -> tuple[Tensor, Tensor]:
        left, right = module(x, scale)
        (left.sum() + right.sum()).backward()
        return left, right

    return Forked(), run


@case(
    {
        ("", "query"): "used",
        ("", "key"): "used",
        ("", "bias"): "passed_through",
        ("attend", "query"): "used",
        ("attend", "key"): "used",
        ("attend", "bias"): "unused",
    }
)
def autograd_autocast_around_the_call() -> Built:
    torch.manual_seed(0)

    class Attend(nn.Module):
        def forward(self, query: Tensor, key: Tensor, bias: Tensor) -> Tensor:
            scores = query @ key.mT
            with torch.autocast("cpu", enabled=False):
                return scores.float().softmax(-1)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = Attend()

        def forward(self, query: Tensor, key: Tensor, bias: Tensor) -> Tensor:
            return self.attend(query, key, bias).sum(0)

    query, key, bias = torch.randn(2, 3), torch.randn(4, 3, requires_grad=True), torch.randn(2, 4)

    def run(module: nn.Module) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return module(query, key, bias)

    return Outer(), run


class _Hooked(nn.Module):
    """A hook on the hidden tensor scales its gradient by the weight."""

    def __init__(self, also_forward: bool) -> None:
        super().__init__()
        self.lin, self.head = nn.Linear(2, 3), nn.Linear(3, 1)
        self.also_forward = also_forward

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        h = self.lin(x)
        h.register_hook(lambda above: above * weight)
        return self.head(h * weight if self.also_forward else h)


def _hooked(also_forward: bool) -> Built:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 2), torch.rand(3)

    def run(module: nn.Module) -> Tensor:
        y = module(x, weight)
        y.sum().backward()
        return y

    return _Hooked(also_forward), run


@case({("", "x"): "used", ("", "weight"): "stored", ("lin", "input"): "used", ("head", "input"): "used"})
def autograd_tensor_hook_keeps_weight() -> Built:
    """The weight lives on in the hook and acts on gradients only."""
    return _hooked(also_forward=False)


@case({("", "x"): "used", ("", "weight"): "used", ("lin", "input"): "used", ("head", "input"): "used"})
def autograd_tensor_hook_and_forward() -> Built:
    return _hooked(also_forward=True)


@case(
    {
        ("", "x"): "used",
        ("", "mask"): "passed_through",
        ("block", "x"): "used",
        ("block", "mask"): "unused",
        ("block.lin", "input"): "used",
    }
)
def autograd_full_backward_hook_on_ignoring_child() -> Built:
    """The hook leads every argument that wants a gradient through a function of its own; the mask is still ignored."""
    torch.manual_seed(0)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = _MaskedBlock(masked=False)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.block(x, mask).sum()

    outer, norms = Outer(), []
    outer.block.register_full_backward_hook(lambda module, below, above: norms.append(above[0].norm()))
    x, mask = torch.randn(2, 3, requires_grad=True), torch.rand(2, 1, requires_grad=True)

    def run(module: nn.Module) -> Tensor:
        y = module(x, mask)
        y.backward()
        return y

    return outer, run


@case(
    {
        ("", "support"): "used",
        ("", "support_y"): "used",
        ("", "query"): "used",
        ("", "query_y"): "unused",
        ("net", "input"): "used",
    }
)
def autograd_inner_loop_of_meta_learning() -> Built:
    """One step on the support set makes the weights that answer the query."""
    torch.manual_seed(0)

    class Meta(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(3, 1)

        def forward(self, support: Tensor, support_y: Tensor, query: Tensor, query_y: Tensor) -> Tensor:
            slow = dict(self.net.named_parameters())
            loss = F.mse_loss(functional_call(self.net, slow, (support,)), support_y)
            slopes = torch.autograd.grad(loss, list(slow.values()), create_graph=True)
            fast = {name: value - 0.1 * slope for (name, value), slope in zip(slow.items(), slopes, strict=True)}
            return functional_call(self.net, fast, (query,))

    inputs = torch.randn(4, 3), torch.randn(4, 1), torch.randn(2, 3), torch.randn(2, 1)
    return Meta(), lambda module: module(*inputs)


class _HyperNet(nn.Module):
    """The context makes the weights of the layer, which are handed to it or forgotten."""

    def __init__(self, handed: bool) -> None:
        super().__init__()
        self.hyper, self.lin = nn.Linear(2, 6), nn.Linear(3, 2)
        self.handed = handed

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        made = {"weight": self.hyper(context).view(2, 3)}
        return functional_call(self.lin, made, (x,)) if self.handed else functional_call(self.lin, {}, (x,))


@case({("", "x"): "used", ("", "context"): "used", ("hyper", "input"): "used", ("lin", "input"): "used"})
def autograd_functional_call_with_made_weights() -> Built:
    torch.manual_seed(0)
    x, context = torch.randn(2, 3), torch.randn(2)
    return _HyperNet(handed=True), lambda module: module(x, context)


@case({("", "x"): "used", ("", "context"): "dead", ("hyper", "input"): "used", ("lin", "input"): "used"})
def autograd_functional_call_without_made_weights() -> Built:
    torch.manual_seed(0)
    x, context = torch.randn(2, 3), torch.randn(2)
    return _HyperNet(handed=False), lambda module: module(x, context)


@case({("", "x"): "used", ("", "matrices"): "used", ("", "aux"): "dead", ("", "out"): "metadata"})
def autograd_vmap_of_a_product() -> Built:
    """Two products are mapped over the batch, and the second is not taken."""
    torch.manual_seed(0)

    class Mapped(nn.Module):
        def forward(self, x: Tensor, matrices: Tensor, aux: Tensor, out: Tensor) -> Tensor:
            def both(m: Tensor, v: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
                return m @ v, a.sum()

            products, _sums = vmap(both)(matrices, x, aux)
            return products.view(out.shape)

    x, matrices, aux, out = torch.randn(2, 3), torch.randn(2, 2, 3), torch.randn(2, 3), torch.zeros(4)
    return Mapped(), lambda module: module(x, matrices, aux, out)


@case(
    {
        ("", "x"): "used",
        ("", "shift"): "used",
        ("net", "input"): "used",
        ("net.0", "input"): "used",
        ("net.1", "input"): "used",
    }
)
def autograd_vmap_around_child() -> Built:
    """The child sees one sample at a time; the shift is the same for all."""
    torch.manual_seed(0)

    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 2), nn.Tanh())

        def forward(self, x: Tensor, shift: Tensor) -> Tensor:
            return vmap(self.net)(x) + vmap(torch.sub, in_dims=(0, None))(x, shift).sum(-1, keepdim=True)

    x, shift = torch.randn(4, 3), torch.randn(3)
    return Mapped(), lambda module: module(x, shift)


@case(
    {
        ("", "x"): "used",
        ("", "label"): "unused",
        ("net", "input"): "used",
        ("net.0", "input"): "used",
        ("net.1", "input"): "used",
    }
)
def autograd_score_by_func_grad() -> Built:
    """The answer is the slope of the child's energy."""
    torch.manual_seed(0)

    class Score(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh())

        def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
            return -grad(lambda z: self.net(z).sum())(x)

    x = torch.randn(2, 3)
    return Score(), lambda module: module(x, label=torch.tensor([0, 1]))


@case(
    {
        ("", "real"): "used",
        ("", "fake"): "used",
        ("", "mix"): "used",
        ("", "weight"): "dead",
        ("critic", "input"): "used",
        ("critic.0", "input"): "used",
        ("critic.1", "input"): "used",
        ("critic.2", "input"): "used",
    }
)
def autograd_gradient_penalty() -> Built:
    torch.manual_seed(0)

    class Penalty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.critic = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

        def forward(self, real: Tensor, fake: Tensor, mix: Tensor, weight: Tensor) -> Tensor:
            between = (mix * real + (1 - mix) * fake).requires_grad_()
            (slope,) = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
            penalty = (slope.norm(dim=1) - 1).square().mean()
            _weighted = weight * penalty
            return penalty

    inputs = torch.randn(2, 3), torch.randn(2, 3), torch.rand(2, 1), torch.tensor(10.0)

    def run(module: nn.Module) -> Tensor:
        loss = module(*inputs)
        loss.backward()
        return loss

    return Penalty(), run


def _pushed(take: Callable[[tuple[Tensor, Tensor]], Tensor]) -> Built:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the first jvp of a process loads scripted decompositions
        jvp(torch.sin, (torch.ones(1),), (torch.ones(1),))
    x, direction = torch.randn(3), torch.randn(3)
    return _Pushed(take), lambda module: module(x, direction)


class _Pushed(nn.Module):
    """A tangent is pushed forward; it or only the value is returned."""

    def __init__(self, take: Callable[[tuple[Tensor, Tensor]], Tensor]) -> None:
        super().__init__()
        self.take = take

    def forward(self, x: Tensor, direction: Tensor) -> Tensor:
        return self.take(jvp(lambda z: z.sin() * z, (x,), (direction,)))


@case({("", "x"): "used", ("", "direction"): "used"})
def autograd_jvp_taken() -> Built:
    return _pushed(lambda both: both[1])


@case({("", "x"): "used", ("", "direction"): "dead"})
def autograd_jvp_dropped() -> Built:
    """The value does not depend on the direction."""
    return _pushed(lambda both: both[0])


@case({("", "x"): "used", ("", "above"): "used", ("lin", "input"): "used"})
def autograd_vjp_around_child() -> Built:
    torch.manual_seed(0)

    class Pulled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(3, 2)

        def forward(self, x: Tensor, above: Tensor) -> Tensor:
            _value, pull = vjp(lambda z: self.lin(z).tanh(), x)
            return pull(above)[0]

    x, above = torch.randn(2, 3), torch.randn(2, 2)
    return Pulled(), lambda module: module(x, above)


@case(
    {
        ("", "x"): "used",
        ("", "lengths"): "unused",
        ("net", "input"): "used",
        ("net.0", "input"): "used",
        ("net.1", "input"): "used",
    }
)
def autograd_jacobian_of_child() -> Built:
    torch.manual_seed(0)

    class Jacobian(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid())

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            return torch.linalg.slogdet(jacrev(self.net)(x)).logabsdet

    x = torch.randn(2)
    return Jacobian(), lambda module: module(x, torch.tensor([2]))


class _Symmetric(nn.Module):
    def forward(self, upper: Tensor) -> Tensor:
        return upper.triu() + upper.triu(1).mT


@case(
    {
        ("", "x"): "used",
        ("", "mask"): "unused",
        ("lin", "input"): "used",
        ("lin.parametrizations.weight.0", "upper"): "used",
    }
)
def autograd_parametrized_symmetric() -> Built:
    """The weight is itself made by a module, whose argument is the unconstrained weight."""
    torch.manual_seed(0)

    class Symmetric(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(3, 3)
            parametrize.register_parametrization(self.lin, "weight", _Symmetric())

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.lin(x)

    x, mask = torch.randn(2, 3), torch.ones(2)
    return Symmetric(), lambda module: module(x, mask)


@case(
    {
        ("", "x"): "used",
        ("", "gain"): "used",
        ("conv", "input"): "used",
        ("conv.parametrizations.weight.0", "weight_g"): "used",
        ("conv.parametrizations.weight.0", "weight_v"): "used",
    }
)
def autograd_weight_norm() -> Built:
    torch.manual_seed(0)

    class Vocoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = parametrizations.weight_norm(nn.Conv1d(1, 2, 3))

        def forward(self, x: Tensor, gain: Tensor) -> Tensor:
            return self.conv(x).tanh() * gain

    x, gain = torch.randn(1, 1, 6), torch.tensor(0.7)
    return Vocoder(), lambda module: module(x, gain)


@case(
    {
        ("", "x"): "used",
        ("", "label"): "dead",
        ("embed", "input"): "used",
        ("lin", "input"): "used",
        ("lin.parametrizations.weight.0", "weight"): "used",
    }
)
def autograd_spectral_norm_and_lost_projection() -> Built:
    """The projection discriminator forgets to add its projection."""
    torch.manual_seed(0)

    class Projection(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = parametrizations.spectral_norm(nn.Linear(3, 1))
            self.embed = nn.Embedding(2, 3)

        def forward(self, x: Tensor, label: Tensor) -> Tensor:
            score = self.lin(x)
            _projection = (self.embed(label) * x).sum(-1, keepdim=True)
            return score

    x, label = torch.randn(2, 3), torch.tensor([0, 1])
    return Projection(), lambda module: module(x, label)


@case({("", "x"): "used", ("", "log_scale"): "used", ("", "noise"): "conditional", ("mean", "input"): "used"})
def autograd_reparametrised_sample() -> Built:
    """In evaluation the mean is answered, and the noise that was handed in is not needed."""
    torch.manual_seed(0)

    class Sampler(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean = nn.Linear(2, 2)

        def forward(self, x: Tensor, log_scale: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
            mean = self.mean(x)
            kl = 0.5 * (mean.square() + log_scale.exp() - log_scale - 1).sum()
            return (mean + (0.5 * log_scale).exp() * noise if self.training else mean), kl

    x, log_scale, noise = torch.randn(2, 2), torch.randn(2), torch.randn(2, 2)

    def run(module: nn.Module) -> list[tuple[Tensor, Tensor]]:
        return [module.train(mode)(x, log_scale, noise) for mode in (True, False)]

    return Sampler(), run


@case({("", "logits"): "used", ("", "values"): "used", ("", "baseline"): "used", ("", "entropy_weight"): "metadata"})
def autograd_policy_gradient_loss() -> Built:
    """Detached advantages are values of the loss like any other."""
    torch.manual_seed(0)

    class Reinforce(nn.Module):
        def forward(self, logits: Tensor, values: Tensor, baseline: Tensor, entropy_weight: Tensor) -> Tensor:
            advantage = (values - baseline).detach()
            best = logits.log_softmax(-1).amax(-1)
            entropy = torch.zeros_like(entropy_weight)
            return -(best * advantage).mean() - entropy

    logits = torch.randn(3, 2, requires_grad=True)
    inputs = torch.randn(3), torch.randn(3), torch.tensor(0.01)
    return Reinforce(), lambda module: module(logits, *inputs)
