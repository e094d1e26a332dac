"""Config of one tokenizer training run: the dataclasses behind `configs/tokenizer/*.yaml`."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from ..config import STRICT, ConfigError
from ..data.image_source import SourceSettings
from ..data.splits import VAL_SHARE
from ..data.transforms import AugmentConfig
from ..metrics.networks.build import available_features
from ..tokenizers.build import TokenizerConfig
from .discriminator import DiscriminatorConfig
from .engine import OptimizerConfig, RunConfig
from .initial import check_ignored
from .launcher import choose_precision
from .losses import GANLoss
from .schedules import BoostConfig, lr_at


@dataclass(frozen=True, kw_only=True)
class DataConfig(SourceSettings):
    """Training and validation data.

    Args:
        source: Images: `bundled:emoji`, a folder, tars, or `hf:owner/name`; split `train`.
        val_source: Source of the validation split `val`, or a plain folder of validation images;
            None: the same source.
        val_share: Share of the images that is held out for validation if there is no `val_source`
            and the source has no split `val`: at least 16 images, at most a quarter of fewer than
            64, chosen by a hash of their names.
        image_member: Which member of a sample in a tar is the image, by the end of its name after
            the first dot, e.g. `left.png`; `*`: every image member is a sample of its own. None:
            the only one, or the one without a second dot (`0001.jpg` beside `0001.seg.png`).
        max_pixels: Largest number of pixels of a decoded image; larger ones are skipped as broken.
        augment: Random augmentation of the training images.
        num_workers: Reader processes per training process; 0 is best for small cached sets.
    """

    __pydantic_config__ = STRICT
    source: str = "bundled:emoji"
    val_source: str | None = None
    val_share: float = VAL_SHARE
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    num_workers: int = 0


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Forms of the image losses; their weights are `loss_weights`.

    Args:
        reconstruction: Squared or absolute differences, in [0, 1] pixel units.
        perceptual: Feature networks in order of preference; the first whose weights are on this
            machine is used, and the resolved config names it alone. Empty: no perceptual loss.
        entropy_boost: Extra weight of the entropy loss at the start.
    """

    __pydantic_config__ = STRICT
    reconstruction: Literal["mse", "l1"] = "mse"
    perceptual: tuple[str, ...] = ()
    entropy_boost: BoostConfig = field(default_factory=BoostConfig)


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """Adversarial training: the discriminator and its schedule.

    Args:
        discriminator: Network of the discriminator.
        optimizer: Optimizer of the discriminator; its learning rate warms up from the step at which
            the discriminator starts to train.
        loss: Form of both adversarial losses.
        start_step: First step with the adversarial term in the tokenizer's loss.
        lead_steps: Steps that the discriminator trains alone before that.
        ramp_steps: Steps over which the term rises linearly to its weight; 0: at once.
        adaptive: Multiply the term by the ratio of gradient norms at the last decoder layer.
        adaptive_max: Largest ratio of gradient norms.
        lecam_decay: Decay of LeCam's running mean logits; used if `loss_weights` has `lecam`.
    """

    __pydantic_config__ = STRICT
    discriminator: DiscriminatorConfig
    optimizer: OptimizerConfig
    loss: GANLoss = "hinge"
    start_step: int = 0
    lead_steps: int = 0
    ramp_steps: int = 0
    adaptive: bool = False
    adaptive_max: float = 1e4
    lecam_decay: float = 0.999

    def __post_init__(self) -> None:
        if not 0 <= self.lead_steps <= self.start_step:
            raise ValueError(
                f"lead_steps: expected 0 to start_step {self.start_step}, found {self.lead_steps}"
            )
        if self.ramp_steps < 0 or self.adaptive_max < 0 or not 0 <= self.lecam_decay < 1:
            raise ValueError(
                "expected ramp_steps >= 0, adaptive_max >= 0 and 0 <= lecam_decay < 1, found "
                f"{self.ramp_steps}, {self.adaptive_max} and {self.lecam_decay}"
            )

    @property
    def first_step(self) -> int:
        """First step of the discriminator's own training."""
        return self.start_step - self.lead_steps

    def share_at(self, step: float) -> float:
        """Share of the adversarial weight at `step`, 0 before the start."""
        if step < self.start_step:
            return 0.0
        return min(1.0, (step - self.start_step + 1) / self.ramp_steps) if self.ramp_steps else 1.0


@dataclass(frozen=True, kw_only=True)
class TokenizerRunConfig(RunConfig):
    """Length, batches, precision and reporting of a tokenizer's run.

    Args:
        memory_format: Memory layout of images and convolutions; `auto` times both on the first
            images and keeps the faster one. Two runs are equal bit for bit only in the same layout.
    """

    __pydantic_config__ = STRICT
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerConfig:
    """One run of `train/tokenizer.py`.

    Args:
        tokenizer: Tokenizer to train.
        data: Training and validation data.
        losses: Forms of the image losses.
        loss_weights: Weight of every loss by name. Every loss that the run produces needs one, and
            every weight must meet its loss.
        optimizer: Optimizer of the tokenizer.
        adversarial: The discriminator; None: no adversarial training.
        ema_decay: Highest decay of the weight average that is evaluated and saved.
        init: Trained tokenizer to start from: a folder, `bundled:NAME` or `hub:owner/name`, with
            weights of the same names and shapes; None: random weights.
        init_ignore: Names or patterns of weights of `init` that are not taken, e.g.
            `[quantizer, decoder.conv_out]`; they start from random weights, and may have other
            shapes or be missing.
        run: Length, batches, precision and reporting.
    """

    __pydantic_config__ = STRICT
    tokenizer: TokenizerConfig
    data: DataConfig = field(default_factory=DataConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    loss_weights: dict[str, float]
    optimizer: OptimizerConfig
    adversarial: AdversarialConfig | None = None
    ema_decay: float = 0.999
    init: str | None = None
    init_ignore: tuple[str, ...] = ()
    run: TokenizerRunConfig

    def __post_init__(self) -> None:
        check_ignored(self.init, self.init_ignore)
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay: expected 0 to below 1, found {self.ema_decay}")
        for name, weight in self.loss_weights.items():
            if not 0 <= weight < float("inf"):
                raise ValueError(f"loss_weights.{name}: must be >= 0, found {weight}")

    def rates_at(self, step: int) -> tuple[float, ...]:
        """Learning rates of the tokenizer and the discriminator at a step; 0 before its start."""
        rates = (lr_at(step, self.run.steps, self.optimizer.lr),)
        adversarial = self.adversarial
        if adversarial is None:
            return rates
        since, steps = step - adversarial.first_step, self.run.steps - adversarial.first_step
        return (*rates, lr_at(since, steps, adversarial.optimizer.lr) if since >= 0 else 0.0)


def check_weights(config: TrainTokenizerConfig, tokenizer_losses: Sequence[str]) -> None:
    """Refuse a weight without a loss and a loss without a weight.

    Raises:
        ConfigError: If there is either; the message names all of both kinds.
    """
    emitted = {"reconstruction", *tokenizer_losses}
    emitted |= {"perceptual"} if config.losses.perceptual else set()
    optional = set()
    if config.adversarial is not None:
        emitted, optional = emitted | {"adversarial"}, {"lecam"}
    given = set(config.loss_weights)
    idle, unweighted = sorted(given - emitted - optional), sorted(emitted - given)
    if idle or unweighted:
        raise ConfigError(
            f"loss_weights: weights without a loss: {', '.join(idle) or 'none'}; "
            f"losses without a weight: {', '.join(unweighted) or 'none'}. "
            "Set one with loss_weights.NAME=VALUE, remove one with loss_weights.NAME=null"
        )


def resolve(
    config: TrainTokenizerConfig, started: TrainTokenizerConfig | None = None
) -> TrainTokenizerConfig:
    """Fill in the settings that depend on the machine: precision, feature network, layout.

    Args:
        config: Config as loaded.
        started: Config that the run started with, if this is a resume: `memory_format: auto` takes
            its layout. Without `started`, `auto` is left for `fix_layout`.

    Raises:
        ConfigError: If the launcher asks for another precision than the config.
    """
    precision = choose_precision(config.run.mixed_precision)
    run = dataclasses.replace(config.run, mixed_precision=precision)
    if started is not None and run.memory_format == "auto":
        layout = started.run.memory_format
        if layout == "auto":  # a run of an earlier version, which trained by this rule
            slow = not torch.cuda.is_available() and precision == "bf16"
            layout = "contiguous" if slow else "channels_last"
        run = dataclasses.replace(run, memory_format=layout)
    losses = config.losses
    if len(losses.perceptual) > 1:
        found = available_features()
        chosen = next(
            (name for name in losses.perceptual if found.get(name)), losses.perceptual[-1]
        )
        losses = dataclasses.replace(losses, perceptual=(chosen,))
    return dataclasses.replace(config, run=run, losses=losses)
