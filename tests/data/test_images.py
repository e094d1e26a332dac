import io
import os
import subprocess
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from tessella.data.images import (
    BrokenImage,
    image_grid,
    read_image,
    save_png,
    to_tensor,
    to_uint8,
    upright_rgb,
)


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_alpha_is_flattened_on_white_whatever_the_hidden_colour():
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = (255, 0, 0, 255)
    pixels[0, 1] = (0, 255, 0, 0)  # hidden green
    pixels[1, 0] = (0, 0, 0, 128)
    image = np.asarray(read_image(encode(Image.fromarray(pixels))))
    assert image[0, 0].tolist() == [255, 0, 0]
    assert image[0, 1].tolist() == [255, 255, 255]
    assert image[1, 0].tolist() == [127, 127, 127]


def test_grey_with_alpha():
    image = Image.merge("LA", (Image.new("L", (2, 1), 10), Image.new("L", (2, 1), 0)))
    assert np.asarray(read_image(encode(image))).tolist() == [[[255] * 3] * 2]


def test_palette_and_transparent_palette():
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 20, 0, 0, 255])
    image.putpixel((1, 0), 1)
    assert np.asarray(read_image(encode(image))).tolist() == [[[200, 10, 20], [0, 0, 255]]]
    flat = read_image(encode(image, transparency=0))
    assert np.asarray(flat).tolist() == [[[255, 255, 255], [0, 0, 255]]]


def test_colour_key_transparency():
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    flat = read_image(encode(image, transparency=(1, 2, 3)))
    assert np.asarray(flat).tolist() == [[[255] * 3, [9] * 3]]


def test_16_bit_grey_is_scaled_not_saturated():
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    image = np.asarray(read_image(encode(Image.fromarray(values))))
    assert image[0, :, 0].tolist() == [0, 1, 128, 255]


def test_cmyk_and_grey_and_bilevel():
    cmyk = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    red = np.asarray(read_image(encode(cmyk, "TIFF")))[0, 0]
    assert red.tolist() == [255, 0, 0]
    assert read_image(encode(cmyk, "JPEG")).mode == "RGB"
    assert np.asarray(read_image(encode(Image.new("L", (1, 1), 7))))[0, 0].tolist() == [7] * 3
    assert np.asarray(read_image(encode(Image.new("1", (1, 1), 1))))[0, 0].tolist() == [255] * 3


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (4, 2), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    upright = read_image(encode(image, exif=exif))
    assert upright.size == (2, 4)
    assert upright.getpixel((1, 0)) == (255, 255, 255)


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    blob = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert read_image(blob).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("blob", [b"", b"not an image", b"\x89PNG\r\n\x1a\n"])
def test_not_an_image(blob):
    with pytest.raises(BrokenImage, match=r"^photo 7: ") as caught:
        read_image(blob, name="photo 7")
    assert caught.value.name == "photo 7" and caught.value.reason


def test_truncated_missing_and_huge_files(tmp_path, make_png, monkeypatch):
    blob = make_png(0, (64, 64))
    with pytest.raises(BrokenImage):
        read_image(blob[: len(blob) // 2])
    with pytest.raises(BrokenImage, match="No such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(BrokenImage, match="float"):
        read_image(encode(Image.new("F", (2, 2)), "TIFF"))
    with pytest.raises(BrokenImage, match="64x64 pixels, limit 4095"):
        read_image(blob, max_pixels=4095)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BrokenImage, match="decompression bomb"):
        read_image(blob)


def test_the_size_alone_warns_nobody(make_png, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)  # Pillow warns from here to twice that
    assert read_image(make_png(0, (64, 64))).size == (64, 64)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n"


@pytest.mark.parametrize(
    "blob",
    [POSTSCRIPT, encode(Image.new("RGB", (8, 8)), "PCX"), encode(Image.new("L", (8, 8)), "TGA")],
)
def test_only_listed_formats_reach_a_decoder(blob, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", fail)
    (tmp_path / "x.png").write_bytes(blob)
    for source in (blob, tmp_path / "x.png", io.BytesIO(blob)):
        with pytest.raises(BrokenImage, match="not an image in a format that is read"):
            read_image(source)


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG"])
def test_every_listed_format_is_read(kind):
    assert read_image(encode(Image.new("RGB", (8, 6), "red"), kind)).size == (8, 6)


def test_open_files_are_read_from_their_beginning(make_png, tmp_path):
    blob = make_png(3)
    stream = io.BytesIO()
    stream.write(blob)
    (tmp_path / "a.png").write_bytes(blob)
    with (tmp_path / "a.png").open("rb") as file:
        found = [
            read_image(source).tobytes() for source in (blob, stream, file, tmp_path / "a.png")
        ]
    assert len(set(found)) == 1


def test_pipes_and_folders_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(BrokenImage, match="a pipe or a device, expected an image file"):
        read_image(tmp_path / "pipe.png")
    with pytest.raises(BrokenImage, match="a folder, expected"):
        read_image(tmp_path)


def pictures_of_every_kind(width, height):
    rng = np.random.default_rng(0)
    grey = Image.fromarray(rng.integers(0, 65536, (height, width), dtype=np.uint16))
    rgba = Image.fromarray(rng.integers(0, 256, (height, width, 4), dtype=np.uint8))
    palette = rgba.convert("RGB").quantize(32)
    palette.info["transparency"] = 3
    yield from (grey, rgba, rgba.convert("LA"), palette, rgba.convert("RGBa"))
    key = rgba.convert("RGB")
    key.info["transparency"] = key.getpixel((0, 0))
    yield from (key, Image.fromarray(np.asarray(grey).astype(np.int32)))


@pytest.mark.parametrize("size", [(37, 23), (5, 90)])
def test_strips_change_no_pixel(size, monkeypatch):
    whole = [upright_rgb(image).tobytes() for image in pictures_of_every_kind(*size)]
    monkeypatch.setattr("tessella.data.images._STRIP", 50)
    assert [upright_rgb(image).tobytes() for image in pictures_of_every_kind(*size)] == whole


@pytest.mark.parametrize("size", [(3000, 3000), (9_000_000, 1)])
def test_memory_of_large_16_bit_pictures(size):
    """Beside the picture and its RGB form there is one strip of numbers."""
    blob = encode(Image.new("I;16", size), compress_level=1)
    # tracemalloc sees what numpy takes, which was 26 bytes a pixel, but not what Pillow takes
    tracemalloc.start()
    read_image(blob)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * 2**20


def jpeg(width, height, **options):
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], -1).astype(np.uint8)
    return encode(Image.fromarray(pixels), "JPEG", quality=95, **options)


def test_jpegs_are_reduced_only_where_that_is_asked_for():
    blob = jpeg(400, 240)
    assert read_image(blob).size == (400, 240)
    sizes = {side: read_image(blob, side=side).size for side in (241, 120, 61, 60, 30, 1)}
    assert sizes == {
        **{241: (400, 240), 120: (200, 120), 61: (200, 120)},
        **{60: (100, 60), 30: (50, 30), 1: (50, 30)},
    }
    png = encode(Image.new("RGB", (400, 240)))
    assert read_image(png, side=10).size == (400, 240)
    assert read_image(jpeg(401, 241), side=120).size == (201, 121)


def test_a_jpeg_above_the_budget_is_read_at_a_scale_that_fits():
    blob = jpeg(400, 240)
    assert read_image(blob, side=100, max_pixels=200 * 120).size == (200, 120)
    with pytest.raises(BrokenImage, match="200x120 pixels, limit 23999"):
        read_image(blob, side=100, max_pixels=200 * 120 - 1)
    with pytest.raises(BrokenImage, match="400x240 pixels, limit"):
        read_image(blob, max_pixels=200 * 120)


def test_a_jpeg_2000_has_half_the_budget():
    blob = encode(Image.new("RGB", (8, 6)), "JPEG2000")
    assert read_image(blob, max_pixels=96).size == (8, 6)
    with pytest.raises(BrokenImage, match="8x6 pixels, limit 47"):
        read_image(blob, max_pixels=95)


def test_a_reduced_jpeg_is_turned_as_well():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_image(jpeg(400, 240, exif=exif), side=120).size == (120, 200)


def test_rounding_is_exact_both_ways():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(16, 16, 1).expand(16, 16, 3)
    images = to_tensor(pixels)[None]
    assert images.shape == (1, 3, 16, 16) and images.min() == -1 and images.max() == 1
    assert torch.equal(to_uint8(images)[0].permute(1, 2, 0), pixels)
    # 0.0 lies halfway, 127.5, and goes to the even neighbour; values outside saturate
    values = torch.tensor([-1e9, 0.0, 0.999, 3.0], dtype=torch.float64)
    assert to_uint8(values).tolist() == [0, 128, 255, 255]


def test_wrong_input_to_conversions():
    with pytest.raises(ValueError, match="12 values are not finite"):
        to_uint8(torch.full((1, 3, 2, 2), float("nan")))
    with pytest.raises(ValueError, match=r"found torch\.int64"):
        to_uint8(torch.zeros(3, 2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="expected RGB"):
        to_tensor(Image.new("L", (2, 2)))
    with pytest.raises(ValueError, match="expected uint8"):
        to_tensor(np.zeros((2, 2, 3)))


def test_save_png_is_atomic(tmp_path):
    path = tmp_path / "deep" / "a.png"
    image = torch.full((3, 4, 5), -1.0)
    save_png(image, path)
    assert np.asarray(read_image(path)).sum() == 0
    with pytest.raises(ValueError):
        save_png(image * float("nan"), path)
    assert [entry.name for entry in path.parent.iterdir()] == ["a.png"]
    assert read_image(path).size == (5, 4)


def test_grid_places_images_and_labels():
    images = torch.stack([torch.full((3, 8, 8), v) for v in (-1.0, 0.0, 1.0)])
    grid = np.asarray(image_grid(images, columns=2))
    assert grid.shape == (2 + 2 * 10, 2 + 2 * 10, 3)
    assert (grid[2:10, 2:10] == 0).all() and (grid[12:20, 2:10] == 255).all()
    labelled = image_grid(images, 2, labels=["cat", "a very long caption", "żółw"])
    assert labelled.height > grid.shape[0] and labelled.width == grid.shape[1]
    with pytest.raises(ValueError, match="2 labels for 3 images"):
        image_grid(images, 2, labels=["a", "b"])
    with pytest.raises(ValueError, match="at least 1"):
        image_grid([], 2)
