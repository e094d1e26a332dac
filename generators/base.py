"""Parts that all generators share: base class, output of a training step, conditions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from ..kernels.low_bit_attention.op import LowBitPrecision
from ..text.characters import has_text
from ..tokenizers.base import Tokenizer
from ..tokens.tokens import Tokens, TokenSpec
from .conditions import TextCondition, TextConfig, TextTokens
from .networks.attention import AttentionBackend


class ConditionalConfig:
    """Base of the generators' config dataclasses: builds, and checks the fields about conditions.

    It is no dataclass itself, so that each config states the fields at their own place: files and
    fingerprints follow the order of the fields.

    Attributes:
        num_classes: Labels 0 to num_classes - 1; 0: no labels; None: not known yet.
        label_dropout: Share of images whose label and text are hidden in training.
        text: Text as a condition; None: the model reads none.
    """

    num_classes: int | None
    label_dropout: float
    text: TextConfig | None = None

    def build(self, spec: TokenSpec) -> "Generator":
        """The generator of this config for tokens of `spec`, freshly initialized.

        Raises:
            ValueError: If it cannot learn tokens of `spec`, with the reason.
        """
        raise NotImplementedError

    def __post_init__(self) -> None:
        if self.num_classes is not None and self.num_classes < 0:
            raise ValueError(f"num_classes: expected at least 0, found {self.num_classes}")
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"label_dropout: expected 0 to 1, found {self.label_dropout}")


class AttentionTrunk(Protocol):
    """A network whose attention can be computed by several backends."""

    @property
    def attention(self) -> str:
        """Name of the attention in use, for records."""
        ...

    def set_attention_backend(
        self, backend: AttentionBackend, low_bit_precision: LowBitPrecision | None = None
    ) -> None:
        """See `Generator.set_attention_backend`."""
        ...


@dataclass(frozen=True, eq=False)
class GeneratorOutput:
    """One training step of a generator.

    Args:
        loss: Loss to minimize, a scalar: a weighted mean.
        weight: Sum of the weights that the mean was divided by, a scalar. Means of several
            processes are averaged with these weights.
        metrics: Sum and count, (2,) float32, of every metric by name. Sums and counts add up over
            steps and processes; a count may be 0.
    """

    loss: Tensor
    weight: Tensor
    metrics: dict[str, Tensor]


class Generator(nn.Module):
    """A model of `Tokens`, given labels, prompts, both or nothing.

    `forward` is the training step, always: only it synchronizes gradients between processes.
    Labels are (B,) int64 in [0, num_classes); -1 and `num_classes` both mean "no label". Prompts
    are B texts; an empty one means "no text".

    Args:
        config: Settings; `num_classes` must be given.
        spec: Tokens that the generator learns and emits.

    Attributes:
        config: Settings it was built from.
        spec: Tokens that it learns and emits.
        num_classes: Number of labels; 0: there are none.
        text: Reader of prompts; None: the model has none.
        classes: Names by label, if the training data had any.
        monitor: Name of the metric that says how well it predicts, the smaller the better.
        panels: Curves of a training: title of a panel to the names of the metrics in it.
        likelihood: Whether `bits_per_dim` is the `exact` likelihood of an image or a variational
            `bound` on it; None: there is neither.
        uniform_loss: Loss of uniform predictions, in nats, where the loss is a cross-entropy.
        fingerprint: Hash of config and weights, once loaded from a folder.
        card: Model card of the folder, once loaded.
        origin: Folder, `bundled:NAME` or `hub:owner/name` that it was loaded from; else None.

    Raises:
        ValueError: If `num_classes` is not given.
    """

    config: Any
    spec: TokenSpec
    num_classes: int
    text: TextCondition | None
    classes: tuple[str, ...] = ()
    monitor: ClassVar[str]
    panels: ClassVar[dict[str, list[str]]]
    likelihood: ClassVar[Literal["exact", "bound"] | None] = None
    uniform_loss: float | None = None
    fingerprint: str | None = None
    card: dict[str, Any] | None = None
    origin: str | None = None

    def __init__(self, config: ConditionalConfig, spec: TokenSpec) -> None:
        super().__init__()
        if config.num_classes is None:
            raise ValueError("num_classes: not given; 0 is unconditional")
        self.config, self.spec, self.num_classes = config, spec, config.num_classes
        self.text = None

    def forward(
        self,
        tokens: Tokens,
        labels: Tensor | None = None,
        prompts: Sequence[str] | None = None,
        *,
        seeds: Tensor | None = None,
    ) -> GeneratorOutput:
        """The training step.

        Args:
            tokens: Tokens of this generator's spec.
            labels: Labels, (B,) int64; None: no image has one.
            prompts: Texts, B of them; None: no image has one. Not read without a reader of text.
            seeds: One seed per image, (B,) int64: everything drawn for an image (but dropout)
                depends on its seed alone. None: drawn from torch's global generator.
        """
        raise NotImplementedError

    def bits_per_dim(
        self,
        tokens: Tokens,
        labels: Tensor | None = None,
        prompts: Sequence[str] | None = None,
        *,
        seeds: Tensor | None = None,
        num_steps: int | None = None,
    ) -> Tensor:
        """Information of each image, or a bound on it, in bits per bit of its capacity.

        1 is what knowing nothing needs. `describe_likelihood` says what the value is.

        Args:
            tokens: Tokens of this generator's spec.
            labels: Labels, (B,) int64; None: no image has one.
            prompts: Texts, B of them; None: no image has one.
            seeds: One seed per image, (B,) int64: the estimate of a bound depends on nothing else.
                None: drawn from torch's global generator. An exact value draws nothing.
            num_steps: Steps of the chain whose bound is computed; None: the generator's own.

        Returns:
            (B,) float64.

        Raises:
            ValueError: If there is no likelihood, or not with so many steps.
        """
        raise ValueError(self._no_likelihood())

    def describe_likelihood(self, num_steps: int | None = None) -> str:
        """Kind of the value of `bits_per_dim` in words: exact, or a bound of which chain.

        Args:
            num_steps: Steps of the chain, as for `bits_per_dim`.

        Raises:
            ValueError: If there is no likelihood, or not with so many steps.
        """
        raise ValueError(self._no_likelihood())

    def _no_likelihood(self) -> str:
        return (
            f"bits: generators of type {self.config.type} have no likelihood, nor a bound on it: "
            "they learn to fill in hidden tokens in any order; expected a type with an exact "
            "likelihood or a bound, such as ar or bld"
        )

    def fill_missing_labels(
        self, labels: Tensor | None, batch: int, device: torch.device
    ) -> Tensor:
        """Labels with `num_classes` for every "no label", (B,) int64, a new tensor."""
        if labels is None or self.num_classes == 0:
            return torch.full((batch,), self.num_classes, dtype=torch.int64, device=device)
        return torch.where(labels < 0, self.num_classes, labels)

    @property
    def conditional(self) -> bool:
        """Whether there is a condition, so that guidance has something to act on."""
        return self.num_classes > 0 or self.text is not None

    @property
    def reads_text(self) -> bool:
        """Whether the model reads prompts."""
        return self.text is not None

    def read_text(self, prompts: Sequence[str] | None, *, whole: bool = False) -> TextTokens | None:
        """Tokens of prompts; None: the model reads no text, or there is none.

        Args:
            prompts: Texts, B of them; None: no image has one.
            whole: Whether every row is as long as the longest text that the model reads, for fixed
                shapes.
        """
        if self.text is None or prompts is None or not (whole or has_text(prompts)):
            return None
        tokens: TextTokens = self.text(prompts, self.text.encoder.max_length if whole else 1)
        return tokens

    def training_conditions(
        self,
        labels: Tensor | None,
        prompts: Sequence[str] | None,
        seeds: Tensor,
        draw: Tensor,
    ) -> tuple[Tensor, TextTokens | None]:
        """Labels (B,) int64 in [0, num_classes] and texts of a training step, some hidden.

        Args:
            labels: Labels, (B,) int64; None: no image has one.
            prompts: Texts, B of them; None: no image has one.
            seeds: One seed per image, (B,) int64.
            draw: Uniform number of each image that decides whether both are hidden, (B,).
        """
        labels = self.fill_missing_labels(labels, len(seeds), seeds.device)
        neither = draw < self.config.label_dropout
        if self.text is None:
            return torch.where(neither, self.num_classes, labels), None
        if prompts is not None and len(prompts) != len(seeds):
            raise ValueError(f"prompts: expected {len(seeds)}, one per image, found {len(prompts)}")
        if prompts is not None and has_text(prompts):
            text = self.text(prompts)
        else:  # something is read all the same: every weight takes part in every step
            text = self.text(["a"] * len(seeds)).kept(torch.zeros_like(neither))
        text, labels = self.text.hide(text, labels, self.num_classes, seeds, neither)
        return labels, text

    def calibrate(self, tokens: Tokens, labels: Tensor, *, seed: int) -> None:
        """Fit what is not learned by gradients; training calls it once, before its first step.

        Args:
            tokens: Tokens of a first batch.
            labels: Labels of the batch, (B,) int64.
            seed: Seed of everything that is drawn.
        """

    @property
    def trunks(self) -> Sequence[AttentionTrunk]:
        """The networks with attention, the one that `attention` names first."""
        raise NotImplementedError

    @property
    def attention(self) -> str:
        """Name of the attention in use, for records."""
        return self.trunks[0].attention

    def set_attention_backend(
        self, backend: AttentionBackend, low_bit_precision: LowBitPrecision | None = None
    ) -> None:
        """Compute attention by this backend from now on; config and files keep theirs.

        Args:
            backend: One of `AttentionBackend`.
            low_bit_precision: Precision of `low_bit`; None: the config's.

        Raises:
            RuntimeError: If the backend is not installed.
            ValueError: If this generator's attention is not computed by it.
        """
        for trunk in self.trunks:
            trunk.set_attention_backend(backend, low_bit_precision)

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer that decodes its tokens; not a part of the module (no weights, no `to`).

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


def seeds_or_new(seeds: Tensor | None, batch: int, device: torch.device) -> Tensor:
    """Seeds of a batch, (B,) int64; new ones from torch's global generator if there are none."""
    return torch.randint(2**62, (batch,), device=device) if seeds is None else seeds


def valid_positions(tokens: Tokens) -> Tensor | None:
    """True at real positions, (B, N) bool; None: all positions are real."""
    return None if tokens.lengths is None else tokens.valid
