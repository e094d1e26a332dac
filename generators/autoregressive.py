"""Autoregressive tokens: LlamaGen (arXiv:2406.06525), with UniTok's depth head (arXiv:2502.20321).

Positions follow one another in raster order. The trunk (`networks/llama.py`) reads the class and
then, for each position, the sum of embeddings of its codes; its output after n positions is all
that the prediction of position n depends on. The G codes of that position follow one another too: a
small transformer over depth reads the trunk's output and the codes before, and one linear layer
scores the next code.

A code's probability is thus given all codes before it, so that the information of an image is
exact. The sampler is `sample/autoregressive.py`.
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
)
from .conditions import TextCondition, TextConfig, TextTokens
from .masked import MaskGITConfig, read_sizes
from .networks.attention import check_causal
from .networks.causal_llama import CausalTransformer
from .networks.initialization import initialize
from .networks.llama import KVCache, LlamaConfig
from .noise import uniform


@dataclass(frozen=True, kw_only=True)
class AutoregressiveConfig(ConditionalConfig):
    """An autoregressive transformer; the defaults are LlamaGen-L with one block over depth.

    Args:
        transformer: The trunk; the depth head has its width and heads. Its dropout also acts on
            the embedded tokens. `attention: low_bit` is not causal, and refused.
        num_depth_layers: Blocks of the depth head; published: 1 or 4. 0: the scores of a code are a
            linear layer, without bias, of the trunk's output, as in LlamaGen; for one code per
            position only. Where it is not 0, a single code has the blocks too.
        num_classes: Labels 0 to num_classes - 1; 0: unconditional; None: as many as the training
            data has (the training script fills it in).
        codebook_sizes: Sizes in which the code of a position is read and predicted, one per group;
            their product is the tokenizer's. None: as MaskGIT reads it (`MaskGITConfig`).
        label_dropout: Share of images whose label and text are hidden, so that guidance works.
        text: Text as a condition; None: the model reads none.
    """

    __pydantic_config__ = STRICT
    type: Literal["ar"] = "ar"
    transformer: LlamaConfig = field(default_factory=LlamaConfig)
    num_depth_layers: int = 1
    num_classes: int | None = None
    codebook_sizes: tuple[int, ...] | None = None
    label_dropout: float = 0.1
    text: TextConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_causal(self.transformer.attention)
        if self.num_depth_layers < 0:
            raise ValueError(
                f"num_depth_layers: expected at least 0, found {self.num_depth_layers}"
            )

    def build(self, spec: TokenSpec) -> "AutoregressiveGenerator":
        """The generator of this config for tokens of `spec`, freshly initialized."""
        return AutoregressiveGenerator(self, spec)


class CodeEmbedding(nn.Module):
    """Input of the trunk for a position: the sum of one embedding for each group."""

    def __init__(self, codebook_sizes: Sequence[int], width: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in codebook_sizes)

    def forward(self, codes: Tensor) -> Tensor:
        """Sum of the rows of codes, (..., G) int64 to (..., D)."""
        return torch.stack([table(codes[..., g]) for g, table in enumerate(self.tables)]).sum(0)


class DepthHead(nn.Module):
    """Logits of the codes of a position, one after the other, from what the trunk says of it.

    A causal transformer without positions over [h, u_1(c_1), ..., u_{G-1}(c_{G-1})], and one linear
    layer for all of its outputs. The layer starts at 0, so that every code is as likely at first.

    Args:
        config: Settings of the trunk.
        num_layers: Number of blocks; 0: none, and no norm and bias either.
        codebook_sizes: Sizes of the G groups; the linear layer has the rows of the largest.

    Source: arXiv:2502.20321's code; without blocks arXiv:2406.06525's.
    """

    def __init__(self, config: LlamaConfig, num_layers: int, codebook_sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(codebook_sizes)
        self.tables = nn.ModuleList(nn.Embedding(size, config.width) for size in self.sizes[:-1])
        self.depth = CausalTransformer(config, num_layers) if num_layers else None
        self.head = nn.Linear(config.width, max(self.sizes), bias=num_layers > 0)

    def forward(self, h: Tensor, codes: Tensor) -> Tensor:
        """Logits of all codes, each given those before it, (B, G, K) float32.

        K is the largest group; -inf beyond the size of a smaller group.

        Args:
            h: Output of the trunk, (B, D).
            codes: Codes of the position, (B, G) int64; the last one is not read.
        """
        rows = [table(codes[:, g]) for g, table in enumerate(self.tables)]
        x = torch.stack([h, *rows], 1)
        scores: Tensor = self.head(x if self.depth is None else self.depth(x)).float()
        if min(self.sizes) == max(self.sizes):
            return scores
        sizes = torch.tensor(self.sizes, device=h.device)[:, None]
        beyond = torch.arange(scores.shape[-1], device=h.device) >= sizes
        return scores.masked_fill(beyond, -torch.inf)

    def step(self, x: Tensor, caches: Sequence[KVCache], group: int) -> Tensor:
        """Logits of one group, (B, K_g) float32.

        Args:
            x: Output of the trunk for group 0, `embed` of the group before for others, (B, D).
            caches: Keys and values of the groups before; those of this group are added.
            group: Number of the group, from 0.
        """
        if self.depth is not None:
            x = self.depth.step(x, caches, group)
        logits: Tensor = self.head(x).float()[:, : self.sizes[group]]
        return logits

    def embed(self, codes: Tensor, group: int) -> Tensor:
        """Embedding of codes of `group`, (B, D) of (B,) int64; the last group has none."""
        rows: Tensor = self.tables[group](codes)
        return rows

    def new_caches(self) -> list[KVCache]:
        """Empty caches for `step`."""
        return [] if self.depth is None else self.depth.new_caches(len(self.sizes))


class AutoregressiveGenerator(Generator):
    """LlamaGen over tokens of any number of codes per position.

    There is no `predict`: the sampler calls `trunk` and `head` in turns, and torch.compile is not
    used. Padding stands at the end, where no real position sees it.

    Args:
        config: Settings; `num_classes` must be given.
        spec: Spec of the tokenizer's tokens.

    Raises:
        RuntimeError: If the attention backend is not installed.
        ValueError: If `num_classes` is not given, the tokens cannot be read in these groups, there
            are several and no depth head, or the heads do not fit the axes of the grid.
    """

    config: AutoregressiveConfig
    monitor = "bits_per_dim"
    panels: ClassVar = {
        "bits of the model per bit of tokens": ["bits_per_dim", "val_bits_per_dim"],
        "cross-entropy (nats)": ["cross_entropy", "val_cross_entropy", "uniform_loss"],
        "accuracy": ["accuracy", "val_accuracy"],
    }
    likelihood = "exact"

    def __init__(self, config: AutoregressiveConfig, spec: TokenSpec) -> None:
        super().__init__(config, spec)
        sizes = read_sizes(MaskGITConfig(codebook_sizes=config.codebook_sizes), spec)
        if len(sizes) > 1 and not config.num_depth_layers:
            raise ValueError(
                f"num_depth_layers: 0 goes with one code per position, here there are {len(sizes)}"
                f", {list(sizes)}; expected at least 1"
            )
        self.codebook_sizes = sizes
        self.uniform_loss = sum(map(math.log, sizes)) / len(sizes)
        width = config.transformer.width
        self.class_embedding = nn.Embedding(self.num_classes + 1, width)
        self.input = CodeEmbedding(sizes, width)
        self.input_dropout = nn.Dropout(config.transformer.dropout)
        self.trunk = CausalTransformer(
            config.transformer, config.transformer.num_layers, spec.shape
        )
        self.head = DepthHead(config.transformer, config.num_depth_layers, sizes)
        self.apply(initialize)
        nn.init.zeros_(self.head.head.weight)
        if config.text is not None:
            self.text = TextCondition(config.text, width)

    @property
    def num_groups(self) -> int:
        """Groups G of a position."""
        return len(self.codebook_sizes)

    def logits(self, codes: Tensor, labels: Tensor, text: TextTokens | None = None) -> Tensor:
        """Logits of every code, given the label, the text and all codes before it.

        Args:
            codes: Codes in this generator's groups, (B, N, G) int64.
            labels: Labels, (B,) int64 in [0, num_classes]; `num_classes` = no label. Not changed.
            text: Tokens of the prompts; None: there are none.

        Returns:
            (B, N, G, K) float32 with K the largest group; -inf beyond the size of a smaller group.
        """
        first = self.embed_condition(labels, text)[:, None]
        x, valid, prefix = torch.cat([first, self.input(codes)], 1)[:, :-1], None, 0
        if text is not None:
            prefix = text.valid.shape[1]
            x, valid = text.prepend_to(x, None)
        h = self.trunk(self.input_dropout(x), prefix, valid)[:, prefix:]
        logits: Tensor = self.head(h.flatten(0, 1), codes.flatten(0, 1)).unflatten(
            0, codes.shape[:2]
        )
        return logits

    def embed_condition(self, labels: Tensor, text: TextTokens | None) -> Tensor:
        """Input of the trunk at the class token, (B, D), of labels in [0, num_classes]."""
        rows: Tensor = self.class_embedding(labels)
        return rows if text is None else rows + text.pooled

    def forward(
        self,
        tokens: Tokens,
        labels: Tensor | None = None,
        prompts: Sequence[str] | None = None,
        *,
        seeds: Tensor | None = None,
    ) -> GeneratorOutput:
        """Mean cross-entropy of the codes of real positions; see `Generator.forward`.

        Only what is hidden of label and text is drawn.

        Metrics, over real positions: `bits_per_dim`, the information of the tokens in bits per bit
        of their capacity (1 is what knowing nothing needs), exact; `cross_entropy`, the loss in
        nats per code; `accuracy`, the share of codes that are the likeliest.

        Source: arXiv:2406.06525 section 2.2; over groups arXiv:2502.20321's code.
        """
        codes, real = self._read(tokens)
        seeds = seeds_or_new(seeds, len(tokens), codes.device)
        draw = uniform(seeds, 0, (1,))[:, 0]
        logits = self.logits(codes, *self.training_conditions(labels, prompts, seeds, draw))
        nats = _cross_entropy(logits, codes) * real[..., None]
        count = real.sum().float() * self.num_groups
        right = (logits.detach().argmax(-1) == codes) & real[..., None]
        total = nats.detach().sum()
        bits = total / math.log(2)
        metrics = {
            "bits_per_dim": torch.stack([bits, real.sum().float() * self.spec.bits_per_token]),
            "cross_entropy": torch.stack([total, count]),
            "accuracy": torch.stack([right.sum().float(), count]),
        }
        return GeneratorOutput(nats.sum() / count, count, metrics)

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
        """Information of each image, in bits per bit of its capacity, (B,) float64; exact.

        -log2 of its probability, that of unguided sampling at temperature 1, over
        `Tokens.bits_per_image`. 1 is what knowing nothing needs.

        Args:
            tokens: Tokens of this generator's spec.
            labels: Labels, (B,) int64; None: no image has one.
            prompts: Texts, B of them; None: no image has one.
            seeds: Not read, nothing is drawn.
            num_steps: None; there is no chain of steps.

        Raises:
            ValueError: If `num_steps` is given.
        """
        self.describe_likelihood(num_steps)
        codes, real = self._read(tokens)
        labels = self.fill_missing_labels(labels, len(tokens), codes.device)
        logits = self.logits(codes, labels, self.read_text(prompts)).double()
        nats = _cross_entropy(logits, codes) * real[..., None]
        capacity = real.sum(1) * self.spec.bits_per_token
        return nats.sum((1, 2)) / math.log(2) / capacity

    def describe_likelihood(self, num_steps: int | None = None) -> str:
        """The word exact; arguments and errors as for `bits_per_dim`."""
        if num_steps is not None:
            raise ValueError(
                f"num_steps: the bits of generators of type {self.config.type} are exact, of no "
                "steps"
            )
        return "exact"

    @property
    def trunks(self) -> tuple[AttentionTrunk, ...]:
        """The trunk, and the depth head if it has blocks."""
        return (self.trunk,) if self.head.depth is None else (self.trunk, self.head.depth)

    def _read(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Codes (B, N, G) int64 and real positions (B, N) bool."""
        tokens = tokens.require(self.spec, reader="this generator").regroup(self.codebook_sizes)
        return tokens.indices, tokens.valid


def _cross_entropy(logits: Tensor, codes: Tensor) -> Tensor:
    """Nats of every code, (B, N, G), of logits (B, N, G, K)."""
    return F.cross_entropy(logits.flatten(0, 2), codes.flatten(), reduction="none").view_as(codes)
