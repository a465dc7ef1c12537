"""What the modules of real architectures are handed and never use: the input audit in plain PyTorch.

Three Hugging Face models, built from a config with random weights, so nothing is downloaded. Each runs one batch, forward
and backward, under ``audit_inputs``; what is found is printed with its cause and its fix.

Run it (it needs the extra ``hf``: ``pip install -c constraints.txt -e '.[demo,hf]'``)::

    python examples/inputs.py
    python examples/inputs.py whisper
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from lightning_freeze import Finding, audit_inputs
from lightning_freeze.report.inputs_table import print_inputs

Built = tuple[nn.Module, dict[str, Tensor]]


def swin() -> Built:
    """Swin Transformer V2: a residual moved out of the attention's output, its argument stayed."""
    from transformers import Swinv2Config, Swinv2ForImageClassification

    config = Swinv2Config(
        image_size=32, patch_size=4, embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=4, num_labels=10
    )
    images, labels = torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,))
    return Swinv2ForImageClassification(config), {"pixel_values": images, "labels": labels}


def whisper() -> Built:
    """Whisper: the encoder takes an attention mask, which only its SpecAugment would read."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=64, num_mel_bins=8, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=20,
        max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    features, mask = torch.randn(2, 8, 40), torch.ones(2, 40, dtype=torch.long)
    labels = torch.randint(3, 64, (2, 6))
    return WhisperForConditionalGeneration(config), {
        "input_features": features,
        "attention_mask": mask,
        "labels": labels,
    }


def llama() -> Built:
    """Llama: position ids go down to where the rotary embedding has long been computed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    tokens = torch.randint(3, 64, (2, 12))
    return LlamaForCausalLM(config), {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "labels": tokens,
    }


MODELS: dict[str, Callable[[], Built]] = {"swin": swin, "whisper": whisper, "llama": llama}


def audited(name: str) -> list[Finding]:
    """The findings of one model's batch."""
    torch.manual_seed(0)
    model, batch = MODELS[name]()
    with audit_inputs(model) as audit:
        model(**batch).loss.backward()
    return audit.findings


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Audit the models that are asked for, and print what is found; returns it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="*", default=[], help=f"of {', '.join(MODELS)}; by default all")
    asked = parser.parse_args(arguments).models or list(MODELS)
    if unknown := [name for name in asked if name not in MODELS]:
        parser.error(f"{unknown[0]!r} is no model of this example. Known: {', '.join(MODELS)}.")
    console = Console()
    found = {name: audited(name) for name in asked}
    for name, findings in found.items():
        console.rule(name)
        print_inputs(console, findings)
    return found


if __name__ == "__main__":
    main()
