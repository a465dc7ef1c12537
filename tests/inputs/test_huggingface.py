"""The audit of inputs and a black-box oracle agree on Hugging Face models of many families."""

from __future__ import annotations

import dataclasses
import importlib
import random
from collections.abc import Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

from tests.inputs.huggingface import ARCHITECTURES
from tests.inputs.oracle import Examination, Key, Leaf, examine, has_effect, irrelevant_leaves, replacements, run, same

pytestmark = [
    # WavLM hands torch a mask of bools and one of floats
    pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask and attn_mask:UserWarning"),
]

# (architecture, module, argument) that are `used` for the audit though nothing shows, and why the audit may say so
CAREFUL = {
    # past and future are joined into one tensor, of which only the past is read later: tensors, not elements, are traced
    ("autoformer", "model", "future_values"): "used",
}
IGNORED = {"unused", "dead", "metadata"}
MODES = ["train", "eval"]
CORE = set(
    "bert distilbert albert deberta_v2 mpnet longformer big_bird fnet funnel xlnet canine modernbert gpt2 gpt_neox opt bloom "
    "llama llama_with_cache gemma2 phi falcon mixtral deepseek_v3 gpt_oss t5 bart longt5 prophetnet mamba rwkv jamba "
    "recurrent_gemma lfm2 vit swinv2 convnext resnet segformer detr dpt sam wav2vec2 whisper encodec clip blip vilt llava "
    "layoutlmv3 perceiver time_series_transformer autoformer patchtst decision_transformer".split()
)
"""One or two of each family: these are compared in every run of the suite, the others with ``pytest -m slow``."""


@pytest.fixture(autouse=True)
def _torch_as_before() -> Iterator[None]:
    """Some models change the defaults of torch when they are imported or built."""
    dtype, state, numpy_state, python_state = (
        torch.get_default_dtype(),
        torch.get_rng_state(),
        np.random.get_state(),
        random.getstate(),
    )
    yield
    torch.set_default_dtype(dtype)
    torch.set_rng_state(state)
    np.random.set_state(numpy_state)
    random.setstate(python_state)


def disagreements(verdicts: Mapping[Key, str], findings: Iterable[Any], found: Examination) -> list[str]:
    """Where an audit says what the oracle can refute, one line each."""
    wrong = []
    for finding in findings:
        key = (finding.module, finding.argument)
        if finding.confirmed and finding.kind in IGNORED and key not in found.irrelevant | found.untested:
            leaf = found.leaves.get(key)
            known = f"has an effect in {leaf.effect} calls" if leaf else "is an argument that the oracle never saw"
            wrong.append(f"{key} is {finding.kind} for the audit, but {known}")
    for key in sorted(found.irrelevant):
        leaf, verdict = found.leaves[key], verdicts.get(key)
        if verdict not in {*IGNORED, "conditional", "passed_through"}:
            wrong.append(f"{key} has no effect, but is {verdict} for the audit")
        elif verdict == "passed_through" and not (leaf.handed or leaf.handed_views or leaf.returned):
            wrong.append(f"{key} is passed_through for the audit, but was handed to no child and not returned")
    return wrong


@pytest.mark.parametrize("mode", [pytest.param(m, marks=() if m == "train" else pytest.mark.slow) for m in MODES])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in CORE else pytest.mark.slow) for name in ARCHITECTURES]
)
def test_the_audit_and_the_oracle_agree(name: str, mode: str) -> None:
    from lightning_freeze import audit_inputs

    model, inputs = ARCHITECTURES[name]()
    model.train(mode == "train")
    with torch.set_grad_enabled(mode == "train"):
        found = examine(model, inputs)
        with audit_inputs(model) as audit:
            run(model, inputs)
    assert audit.failure is None
    assert found.calls
    assert not found.skipped
    assert not found.unfaithful
    careful = {key[1:]: verdict for key, verdict in CAREFUL.items() if key[0] == name}
    assert {key: audit.verdicts[key] for key in careful} == careful  # or the entry is no longer needed
    for key in careful:
        assert key in found.irrelevant
        del found.leaves[key]
    assert not disagreements(audit.verdicts, audit.findings, found)


def test_the_core_is_a_part_of_the_table() -> None:
    assert set(ARCHITECTURES) >= CORE
    assert len(CORE) >= 40


KNOWN = {
    "whisper": ("", "attention_mask"),  # read with SpecAugment only, which is off
    "decision_transformer": ("", "rewards"),
    "rwkv": ("", "attention_mask"),
    "llama": ("model.rotary_emb", "x"),  # only for its type and device
    "vilt": ("vilt.encoder.layer.0.attention.output", "input_tensor"),  # the residual is elsewhere
    "autoformer": ("model", "future_values"),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_oracle_finds_what_is_known_to_be_ignored(name: str) -> None:
    model, inputs = ARCHITECTURES[name]()
    assert has_effect(model, inputs, *KNOWN[name]) is False


@pytest.mark.parametrize(
    ("name", "fqn", "argument"),
    [
        ("bert", "", "token_type_ids"),
        ("bert", "bert.encoder.layer.1.attention.self", "attention_mask"),
        ("llama_with_cache", "", "position_ids"),
        ("detr", "", "pixel_mask"),
        ("mamba", "", "attention_mask"),
        ("time_series_transformer", "", "future_observed_mask"),
        ("mixtral", "", "attention_mask"),
    ],
)
def test_the_oracle_sees_real_uses(name: str, fqn: str, argument: str) -> None:
    model, inputs = ARCHITECTURES[name]()
    assert has_effect(model, inputs, fqn, argument) is True


def test_there_are_many_families_and_each_trains_or_predicts() -> None:
    assert len(ARCHITECTURES) >= 48


# ------------------------------------------------------------------------------------------------- the comparison


def examination(**leaves: Leaf) -> Examination:
    return Examination({("m", name): leaf for name, leaf in leaves.items()})


def finding(argument: str, kind: str = "unused", confirmed: bool = True) -> SimpleNamespace:
    return SimpleNamespace(module="m", argument=argument, kind=kind, confirmed=confirmed)


@pytest.mark.parametrize(
    ("verdicts", "findings", "leaf", "complaint"),
    [
        ({"a": "unused"}, [finding("a")], Leaf(effect=1), "has an effect in 1 calls"),
        ({"a": "dead"}, [finding("a", "dead")], Leaf(effect=1, no_effect=1), "has an effect in 1 calls"),
        ({"a": "metadata"}, [finding("b", "metadata")], Leaf(no_effect=1), "the oracle never saw"),
        ({"a": "used"}, [], Leaf(no_effect=1), "but is used for the audit"),
        ({}, [], Leaf(no_effect=1), "but is None for the audit"),
        ({"a": "passed_through"}, [], Leaf(no_effect=1), "handed to no child and not returned"),
        ({"a": "unused"}, [finding("a")], Leaf(no_effect=1), ""),
        ({"a": "unused"}, [finding("a")], Leaf(untested=1), ""),
        ({"a": "unused"}, [finding("a", confirmed=False)], Leaf(effect=1), ""),
        ({"a": "conditional"}, [finding("a", "conditional")], Leaf(effect=1, no_effect=1), ""),
        ({"a": "passed_through"}, [], Leaf(no_effect=1, handed={("m.child", "x")}), ""),
        ({"a": "used"}, [], Leaf(effect=1, no_effect=1), ""),
    ],
)
def test_the_comparison_can_fail(verdicts: dict[str, str], findings: list[Any], leaf: Leaf, complaint: str) -> None:
    wrong = disagreements({("m", name): verdict for name, verdict in verdicts.items()}, findings, examination(a=leaf))
    assert len(wrong) == bool(complaint)
    assert not wrong or complaint in wrong[0]


# ------------------------------------------------------------------------------------------------- the oracle


class Child(nn.Module):
    """Uses ``x`` and one item of ``bag``; ``mask`` for its length; what it makes of ``aux`` it drops."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor, mask: Tensor, aux: Tensor, *, bag: dict[str, Tensor]) -> Tensor:
        self.linear(aux)
        return self.norm(torch.dropout(self.linear(x), 0.5, self.training)) * mask.shape[0] + bag["kept"]


class Parent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.child = Child()

    def forward(self, x: Tensor, mask: Tensor, other: Tensor, **rest: Tensor) -> Tensor:
        return self.child(x, mask, rest["aux"], bag={"kept": other, "ignored": other})


def planted() -> tuple[nn.Module, dict[str, Tensor]]:
    return Parent(), {
        "x": torch.randn(3, 4),
        "mask": torch.tensor([True, True, False]),
        "other": torch.randn(4),
        "aux": torch.randn(3, 4),
        "unknown": torch.arange(3),
    }


@pytest.mark.parametrize("mode", MODES)
def test_a_planted_module_that_ignores_is_told_from_one_that_uses(mode: str) -> None:
    model, inputs = planted()
    found = examine(model.train(mode == "train"), inputs)
    assert found.irrelevant == {
        ("", "mask"),
        ("", "rest['aux']"),
        ("", "rest['unknown']"),
        ("child", "mask"),
        ("child", "aux"),
        ("child", "bag['ignored']"),
    }
    assert found.origins == found.irrelevant - {("", "mask"), ("", "rest['aux']")}
    assert found.leaves["", "mask"].handed == {("child", "mask")}
    assert found.leaves["child", "aux"].handed == {("child.linear", "input")}
    assert not found.leaves["child", "mask"].handed
    assert not found.skipped
    assert not found.unfaithful
    assert not found.sometimes


def only(function: Any, **inputs: Tensor) -> set[Key]:
    """The irrelevant leaves of a module that does ``function``."""
    module = type("Planted", (nn.Module,), {"forward": function})()
    return irrelevant_leaves(module, inputs)


class _SavesForBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.saved_tensors[0], None


def test_a_use_in_backward_alone_is_a_use() -> None:
    def forward(self: nn.Module, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return _SavesForBackward.apply(x, a)

    inputs = {"x": torch.randn(3, requires_grad=True), "a": torch.randn(3), "b": torch.randn(3)}
    assert only(forward, **inputs) == {("", "b")}
    with torch.no_grad():
        assert only(forward, **inputs) == {("", "a"), ("", "b")}


def test_what_is_kept_on_the_module_or_in_the_arguments_is_an_effect() -> None:
    def forward(self: Any, x: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        self.kept = [a]
        x.add_(b)
        return torch.ones(3) * (3 if c.sum() > 0 else 2)

    given = {name: torch.randn(3) for name in "xabcd"}
    assert only(forward, **given) == {("", "d")}


def test_a_value_read_as_a_mask_an_index_or_a_number_is_an_effect() -> None:
    def forward(self: Any, x: Tensor, all_ones: Tensor, index: Tensor, bools: Tensor, number: Tensor) -> Any:
        return x.masked_fill(all_ones == 0, 0.0), x[index], x * bools, float(number)

    given = {"all_ones": torch.ones(3, dtype=torch.long), "index": torch.zeros(2, dtype=torch.long)}
    given |= {"x": torch.randn(3), "bools": torch.ones(3, dtype=torch.bool), "number": torch.tensor(2)}
    assert only(forward, **given) == set()


def test_a_leaf_that_matters_in_some_calls_only() -> None:
    class Sometimes(nn.Module):
        def forward(self, x: Tensor, y: Tensor, add: bool) -> Tensor:
            return x + y if add else x

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Sometimes()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.inner(self.inner(x, y, True), y, False)

    found = examine(Twice(), {"x": torch.randn(3), "y": torch.randn(3)})
    assert found.sometimes == {("inner", "y")}
    assert not found.irrelevant
    assert examine(Twice(), {"x": torch.randn(3), "y": torch.randn(3)}, cap=1).capped == {"inner"}


def test_a_call_that_is_not_deterministic_is_named_and_not_judged() -> None:
    made = iter(range(10**6))

    class Restless(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + next(made)

    found = examine(Restless(), {"x": torch.randn(3), "y": torch.randn(3)})
    assert found.skipped == {"<root> (call 0)": "is not deterministic"}
    assert not found.irrelevant
    assert found.untested == {("", "x"), ("", "y")}


def test_one_tensor_under_two_names_is_two_leaves() -> None:
    class Inner(nn.Module):
        def forward(self, query: Tensor, key: Tensor) -> Tensor:
            return query * 2

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.linear = Inner(), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.linear(x)
            return self.inner(x, x)

    assert irrelevant_leaves(Outer(), {"x": torch.randn(2, 3)}) == {("inner", "key")}


def test_the_model_its_call_and_the_random_state_are_left_as_one_run_leaves_them() -> None:
    call = nn.Module.__call__
    model, inputs = planted()
    torch.manual_seed(1)
    twin = Parent()
    twin.load_state_dict(model.state_dict())
    run(twin, inputs)
    after = torch.rand(3)
    examine(model, inputs)
    assert torch.equal(torch.rand(3), after)
    assert all(same(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert nn.Module.__call__ is call
    assert set(vars(model.child)) == set(vars(twin.child))


def test_a_run_that_fails_leaves_no_trace() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        raise RuntimeError("no")

    call = nn.Module.__call__
    with pytest.raises(RuntimeError, match="no"):
        only(forward, x=torch.ones(2))
    assert nn.Module.__call__ is call


@pytest.mark.parametrize(
    "leaf",
    [
        torch.zeros(3),
        torch.ones(2, 2).bool(),
        torch.zeros(4, dtype=torch.long),
        torch.tensor(3),
        torch.tensor([0.5 + 1j, -2.0]),
    ],
    ids=["float", "bool", "long", "scalar", "complex"],
)
def test_replacements_have_the_shape_and_the_type_of_the_leaf_and_other_values(leaf: Tensor) -> None:
    made = list(replacements(leaf))
    assert made
    assert all(new.shape == leaf.shape and new.dtype == leaf.dtype and not same(new, leaf) for new in made)
    assert not list(replacements(leaf.reshape(-1)[:0]))


def test_leaves_in_dataclasses_and_model_outputs_have_the_paths_of_the_specification() -> None:
    outputs = importlib.import_module("transformers.modeling_outputs")

    @dataclasses.dataclass
    class Bag:
        a: Tensor
        b: Tensor

    class Reads(nn.Module):
        def forward(self, bag: Bag, out: Any, *args: Tensor) -> Tensor:
            return bag.a + out["logits"] + args[1]

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Reads()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.inner(Bag(x, y), outputs.SequenceClassifierOutput(loss=y, logits=x), y, x)

    found = examine(Outer(), {"x": torch.randn(3), "y": torch.randn(3)})
    assert {path for fqn, path in found.leaves if fqn == "inner"} == {
        "bag.a", "bag.b", "out['loss']", "out['logits']", "args[0]", "args[1]"
    }  # fmt: skip
    assert {path for fqn, path in found.irrelevant if fqn == "inner"} == {"bag.b", "out['loss']", "args[0]"}
