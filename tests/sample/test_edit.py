"""What an edit hides: masks of pixels and boxes as masks of tokens, and random shares."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tessella.sample.edit import box_mask, read_masked_image, token_mask, variation_mask
from tessella.tokenizers.tokens import TokenSpec

SPEC = TokenSpec((8, 8), (2,) * 4)


def write(path: Path, light: np.ndarray) -> Path:
    """A mask file, white where `light` is True."""
    Image.fromarray(light.astype(np.uint8) * 255).save(path)
    return path


def cells(rows: slice, columns: slice) -> Tensor:
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[rows, columns] = True
    return expected.flatten()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.new("RGB", (128, 128), (10, 200, 90)).save(path)
    return path


@pytest.mark.parametrize("size", [16, 20, 32, 64, 100, 128, 300])
def test_a_mask_on_token_borders_hides_just_these_tokens(size: int, tmp_path: Path) -> None:
    """Whatever the size of the picture: a smooth filter would leak into the next token."""
    Image.new("RGB", (size, size)).save(tmp_path / "picture.png")
    light = np.zeros((size, size), bool)
    light[size // 4 : size // 2, size // 2 :] = True
    mask_path = write(tmp_path / "mask.png", light)
    pixels, mask = read_masked_image(tmp_path / "picture.png", mask_path, 32)
    assert pixels.shape == (3, 32, 32) and mask.shape == (32, 32) and mask.dtype == torch.bool
    assert torch.equal(token_mask(mask, SPEC), cells(slice(2, 4), slice(4, 8)))


def test_a_thin_line_is_not_lost(picture: Path, tmp_path: Path) -> None:
    light = np.zeros((128, 128), bool)
    light[:, 50] = True
    _, mask = read_masked_image(picture, write(tmp_path / "mask.png", light), 32)
    assert torch.equal(token_mask(mask, SPEC), cells(slice(0, 8), slice(3, 4)))


def test_picture_and_mask_are_cropped_alike(tmp_path: Path) -> None:
    """64x32 to 32x32: the outer quarters fall away; the mask marks what is white in the picture."""
    light = np.zeros((32, 64), bool)
    light[:8, 16:24] = True
    write(tmp_path / "picture.png", light)
    pixels, mask = read_masked_image(
        tmp_path / "picture.png", write(tmp_path / "mask.png", light), 32
    )
    assert torch.equal(mask, pixels[0] > 0)
    assert torch.equal(token_mask(mask, SPEC), cells(slice(0, 2), slice(0, 2)))


@pytest.mark.parametrize(("grey", "hidden"), [(0, False), (127, False), (128, True), (255, True)])
def test_grey_is_light_from_128(picture: Path, tmp_path: Path, grey: int, hidden: bool) -> None:
    Image.new("L", (128, 128), grey).save(tmp_path / "mask.png")
    _, mask = read_masked_image(picture, tmp_path / "mask.png", 32)
    assert mask.all() if hidden else not mask.any()


def test_without_a_mask_there_is_none(picture: Path) -> None:
    pixels, mask = read_masked_image(picture, None, 32)
    assert mask is None
    expected = torch.tensor([10, 200, 90]) / 127.5 - 1
    torch.testing.assert_close(pixels[:, 5, 5], expected, rtol=0, atol=1e-6)


def test_a_mask_of_another_size_is_refused(picture: Path, tmp_path: Path) -> None:
    write(tmp_path / "mask.png", np.ones((128, 127), bool))
    with pytest.raises(ValueError, match="the mask is 127x128, the image 128x128"):
        read_masked_image(picture, tmp_path / "mask.png", 32)


def test_files_that_are_no_pictures_are_refused(picture: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no")
    for image, mask in ((tmp_path / "broken.png", None), (picture, tmp_path / "broken.png")):
        with pytest.raises(ValueError, match=r"broken\.png"):
            read_masked_image(image, mask, 32)


def test_boxes() -> None:
    mask = box_mask((8, 4, 16, 32), 32)
    assert mask.sum() == 8 * 28
    assert torch.equal(token_mask(mask, SPEC), cells(slice(1, 8), slice(2, 4)))
    assert torch.equal(box_mask((8, 4, 16, 32), 32, outside=True), ~mask)
    assert box_mask((0, 0, 32, 32), 32).all()
    touched = box_mask((7, 0, 9, 1), 32)  # one pixel of each of two tokens
    assert torch.equal(token_mask(touched, SPEC), cells(slice(0, 1), slice(1, 3)))


@pytest.mark.parametrize(
    "box", [(8, 0, 8, 4), (0, 5, 4, 4), (-1, 0, 4, 4), (0, 0, 33, 4), (0, 0, 4, 33)]
)
def test_boxes_that_do_not_fit_are_refused(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="expected 0 <= left < right <= 32"):
        box_mask(box, 32)


@pytest.mark.parametrize(
    ("mask", "spec", "message"),
    [
        (torch.zeros(32, 32).bool(), SPEC, "nothing is marked"),
        (torch.ones(32, 32).bool(), TokenSpec((64,), (4,)), "needs a grid of tokens; 64 tokens"),
        (torch.ones(32, 30).bool(), SPEC, "32x30 pixels are no multiple of 8x8 cells"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask: Tensor, spec: TokenSpec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        token_mask(mask, spec)


def test_cells_of_a_grid_that_is_no_square() -> None:
    mask = torch.zeros(8, 12, dtype=torch.bool)
    mask[7, 4] = True
    expected = torch.zeros(2, 3, dtype=torch.bool)
    expected[1, 1] = True
    assert torch.equal(token_mask(mask, TokenSpec((2, 3), (4,))), expected.flatten())


@pytest.mark.parametrize(
    ("share", "count"), [(1e-9, 1), (0.01, 1), (0.25, 16), (0.5, 32), (0.99, 63), (1.0, 64)]
)
def test_a_variation_hides_its_share(share: float, count: int) -> None:
    mask = variation_mask(torch.arange(5), SPEC, share)
    assert mask.shape == (5, 64) and mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [count] * 5


def test_variations_belong_to_their_seeds() -> None:
    seeds = torch.arange(400)
    mask = variation_mask(seeds, SPEC, 0.25)
    assert torch.equal(variation_mask(seeds[7:9], SPEC, 0.25), mask[7:9])
    assert mask.unique(dim=0).shape[0] == 400
    # n = 400 images, every position hidden with probability 1/4 within 4 sigma
    sigma = (0.25 * 0.75 / 400) ** 0.5
    assert (mask.float().mean(0) - 0.25).abs().max() < 4 * sigma


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01, float("nan")])
def test_shares_that_are_impossible_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match="expected a share above 0 up to 1"):
        variation_mask(torch.arange(2), SPEC, share)
