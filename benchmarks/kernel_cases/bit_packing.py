"""Benchmark cases: bit packing against an expansion to one tensor element per bit."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tessella.benchmarks.kernel_cases.case import Case
from tessella.kernels.bit_packing.op import pack_codes, pack_signs, unpack_codes, unpack_signs


def expand_and_pack(codes: Tensor, bits: int) -> Tensor:
    """Every bit as an element, eight of them weighed and added: torch operations."""
    shifts = torch.arange(bits, device=codes.device)
    return weigh_bytes(((codes[..., None] >> shifts) & 1).flatten(1))


def unpack_and_weigh(packed: Tensor, num_codes: int, bits: int) -> Tensor:
    """Every bit as an element, those of a code weighed and added: torch operations."""
    expanded = byte_bits(packed)[:, : num_codes * bits].reshape(-1, num_codes, bits).long()
    return (expanded << torch.arange(bits, device=packed.device)).sum(-1)


def weigh_bytes(bits: Tensor) -> Tensor:
    """Bits (B, n), n a multiple of 8, as (B, n / 8) uint8."""
    weights = 2 ** torch.arange(8, dtype=torch.uint8, device=bits.device)
    bits = bits.to(torch.uint8).reshape(len(bits), -1, 8)
    return (bits * weights).sum(-1, dtype=torch.uint8)


def byte_bits(packed: Tensor) -> Tensor:
    """Bytes (B, n) as bits (B, 8 n) uint8."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[..., None] >> shifts) & 1).flatten(1)


def bit_packing_cases(device: torch.device) -> Iterator[Case]:
    """Packing and unpacking of token codes and of sign planes, without the pass of `validate`."""
    grids, planes = [(4096, 256, 14), (4096, 256, 18), (4096, 1024, 1)], [(65536, 1024)]
    types = [torch.bfloat16, torch.float32]
    if device.type != "cuda":
        grids, planes, types = [(128, 256, 14), (128, 256, 18)], [(512, 1024)], [torch.float32]
    for images, num_codes, bits in grids:
        yield from code_cases(device, images, num_codes, bits)
    for (rows, width), dtype in itertools.product(planes, types):
        yield from sign_cases(device, rows, width, dtype)


def code_cases(device: torch.device, images: int, num_codes: int, bits: int) -> Iterator[Case]:
    """Packing and unpacking of int64 codes (B, N) of whole bytes."""

    def draw(high: int, width: int, dtype: torch.dtype) -> Callable[[int], Tensor]:
        def make(seed: int) -> Tensor:
            rng = torch.Generator(device).manual_seed(seed)
            shape = (images, width)
            return torch.randint(high, shape, generator=rng, device=device, dtype=dtype)

        return make

    width = num_codes * bits // 8
    num_bytes = images * (num_codes * 8 + width)
    shape = f"B{images} N{num_codes} of {bits} bits"
    packing: dict[str, Callable[[Any], Tensor]] = {
        "kernel": lambda codes: pack_codes(codes, bits, validate=False),
        "expand + weigh": lambda codes: expand_and_pack(codes, bits),
    }
    make_codes = draw(2**bits, num_codes, torch.int64)
    yield Case("pack_codes", shape, torch.int64, num_bytes, packing, make_codes)
    unpacking: dict[str, Callable[[Any], Tensor]] = {
        "kernel": lambda packed: unpack_codes(packed, num_codes, bits),
        "expand + weigh": lambda packed: unpack_and_weigh(packed, num_codes, bits),
    }
    make_bytes = draw(256, width, torch.uint8)
    yield Case("unpack_codes", shape, torch.int64, num_bytes, unpacking, make_bytes)


def sign_cases(device: torch.device, rows: int, width: int, dtype: torch.dtype) -> Iterator[Case]:
    """Packing of the signs of floats (M, D), D a multiple of 8, and unpacking."""

    def make(seed: int) -> Tensor:
        rng = torch.Generator(device).manual_seed(seed)
        return torch.randn(rows, width, generator=rng, device=device).to(dtype)

    num_bytes = rows * (width * torch.finfo(dtype).bits + width) // 8
    shape = f"M{rows} D{width}"
    packing: dict[str, Callable[[Any], Tensor]] = {
        "kernel": lambda x: pack_signs(x, validate=False),
        "compare + weigh": lambda x: weigh_bytes(x >= 0),
    }
    yield Case("pack_signs", shape, dtype, num_bytes, packing, make)
    unpacking: dict[str, Callable[[Any], Tensor]] = {
        "kernel": lambda packed: unpack_signs(packed, width, dtype=dtype),
        "expand": lambda packed: byte_bits(packed).to(dtype) * 2 - 1,
    }

    def make_packed(seed: int) -> Tensor:
        return pack_signs(make(seed), validate=False)

    yield Case("unpack_signs", shape, dtype, num_bytes, unpacking, make_packed)
