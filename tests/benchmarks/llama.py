"""Peak memory of a Llama of a billion parameters in bf16 under the BAdam recipe, beside the package and the formulas.

Weights are random. The package keeps a master copy of the active block in fp32 and steps that; ours steps the bf16
weights themselves, with state in bf16. So the bytes differ by what the two compute, too, which the rows say.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from tests.benchmarks.badam import by_package, recipe
from tests.benchmarks.checks import WrongTraining, check_moved, weights
from tests.benchmarks.models import task
from tests.benchmarks.ratios import Ratio
from tests.benchmarks.turns import fit, peak_bytes, threads_for, why

BILLION = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
}
TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
UPDATES = 2


class Llama(nn.Module):
    """A Llama with random weights in bf16, checkpointed layer by layer, as such models are trained where memory is short."""

    def __init__(self, sizes: dict[str, int]) -> None:
        super().__init__()
        transformers = importlib.import_module("transformers")
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)  # never in fp32, not even while it is made: that would be the peak
        try:
            self.model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, use_cache=False))
        finally:
            torch.set_default_dtype(before)
        old, new = "gradient_checkpointing_enable", "activation_checkpointing_enable"  # renamed within transformers 5
        getattr(self.model, new, getattr(self.model, old))({"use_reentrant": False})
        self.model.disable_input_require_grads()  # it turned them on, and the backward would go on below what trains

    def loss(self, tokens: Tensor) -> Tensor:
        return self.model(input_ids=tokens, labels=tokens).loss  # type: ignore[no-any-return]


def train(who: str, sizes: dict[str, int], length: int, device: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """One pass over the layers, by ours or by the package.

    Returns:
        What was trained, and its weights from before.
    """
    layers = sizes["num_hidden_layers"]
    torch.manual_seed(0)
    with torch.device(device):
        net = Llama(sizes)
    callbacks = []
    if who == "badam":
        module = by_package(net, [f"net.model.model.layers.{n}." for n in range(layers)], UPDATES)
    else:
        module = task(net)
        callbacks = [recipe("net.model.model.layers.*", UPDATES)]
    before = weights(module)
    data = [torch.randint(sizes["vocab_size"], (1, length), device=device)] * (UPDATES * layers + 1)
    fit(module, data, device, *callbacks)
    return module, before


def peak(who: str, sizes: dict[str, int], length: int, device: str) -> tuple[int, int]:
    """The most bytes at once of a verified run, and the number of parameters.

    Raises:
        WrongTraining: A layer did not move, or something else did.
    """
    kept: list[Any] = []
    most = peak_bytes(lambda: kept.extend(train(who, sizes, length, device)), device)
    module, before = kept
    after = weights(module)
    layers = {name for name in before if ".layers." in name}
    # in bf16 a norm's weight, which is 1, can stay where it is: an update of 0.0001 is below half its last bit
    unsure = {name for name in layers if before[name].ndim < 2}
    both = [{name: value for name, value in part.items() if name not in unsure} for part in (before, after)]
    check_moved(f"{who}, Llama", *both, layers - unsure)
    return most, sum(value.numel() for value in before.values())


def measure(device: str, rounds: int, quick: bool = False) -> list[Ratio]:
    """Bytes, so one run of each says it.

    Args:
        device: ``cuda``; on ``cpu`` there are only tiny figures, of `quick`.
        rounds: Not used: each would have the same bytes.
        quick: A tiny model, to see that it runs.
    """
    sizes, length = (TINY, 8) if quick else (BILLION, 512)
    depth = sizes["num_hidden_layers"]
    figure, package = f"peak memory, Llama of {depth} layers in bf16, BAdam recipe, K={UPDATES}", "package badam"
    if device != "cuda" and not quick:
        return [Ratio(figure, package, [], 1.0, note="needs a GPU")]
    with threads_for(device):
        try:
            ours, parameters = peak("ours", sizes, length, device)
        except ImportError as error:
            return [Ratio(figure, package, [], 1.0, note=why("Llama", error))]
        try:
            theirs, missing = peak("badam", sizes, length, device)[0], ""
        except WrongTraining:
            raise
        except Exception as error:
            theirs, missing = 0, why("badam", error)

    def row(
        over: str, other: float, aim: float | None = None, note: str = "", more: float = 0, what: str = ""
    ) -> Ratio:
        mine = ours + more
        sizes_in_note = f"{mine / 1e9:.3g} to {other / 1e9:.3g} GB of {parameters / 1e9:.3g} billion parameters"
        return Ratio(figure + what, over, [mine / other], aim, note=f"{sizes_in_note}{note}")

    def fits(peak_of_one: int) -> float:
        return 24e9 / (peak_of_one / parameters) / 1e9

    largest = "largest model in 24 GB by bytes a parameter, BAdam recipe"
    lost = [Ratio(figure, package, [], 1.0, note=missing), Ratio(largest, package, [], note=missing)]
    # What ours would need on top for fp32 weights, gradients and averages of the active block, 16 bytes each instead of 6.
    copies = 10 * parameters / depth
    counted, as_it_is = ", fp32 copies counted", "; badam has copies of the active block in fp32, ours steps bf16"
    beside = [
        row(package, theirs, 1.0, more=copies, what=counted),
        row(package, theirs, note=as_it_is),
        Ratio(largest, package, [theirs / ours], note=f"{fits(ours):.3g} to {fits(theirs):.3g} billion"),
    ] if theirs else lost  # fmt: skip
    return [
        *beside,
        row(
            f"the paper's 2M + 16M/D bytes, D={depth}",
            2 * parameters + 16 * parameters / depth,
            more=copies,
            what=counted,
        ),
        row("plain AdamW's 18M bytes", 18 * parameters, note=f"; by ours {fits(ours):.3g} billion fit in 24 GB"),
    ]
