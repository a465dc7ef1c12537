"""Small models and real data to try things on, as Lightning ships ``demos``."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_freeze.trainer.seam import PACKAGES, LightningDataModule, LightningModule, log_levels_restored


class MissingPackageError(ImportError):
    """A package that a demo needs is not installed; the message names the extras that install it."""

    def __init__(self, kind: type, package: str, extras: str) -> None:
        self.kind = kind.__name__
        super().__init__(
            f"{self.kind} needs the package {package}, which is not installed. In a checkout of lightning-freeze, run "
            f"pip install -c constraints.txt -e '.[{extras}]'.",
            name=package,
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the tables, notes and warnings of Trainers, of which many in a row would fill the screen."""
    loggers = [logging.getLogger(name) for name in (*PACKAGES, "lightning_freeze")]
    with log_levels_restored(loggers), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield


class _Classifier(LightningModule):
    """Trains by cross-entropy with AdamW; logs ``train_loss``, ``val_loss`` and ``val_accuracy``."""

    lr: float

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The cross-entropy of a batch."""
        loss = functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the loss and the accuracy."""
        images, labels = batch
        logits = self(images)
        self.log("val_loss", functional.cross_entropy(logits, labels))
        self.log("val_accuracy", (logits.argmax(1) == labels).float().mean(), prog_bar=True)

    test_step = validation_step

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The most likely class of each image."""
        prediction: Tensor = self(batch[0]).argmax(1)
        return prediction

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over the parameters that require gradients."""
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=self.lr)


class TwoLayerNet(_Classifier):
    """Two linear layers without bias, with a ReLU between.

    Args:
        features: Size of an input, flattened.
        hidden: Width between the layers.
        classes: Number of classes.
        lr: Learning rate of AdamW.

    Example:
        >>> TwoLayerNet()(torch.zeros(2, 64)).shape
        torch.Size([2, 10])
    """

    def __init__(self, features: int = 64, hidden: int = 32, classes: int = 10, lr: float = 1e-2) -> None:
        super().__init__()
        self.layer1 = nn.Linear(features, hidden, bias=False)
        self.layer2 = nn.Linear(hidden, classes, bias=False)
        self.lr = lr

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (batch, classes) for inputs of shape (batch, …)."""
        logits: Tensor = self.layer2(functional.relu(self.layer1(x.flatten(1))))
        return logits


class LoRALinear(nn.Linear):
    """A frozen linear layer and a low-rank update that trains: W + B A (arXiv 2106.09685)."""

    def __init__(self, features: int, out: int, rank: int) -> None:
        super().__init__(features, out)
        self.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.randn(rank, features) / features**0.5)
        self.lora_b = nn.Parameter(torch.zeros(out, rank))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of shape (…, out) for inputs of shape (…, features)."""
        return super().forward(x) + x @ self.lora_a.T @ self.lora_b.T


class MixerBlock(nn.Module):
    """Mixes tokens, then channels, each by a small network beside a skip connection."""

    def __init__(self, tokens: int, width: int, lora: int = 0) -> None:
        super().__init__()

        def mlp(size: int) -> nn.Sequential:
            first, last = (
                LoRALinear(*shape, lora) if lora else nn.Linear(*shape)
                for shape in ((size, 2 * size), (2 * size, size))
            )
            return nn.Sequential(first, nn.GELU(), last)

        self.norm1 = nn.LayerNorm(width)
        self.tokens = mlp(tokens)
        self.norm2 = nn.LayerNorm(width)
        self.channels = mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens of shape (batch, tokens, width) for such."""
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        mixed: Tensor = x + self.channels(self.norm2(x))
        return mixed


class DigitsMixer(_Classifier):
    """An MLP-Mixer (arXiv 2105.01601) of eight blocks that reads digits: deep enough to freeze layer by layer.

    Its parts are ``embed``, ``position``, ``blocks``, ``norm`` and ``head``.

    Args:
        width: Number of channels.
        depth: Number of blocks.
        lr: Learning rate of AdamW.
        lora: Rank of low-rank updates in the blocks, whose own weights are then frozen; 0 for none.

    Example:
        >>> DigitsMixer(depth=2)(torch.zeros(3, 8, 8)).shape
        torch.Size([3, 10])
    """

    def __init__(self, width: int = 32, depth: int = 8, lr: float = 2e-3, lora: int = 0) -> None:
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.position = nn.Parameter(torch.zeros(16, width))
        self.blocks = nn.ModuleList(MixerBlock(16, width, lora) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)
        self.lr = lr

    def forward(self, images: Tensor) -> Tensor:
        """Logits of shape (batch, 10) for images of shape (batch, 8, 8)."""
        patches = images.unfold(1, 2, 2).unfold(2, 2, 2).flatten(3).flatten(1, 2)
        x: Tensor = self.embed(patches) + self.position
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


class DigitsGAN(LightningModule):
    """A small GAN in manual optimization: the discriminator steps first, then the generator.

    A schedule of the groups ``generator`` and ``discriminator`` decides which of them trains.

    Args:
        latent: Size of the noise.
        hidden: Width of both networks.
        lr: Learning rate of both.
    """

    def __init__(self, latent: int = 16, hidden: int = 64, lr: float = 2e-3) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.latent = latent
        self.lr = lr
        self.generator = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, 64), nn.Sigmoid())
        self.discriminator = nn.Sequential(nn.Linear(64, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, 1))

    def forward(self, noise: Tensor) -> Tensor:
        """Images of shape (batch, 64) for noise of shape (batch, latent)."""
        images: Tensor = self.generator(noise)
        return images

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """One step of each optimizer."""
        optimizers: Any = self.optimizers()
        for_generator, for_discriminator = optimizers
        real = batch[0].flatten(1)
        noise = torch.randn(len(real), self.latent, device=self.device)
        fake = self(noise)

        scores = self.discriminator(torch.cat([real, fake.detach()]))
        truth = torch.cat([torch.ones(len(real), 1), torch.zeros(len(real), 1)]).to(scores)
        loss = functional.binary_cross_entropy_with_logits(scores, truth)
        for_discriminator.zero_grad()
        self.manual_backward(loss)
        for_discriminator.step()

        deceived = self.discriminator(fake)
        for_generator.zero_grad()
        self.manual_backward(functional.binary_cross_entropy_with_logits(deceived, torch.ones_like(deceived)))
        for_generator.step()
        self.log("discriminator_loss", loss)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log ``val_deceived``: the share of generated images that the discriminator takes for real."""
        noise = torch.randn(len(batch[0]), self.latent, device=self.device)
        deceived = (self.discriminator(self(noise)) > 0).float().mean()
        self.log("val_deceived", deceived, prog_bar=True)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """One Adam for each network, the generator's first."""
        networks = (self.generator, self.discriminator)
        return [torch.optim.Adam(network.parameters(), lr=self.lr, betas=(0.5, 0.999)) for network in networks]


class DigitsSwin(_Classifier):
    """A Hugging Face Swin Transformer V2, tiny and with random weights, that reads digits; nothing is downloaded.

    An example for the input audit: its attention passes a tensor to a module that never uses it.

    Args:
        width: Channels of the first stage.
        depths: Blocks in each stage.
        lr: Learning rate of AdamW.

    Raises:
        MissingPackageError: ``transformers`` is not installed.
    """

    def __init__(self, width: int = 24, depths: tuple[int, int] = (2, 2), lr: float = 2e-3) -> None:
        super().__init__()
        try:
            from transformers import Swinv2Config, Swinv2ForImageClassification
        except ImportError as error:
            raise MissingPackageError(type(self), "transformers", "demo,hf") from error
        options: dict[str, Any] = {
            **{"image_size": 8, "patch_size": 1, "num_channels": 1, "window_size": 4, "num_labels": 10},
            **{"embed_dim": width, "depths": list(depths), "num_heads": [2, 4]},
        }
        self.model = Swinv2ForImageClassification(Swinv2Config(**options))
        self.lr = lr

    def forward(self, images: Tensor) -> Tensor:
        """Logits of shape (batch, 10) for images of shape (batch, 8, 8)."""
        logits: Tensor = self.model(pixel_values=images.unsqueeze(1)).logits
        return logits


class DigitsData(LightningDataModule):
    """scikit-learn's 1,797 handwritten digits of 8×8 pixels: real data that ships in the wheel.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository.

    Args:
        batch_size: Images in a batch.
        validation: Share of the images that is kept for validation.
        shuffle: Whether the training images are shuffled in every epoch.
    """

    def __init__(self, batch_size: int = 64, validation: float = 0.2, shuffle: bool = True) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.validation = validation
        self.shuffle = shuffle

    def setup(self, stage: str) -> None:
        """Load the digits and split them, with a fixed seed."""
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise MissingPackageError(type(self), "scikit-learn", "demo") from error
        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32) / 16
        labels = torch.tensor(digits.target)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        held_out = int(len(images) * self.validation)
        self.held_out = TensorDataset(images[order[:held_out]], labels[order[:held_out]])
        self.train = TensorDataset(images[order[held_out:]], labels[order[held_out:]])

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """The training images."""
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=self.shuffle)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """The images kept for validation."""
        return DataLoader(self.held_out, batch_size=self.batch_size)

    test_dataloader = predict_dataloader = val_dataloader
