"""How far tokens depend on pixels elsewhere, and what it costs to be independent of them.

    python benchmarks/receptive_fields.py [--tokenizer bundled:bits-emoji-64] [--box 16,16,40,40]

The images are the validation split of the bundled emoji. `leaking` is the share of tokens outside
the cells of the box that change when its pixels are painted black; `undecided` is the share that
`tessella edit` does not take as known, because they differ between three fills of the box that
are made of the other pixels. `mosaics` are squares of four images, encoded with `any_size`: the
share of equal bits between an image alone and in its quarter, and the PSNR of both.
"""

import click
import torch

from tessella.checkpoints import load_tokenizer
from tessella.data.images import to_tensor
from tessella.data.sources import open_source
from tessella.data.transforms import resize_center_crop
from tessella.metrics.image import psnr
from tessella.sample.masks import box_mask, token_mask
from tessella.sample.window import encode_known


@click.command()
@click.option("--tokenizer", "path", default="bundled:bits-emoji-64", show_default=True)
@click.option("--box", default="16,16,40,40", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@torch.no_grad()
def main(path: str, box: str, threads: int) -> None:
    """Print the shares."""
    torch.set_num_threads(threads)
    tokenizer = load_tokenizer(path)
    side = tokenizer.resolution
    source = open_source("bundled:emoji", "val")
    pictures = (resize_center_crop(source.read(i).image, side) for i in range(len(source)))
    images = torch.stack([to_tensor(picture) for picture in pictures])
    left, top, right, bottom = (int(corner) for corner in box.split(","))
    hidden = box_mask((left, top, right, bottom), side, side)
    outside = ~token_mask(hidden, tokenizer.spec)
    plain = tokenizer.encode(images)
    black = tokenizer.encode(torch.where(hidden, -1.0, images)).indices
    leaking = (black != plain.indices).any(-1)[:, outside].float().mean().item()
    parts = [encode_known(tokenizer, image, hidden)[1][outside] for image in images]
    undecided = torch.stack(parts).float().mean().item()
    print(f"torch {torch.__version__}, {len(images)} images, box {box}")
    print(f"leaking    {leaking:.1%} of the tokens outside the box")
    print(f"undecided  {undecided:.1%}")

    num = len(images) // 4 * 4
    rows = images[:num].view(-1, 2, 2, 3, side, side)
    mosaics = rows.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, 2 * side, 2 * side)
    tokens = tokenizer.encode(mosaics, any_size=True)
    height, width = tokenizer.spec.shape
    bits = tokens.bits().view(len(mosaics), 2, height, 2, width, -1)
    bits = bits.permute(0, 1, 3, 2, 4, 5).reshape(num, height * width, -1)
    same = (bits == plain[:num].bits()).float().mean().item()
    alone = psnr(images[:num], tokenizer.decode(plain[:num])).mean().item()
    together = psnr(mosaics, tokenizer.decode(tokens, any_size=True)).mean().item()
    print(f"mosaics    {same:.1%} of the bits are those of the image alone")
    print(f"           PSNR {together:.2f} dB, {alone:.2f} dB alone")


if __name__ == "__main__":
    main()
