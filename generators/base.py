"""The base class `Generator` and what its training step returns."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.low_bit_attention.op import LowBitPrecision
from ..tokenizers.base import Tokenizer
from ..tokens.tokens import Tokens, TokenSpec
from .networks.attention import AttentionBackend


@dataclass(frozen=True, eq=False)
class GeneratorOutput:
    """One training step of a generator.

    Args:
        loss: What to minimise, a scalar: a mean.
        weight: What the mean was divided by, a scalar. Means of several processes are averaged
            with these weights.
        metrics: Sum and count, (2,) float32, of everything worth watching, by name. Sums and
            counts add up over steps and processes; a count may be 0.
    """

    loss: Tensor
    weight: Tensor
    metrics: dict[str, Tensor]


class Generator(nn.Module):
    """A model of `Tokens`, given labels.

    `forward` is the training step, always: only it synchronises gradients between processes.
    Labels are (B,) int64 in [0, num_classes); -1 and `num_classes` both mean "no label".

    Attributes:
        config: The dataclass it was built from.
        spec: The tokens that it learns and emits.
        num_classes: Number of labels; 0: unconditional.
        classes: Names by label, if the training data had any.
        monitor: The metric that says how well it predicts, the smaller the better.
        uniform_loss: Loss of knowing nothing, in nats, where the loss is a cross-entropy.
        fingerprint: Hash of config and weights, once loaded from a folder.
        card: What the folder says of the model, once loaded.
    """

    config: Any
    spec: TokenSpec
    num_classes: int
    classes: tuple[str, ...] = ()
    monitor: str = "masked_loss"
    uniform_loss: float | None = None
    fingerprint: str | None = None
    card: dict[str, Any] | None = None

    def forward(
        self, tokens: Tokens, labels: Tensor | None = None, *, seeds: Tensor | None = None
    ) -> GeneratorOutput:
        """The training step.

        Args:
            tokens: Of this generator's spec.
            labels: (B,) int64, or None for none.
            seeds: One per image, (B,) int64: everything drawn for an image (but dropout) depends
                on its seed alone. None: drawn from torch's global generator.
        """
        raise NotImplementedError

    def fill_missing_labels(
        self, labels: Tensor | None, batch: int, device: torch.device
    ) -> Tensor:
        """Labels with every "no label" as `num_classes`, (B,) int64, a new tensor."""
        if labels is None or self.num_classes == 0:
            return torch.full((batch,), self.num_classes, dtype=torch.int64, device=device)
        return torch.where(labels < 0, self.num_classes, labels)

    def calibrate(self, tokens: Tokens, labels: Tensor, *, seed: int) -> None:
        """Fit what is not learned by gradients; training calls it once, before its first step.

        Args:
            tokens: A first batch.
            labels: Its labels, (B,) int64.
            seed: Of all that is drawn.
        """

    @property
    def attention(self) -> str:
        """How attention is computed, for records."""
        raise NotImplementedError

    def set_attention_backend(
        self, backend: AttentionBackend, low_bit_precision: LowBitPrecision | None = None
    ) -> None:
        """Compute attention by this backend from now on; config and files keep theirs.

        Args:
            backend: One of `AttentionBackend`.
            low_bit_precision: Of `low_bit`; None: the config's.

        Raises:
            RuntimeError: If the backend is not installed.
            ValueError: If this generator's attention is not computed by it.
        """
        raise NotImplementedError

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that decodes its tokens; not a part of the module (no weights, no `to`).

        Raises:
            RuntimeError: If none was attached; `load_generator` does that.
        """
        attached: list[Tokenizer] = self.__dict__.get("_tokenizer", [])
        if not attached:
            raise RuntimeError("this generator has no tokenizer: set generator.tokenizer to one")
        return attached[0]

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer) -> None:
        if tokenizer.spec != self.spec:
            raise ValueError(
                f"the generator emits {self.spec}, the tokenizer reads {tokenizer.spec}"
            )
        self.__dict__["_tokenizer"] = [tokenizer]  # a list, so that it is no submodule

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "tokenizer":  # nn.Module would register it and never ask the property
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def num_parameters(self) -> dict[str, int]:
        """Parameters of each direct child, of loose parameters, and the `total`."""
        counts = {
            name: sum(p.numel() for p in child.parameters())
            for name, child in self.named_children()
        }
        counts |= {name: p.numel() for name, p in self.named_parameters(recurse=False)}
        return counts | {"total": sum(p.numel() for p in self.parameters())}
