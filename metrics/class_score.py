"""Class score: confidence and variety of the classes of images, from streaming float64 sums.

The formula is that of the Inception Score, but the network is another one, because no package
contains the 1008-way head of the score's own Inception. So the number is called `class_score@NET`,
never IS, and is not comparable with published Inception Scores. Like those it can be large for
images that resemble no photograph, as long as the network is confident.
"""

import torch
from torch import Tensor

from .checks import check_vectors
from .networks.extractor import FeatureExtractor


class ClassScore:
    """Exponential of the mean KL divergence of image class distributions from their mean.

    One value for the whole set, without splits: 1 if all images have the same class distribution,
    `num_classes` if each has one class with certainty and all classes are equally frequent. It
    grows with the number of images: compare values of one fixed number only.

    Args:
        num_classes: Number K of classes, the length of the logit vectors.
        extractor_id: Network and weights that the logits come from, e.g. `resnet50#1a2b3c4d`.
            Sums of different ids cannot be merged; "" matches only "".

    Source: arXiv:1606.03498, section 4.
    """

    def __init__(self, num_classes: int, *, extractor_id: str = "") -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes: expected >= 1, found {num_classes}")
        self.num_classes = num_classes
        self.extractor_id = extractor_id
        self.count = 0
        self.entropy = 0.0  # sum over images of their entropies in nats
        self.probabilities = torch.zeros(num_classes, dtype=torch.float64)  # sum over images

    @torch.no_grad()
    def update(self, logits: Tensor) -> None:
        """Add a batch.

        Args:
            logits: Class scores before the softmax, shape (B, K), any float dtype, any device;
                summed in float64 on the CPU.

        Raises:
            ValueError: If shape or dtype are wrong, or a value is not finite.
        """
        check_vectors(logits, "logits", self.num_classes)
        logits = logits.detach().cpu().double()
        probabilities = logits.softmax(1)
        self.count += len(logits)
        self.entropy += float(torch.special.entr(probabilities).sum())
        self.probabilities += probabilities.sum(0)

    def merge(self, other: "ClassScore") -> None:
        """Add the images of another object.

        Raises:
            ValueError: If the other one has another number of classes or network.
        """
        if self.num_classes != other.num_classes:
            raise ValueError(
                f"numbers of classes differ: {self.num_classes} and {other.num_classes}"
            )
        if self.extractor_id != other.extractor_id:
            raise ValueError(
                f"scores of different networks: {self.extractor_id!r} and {other.extractor_id!r}"
            )
        self.count += other.count
        self.entropy += other.entropy
        self.probabilities += other.probabilities

    def state(self) -> Tensor:
        """All sums as one vector; the sum of several vectors is the state of all images together.

        Returns:
            Float64, shape (K + 2,): count, sum of entropies in nats, sum of probabilities.
        """
        head = torch.tensor([self.count, self.entropy], dtype=torch.float64)
        return torch.cat([head, self.probabilities])

    @classmethod
    def from_state(cls, state: Tensor, *, extractor_id: str = "") -> "ClassScore":
        """Class score from a `state` vector, for example a sum over processes.

        Raises:
            ValueError: If the state is not a float64 vector of at least three finite numbers.
        """
        if state.ndim != 1 or len(state) < 3 or state.dtype != torch.float64:
            found = f"{tuple(state.shape)} {state.dtype}"
            raise ValueError(f"state: expected (K + 2,) torch.float64, found {found}")
        if not bool(torch.isfinite(state).all()):
            raise ValueError("state holds NaN or infinite values")
        state = state.detach().cpu()
        score = cls(len(state) - 2, extractor_id=extractor_id)
        score.count, score.entropy = round(float(state[0])), float(state[1])
        score.probabilities = state[2:].clone()
        return score

    def compute(self) -> float:
        """Class score of all images seen, in [1, K].

        Raises:
            ValueError: If no image was seen.
        """
        if not self.count:
            raise ValueError("a class score needs at least 1 image, found 0")
        # The mean KL is the entropy of the mean distribution less the mean of the entropies.
        marginal = torch.special.entr(self.probabilities / self.count).sum()
        divergence = marginal - self.entropy / self.count
        return float(divergence.clamp_min(0).exp())


def class_score_name(extractor: FeatureExtractor | str) -> str:
    """Metric name of the class score of a network, e.g. `class_score@resnet50`."""
    return f"class_score@{extractor if isinstance(extractor, str) else extractor.name}"
