"""Shared parts of the quantizers: directions, nearest codes, and two gradient estimators."""

import torch
from torch import Tensor

NO_DIRECTION = 1e-6
"""Norm below which a latent has no direction worth a gradient: 1 / norm would scale it."""
_CHUNK_ELEMENTS = 2**24
"""Largest table of distances held at once, in floats (64 MiB)."""
_ROUNDING = {"highest": 2.0**-24, "high": 2.0**-10, "medium": 2.0**-8}
"""Relative rounding of one product at each `torch.get_float32_matmul_precision()`."""


def unit(vectors: Tensor) -> Tensor:
    """Vectors (..., D) scaled to length 1, of the same dtype; a vector of zeros stays zero.

    Norms are computed in float64, where no float32 vector overflows or vanishes. A vector shorter
    than `NO_DIRECTION` passes its gradient unchanged instead of divided by its length.
    """
    wide = vectors.double()
    size = wide.norm(dim=-1, keepdim=True)
    value = wide.detach() / size.detach().clamp_min(torch.finfo(torch.float64).tiny)
    path = wide / torch.where(size < NO_DIRECTION, 1.0, size)
    return straight_through(path, value).to(vectors.dtype)


def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the code nearest to each vector by squared distance; the lowest of equally near.

    Distances come from a matrix product, whose rounding depends on the place of a row in the batch
    and of a column in the codebook. Codes that this rounding cannot tell from the nearest one are
    compared again by sums of squared differences in float64, so that the result depends on the
    vector and the codes alone.

    Args:
        vectors: Vectors, (M, D) float32. One that is not finite gets a code that means nothing.
        codebook: Codes, (K, D) float32.

    Returns:
        Indices, (M,) int64. Distances are computed in chunks of vectors, so memory does not grow
        with M.
    """
    squares = codebook.square().sum(1)
    longest = squares.max().sqrt()
    rounding = (codebook.shape[1] + 4) * _ROUNDING[torch.get_float32_matmul_precision()]
    chunk = max(1, _CHUNK_ELEMENTS // len(codebook))
    parts = []
    for part in torch.split(vectors, chunk):
        distances = torch.addmm(squares, part, codebook.T, alpha=-2)
        least, nearest = distances.min(1)
        # Twice the largest error of a distance: |e|^2 - 2 <z, e> has terms of these sizes.
        margin = 2 * rounding * longest * (longest + 2 * part.norm(dim=1))
        runners_up = distances.scatter_(1, nearest[:, None], torch.inf).min(1).values
        close = (runners_up <= least + margin).nonzero()[:, 0]
        if len(close):
            candidates = distances[close] <= (least + margin)[close, None]
            candidates.scatter_(1, nearest[close, None], True)
            nearest[close] = _nearest_candidates(part[close], codebook, candidates)
        parts.append(nearest)
    return torch.cat(parts) if parts else vectors.new_zeros(0, dtype=torch.int64)


def _nearest_candidates(vectors: Tensor, codebook: Tensor, candidates: Tensor) -> Tensor:
    """First of the nearest codes of each vector (M, D) among its candidates (M, K), in float64."""
    if candidates.sum() > 16 * len(vectors):  # many equal codes: of those only the first can win
        _, group = torch.unique(codebook, dim=0, return_inverse=True)
        place = torch.arange(len(group), device=group.device)
        first = torch.full_like(place, len(group)).scatter_reduce_(0, group, place, "amin")
        candidates &= first[group] == place
    rows, columns = candidates.nonzero(as_tuple=True)  # by row, then by column
    pairs = max(1, _CHUNK_ELEMENTS // codebook.shape[1])
    exact = torch.cat(
        [
            (vectors[row].double() - codebook[column].double()).square().sum(1)
            for row, column in zip(
                torch.split(rows, pairs), torch.split(columns, pairs), strict=True
            )
        ]
    )
    least = exact.new_full((len(vectors),), torch.inf).scatter_reduce_(0, rows, exact, "amin")
    far = len(codebook)
    first = torch.where(exact <= least[rows], columns, far)
    return columns.new_full((len(vectors),), far).scatter_reduce_(0, rows, first, "amin")


def squared_distances(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Squared distances (M, K) between vectors (M, D) and codes (K, D), with gradient."""
    squares = vectors.square().sum(1, keepdim=True) + codebook.square().sum(1)
    return squares - 2 * vectors @ codebook.T


def straight_through(latents: Tensor, codes: Tensor) -> Tensor:
    """Return exactly the codes; the gradient passes unchanged to the latents (arXiv:1308.3432).

    A latent that is not finite gives NaN.
    """
    return codes.detach() + (latents - latents.detach())


def rotation_trick(latents: Tensor, codes: Tensor) -> Tensor:
    """Return exactly the codes; the gradient is that of rotating and scaling latents to them.

    The Jacobian is lambda R with R orthogonal, det R = 1 and R unit(z) = unit(q). Within 1e-4 of
    exactly opposite directions R degenerates to a reflection. A latent of less than a millionth of
    its code's length (a zero latent above all) has no direction to rotate, and lambda = |q| / |z|
    would explode: its gradient passes straight through.

    Source: arXiv:2410.06424, section 4.2 (Householder form).
    """
    z, q = latents.detach().double(), codes.detach().double()
    z_unit, q_unit = unit(z), unit(q)
    between = z_unit + q_unit
    w = torch.where(between.norm(dim=-1, keepdim=True) < 1e-4, 0.0, unit(between))
    length, code_length = (v.norm(dim=-1, keepdim=True) for v in (z, q))
    short = length <= NO_DIRECTION * code_length
    scale = code_length / torch.where(short, 1.0, length)
    w, z_unit, q_unit, scale = (v.to(latents.dtype) for v in (w, z_unit, q_unit, scale))
    along_w = (latents * w).sum(-1, keepdim=True) * w
    along_z = (latents * z_unit).sum(-1, keepdim=True) * q_unit
    rotated = scale * (latents - 2 * along_w + 2 * along_z)
    return straight_through(torch.where(short, latents, rotated), codes)
