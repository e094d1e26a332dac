"""The window of an edit: no hidden pixel decides a known token, and no other pixel changes."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tessella.data.images import to_tensor, to_uint8
from tessella.sample.masks import token_mask
from tessella.sample.window import (
    Window,
    blend,
    box_mean,
    choose_window,
    encode_known,
    neutral_fills,
    resize_mask,
)
from tessella.tokenizers.base import Tokenizer
from tessella.tokenizers.binary_autoencoder import BinaryAutoencoderConfig
from tessella.tokenizers.build import build_tokenizer
from tessella.tokenizers.networks.conv_autoencoder import ConvAutoencoderConfig
from tessella.tokenizers.quantizers.bernoulli import BernoulliConfig
from tessella.tokenizers.quantizers.bsq import BSQConfig
from tessella.tokenizers.quantizers.ema_vq import EMAVQConfig
from tessella.tokenizers.quantizers.fsq import FSQConfig
from tessella.tokenizers.quantizers.lfq import LFQConfig
from tessella.tokenizers.quantizers.vq import VQConfig
from tessella.tokenizers.vqgan import VQGANConfig
from tessella.tokens.tokens import TokenSpec

GRID = TokenSpec((8, 8), (2,) * 4)
SMALL: dict[str, Any] = {
    "base_channels": 8, "channel_multipliers": (1, 1, 2), "num_res_blocks": 1, "norm_groups": 4,
}  # fmt: skip
QUANTIZERS = {
    "lfq": LFQConfig(bits=4),
    "bsq": BSQConfig(bits=4),
    "fsq": FSQConfig(levels=(5, 3)),
    "vq": VQConfig(codebook_size=16, dim=8),
    "ema_vq": EMAVQConfig(codebook_size=16, dim=8),
}
TOKENIZERS: dict[str, Any] = {
    name: VQGANConfig(
        resolution=32, autoencoder=ConvAutoencoderConfig(**SMALL), quantizer=quantizer
    )
    for name, quantizer in QUANTIZERS.items()
} | {
    "bernoulli": BinaryAutoencoderConfig(
        resolution=32,
        autoencoder=ConvAutoencoderConfig(**SMALL),
        quantizer=BernoulliConfig(bits=4),
    ),
    "attention": VQGANConfig(
        resolution=32,
        pixel_range="unit",
        autoencoder=ConvAutoencoderConfig(
            **SMALL, mid_attention=True, attention_levels=(2,), downsample="avg_pool"
        ),
        quantizer=LFQConfig(bits=4),
    ),
}


def tokenizer_of(kind: str) -> Tokenizer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_tokenizer(TOKENIZERS[kind]).eval()


def photograph(height: int, width: int) -> Tensor:
    """Some structure and noise, (3, H, W)."""
    rng = torch.Generator().manual_seed(3)
    small = torch.rand(1, 3, 5, 5, generator=rng) * 2 - 1
    smooth = torch.nn.functional.interpolate(small, (height, width), mode="bilinear")[0]
    noisy = smooth + 0.1 * torch.randn(3, height, width, generator=rng)
    return to_tensor(to_uint8(noisy.clamp(-1, 1)).permute(1, 2, 0).numpy())


@pytest.mark.parametrize("side", [32, 50])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_no_known_token_depends_on_a_hidden_pixel(kind: str, side: int) -> None:
    """Hidden pixels of five kinds; encoded as they are, tokens outside the mask would change."""
    tokenizer, pixels = tokenizer_of(kind), photograph(side, side)
    hidden = torch.zeros(side, side, dtype=torch.bool)
    hidden[side // 4 : side // 2, side // 4 : side // 2] = True
    noise = torch.rand(pixels.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    others = [
        torch.where(hidden, fill, pixels) for fill in (noise, -torch.ones(()), torch.ones(()))
    ]
    tokens, undecided = encode_known(tokenizer, pixels, hidden)
    for other in others:
        again, same = encode_known(tokenizer, other, hidden)
        assert torch.equal(again.indices, tokens.indices) and torch.equal(same, undecided)
    marked = token_mask(resize_mask(hidden, 32), tokenizer.spec)
    assert 0 < marked.sum() <= 9
    assert (~marked & ~undecided).any(), "something is still known"
    if side == 32:
        encoded = [tokenizer.encode(image[None]).indices for image in (pixels, *others)]
        leaks = (torch.cat(encoded) != encoded[0]).any(-1).any(0)
        assert (leaks & ~marked).any(), "this is what the fills are for"


def test_fills_by_value() -> None:
    """A row of five: the middle pixel is hidden."""
    pixels = torch.tensor([0.1, 0.2, 9.0, 0.4, 0.8]).expand(3, 5, 5).clone()
    hidden = torch.zeros(5, 5, dtype=torch.bool)
    hidden[:, 2] = True
    fills = neutral_fills(pixels, hidden)
    expected = torch.tensor([0.3, 0.375, 0.375])  # means of 0.2 and 0.4, and of all four
    torch.testing.assert_close(fills[:, :, :, 2], expected[:, None, None].expand(3, 3, 5))
    assert torch.equal(fills[:, :, ~hidden], pixels[:, ~hidden].expand(3, -1, -1))
    assert not neutral_fills(pixels, torch.ones_like(hidden)).any(), "grey, if nothing is known"


def test_box_means_count_known_values_only() -> None:
    rng = torch.Generator().manual_seed(0)
    values, known = torch.rand(2, 7, 9, generator=rng), torch.rand(7, 9, generator=rng) > 0.6
    means, shares = box_mean(values, known, 2)
    for row, column in ((0, 0), (3, 4), (6, 8), (2, 7)):
        box = (slice(max(row - 2, 0), row + 3), slice(max(column - 2, 0), column + 3))
        inside = values[(slice(None), *box)][:, known[box]]
        assert shares[row, column].item() == pytest.approx(known[box].float().mean().item())
        torch.testing.assert_close(means[:, row, column], inside.mean(1))


@pytest.mark.parametrize(
    ("size", "box", "expected"),
    [
        ((32, 32), (0, 0, 8, 4), Window(0, 0, 32)),  # of the tokenizer's size: all of it
        ((200, 300), (100, 50, 110, 54), Window(89, 36, 32)),  # small: pixel by pixel
        ((200, 300), (100, 50, 160, 110), Window(70, 20, 120)),  # twice the region
        ((200, 300), (290, 190, 300, 200), Window(268, 168, 32)),  # in a corner
        ((200, 300), (0, 0, 150, 100), Window(0, 0, 200)),  # at most the shorter side
        ((200, 300), (0, 0, 300, 10), Window(0, -50, 300)),  # more than a square of it
        ((16, 20), (0, 0, 4, 4), Window(0, 0, 16)),  # smaller than the tokenizer's resolution
    ],
)
def test_windows(size: tuple[int, int], box: tuple[int, int, int, int], expected: Window) -> None:
    hidden = torch.zeros(size, dtype=torch.bool)
    hidden[box[1] : box[3], box[0] : box[2]] = True
    found = choose_window(hidden, 32)
    assert found == expected
    assert found.cut(hidden, False).sum() == hidden.sum(), "all that is hidden is inside"
    values = torch.arange(hidden.numel()).view(size)
    assert torch.equal(found.paste(found.cut(values, -1), values), values)


def test_an_empty_mask_has_no_window() -> None:
    with pytest.raises(ValueError, match="nothing is marked"):
        choose_window(torch.zeros(9, 9, dtype=torch.bool), 8)


@pytest.mark.parametrize("size", [16, 20, 32, 64, 100, 128, 300])
def test_a_mask_on_token_borders_hides_just_these_tokens(size: int) -> None:
    """Whatever the size of the window: a smooth filter would leak into the next token."""
    light = torch.zeros(size, size, dtype=torch.bool)
    light[size // 4 : size // 2, size // 2 :] = True
    cells = token_mask(resize_mask(light, 32), GRID).view(8, 8)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2:4, 4:8] = True
    assert torch.equal(cells, expected)


def test_a_thin_line_is_not_lost() -> None:
    light = torch.zeros(128, 128, dtype=torch.bool)
    light[:, 50] = True
    assert token_mask(resize_mask(light, 32), GRID).view(8, 8).any(0).nonzero().item() == 3


@pytest.mark.parametrize("window", [Window(4, 2, 16), Window(0, -4, 28), Window(2, 2, 20)])
def test_blending_changes_hidden_pixels_only_and_leaves_no_seam(window: Window) -> None:
    """What was drawn is the picture, .2 darker everywhere: near the border it is corrected."""
    picture = photograph(20, 28) * 0.5
    hidden = torch.zeros(20, 28, dtype=torch.bool)
    hidden[6:14, 8:16] = True
    drawn = window.cut(picture, 0.0)[None] - torch.tensor([0.2, 0.4]).view(2, 1, 1, 1)
    found = blend(picture, drawn, hidden, window, radius=2)
    assert found.shape == (2, 3, 20, 28)
    assert torch.equal(found[:, :, ~hidden], picture[:, ~hidden].expand(2, -1, -1))
    torch.testing.assert_close(found[:, :, 6, 8:16], picture[:, 6, 8:16].expand(2, -1, -1))
    middle = found[:, :, 9:11, 11:13] - picture[:, 9:11, 11:13]
    torch.testing.assert_close(
        middle, drawn.new_tensor([-0.2, -0.4]).view(2, 1, 1, 1).expand(2, 3, 2, 2)
    )


def test_a_drawn_window_is_resized_to_its_place() -> None:
    picture, hidden = photograph(48, 64), torch.zeros(48, 64, dtype=torch.bool)
    hidden[10:20, 10:20] = True
    for side in (16, 40):
        drawn = torch.full((1, 3, 32, 32), 0.25)
        found = blend(torch.full_like(picture, 0.25), drawn, hidden, Window(5, 5, side), radius=2)
        torch.testing.assert_close(found, torch.full_like(found, 0.25))


def test_masks_of_pictures_keep_their_orientation() -> None:
    light = np.zeros((32, 32), np.uint8)
    light[3, 29] = 255
    mask = torch.from_numpy(np.asarray(Image.fromarray(light)) > 0)
    assert resize_mask(mask, 32).nonzero().tolist() == [[3, 29]]
