"""Conditions of a generator beside the label: text, as extra tokens and as one pooled vector.

One mechanism for every generator. A text encoder (`text/`) turns a prompt into states; a linear
layer brings them to the width of the trunk, a position of their own and a vector that marks text
are added, and they stand beside the tokens of the image as tokens that are never hidden and have no
loss. The mean of the states, through another linear layer, is added to the row of the class. An
image without a prompt has no token of text and a pooled vector of 0: nobody attends to what is not
there, so an empty prompt equals no prompt. In training both conditions are hidden at random, so
that a model can be asked with either, both or neither, and guidance has its other half.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import STRICT
from ..text.build import TextEncoderConfig, build_text_encoder
from ..text.words import WordsConfig
from .networks.initialization import INITIAL_STD, initialize
from .noise import uniform

_DRAW = 2**31 + 2**20  # number of the random draw that hides texts and labels, apart from others


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Text as a condition of a generator.

    Args:
        encoder: Encoder of the prompts.
        dropout: Share of images whose text alone is hidden in training, so that the model can be
            asked with a label alone. `label_dropout` of the generator hides both.
        label_dropout: Share of images whose label alone is hidden in training, so that the model
            can be asked with a prompt alone.
    """

    __pydantic_config__ = STRICT
    encoder: TextEncoderConfig = field(default_factory=WordsConfig)
    dropout: float = 0.1
    label_dropout: float = 0.4

    def __post_init__(self) -> None:
        if min(self.dropout, self.label_dropout) < 0 or self.dropout + self.label_dropout > 1:
            raise ValueError(
                "text: expected dropout and label_dropout of at least 0 and at most 1 together, "
                f"found {self.dropout} and {self.label_dropout}"
            )


class TextTokens(NamedTuple):
    """Text of a batch, at the width D of a trunk.

    Attributes:
        tokens: One token for each state of the text, (B, L, D).
        valid: True at real ones, (B, L) bool.
        pooled: What is added to the row of the class, (B, D); 0 without a text.
    """

    tokens: Tensor
    valid: Tensor
    pooled: Tensor

    def kept(self, keep: Tensor) -> "TextTokens":
        """The texts of images where `keep`, (B,) bool, is True; the others have none."""
        return TextTokens(self.tokens, self.valid & keep[:, None], self.pooled * keep[:, None])

    def before(self, other: "TextTokens | None") -> "TextTokens":
        """A batch of these texts and then those of another, (2B, ...); None: of no texts."""
        if other is None:
            other = self.kept(torch.zeros_like(self.valid[:, 0]))
        longest = max(self.valid.shape[1], other.valid.shape[1])
        first, second = (
            TextTokens(
                F.pad(text.tokens, (0, 0, 0, longest - text.valid.shape[1])),
                F.pad(text.valid, (0, longest - text.valid.shape[1])),
                text.pooled,
            )
            for text in (self, other)
        )
        return TextTokens(*(torch.cat(pair) for pair in zip(first, second, strict=True)))

    def append_to(self, x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Hidden states (B, M, D) and their valid positions, with the text after them."""
        return self._join(x, valid, [1, 0])

    def prepend_to(self, x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Hidden states (B, M, D) and their valid positions, with the text before them."""
        return self._join(x, valid, [0, 1])

    def _join(self, x: Tensor, valid: Tensor | None, order: list[int]) -> tuple[Tensor, Tensor]:
        if valid is None:
            valid = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        states, marks = [self.tokens.to(x.dtype), x], [self.valid, valid]
        return torch.cat([states[i] for i in order], 1), torch.cat([marks[i] for i in order], 1)


class TextCondition(nn.Module):
    """Prompts to `TextTokens` of a trunk.

    Args:
        config: Settings.
        width: Width D of the trunk.
    """

    def __init__(self, config: TextConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_text_encoder(config.encoder)
        self.project = nn.Linear(self.encoder.dim, width)
        self.position = nn.Parameter(torch.empty(1, self.encoder.max_length, width))
        self.kind = nn.Parameter(torch.empty(1, 1, width))
        self.pool = nn.Linear(self.encoder.dim, width, bias=False)
        for table in (self.position, self.kind):
            nn.init.normal_(table, std=INITIAL_STD)
        self.project.apply(initialize)
        self.pool.apply(initialize)

    def forward(self, prompts: Sequence[str], length: int = 1) -> TextTokens:
        """Tokens of B prompts, at least `length` of them in each row; longer texts are cut."""
        states, valid = self.encoder(prompts)
        missing = max(0, length - valid.shape[1])
        states, valid = F.pad(states, (0, 0, 0, missing)), F.pad(valid, (0, missing))
        tokens = self.project(states) + self.position[:, : valid.shape[1]] + self.kind
        count = valid.sum(1, keepdim=True).clamp(min=1)
        mean = (states * valid[..., None]).sum(1) / count
        return TextTokens(tokens, valid, self.pool(mean))

    def readable(self, texts: Sequence[str]) -> list[str]:
        """Texts that have tokens, and not more than are read; each once, in their order."""
        most = self.encoder.max_length
        return [text for text in dict.fromkeys(texts) if 0 < self.encoder.count(text) <= most]

    def hide(
        self, text: TextTokens, labels: Tensor, no_label: int, seeds: Tensor, neither: Tensor
    ) -> tuple[TextTokens, Tensor]:
        """Text and labels of a training step, of which some are hidden.

        Args:
            text: Texts of the batch.
            labels: Labels, (B,) int64 in [0, no_label].
            no_label: Label that means none.
            seeds: One seed per image, (B,) int64.
            neither: True for images of which both are hidden, (B,) bool.
        """
        draw = uniform(seeds, _DRAW, (1,))[:, 0]
        alone = 1 - self.config.label_dropout
        # A label is hidden only beside a text that is not.
        unlabelled = (draw >= alone) & text.valid.any(1) | neither
        text = text.kept((draw >= self.config.dropout) & ~neither)
        return text, torch.where(unlabelled, no_label, labels)
