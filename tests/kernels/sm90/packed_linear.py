"""The launches of `packed_linear` at K = N = 4096, and what they must compile to."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from tessella.tests.kernels.sm90.figure import Figure, meta

if TYPE_CHECKING:  # the launches import triton
    from tessella.kernels.launch import Launch

FIGURES = {
    "packed_linear bin1 M16 bfloat16": Figure(62, 30720, "HMMA"),
    "packed_linear bin1 M16 int8": Figure(56, 18432, "IMMA"),
    "packed_linear sum of splits": Figure(40, 512, ""),
    "packed_linear bin1 M64 bfloat16": Figure(127, 77824, "HGMMA"),
    "packed_linear bin1 M64 int8": Figure(127, 40960, "IGMMA"),
    "packed_linear bin1 M4096 bfloat16": Figure(124, 143360, "HGMMA"),
    "packed_linear bin1 M4096 int8": Figure(128, 73728, "IGMMA"),
    "packed_linear bin2 M16 bfloat16": Figure(92, 36864, "HMMA"),
    "packed_linear bin2 M16 int8": Figure(79, 24576, "IMMA"),
    "packed_linear bin2 M4096 bfloat16": Figure(119, 139264, "HGMMA"),
    "packed_linear bin2 M4096 int8": Figure(121, 71680, "IGMMA"),
    "packed_linear tern2 M16 bfloat16": Figure(55, 18432, "HMMA"),
    "packed_linear tern2 M16 int8": Figure(55, 12288, "IMMA"),
    "packed_linear tern2 M64 bfloat16": Figure(129, 65536, "HGMMA"),
    "packed_linear tern2 M64 int8": Figure(126, 36864, "IGMMA"),
    "packed_linear tern2 M4096 bfloat16": Figure(123, 114688, "HGMMA"),
    "packed_linear tern2 M4096 int8": Figure(128, 61440, "IGMMA"),
    "packed_linear u4 M16 bfloat16": Figure(48, 12288, "HMMA"),
    "packed_linear u4 M16 int8": Figure(40, 9216, "IMMA"),
    "packed_linear u4 M64 float16": Figure(120, 40960, "HGMMA"),
    "packed_linear u4 M64 bfloat16": Figure(120, 40960, "HGMMA"),
    "packed_linear u4 M64 int8": Figure(126, 32768, "IGMMA"),
    "packed_linear u4 M4096 bfloat16": Figure(123, 65536, "HGMMA"),
    "packed_linear u4 M4096 int8": Figure(128, 36864, "IGMMA"),
    "packed_linear u4 g64 M16 bfloat16": Figure(56, 12288, "HMMA"),
    "packed_linear u4 g64 M16 int8": Figure(48, 9216, "IMMA"),
    "packed_linear u4 g64 M4096 bfloat16": Figure(174, 65536, "HGMMA"),
    "packed_linear u4 g64 M4096 int8": Figure(171, 36864, "IGMMA"),
    "packed_linear u4 g128 zero M16 bfloat16": Figure(58, 12288, "HMMA"),
    "packed_linear u4 g128 zero M16 int8": Figure(52, 9216, "IMMA"),
    "packed_linear u4 g128 zero M64 bfloat16": Figure(214, 40960, "HGMMA"),
    "packed_linear u4 g128 zero M64 int8": Figure(215, 32768, "IGMMA"),
    "packed_linear quantize bfloat16": Figure(63, 32, "", narrow_stores=True),
    "packed_linear unpack bin2 bfloat16": Figure(40, 4096, ""),
    "packed_linear unpack u4 float16": Figure(32, 4096, ""),
    "packed_linear unpack u4 float32": Figure(42, 2048, ""),
}
"""By name of the launch; M is the number of rows of x."""

WIDTH = 4096
CASES = {
    "bin1": ("bin1", None, False, (16, 64, 4096)),
    "bin2": ("bin2", None, False, (16, 4096)),
    "tern2": ("tern2", None, False, (16, 64, 4096)),
    "u4": ("u4", None, False, (16, 64, 4096)),
    "u4 g64": ("u4", 64, False, (16, 4096)),
    "u4 g128 zero": ("u4", 128, True, (16, 64)),
}
"""Tag, group, zero points and numbers of rows, by name."""
NAMES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.int8: "int8"}


def launches() -> Iterator[tuple[str, "Launch"]]:
    """Every launch by name."""
    from tessella.kernels.packed_linear.launches import quantize_launch, unpack_launch

    for case, (tag, group, asymmetric, sizes) in CASES.items():
        for num_rows in sizes:
            for dtype, name in NAMES.items():
                if dtype == torch.float16 and (case, num_rows) != ("u4", 64):
                    continue
                made = product_launches(tag, group, asymmetric, num_rows, dtype)
                yield f"packed_linear {case} M{num_rows} {name}", made[0]
                if (case, num_rows, name) == ("bin1", 16, "int8"):
                    yield "packed_linear sum of splits", made[1]
    yield (
        "packed_linear quantize bfloat16",
        quantize_launch(meta(4096, WIDTH, dtype=torch.bfloat16), None, WIDTH),
    )
    for tag, dtype in (
        ("bin2", torch.bfloat16),
        ("u4", torch.float16),
        ("u4", torch.float32),
    ):
        yield (
            f"packed_linear unpack {tag} {str(dtype).removeprefix('torch.')}",
            unpack_launch(prepacked(tag), tag=tag, levels=None, num_columns=WIDTH, dtype=dtype),
        )


def prepacked(tag: str, group: int | None = None, asymmetric: bool = False) -> list[torch.Tensor]:
    """A prepacked weight without memory."""
    from tessella.kernels.packed_linear.formats import num_planes
    from tessella.kernels.packed_linear.launches import codes_per_byte

    groups, planes = WIDTH // (group or WIDTH), num_planes(tag)
    packed = meta(planes, WIDTH, WIDTH // codes_per_byte(tag), dtype=torch.uint8)
    zeros = [meta(groups, WIDTH, dtype=torch.uint8)] if asymmetric else []
    return [packed, meta(planes, groups, WIDTH), *zeros]


def product_launches(
    tag: str, group: int | None, asymmetric: bool, num_rows: int, dtype: torch.dtype
) -> list["Launch"]:
    """A product with bias; int8 activations with their scales."""
    from tessella.kernels.packed_linear.launches import linear_launches

    integers = dtype == torch.int8
    return linear_launches(
        meta(num_rows, WIDTH, dtype=dtype),
        prepacked(tag, group, asymmetric),
        meta(WIDTH, dtype=torch.bfloat16 if integers else dtype),
        meta(num_rows) if integers else None,
        tag=tag,
        levels=None,
        num_columns=WIDTH,
        dtype=torch.bfloat16 if integers else dtype,
    )
