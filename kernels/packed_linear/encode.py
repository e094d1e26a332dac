"""Encoding of low-bit weights: from given codes, and from float weights by closed formulas.

Nothing here is learned or calibrated; codes and scales of a trained quantizer go to `pack`.
"""

import torch
from torch import Tensor

from .formats import (
    NUM_CODES,
    SYMMETRIC_LEVELS,
    PackedWeight,
    Tag,
    check_tag,
    matrix_columns,
    num_planes,
    pack_rows,
    row_bytes,
    to_matrix,
)

SMALLEST_NORMAL = 2.0**-14
"""Smallest normal number of float16; scales below it would lose bits."""
LARGEST = 65504.0
"""Largest number of float16."""


def pack(
    tag: Tag,
    codes: Tensor,
    scale: Tensor,
    *,
    zero: Tensor | None = None,
    level_table: tuple[float, ...] | None = None,
    shape: tuple[int, ...] | None = None,
) -> PackedWeight:
    """Make a packed weight from codes and scales.

    Args:
        tag: Format of the codes.
        codes: Codes, (N, K) integers in [0, number of codes), (2, N, K) for `bin2`; ternary codes
            are t + 1. Columns of a convolution are in the order (kh, kw, C_in).
        scale: Scales, in a type and shape that `PackedWeight` takes.
        zero: Zero points of an asymmetric format, see `PackedWeight`; None: symmetric.
        level_table: Values of the codes of a symmetric `u2`, see `PackedWeight`.
        shape: Shape of the weight; None: (N, K).

    Returns:
        The packed weight, with checked values.

    Raises:
        ValueError: If a type, shape or value does not fit.
    """
    check_tag(tag)
    if codes.ndim != 1 + num_planes(tag):
        wanted = "(2, N, K)" if tag == "bin2" else "(N, K)"
        raise ValueError(f"codes: expected {wanted} for {tag}, found {tuple(codes.shape)}")
    shape = tuple(codes.shape[-2:]) if shape is None else tuple(shape)
    if (shape[0], matrix_columns(shape)) != codes.shape[-2:]:
        raise ValueError(
            f"shape: expected a shape of N x K = {tuple(codes.shape[-2:])} as the codes, "
            f"found {shape}"
        )
    qdata = pack_rows(codes, tag)
    return PackedWeight(tag, shape, qdata, scale, zero, level_table).check_values()


def from_float(
    weight: Tensor,
    tag: Tag,
    group: int | None = None,
    *,
    per_tensor: bool = False,
    asymmetric: bool = False,
    scale_dtype: torch.dtype | None = None,
) -> PackedWeight:
    """Encode a float weight in a low-bit format, with every scale from a closed formula.

    Args:
        weight: Float weight, (N, K) or (C_out, C_in / groups, kh, kw); finite in float32.
        tag: Format of the codes.
        group: Number of columns that share a scale, in the order (kh, kw, C_in); None: a whole
            row.
        per_tensor: Use one scale for the whole weight; for `bin1`, `tern2` and `tern3`.
        asymmetric: Use zero points; for `u2` and `u4`.
        scale_dtype: Type of the scales, in which none may become 0 or infinite; None: float16, or
            float32 if some would not be normal numbers.

    Returns:
        The packed weight. With sgn(0) = +1 and the scale s already rounded to its type:
        `bin1`: s = mean |w|, sgn(w), the least squares (XNOR-Net, arXiv:1603.05279 eq. 6).
        `bin2`: the same for w and again for w - s1 sgn(w) (arXiv:1711.11294 eq. 4, greedy).
        `tern2`, `tern3`: s = max(mean |w|, 1e-5), clip(round(w / s), -1, 1)
        (BitNet b1.58, arXiv:2402.17764 eq. 1 to 3).
        `u2`: s = max |w| / 3, the nearest of -3 s, -s, s, 3 s.
        `u4`: s = max |w| / 7, clip(round(w / s), -8, 7).
        Asymmetric: s = (max(w, 0) - min(w, 0)) / (2**b - 1), z = round(-min(w, 0) / s)
        (arXiv:1712.05877, section 3).

    Raises:
        ValueError: If the weight or a setting does not fit.
    """
    check_tag(tag)
    _check_settings(tuple(weight.shape), tag, group, per_tensor, asymmetric)
    if weight.is_meta:
        raise ValueError(
            "weight: expected values to encode, found a meta tensor; use `empty_weight`"
        )
    matrix = to_matrix(weight.detach().float())
    if not matrix.isfinite().all():
        raise ValueError("weight: expected finite values in float32, found inf or NaN")
    num_rows, num_columns = matrix.shape
    if per_tensor:
        rows = matrix.reshape(1, 1, -1)
    else:
        rows = torch.unflatten(matrix, 1, (-1, group or num_columns))
    codes, scale, zero = _encode(rows, tag, asymmetric, scale_dtype)
    scale = scale.reshape(1) if per_tensor else scale
    if group is None and not per_tensor:
        scale = scale.squeeze(-1)
    planes = (2,) if tag == "bin2" else ()
    level_table = SYMMETRIC_LEVELS if tag == "u2" and not asymmetric else None
    return pack(
        tag,
        codes.reshape(*planes, num_rows, num_columns),
        scale,
        zero=zero,
        level_table=level_table,
        shape=tuple(weight.shape),
    )


def empty_weight(
    tag: Tag,
    shape: tuple[int, ...],
    group: int | None = None,
    *,
    per_tensor: bool = False,
    asymmetric: bool = False,
    level_table: tuple[float, ...] | None = None,
    scale_dtype: torch.dtype = torch.float16,
    device: torch.device | str | None = None,
) -> PackedWeight:
    """Make a packed weight with uninitialized values, for a layer until its state is loaded.

    Args:
        tag: Format of the codes.
        shape: Shape of the weight, (N, K) or (C_out, C_in / groups, kh, kw).
        group: Number of columns that share a scale, see `from_float`; None: a whole row.
        per_tensor: Use one scale for the whole weight; for `bin1`, `tern2` and `tern3`.
        asymmetric: Use zero points; for `u2` and `u4`.
        level_table: Values of the codes of a symmetric `u2`; None: `SYMMETRIC_LEVELS`.
        scale_dtype: Type of the scales.
        device: Device of the tensors; `meta` allocates no memory.

    Raises:
        ValueError: If a setting does not fit.
    """
    check_tag(tag)
    _check_settings(tuple(shape), tag, group, per_tensor, asymmetric)
    planes, num_columns = (2,) if tag == "bin2" else (), matrix_columns(shape)
    groups = () if group is None else (num_columns // group,)
    scales = (1,) if per_tensor else (*planes, shape[0], *groups)
    zeros = (shape[0], *(groups or (1,)))
    bytes_of_rows = (*planes, shape[0], row_bytes(tag, num_columns))
    if tag == "u2" and not asymmetric and level_table is None:
        level_table = SYMMETRIC_LEVELS
    return PackedWeight(
        tag,
        tuple(shape),
        torch.empty(bytes_of_rows, dtype=torch.uint8, device=device),
        torch.empty(scales, dtype=scale_dtype, device=device),
        torch.empty(zeros, dtype=torch.uint8, device=device) if asymmetric else None,
        level_table,
    )


def _check_settings(
    shape: tuple[int, ...], tag: str, group: int | None, per_tensor: bool, asymmetric: bool
) -> None:
    """Check that settings fit a weight of this shape and each other."""
    if len(shape) not in (2, 4) or min(shape) < 1:
        raise ValueError(f"weight: expected 2 or 4 axes of at least 1, found {shape}")
    if asymmetric and tag not in ("u2", "u4"):
        raise ValueError(f"asymmetric: only u2 and u4 have zero points, found {tag}")
    if per_tensor and (group is not None or tag not in ("bin1", "tern2", "tern3")):
        raise ValueError(
            "per_tensor: expected bin1, tern2 or tern3 without a group, "
            f"found {tag} with group {group}"
        )
    num_columns = matrix_columns(shape)
    if group is not None and (group < 1 or num_columns % group):
        raise ValueError(
            f"group: expected a divisor of the K = {num_columns} columns, found {group}"
        )


def _encode(
    rows: Tensor, tag: str, asymmetric: bool, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Encode rows (N, G, K / G): codes (..., N, G, K / G), scales (..., N, G), zero points."""
    if tag in ("bin1", "bin2"):
        signs, scales, rest = [], [], rows
        for _ in range(num_planes(tag)):
            signs.append(rest >= 0)
            scales.append(_rounded(rest.abs().mean(-1), dtype))
            rest = rest - scales[-1].float()[..., None] * (signs[-1] * 2.0 - 1)
        if tag == "bin1":
            return signs[0], scales[0], None
        wide = torch.promote_types(scales[0].dtype, scales[1].dtype)
        return torch.stack(signs), torch.stack([scale.to(wide) for scale in scales]), None
    if tag in ("tern2", "tern3"):
        scale = _rounded(rows.abs().mean(-1).clamp_min(1e-5), dtype)
        return _nearest(rows, scale, 1, 2), scale, None
    highest = NUM_CODES[tag] - 1
    if asymmetric:
        low, high = rows.amin(-1).clamp_max(0), rows.amax(-1).clamp_min(0)
        scale = _rounded((high - low) / highest, dtype)
        zero = _nearest(-low[..., None], scale, 0, highest)
        return _nearest(rows, scale, zero, highest), scale, zero[..., 0].to(torch.uint8)
    scale = _rounded(rows.abs().amax(-1) / (3 if tag == "u2" else 7), dtype)
    if tag == "u2":
        return _nearest((rows + 3 * scale.float()[..., None]) / 2, scale, 0, 3), scale, None
    return _nearest(rows, scale, 8, 15), scale, None


def _nearest(rows: Tensor, scale: Tensor, zero: Tensor | int, highest: int) -> Tensor:
    """Codes clip(round(rows / scale) + zero, 0, highest), with a quotient of 0 for scale 0."""
    scale = torch.where(scale == 0, 1, scale.float())[..., None]
    return ((rows / scale).round() + zero).clamp(0, highest).to(torch.int32)


def _rounded(scale: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Round scales to a type; None: float16 if it represents them all, otherwise float32."""
    if dtype is None:
        size = scale.abs()
        fits = ((size == 0) | (size >= SMALLEST_NORMAL)) & (size <= LARGEST)
        dtype = torch.float16 if fits.all() else torch.float32
    rounded = scale.to(dtype)
    lost = ((rounded == 0) & (scale != 0)) | rounded.isinf()
    if lost.any():
        found, left = scale[lost][0].item(), rounded[lost][0].item()
        raise ValueError(f"scale_dtype: {dtype} turns a scale of {found} into {left}")
    return rounded
