"""Bayesian flow networks over discrete tokens (arXiv:2308.07037): a network that reads beliefs.

The mathematics is in `processes/bayesian_flow.py`, the network is the `DenoisingTransformer` of
binary latent diffusion, the sampler is in `sample/bayesian_flow.py`. Over `bits` every bit of a
position is a variable of its own; over `classes` a position is one variable, whose K believed
probabilities go in and whose K logits come out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

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
from .noise import normal, uniform
from .processes.bayesian_flow import BayesianFlow, BitFlow, ClassFlow

MAX_CLASSES = 2**14
"""Largest codebook that is read as classes: the beliefs of a position are as many numbers."""
_GAP = 18.0
"""K beta_1 of the published binarized MNIST: the mean gap of log-probabilities at the end."""


@dataclass(frozen=True, kw_only=True)
class BayesianFlowNetworkConfig(ConditionalConfig):
    """A Bayesian flow network; the trunk's defaults are those of binary latent diffusion.

    Args:
        transformer: Trunk of the network.
        over: Variables of the flow: the `bits` of a position, for tokens whose sizes are powers of
            two, or its joint index, as one of up to 2**14 `classes`.
        accuracy: Accuracy beta_1 of all messages together; None: 18 / K for variables of K values,
            9 for bits as published. Smaller values leave bits in doubt at the end; with larger ones
            more of the time passes after everything is decided.
        add_beliefs: Add the beliefs to the network's output, which then is what the other variables
            say of each one: the exact posterior is the sum of the two. The published networks
            give everything themselves, and first have to learn to repeat what they read; with a
            thousand classes the squared error then has next to no gradient at first.
        num_classes: Labels 0 to num_classes - 1; 0: unconditional, without a class token; None: as
            many as the training data has (the training script fills it in).
        null_label: Meaning of "no label": a `learned` token, or no token, `absent`.
        label_dropout: Share of images whose label and text are hidden, so that guidance works.
        text: Text as a condition; None: the model reads none.
    """

    __pydantic_config__ = STRICT
    type: Literal["bfn"] = "bfn"
    transformer: DenoisingTransformerConfig = field(default_factory=DenoisingTransformerConfig)
    over: Literal["bits", "classes"] = "bits"
    accuracy: float | None = None
    add_beliefs: bool = False
    num_classes: int | None = None
    null_label: Literal["learned", "absent"] = "learned"
    label_dropout: float = 0.1
    text: TextConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.accuracy is not None and not 0 < self.accuracy < math.inf:
            raise ValueError(f"accuracy: must be > 0, found {self.accuracy}")

    def build(self, spec: TokenSpec) -> "BayesianFlowNetwork":
        """The generator of this config for tokens of `spec`, freshly initialized."""
        return BayesianFlowNetwork(self, spec)


class BayesianFlowNetwork(Generator):
    """A Bayesian flow network over the bits or the indices of a tokenizer.

    Its variables are (B, N, n) bits or (B, N) indices, int64 (`variables`); the beliefs about them
    are (B, N, n) or (B, N, K), and so are the predicted logits.

    Args:
        config: Settings; `num_classes` must be given.
        spec: Spec of the tokenizer's tokens.

    Raises:
        ValueError: If they are not bits, or too many classes, or `num_classes` is not given.
    """

    config: BayesianFlowNetworkConfig
    monitor = "flow_loss"
    panels: ClassVar = {
        "loss of the flow (nats)": ["flow_loss", "val_flow_loss"],
        "accuracy": ["accuracy", "val_accuracy"],
    }
    likelihood = "bound"
    flow: BayesianFlow

    def __init__(self, config: BayesianFlowNetworkConfig, spec: TokenSpec) -> None:
        super().__init__(config, spec)
        if config.over == "bits":
            if not spec.is_binary:
                raise ValueError(
                    f"over: bits reads bits, and {spec} has sizes that are not powers of two; use "
                    "over: classes or {type: maskgit}"
                )
            sizes = (2,) * (spec.vocab_size.bit_length() - 1)
            self.flow = BitFlow(_GAP / 2 if config.accuracy is None else config.accuracy)
        else:
            if spec.vocab_size > MAX_CLASSES:
                raise ValueError(
                    f"over: classes reads up to {MAX_CLASSES} values of a position, and {spec} has "
                    f"{spec.vocab_size}; use over: bits or {{type: maskgit}}"
                )
            sizes = (spec.vocab_size,)
            default = _GAP / spec.vocab_size
            self.flow = ClassFlow(
                default if config.accuracy is None else config.accuracy, spec.vocab_size
            )
        self.read_spec = TokenSpec(spec.shape, sizes, spec.ordered)
        width = len(sizes) if config.over == "bits" else spec.vocab_size
        self.belief_shape = (spec.num_tokens, width)
        check_tokens(config.transformer, spec, text=config.text is not None)
        self.network = DenoisingTransformer(
            config.transformer, spec.shape, width, self.num_classes, config.null_label
        )
        if config.text is not None:
            self.text = TextCondition(config.text, config.transformer.width)

    def variables(self, tokens: Tokens) -> Tensor:
        """Variables of the flow, (B, N, n) bits or (B, N) indices, int64.

        Raises:
            SpecMismatch: If the tokens are of another spec.
        """
        read = tokens.require(self.spec, reader="this generator").regroup(
            self.read_spec.codebook_sizes
        )
        return read.indices if self.config.over == "bits" else read.indices[..., 0]

    def tokens(self, variables: Tensor, lengths: Tensor | None = None) -> Tokens:
        """Tokens of `variables`; the inverse of that function."""
        indices = variables if self.config.over == "bits" else variables[..., None]
        return Tokens(indices, self.read_spec, lengths).regroup(self.spec.codebook_sizes)

    def predict(
        self,
        beliefs: Tensor,
        t: Tensor,
        labels: Tensor,
        valid: Tensor | None = None,
        text: TextTokens | None = None,
    ) -> Tensor:
        """Logits of the data, of the shape of `beliefs`, float32.

        Args:
            beliefs: Log-odds of bits (B, N, n) or log-probabilities of classes up to a constant,
                (B, N, K).
            t: Times in [0, 1], (B,).
            labels: Labels, (B,) int64 in [0, num_classes]; `num_classes` = no label. Not changed.
            valid: True at real positions, (B, N) bool; None: all.
            text: Tokens of the prompts; None: there are none.
        """
        values = self.flow.network_input(beliefs)
        logits: Tensor = self.network(values, t.float(), labels, valid, text)
        return logits + beliefs.float() if self.config.add_beliefs else logits

    def forward(
        self,
        tokens: Tokens,
        labels: Tensor | None = None,
        prompts: Sequence[str] | None = None,
        *,
        seeds: Tensor | None = None,
    ) -> GeneratorOutput:
        """The continuous-time loss at one random time per image; see `Generator.forward`.

        The time of an image is uniform and comes from its own seed, so the times of a batch are not
        stratified; `bits_per_dim` stratifies those of one image.

        Metrics, over real variables: `flow_loss`, the loss in nats; `flow_loss_LOW_HIGH` of the
        images whose time is in that bucket, in percent; `accuracy`, the share of variables whose
        likeliest value is the true one.

        Source: arXiv:2308.07037 section 6 and algorithm 8.
        """
        x, valid = self.variables(tokens), valid_positions(tokens)
        seeds = seeds_or_new(seeds, len(tokens), x.device)
        draws = uniform(seeds, 0, (2,))
        t = draws[:, 0]
        labels, text = self.training_conditions(labels, prompts, seeds, draws[:, 1])
        logits = self.predict(self._believe(x, t, seeds, 1), t, labels, valid, text)
        loss, real = self.flow.loss(logits, x, t), _real(x, valid)
        count = real.flatten(1).sum(1).float()
        nats = (loss * real).flatten(1).sum(1)
        right = (self.flow.mode(logits) == x) & real
        metrics = {
            "flow_loss": torch.stack([nats.detach().sum(), count.sum()]),
            "accuracy": torch.stack([right.sum().float(), count.sum()]),
        }
        metrics |= bucket_metrics("flow_loss", t, nats.detach(), count)
        return GeneratorOutput(nats.sum() / count.sum(), count.sum(), metrics)

    @torch.no_grad()
    def bits_per_dim(
        self,
        tokens: Tokens,
        labels: Tensor | None = None,
        prompts: Sequence[str] | None = None,
        *,
        seeds: Tensor | None = None,
        num_steps: int | None = None,
        num_times: int = 64,
    ) -> Tensor:
        """Variational bound on the information of each image, in bits per bit of it, (B,) float64.

        What the messages cost, and then the data itself, given the beliefs at t = 1: an estimate
        without bias of the bound. 1 is what knowing nothing needs, over bits or classes.

        Args:
            tokens: Tokens of this generator's spec.
            labels: Labels, (B,) int64; None: no image has one.
            prompts: Texts, B of them; None: no image has one.
            seeds: One seed per image, (B,) int64: its estimate depends on nothing else. None: drawn
                from torch's global generator.
            num_steps: Messages of a chain, each at one draw of the beliefs before it: the n-step
                loss; None: that of continuous time.
            num_times: Times at which continuous time is estimated, one in each of as many equal
                parts of [0, 1].

        Raises:
            ValueError: If there is no step or time.

        Source: arXiv:2308.07037 section 3: the loss of the messages and the reconstruction loss.
        """
        if num_times < 1:
            raise ValueError(f"num_times: expected at least 1, found {num_times}")
        x, valid = self.variables(tokens), valid_positions(tokens)
        labels = self.fill_missing_labels(labels, len(tokens), x.device)
        seeds, real = seeds_or_new(seeds, len(tokens), x.device), _real(x, valid)
        text = self.read_text(prompts)

        def predict(t: Tensor, number: int) -> Tensor:
            beliefs = self._believe(x, t, seeds, 2 * number)
            return self.predict(beliefs, t, labels, valid, text).double()

        end = torch.ones(len(tokens), dtype=torch.float64, device=x.device)
        nats = -self.flow.log_probability(predict(end, 0), x)
        if num_steps is None:
            offsets = uniform(seeds, 1, (num_times,)).double()
            for number in range(num_times):
                t = (number + offsets[:, number]) / num_times
                nats += self.flow.loss(predict(t, number + 1), x, t) / num_times
        else:
            for number, alpha in enumerate(self.flow.alphas(num_steps, x.device), 1):
                noise = normal(seeds, 2 * number + 1, self.belief_shape)
                logits = predict(end * (number - 1) / num_steps, number)
                # With its mirror image errors of odd order in the noise cancel.
                nats += self.flow.step_loss(logits, x, alpha, noise) / 2
                nats += self.flow.step_loss(logits, x, alpha, -noise) / 2
        capacity = real.flatten(1).sum(1) * math.log(self.flow.size)
        return (nats * real).flatten(1).sum(1) / capacity

    def describe_likelihood(self, num_steps: int | None = None) -> str:
        """The bound that `bits_per_dim` is, in words; arguments and errors as there."""
        if num_steps is None:
            return "bound, continuous time"
        return f"bound, chain of {len(self.flow.alphas(num_steps))} steps"

    def calibrate(self, tokens: Tokens, labels: Tensor, *, seed: int) -> None:
        """Fit the hashes of `binarized_attention: hashed` to beliefs at random times.

        Padding counts as tokens here.
        """
        if self.config.transformer.binarized_attention != "hashed":
            return
        x = self.variables(tokens)
        seeds = seed + torch.arange(len(tokens), device=x.device)
        t = uniform(seeds, 0, (1,))[:, 0]
        labels = self.fill_missing_labels(labels, len(tokens), x.device)
        values = self.flow.network_input(self._believe(x, t, seeds, 1))
        self.network.fit_hashes(values, t, labels, seed)

    @property
    def trunks(self) -> tuple[AttentionTrunk, ...]:
        """The trunk of the network."""
        return (self.network.trunk,)

    def _believe(self, x: Tensor, t: Tensor, seeds: Tensor, draw: int) -> Tensor:
        """Beliefs about x after all messages up to times t, float64."""
        return self.flow.message(x, self.flow.beta(t), normal(seeds, draw, self.belief_shape))


def _real(x: Tensor, valid: Tensor | None) -> Tensor:
    """True at real variables, of the shape of x."""
    if valid is None:
        return torch.ones_like(x, dtype=torch.bool)
    return valid.reshape(*valid.shape, *(1,) * (x.ndim - 2)).expand_as(x)
