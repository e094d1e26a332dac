"""The launches of `packed_linear`, most at N = K = 4096, and what they must compile to."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from tessella.tests.kernels.sm90.figure import Figure, meta

if TYPE_CHECKING:  # the launches import triton
    from tessella.kernels.launch import Launch
    from tessella.kernels.packed_linear.formats import Tag

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
    "packed_linear bin1 g32 M64 bfloat16": Figure(92, 71680, "HGMMA"),
    "packed_linear bin1 g32 M64 int8": Figure(92, 36864, "IGMMA"),
    "packed_linear bin1 g32 M4096 bfloat16": Figure(143, 137216, "HGMMA"),
    "packed_linear bin1 g32 M4096 int8": Figure(138, 69632, "IGMMA"),
    "packed_linear bin1 g64 M64 bfloat16": Figure(168, 75776, "HGMMA"),
    "packed_linear bin1 g64 M64 int8": Figure(109, 40960, "IGMMA"),
    "packed_linear bin1 g64 M4096 bfloat16": Figure(140, 137216, "HGMMA"),
    "packed_linear bin1 g64 M4096 int8": Figure(140, 69632, "IGMMA"),
    "packed_linear bin2 g64 M64 bfloat16": Figure(156, 73728, "HGMMA"),
    "packed_linear bin2 g64 M64 int8": Figure(158, 39936, "IGMMA"),
    "packed_linear bin2 g32 130x128 M64 bfloat16": Figure(172, 69632, "HGMMA", narrow_stores=True),
    "packed_linear bin2 g32 130x128 M64 int8": Figure(66, 35840, "IGMMA", narrow_stores=True),
    "packed_linear bin2 g32 130x128 M4096 bfloat16": Figure(
        112, 135168, "HGMMA", narrow_stores=True
    ),
    "packed_linear bin2 g32 130x128 M4096 int8": Figure(92, 68608, "IGMMA", narrow_stores=True),
    "packed_linear tern2 g32 M64 bfloat16": Figure(77, 57344, "HGMMA"),
    "packed_linear tern2 g32 M64 int8": Figure(86, 30720, "IGMMA"),
    "packed_linear tern2 g32 M4096 bfloat16": Figure(147, 106496, "HGMMA"),
    "packed_linear tern2 g32 M4096 int8": Figure(136, 55296, "IGMMA"),
    "packed_linear u2 g32 130x96 M64 bfloat16": Figure(72, 57344, "HGMMA", narrow_stores=True),
    "packed_linear u2 g32 130x96 M64 int8": Figure(66, 30720, "IGMMA", narrow_stores=True),
    "packed_linear u2 g32 130x96 M4096 bfloat16": Figure(195, 106496, "HGMMA", narrow_stores=True),
    "packed_linear u2 g32 130x96 M4096 int8": Figure(190, 55296, "IGMMA", narrow_stores=True),
    "packed_linear u2 g64 zero M64 bfloat16": Figure(104, 61440, "HGMMA"),
    "packed_linear u2 g64 zero M64 int8": Figure(108, 34816, "IGMMA"),
    "packed_linear u4 g32 zero M64 bfloat16": Figure(66, 32768, "HGMMA"),
    "packed_linear u4 g32 zero M64 int8": Figure(68, 18432, "IGMMA"),
    "packed_linear bin1 g96 130x1056 M16 bfloat16": Figure(127, 30720, "HMMA", narrow_stores=True),
    "packed_linear bin1 g96 130x1056 M16 int8": Figure(80, 6656, "IMMA", narrow_stores=True),
    "packed_linear bin1 g96 130x1056 M64 bfloat16": Figure(112, 71680, "HGMMA", narrow_stores=True),
    "packed_linear bin1 g96 130x1056 M64 int8": Figure(105, 36864, "IGMMA", narrow_stores=True),
    "packed_linear bin1 g128 130x1152 M64 bfloat16": Figure(
        133, 75776, "HGMMA", narrow_stores=True
    ),
    "packed_linear bin1 g128 130x1152 M64 int8": Figure(124, 40960, "IGMMA", narrow_stores=True),
    "packed_linear bin1 g128 130x1152 M4096 bfloat16": Figure(
        183, 137216, "HGMMA", narrow_stores=True
    ),
    "packed_linear bin1 g128 130x1152 M4096 int8": Figure(157, 69632, "IGMMA", narrow_stores=True),
    "packed_linear bin2 130x1001 M64 bfloat16": Figure(192, 16384, "HGMMA", narrow_stores=True),
    "packed_linear bin2 130x1001 M64 int8": Figure(130, 43008, "IGMMA", narrow_stores=True),
    "packed_linear bin2 g96 130x1056 M16 bfloat16": Figure(130, 36864, "HMMA", narrow_stores=True),
    "packed_linear bin2 g96 130x1056 M16 int8": Figure(128, 12800, "IMMA", narrow_stores=True),
    "packed_linear bin2 g96 130x1056 M32 bfloat16": Figure(239, 69632, "HGMMA", narrow_stores=True),
    "packed_linear bin2 g96 130x1056 M32 int8": Figure(86, 35840, "IGMMA", narrow_stores=True),
    "packed_linear bin2 g128 130x1152 M64 bfloat16": Figure(
        114, 73728, "HGMMA", narrow_stores=True
    ),
    "packed_linear bin2 g128 130x1152 M64 int8": Figure(114, 39936, "IGMMA", narrow_stores=True),
    "packed_linear quantize bfloat16": Figure(70, 32, "", narrow_stores=True),
    "packed_linear unpack bin2 bfloat16": Figure(40, 4096, ""),
    "packed_linear unpack u4 float16": Figure(32, 4096, ""),
    "packed_linear unpack u4 float32": Figure(42, 2048, ""),
}
"""By name of the launch; M is the number of rows of x."""

WIDTH = 4096
CASES = {
    "bin1": (16, 64, 4096),
    "bin2": (16, 4096),
    "tern2": (16, 64, 4096),
    "u4": (16, 64, 4096),
    "u4 g64": (16, 4096),
    "u4 g128 zero": (16, 64),
    # Those that once spilled registers.
    "bin1 g32": (64, 4096),
    "bin1 g64": (64, 4096),
    "bin1 g96 130x1056": (16, 64),
    "bin1 g128 130x1152": (64, 4096),
    "bin2 130x1001": (64,),
    "bin2 g64": (64,),
    "bin2 g96 130x1056": (16, 32),
    "bin2 g128 130x1152": (64,),
    "bin2 g32 130x128": (64, 4096),
    "tern2 g32": (64, 4096),
    "u2 g32 130x96": (64, 4096),
    "u2 g64 zero": (64,),
    "u4 g32 zero": (64,),
}
"""Numbers of rows of x by tag, group, zero points and size of the weight."""
NAMES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.int8: "int8"}


def launches() -> Iterator[tuple[str, "Launch"]]:
    """Every launch by name."""
    from tessella.kernels.packed_linear.launches import quantize_launch, unpack_launch

    for case, sizes in CASES.items():
        for num_rows in sizes:
            for dtype, name in NAMES.items():
                if dtype == torch.float16 and (case, num_rows) != ("u4", 64):
                    continue
                made = product_launches(case, num_rows, dtype)
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
            unpack_launch(
                prepacked(tag, WIDTH, WIDTH),
                tag=tag,
                level_table=None,
                num_columns=WIDTH,
                dtype=dtype,
            ),
        )


def prepacked(
    tag: "Tag", num_rows: int, num_columns: int, group: int | None = None, zero: bool = False
) -> list[torch.Tensor]:
    """A prepacked weight without memory."""
    from tessella.kernels.packed_linear.encode import empty_weight
    from tessella.kernels.packed_linear.prepack import prepack

    shape = (num_rows, num_columns)
    return prepack(empty_weight(tag, shape, group, asymmetric=zero, device="meta")).tensors


def product_launches(case: str, num_rows: int, dtype: torch.dtype) -> list["Launch"]:
    """A product with bias; int8 activations with their scales."""
    from tessella.kernels.packed_linear.formats import SYMMETRIC_LEVELS
    from tessella.kernels.packed_linear.launches import codes_per_byte, linear_launches

    tag, *rest = case.split()
    asymmetric, integers = "zero" in rest, dtype == torch.int8
    groups = [int(part[1:]) for part in rest if part[0] == "g"]
    sizes = [part.split("x") for part in rest if "x" in part]
    num_outputs, num_columns = map(int, sizes[0]) if sizes else (WIDTH, WIDTH)
    weight = prepacked(tag, num_outputs, num_columns, groups[0] if groups else None, asymmetric)
    depth = weight[0].shape[2] * codes_per_byte(tag) if integers else num_columns
    return linear_launches(
        meta(num_rows, depth, dtype=dtype),
        weight,
        meta(num_outputs, dtype=torch.bfloat16 if integers else dtype),
        meta(num_rows) if integers else None,
        tag=tag,
        level_table=SYMMETRIC_LEVELS if tag == "u2" and not asymmetric else None,
        num_columns=num_columns,
        dtype=torch.bfloat16 if integers else dtype,
    )
