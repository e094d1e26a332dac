"""BiGR (arXiv:2410.14672): a masked bidirectional transformer with a Bernoulli-diffusion head.

Tokens enter as their bits, hidden ones as one learned vector; the trunk (`networks/llama.py`) turns
them into a condition for every position, and the head (`networks/binary_transcoder.py`) denoises
the bits of a token given its condition, with a time of its own. The process is
`processes/bernoulli.py`, the sampler `sample/bigr.py`. The features between the blocks tell classes
apart (`evaluation/linear_probe.py`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import STRICT
from ..tokens.tokens import Tokens, TokenSpec
from .base import (
    AttentionTrunk,
    ConditionalConfig,
    Generator,
    GeneratorOutput,
    seeds_or_new,
    valid_positions,
)
from .bucket_metrics import bucket_metrics
from .conditions import TextCondition, TextConfig, TextTokens
from .networks.binary_transcoder import BinaryTranscoder, BinaryTranscoderConfig
from .networks.initialization import INITIAL_STD, initialize
from .networks.llama import LlamaConfig, LlamaTrunk
from .noise import uniform
from .processes.bernoulli import BernoulliDiffusion
from .processes.masking import MaskSchedule, hide_exactly, masked_share


@dataclass(frozen=True, kw_only=True)
class BigrConfig(ConditionalConfig):
    """BiGR; the defaults are the published BiGR-L, with the exact weights of the loss.

    Args:
        transformer: Settings of the trunk.
        head: Settings of the MLP that denoises a token.
        diffusion: Diffusion process, its loss and thereby its kernel. `weights: token` is the
            published loss, whose logits fit the kernel only in part where little noise is left.
        num_classes: Labels 0 to num_classes - 1; 0: unconditional; None: as many as the training
            data has (the training script fills it in).
        mask_schedule: Schedule gamma of the masked share of an image.
        mask_ratio: Unit for which the masked share is drawn: each `image`, or a whole `batch`
            (published) from the seed of its first image, so that the mask depends on the batch.
        label_dropout: Share of images whose label and text are hidden, so that guidance works.
        text: Text as a condition; None: the model reads none.
    """

    __pydantic_config__ = STRICT
    type: Literal["bigr"] = "bigr"
    transformer: LlamaConfig = field(default_factory=LlamaConfig)
    head: BinaryTranscoderConfig = field(default_factory=BinaryTranscoderConfig)
    diffusion: BernoulliDiffusion = field(default_factory=BernoulliDiffusion)
    num_classes: int | None = None
    mask_schedule: MaskSchedule = "cosine"
    mask_ratio: Literal["image", "batch"] = "image"
    label_dropout: float = 0.1
    text: TextConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.diffusion.weights == "image":
            raise ValueError(
                "diffusion.weights: image goes with one time per image; here a token has one: "
                "expected schedule or token"
            )

    def build(self, spec: TokenSpec) -> "BiGR":
        """The generator of this config for tokens of `spec`, freshly initialized."""
        return BiGR(self, spec)


class BiGR(Generator):
    """BiGR over the bits of a tokenizer.

    Args:
        config: Settings; `num_classes` must be given.
        spec: Spec of the tokenizer's tokens: every size a power of two.

    Raises:
        RuntimeError: If the attention backend is not installed.
        ValueError: If the tokens are not bits, `num_classes` is not given, or the heads do not fit
            the axes of the grid.
    """

    config: BigrConfig
    monitor = "masked_bits_per_dim"
    panels: ClassVar = {
        "bits of the model per bit of hidden tokens": [
            *("masked_bits_per_dim", "val_masked_bits_per_dim"),
        ],
        "accuracy": ["bit_accuracy", "val_bit_accuracy"],
    }

    def __init__(self, config: BigrConfig, spec: TokenSpec) -> None:
        super().__init__(config, spec)
        if not spec.is_binary:
            raise ValueError(
                f"BiGR reads bits, and {spec} has sizes that are not powers of two; "
                "use {type: maskgit}"
            )
        self.num_bits = spec.vocab_size.bit_length() - 1
        width = config.transformer.width
        self.input = nn.Linear(self.num_bits, width)
        self.mask_token = nn.Parameter(torch.randn(1, width))
        self.class_embedding = nn.Embedding(self.num_classes + 1, width)
        self.trunk = LlamaTrunk(config.transformer, spec.shape)
        self.position = nn.Parameter(torch.empty(1, spec.num_tokens, width))
        self.head = BinaryTranscoder(config.head, self.num_bits, width)
        self.apply(initialize)
        nn.init.normal_(self.position, std=INITIAL_STD)
        nn.init.zeros_(self.trunk.modulation.weight)
        self.head.start_at_zero()
        if config.text is not None:
            self.text = TextCondition(config.text, width)

    @property
    def diffusion(self) -> BernoulliDiffusion:
        """The diffusion process."""
        return self.config.diffusion

    def predict(
        self,
        bits: Tensor,
        mask: Tensor,
        classes: Tensor,
        valid: Tensor | None = None,
        text: TextTokens | None = None,
    ) -> Tensor:
        """Conditions of the head at every position, hidden or not, (B, N, D) float32.

        Args:
            bits: (B, N, K) int64 in {0, 1}; hidden ones are ignored.
            mask: True = hidden, (B, N) bool.
            classes: Class embeddings, (B, D): rows of `embed_classes`, or mixtures of them.
            valid: True at real positions, (B, N) bool; None: all.
            text: Tokens of the prompts; None: there are none.
        """
        x: Tensor = self.trunk(*self._embed(bits, mask, classes, valid, text))
        return x[:, -bits.shape[1] :].float() + self.position

    def predict_flips(self, bits: Tensor, t: Tensor, conditions: Tensor) -> Tensor:
        """Logits of the flips y = x_0 XOR x_t, in the sense of the loss; (..., K) float32.

        Args:
            bits: Noisy bits x_t of any tokens, (..., K) int64 in {0, 1}.
            t: Times in [1, T], int64 of a shape that broadcasts over that of the tokens.
            conditions: Output of `predict` at the positions of the tokens, (..., D).
        """
        logits: Tensor = self.head(bits, t, conditions)
        return logits

    def embed_classes(self, labels: Tensor) -> Tensor:
        """Class embeddings (B, D) of labels in [0, num_classes], (B,) int64."""
        embeddings: Tensor = self.class_embedding(labels)
        return embeddings

    @torch.no_grad()
    def features(
        self, tokens: Tokens, labels: Tensor | None = None, *, layers: Sequence[int] | None = None
    ) -> Tensor:
        """Mean over the positions of the hidden states after some blocks, (B, L, D) float32.

        Nothing is hidden, and there is no norm after the block.

        Args:
            tokens: Tokens of this generator's spec.
            labels: Labels, (B,) int64; None: no image has one.
            layers: Numbers of the blocks, from 0, in rising order; None: all.

        Raises:
            ValueError: If there is no such block, or the numbers do not rise.

        Source: arXiv:2410.14672 section 3.3 and its code.
        """
        count = self.config.transformer.num_layers
        wanted = list(range(count) if layers is None else layers)
        if not wanted or wanted != sorted(set(wanted)) or wanted[0] < 0 or wanted[-1] >= count:
            raise ValueError(
                f"layers: expected rising numbers from 0 to {count - 1}, found {wanted}"
            )
        bits, valid = self._read(tokens)
        classes = self.embed_classes(self.fill_missing_labels(labels, len(tokens), bits.device))
        nothing = torch.zeros(bits.shape[:2], dtype=torch.bool, device=bits.device)
        real = torch.ones_like(nothing) if valid is None else valid
        means = []
        for number, x in enumerate(self.trunk.layers(*self._embed(bits, nothing, classes, valid))):
            if number in wanted:
                means.append((x[:, 1:].float() * real[..., None]).sum(1) / real.sum(1, True))
            if number == wanted[-1]:
                break
        return torch.stack(means, 1)

    def forward(
        self,
        tokens: Tokens,
        labels: Tensor | None = None,
        prompts: Sequence[str] | None = None,
        *,
        seeds: Tensor | None = None,
    ) -> GeneratorOutput:
        """The loss of the hidden tokens, each at a random time of its own; see `Generator.forward`.

        Metrics, over the bits of hidden tokens: `masked_bits_per_dim`, an estimate of what coding
        a bit of one of them costs at most by the head's chain of all steps, given the visible
        tokens, and `masked_bits_per_dim_LOW_HIGH` of the images whose masked
        share is in that bucket, in percent; `flip_loss`, the cross-entropy of the calibrated
        prediction in nats; `bit_accuracy`, the share of bits of x_0 that it tells. With
        `weights: token` predictions are calibrated in part, and all three look worse for it.

        Source: arXiv:2410.14672 section 3.2 and its code.
        """
        x_0, valid = self._read(tokens)
        seeds = seeds_or_new(seeds, len(tokens), x_0.device)
        draws = uniform(seeds, 0, (2,))
        labels, text = self.training_conditions(labels, prompts, seeds, draws[:, 1])
        classes = self.embed_classes(labels)
        real = torch.ones(x_0.shape[:2], dtype=torch.bool, device=x_0.device)
        real = real if valid is None else valid
        ratio = draws[:, 0] if self.config.mask_ratio == "image" else draws[:1, 0]
        mask = self._hide(seeds, ratio, real)
        t = self.diffusion.draw_time(uniform(seeds, 2, x_0.shape[1:2]))
        x_t, flips = self.diffusion.corrupt(x_0, t, uniform(seeds, 3, x_0.shape[1:]))
        logits = self.predict_flips(x_t, t, self.predict(x_0, mask, classes, valid, text))
        loss = self.diffusion.loss_per_bit(logits, flips, t)
        count = mask.sum().float() * self.num_bits
        return GeneratorOutput(
            (loss * mask[..., None]).sum() / count,
            count,
            self._measure(logits.detach(), flips, t, mask, real),
        )

    @property
    def trunks(self) -> tuple[AttentionTrunk, ...]:
        """The trunk; the head has no attention."""
        return (self.trunk,)

    def _embed(
        self,
        bits: Tensor,
        mask: Tensor,
        classes: Tensor,
        valid: Tensor | None,
        text: TextTokens | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Input of the trunk: hidden states (B, L + 1 + N, D), condition (B, D), real positions."""
        visible = self.input(bits.to(self.input.weight.dtype)).to(self.mask_token.dtype)
        x = torch.where(mask[..., None], self.mask_token, visible)
        classes = classes if text is None else classes + text.pooled
        x = torch.cat([classes[:, None], x], 1)
        valid = None if valid is None else F.pad(valid, (1, 0), value=True)
        if text is not None:
            x, valid = text.prepend_to(x, valid)
        return x, classes, valid

    def _hide(self, seeds: Tensor, ratio: Tensor, real: Tensor) -> Tensor:
        """The tokens to predict, (B, N) bool: floor(gamma(i / n) n) of the n real ones, at least 1.

        Args:
            seeds: One seed per image, (B,) int64.
            ratio: Uniform numbers, (B,) or (1,); i = floor(ratio n).
            real: True at real positions, (B, N) bool.
        """
        total = real.sum(1)
        share = masked_share((ratio * total).floor().double() / total, self.config.mask_schedule)
        count = (share * total + 1e-9).floor().clamp(min=1)
        return hide_exactly(count, real, uniform(seeds, 1, real.shape[1:]))

    def _read(self, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
        """Bits (B, N, K) and the real positions; None: all."""
        bits = tokens.require(self.spec, reader="this generator").bits()
        return bits, valid_positions(tokens)

    def _measure(
        self, logits: Tensor, flips: Tensor, t: Tensor, mask: Tensor, real: Tensor
    ) -> dict[str, Tensor]:
        """The metrics of a training step."""
        diffusion, hidden = self.diffusion, mask[..., None]
        count = mask.sum(1).float() * self.num_bits
        calibrated = diffusion.calibrated(logits, t)
        nats = F.binary_cross_entropy_with_logits(calibrated, flips.float(), reduction="none")
        right = ((calibrated > 0) == flips) & hidden
        nats_of_step = diffusion.step_divergence(logits, flips, t - 1, t) * hidden
        bits = (nats_of_step.sum((1, 2)) * diffusion.num_steps / math.log(2)).float()
        metrics = {
            "masked_bits_per_dim": torch.stack([bits.sum(), count.sum()]),
            "flip_loss": torch.stack([(nats * hidden).sum(), count.sum()]),
            "bit_accuracy": torch.stack([right.sum().float(), count.sum()]),
        }
        share = mask.sum(1) / real.sum(1)
        return metrics | bucket_metrics("masked_bits_per_dim", share, bits, count)
