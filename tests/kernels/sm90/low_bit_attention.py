"""The launches of `low_bit_attention`, and what they must compile to."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from tessella.tests.kernels.sm90.figure import Figure, meta

if TYPE_CHECKING:  # the launches import triton
    from tessella.kernels.launch import Launch

FIGURES = {
    "low_bit_attention d32 int8 attention": Figure(153, 23048, "HGMMA IGMMA"),
    "low_bit_attention d32 int8_fp8 attention": Figure(165, 16904, "IGMMA QGMMA"),
    "low_bit_attention d32 fp8 attention": Figure(169, 16904, "QGMMA"),
    "low_bit_attention d64 int8 attention": Figure(212, 45576, "HGMMA IGMMA"),
    "low_bit_attention d64 int8 quantize": Figure(96, 8192, "", narrow_stores=True),
    "low_bit_attention d64 int8 statistics": Figure(64, 512, "", narrow_stores=True),
    "low_bit_attention d64 int8_fp8 attention": Figure(124, 32776, "IGMMA QGMMA"),
    "low_bit_attention d64 int8_fp8 quantize": Figure(96, 8192, "", narrow_stores=True),
    "low_bit_attention d64 int8_fp8 statistics": Figure(127, 512, "", narrow_stores=True),
    "low_bit_attention d64 fp8 attention": Figure(125, 32776, "QGMMA"),
    "low_bit_attention d64 fp8 quantize": Figure(96, 8192, "", narrow_stores=True),
    "low_bit_attention d80 int8 attention": Figure(154, 90120, "HGMMA IGMMA"),
    "low_bit_attention d80 int8_fp8 attention": Figure(215, 65544, "IGMMA QGMMA"),
    "low_bit_attention d80 fp8 attention": Figure(215, 65544, "QGMMA"),
    "low_bit_attention d128 int8 attention": Figure(148, 90120, "HGMMA IGMMA"),
    "low_bit_attention d128 int8 quantize": Figure(125, 4096, "", narrow_stores=True),
    "low_bit_attention d128 int8 statistics": Figure(64, 1024, "", narrow_stores=True),
    "low_bit_attention d128 int8_fp8 attention": Figure(213, 65544, "IGMMA QGMMA"),
    "low_bit_attention d128 int8_fp8 quantize": Figure(126, 16384, "", narrow_stores=True),
    "low_bit_attention d128 int8_fp8 statistics": Figure(127, 1024, "", narrow_stores=True),
    "low_bit_attention d128 fp8 attention": Figure(213, 65544, "QGMMA"),
    "low_bit_attention d128 fp8 quantize": Figure(160, 16384, "", narrow_stores=True),
    "low_bit_attention d64 few int8 attention": Figure(120, 40968, "HGMMA IGMMA"),
    "low_bit_attention d64 few int8_fp8 attention": Figure(126, 28680, "IGMMA QGMMA"),
    "low_bit_attention d64 few fp8 attention": Figure(127, 28680, "QGMMA"),
    "low_bit_attention d128 few int8 attention": Figure(165, 81928, "HGMMA IGMMA"),
    "low_bit_attention d128 few int8_fp8 attention": Figure(210, 57352, "IGMMA QGMMA"),
    "low_bit_attention d128 few fp8 attention": Figure(210, 57352, "QGMMA"),
    "low_bit_attention d128 tail int8 attention": Figure(166, 90120, "HGMMA IGMMA"),
    "low_bit_attention d128 tail int8_fp8 attention": Figure(227, 65544, "IGMMA QGMMA"),
    "low_bit_attention d128 valid int8 attention": Figure(163, 90120, "HGMMA IGMMA"),
    "low_bit_attention d128 valid int8_fp8 attention": Figure(131, 57352, "IGMMA QGMMA"),
    "low_bit_attention d64 valid 257 float16 int8 attention": Figure(126, 40968, "HGMMA IGMMA"),
    "low_bit_attention d64 valid 257 float16 int8_fp8 attention": Figure(164, 28680, "IGMMA QGMMA"),
    "low_bit_attention d64 valid 257 float16 fp8 attention": Figure(164, 28680, "QGMMA"),
    "low_bit_attention d64 valid 1025 float16 int8 attention": Figure(237, 45576, "HGMMA IGMMA"),
    "low_bit_attention d64 valid 1025 float16 int8_fp8 attention": Figure(
        169, 32776, "IGMMA QGMMA"
    ),
    "low_bit_attention d64 valid 1025 float16 fp8 attention": Figure(171, 32776, "QGMMA"),
    "low_bit_attention d72 valid 77 float16 int8 attention": Figure(254, 49160, "HGMMA IGMMA"),
    "low_bit_attention d72 valid 77 float16 int8_fp8 attention": Figure(174, 57352, "IGMMA QGMMA"),
    "low_bit_attention d72 valid 77 float16 fp8 attention": Figure(174, 57352, "QGMMA"),
    "low_bit_attention d128 valid 1025 float16 int8 attention": Figure(177, 90120, "HGMMA IGMMA"),
    "low_bit_attention d128 valid 1025 float16 int8_fp8 attention": Figure(
        174, 57352, "IGMMA QGMMA"
    ),
    "low_bit_attention d128 valid 1025 float16 fp8 attention": Figure(174, 57352, "QGMMA"),
    "low_bit_attention d128 valid float32 int8_fp8 statistics": Figure(
        104, 2048, "", narrow_stores=True
    ),
    "low_bit_attention d128 valid float32 int8_fp8 quantize": Figure(
        126, 32768, "", narrow_stores=True
    ),
}
"""By name of the launch."""

PRECISIONS = ("int8", "int8_fp8", "fp8")
# batch, tokens, heads, head dim; few programs have tiles of 64 queries
ATTENTION = {
    "d32": (8, 1024, 8, 32),
    "d64": (8, 1024, 16, 64),
    "d80": (8, 1024, 16, 80),
    "d128": (4, 1024, 16, 128),
    "d64 few": (2, 256, 16, 64),
    "d128 few": (2, 256, 16, 128),
}


def launches() -> Iterator[tuple[str, "Launch"]]:
    """Every launch by name."""
    for case, shape in ATTENTION.items():
        for precision in PRECISIONS:
            made = low_bit_attention_launches(precision, shape)
            yield f"low_bit_attention {case} {precision} attention", made["attention"]
            if case not in ("d64", "d128"):
                continue
            yield f"low_bit_attention {case} {precision} quantize", made["quantize"]
            if precision != "fp8":  # as int8_fp8
                yield f"low_bit_attention {case} {precision} statistics", made["statistics"]
    for case in ("tail", "valid"):
        shape = (8, 1025 if case == "tail" else 1024, 16, 128)
        for precision in ("int8", "int8_fp8"):
            made = low_bit_attention_launches(precision, shape, valid=case == "valid")
            yield f"low_bit_attention d128 {case} {precision} attention", made["attention"]
    for dim, tokens in ((64, 257), (64, 1025), (72, 77), (128, 1025)):  # of class rows and text
        for precision in PRECISIONS:
            shape = (8, tokens, 16, dim)
            made = low_bit_attention_launches(precision, shape, valid=True, dtype=torch.float16)
            name = f"low_bit_attention d{dim} valid {tokens} float16 {precision} attention"
            yield name, made["attention"]
    made = low_bit_attention_launches(
        "int8_fp8", (8, 1024, 16, 128), valid=True, dtype=torch.float32
    )
    for kernel in ("statistics", "quantize"):
        yield f"low_bit_attention d128 valid float32 int8_fp8 {kernel}", made[kernel]


def low_bit_attention_launches(
    precision: str,
    shape: tuple[int, int, int, int],
    *,
    valid: bool = False,
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, "Launch"]:
    """Statistics, quantization and attention of views of one q, k and v tensor."""
    from tessella.kernels.low_bit_attention.launches import (
        attention_launch,
        quantize_launch,
        statistics_launch,
    )
    from tessella.kernels.low_bit_attention.reference import product_dtype

    batch, tokens, heads, dim = shape
    q, k, v = meta(batch, tokens, 3, heads, dim, dtype=dtype).unbind(2)
    real = meta(batch, tokens, dtype=torch.bool) if valid else None
    statistics, first = statistics_launch(k, v, real, precision=precision, smooth_k=True)
    assert first is not None
    quantized, second = quantize_launch(q, k, v, real, statistics, precision=precision)
    third = attention_launch(q, v.to(product_dtype(v.dtype)), real, quantized)
    return {"statistics": first, "quantize": second, "attention": third}
