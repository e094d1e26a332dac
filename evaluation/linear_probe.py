"""Linear probing: how well classes can be told from the features between a generator's blocks.

The generator is frozen. Every image becomes tokens, the hidden states after a block are averaged
over the positions, and a linear classifier is trained on them: BatchNorm without weights, then one
linear layer, as in MAE (arXiv:2111.06377, appendix A). There is no augmentation, and plain SGD in
the place of LARS, which is made for batches of many thousands.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ..config import STRICT
from ..data.image_source import ImageSource
from ..data.loader import eval_batches, evenly_spaced
from ..generators.bigr import BiGR

_NORM_EPS = 1e-6
_INITIAL_STD = 0.01
_LR_BATCH = 256  # images of the batch that the learning rate is given for


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How the classifier is trained.

    Args:
        epochs: Passes over the training split.
        batch_size: Images of a step, at least 2; all where there are fewer.
        lr: First learning rate for 256 images a step, > 0; it falls to 0 as half a cosine.
        momentum: Of SGD.
        seed: Of the first weights and the order.
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
    """Images as their features.

    Args:
        values: Of each image and layer, (M, L, D) float32, on the CPU.
        labels: (M,) int64, at least 0.
        broken: Reason by id of the images that could not be read.
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
        generator: In eval mode, with its tokenizer.
        train: Labelled images that the classifiers learn from.
        val: Labelled images that they are measured on.
        config: Of the classifiers; None: the defaults.
        layers: Which blocks, from 0, in rising order; None: all.
        label: The class that the generator is told; None: none.
        limit: Images of each split at most; None: all.
        batch_size: Images that become features at once.
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
    if len(learned.labels.unique()) < 2:
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
        generator: In eval mode, with its tokenizer.
        source: Labelled images.
        layers: As of `BiGR.features`.
        label: The class that the generator is told, in [0, num_classes); None: none.
        limit: Images at most; None: all.
        batch_size: Images at once.
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
    with tqdm(total=total, unit="image", disable=not progress) as bar:
        for batch in batches:
            if (batch["labels"] < 0).any():
                raise ValueError(f"{source.name}: an image has no label, so there is no class")
            tokens = tokenizer.encode(batch["images"].to(device))
            told = None
            if label is not None:
                told = torch.full((len(tokens),), label, dtype=torch.int64, device=device)
            values.append(generator.features(tokens, told, layers=layers).cpu())
            labels.append(batch["labels"])
            bar.update(len(tokens))
    return Features(torch.cat(values), torch.cat(labels), broken)


def fit_probe(
    features: Tensor, labels: Tensor, num_classes: int, config: ProbeConfig
) -> nn.Sequential:
    """A classifier of features, in eval mode; the same for a seed.

    Args:
        features: (M, D) float32.
        labels: (M,) int64 in [0, num_classes).
        num_classes: C.
        config: Settings.

    Returns:
        A module from (M, D) to logits (M, C).

    Raises:
        ValueError: If there are fewer than 2 images.
    """
    count, width = features.shape
    if count < 2:
        raise ValueError(f"features: expected at least 2 images to learn from, found {count}")
    rng = torch.Generator().manual_seed(config.seed)
    linear = nn.utils.skip_init(nn.Linear, width, num_classes)
    nn.init.normal_(linear.weight, std=_INITIAL_STD, generator=rng)
    nn.init.zeros_(linear.bias)
    # The features never change, so the statistics are means over all steps, not running ones.
    norm = nn.BatchNorm1d(width, eps=_NORM_EPS, momentum=None, affine=False)
    probe = nn.Sequential(norm, linear)
    size = min(config.batch_size, count)
    steps = config.epochs * (count // size)  # what is left over of an epoch is skipped
    peak = config.lr * size / _LR_BATCH
    optimizer = torch.optim.SGD(linear.parameters(), lr=peak, momentum=config.momentum)
    step = 0
    for _ in range(config.epochs):
        for rows in torch.randperm(count, generator=rng).split(size)[: count // size]:
            optimizer.param_groups[0]["lr"] = peak * (1 + math.cos(math.pi * step / steps)) / 2
            loss = F.cross_entropy(probe(features[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    return probe.eval()


@torch.no_grad()
def accuracy(probe: nn.Module, features: Tensor, labels: Tensor) -> float:
    """Share of the images whose label has the highest logit, in [0, 1]."""
    return (probe(features).argmax(-1) == labels).float().mean().item()
