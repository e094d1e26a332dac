"""Alignment of images and captions without CLIP: features of `efflite0`, vectors of `words`.

`metrics/alignment.py` has the formula. Here are the pairs of real images and captions that its maps
are fitted to, the captions that an image's own one is looked for among, and what stands beside the
value of samples: real images that no model was trained on (the ceiling), and the same samples with
each other's captions (the floor).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..collectives import broadcast_from_main, gather_merged, own_share
from ..data.image_source import ImageSource
from ..data.images import to_uint8
from ..data.loader import eval_batches, evenly_spaced
from ..metrics.alignment import FOLDS, METRICS, MIN_CAPTIONS, CaptionMaps, fit_maps, next_ones
from ..metrics.feature_bank import FeatureBank
from ..metrics.image_hash import ImageHash
from ..metrics.networks.build import FeatureExtractor, WeightsMissing, build_features
from ..progress import progress_bar
from ..text.words import load_words, rows_of
from .captions import Captions, text_digest
from .image_set import Networks, SeenImages
from .settings import EvaluationSettings

NETWORK = "efflite0"
"""Network of the features."""
MOST_PAIRS = 20_000
"""Largest number of training images that maps are fitted to, and of real images beside the value;
evenly spaced in their split."""


def caption_vectors(texts: Sequence[str]) -> Tensor:
    """Mean vector of each caption's words, (B, E) float64; every text has a known word."""
    table = load_words().vectors
    rows = [table[list(rows_of(text))].double().mean(0) for text in texts]
    return torch.stack(rows) if rows else table.new_zeros(0, table.shape[1]).double()


def caption_folds(texts: Sequence[str]) -> Tensor:
    """Fold of each caption, (B,) int64: the same for captions of the same words in any order."""
    blobs = [str(sorted(rows_of(text))).encode() for text in texts]
    heads = [int.from_bytes(hashlib.sha256(blob).digest()[:8], "big") for blob in blobs]
    return torch.tensor([head % FOLDS for head in heads], dtype=torch.int64)


class CaptionedImages:
    """Features of the images of a set whose caption has a known word, and their captions.

    Args:
        extractor: Network of the features.

    Attributes:
        captions: Caption of each image, by its number.
        digests: What identifies each image and its caption, where pixels were given.
    """

    def __init__(self, extractor: FeatureExtractor) -> None:
        self.bank = FeatureBank(extractor.num_features, extractor_id=extractor.id)
        self.captions: dict[int, str] = {}
        self.digests: list[str] = []

    def __len__(self) -> int:
        return len(self.captions)

    def update(
        self,
        features: Tensor,
        numbers: Tensor,
        captions: Sequence[str],
        pixels: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            features: Features, (B, D).
            numbers: Numbers of the images in their set, int64 (B,), each once.
            captions: Captions, B of them.
            pixels: 8-bit images, uint8 (B, 3, H, W), for `digests`; None: none are added.
        """
        known = [row for row, caption in enumerate(captions) if rows_of(caption)]
        self.bank.update(features[known], numbers[known])
        self.captions |= {int(numbers[row]): captions[row] for row in known}
        if pixels is not None:
            found = ImageHash().update(pixels[known])
            pairs = zip(found, (captions[row] for row in known), strict=True)
            self.digests += [f"{digest.hex()} {caption}" for digest, caption in pairs]

    def merge(self, other: "CaptionedImages") -> None:
        """Add the images of another process."""
        self.bank.merge(other.bank)
        self.captions |= other.captions
        self.digests += other.digests

    @property
    def texts(self) -> list[str]:
        """Captions by rising image number, as the features of the bank."""
        return [self.captions[number] for number in sorted(self.captions)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Alignment:
    """What it takes to measure how well images point to their captions, and what real ones get.

    Attributes:
        extractor: Network of the features.
        captions: Captions that an own one is looked for among.
        maps: Maps from features to vectors; None on other processes than the main one.
        num_pairs: Number of real images that the maps were fitted to.
        digest: Hash of the pairs and of the captions, 8 hexadecimal digits.
        ceiling: Values of real validation images by name; empty without any.
        num_ceiling: Number of these images.
    """

    extractor: FeatureExtractor
    captions: Captions
    maps: CaptionMaps | None
    num_pairs: int
    digest: str
    ceiling: dict[str, float]
    num_ceiling: int

    @property
    def vectors_id(self) -> str:
        """Name of the vectors and the start of their hash."""
        return f"words#{load_words().fingerprint[:8]}"

    @property
    def rule(self) -> str:
        """All that values depend on besides the images, for the protocol."""
        return (
            f"{self.extractor.id} to {self.vectors_id}, ridge regression of {self.num_pairs:,} "
            f"pairs in {FOLDS} folds, {len(self.captions):,} captions, #{self.digest}"
        )

    def look(self, pixels: Tensor, seen: SeenImages, networks: Networks) -> Tensor:
        """Features (B, D) of 8-bit images that the networks of the protocol have seen already."""
        if self.extractor is networks.extractor:
            return seen.pooled
        if self.extractor is networks.classifier and seen.classified is not None:
            return seen.classified
        return _features(self.extractor, pixels)

    def values(self, images: CaptionedImages) -> dict[str, float]:
        """Mean values of images with their own captions; not a number if there is no image."""
        return self._means(images, images.texts)

    def floor(self, images: CaptionedImages, seed: int) -> dict[str, float]:
        """Mean values of images with each other's captions; no image keeps its own.

        Args:
            images: Images with captions.
            seed: Seed of the shuffle.
        """
        texts = images.texts
        return self._means(images, [texts[i] for i in next_ones(len(texts), seed).tolist()])

    def _means(self, images: CaptionedImages, texts: Sequence[str]) -> dict[str, float]:
        assert self.maps is not None, "the main process measures"
        return _mean_scores(self.maps, images.bank.features, texts, self.captions)

    def to_dict(self, images: CaptionedImages, seed: int) -> dict[str, Any]:
        """What stands beside the values of samples in a report.

        Args:
            images: Samples of the first repetition.
            seed: Seed of the floor.
        """
        assert self.maps is not None, "the main process reports"
        return {
            "features": self.extractor.id,
            "vectors": self.vectors_id,
            "ridge": self.maps.ridge,
            "num_pairs": self.num_pairs,
            "num_captions": len(self.captions),
            "num_samples": len(images),
            "floor": self.floor(images, seed),
            "num_ceiling": self.num_ceiling,
            "ceiling": self.ceiling,
        }


def open_alignment(
    captions: Captions,
    networks: Networks,
    settings: EvaluationSettings,
    resolution: int,
    *,
    training: ImageSource | None,
    validation: ImageSource | None,
) -> tuple[Alignment | None, list[str]]:
    """Fit the maps to real images and captions, and measure real validation images.

    Args:
        captions: Captions of the reference.
        networks: Networks of the protocol, one of which may be that of the features.
        settings: Settings of the evaluation.
        resolution: Side of the images in pixels.
        training: Real images with captions to fit the maps to; None: there are none.
        validation: Real images for the ceiling; None: there are none.

    Returns:
        Alignment and no sentence, or None and a sentence that says why.
    """
    candidates = captions.kept(lambda text: bool(rows_of(text)))
    if len(candidates) < MIN_CAPTIONS:
        return None, [
            f"No alignment of images and captions: the reference has {len(candidates)} different "
            f"captions of known words, expected at least {MIN_CAPTIONS}."
        ]
    if training is None:
        return None, [
            "No alignment of images and captions: there is no training split to learn it from."
        ]
    try:
        extractor = _extractor(networks, settings)
    except WeightsMissing as error:
        return None, [f"No alignment of images and captions: {error}."]
    pairs = _read_pairs(training, extractor, settings, resolution)
    held_out = None
    if validation is not None:
        held_out = _read_pairs(validation, extractor, settings, resolution)
    maps, ceiling = None, {}
    if pairs is not None and len(torch.unique(caption_folds(pairs.texts))) > 1:
        texts = pairs.texts
        maps = fit_maps(pairs.bank.features, caption_vectors(texts), caption_folds(texts))
        if held_out:
            ceiling = _mean_scores(maps, held_out.bank.features, held_out.texts, candidates)
    if not broadcast_from_main(maps is not None, settings.processes):
        return None, [
            f"No alignment of images and captions: {training.name} ({training.split}) has too few "
            "captions of known words to learn it from."
        ]
    digests = [] if pairs is None else sorted(pairs.digests)
    return Alignment(
        extractor=extractor,
        captions=candidates,
        maps=maps,
        num_pairs=0 if pairs is None else len(pairs),
        digest=text_digest([*digests, *candidates.texts]),
        ceiling=ceiling,
        num_ceiling=0 if held_out is None else len(held_out),
    ), []


def _mean_scores(
    maps: CaptionMaps, features: Tensor, texts: Sequence[str], candidates: Captions
) -> dict[str, float]:
    """Means of the values of images by name."""
    if not texts:
        return dict.fromkeys(METRICS, torch.nan)
    known = set(candidates.texts)
    scores = maps.score(
        features,
        caption_vectors(texts),
        caption_folds(texts),
        caption_vectors(candidates.texts),
        torch.tensor([text in known for text in texts]),
    )
    return {name: float(values.mean()) for name, values in scores.items()}


def _extractor(networks: Networks, settings: EvaluationSettings) -> FeatureExtractor:
    """The network of the features, one of those of the protocol if it is among them."""
    for network in (networks.classifier, networks.extractor):
        if network is not None and network.name == NETWORK:
            return network
    return build_features(NETWORK).to(settings.device)


@torch.no_grad()
def _features(extractor: FeatureExtractor, pixels: Tensor) -> Tensor:
    return extractor.pooled(pixels.to(next(extractor.buffers()).device))


def _read_pairs(
    source: ImageSource,
    extractor: FeatureExtractor,
    settings: EvaluationSettings,
    resolution: int,
) -> CaptionedImages | None:
    """Features and captions of a source's images; None on other processes than the main one."""
    chosen = evenly_spaced(len(source), MOST_PAIRS)
    indices = [chosen[i] for i in own_share(len(chosen), settings.processes)]
    silent = not settings.progress or settings.rank > 0

    def read() -> CaptionedImages:
        found = CaptionedImages(extractor)
        batches = eval_batches(
            source, resolution, settings.batch_size, resize=settings.preset.resize, indices=indices
        )
        title = f"{source.split} images and captions"
        with progress_bar(len(indices), "image", title=title, silent=silent) as bar:
            for batch in batches:
                pixels = to_uint8(batch["images"])
                features = _features(extractor, pixels)
                found.update(features, batch["numbers"], batch["captions"], pixels)
                bar.update(len(pixels))
        return found

    return gather_merged(read, settings.processes)
