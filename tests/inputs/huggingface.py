"""Tiny Hugging Face models of many families with realistic inputs, built from configurations with random weights.

``ARCHITECTURES[name]()`` gives (model, inputs) for ``model(**inputs)``: texts are padded and masked, heads that have a
loss get labels, and optional arguments that people pass are passed. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Inputs = dict[str, Any]
Built = tuple[nn.Module, Inputs]

BATCH, LENGTH, VOCABULARY = 2, 8, 60
ARCHITECTURES: dict[str, Callable[[], Built]] = {}


def _architecture(name: str, build: Callable[[], Built], seed: int = 0) -> None:
    def seeded() -> Built:
        torch.manual_seed(seed)
        model, inputs = build()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.is_floating_point():  # zeros would hide what is multiplied by them
                    parameter += 0.05 * torch.randn_like(parameter)
        return model, inputs

    assert name not in ARCHITECTURES, name
    ARCHITECTURES[name] = seeded


def _model(config: str, head: str, **settings: Any) -> nn.Module:
    import transformers

    model: nn.Module = getattr(transformers, head)(getattr(transformers, config + "Config")(**settings))
    return model


def _tokens(length: int = LENGTH, vocabulary: int = VOCABULARY, low: int = 5, batch: int = BATCH) -> Tensor:
    return torch.randint(low, vocabulary, (batch, length))


def _mask(length: int = LENGTH, left: bool = False, batch: int = BATCH) -> Tensor:
    """Two tokens of the last text are padding."""
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[-1, slice(None, 2) if left else slice(-2, None)] = 0
    return mask


def _labels(tokens: Tensor, mask: Tensor) -> Tensor:
    """Padding does not count."""
    return tokens.masked_fill(mask == 0, -100)


def _segments(length: int = LENGTH) -> Tensor:
    segments = torch.zeros(BATCH, length, dtype=torch.long)
    segments[:, length // 2 :] = 1
    return segments


def _boxes() -> Tensor:
    corner = torch.randint(0, 500, (BATCH, LENGTH, 2))
    return torch.cat([corner, corner + torch.randint(1, 500, (BATCH, LENGTH, 2))], -1)


def _pixels(size: int = 16, channels: int = 3) -> Tensor:
    return torch.randn(BATCH, channels, size, size)


# ------------------------------------------------------------------------------------------------- text encoders

TINY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}


def _encoder(
    name: str, config: str, head: str = "ForMaskedLM", segments: bool = False, boxes: bool = False, **settings: Any
) -> None:
    def build() -> Built:
        model = _model(config, config + head, **(TINY | settings))
        tokens, mask = _tokens(), _mask()
        inputs: Inputs = {"input_ids": tokens, "attention_mask": mask}
        if segments:
            inputs["token_type_ids"] = _segments()
        if boxes:
            inputs["bbox"] = _boxes()
        if head == "ForSequenceClassification":
            inputs["labels"] = torch.tensor([0, 1])
        elif head == "ForQuestionAnswering":
            inputs |= {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 4])}
        else:
            inputs["labels"] = _labels(tokens % 2 if head == "ForTokenClassification" else tokens, mask)
        return model, inputs

    _architecture(name, build)


_encoder("bert", "Bert", segments=True)
_encoder("roberta", "Roberta", "ForSequenceClassification", segments=True, type_vocab_size=2)
_encoder("distilbert", "DistilBert", dim=16, n_layers=2, n_heads=2, hidden_dim=24)
_encoder("albert", "Albert", segments=True, embedding_size=8)
_encoder("electra", "Electra", "ForTokenClassification", segments=True, embedding_size=8)
_encoder("deberta", "Deberta", segments=True, relative_attention=True, pos_att_type=["c2p", "p2c"], type_vocab_size=2)
_encoder(
    "deberta_v2",
    "DebertaV2",
    "ForTokenClassification",
    segments=True,
    relative_attention=True,
    position_buckets=4,
    pos_att_type=["p2c", "c2p"],
    type_vocab_size=2,
)
_encoder("mpnet", "MPNet")
_encoder("xlm_roberta", "XLMRoberta", "ForQuestionAnswering")
_encoder("ernie", "Ernie", segments=True)
_encoder("convbert", "ConvBert", segments=True, embedding_size=16, conv_kernel_size=3)
_encoder("mobilebert", "MobileBert", segments=True, embedding_size=8, intra_bottleneck_size=8, true_hidden_size=8)
_encoder("squeezebert", "SqueezeBert", segments=True, embedding_size=16, q_groups=2, k_groups=2, v_groups=2)
_encoder("nystromformer", "Nystromformer", segments=True, num_landmarks=8, segment_means_seq_len=8)
_encoder("roformer", "RoFormer", segments=True, embedding_size=16)
_encoder("longformer", "Longformer", attention_window=[4, 4], segments=True)
_encoder("big_bird", "BigBird", segments=True, attention_type="original_full")
_encoder("layoutlm", "LayoutLM", segments=True, boxes=True, max_2d_position_embeddings=1024)
_encoder(
    "lilt",
    "Lilt",
    "ForTokenClassification",
    boxes=True,
    max_2d_position_embeddings=1024,
    channel_shrink_ratio=2,
    hidden_size=24,
)
_encoder("rembert", "RemBert", segments=True, input_embedding_size=8, output_embedding_size=12)
_encoder("modernbert", "ModernBert", pad_token_id=0, global_attn_every_n_layers=2, local_attention=4)
_encoder("ibert", "IBert", "ForSequenceClassification")
_encoder("esm", "Esm", pad_token_id=1, mask_token_id=4, position_embedding_type="rotary", token_dropout=True)
_encoder("megatron_bert", "MegatronBert", segments=True)


def _fnet() -> Built:
    tokens = _tokens()
    inputs = {"input_ids": tokens, "token_type_ids": _segments(), "labels": tokens}
    return _model("FNet", "FNetForMaskedLM", **TINY), inputs


def _funnel() -> Built:
    model = _model(
        "Funnel",
        "FunnelForMaskedLM",
        vocab_size=VOCABULARY,
        block_sizes=[1, 1],
        num_decoder_layers=1,
        d_model=16,
        n_head=2,
        d_head=8,
        d_inner=24,
    )
    tokens, mask = _tokens(), _mask()
    inputs = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": _segments()}
    return model, inputs | {"labels": _labels(tokens, mask)}


def _xlnet() -> Built:
    model = _model("XLNet", "XLNetLMHeadModel", vocab_size=VOCABULARY, d_model=16, n_layer=2, n_head=2, d_inner=24)
    tokens, mask = _tokens(), _mask()
    inputs = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": _segments()}
    return model, inputs | {"labels": _labels(tokens, mask)}


def _xlm() -> Built:
    model = _model("XLM", "XLMWithLMHeadModel", vocab_size=VOCABULARY, emb_dim=16, n_layers=2, n_heads=2, n_langs=2)
    tokens, mask = _tokens(), _mask()
    inputs = {"input_ids": tokens, "attention_mask": mask, "langs": _segments(), "labels": tokens}
    return model, inputs


def _canine() -> Built:
    settings = TINY | {"local_transformer_stride": 4, "num_hash_functions": 2, "num_hash_buckets": 32}
    settings |= {"downsampling_rate": 4, "upsampling_kernel_size": 2, "max_position_embeddings": 64}
    model = _model("Canine", "CanineForSequenceClassification", **settings)
    inputs = {"input_ids": _tokens(16), "attention_mask": _mask(16), "token_type_ids": _segments(16)}
    return model, inputs | {"labels": torch.tensor([0, 1])}


def _tapas() -> Built:
    model = _model("Tapas", "TapasForQuestionAnswering", **TINY)
    kinds = torch.zeros(BATCH, LENGTH, 7, dtype=torch.long)
    kinds[:, 3:, 0] = 1  # segments
    kinds[:, 3:, 1] = torch.tensor([1, 2, 1, 2, 1])  # columns
    kinds[:, 3:, 2] = torch.tensor([1, 1, 2, 2, 3])  # rows
    labels = torch.zeros(BATCH, LENGTH, dtype=torch.long)
    labels[:, 4] = 1
    return model, {"input_ids": _tokens(), "attention_mask": _mask(), "token_type_ids": kinds, "labels": labels}


for _build in (_fnet, _funnel, _xlnet, _xlm, _canine, _tapas):
    _architecture(_build.__name__.strip("_"), _build)


# ------------------------------------------------------------------------------------------------- decoders


def _decoder(name: str, config: str, head: str = "ForCausalLM", left: bool = False, **settings: Any) -> None:
    def build() -> Built:
        model = _model(config, config + head, **(TINY | {"num_key_value_heads": 1} | settings))
        tokens, mask = _tokens(), _mask(left=left)
        return model, {"input_ids": tokens, "attention_mask": mask, "labels": _labels(tokens, mask)}

    _architecture(name, build)


_GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 12}

_decoder("gpt2", "GPT2", "LMHeadModel", **_GPT2)
_decoder("gpt_neo", "GPTNeo", num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]], window_size=4)
_decoder("gpt_neox", "GPTNeoX", bos_token_id=0, eos_token_id=0)
_decoder("gptj", "GPTJ", rotary_dim=4, bos_token_id=0, eos_token_id=0, **_GPT2)
_decoder("gpt_bigcode", "GPTBigCode", **_GPT2)
_decoder("codegen", "CodeGen", rotary_dim=4, **(_GPT2 | {"num_attention_heads": 4, "n_head": 4}))
_decoder("opt", "OPT", ffn_dim=24, word_embed_proj_dim=16)
_decoder("bloom", "Bloom", n_layer=2, n_head=2)
_decoder("biogpt", "BioGpt")
_decoder("xglm", "XGLM", d_model=16, ffn_dim=24, num_layers=2, attention_heads=2)
_decoder("mpt", "Mpt", d_model=16, n_heads=2, n_layers=2, max_seq_len=32, expansion_ratio=2)
_decoder("llama", "Llama", left=True)
_decoder("mistral", "Mistral", sliding_window=4)
_decoder("qwen2", "Qwen2")
_decoder("qwen3", "Qwen3", head_dim=8)
_decoder("gemma", "Gemma", head_dim=8)
_decoder("gemma2", "Gemma2", head_dim=8, sliding_window=4, query_pre_attn_scalar=8)
_decoder("phi", "Phi", partial_rotary_factor=0.5)
_decoder("phi3", "Phi3", pad_token_id=0)
_decoder("falcon", "Falcon", alibi=False)
_decoder("cohere", "Cohere")
_decoder("olmo2", "Olmo2")
_decoder("stablelm", "StableLm")
_decoder("starcoder2", "Starcoder2")
_decoder("granite", "Granite")
_decoder("nemotron", "Nemotron")
_decoder("mixtral", "Mixtral", num_local_experts=4, num_experts_per_tok=2, output_router_logits=True)
_decoder("qwen2_moe", "Qwen2Moe", num_experts=4, shared_expert_intermediate_size=12, **_EXPERTS)
_decoder("qwen3_moe", "Qwen3Moe", num_experts=4, head_dim=8, output_router_logits=True, **_EXPERTS)
_decoder("olmoe", "Olmoe", num_experts=4, num_experts_per_tok=2)
_decoder("granitemoe", "GraniteMoe", num_local_experts=4, num_experts_per_tok=2)
_decoder(
    "deepseek_v3",
    "DeepseekV3",
    n_routed_experts=4,
    n_group=2,
    topk_group=1,
    first_k_dense_replace=1,
    kv_lora_rank=8,
    q_lora_rank=8,
    qk_rope_head_dim=4,
    qk_nope_head_dim=4,
    v_head_dim=8,
    **(_EXPERTS | {"num_key_value_heads": 2}),
)
_decoder("gpt_oss", "GptOss", num_local_experts=4, num_experts_per_tok=2, head_dim=8, sliding_window=4)


def _gemma3() -> Built:
    settings = TINY | {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8}
    model = _model("Gemma3Text", "Gemma3ForCausalLM", **settings)
    tokens, mask = _tokens(), _mask()
    return model, {"input_ids": tokens, "attention_mask": mask, "labels": _labels(tokens, mask)}


def _ctrl() -> Built:
    model = _model(
        "CTRL", "CTRLLMHeadModel", vocab_size=VOCABULARY, n_positions=32, n_embd=16, dff=24, n_layer=2, n_head=2
    )
    tokens, mask = _tokens(), _mask()
    return model, {"input_ids": tokens, "attention_mask": mask, "labels": _labels(tokens, mask)}


def _llama_with_cache() -> Built:
    """The second step of a generation: a filled cache, and the mask of all that came before."""
    from transformers import DynamicCache

    model = _model("Llama", "LlamaForCausalLM", **(TINY | {"num_key_value_heads": 1}))
    cache = DynamicCache(config=model.config)
    for layer in range(2):
        cache.update(torch.randn(BATCH, 1, 5, 8), torch.randn(BATCH, 1, 5, 8), layer)
    mask = _mask(LENGTH, left=True)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, 5:]
    inputs = {"input_ids": _tokens(3), "attention_mask": mask, "position_ids": positions}
    return model, inputs | {"past_key_values": cache, "use_cache": True}


for _build in (_gemma3, _ctrl, _llama_with_cache):
    _architecture(_build.__name__.strip("_"), _build)


# ------------------------------------------------------------------------------------------------- encoder-decoders

_BART = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 1,
    "decoder_start_token_id": 2,
}
_T5 = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}


def _translator(name: str, config: str, head: str = "ForConditionalGeneration", **settings: Any) -> None:
    def build() -> Built:
        model = _model(config, config + head, **settings)
        tokens, mask = _tokens(), _mask()
        answer, answer_mask = _tokens(6), _mask(6)
        inputs = {
            "input_ids": tokens,
            "attention_mask": mask,
            "decoder_input_ids": torch.cat([torch.full((BATCH, 1), 2), answer[:, :-1]], 1),
            "decoder_attention_mask": answer_mask,
        }
        return model, inputs | {"labels": _labels(answer, answer_mask)}

    _architecture(name, build)


_translator("t5", "T5", decoder_start_token_id=0, **_T5)
_translator("mt5", "MT5", decoder_start_token_id=0, **_T5)
_translator("umt5", "UMT5", decoder_start_token_id=0, **_T5)
_translator("longt5", "LongT5", decoder_start_token_id=0, local_radius=3, **_T5)
_translator(
    "switch_transformers",
    "SwitchTransformers",
    decoder_start_token_id=0,
    num_experts=2,
    num_sparse_encoder_layers=1,
    num_sparse_decoder_layers=1,
    num_decoder_layers=2,
    expert_capacity=4,
    **_T5,
)
_translator("bart", "Bart", **_BART)
_translator("mbart", "MBart", **_BART)
_translator("marian", "Marian", "MTModel", **_BART)
_translator("pegasus", "Pegasus", **_BART)
_translator("blenderbot", "Blenderbot", **_BART)
_translator("m2m_100", "M2M100", **_BART)
_translator("plbart", "PLBart", **_BART)
_translator(
    "led",
    "LED",
    attention_window=4,
    max_encoder_position_embeddings=32,
    max_decoder_position_embeddings=32,
    **{k: v for k, v in _BART.items() if k != "max_position_embeddings"},
)
_translator(
    "prophetnet",
    "ProphetNet",
    vocab_size=VOCABULARY,
    hidden_size=16,
    encoder_ffn_dim=24,
    decoder_ffn_dim=24,
    num_encoder_layers=2,
    num_decoder_layers=2,
    num_encoder_attention_heads=2,
    num_decoder_attention_heads=2,
    max_position_embeddings=32,
    ngram=2,
    num_buckets=4,
    relative_max_distance=8,
)


# ------------------------------------------------------------------------------------------------- recurrent

_MAMBA = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "expand": 2}


def _recurrent(name: str, config: str, masked: bool = True, **settings: Any) -> None:
    def build() -> Built:
        model = _model(config, config + "ForCausalLM", **settings)
        tokens, mask = _tokens(), _mask(left=True)
        inputs = {"input_ids": tokens, "labels": _labels(tokens, mask)}
        return model, inputs | ({"attention_mask": mask} if masked else {})

    _architecture(name, build)


_recurrent("mamba", "Mamba", **_MAMBA)
_recurrent("falcon_mamba", "FalconMamba", **_MAMBA)
_recurrent("mamba2", "Mamba2", head_dim=8, num_heads=4, n_groups=1, chunk_size=4, **_MAMBA)
_recurrent("rwkv", "Rwkv", vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, context_length=16)
_recurrent(
    "jamba",
    "Jamba",
    **(TINY | {"num_key_value_heads": 1}),
    attn_layer_period=2,
    attn_layer_offset=1,
    expert_layer_period=2,
    expert_layer_offset=1,
    num_experts=2,
    num_experts_per_tok=1,
    use_mamba_kernels=False,
    mamba_d_state=4,
    mamba_dt_rank=4,
)
_recurrent(
    "recurrent_gemma",
    "RecurrentGemma",
    **(TINY | {"num_key_value_heads": 1}),
    lru_width=16,
    attention_window_size=4,
    block_types=["recurrent", "attention"],
)
_recurrent("lfm2", "Lfm2", **(TINY | {"num_key_value_heads": 1}), layer_types=["conv", "full_attention"])


# ------------------------------------------------------------------------------------------------- vision

_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 4,
}


def _vision(name: str, config: str, head: str = "ForImageClassification", **settings: Any) -> None:
    def build() -> Built:
        model = _model(config, config + head, **settings)
        inputs = {"pixel_values": _pixels(settings.get("image_size", 32))}
        if head == "ForImageClassification":
            inputs["labels"] = torch.tensor([0, 1])
        return model, inputs

    _architecture(name, build)


_vision("vit", "ViT", **_VIT)
_vision("deit", "DeiT", **_VIT)
_vision("vit_msn", "ViTMSN", **_VIT)
_vision("vit_mae", "ViTMAE", "ForPreTraining", decoder_hidden_size=16, decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2, decoder_intermediate_size=24, **_VIT)  # fmt: skip
_vision("dinov2", "Dinov2", **_VIT)
_vision("swin", "Swin", image_size=16, patch_size=2, embed_dim=8, depths=[2, 1], num_heads=[2, 2], window_size=4)
_vision("swinv2", "Swinv2", image_size=16, patch_size=2, embed_dim=8, depths=[2, 1], num_heads=[2, 2], window_size=4)
_vision("convnext", "ConvNext", hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])
_vision("convnextv2", "ConvNextV2", hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])
_vision("resnet", "ResNet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
_vision("regnet", "RegNet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=4)
_vision("bit", "Bit", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_groups=2)
_vision("efficientnet", "EfficientNet", in_channels=[32, 80], out_channels=[80, 80], kernel_sizes=[3, 3], strides=[1, 2],
        num_block_repeats=[1, 1], expand_ratios=[1, 4], depthwise_padding=[], hidden_dim=128, width_coefficient=0.1,
        depth_coefficient=1.0)  # fmt: skip
_vision("mobilenet_v2", "MobileNetV2", depth_multiplier=0.25)
_vision("poolformer", "PoolFormer", hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])
_vision("cvt", "Cvt", embed_dim=[8, 8, 8], num_heads=[1, 2, 2], depth=[1, 2, 3])
_vision("pvt", "Pvt", hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2], image_size=32)
_vision("levit", "Levit", image_size=32, kernel_size=3, stride=2, hidden_sizes=[8, 16], num_attention_heads=[2, 2],
        depths=[1, 1], key_dim=[4, 4], mlp_ratio=[2, 2], attention_ratio=[2, 2],
        down_ops=[["Subsample", 4, 2, 4, 2, 2], [""]])  # fmt: skip
_vision("mobilevit", "MobileViT", image_size=32, hidden_sizes=[8, 8, 8], neck_hidden_sizes=[4, 4, 4, 4, 4, 4, 8],
        num_attention_heads=2)  # fmt: skip
_vision("focalnet", "FocalNet", image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], hidden_sizes=[8, 16],
        focal_levels=[1, 1], focal_windows=[3, 3])  # fmt: skip


def _beit() -> Built:
    from transformers import BeitConfig, BeitForMaskedImageModeling

    model = BeitForMaskedImageModeling(
        BeitConfig(vocab_size=VOCABULARY, use_mask_token=True, use_relative_position_bias=True, **_VIT)
    )
    patches = torch.zeros(BATCH, 16, dtype=torch.bool)
    patches[:, ::3] = True
    labels = torch.randint(0, VOCABULARY, (int(patches.sum()),))
    return model, {"pixel_values": _pixels(), "bool_masked_pos": patches, "labels": labels}


def _segformer() -> Built:
    model = _model(
        "Segformer",
        "SegformerForSemanticSegmentation",
        hidden_sizes=[8, 8, 8, 8],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=8,
    )
    labels = torch.randint(0, 2, (BATCH, 32, 32))
    labels[:, :2] = 255  # ignored
    return model, {"pixel_values": _pixels(32), "labels": labels}


def _boxed() -> list[dict[str, Tensor]]:
    """What a detector is trained with: two things in the first picture, one in the second."""
    return [
        {"class_labels": torch.randint(0, 2, (count,)), "boxes": torch.rand(count, 4) * 0.4 + 0.1} for count in (2, 1)
    ]


def _yolos() -> Built:
    settings = _VIT | {"image_size": [16, 16], "num_detection_tokens": 4, "num_labels": 2}
    return _model("Yolos", "YolosForObjectDetection", **settings), {"pixel_values": _pixels(), "labels": _boxed()}


def _detr() -> Built:
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    config = DetrConfig(
        backbone_config=backbone,
        d_model=16,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        num_queries=4,
        num_labels=2,
    )
    mask = torch.ones(BATCH, 32, 32, dtype=torch.long)
    mask[1, :, 24:] = 0
    return DetrForObjectDetection(config), {"pixel_values": _pixels(32), "pixel_mask": mask, "labels": _boxed()}


def _dpt() -> Built:
    settings = _VIT | {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 8, 8, 8]}
    model = _model("DPT", "DPTForDepthEstimation", fusion_hidden_size=8, **settings)
    return model, {"pixel_values": _pixels()}


def _videomae() -> Built:
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    config = VideoMAEConfig(
        num_frames=4,
        tubelet_size=2,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=24,
        norm_pix_loss=True,
        **_VIT,
    )
    hidden = torch.zeros(BATCH, 32, dtype=torch.bool)
    hidden[:, ::2] = True
    return VideoMAEForPreTraining(config), {"pixel_values": torch.randn(BATCH, 4, 3, 16, 16), "bool_masked_pos": hidden}


def _timesformer() -> Built:
    model = _model("Timesformer", "TimesformerForVideoClassification", num_frames=2, **_VIT)
    return model, {"pixel_values": torch.randn(BATCH, 2, 3, 16, 16), "labels": torch.tensor([0, 1])}


def _sam() -> Built:
    from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

    config = SamConfig(
        vision_config=SamVisionConfig(
            hidden_size=16,
            output_channels=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
            window_size=2,
            num_pos_feats=8,
            mlp_dim=24,
            global_attn_indexes=[1],
        ),
        prompt_encoder_config=SamPromptEncoderConfig(
            hidden_size=16, image_size=32, patch_size=8, mask_input_channels=4
        ),
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=16, mlp_dim=24, num_hidden_layers=2, num_attention_heads=2, iou_head_hidden_dim=16
        ),
    )
    points = torch.randint(0, 32, (BATCH, 1, 2, 2)).float()
    labels = torch.tensor([[[1, 0]], [[1, 1]]])
    return SamModel(config), {"pixel_values": _pixels(32), "input_points": points, "input_labels": labels}


for _build in (_beit, _segformer, _yolos, _detr, _dpt, _videomae, _timesformer, _sam):
    _architecture(_build.__name__.strip("_"), _build)


# ------------------------------------------------------------------------------------------------- audio

_WAVE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": [8, 8],
    "conv_stride": [4, 2],
    "conv_kernel": [4, 3],
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer",
    "pad_token_id": 0,
    "mask_time_length": 2,
    "mask_time_prob": 0.2,
    "layerdrop": 0.0,
    "ctc_zero_infinity": True,
}


def _wave(name: str, config: str, **settings: Any) -> None:
    def build() -> Built:
        model = _model(config, config + "ForCTC", **(_WAVE | settings))
        mask = torch.ones(BATCH, 400, dtype=torch.long)
        mask[1, 320:] = 0
        labels = _tokens(5)
        labels[1, 3:] = -100
        return model, {"input_values": torch.randn(BATCH, 400), "attention_mask": mask, "labels": labels}

    _architecture(name, build)


_wave("wav2vec2", "Wav2Vec2")
_wave("hubert", "Hubert")
_wave("wavlm", "WavLM", num_buckets=8, max_bucket_distance=16)
_wave("unispeech_sat", "UniSpeechSat")
_wave("sew", "SEW", squeeze_factor=2)
_wave("wav2vec2_conformer", "Wav2Vec2Conformer", position_embeddings_type="rotary", conv_depthwise_kernel_size=3)


def _whisper() -> Built:
    settings = {k: v for k, v in _BART.items() if k != "max_position_embeddings"}
    model = _model(
        "Whisper",
        "WhisperForConditionalGeneration",
        num_mel_bins=8,
        max_source_positions=20,
        max_target_positions=16,
        bos_token_id=2,
        eos_token_id=3,
        **settings,
    )
    answer, mask = _tokens(6), _mask(6)
    heard = torch.ones(BATCH, 40, dtype=torch.long)
    heard[1, 30:] = 0
    return model, {
        "input_features": torch.randn(BATCH, 8, 40),
        "attention_mask": heard,
        "decoder_input_ids": answer,
        "decoder_attention_mask": mask,
        "labels": _labels(answer, mask),
    }


def _speech_to_text() -> Built:
    settings = {k: v for k, v in _BART.items() if k != "max_position_embeddings"}
    model = _model(
        "Speech2Text",
        "Speech2TextForConditionalGeneration",
        input_feat_per_channel=8,
        conv_channels=8,
        max_source_positions=64,
        max_target_positions=16,
        **settings,
    )
    answer, mask = _tokens(6), _mask(6)
    heard = torch.ones(BATCH, 40, dtype=torch.long)
    heard[1, 24:] = 0
    return model, {
        "input_features": torch.randn(BATCH, 40, 8),
        "attention_mask": heard,
        "decoder_input_ids": answer,
        "decoder_attention_mask": mask,
        "labels": _labels(answer, mask),
    }


def _audio_spectrogram_transformer() -> Built:
    settings = {k: v for k, v in _VIT.items() if k != "image_size"}
    model = _model("AST", "ASTForAudioClassification", max_length=16, num_mel_bins=8, frequency_stride=4, time_stride=4, **settings)  # fmt: skip
    return model, {"input_values": torch.randn(BATCH, 16, 8), "labels": torch.tensor([0, 1])}


def _encodec() -> Built:
    model = _model(
        "Encodec",
        "EncodecModel",
        num_filters=4,
        hidden_size=8,
        codebook_size=16,
        codebook_dim=8,
        num_lstm_layers=1,
        upsampling_ratios=[4, 2],
        target_bandwidths=[24.0],
        sampling_rate=8000,
    )
    for name, buffer in model.named_buffers():
        if name.endswith("codebook.embed"):  # all zeros until trained or loaded: every sound would have the same code
            buffer.normal_()
    return model, {"input_values": torch.randn(BATCH, 1, 64), "padding_mask": torch.ones(BATCH, 64, dtype=torch.bool)}


for _build in (_whisper, _speech_to_text, _audio_spectrogram_transformer, _encodec):
    _architecture(_build.__name__.strip("_"), _build)


# ------------------------------------------------------------------------------------------------- several senses

_TEXT_TOWER = {**TINY, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "projection_dim": 16}


def _text() -> Inputs:
    tokens = _tokens()
    tokens[:, -3] = 3  # the end, which some towers read
    return {"input_ids": tokens, "attention_mask": _mask()}


def _clip() -> Built:
    model = _model("CLIP", "CLIPModel", text_config=_TEXT_TOWER, vision_config=_VIT, projection_dim=16)
    return model, _text() | {"pixel_values": _pixels(), "return_loss": True}


def _chinese_clip() -> Built:
    model = _model("ChineseCLIP", "ChineseCLIPModel", text_config=TINY, vision_config=_VIT, projection_dim=16)
    return model, _text() | {"token_type_ids": _segments(), "pixel_values": _pixels(), "return_loss": True}


def _siglip() -> Built:
    model = _model("Siglip", "SiglipModel", text_config=_TEXT_TOWER, vision_config=_VIT)
    return model, _text() | {"pixel_values": _pixels(), "return_loss": True}


def _blip() -> Built:
    text = {**_TEXT_TOWER, "encoder_hidden_size": 16, "sep_token_id": 3, "is_decoder": True}
    model = _model("Blip", "BlipForConditionalGeneration", text_config=text, vision_config=_VIT, projection_dim=16)
    inputs = _text()
    return model, inputs | {"pixel_values": _pixels(), "labels": _labels(inputs["input_ids"], inputs["attention_mask"])}


def _vilt() -> Built:
    model = _model("Vilt", "ViltForQuestionAnswering", max_image_length=-1, num_labels=3, **(TINY | _VIT))
    pixel_mask = torch.ones(BATCH, 16, 16, dtype=torch.long)
    pixel_mask[1, :, 12:] = 0
    inputs = _text() | {"token_type_ids": _segments(), "pixel_values": _pixels(), "pixel_mask": pixel_mask}
    return model, inputs | {"labels": torch.rand(BATCH, 3)}


def _visual_bert() -> Built:
    model = _model("VisualBert", "VisualBertForPreTraining", visual_embedding_dim=8, **TINY)
    seen = torch.ones(BATCH, 3, dtype=torch.long)
    seen[1, 2] = 0
    tokens = _text()
    labels = torch.cat([_labels(tokens["input_ids"], tokens["attention_mask"]), torch.full((BATCH, 3), -100)], 1)
    return model, tokens | {
        "token_type_ids": _segments(),
        "visual_embeds": torch.randn(BATCH, 3, 8),
        "visual_attention_mask": seen,
        "visual_token_type_ids": torch.ones(BATCH, 3, dtype=torch.long),
        "labels": labels,
        "sentence_image_labels": torch.tensor([0, 1]),
    }


def _lxmert() -> Built:
    model = _model(
        "Lxmert",
        "LxmertModel",
        **{k: v for k, v in TINY.items() if k != "num_hidden_layers"},
        l_layers=1,
        x_layers=1,
        r_layers=1,
        visual_feat_dim=8,
    )
    seen = torch.ones(BATCH, 3, dtype=torch.long)
    seen[1, 2] = 0
    return model, _text() | {
        "token_type_ids": _segments(),
        "visual_feats": torch.randn(BATCH, 3, 8),
        "visual_pos": torch.rand(BATCH, 3, 4),
        "visual_attention_mask": seen,
    }


def _layoutlmv3() -> Built:
    settings = TINY | {"max_2d_position_embeddings": 1024, "coordinate_size": 3, "shape_size": 2, "input_size": 16}
    settings |= {"patch_size": 4, "rel_pos_bins": 8, "max_rel_pos": 16, "rel_2d_pos_bins": 8, "max_rel_2d_pos": 16}
    model = _model("LayoutLMv3", "LayoutLMv3ForTokenClassification", **settings)
    inputs = _text() | {"bbox": _boxes(), "pixel_values": _pixels()}
    return model, inputs | {"labels": _labels(inputs["input_ids"] % 2, inputs["attention_mask"])}


def _owlvit() -> Built:
    model = _model("OwlViT", "OwlViTForObjectDetection", text_config=_TEXT_TOWER, vision_config=_VIT, projection_dim=16)
    return model, _text() | {"pixel_values": _pixels()}


def _git() -> Built:
    model = _model("Git", "GitForCausalLM", vision_config=_VIT, **TINY)
    inputs = _text()
    return model, inputs | {"pixel_values": _pixels(), "labels": _labels(inputs["input_ids"], inputs["attention_mask"])}


def _llava() -> Built:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_VIT),
        text_config=LlamaConfig(**(TINY | {"num_key_value_heads": 1, "max_position_embeddings": 64})),
        image_token_index=4,
    )
    tokens = torch.cat([_tokens(1), torch.full((BATCH, 16), 4), _tokens(7)], 1)
    mask = _mask(24)
    inputs = {"input_ids": tokens, "attention_mask": mask, "pixel_values": _pixels()}
    return LlavaForConditionalGeneration(config), inputs | {"labels": _labels(tokens, mask)}


def _trocr() -> Built:
    from transformers import TrOCRConfig, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

    decoder = TrOCRConfig(
        vocab_size=VOCABULARY,
        d_model=16,
        decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=24,
        max_position_embeddings=32,
        cross_attention_hidden_size=16,
        is_decoder=True,
        add_cross_attention=True,
    )
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**_VIT), decoder)
    answer, mask = _tokens(6), _mask(6)
    inputs = {"pixel_values": _pixels(), "decoder_input_ids": answer, "decoder_attention_mask": mask}
    return VisionEncoderDecoderModel(config), inputs | {"labels": _labels(answer, mask)}


def _flava() -> Built:
    tower = TINY | _VIT
    model = _model(
        "Flava",
        "FlavaModel",
        text_config=tower,
        image_config=tower,
        multimodal_config=tower,
        projection_dim=16,
        hidden_size=16,
    )
    patches = torch.zeros(BATCH, 16, dtype=torch.long)
    patches[:, ::3] = 1
    inputs = _text() | {"token_type_ids": _segments(), "pixel_values": _pixels(), "bool_masked_pos": patches}
    return model, inputs


for _build in (
    _clip,
    _chinese_clip,
    _siglip,
    _blip,
    _vilt,
    _visual_bert,
    _lxmert,
    _layoutlmv3,
    _owlvit,
    _git,
    _llava,
    _trocr,
    _flava,
):
    _architecture(_build.__name__.strip("_"), _build)


# ------------------------------------------------------------------------------------------------- others


def _perceiver() -> Built:
    model = _model(
        "Perceiver",
        "PerceiverForMaskedLM",
        vocab_size=VOCABULARY,
        d_model=16,
        d_latents=16,
        num_latents=4,
        num_blocks=1,
        num_self_attends_per_block=2,
        num_self_attention_heads=2,
        num_cross_attention_heads=2,
        qk_channels=16,
        v_channels=16,
        max_position_embeddings=LENGTH,
    )
    tokens, mask = _tokens(), _mask()
    return model, {"inputs": tokens, "attention_mask": mask, "labels": _labels(tokens, mask)}


def _series() -> Inputs:
    past, future = 12, 4
    observed = torch.ones(BATCH, past)
    observed[1, :3] = 0
    future_observed = torch.ones(BATCH, future)
    future_observed[1, 3] = 0
    return {
        "past_values": torch.rand(BATCH, past) + 1,
        "past_time_features": torch.randn(BATCH, past, 1),
        "past_observed_mask": observed,
        "static_categorical_features": torch.tensor([[0], [2]]),
        "static_real_features": torch.randn(BATCH, 1),
        "future_values": torch.rand(BATCH, future) + 1,
        "future_time_features": torch.randn(BATCH, future, 1),
        "future_observed_mask": future_observed,
    }


_SERIES = {
    "prediction_length": 4,
    "context_length": 8,
    "lags_sequence": [1, 2, 3, 4],
    "num_time_features": 1,
    "num_static_categorical_features": 1,
    "num_static_real_features": 1,
    "cardinality": [3],
    "embedding_dimension": [2],
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
}


def _time_series_transformer() -> Built:
    return _model("TimeSeriesTransformer", "TimeSeriesTransformerForPrediction", **_SERIES), _series()


def _informer() -> Built:
    return _model("Informer", "InformerForPrediction", **_SERIES), _series()


def _autoformer() -> Built:
    settings = _SERIES | {"label_length": 4, "moving_average": 3}
    return _model("Autoformer", "AutoformerForPrediction", **settings), _series()


def _patchtst() -> Built:
    model = _model(
        "PatchTST",
        "PatchTSTForPrediction",
        num_input_channels=2,
        context_length=16,
        patch_length=4,
        patch_stride=4,
        d_model=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=24,
        prediction_length=4,
    )
    observed = torch.ones(BATCH, 16, 2, dtype=torch.bool)
    observed[1, :4] = False
    inputs = {"past_values": torch.randn(BATCH, 16, 2), "past_observed_mask": observed}
    return model, inputs | {"future_values": torch.randn(BATCH, 4, 2)}


def _patchtsmixer() -> Built:
    model = _model(
        "PatchTSMixer",
        "PatchTSMixerForPrediction",
        num_input_channels=2,
        context_length=16,
        patch_length=4,
        patch_stride=4,
        d_model=8,
        num_layers=2,
        prediction_length=4,
    )
    observed = torch.ones(BATCH, 16, 2, dtype=torch.bool)
    observed[1, :4] = False
    inputs = {"past_values": torch.randn(BATCH, 16, 2), "observed_mask": observed}
    return model, inputs | {"future_values": torch.randn(BATCH, 4, 2)}


def _decision_transformer() -> Built:
    model = _model(
        "DecisionTransformer",
        "DecisionTransformerModel",
        state_dim=5,
        act_dim=3,
        hidden_size=16,
        max_ep_len=32,
        n_layer=2,
        n_head=2,
        n_positions=64,
    )
    return model, {
        "states": torch.randn(BATCH, 6, 5),
        "actions": torch.randn(BATCH, 6, 3),
        "rewards": torch.randn(BATCH, 6, 1),
        "returns_to_go": torch.randn(BATCH, 6, 1),
        "timesteps": torch.arange(6).repeat(BATCH, 1),
        "attention_mask": _mask(6, left=True),
    }


for _build in (
    _perceiver,
    _time_series_transformer,
    _informer,
    _autoformer,
    _patchtst,
    _patchtsmixer,
    _decision_transformer,
):
    _architecture(_build.__name__.strip("_"), _build)
