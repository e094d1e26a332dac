"""The launches of `binary_attention` and what they must compile to."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from tessella.tests.kernels.sm90.figure import Figure, meta

if TYPE_CHECKING:  # the launches import triton
    from tessella.kernels.launch import Launch

FIGURES = {
    "binary_attention bibert d32 bfloat16": Figure(97, 24576, "HGMMA IGMMA"),
    "binary_attention bibert d64 bfloat16": Figure(130, 49152, "HGMMA IGMMA"),
    "binary_attention bibert d128 bfloat16": Figure(242, 98304, "HGMMA IGMMA"),
    "binary_attention bibert d64 float32": Figure(89, 40960, "HGMMA IGMMA"),
    "binary_attention bibert d128 float32": Figure(140, 81920, "HGMMA IGMMA"),
    "binary_attention bibert d64 bfloat16 options": Figure(130, 49152, "HGMMA IGMMA"),
    "binary_attention bibert d128 bfloat16 options": Figure(214, 98304, "HGMMA IGMMA"),
    "binary_attention bibert d96 float16 few": Figure(186, 90112, "HGMMA IGMMA"),
    "binary_attention bibert d40 bfloat16 apart": Figure(203, 16384, "HGMMA IGMMA"),
    "binary_attention bibert d72 bfloat16 apart": Figure(172, 24576, "HGMMA IGMMA"),
    "binary_attention bibert d128 bfloat16 apart": Figure(214, 98304, "HGMMA IGMMA"),
    "binary_attention bibert d72 float32 odd": Figure(181, 45056, "HGMMA IGMMA"),
    "binary_attention bivit d32 bfloat16": Figure(90, 32768, "HGMMA"),
    "binary_attention bivit d64 bfloat16": Figure(112, 65536, "HGMMA"),
    "binary_attention bivit d128 bfloat16": Figure(149, 131072, "HGMMA"),
    "binary_attention bivit d64 float32": Figure(150, 81920, "HGMMA"),
    "binary_attention bivit d128 float32": Figure(224, 114688, "HGMMA"),
    "binary_attention bivit d64 bfloat16 options": Figure(127, 65536, "HGMMA"),
    "binary_attention bivit d128 bfloat16 options": Figure(171, 131072, "HGMMA"),
    "binary_attention bivit d96 float16 few": Figure(112, 114688, "HGMMA"),
    "binary_attention bivit d40 bfloat16 apart": Figure(171, 24576, "HGMMA"),
    "binary_attention bivit d72 bfloat16 apart": Figure(139, 32768, "HGMMA"),
    "binary_attention bivit d128 bfloat16 apart": Figure(188, 131072, "HGMMA"),
    "binary_attention binary_qk d32 bfloat16": Figure(114, 26624, "HGMMA IGMMA"),
    "binary_attention binary_qk d64 bfloat16": Figure(126, 53248, "HGMMA IGMMA"),
    "binary_attention binary_qk d128 bfloat16": Figure(185, 106496, "HGMMA IGMMA"),
    "binary_attention binary_qk d64 float32": Figure(150, 53248, "HGMMA IGMMA"),
    "binary_attention binary_qk d128 float32": Figure(215, 106496, "HGMMA IGMMA"),
    "binary_attention binary_qk d64 bfloat16 options": Figure(153, 86016, "HGMMA IGMMA"),
    "binary_attention binary_qk d128 bfloat16 options": Figure(208, 139264, "HGMMA IGMMA"),
    "binary_attention binary_qk d96 float16 few": Figure(156, 98304, "HGMMA IGMMA"),
    "binary_attention binary_qk d40 bfloat16 apart": Figure(158, 16384, "HGMMA IGMMA"),
    "binary_attention binary_qk d72 bfloat16 apart": Figure(153, 24576, "HGMMA IGMMA"),
    "binary_attention binary_qk d128 bfloat16 apart": Figure(186, 106496, "HGMMA IGMMA"),
    "binary_attention binary_qk d72 float32 odd": Figure(237, 57344, "HGMMA IGMMA"),
}
"""By name of the launch."""


def launches() -> Iterator[tuple[str, "Launch"]]:
    """Every launch by name."""
    widths = [(torch.bfloat16, 32), (torch.bfloat16, 64), (torch.bfloat16, 128)]
    widths += [(torch.float32, 64), (torch.float32, 128)]
    for method in ("bibert", "bivit", "binary_qk"):
        for dtype, width in widths:
            launch = binary_attention_launch(method, dtype, width)
            yield f"binary_attention {method} d{width} {str(dtype)[6:]}", launch
        for width in (64, 128):
            every = binary_attention_launch(method, torch.bfloat16, width, options=True)
            yield f"binary_attention {method} d{width} bfloat16 options", every
        few = binary_attention_launch(method, torch.float16, 96, batch=1, tokens=257)
        yield f"binary_attention {method} d96 float16 few", few
        for width in (40, 72, 128):
            odd = binary_attention_launch(
                method, torch.bfloat16, width, tokens=1025, options=method != "binary_qk", step=2
            )
            yield f"binary_attention {method} d{width} bfloat16 apart", odd
        if method != "bivit":
            ragged = binary_attention_launch(method, torch.float32, 72, tokens=77)
            yield f"binary_attention {method} d72 float32 odd", ragged


def binary_attention_launch(
    method: str,
    dtype: torch.dtype,
    width: int,
    *,
    batch: int = 8,
    tokens: int = 1024,
    options: bool = False,
    step: int = 1,
) -> "Launch":
    """16 heads; `options`: padded keys and whatever else the method takes.

    `step`: from a channel of the inputs to the next.
    """
    from tessella.kernels.binary_attention.fused import forward_launch

    q, k, v = (meta(batch, tokens, 16, width, step, dtype=dtype)[..., 0] for _ in range(3))
    valid = meta(batch, tokens, dtype=torch.bool) if options else None
    bias = None
    if options and method == "binary_qk":
        bias = meta(16, tokens, tokens, dtype=dtype)
    row_norm = options and method == "bivit"
    return forward_launch(q, k, v, valid, bias, method=method, row_norm=row_norm)
