"""The launches of `binary_attention` and what they must compile to."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from tessella.tests.kernels.sm90.figure import Figure, meta

if TYPE_CHECKING:  # the launches import triton
    from tessella.kernels.launch import Launch

FIGURES = {
    "binary_attention bibert d32 bfloat16": Figure(151, 24576, "HGMMA IGMMA"),
    "binary_attention bibert d64 bfloat16": Figure(224, 49152, "HGMMA IGMMA"),
    "binary_attention bibert d128 bfloat16": Figure(178, 98304, "HGMMA IGMMA"),
    "binary_attention bibert d64 float32": Figure(114, 40960, "HGMMA IGMMA"),
    "binary_attention bibert d128 float32": Figure(137, 81920, "HGMMA IGMMA"),
    "binary_attention bibert d64 bfloat16 options": Figure(227, 49152, "HGMMA IGMMA"),
    "binary_attention bibert d128 bfloat16 options": Figure(174, 98304, "HGMMA IGMMA"),
    "binary_attention bibert d96 float16 few": Figure(184, 90112, "HGMMA IGMMA"),
    "binary_attention bivit d32 bfloat16": Figure(158, 32768, "HGMMA"),
    "binary_attention bivit d64 bfloat16": Figure(214, 65536, "HGMMA"),
    "binary_attention bivit d128 bfloat16": Figure(172, 131072, "HGMMA"),
    "binary_attention bivit d64 float32": Figure(134, 81920, "HGMMA"),
    "binary_attention bivit d128 float32": Figure(226, 114688, "HGMMA"),
    "binary_attention bivit d64 bfloat16 options": Figure(236, 65536, "HGMMA"),
    "binary_attention bivit d128 bfloat16 options": Figure(190, 131072, "HGMMA"),
    "binary_attention bivit d96 float16 few": Figure(184, 114688, "HGMMA"),
    "binary_attention binary_qk d32 bfloat16": Figure(190, 26624, "HGMMA IGMMA"),
    "binary_attention binary_qk d64 bfloat16": Figure(207, 53248, "HGMMA IGMMA"),
    "binary_attention binary_qk d128 bfloat16": Figure(206, 106496, "HGMMA IGMMA"),
    "binary_attention binary_qk d64 float32": Figure(189, 53248, "HGMMA IGMMA"),
    "binary_attention binary_qk d128 float32": Figure(246, 106496, "HGMMA IGMMA"),
    "binary_attention binary_qk d64 bfloat16 options": Figure(148, 86016, "HGMMA IGMMA"),
    "binary_attention binary_qk d128 bfloat16 options": Figure(215, 139264, "HGMMA IGMMA"),
    "binary_attention binary_qk d96 float16 few": Figure(182, 98304, "HGMMA IGMMA"),
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


def binary_attention_launch(
    method: str,
    dtype: torch.dtype,
    width: int,
    *,
    batch: int = 8,
    tokens: int = 1024,
    options: bool = False,
) -> "Launch":
    """16 heads; `options`: padded keys and whatever else the method takes."""
    from tessella.kernels.binary_attention.fused import forward_launch

    q, k, v = (meta(batch, tokens, 16, width, dtype=dtype) for _ in range(3))
    valid = meta(batch, tokens, dtype=torch.bool) if options else None
    bias = None
    if options and method == "binary_qk":
        bias = meta(16, tokens, tokens, dtype=dtype)
    row_norm = options and method == "bivit"
    return forward_launch(q, k, v, valid, bias, method=method, row_norm=row_norm)
