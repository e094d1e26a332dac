"""Binary latent diffusion (arXiv:2304.04820): Bernoulli diffusion of all bits of an image at once.

The network is in `networks/denoising_transformer.py`, the process in `processes/bernoulli.py`, the
sampler in `sample/binary_latent_diffusion.py`.

The time is t - 1 over the number of steps of the training, always. The reference divides by the
number of steps of the sampler, which shows the network times that it never saw whenever that is
smaller.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor
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
from .networks.bert import check_tokens
from .networks.denoising_transformer import DenoisingTransformer, DenoisingTransformerConfig
from .noise import uniform
from .processes.bernoulli import BernoulliDiffusion


@dataclass(frozen=True, kw_only=True)
class BinaryLatentDiffusionConfig(ConditionalConfig):
    """Binary latent diffusion; the defaults are the published model, whose steps are 64 or 256.

    Args:
        transformer: Trunk of the network.
        diffusion: Diffusion process, its loss and thereby its kernel.
        num_classes: Labels 0 to num_classes - 1; 0: unconditional, without a class token; None: as
            many as the training data has (the training script fills it in).
        null_label: Meaning of "no label": a `learned` token, or no token, `absent` (published).
        label_dropout: Share of images whose label and text are hidden, so that guidance works
            (the reference hides the labels of a whole batch at once).
        text: Text as a condition; None: the model reads none.
    """

    __pydantic_config__ = STRICT
    type: Literal["bld"] = "bld"
    transformer: DenoisingTransformerConfig = field(default_factory=DenoisingTransformerConfig)
    diffusion: BernoulliDiffusion = field(default_factory=BernoulliDiffusion)
    num_classes: int | None = None
    null_label: Literal["learned", "absent"] = "learned"
    label_dropout: float = 0.1
    text: TextConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.diffusion.weights == "token":
            raise ValueError(
                "diffusion.weights: token goes with one time per token; here an image has one: "
                "expected schedule or image"
            )

    def build(self, spec: TokenSpec) -> "BinaryLatentDiffusion":
        """The generator of this config for tokens of `spec`, freshly initialized."""
        return BinaryLatentDiffusion(self, spec)


class BinaryLatentDiffusion(Generator):
    """Binary latent diffusion of the bits of a tokenizer.

    Args:
        config: Settings; `num_classes` must be given.
        spec: Spec of the tokenizer's tokens: every size a power of two.

    Raises:
        ValueError: If the tokens are not bits, or `num_classes` is not given.
    """

    config: BinaryLatentDiffusionConfig
    monitor = "bits_per_dim"
    panels: ClassVar = {
        "bits of the model per bit of tokens": ["bits_per_dim", "val_bits_per_dim"],
        "accuracy": ["bit_accuracy", "val_bit_accuracy"],
    }
    likelihood = "bound"

    def __init__(self, config: BinaryLatentDiffusionConfig, spec: TokenSpec) -> None:
        super().__init__(config, spec)
        if not spec.is_binary:
            raise ValueError(
                f"binary latent diffusion reads bits, and {spec} has sizes that are not powers of "
                "two; use {type: maskgit}"
            )
        self.num_bits = spec.vocab_size.bit_length() - 1
        check_tokens(config.transformer, spec, text=config.text is not None)
        self.network = DenoisingTransformer(
            config.transformer, spec.shape, self.num_bits, self.num_classes, config.null_label
        )
        if config.text is not None:
            self.text = TextCondition(config.text, config.transformer.width)

    @property
    def diffusion(self) -> BernoulliDiffusion:
        """The diffusion process."""
        return self.config.diffusion

    def predict(
        self,
        bits: Tensor,
        t: Tensor,
        labels: Tensor,
        valid: Tensor | None = None,
        text: TextTokens | None = None,
    ) -> Tensor:
        """Logits of the flips y = x_0 XOR x_t, in the sense of the loss; (B, N, K) float32.

        Args:
            bits: Noisy bits x_t, (B, N, K) int64 in {0, 1}.
            t: Times in [1, T], (B,) int64.
            labels: Labels, (B,) int64 in [0, num_classes]; `num_classes` = no label. Not changed.
            valid: True at real positions, (B, N) bool; None: all.
            text: Tokens of the prompts; None: there are none.
        """
        time = (t - 1).float() / self.diffusion.num_steps
        logits: Tensor = self.network(2 * bits - 1, time, labels, valid, text)
        return logits

    def forward(
        self,
        tokens: Tokens,
        labels: Tensor | None = None,
        prompts: Sequence[str] | None = None,
        *,
        seeds: Tensor | None = None,
    ) -> GeneratorOutput:
        """The loss at one random time per image; see `Generator.forward`.

        Metrics, over real bits: `bits_per_dim`, an estimate without bias of what
        `BinaryLatentDiffusion.bits_per_dim` sums up over all times; `flip_loss`, the cross-entropy
        of the calibrated prediction in nats, and `flip_loss_LOW_HIGH` of the images whose t / T is
        in that bucket, in percent; `bit_accuracy`, the share of bits of x_0 that it tells.

        Source: arXiv:2304.04820 and its code, whose `focal = 0` is the balanced loss. The
        variational term, eq. 7 (`aux`), has weight 0 in all published commands; it is left out.
        """
        x_0, valid = self._read(tokens)
        seeds = seeds_or_new(seeds, len(tokens), x_0.device)
        draws = uniform(seeds, 0, (2,))
        t = self.diffusion.draw_time(draws[:, 0])
        labels, text = self.training_conditions(labels, prompts, seeds, draws[:, 1])
        x_t, flips = self.diffusion.corrupt(x_0, t, uniform(seeds, 1, x_0.shape[1:]))
        logits = self.predict(x_t, t, labels, valid, text)
        real = torch.ones_like(flips) if valid is None else valid[..., None].expand_as(flips)
        count = real.sum((1, 2))
        loss = self.diffusion.loss_per_bit(logits, flips, t, valid)
        return GeneratorOutput(
            (loss * real).sum() / count.sum(),
            count.sum().float(),
            self._measure(logits.detach(), flips, t, real),
        )

    @torch.no_grad()
    def bits_per_dim(
        self,
        tokens: Tokens,
        labels: Tensor | None = None,
        prompts: Sequence[str] | None = None,
        *,
        seeds: Tensor | None = None,
        num_steps: int | None = None,
    ) -> Tensor:
        """Variational bound on the information of each image, in bits per bit of it, (B,) float64.

        What the chain of so many steps, unguided and with its last step sampled, needs at most to
        code the image: the sum of the divergences between true and predicted steps, each at one
        draw of x_t, so an estimate without bias of the bound. 1 is what knowing nothing needs.

        Args:
            tokens: Tokens of this generator's spec.
            labels: Labels, (B,) int64; None: no image has one.
            prompts: Texts, B of them; None: no image has one.
            seeds: One seed per image, (B,) int64: its estimate depends on nothing else. None: drawn
                from torch's global generator.
            num_steps: Steps of the chain, and forward passes; None: as many as in the training.

        Raises:
            ValueError: If there are more steps than in the training.
        """
        x_0, valid = self._read(tokens)
        labels = self.fill_missing_labels(labels, len(tokens), x_0.device)
        text = self.read_text(prompts)
        seeds = seeds_or_new(seeds, len(tokens), x_0.device)
        real = torch.ones_like(x_0) if valid is None else valid[..., None].expand_as(x_0)
        nats = torch.zeros(len(tokens), dtype=torch.float64, device=x_0.device)
        for number, pair in enumerate(self.diffusion.steps(num_steps)):
            t, s = (torch.full_like(labels, time) for time in pair)
            x_t, flips = self.diffusion.corrupt(x_0, t, uniform(seeds, number, x_0.shape[1:]))
            logits = self.predict(x_t, t, labels, valid, text)
            nats += (self.diffusion.step_divergence(logits, flips, s, t) * real).sum((1, 2))
        return nats / real.sum((1, 2)) / math.log(2)

    def describe_likelihood(self, num_steps: int | None = None) -> str:
        """The bound that `bits_per_dim` is, in words; arguments and errors as there."""
        return f"bound, chain of {len(self.diffusion.steps(num_steps))} steps"

    def calibrate(self, tokens: Tokens, labels: Tensor, *, seed: int) -> None:
        """Fit the hashes of `binarized_attention: hashed` to images at random times.

        Padding counts as tokens here.
        """
        if self.config.transformer.binarized_attention != "hashed":
            return
        x_0, _ = self._read(tokens)
        seeds = seed + torch.arange(len(tokens), device=x_0.device)
        t = self.diffusion.draw_time(uniform(seeds, 0, (1,))[:, 0])
        x_t, _ = self.diffusion.corrupt(x_0, t, uniform(seeds, 1, x_0.shape[1:]))
        labels = self.fill_missing_labels(labels, len(tokens), x_0.device)
        time = (t - 1).float() / self.diffusion.num_steps
        self.network.fit_hashes(2 * x_t - 1, time, labels, seed)

    @property
    def trunks(self) -> tuple[AttentionTrunk, ...]:
        """The trunk of the network."""
        return (self.network.trunk,)

    def _read(self, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
        """Bits (B, N, K) and the real positions; None: all."""
        bits = tokens.require(self.spec, reader="this generator").bits()
        return bits, valid_positions(tokens)

    def _measure(self, logits: Tensor, flips: Tensor, t: Tensor, real: Tensor) -> dict[str, Tensor]:
        """The metrics of a training step."""
        diffusion, count = self.diffusion, real.sum((1, 2)).float()
        calibrated = diffusion.calibrated(logits, t)
        nats = F.binary_cross_entropy_with_logits(calibrated, flips.float(), reduction="none")
        nats = (nats * real).sum((1, 2))
        right = (((calibrated > 0) == flips) & real).sum()
        bound = (diffusion.step_divergence(logits, flips, t - 1, t) * real).sum()
        bits = (bound * diffusion.num_steps / math.log(2)).float()
        metrics = {
            "bits_per_dim": torch.stack([bits, count.sum()]),
            "flip_loss": torch.stack([nats.sum(), count.sum()]),
            "bit_accuracy": torch.stack([right.float(), count.sum()]),
        }
        share = t / diffusion.num_steps  # in (0, 1]
        return metrics | bucket_metrics("flip_loss", share, nats, count)
