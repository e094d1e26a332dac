"""Config of one generator training run: the dataclasses behind `configs/generator/*.yaml`."""

import contextlib
import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from ..config import STRICT, ConfigError
from ..data.image_source import ImageSource, SourceSettings
from ..data.images import BrokenImage
from ..data.loader import evenly_spaced
from ..data.splits import VAL_SHARE
from ..data.train_val import held_out
from ..data.transforms import AugmentConfig
from ..generators.base import Generator
from ..generators.build import GeneratorConfig
from ..sample.sampler import Sampling
from ..sample.samplers import build_sampling
from ..text.characters import plain
from ..tokens.store import TokenStore
from .engine import OptimizerConfig, RunConfig
from .initial import check_ignored
from .launcher import choose_precision
from .schedules import lr_at

LOOKED_AT = 64
"""Images of a source whose captions are looked at before a training begins."""


@dataclass(frozen=True, kw_only=True)
class GeneratorDataConfig(SourceSettings):
    """Training and validation data.

    Args:
        source: Images: `bundled:emoji`, a folder, tars, or `hf:owner/name`; split `train`. Not read
            if `store` names a token store.
        val_source: Source of the validation split `val`, or a plain folder of validation images;
            None: the same source.
        val_share: Share of the images that is held out for validation if there is no `val_source`
            and the source has no split `val`: at least 16 images, at most a quarter of fewer than
            64, chosen by a hash of their names.
        image_member: Which member of a sample in a tar is the image, by the end of its name after
            the first dot, e.g. `left.png`; `*`: every image member is a sample of its own. None:
            the only one, or the one without a second dot (`0001.jpg` beside `0001.seg.png`).
        max_pixels: Largest number of pixels of a decoded image; larger ones are skipped as broken.
        tokens: Origin of the tokens: `store` reads tokens that were encoded beforehand, `images`
            encodes freshly augmented images in every step.
        store: A token store of the training set; None: the run writes its own, OUT/store, before
            its first step.
        views: Views of every image in the store that the run writes; the first is not augmented.
            Not used with an existing store, which has views of its own.
        augment: Random augmentation of the further views, or of every step with `tokens: images`.
        num_workers: Reader processes per training process, for `tokens: images`.
    """

    __pydantic_config__ = STRICT
    source: str = "bundled:emoji"
    val_source: str | None = None
    val_share: float = VAL_SHARE
    tokens: Literal["store", "images"] = "store"
    store: str | None = None
    views: int = 1
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    num_workers: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.views < 1 or self.num_workers < 0:
            raise ValueError(
                "expected views >= 1 and num_workers >= 0, found "
                f"{self.views} and {self.num_workers}"
            )
        if self.tokens == "images" and self.store is not None:
            raise ValueError("store: not read with tokens: images; remove one of them")
        writes = self.tokens == "store" and self.store is None
        if writes and (self.views > 1) != self.augment.enabled:
            raise ValueError(
                f"views: {self.views} with augmentation {'on' if self.augment.enabled else 'off'}; "
                "the first view is plain, so augmentation needs 2 or more views, and further views "
                "need augmentation"
            )


@dataclass(frozen=True, kw_only=True)
class TrainGeneratorConfig:
    """One run of `train/generator.py`.

    Args:
        generator: Generator to train.
        tokenizer: Frozen tokenizer: a folder, `bundled:NAME` or `hub:owner/name`.
        data: Training and validation data.
        optimizer: Optimizer of the generator.
        ema_decay: Highest decay of the weight average that is evaluated, sampled and saved.
        samples: Settings of the generator's sampler for the preview pictures; also the defaults of
            the saved generator.
        samples_per_class: Preview pictures of each class, at least 1.
        init: Trained generator to start from, of the same tokenizer: a folder, `bundled:NAME` or
            `hub:owner/name`, with weights of the same names and shapes; None: random weights.
        init_ignore: Names or patterns of weights of `init` that are not taken, e.g. a table of
            other classes; they start from random weights, and may have other shapes or be missing.
            `tokenizer`: the generator may be one of another tokenizer.
        run: Length, batches, precision and reporting.
    """

    __pydantic_config__ = STRICT
    generator: GeneratorConfig
    tokenizer: str
    data: GeneratorDataConfig = field(default_factory=GeneratorDataConfig)
    optimizer: OptimizerConfig
    ema_decay: float = 0.999
    samples: dict[str, Any] = field(default_factory=dict)
    samples_per_class: int = 4
    init: str | None = None
    init_ignore: tuple[str, ...] = ()
    run: RunConfig

    def __post_init__(self) -> None:
        check_ignored(self.init, self.init_ignore)
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay: expected 0 to below 1, found {self.ema_decay}")
        if self.samples_per_class < 1:
            raise ValueError(
                f"samples_per_class: expected at least 1, found {self.samples_per_class}"
            )

    def rates_at(self, step: int) -> tuple[float, ...]:
        """Learning rate at a step."""
        return (lr_at(step, self.run.steps, self.optimizer.lr),)

    @property
    def sampling(self) -> Sampling:
        """Settings of the sampler: `samples`, checked.

        Raises:
            ConfigError: If the generator's sampler has no such setting, or it is out of range.
        """
        return build_sampling(self.generator, self.samples, name="samples")


def resolve_generator(config: TrainGeneratorConfig, num_classes: int) -> TrainGeneratorConfig:
    """Fill in the settings that depend on machine and data: precision and number of classes.

    Args:
        config: Config as loaded.
        num_classes: Number of classes in the training data.

    Raises:
        ConfigError: If the data has more classes than `generator.num_classes` says, the samples are
            to be guided and there is nothing to guide them, a training with text is to be
            compiled, or the launcher asks for another precision than the config.
    """
    generator, precision = config.generator, choose_precision(config.run.mixed_precision)
    run = dataclasses.replace(config.run, mixed_precision=precision)
    if generator.num_classes is None:
        generator = dataclasses.replace(generator, num_classes=num_classes)
    if 0 < (generator.num_classes or 0) < num_classes:
        raise ConfigError(
            f"generator.num_classes: {generator.num_classes}, but the data has {num_classes} "
            "classes; null takes the data's, 0 ignores them"
        )
    sampling = config.sampling
    if generator.num_classes == 0 and generator.text is None and sampling.guidance != 1:
        raise ConfigError(
            f"samples.guidance: {sampling.guidance:g}, but without classes there is nothing "
            "to guide; set samples.guidance=1.0"
        )
    if run.compile and generator.text is not None:
        raise ConfigError(
            "run.compile: a training with generator.text cannot be compiled, since its texts are "
            "read inside of the step; set run.compile=false"
        )
    samples = dataclasses.asdict(sampling)
    return dataclasses.replace(config, run=run, generator=generator, samples=samples)


def check_captions(generator: Generator, captions: Iterable[str | None], name: str) -> None:
    """Refuse to learn text from data without a caption that can be read.

    Args:
        generator: Generator to be trained.
        captions: Captions of some or all images.
        name: Name of the data, for the message.

    Raises:
        ConfigError: If the generator reads text, and no caption has a word that it knows.
    """
    if generator.text is None:
        return
    given = {plain(caption) for caption in captions if caption} - {""}
    if not given:
        raise ConfigError(
            f"generator.text: {name} has no captions to learn from; expected a text file beside "
            "each image, or the caption of a tar or data set; generator.text=null trains without"
        )
    encoder = generator.text.encoder
    if not any(encoder.count(caption) for caption in given):
        raise ConfigError(
            f"generator.text: {name} has captions of which the text encoder '{encoder.name}' knows "
            "no word; expected English for words and minilm, or generator.text={encoder: {type: "
            "bytes}}"
        )


def some_captions(source: ImageSource) -> list[str | None]:
    """Captions of images that are evenly spaced in a source, of at most 64 that can be read."""
    found: list[str | None] = []
    for index in evenly_spaced(len(source), min(len(source), LOOKED_AT)):
        with contextlib.suppress(BrokenImage):
            found.append(source.read(index).caption)
    return found


def check_val_source(config: TrainGeneratorConfig, store: TokenStore, val: ImageSource) -> None:
    """Refuse to validate on other data than the store's, unless `data.val_source` names it.

    Raises:
        ConfigError: If the two sources differ; the message names both. If the validation images
            were held out of the source, but are in the store.
    """
    if config.data.val_source is not None:
        return
    if store.header.source != val.name:
        raise ConfigError(
            f"data.store is of {store.header.source!r}, validation would be on {val.name!r}; say "
            "what to validate on with data.val_source"
        )
    if held_out(val):
        both = len(set(store.ids) & {val.id_of(index) for index in range(len(val))})
        if both:
            raise ConfigError(
                f"data.store holds {both} of the {len(val)} images of {val.name} that would be "
                f"held out for validation; encode it with --val-share {config.data.val_share:g}, "
                "name others with data.val_source, or leave data.store out: the run then writes a "
                "store without them"
            )
