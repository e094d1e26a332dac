"""Uploads: what is read, and one sentence for each that is not."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tessella.page.limits import Limits, read_mask, read_upload
from tessella.tests.page.sent import file_of, noise, painted


def png_header(width: int, height: int) -> str:
    """A PNG that says it has this size, and has no pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\x09IDAT").decode()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_a_picture_is_read(kind: str) -> None:
    picture = noise(40, 30)
    read = read_upload(file_of(picture, kind), "picture")
    assert read.size == (40, 30) and read.mode == "RGB"
    if kind in ("PNG", "BMP", "TIFF"):
        assert read.tobytes() == picture.tobytes()


def test_a_picture_lies_as_its_camera_says_and_transparency_is_white() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    out = io.BytesIO()
    noise(40, 30).save(out, "JPEG", exif=turned)
    assert read_upload(base64.b64encode(out.getvalue()).decode(), "picture").size == (30, 40)
    clear = file_of(Image.new("RGBA", (4, 4), (9, 9, 9, 0)))
    assert read_upload(clear, "picture").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("!!!", "picture: expected a file in base64"),
        ("é", "picture: expected a file in base64"),
        ("", "picture: damaged, or of a kind that is not read: empty file"),
        (base64.b64encode(b"no picture at all").decode(), "picture: no picture in a format"),
        (base64.b64encode(b"<svg xmlns='x'/>").decode(), "picture: no picture in a format"),
        (file_of(noise(64, 64))[:4000], "picture: damaged, or of a kind that is not read: "),
        (
            png_header(6_000, 4_000),
            "picture: 6000x4000 pixels, expected at most 20,000,000 pixels and 16,384 on a side",
        ),
        (
            png_header(60_000, 60_000),
            "picture: far too large, expected at most 20,000,000 pixels and 16,384 on a side",
        ),
    ],
)
def test_what_is_no_picture_or_too_large_is_refused_before_it_is_decoded(
    text: str, said: str
) -> None:
    with pytest.raises(ValueError) as error:
        read_upload(text, "picture")
    assert str(error.value).startswith(said) and "\n" not in str(error.value)


def test_a_long_side_is_refused_where_the_pixels_are_few() -> None:
    with pytest.raises(ValueError, match="picture: 60000x1 pixels, expected at most 20,000,000"):
        read_upload(file_of(Image.new("RGB", (60_000, 1))), "picture")
    few = Limits(pixels=100, side=16)
    assert read_upload(file_of(noise(16, 6)), "picture", few).size == (16, 6)
    with pytest.raises(ValueError, match="17x5 pixels, expected at most 100 pixels"):
        read_upload(file_of(noise(17, 5)), "picture", few)
    with pytest.raises(ValueError, match="16x7 pixels, expected at most 100 pixels"):
        read_upload(file_of(noise(16, 7)), "picture", few)


def test_a_mask_of_any_size_covers_the_picture() -> None:
    mask = read_mask(file_of(painted(10, 5, (0, 0, 5, 5))), (100, 60))
    assert mask.shape == (60, 100) and mask[:, :50].all() and not mask[:, 50:].any()
    exact = read_mask(file_of(painted(7, 9, (2, 3, 4, 8))), (7, 9))
    assert np.argwhere(exact).min(0).tolist() == [3, 2] and exact.sum() == 10
    with pytest.raises(ValueError, match="mask: nothing is painted"):
        read_mask(file_of(Image.new("L", (10, 5))), (100, 60))
    with pytest.raises(ValueError, match="mask: no picture"):
        read_mask(base64.b64encode(b"x" * 99).decode(), (100, 60))
