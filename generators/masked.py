"""Masked-token generators: MaskBit (arXiv:2409.16211) and MaskGIT (arXiv:2202.04200).

A bidirectional transformer predicts hidden slots from visible ones. A slot is one of the G entries
of a position after the tokens have been regrouped (`codebook_sizes`): MaskBit splits the bits of a
position into groups, and each group is masked on its own. The two systems share trunk, corruption,
loss and samplers and differ in how they read and score tokens:

- MaskBit has no embedding table. A position enters as its bits, -1 or +1, those of hidden groups 0,
  through one linear layer; the head is a linear layer of its own.
- MaskGIT adds up one embedding per group (with one more row for "hidden"), and the logits are
  products with the same embeddings plus a bias per position and entry.

The class token stands last. Samplers are in `sample/masked.py`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import STRICT
from ..kernels.bit_embedding.op import MAX_BITS
from ..tokens.tokens import Tokens, TokenSpec
from .base import (
    AttentionTrunk,
    ConditionalConfig,
    Generator,
    GeneratorOutput,
    seeds_or_new,
    valid_positions,
)
from .bucket_metrics import bucket_metrics, bucket_names
from .conditions import TextCondition, TextConfig, TextTokens
from .networks.bert import LayerNorm, Transformer, TransformerConfig, check_tokens
from .networks.code_inputs import BitInput, IndexInput
from .networks.initialization import INITIAL_STD, initialize
from .noise import uniform
from .processes.masking import MaskSchedule, hide_exactly, masked_share

MAX_GROUP = 2**16
"""Largest group a head is built for."""
_JOINT = 2**14  # a MaskGIT position up to this size is read as one index by default
_GROUP_BITS = 9  # MaskBit's published groups have 5 to 9 bits


@dataclass(frozen=True, kw_only=True)
class MaskedConfig(ConditionalConfig):
    """Settings that MaskBit and MaskGIT have in common.

    Args:
        transformer: Settings of the trunk.
        num_classes: Labels 0 to num_classes - 1; 0: unconditional; None: as many as the training
            data has (the training script fills it in).
        codebook_sizes: Sizes in which the code of a position is read and predicted, one per group;
            their product is the tokenizer's. None: see the generator's own docstring.
        mask_schedule: Schedule of the masked share of an image, gamma(r) with r uniform.
        mask_count: How many slots are hidden: each `independent`ly with that share as probability
            (published), or `exact`ly round(share * slots) of them, at least 1 (1d-tokenizer).
        unmasked_weight: Weight of visible slots in the loss, relative to 1 for hidden ones.
        label_smoothing: Label smoothing of the cross-entropy, in [0, 1].
        label_dropout: Share of images whose label and text are hidden, so that guidance works.
        embedding: Input, class and position terms as torch operations one after the other
            (`plain`), or as one kernel (`fused`: `kernels/`, docs/kernels.md). The same function
            of the same parameters.
        text: Text as a condition; None: the model reads none.
    """

    __pydantic_config__ = STRICT
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    num_classes: int | None = None
    codebook_sizes: tuple[int, ...] | None = None
    mask_schedule: MaskSchedule = "arccos"
    mask_count: Literal["independent", "exact"] = "independent"
    unmasked_weight: float = 1.0
    label_smoothing: float = 0.1
    label_dropout: float = 0.1
    embedding: Literal["plain", "fused"] = "plain"
    text: TextConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("unmasked_weight", "label_smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected 0 to 1, found {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class MaskBitConfig(MaskedConfig):
    """MaskBit; the defaults are the published training.

    Without `codebook_sizes` the bits are split into the fewest groups, two or more, of at most 9
    bits, as equal as can be: 2 x 5 for 10 bits, 2 x 9 for 18, 3 x 8 for 24, 6 and 5 for 11.
    """

    __pydantic_config__ = STRICT
    type: Literal["maskbit"] = "maskbit"

    def build(self, spec: TokenSpec) -> "MaskedGenerator":
        """The generator of this config for tokens of `spec`, freshly initialized."""
        return MaskedGenerator(self, spec)


@dataclass(frozen=True, kw_only=True)
class MaskGITConfig(MaskedConfig):
    """MaskGIT; by default the loss is of hidden slots only, the schedule the cosine, as published.

    Without `codebook_sizes` a position is one index if it has at most 2**14 values, otherwise
    it has the tokenizer's entries, or the groups of MaskBit if those are bits.
    """

    __pydantic_config__ = STRICT
    type: Literal["maskgit"] = "maskgit"
    mask_schedule: MaskSchedule = "cosine"
    unmasked_weight: float = 0.0

    def build(self, spec: TokenSpec) -> "MaskedGenerator":
        """The generator of this config for tokens of `spec`, freshly initialized."""
        return MaskedGenerator(self, spec)


class MaskedGenerator(Generator):
    """MaskBit or MaskGIT, by the type of its config.

    Args:
        config: Settings; `num_classes` must be given.
        spec: Spec of the tokenizer's tokens.

    Raises:
        ValueError: If this reading of the tokens is not possible, with the reason.
    """

    config: MaskBitConfig | MaskGITConfig
    monitor = "masked_loss"
    panels: ClassVar = {
        "cross-entropy of hidden slots (nats)": ["masked_loss", "val_masked_loss", "uniform_loss"],
        "masked loss by masked share (%)": bucket_names("masked_loss"),
        "accuracy on hidden slots": ["masked_accuracy", "val_masked_accuracy"],
    }

    def __init__(self, config: MaskBitConfig | MaskGITConfig, spec: TokenSpec) -> None:
        super().__init__(config, spec)
        self.codebook_sizes = read_sizes(config, spec)
        self.masked_spec = TokenSpec(spec.shape, self.codebook_sizes, spec.ordered)
        self.uniform_loss = sum(map(math.log, self.codebook_sizes)) / len(self.codebook_sizes)
        width, num_tokens = config.transformer.width, spec.num_tokens
        tied = isinstance(config, MaskGITConfig)
        self.input = (IndexInput if tied else BitInput)(self.codebook_sizes, width)
        if isinstance(self.input, BitInput) and config.embedding == "fused":
            num_bits = len(self.input.widths) * max(self.input.widths)
            if num_bits > MAX_BITS:
                raise ValueError(
                    f"embedding: fused reads up to {MAX_BITS} bits of a position, here {num_bits} "
                    f"(groups x the widest); use embedding: plain"
                )
        check_tokens(config.transformer, spec, text=config.text is not None)
        self.class_embedding = nn.Embedding(self.num_classes + 1, width)
        self.position = nn.Parameter(torch.empty(1, num_tokens + 1, width))
        self.input_norm = LayerNorm(width)
        self.input_dropout = nn.Dropout(config.transformer.dropout)
        self.trunk = Transformer(config.transformer)
        self.dense = nn.Linear(width, width)
        self.dense_norm = LayerNorm(width)
        self.head: nn.Linear | None = None
        self.biases = nn.ParameterList()
        if tied:
            self.biases.extend(torch.zeros(num_tokens, size) for size in self.codebook_sizes)
        else:
            self.head = nn.Linear(width, sum(self.codebook_sizes))
        nn.init.normal_(self.position, std=INITIAL_STD)
        self.apply(initialize)
        if config.text is not None:
            self.text = TextCondition(config.text, width)

    @property
    def num_groups(self) -> int:
        """Groups G of a position."""
        return len(self.codebook_sizes)

    def calibrate(self, tokens: Tokens, labels: Tensor, *, seed: int) -> None:
        """Fit the hashes of `binarized_attention: hashed` to images that are hidden in part.

        Padding counts as tokens here.
        """
        if self.config.transformer.binarized_attention != "hashed":
            return
        codes = tokens.require(self.spec, reader="this generator").regroup(self.codebook_sizes)
        seeds = seed + torch.arange(len(tokens), device=tokens.device)
        share = masked_share(uniform(seeds, 0, (2,))[:, 0], self.config.mask_schedule)
        mask = self._hide(seeds, share, torch.ones_like(codes.indices, dtype=torch.bool))
        training = self.training
        with torch.no_grad():
            self.eval()
            x, _ = self._embed(
                codes.indices, mask, self.fill_missing_labels(labels, len(tokens), mask.device)
            )
            self.trunk.fit_hashes(x, torch.Generator().manual_seed(seed))
            self.train(training)

    @property
    def trunks(self) -> tuple[AttentionTrunk, ...]:
        """The trunk."""
        return (self.trunk,)

    def predict(
        self,
        indices: Tensor,
        mask: Tensor,
        labels: Tensor,
        valid: Tensor | None = None,
        text: TextTokens | None = None,
    ) -> Tensor:
        """Logits of every slot, hidden or not.

        Args:
            indices: Codes in this generator's groups, (B, N, G) int64; hidden ones are ignored.
            mask: True = hidden, (B, N, G) bool.
            labels: Labels, (B,) int64 in [0, num_classes]; `num_classes` = no label. Not changed.
            valid: True at real positions, (B, N) bool; None: all.
            text: Tokens of the prompts; None: there are none.

        Returns:
            (B, N, G, K) float32 with K the largest group; -inf beyond the size of a smaller group.
        """
        if valid is not None:  # the class token is always real
            valid = F.pad(valid, (0, 1), value=True)
        x, valid = self._embed(indices, mask, labels, valid, text)
        x = self.trunk(x, valid)[:, : indices.shape[1]]
        x = self.dense_norm(F.gelu(self.dense(x)))
        if self.head is not None:
            scores = self.head(x).float().split(list(self.codebook_sizes), -1)
        else:
            tables = [table.weight[:-1] for table in self.input.tables]  # type: ignore[union-attr]
            pairs = zip(tables, self.biases, strict=True)
            scores = [(F.linear(x, table) + bias).float() for table, bias in pairs]
        widest = max(self.codebook_sizes)
        scores = [F.pad(s, (0, widest - s.shape[-1]), value=-torch.inf) for s in scores]
        return torch.stack(scores, 2)

    def _embed(
        self,
        indices: Tensor,
        mask: Tensor,
        labels: Tensor,
        valid: Tensor | None = None,
        text: TextTokens | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Input of the trunk, (B, N + 1 + L, D) with L tokens of text, and its valid positions."""
        if self.config.embedding == "fused":
            classes = self.class_embedding.weight
            x = self.input.fused(indices, mask, labels, classes, self.position[0])
        else:
            x = torch.cat([self.input(indices, mask), self.class_embedding(labels)[:, None]], 1)
            x = x + self.position
        if text is not None:
            x = torch.cat([x[:, :-1], x[:, -1:] + text.pooled[:, None]], 1)
            x, valid = text.append_to(x, valid)
        return self.input_dropout(self.input_norm(x)), valid

    def forward(
        self,
        tokens: Tokens,
        labels: Tensor | None = None,
        prompts: Sequence[str] | None = None,
        *,
        seeds: Tensor | None = None,
    ) -> GeneratorOutput:
        """Cross-entropy of the slots, hidden ones drawn per image; see `Generator.forward`.

        Metrics, over hidden slots: `masked_loss` (nats, no smoothing), `masked_accuracy`, and
        `masked_loss_LOW_HIGH` of the images whose masked share is in that bucket, in percent.

        Source: arXiv:2409.16211 section 4 and its code: mean over all slots, label smoothing 0.1.
        """
        codes = tokens.require(self.spec, reader="this generator").regroup(self.codebook_sizes)
        targets, device = codes.indices, tokens.device
        seeds, valid = seeds_or_new(seeds, len(tokens), device), valid_positions(tokens)
        real = torch.ones_like(targets, dtype=torch.bool)
        if valid is not None:
            real &= valid[..., None]
        draws = uniform(seeds, 0, (2,))
        share = masked_share(draws[:, 0], self.config.mask_schedule)
        mask = self._hide(seeds, share, real)
        labels, text = self.training_conditions(labels, prompts, seeds, draws[:, 1])
        logits = self.predict(targets, mask, labels, valid, text)
        smoothed, exact = self._cross_entropy(logits, targets)
        hidden = mask.float()
        weight = torch.where(mask, 1.0, self.config.unmasked_weight) * real
        total = weight.sum()
        loss = (weight * smoothed).sum() / total.clamp(min=1e-9)
        correct = (logits.detach().argmax(-1) == targets).float()
        nats, count = (exact.detach() * hidden).sum((1, 2)), hidden.sum((1, 2))
        metrics = {
            "masked_loss": torch.stack([nats.sum(), count.sum()]),
            "masked_accuracy": torch.stack([(correct * hidden).sum(), count.sum()]),
        }
        hidden_share = count / real.sum((1, 2))
        metrics |= bucket_metrics("masked_loss", hidden_share, nats, count, edge="lower")
        return GeneratorOutput(loss, total, metrics)

    def _hide(self, seeds: Tensor, share: Tensor, real: Tensor) -> Tensor:
        """The slots to predict, (B, N, G) bool, out of the real ones."""
        noise = uniform(seeds, 1, real.shape[1:])
        if self.config.mask_count == "independent":
            return (noise < share[:, None, None]) & real
        count = (share * real.sum((1, 2))).round().clamp(min=1)
        return hide_exactly(count, real, noise)

    def _cross_entropy(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of every slot in nats with and without label smoothing, both (B, N, G)."""
        log_p = logits.log_softmax(-1)
        exact = -log_p.gather(-1, targets[..., None])[..., 0]
        if min(self.codebook_sizes) == max(self.codebook_sizes):
            mean = log_p.mean(-1)
        else:  # the places beyond a smaller group hold -inf
            sizes = torch.tensor(self.codebook_sizes, device=logits.device)
            real = torch.arange(logits.shape[-1], device=logits.device) < sizes[:, None]
            mean = log_p.where(real, 0).sum(-1) / sizes
        return exact.lerp(-mean, self.config.label_smoothing), exact


def read_sizes(config: MaskBitConfig | MaskGITConfig, spec: TokenSpec) -> tuple[int, ...]:
    """Sizes of the groups in which a masked generator reads tokens of `spec`.

    Raises:
        ValueError: If it cannot, with the reason and what to do.
    """
    bits = isinstance(config, MaskBitConfig)
    if bits and not spec.is_binary:
        raise ValueError(
            f"MaskBit reads bits, and {spec} has sizes that are not powers of two; "
            "use {type: maskgit}"
        )
    sizes = config.codebook_sizes
    if sizes is None:
        num_bits = spec.vocab_size.bit_length() - 1
        if bits or (set(spec.codebook_sizes) == {2} and spec.vocab_size > _JOINT):
            count = min(num_bits, max(2, math.ceil(num_bits / _GROUP_BITS)))
            sizes = tuple(2 ** ((num_bits + g) // count) for g in reversed(range(count)))
        else:
            sizes = (spec.vocab_size,) if spec.vocab_size <= _JOINT else spec.codebook_sizes
    wide = [size for size in sizes if size > MAX_GROUP]
    if wide:
        raise ValueError(
            f"codebook_sizes: a head of {wide[0]} entries is too large (at most {MAX_GROUP}); "
            f"split the {spec.bits_per_token:g} bits of {spec} with codebook_sizes: [A, B, ...]"
        )
    if bits and not TokenSpec(spec.shape, sizes).is_binary:
        raise ValueError(f"codebook_sizes: MaskBit needs powers of two, found {list(sizes)}")
    with torch.device("cpu"):  # of no image; on the meta device torch would import its compiler
        nothing = torch.empty(0, spec.num_tokens, spec.num_codebooks, dtype=torch.int64)
        Tokens(nothing, spec).regroup(sizes)
    return sizes
