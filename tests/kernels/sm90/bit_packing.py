"""The launches of `pack_codes`, `pack_signs` and their inverses, and what they must compile to."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from tessella.tests.kernels.sm90.figure import Figure, meta

if TYPE_CHECKING:  # the launches import triton
    from tessella.kernels.launch import Launch

FIGURES = {
    "bit_packing 1 pack": Figure(26, 0, "", narrow_stores=True),
    "bit_packing 1 unpack": Figure(30, 0, ""),
    "bit_packing 9 pack": Figure(32, 0, "", narrow_stores=True),
    "bit_packing 9 unpack": Figure(29, 0, ""),
    "bit_packing 14 pack": Figure(32, 0, "", narrow_stores=True),
    "bit_packing 14 unpack": Figure(32, 0, ""),
    "bit_packing 18 pack": Figure(32, 0, "", narrow_stores=True),
    "bit_packing 18 unpack": Figure(32, 0, ""),
    "bit_packing 24 pack": Figure(32, 0, "", narrow_stores=True),
    "bit_packing 24 unpack": Figure(32, 0, ""),
    "bit_packing 62 pack": Figure(48, 0, "", narrow_stores=True),
    "bit_packing 62 unpack": Figure(80, 0, ""),
    "bit_packing 4+10+3 pack": Figure(30, 0, "", narrow_stores=True),
    "bit_packing 4+10+3 unpack": Figure(54, 0, "", narrow_stores=True),
    "bit_packing 14 unpack int32": Figure(34, 0, ""),
    "bit_packing 1 pack short": Figure(30, 256, "", narrow_stores=True),
    "bit_packing 3+5+2 pack short": Figure(32, 0, "", narrow_stores=True),
    "bit_packing signs float32 pack": Figure(28, 256, "", narrow_stores=True),
    "bit_packing signs float32 unpack": Figure(22, 0, ""),
    "bit_packing signs bfloat16 pack": Figure(24, 256, "", narrow_stores=True),
    "bit_packing signs bfloat16 unpack": Figure(16, 0, ""),
}
"""By name of the launch. A thread packs 8 bytes; codes of several groups do not lie in a row."""

IMAGES, POSITIONS = 1000, 256


def launches() -> Iterator[tuple[str, "Launch"]]:
    """Every launch by name: images of 256 positions and of 5, planes of 4096 signs."""
    from tessella.kernels.bit_packing import fused

    cases = {"1": (1,), "9": (9,), "14": (14,), "18": (18,), "24": (24,), "62": (62,)}
    cases["4+10+3"] = (4, 10, 3)
    for name, widths in cases.items():
        codes = meta(IMAGES, POSITIONS, len(widths), dtype=torch.int64)
        pack = fused.pack_codes_launch(codes, widths)
        yield f"bit_packing {name} pack", pack
        packed = pack.arguments["packed"]
        unpack = fused.unpack_codes_launch(packed, POSITIONS, widths, torch.int64)
        yield f"bit_packing {name} unpack", unpack
    packed = meta(IMAGES, POSITIONS * 14 // 8, dtype=torch.uint8)
    unpack = fused.unpack_codes_launch(packed, POSITIONS, (14,), torch.int32)
    yield "bit_packing 14 unpack int32", unpack
    for name, widths in {"1": (1,), "3+5+2": (3, 5, 2)}.items():
        codes = meta(3, 5, len(widths), dtype=torch.int64)
        yield f"bit_packing {name} pack short", fused.pack_codes_launch(codes, widths)
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        pack = fused.pack_signs_launch(meta(IMAGES, 4096, dtype=dtype))
        yield f"bit_packing signs {name} pack", pack
        unpack = fused.unpack_signs_launch(pack.arguments["packed"], 4096, dtype)
        yield f"bit_packing signs {name} unpack", unpack
