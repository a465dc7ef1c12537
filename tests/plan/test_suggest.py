"""The groups that real architectures suggest, and that they hold together."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

from lightning_freeze.errors import SelectionError
from lightning_freeze.plan.groups import Groups, group_parameters, resolve_groups
from lightning_freeze.plan.suggest import suggest_groups

SIZES: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**SIZES, "vocab_size": 11, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2}


def llama(**settings: Any) -> nn.Module:
    return hf.LlamaForCausalLM(hf.LlamaConfig(num_key_value_heads=2, **{**TEXT, **settings}))


def gpt2() -> nn.Module:
    sizes = {"vocab_size": 11, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 8}
    return hf.GPT2LMHeadModel(hf.GPT2Config(bos_token_id=1, eos_token_id=2, **sizes))


def t5() -> nn.Module:
    return hf.T5ForConditionalGeneration(
        hf.T5Config(vocab_size=11, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2)
    )


def whisper() -> nn.Module:
    layers = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    sizes = {"vocab_size": 11, "d_model": 8, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "num_mel_bins": 4}
    positions = {"max_source_positions": 8, "max_target_positions": 8}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    return hf.WhisperForConditionalGeneration(hf.WhisperConfig(**layers, **sizes, **positions, **tokens))


def swin() -> nn.Module:
    sizes = {"image_size": 16, "patch_size": 2, "window_size": 2, "embed_dim": 8}
    return hf.Swinv2ForImageClassification(hf.Swinv2Config(depths=[1, 1, 5], num_heads=[2, 2, 2], **sizes))


def hf_resnet() -> nn.Module:
    return hf.ResNetForImageClassification(
        hf.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8, 8], depths=[1, 5, 1], layer_type="basic")
    )


def conv(*channels: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Sequential(nn.Conv2d(a, b, 1), nn.BatchNorm2d(b)) for a, b in pairwise(channels)))


class TorchvisionResNet(nn.Module):
    """Named as torchvision's; a stage is a Sequential of blocks, the third the longest."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.bn1 = nn.BatchNorm2d(4)
        self.layer1 = conv(4, 4, 4)
        self.layer2 = conv(4, 4, 4)
        self.layer3 = conv(4, 4, 4, 4, 4, 4, 4)
        self.layer4 = conv(4, 4, 4)
        self.fc = nn.Linear(4, 2)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(4)
        self.mlp = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4))


class TimmViT(nn.Module):
    """Named as timm's: blocks in a Sequential, tokens and positions as bare parameters."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 4))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, 4, 2), "norm": nn.LayerNorm(4)})
        self.blocks = nn.Sequential(*(Block() for _ in range(depth)))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2, 3)
        self.conv2 = nn.Conv2d(2, 2, 3)
        self.fc1 = nn.Linear(4, 4)
        self.fc2 = nn.Linear(4, 2)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(8, 2)
    )


def mobilenet() -> nn.Module:
    features = [conv(3, 4), *(Block() for _ in range(3)), conv(4, 4)]
    return nn.ModuleDict({"features": nn.Sequential(*features), "classifier": mlp()})


def encoder(layers: int = 2) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    return nn.TransformerEncoder(layer, layers, nn.LayerNorm(4))


def both(a: nn.Module, b: nn.Module) -> nn.Module:
    return nn.ModuleDict({"encoder": a, "decoder": b})


ZOO: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], list[str]]] = {
    "Llama": (
        llama,
        {
            "embeddings": "model.embed_tokens",
            "layers": {"each": "model.layers.*"},
            "head": "lm_head",
            "norms": "model.norm",
        },
        [],
    ),
    "Llama, tied": (
        lambda: llama(tie_word_embeddings=True),
        {"embeddings": "model.embed_tokens", "layers": {"each": "model.layers.*"}, "norms": "model.norm"},
        [],
    ),
    "GPT-2": (
        gpt2,
        {
            "embeddings": ["transformer.wte", "transformer.wpe"],
            "h": {"each": "transformer.h.*"},
            "norms": "transformer.ln_f",
        },
        [],
    ),
    "BERT": (
        lambda: hf.BertForSequenceClassification(hf.BertConfig(**TEXT)),
        {
            "embeddings": "bert.embeddings",
            "layer": {"each": "bert.encoder.layer.*"},
            "head": ["bert.pooler", "classifier"],
        },
        [],
    ),
    "BERT, a head tied in part": (
        lambda: hf.BertForMaskedLM(hf.BertConfig(**TEXT)),
        {
            "embeddings": "bert.embeddings",
            "layer": {"each": "bert.encoder.layer.*"},
            "head": {"select": "cls", "except": "cls.predictions.decoder.weight"},
        },
        [],
    ),
    "T5": (
        t5,
        {
            "embeddings": "shared",
            "encoder_block": {"each": "encoder.block.*"},
            "decoder_block": {"each": "decoder.block.*"},
            "norms": ["encoder.final_layer_norm", "decoder.final_layer_norm"],
        },
        [],
    ),
    "ViT": (
        lambda: hf.ViTForImageClassification(hf.ViTConfig(image_size=8, patch_size=4, **SIZES)),
        {
            "embeddings": "vit.embeddings",
            "layers": {"each": "vit.layers.*"},
            "head": "classifier",
            "norms": "vit.layernorm",
        },
        [],
    ),
    "Swin V2, by stages": (
        swin,
        {
            "embeddings": "swinv2.embeddings",
            "layers": {"each": "swinv2.encoder.layers.*"},
            "head": "classifier",
            "norms": "swinv2.layernorm",
        },
        [],
    ),
    "Whisper": (  # the encoder's positions are sinusoids that never train
        whisper,
        {
            "embeddings": ["model.decoder.embed_tokens", "model.decoder.embed_positions"],
            "model_encoder_layers": {"each": "model.encoder.layers.*"},
            "model_decoder_layers": {"each": "model.decoder.layers.*"},
            "norms": ["model.encoder.layer_norm", "model.decoder.layer_norm"],
        },
        [f"model.encoder.conv{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")],
    ),
    "ResNet of transformers": (
        hf_resnet,
        {"embeddings": "resnet.embedder", "stages": {"each": "resnet.encoder.stages.*"}, "head": "classifier"},
        [],
    ),
    "ResNet of torchvision": (
        TorchvisionResNet,
        {"layer": {"each": "layer{1..4}"}, "head": "fc", "norms": "bn1"},
        ["conv1.weight", "conv1.bias"],
    ),
    "TransformerEncoder": (encoder, {"layers": {"each": "layers.*"}, "norms": "norm"}, []),
    "towers of different lengths": (
        lambda: both(encoder(4), encoder(2)),
        {
            "encoder_layers": {"each": "encoder.layers.*"},
            "decoder_layers": {"each": "decoder.layers.*"},
            "norms": ["encoder.norm", "decoder.norm"],
        },
        [],
    ),
    "ViT of timm": (
        TimmViT,
        {
            "embeddings": ["cls_token", "pos_embed", "patch_embed"],
            "blocks": {"each": "blocks.*"},
            "head": "head",
            "norms": "norm",
        },
        [],
    ),
    "MobileNet": (mobilenet, {"features": {"each": "features.*"}, "head": "classifier"}, []),
    "MLP": (mlp, {"layers": {"each": "*"}}, []),
    "CNN in a row": (cnn, {"layers": {"each": "{0..3}"}, "head": "5"}, []),
    "LeNet": (LeNet, {"layers": {"each": "*", "except": "fc2"}, "head": "fc2"}, []),
    "LeNet in a wrapper": (
        lambda: nn.ModuleDict({"net": LeNet()}),
        {"net": {"each": "net.*", "except": "net.fc2"}, "head": "net.fc2"},
        [],
    ),
    "one layer": (lambda: nn.Linear(2, 2), {"layers": "**"}, []),
    "one layer in a wrapper": (lambda: nn.ModuleDict({"net": nn.Linear(2, 2)}), {"head": "net"}, []),
    "one norm": (lambda: nn.Sequential(nn.LayerNorm(2)), {"norms": "0"}, []),
    "a layer and a head": (
        lambda: nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2)),
        {"layers": {"each": "{0..1}"}, "head": "2"},
        [],
    ),
}


def checked(model: nn.Module, suggested: dict[str, Any]) -> Groups:
    """The groups, after proving that they are disjoint and hold all that trains, each under its first group."""
    groups = group_parameters(model, suggested)
    held = [id(member.parameter) for members in groups.members.values() for member in members]
    assert len(held) == len(set(held))
    assert set(held) == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert all(groups.members.values())
    assert list(resolve_groups(model, suggested)) == list(groups.named)
    return groups


@pytest.mark.parametrize("name", ZOO)
def test_an_architecture_suggests_exactly(name: str) -> None:
    build, expected, rest = ZOO[name]
    model = build()
    suggested = suggest_groups(model)
    assert suggested == expected
    assert list(suggested) == list(expected)
    assert checked(model, suggested).names().get("rest", []) == rest


@pytest.mark.parametrize("name", ["Llama", "T5", "ViT of timm", "LeNet"])
def test_a_wrapper_around_the_model_changes_paths_only(name: str) -> None:
    build, expected, _ = ZOO[name]
    model = nn.ModuleDict({"wrapped": build(), "loss": nn.CrossEntropyLoss()})
    groups = checked(model, suggest_groups(model)).names()
    alone = checked(build(), expected).names()
    assert list(groups.values()) == [[f"wrapped.{n}" for n in names] for names in alone.values()]


def compiled(module: nn.Module) -> nn.Module:
    """As torch.compile and checkpoint_wrapper hold what they wrap."""
    wrapper = nn.Module()
    wrapper.add_module("_orig_mod", module)
    return wrapper


@pytest.mark.parametrize("name", ["TransformerEncoder", "ResNet of torchvision", "MLP", "ViT of timm", "CNN in a row"])
@pytest.mark.parametrize("inner", [False, True])
def test_compiled_modules_suggest_as_if_they_were_not(name: str, inner: bool) -> None:
    build, expected, rest = ZOO[name]
    model = build()
    for path, module in list(model.named_modules()) if inner else []:
        if path.count(".") == 0 and path:
            setattr(model, path, compiled(module))
    model = compiled(model)
    assert suggest_groups(model) == expected
    assert checked(model, expected).names().get("rest", []) == rest


# --- tied and frozen parameters --------------------------------------------------------------------------------------


def test_a_tied_parameter_is_in_the_first_group_only() -> None:
    model = llama(tie_word_embeddings=True)
    groups = checked(model, suggest_groups(model))
    assert [member.parameter for member in groups.members["embeddings"]] == [model.lm_head.weight]


def test_a_parameter_that_blocks_share_belongs_to_the_first() -> None:
    model = encoder(3)
    model.layers[2].norm1 = model.layers[0].norm1
    model.layers[1] = model.layers[0]
    suggested = suggest_groups(model)
    assert suggested == {"layers": {"each": "layers.*", "except": ["layers.1", "layers.2.norm1"]}, "norms": "norm"}
    assert list(checked(model, suggested).named) == ["layers/0", "layers/2", "norms"]


def test_a_block_tied_to_the_embedding_leaves_it_there() -> None:
    blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
    model = nn.ModuleDict({"layers": blocks, "embed": nn.Embedding(4, 4)})
    blocks[1].weight = model["embed"].weight
    suggested = suggest_groups(model)
    assert suggested == {"embeddings": "embed", "layers": {"each": "layers.*", "except": "layers.1.weight"}}
    checked(model, suggested)


def test_a_list_under_two_names_is_one_family() -> None:
    model = nn.ModuleDict({"net": encoder(3)})
    model["alias"] = model["net"].layers
    suggested = suggest_groups(model)
    assert suggested == {"layers": {"each": "net.layers.*"}, "norms": "net.norm"}
    checked(model, suggested)


@pytest.mark.parametrize(
    ("frozen", "expected"),
    [
        (["blocks.0"], {"each": "blocks.{1..3}"}),
        (["blocks.0", "blocks.1", "blocks.2"], {"each": "blocks.{3..3}"}),
        (["blocks.1"], {"each": "blocks.*", "except": "blocks.1"}),
        (["blocks.1", "blocks.2"], {"each": "blocks.*", "except": ["blocks.1", "blocks.2"]}),
        (["blocks.3.norm1", "blocks.2.mlp.0.weight"], {"each": "blocks.*"}),
    ],
    ids=str,
)
def test_frozen_blocks_are_left_out_of_the_family(frozen: list[str], expected: object) -> None:
    model = TimmViT(4)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(name == f or name.startswith(f"{f}.") for f in frozen))
    suggested = suggest_groups(model)
    assert suggested["blocks"] == expected
    checked(model, suggested)


def test_frozen_groups_are_not_suggested_and_nothing_takes_their_place() -> None:
    model = TimmViT()
    for frozen in (model.cls_token, model.patch_embed, *model.blocks, model.head):
        frozen.requires_grad_(False)
    suggested = suggest_groups(model)
    assert suggested == {"embeddings": "pos_embed", "norms": "norm"}
    checked(model, suggested)


def test_a_head_frozen_in_part_is_named_as_a_whole() -> None:
    model = TimmViT()
    model.head.bias.requires_grad_(False)
    assert suggest_groups(model)["head"] == "head"
    checked(model, suggest_groups(model))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.ReLU()), r"nothing to group: Sequential has no parameters\. .*`configure_model`"),
        (
            mlp().requires_grad_(False),
            r"nothing to group: nothing has requires_grad=True \(6 parameters\)\. Set it True",
        ),
    ],
    ids=["none", "frozen"],
)
def test_a_model_with_nothing_to_train_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        suggest_groups(model)


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "family"),
    [
        ("encoder.stages", "stages"),
        ("encoder.0", "encoder"),
        ("0", "layers"),
        ("rest", "rest_blocks"),
        ("net.rest", "net_rest"),
        ("all", "all_blocks"),
        ("norms", "norms_blocks"),
        ("net.embeddings", "net_embeddings"),
        ("a/b", "a_b"),
    ],
)
def test_a_family_has_the_name_of_its_list_unless_that_is_taken(path: str, family: str) -> None:
    model: nn.Module = nn.ModuleList(Block() for _ in range(2))
    for segment in reversed(path.split(".")):
        model = nn.ModuleDict({segment: model})
    suggested = suggest_groups(model)
    assert suggested == {family: {"each": f"{path}.*"}}
    checked(model, suggested)


def test_names_that_say_more_than_a_list_does_not_decide() -> None:
    """A list of heads is a head, and a module named for embeddings that holds the blocks is none."""
    model = nn.ModuleDict({"embedder": encoder(2), "heads": nn.ModuleList(nn.Linear(4, 2) for _ in range(5))})
    suggested = suggest_groups(model)
    assert suggested == {"layers": {"each": "embedder.layers.*"}, "head": "heads", "norms": "embedder.norm"}
    checked(model, suggested)


def test_lists_of_equal_length_are_families_by_their_whole_path() -> None:
    model = nn.Module()
    model.net = nn.ModuleDict(OrderedDict(down=mlp(), up=mlp()))
    suggested = suggest_groups(model)
    assert suggested == {"net_down": {"each": "net.down.*"}, "net_up": {"each": "net.up.*"}}
    checked(model, suggested)
    model.net["mid"] = nn.ModuleList(Block() for _ in range(3))
    assert suggest_groups(model) == {"mid": {"each": "net.mid.*"}}, "a ModuleList is made to be a list"


class Answers(nn.Module):
    """Says which modules take the input and give the output, as transformers does, by names that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = nn.Linear(2, 4)
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.exit = nn.Linear(4, 2)
        self.critic = nn.Linear(4, 1)

    def get_input_embeddings(self) -> nn.Module:
        return self.entry

    def get_output_embeddings(self) -> nn.Module:
        return self.exit


class Silent(Answers):
    def get_input_embeddings(self) -> nn.Module:
        raise NotImplementedError

    def get_output_embeddings(self) -> None:  # type: ignore[override]
        return None


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (Answers, {"embeddings": "entry", "layers": {"each": "layers.*"}, "head": "exit"}),
        (Silent, {"layers": {"each": "layers.*"}, "head": "critic"}),
    ],
)
def test_a_model_is_asked_for_its_embeddings_and_its_head(build: type[nn.Module], expected: object) -> None:
    assert suggest_groups(build()) == expected
    wrapped = suggest_groups(nn.ModuleDict({"net": build()}))
    assert list(wrapped) == list(expected)  # type: ignore[call-overload]


class PreNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.mixer = nn.Linear(4, 4)


def test_a_module_that_holds_a_norm_and_more_is_no_norm() -> None:
    model = nn.ModuleDict({"layers": encoder(2).layers, "tail": PreNorm(), "exit": nn.Linear(4, 2)})
    assert suggest_groups(model) == {"layers": {"each": "layers.*"}, "head": "exit", "norms": "tail.norm"}


def test_what_belongs_elsewhere_is_excepted_only_where_that_is_shorter() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(2, 4), "layers": encoder(2).layers, "head": nn.Linear(4, 2)})
    model["head"].weight = model["embed"].weight
    assert suggest_groups(model)["head"] == "head.bias"


def test_a_longer_stem_of_convolutions_does_not_decide() -> None:
    model = nn.ModuleDict({"patch_embed": nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(5))), "net": encoder(2)})
    suggested = suggest_groups(model)
    assert suggested == {"embeddings": "patch_embed", "layers": {"each": "net.layers.*"}, "norms": "net.norm"}
    checked(model, suggested)
