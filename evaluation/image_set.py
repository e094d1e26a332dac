"""The networks of a protocol, a set of images as they see it, and the distances between two sets.

Sets are filled batch by batch, in any order and by any number of processes, and merged; every
metric is then a function of the set alone. Means and covariances are float64 and O(D^2); the
features themselves are kept for some images only, for the metrics that need pairs.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.image_source import ImageSource
from ..data.images import to_uint8
from ..data.loader import eval_batches
from ..metrics.class_score import ClassScore, class_score_name
from ..metrics.feature_bank import FeatureBank
from ..metrics.frechet import FrechetStatistics, frechet_distance, metric_name
from ..metrics.image_hash import ImageHash, content_keys
from ..metrics.kid import kernel_distance
from ..metrics.manifold import ManifoldResult, manifold_metrics
from ..metrics.networks.build import build_features
from ..metrics.networks.extractor import FeatureExtractor
from ..metrics.networks.inception_fid import NUM_SPATIAL, InceptionFid
from ..metrics.presets import Preset
from ..metrics.protocol import Protocol
from ..progress import ProgressBar


@dataclass(frozen=True, eq=False)
class SeenImages:
    """Features and logits of a batch.

    Attributes:
        pooled: Features for the distances, (B, D).
        spatial: Features for sFID, (B, 2023), or None.
        logits: Logits of the classifier, (B, classes), or None.
        classified: Features that the classifier took them from, (B, D'), or None.
    """

    pooled: Tensor
    spatial: Tensor | None
    logits: Tensor | None
    classified: Tensor | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Networks:
    """The frozen networks of a protocol, on one device.

    Attributes:
        extractor: Feature network of the distances.
        classifier: Network of the class score, or None.
    """

    extractor: FeatureExtractor
    classifier: FeatureExtractor | None

    @classmethod
    def of(
        cls, preset: Preset, device: str | torch.device = "cpu", *, features: str | None = None
    ) -> "Networks":
        """The networks that a preset names; all weights are loaded and checked now.

        Args:
            preset: Rules of the protocol.
            device: Device of the networks.
            features: Name of another network for both, which makes another protocol; None: those of
                the preset.

        Raises:
            WeightsMissing: If a network has no weights on this machine; names the command that
                installs them.
            WeightsError: If the weights found are not the known ones.
        """
        extractor = build_features(features or preset.features).to(device)
        wanted = preset.classifier if features in (None, preset.features) else features
        if wanted == extractor.name:
            return cls(extractor=extractor, classifier=extractor if extractor.num_classes else None)
        classifier = None if wanted == "none" else build_features(wanted).to(device)
        return cls(extractor=extractor, classifier=classifier)

    @property
    def classifier_id(self) -> str:
        """Name and weights of the classifier, or `none`."""
        return "none" if self.classifier is None else self.classifier.id

    @property
    def has_spatial(self) -> bool:
        """Whether sFID can be measured."""
        return isinstance(self.extractor, InceptionFid)

    @torch.no_grad()
    def look(self, pixels: Tensor) -> SeenImages:
        """Features and logits of 8-bit images (B, 3, H, W), on any device."""
        device = next(self.extractor.buffers()).device
        images, spatial, logits, seen = pixels.to(device), None, None, None
        if isinstance(self.extractor, InceptionFid):
            pooled, spatial = self.extractor.pooled_and_spatial(images)
        else:
            pooled = self.extractor.pooled(images)
        if self.classifier is not None:
            same = self.classifier is self.extractor
            seen = pooled if same else self.classifier.pooled(images)
            logits = self.classifier.class_logits(seen)
        return SeenImages(pooled, spatial, logits, seen)


class ImageSet:
    """Statistics of a set of images.

    Args:
        networks: Networks that look at the images.
        most: Largest number of images in the bank: those with the smallest keys.

    Attributes:
        pooled: Mean and scatter of the features.
        spatial: Mean and scatter of the features of sFID, or None.
        bank: Features, keys (in the place of numbers) and labels of some images.
        classes: Statistics of the class score, or None.
        hash: Hash of all pixels.
        label_counts: Number of images of each label; -1 is none.
        broken: Reason by id of each image that could not be read.
    """

    def __init__(self, networks: Networks, *, most: int) -> None:
        extractor, classifier = networks.extractor, networks.classifier
        self.most = most
        self.pooled = FrechetStatistics(extractor.num_features, extractor_id=extractor.id)
        self.spatial: FrechetStatistics | None = None
        if networks.has_spatial:
            name = f"{extractor.id}.spatial"
            self.spatial = FrechetStatistics(NUM_SPATIAL, extractor_id=name)
        self.bank = FeatureBank(extractor.num_features, extractor_id=extractor.id)
        self.classes: ClassScore | None = None
        if classifier is not None:
            self.classes = ClassScore(classifier.num_classes, extractor_id=classifier.id)
        self.hash = ImageHash()
        self.label_counts: dict[int, int] = {}
        self.broken: dict[str, str] = {}

    def __len__(self) -> int:
        return sum(self.label_counts.values())

    def update(
        self,
        seen: SeenImages,
        pixels: Tensor,
        numbers: Tensor,
        labels: Tensor,
        *,
        keys: Tensor | None = None,
    ) -> Tensor:
        """Add a batch.

        Args:
            seen: Features and logits of the images.
            pixels: 8-bit images, uint8 (B, 3, H, W).
            numbers: Numbers of the images in their source, int64 (B,), each once.
            labels: Classes of the images, int64 (B,); -1 is none.
            keys: Keys that order the bank and choose its images, int64 (B,), each once; None: keys
                of the content, so that the order of the files does not matter.

        Returns:
            The keys that were used, int64 (B,).

        Raises:
            ValueError: If a feature is not finite.
        """
        self.pooled.update(seen.pooled)
        if self.spatial is not None and seen.spatial is not None:
            self.spatial.update(seen.spatial)
        if self.classes is not None and seen.logits is not None:
            self.classes.update(seen.logits)
        digests = self.hash.update(pixels)
        keys = content_keys(digests, numbers) if keys is None else keys.cpu()
        self.bank.update(seen.pooled, keys, labels)
        if len(self.bank) > 2 * self.most:
            self.bank.trim(self.most)
        for label in labels.tolist():
            self.label_counts[label] = self.label_counts.get(label, 0) + 1
        return keys

    def merge(self, other: "ImageSet") -> None:
        """Add another part of the same set, usually that of another process."""
        self.pooled.merge(other.pooled)
        if self.spatial is not None and other.spatial is not None:
            self.spatial.merge(other.spatial)
        if self.classes is not None and other.classes is not None:
            self.classes.merge(other.classes)
        self.bank.merge(other.bank)
        self.bank.trim(self.most)
        self.hash.merge(other.hash)
        for label, count in other.label_counts.items():
            self.label_counts[label] = self.label_counts.get(label, 0) + count
        self.broken |= other.broken

    def tensors(self) -> dict[str, Tensor]:
        """Everything but `broken` as tensors, for a file."""
        self.bank.trim(self.most)
        labels = sorted(self.label_counts)
        found: dict[str, Tensor] = {
            "pooled.count": torch.tensor(self.pooled.count),
            "pooled.mean": self.pooled.mean,
            "pooled.scatter": self.pooled.scatter,
            "bank.features": self.bank.features,
            "bank.numbers": self.bank.numbers,
            "bank.labels": bank_labels(self.bank),
            "hash": self.hash.digests,
            "labels": torch.tensor([[n, self.label_counts[n]] for n in labels]).reshape(-1, 2),
        }
        if self.spatial is not None:
            found["spatial.mean"] = self.spatial.mean
            found["spatial.scatter"] = self.spatial.scatter
        if self.classes is not None:
            found["classes"] = self.classes.state()
        return found

    def load_tensors(self, stored: Mapping[str, Tensor]) -> None:
        """Fill an empty set with the result of `tensors`.

        Raises:
            KeyError: If a tensor is missing.
            ValueError: If a tensor does not fit.
        """
        sides = {"pooled": self.pooled} | (
            {} if self.spatial is None else {"spatial": self.spatial}
        )
        for name, side in sides.items():
            mean, scatter = stored[f"{name}.mean"], stored[f"{name}.scatter"]
            for values, own in ((mean, side.mean), (scatter, side.scatter)):
                if values.shape != own.shape or values.dtype != own.dtype:
                    raise ValueError(f"{name}: found {tuple(values.shape)} {values.dtype}")
                if not bool(values.isfinite().all()):
                    raise ValueError(f"{name}: not finite")
            side.mean, side.scatter = mean, scatter
            side.count = int(stored["pooled.count"])
        names = ("bank.features", "bank.numbers", "bank.labels")
        self.bank.update(*(stored[name] for name in names))
        self.hash.load_digests(stored["hash"])
        if self.classes is not None:
            name = self.classes.extractor_id
            self.classes = ClassScore.from_state(stored["classes"], extractor_id=name)
        self.label_counts = dict(stored["labels"].tolist())
        if not len(self) == self.pooled.count == len(stored["hash"]):
            raise ValueError(f"{len(self)} labels, {self.pooled.count} images")

    def relabel(self, labels: Mapping[int, int], counts: Mapping[int, int]) -> bool:
        """Replace labels by key, and numbers of images by label; False if a key is unknown."""
        keys = self.bank.numbers.tolist()
        if any(key not in labels for key in keys):
            return False
        renewed = FeatureBank(self.bank.num_features, extractor_id=self.bank.extractor_id)
        own = torch.tensor([labels[key] for key in keys], dtype=torch.int64)
        renewed.update(self.bank.features, self.bank.numbers, own)
        self.bank, self.label_counts = renewed, dict(counts)
        return True

    def identity(self, *, with_labels: bool) -> str:
        """Hash of the pixels, and of the labels if they matter: 16 hexadecimal digits."""
        digest = self.hash.hexdigest()
        if with_labels:
            text = digest + str(sorted(self.label_counts.items()))
            digest = hashlib.sha256(text.encode()).hexdigest()
        return digest[:16]

    def counts(self, num_classes: int) -> Tensor:
        """Images of each class, int64 (num_classes,)."""
        return torch.tensor([self.label_counts.get(label, 0) for label in range(num_classes)])


def bank_labels(bank: FeatureBank) -> Tensor:
    """Class of every image of a bank, int64; -1 is none."""
    return torch.full_like(bank.numbers, -1) if bank.labels is None else bank.labels


def distances(
    samples: ImageSet,
    reference: ImageSet,
    protocol: Protocol,
    *,
    seed: int,
    device: str | torch.device = "cpu",
) -> tuple[dict[str, float], ManifoldResult]:
    """Every metric between two sets.

    Args:
        samples: Samples or reconstructions.
        reference: Real images that they are compared with.
        protocol: Protocol, which says how many subsets and neighbors to take.
        seed: Seed of the subsets of KID.
        device: Device on which pairs of features are compared.

    Returns:
        Values by name: `gFID` or `rFID`, `sFID`, `KID` with the FID Inception, `FD@NET` and
        `KD@NET` with others, `KID_deviation` or `KD_deviation@NET` where subsets are smaller than a
        set, `precision`, `recall`, `density`, `coverage`, and `class_score@NET` with a classifier;
        then the place of each image of the banks among the others.
    """
    network, suffix = samples.pooled.extractor_id.partition("#")[0], ""
    frechet, kernel_name = "gFID" if protocol.task == "samples" else "rFID", "KID"
    if metric_name(network) != "FID":
        suffix = f"@{network}"
        frechet, kernel_name = f"FD{suffix}", f"KD{suffix}"
    values = {frechet: frechet_distance(samples.pooled, reference.pooled)}
    if samples.spatial is not None and reference.spatial is not None:
        values["sFID"] = frechet_distance(samples.spatial, reference.spatial)
    for side in (samples, reference):
        side.bank.trim(side.most)
    vectors, others = samples.bank.features.to(device), reference.bank.features.to(device)
    subset_size = min(protocol.kid_subset_size, len(vectors), len(others))
    kernel = kernel_distance(
        vectors,
        others,
        subsets=protocol.kid_subsets,
        subset_size=subset_size,
        rng=torch.Generator().manual_seed(seed),
    )
    values[kernel_name] = kernel.mean
    if subset_size < max(len(vectors), len(others)):  # else every subset is the whole set
        values[f"{kernel_name.partition('@')[0]}_deviation{suffix}"] = kernel.std
    manifold = manifold_metrics(
        vectors,
        others,
        pr_neighbors=protocol.pr_neighbours,
        dc_neighbors=protocol.dc_neighbours,
    )
    for name in ("precision", "recall", "density", "coverage"):
        values[f"{name}{suffix}"] = getattr(manifold, name)
    if samples.classes is not None:
        classifier = protocol.classifier.partition("#")[0]
        values[class_score_name(classifier)] = samples.classes.compute()
    return values, manifold


def read_images(
    source: ImageSource,
    networks: Networks,
    preset: Preset,
    resolution: int,
    *,
    indices: Iterable[int] | None = None,
    batch_size: int = 32,
    bar: ProgressBar | None = None,
) -> ImageSet:
    """Statistics of the images of a source, without augmentation.

    Args:
        source: Source of the images.
        networks: Networks that look at the images.
        preset: Rules of the protocol: rule of resizing, size of the bank.
        resolution: Side of the images in pixels.
        indices: Indices of the images to read, e.g. the share of a process; None: all.
        batch_size: Number of images at once.
        bar: Progress bar to advance; None: none.

    Raises:
        DataError: If an image has a size that the preset refuses, or all images of the source are
            asked for and none can be read.
        ValueError: If a feature is not finite.
    """
    found = ImageSet(networks, most=preset.reference_bank)
    batches = eval_batches(
        source,
        resolution,
        batch_size,
        broken=found.broken,
        resize=preset.resize,
        indices=indices,
    )
    for batch in batches:
        pixels = to_uint8(batch["images"])
        try:
            found.update(networks.look(pixels), pixels, batch["numbers"], batch["labels"])
        except ValueError as error:
            where = f"{source.name} ({source.split}), {networks.extractor.id}"
            raise ValueError(f"{where}: {error}") from None
        if bar is not None:
            bar.update(len(pixels))
    return found
