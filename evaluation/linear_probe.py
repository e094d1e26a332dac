"""Linear probing: how well a linear classifier tells classes from features of a generator's blocks.

The generator is frozen. Every image becomes tokens, the hidden states after a block are averaged
over the positions, and a linear classifier is trained on them: BatchNorm without weights, then one
linear layer, as in MAE (arXiv:2111.06377, appendix A). There is no augmentation, and plain SGD in
place of LARS, which is made for batches of many thousands.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import STRICT
from ..data.image_source import ImageSource
from ..data.loader import eval_batches, evenly_spaced
from ..generators.bigr import BiGR
from ..progress import progress_bar

_NORM_EPS = 1e-6
_INITIAL_STD = 0.01
_LR_BATCH = 256  # images of the batch that the learning rate is given for


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Training of the linear classifier.

    Args:
        epochs: Number of passes over the training split, at least 1.
        batch_size: Number of images per step, at least 2; all images where there are fewer.
        lr: First learning rate for 256 images per step, > 0; it falls to 0 as half a cosine.
        momentum: Momentum of SGD, in [0, 1).
        seed: Seed of the first weights and of the order of the images.
    """

    __pydantic_config__ = STRICT
    epochs: int = 90
    batch_size: int = 256
    lr: float = 0.1
    momentum: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2:
            raise ValueError(
                f"expected epochs >= 1 and batch_size >= 2, found {self.epochs} and "
                f"{self.batch_size}"
            )
        if not (0 < self.lr < math.inf and 0 <= self.momentum < 1):
            raise ValueError(
                f"expected lr > 0 and momentum 0 to below 1, found {self.lr} and {self.momentum}"
            )


@dataclass(frozen=True, eq=False)
class Features:
    """Features and labels of the images of a source.

    Args:
        values: Features of M images after L blocks, (M, L, D) float32, on the CPU.
        labels: Classes, (M,) int64, at least 0.
        broken: Reason by id of each image that could not be read.
    """

    values: Tensor
    labels: Tensor
    broken: dict[str, str]


def probe_layers(
    generator: BiGR,
    train: ImageSource,
    val: ImageSource,
    config: ProbeConfig | None = None,
    *,
    layers: Sequence[int] | None = None,
    label: int | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    progress: bool = False,
) -> dict[str, Any]:
    """Accuracy of a linear classifier on the features after each of some blocks.

    Args:
        generator: Generator in eval mode, with its tokenizer.
        train: Labelled images to train the classifiers on.
        val: Labelled images to measure the classifiers on.
        config: Settings of the classifiers' training; None: the defaults.
        layers: Numbers of the blocks, from 0, in rising order; None: all.
        label: Class that conditions the generator; None: none.
        limit: Largest number of images of each split; None: all.
        batch_size: Number of images at once while features are computed.
        progress: Show a progress bar on stderr.

    Returns:
        `layers`: by number, `accuracy` on the validation images and `train_accuracy`, in [0, 1];
        `best_layer` and its `accuracy`, chosen on those same images; `largest_class`, the share of
        the commonest label among them, which is what guessing it would score; `protocol`, all that
        the numbers depend on; and `broken`, reason by id of the images that could not be read.

    Raises:
        DataError: If no image can be read.
        ValueError: If an image has no label, the classes of the splits have other names, a label or
            layer does not exist, or the generator is in training mode.
    """
    config = config or ProbeConfig()
    if train.classes != val.classes:
        raise ValueError(
            f"the classes of {train.name} and {val.name} differ: {list(train.classes)} and "
            f"{list(val.classes)}"
        )
    count = generator.config.transformer.num_layers
    layers = list(range(count)) if layers is None else list(layers)
    options: dict[str, Any] = {
        "layers": layers,
        "label": label,
        "limit": limit,
        "batch_size": batch_size,
        "progress": progress,
    }
    learned, measured = (extract_features(generator, split, **options) for split in (train, val))
    num_classes = 1 + int(torch.cat([learned.labels, measured.labels]).max())
    if len(torch.unique(learned.labels)) < 2:
        raise ValueError(f"{train.name}: expected images of two classes or more, found one")
    results = {}
    for place, layer in enumerate(layers):
        probe = fit_probe(learned.values[:, place], learned.labels, num_classes, config)
        results[str(layer)] = {
            "accuracy": accuracy(probe, measured.values[:, place], measured.labels),
            "train_accuracy": accuracy(probe, learned.values[:, place], learned.labels),
        }
    best = max(results, key=lambda layer: results[layer]["accuracy"])
    return {
        "layers": results,
        "best_layer": int(best),
        "accuracy": results[best]["accuracy"],
        "largest_class": (measured.labels.bincount().max() / len(measured.labels)).item(),
        "protocol": {
            "features": "hidden states after the block, no norm, mean over positions",
            "classifier": "batch norm without weights, linear; SGD",
            **asdict(config),
            "told_class": "none" if label is None else label,
            "train": f"{train.name} {train.split}, {len(learned.labels)} images, not augmented",
            "val": f"{val.name} {val.split}, {len(measured.labels)} images",
            "classes": num_classes,
            "generator": generator.fingerprint,
        },
        "broken": learned.broken | measured.broken,
    }


@torch.no_grad()
def extract_features(
    generator: BiGR,
    source: ImageSource,
    *,
    layers: Sequence[int],
    label: int | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    progress: bool = False,
) -> Features:
    """The features of the images of a source, resized and centre-cropped.

    Args:
        generator: Generator in eval mode, with its tokenizer.
        source: Labelled images.
        layers: Numbers of the blocks, from 0, in rising order.
        label: Class that conditions the generator, in [0, num_classes); None: none.
        limit: Largest number of images, evenly spaced in the source; None: all.
        batch_size: Number of images at once.
        progress: Show a progress bar on stderr.

    Raises:
        DataError: If no image can be read.
        ValueError: If an image has no label, the label or a layer does not exist, or the generator
            is in training mode.
    """
    if generator.training:
        raise ValueError("the generator is in training mode; call generator.eval() first")
    if label is not None and not 0 <= label < generator.num_classes:
        raise ValueError(f"label: expected 0 to {generator.num_classes - 1}, found {label}")
    tokenizer, device = generator.tokenizer, next(generator.parameters()).device
    values: list[Tensor] = []
    labels: list[Tensor] = []
    broken: dict[str, str] = {}
    total = len(source) if limit is None else min(limit, len(source))
    chosen = evenly_spaced(len(source), total)  # a folder is sorted by class
    batches = eval_batches(source, tokenizer.resolution, batch_size, broken=broken, indices=chosen)
    with progress_bar(total, "image", silent=not progress) as bar:
        for batch in batches:
            if (batch["labels"] < 0).any():
                raise ValueError(f"{source.name}: an image has no label, so there is no class")
            tokens = tokenizer.encode(batch["images"].to(device))
            condition = None
            if label is not None:
                condition = torch.full((len(tokens),), label, dtype=torch.int64, device=device)
            values.append(generator.features(tokens, condition, layers=layers).cpu())
            labels.append(batch["labels"])
            bar.update(len(tokens))
    return Features(torch.cat(values), torch.cat(labels), broken)


def fit_probe(
    features: Tensor, labels: Tensor, num_classes: int, config: ProbeConfig
) -> nn.Sequential:
    """Train a linear classifier of features; returned in eval mode, the same for a seed.

    Args:
        features: Features of M images, (M, D) float32.
        labels: Classes, (M,) int64 in [0, num_classes).
        num_classes: Number of classes C.
        config: Settings of the training.

    Returns:
        A module from features (M, D) to logits (M, C).

    Raises:
        ValueError: If there are fewer than 2 images.
    """
    count, width = features.shape
    if count < 2:
        raise ValueError(f"features: expected at least 2 images to learn from, found {count}")
    rng = torch.Generator().manual_seed(config.seed)
    linear = nn.Linear(width, num_classes, device="meta").to_empty(device="cpu")
    nn.init.normal_(linear.weight, std=_INITIAL_STD, generator=rng)
    nn.init.zeros_(linear.bias)
    # The features never change, so the statistics are means over all steps, not running ones.
    norm = nn.BatchNorm1d(width, eps=_NORM_EPS, momentum=None, affine=False)
    probe = nn.Sequential(norm, linear)
    size = min(config.batch_size, count)
    steps = config.epochs * (count // size)  # a last, smaller batch of an epoch is skipped
    peak = config.lr * size / _LR_BATCH
    optimizer = torch.optim.SGD(linear.parameters(), lr=peak, momentum=config.momentum)
    step = 0
    for _ in range(config.epochs):
        for rows in torch.split(torch.randperm(count, generator=rng), size)[: count // size]:
            optimizer.param_groups[0]["lr"] = peak * (1 + math.cos(math.pi * step / steps)) / 2
            loss = F.cross_entropy(probe(features[rows]), labels[rows])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            step += 1
    return probe.eval()


@torch.no_grad()
def accuracy(probe: nn.Module, features: Tensor, labels: Tensor) -> float:
    """Share of the images whose label has the highest logit, in [0, 1]."""
    return float((probe(features).argmax(-1) == labels).float().mean())
