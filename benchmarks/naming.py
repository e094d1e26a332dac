r"""Blind naming: can a reader tell which of eight captions a sample was drawn by?

    python benchmarks/naming.py draw --generator runs/words/generator --data datasets/emoji-full \
                                   --out runs/naming
    python benchmarks/naming.py score runs/naming --choices choices.json

`draw` draws one picture for each of `--num` captions of the training split and as many of the
validation split of `--data`, every caption once and without a drawing style in it, seeds in order,
nothing picked out. It writes sheets of eight pictures, each beside eight captions with the letters
A to H, of which one is right and seven are of other pictures of the same split, all in an order
drawn from `--seed`; `key.json` has the right letters and is not for the reader. A reader looks at
the sheets alone and writes a JSON object of letters by number, {"1": "C", ...}. `score` counts.
A reader who guesses has one in eight right.
"""

import json
import math
import textwrap
from pathlib import Path
from typing import Any

import click
import torch
from PIL import Image, ImageDraw, ImageFont

from tessella.checkpoints import load_generator
from tessella.data.images import to_pil
from tessella.data.sources import open_source
from tessella.sample.pictures import generate_images
from tessella.sample.samplers import choose_sampling

LETTERS = "ABCDEFGH"
STYLES = ("flat style", "3d style")
SIDE, WIDTH, ROW, ON_SHEET = 160, 560, 190, 8


def captions_of(data: str, split: str, readable: Any) -> list[str]:
    """Captions of a split that name no style, each once, sorted."""
    source = open_source(data, split)
    found = {source.read(i).caption or "" for i in range(len(source))}
    plain = [text for text in found if text and not text.endswith(STYLES)]
    return sorted(readable(plain))


def sheet_of(entries: list[dict[str, Any]], pictures: list[Image.Image]) -> Image.Image:
    """Pictures in two columns, each beside its eight captions."""
    rows = math.ceil(len(entries) / 2)
    sheet = Image.new("RGB", (2 * WIDTH, rows * ROW), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for place, (entry, picture) in enumerate(zip(entries, pictures, strict=True)):
        left, top = place % 2 * WIDTH + 8, place // 2 * ROW + 8
        sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (left, top))
        draw.text((left, top + SIDE + 2), str(entry["number"]), fill="black", font=font)
        for line, (letter, text) in enumerate(zip(LETTERS, entry["captions"], strict=True)):
            short = textwrap.shorten(f"{letter}  {text}", 52, placeholder="...")
            draw.text((left + SIDE + 12, top + line * 21), short, fill="black", font=font)
    return sheet


@click.group()
def main() -> None:
    """Blind naming."""


@main.command()
@click.option("--generator", "path", required=True)
@click.option("--data", required=True, help="Source with captions and the splits train and val.")
@click.option("--num", type=click.IntRange(min=8), default=64, show_default=True)
@click.option("--guidance", type=float, help="[the model's own]")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path, exists=False), required=True)
def draw(path: str, data: str, num: int, guidance: float | None, seed: int, out: Path) -> None:
    """Draw the pictures and write the sheets."""
    generator = load_generator(path)
    if generator.text is None:
        raise click.ClickException(f"{path}: reads no text")
    rng = torch.Generator().manual_seed(seed)
    train = captions_of(data, "train", generator.text.readable)
    new = captions_of(data, "val", generator.text.readable)
    new = [text for text in new if text not in set(train)]
    entries: list[dict[str, Any]] = []
    for name, pool in (("trained", train), ("new", new)):
        if len(pool) < num:
            raise click.ClickException(f"{data}: {len(pool)} captions of {name} pictures")
        chosen = torch.randperm(len(pool), generator=rng)[:num].tolist()
        for row in chosen:
            others = [n for n in torch.randperm(len(pool), generator=rng).tolist() if n != row]
            texts = [pool[n] for n in [row, *others[:7]]]
            order = torch.randperm(8, generator=rng).tolist()
            entries.append({
                "kind": name,
                "captions": [texts[n] for n in order],
                "right": LETTERS[order.index(0)],
                "prompt": pool[row],
            })  # fmt: skip
    mixed = torch.randperm(len(entries), generator=rng).tolist()
    entries = [entries[n] | {"number": place + 1} for place, n in enumerate(mixed)]
    knobs = {} if guidance is None else {"guidance": guidance}
    sampling = choose_sampling(generator, None, knobs)
    prompts = [entry["prompt"] for entry in entries]
    images = generate_images(generator, prompts=prompts, sampling=sampling)
    pictures = [to_pil(image) for image in images]
    out.mkdir(parents=True)
    for start in range(0, len(entries), ON_SHEET):
        part = slice(start, start + ON_SHEET)
        sheet = sheet_of(entries[part], pictures[part])
        sheet.save(out / f"sheet_{start // ON_SHEET + 1:02d}.png")
    key = {"generator": path, "fingerprint": generator.fingerprint, "entries": entries}
    (out / "key.json").write_text(json.dumps(key, indent=1, ensure_ascii=False))
    click.echo(f"wrote {out}: {len(entries)} pictures")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--choices", type=click.Path(path_type=Path, exists=True), required=True)
def score(folder: Path, choices: Path) -> None:
    """Count the right choices."""
    entries = json.loads((folder / "key.json").read_text())["entries"]
    chosen = json.loads(choices.read_text())
    for kind in ("trained", "new"):
        own = [entry for entry in entries if entry["kind"] == kind]
        right = sum(chosen.get(str(entry["number"])) == entry["right"] for entry in own)
        click.echo(f"{kind}: {right} of {len(own)} right ({right / len(own):.0%})")


if __name__ == "__main__":
    main()
