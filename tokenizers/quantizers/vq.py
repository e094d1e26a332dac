"""VQ, vector quantization with a codebook trained by gradient (arXiv:1711.00937).

As in VQGAN+ (arXiv:2409.16211): the codebook loss moves the codes only, the commitment loss the
latents only, with a straight-through gradient. Options: codes and latents on the unit sphere
(arXiv:2110.04627; LlamaGen), the rotation trick (arXiv:2410.06424), an entropy loss on softmax
assignments.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...config import STRICT
from ..base import Quantizer, QuantizerOutput, finite_latents, float_latents, settled
from .entropy import categorical_entropies
from .vector import nearest_codes, rotation_trick, squared_distances, straight_through, unit


@dataclass(frozen=True, kw_only=True)
class VQConfig:
    """Settings of `VQ`.

    Args:
        codebook_size: Number of codes K, 2 to 2**24.
        dim: Width D of a code; also the latent width.
        normalize: Compare and decode on the unit sphere (cosine distance).
        gradient: Gradient estimator of the lookup, `straight_through` or `rotation`.
        entropy_temperature: Temperature of the soft assignments in the entropy loss, > 0; None: no
            such loss. The loss needs a table of tokens x K.
        batch_entropy_weight: Weight gamma in the entropy loss H_sample - gamma * H_batch.
    """

    __pydantic_config__ = STRICT
    type: Literal["vq"] = "vq"
    codebook_size: int
    dim: int
    normalize: bool = False
    gradient: Literal["straight_through", "rotation"] = "straight_through"
    entropy_temperature: float | None = None
    batch_entropy_weight: float = 1.0

    def __post_init__(self) -> None:
        check_codebook(self.codebook_size, self.dim)
        if self.entropy_temperature is not None and not self.entropy_temperature > 0:
            raise ValueError(f"entropy_temperature: must be > 0, found {self.entropy_temperature}")


class VQ(Quantizer):
    """Nearest codebook row of each latent (B, N, D); one index per position.

    Example:
        >>> vq = VQ(VQConfig(codebook_size=2, dim=2))
        >>> _ = vq.codebook.data.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
        >>> indices = vq.encode(torch.tensor([[[0.9, 0.7]]]))
        >>> indices.tolist(), vq.lookup(indices).tolist()
        ([[[1]]], [[[1.0, 1.0]]])
    """

    def __init__(self, config: VQConfig | None = None, **settings: Any) -> None:
        super().__init__()
        self.config = config = settled(VQConfig, config, settings)
        self.dim = config.dim
        self.codebook_sizes = (config.codebook_size,)
        entropy = ("entropy",) if config.entropy_temperature is not None else ()
        self.loss_names = ("commitment", "codebook", *entropy)
        bound = 1 / config.codebook_size
        self.codebook = nn.Parameter(
            torch.empty(config.codebook_size, config.dim).uniform_(-bound, bound)
        )

    def forward(self, latents: Tensor) -> QuantizerOutput:
        """Codes with the chosen gradient, and the losses.

        `codebook` is the mean of (e - sg z)**2, `commitment` that of (sg e - z)**2, over all
        elements; `entropy`, if configured, H_sample - gamma H_batch with affinity -|z - e|**2.
        """
        with torch.autocast(latents.device.type, enabled=False):
            z, table = self._project(float_latents(latents)), self._project(self.codebook.float())
            indices = nearest_codes(z.detach().flatten(0, 1), table.detach()).view(z.shape[:2])
            codes = nn.functional.embedding(indices, table)
            losses = {
                "commitment": (z - codes.detach()).square().mean(),
                "codebook": (codes - z.detach()).square().mean(),
            }
            if self.config.entropy_temperature is not None:
                affinity = -squared_distances(z.flatten(0, 1), table)
                sample, batch = categorical_entropies(affinity / self.config.entropy_temperature)
                losses["entropy"] = sample - self.config.batch_entropy_weight * batch
            estimator = rotation_trick if self.config.gradient == "rotation" else straight_through
            return QuantizerOutput(estimator(z, codes), indices[..., None], losses)

    def encode(self, latents: Tensor) -> Tensor:
        """Index of the nearest code, (B, N, 1); the lowest of equally near ones."""
        with torch.no_grad(), torch.autocast(latents.device.type, enabled=False):
            z, table = self._project(finite_latents(latents)), self._project(self.codebook.float())
            return nearest_codes(z.flatten(0, 1), table).view(*z.shape[:2], 1)

    def lookup(self, indices: Tensor) -> Tensor:
        """Codebook rows (B, N, D) of indices (B, N, 1), on the unit sphere with `normalize`."""
        return self._project(nn.functional.embedding(indices[..., 0], self.codebook).float())

    def _project(self, vectors: Tensor) -> Tensor:
        return unit(vectors) if self.config.normalize else vectors


def check_codebook(codebook_size: int, dim: int) -> None:
    """Check the size and the width of a codebook.

    Raises:
        ValueError: If the size is below 2 or above 2**24, or the width below 1.
    """
    if not 2 <= codebook_size <= 2**24:
        raise ValueError(f"codebook_size: expected 2 to 2**24, found {codebook_size}")
    if dim < 1:
        raise ValueError(f"dim: expected at least 1, found {dim}")
