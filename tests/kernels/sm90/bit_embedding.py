"""The launches of `bit_embedding` at published shapes, and what they must compile to."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from tessella.tests.kernels.sm90.figure import Figure, meta

if TYPE_CHECKING:  # the launches import triton
    from tessella.kernels.launch import Launch

FIGURES = {
    "bit_embedding 2x7 autocast forward": Figure(128, 9216, "HMMA"),
    "bit_embedding 2x7 autocast backward": Figure(83, 12800, "HMMA"),
    "bit_embedding 2x7 float32 forward": Figure(130, 9216, "HMMA"),
    "bit_embedding 2x7 float32 backward": Figure(110, 20992, "HMMA"),
    "bit_embedding 2x7 bfloat16 forward": Figure(144, 8192, "HGMMA"),
    "bit_embedding 2x7 bfloat16 backward": Figure(83, 12800, "HMMA"),
    "bit_embedding 2x7 float16 forward": Figure(144, 8192, "HGMMA"),
    "bit_embedding 2x7 float16 backward": Figure(95, 12800, "HMMA"),
    "bit_embedding 2x9 float32 forward": Figure(162, 18432, "HMMA"),
    "bit_embedding 2x9 float32 backward": Figure(138, 25600, "HMMA"),
    "bit_embedding 20x1 token float32 forward": Figure(152, 18432, "HMMA"),
    "bit_embedding 20x1 token float32 backward": Figure(133, 25600, "HMMA"),
    "bit_embedding 2x9 bfloat16 forward": Figure(149, 12544, "HGMMA"),
    "bit_embedding 2x9 bfloat16 backward": Figure(122, 17408, "HMMA"),
    "bit_embedding 20x1 token bfloat16 forward": Figure(158, 12544, "HGMMA"),
    "bit_embedding 20x1 token bfloat16 backward": Figure(101, 17408, "HMMA"),
    "bit_embedding 2x30 float32 forward": Figure(205, 36864, "HMMA"),
    "bit_embedding 2x30 float32 backward": Figure(177, 47104, "HGMMA"),
}
"""By name of the launch."""


def launches() -> Iterator[tuple[str, "Launch"]]:
    """Every launch by name."""
    names = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
    cases = {"2x7 autocast": bit_embedding_launches(torch.bfloat16, 14, 2, weights=torch.float32)}
    for dtype, name in names.items():
        cases[f"2x7 {name}"] = bit_embedding_launches(dtype, 14, 2)
    for dtype in (torch.float32, torch.bfloat16):
        cases[f"2x9 {names[dtype]}"] = bit_embedding_launches(dtype, 18, 2)
        cases[f"20x1 token {names[dtype]}"] = bit_embedding_launches(dtype, 20, 20, replace=True)
    cases["2x30 float32"] = bit_embedding_launches(torch.float32, 60, 2)
    for case, made in cases.items():
        for direction, launch in made.items():
            yield f"bit_embedding {case} {direction}", launch


def bit_embedding_launches(
    dtype: torch.dtype,
    bits: int,
    groups: int,
    *,
    replace: bool = False,
    weights: torch.dtype | None = None,
) -> dict[str, "Launch"]:
    """Forward and backward at MaskBit's shape, or at BiGR's with a mask token.

    Weights of another type than the result are those of autocast.
    """
    from tessella.kernels.bit_embedding.fused import backward_launch, forward_launch

    weights = weights or dtype
    batch, tokens, width = 64, 256, 1024
    codes = meta(batch, tokens, groups, dtype=torch.int64)
    mask = meta(batch, tokens, 1 if replace else groups, dtype=torch.bool)
    place = "first" if replace else "last"
    settings: dict[str, Any] = {"bits_per_group": bits // groups, "values": "pm1"}
    forward = forward_launch(
        codes,
        meta(width, bits, dtype=weights).t(),
        meta(width, dtype=weights),
        None if replace else meta(tokens + 1, width, dtype=weights),
        meta(1001, width, dtype=weights),
        meta(batch, dtype=torch.int64),
        mask,
        meta(width, dtype=weights) if replace else None,
        class_position=place,
        dtype=dtype,
        **settings,
    )
    backward = backward_launch(
        meta(batch, tokens + 1, width, dtype=dtype),
        codes,
        mask,
        class_position=place,
        replace=replace,
        need_position=not replace,
        **settings,
    )
    return {"forward": forward, "backward": backward}
