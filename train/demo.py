"""`make demo`: from pictures to tokens and back in a few minutes on two CPU cores.

Trains the default bit tokenizer for a short while on the bundled emoji, with the same command that
a long run uses, then encodes a folder of pictures to a token store, decodes it, and says what there
is to look at.
"""

import subprocess
import sys
import time
from pathlib import Path

import click

from tessella.checkpoints import load_tokenizer
from tessella.data.images import save_png
from tessella.data.loader import eval_batches
from tessella.data.sources import open_source
from tessella.sample.encode import decode_store, encode_source
from tessella.sample.reconstruct import reconstruct_source
from tessella.tokenizers.token_store import TokenStore

TRAIN = Path(__file__).parent / "tokenizer.py"


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/demo"))
@click.option("--steps", type=click.IntRange(min=1), default=800, help="Training steps.")
@click.argument("overrides", nargs=-1)
def main(out: Path, steps: int, overrides: tuple[str, ...]) -> None:
    """Train, encode, decode; OVERRIDES go to the training as key.sub=value."""
    started = time.perf_counter()
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=1"]
    launch += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", str(TRAIN)]
    run = out / "run"
    settings = [f"run.steps={steps}", f"run.preview_every={max(1, steps // 4)}"]
    settings += [f"run.evaluate_every={steps}", f"run.checkpoint_every={steps}"]
    code = subprocess.run([*launch, "--out", str(run), *settings, *overrides]).returncode
    if code:
        sys.exit(code)
    tokenizer = load_tokenizer(run / "tokenizer")
    pictures = out / "pictures"
    pictures.mkdir()
    for batch in eval_batches(open_source("bundled:emoji", "val"), tokenizer.resolution, 64, 64):
        for name, image in zip(batch["ids"], batch["images"], strict=True):
            save_png(image, pictures / f"{Path(name).name}.png")
    written = encode_source(
        tokenizer, open_source(pictures), out / "store", name=str(run / "tokenizer"), progress=False
    )
    decode_store(tokenizer, TokenStore(out / "store"), out / "decoded", progress=False)
    measured = reconstruct_source(
        tokenizer,
        open_source("bundled:emoji", "val"),
        out=out / "reconstructions",
        perceptual="random",
        features="none",
        progress=False,
    )
    click.echo(
        f"""
Trained {steps} steps, encoded and decoded, in {time.perf_counter() - started:.0f} s:
  {run / "tokenizer"}: {sum(p.numel() for p in tokenizer.parameters()):,} parameters
  {run / "curves.png"}, {run / "previews"}: how it went
  {pictures}: {written["images"]} pictures it never saw, encoded to
  {out / "store"}: {written["tokens"]}, {written["bits_per_image"]:g} bits
      ({written["bytes_per_image"]} bytes) an image, and decoded to
  {out / "decoded" / "grid.png"}
  {out / "reconstructions" / "grid.png"}: originals above reconstructions,
      PSNR {measured["psnr"]:.2f} dB, {measured["psnr_non_white"]:.2f} dB where not white
One trained longer comes with the package: tessella.load_tokenizer("bundled:bits-emoji-64")"""
    )


if __name__ == "__main__":
    main()
