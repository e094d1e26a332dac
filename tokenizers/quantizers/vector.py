"""Shared parts of the vector quantizers: nearest-code search and two gradient estimators."""

import torch
from torch import Tensor

_CHUNK_ELEMENTS = 2**24
"""Largest table of distances held at once, in floats (64 MiB)."""


def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the code nearest to each vector by squared distance; the lowest of equally near.

    Args:
        vectors: Vectors, (M, D) float32.
        codebook: Codes, (K, D) float32.

    Returns:
        Indices, (M,) int64. Distances are computed in chunks of vectors, so memory does not grow
        with M.
    """
    squares = codebook.square().sum(1)
    chunk = max(1, _CHUNK_ELEMENTS // len(codebook))
    parts = [
        torch.addmm(squares, part, codebook.T, alpha=-2).argmin(1)
        for part in torch.split(vectors, chunk)
    ]
    return torch.cat(parts) if parts else vectors.new_zeros(0, dtype=torch.int64)


def squared_distances(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Squared distances (M, K) between vectors (M, D) and codes (K, D), with gradient."""
    squares = vectors.square().sum(1, keepdim=True) + codebook.square().sum(1)
    return squares - 2 * vectors @ codebook.T


def straight_through(latents: Tensor, codes: Tensor) -> Tensor:
    """Return the codes; the gradient passes unchanged to the latents (arXiv:1308.3432)."""
    return latents + (codes - latents).detach()


def rotation_trick(latents: Tensor, codes: Tensor) -> Tensor:
    """Return the codes; the gradient is that of the rotation and scaling of latents to codes.

    The Jacobian is lambda R with R orthogonal, det R = 1 and R unit(z) = unit(q). For exactly
    opposite directions R degenerates to a reflection; the value is still the code.

    Source: arXiv:2410.06424, section 4.2 (Householder form).
    """
    z, q = latents.detach(), codes.detach()
    z_unit, q_unit = (
        torch.nn.functional.normalize(z, dim=-1),
        torch.nn.functional.normalize(q, dim=-1),
    )
    w = torch.nn.functional.normalize(z_unit + q_unit, dim=-1)
    scale: Tensor = q.norm(dim=-1, keepdim=True) / z.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    along_w = (latents * w).sum(-1, keepdim=True) * w
    along_z = (latents * z_unit).sum(-1, keepdim=True) * q_unit
    return scale * (latents - 2 * along_w + 2 * along_z)
