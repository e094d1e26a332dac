"""VQ with a codebook of running means, and revival of dead codes (arXiv:1711.00937, appendix A.1).

Codes follow the latents assigned to them by exponential moving averages instead of a gradient.
The first batch can initialize the codebook, and a code whose share of the tokens falls below a
fraction of the uniform share is replaced by a random latent of the batch. Counts and sums run over
all processes, and the random choice depends on the number of updates only, so that any number of
processes and any resumed run give the same codebook.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...collectives import gather_rows, sum_over_processes
from ...config import STRICT
from ..base import Quantizer, QuantizerOutput, finite_latents, float_latents, settled
from .vector import nearest_codes, rotation_trick, straight_through, unit
from .vq import check_codebook


@dataclass(frozen=True, kw_only=True)
class EMAVQConfig:
    """Settings of `EMAVQ`.

    Args:
        codebook_size: Number of codes K, 2 to 2**24.
        dim: Width D of a code; also the latent width.
        decay: Decay of the running counts and sums per update, in [0, 1).
        epsilon: Laplace smoothing of the counts.
        revival_share: Fraction of the mean count, in [0, 1), below which the running count of a
            code makes it dead; 0 turns revival off. It is a fraction because a count per batch
            would depend on the batch size.
        data_init: Replace the codebook by random latents of the first training batch.
        normalize: Compare and decode on the unit sphere (cosine distance).
        gradient: Gradient estimator of the lookup, `straight_through` or `rotation`.
    """

    __pydantic_config__ = STRICT
    type: Literal["ema_vq"] = "ema_vq"
    codebook_size: int
    dim: int
    decay: float = 0.99
    epsilon: float = 1e-5
    revival_share: float = 0.03
    data_init: bool = True
    normalize: bool = False
    gradient: Literal["straight_through", "rotation"] = "straight_through"

    def __post_init__(self) -> None:
        check_codebook(self.codebook_size, self.dim)
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay: expected 0 <= decay < 1, found {self.decay}")
        if not 0 <= self.revival_share < 1:
            raise ValueError(f"revival_share: expected 0 to below 1, found {self.revival_share}")


class EMAVQ(Quantizer):
    """Nearest code of each latent (B, N, D); the codebook is a buffer updated by `forward`.

    Example:
        >>> settings = EMAVQConfig(codebook_size=2, dim=1, decay=0.0, revival_share=0.0)
        >>> ema_vq = EMAVQ(settings)
        >>> output = ema_vq(torch.tensor([[[0.0], [1.0]]]))  # initializes the codebook
        >>> ema_vq.codebook.flatten().sort().values.round(decimals=3)
        tensor([0., 1.])
        >>> ema_vq.lookup(ema_vq.encode(torch.tensor([[[0.8]]]))).round(decimals=3)
        tensor([[[1.]]])
    """

    loss_names = ("commitment",)

    codebook: Tensor
    counts: Tensor
    sums: Tensor
    num_updates: Tensor

    def __init__(self, config: EMAVQConfig | None = None, **settings: Any) -> None:
        super().__init__()
        self.config = config = settled(EMAVQConfig, config, settings)
        self.dim = config.dim
        self.codebook_sizes = (config.codebook_size,)
        codebook = self._project(torch.randn(config.codebook_size, config.dim, dtype=torch.float32))
        self.register_buffer("codebook", codebook)
        self.register_buffer("counts", torch.ones(config.codebook_size, dtype=torch.float32))
        self.register_buffer("sums", codebook.clone())
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    def forward(self, latents: Tensor) -> QuantizerOutput:
        """Codes with the chosen gradient and the commitment loss, mean of (sg e - z)**2.

        In training mode the codebook is updated after the lookup, so the codes returned are those
        that the indices meant when they were chosen.
        """
        with torch.autocast(latents.device.type, enabled=False):
            z = self._project(float_latents(latents))
            flat = z.detach().flatten(0, 1)
            if self.training and self.config.data_init and int(self.num_updates) == 0:
                self._replace(torch.ones_like(self.counts, dtype=torch.bool), flat, count=1.0)
            indices = nearest_codes(flat, self.codebook)
            codes = nn.functional.embedding(indices, self.codebook).view_as(z)
            if self.training:
                self._update(flat, indices)
            losses = {"commitment": (z - codes).square().mean()}
            estimator = rotation_trick if self.config.gradient == "rotation" else straight_through
            return QuantizerOutput(estimator(z, codes), indices.view(*z.shape[:2], 1), losses)

    def encode(self, latents: Tensor) -> Tensor:
        """Index of the nearest code, (B, N, 1); the lowest of equally near ones."""
        with torch.no_grad(), torch.autocast(latents.device.type, enabled=False):
            flat = self._project(finite_latents(latents)).flatten(0, 1)
            return nearest_codes(flat, self.codebook).view(*latents.shape[:2], 1)

    def lookup(self, indices: Tensor) -> Tensor:
        """Codebook rows (B, N, D) float32 of indices (B, N, 1)."""
        return nn.functional.embedding(indices[..., 0], self.codebook)

    @torch.no_grad()
    def _update(self, flat: Tensor, indices: Tensor) -> None:
        """Update the running means by one step, then replace dead codes.

        Latents that are not finite count for nothing: a single NaN would stay in a mean for ever.
        """
        size, decay = self.config.codebook_size, self.config.decay
        finite = flat.isfinite().all(1)
        kept = torch.where(finite[:, None], flat, 0.0)
        counts = torch.zeros_like(self.counts).index_add_(0, indices, finite.float())
        sums = torch.zeros_like(self.sums).index_add_(0, indices, kept)
        self.counts.lerp_(sum_over_processes(counts), 1 - decay)
        self.sums.lerp_(sum_over_processes(sums), 1 - decay)
        total = self.counts.sum()
        smoothed = (
            (self.counts + self.config.epsilon) / (total + size * self.config.epsilon) * total
        )
        means = self._project(self.sums / smoothed[:, None])
        # With decay 0 a code without latents has no mean; it stays unchanged.
        self.codebook.copy_(torch.where(self.counts[:, None] > 0, means, self.codebook))
        self.num_updates += 1
        if self.config.revival_share > 0:
            threshold = self.config.revival_share * float(total) / size
            self._replace(self.counts < threshold, flat, count=threshold)

    def _replace(self, dead: Tensor, flat: Tensor, *, count: float) -> None:
        """Replace dead codes by random latents of the global batch."""
        candidates = gather_rows(flat)  # collective: every rank calls it, with dead codes or not
        candidates = candidates[candidates.isfinite().all(1)]
        dead_rows = dead.nonzero()[:, 0]
        if not len(dead_rows) or not len(candidates):
            return
        rng = torch.Generator().manual_seed(int(self.num_updates))
        order = torch.randperm(len(candidates), generator=rng)
        repeats = -(-len(dead_rows) // len(candidates))
        chosen = candidates[order.repeat(repeats)[: len(dead_rows)].to(candidates.device)]
        self.codebook[dead_rows] = chosen
        self.counts[dead_rows] = count
        self.sums[dead_rows] = chosen * count

    def _project(self, vectors: Tensor) -> Tensor:
        return unit(vectors) if self.config.normalize else vectors
