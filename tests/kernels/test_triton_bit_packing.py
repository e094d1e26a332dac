"""The contract of the fused bit packing: every byte and every code equal to the reference's."""

import pytest
import torch
from torch import Tensor

from tessella.kernels.bit_packing.op import pack_codes, pack_signs, unpack_codes, unpack_signs
from tessella.tests.kernels.contract import CONTRACT, DEVICE, DTYPES, Source, fenced

pytestmark = CONTRACT


def draw(widths: tuple[int, ...], *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
    """Codes of groups, (*shape, G), fenced; the largest and 0 are among them."""
    rng = torch.Generator().manual_seed(0)
    codes = torch.stack([torch.randint(2**w, shape, generator=rng) for w in widths], -1)
    codes.view(-1, len(widths))[0] = torch.tensor([2**w - 1 for w in widths])
    codes.view(-1, len(widths))[-1] = 0
    return fenced(codes.to(dtype))


def compare(codes: Tensor, bits: int | tuple[int, ...], num_codes: int) -> Tensor:
    """Packed by both, twice by Triton; and back by both. The bytes."""
    expected = pack_codes(codes, bits, backend="reference")
    for _ in range(2):
        found = pack_codes(codes, bits, backend="triton")
        assert found.dtype == torch.uint8 and torch.equal(found, expected)
    stored = fenced(expected.cpu())
    widest = bits if isinstance(bits, int) else max(bits)
    for dtype in (torch.int64, torch.int32) if widest <= 31 else (torch.int64,):
        back = unpack_codes(stored, num_codes, bits, dtype=dtype, backend="triton")
        assert back.dtype == dtype and torch.equal(back, codes.to(dtype))
    return expected


@pytest.mark.parametrize("bits", range(1, 63))
def test_every_width(bits: int) -> None:
    compare(draw((bits,), 3, 29)[..., 0], bits, 29)


# images, positions, widths
SHAPES = {
    "one-code": (1, 1, (14,)),
    "one-bit": (1, 1, (1,)),
    "whole-tile": (4, 256, (8,)),
    "tile-and-one": (5, 257, (9,)),
    "long": (2, 1300, (18,)),
    "many-images": (1027, 1, (3,)),
    "none": (0, 5, (7, 9)),
    "two-widths": (3, 11, (1, 2)),
    "three-widths": (5, 130, (4, 10, 3)),
    "wide-and-narrow": (2, 9, (62, 1)),
    "around-32": (3, 7, (31, 32, 33)),
    "five-widths": (2, 37, (5, 62, 8, 24, 13)),
    "18-bits": (3, 5, (1,) * 18),
    "16-widths": (2, 3, (1, 2) * 8),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str) -> None:
    images, positions, widths = SHAPES[shape]
    codes = draw(widths, max(images, 1), positions)[:images]
    compare(codes, widths, positions)


@pytest.mark.parametrize("widths", [(9, 5), (14, 14)], ids=str)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_any_strides(widths: tuple[int, ...], dtype: torch.dtype) -> None:
    codes = draw(widths, 4, 7, dtype=dtype)
    expected = compare(codes, widths, 7)
    wide = torch.full((6, 9, 5), -1, dtype=dtype, device=DEVICE)
    wide[1:5, 2:, 1:4:2] = codes
    for other in (codes.permute(2, 1, 0).contiguous().permute(2, 1, 0), wide[1:5, 2:, 1:4:2]):
        assert torch.equal(pack_codes(other, widths, backend="triton"), expected)
    apart = torch.full((4, 2 * expected.shape[1]), 77, dtype=torch.uint8, device=DEVICE)
    apart[:, ::2] = expected
    found = unpack_codes(apart[:, ::2], 7, widths, dtype=dtype, backend="triton")
    assert torch.equal(found, codes)


def test_int32_codes_of_wide_fields() -> None:
    codes = draw((31,), 2, 9, dtype=torch.int32)[..., 0]
    for bits in (31, 40, 62):
        assert torch.equal(
            pack_codes(codes, bits, backend="triton"), pack_codes(codes, bits, backend="reference")
        )


def test_unchecked_codes_count_by_their_low_bits() -> None:
    codes = torch.tensor([[5, 16 + 3, -1, 2**40 + 1]], device=DEVICE)
    packed = pack_codes(codes, 4, validate=False, backend="triton")
    assert unpack_codes(packed, 4, 4, backend="triton").tolist() == [[5, 3, 15, 1]]


def test_unused_bits_are_written_as_0_and_not_read() -> None:
    packed = pack_codes(torch.full((2, 3), 7, device=DEVICE), 3, backend="triton")
    assert packed.tolist() == [[255, 1]] * 2
    packed[:, 1] = 255
    assert unpack_codes(packed, 3, 3, backend="triton").tolist() == [[7, 7, 7]] * 2


def test_values_are_checked_on_request() -> None:
    codes = torch.tensor([[3, 16]], device=DEVICE)
    with pytest.raises(ValueError, match=r"codes: .* found 16"):
        pack_codes(codes, 4, validate=True, backend="triton")
    with pytest.raises(ValueError, match="expected numbers, found nan"):
        pack_signs(torch.full((1, 3), float("nan"), device=DEVICE), validate=True, backend="triton")


@pytest.mark.parametrize("shape", [(1, 1), (3, 8), (5, 37), (2, 515), (1029, 2)], ids=str)
@DTYPES
def test_signs(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    x = Source(dtype).normal(*shape)
    x[0, 0] = -0.0
    x[-1, -1] = float("nan")
    expected = pack_signs(x, validate=False, backend="reference")
    found = pack_signs(x, validate=False, backend="triton")
    assert found.dtype == torch.uint8 and torch.equal(found, expected)
    apart = x.t().contiguous().t()
    assert torch.equal(pack_signs(apart, validate=False, backend="triton"), expected)
    back = unpack_signs(fenced(found.cpu()), shape[1], dtype=dtype, backend="triton")
    assert back.dtype == dtype and torch.equal(back, torch.where(x >= 0, 1, -1).to(dtype))


def test_what_it_cannot_do_is_refused_by_name() -> None:
    widths = (1, 2) * 9
    codes = torch.zeros(1, 1, 18, dtype=torch.int64, device=DEVICE)
    with pytest.raises(RuntimeError, match="18 groups of several widths are more than 16"):
        pack_codes(codes, widths, backend="triton")
    long = torch.zeros(1, 1, dtype=torch.int64, device=DEVICE).expand(1, 2**30 // 62 + 1)
    with pytest.raises(RuntimeError, match=r"an image of \d+ bits is larger than 1073741824"):
        pack_codes(long, 62, validate=False, backend="triton")
    with pytest.raises(RuntimeError, match="no kernel computes in float64"):
        pack_signs(torch.zeros(1, 8, dtype=torch.float64, device=DEVICE), backend="triton")
