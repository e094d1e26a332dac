"""Memory of reading large pictures, and speed of reading photographs whole and at a reduced scale.

    OMP_NUM_THREADS=1 python benchmarks/reading.py --out reading.json

Memory: a picture of about 88 million pixels of each kind, near `data.max_pixels`, is read by
`read_image` in a process of its own. The figure is the growth of the largest resident set
(`VmHWM` of /proc/self/status) over the process before, in bytes and for each pixel; the encoded
file is read from disk and counted only as far as the decoder holds it.

Speed: JPEGs of 4000 x 3000 pixels (quality 90, 4:2:0; a smooth picture with fine noise) are read
and resized to each resolution as in training, whole and by `side`, the least of three rounds on one
thread. `psnr` compares the two results: what a reduced picture is off by.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tessella.data.images import read_image
from tessella.data.transforms import resize_center_crop

SIDE = 9_400
"""Side of the large pictures in pixels; the long one has 1 x 80,000,000."""
PHOTO = (4000, 3000)
PHOTOS = 4
"""Number of photographs; each is read in every round."""
RESOLUTIONS = (64, 128, 256, 512)
KINDS = (
    "grey16",
    "long",
    "rgba",
    "palette",
    "rgb",
    "jpeg",
    "progressive",
    "cmyk",
    "webp",
    "tiff16",
)


def write(kind: str, folder: Path) -> Path:
    """Write a large picture of a kind; the pixels are noise of low contrast in large blocks."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(96, 160, (94, 94, 4), dtype=np.uint8))
    path = folder / f"{kind}.png"
    if kind in ("grey16", "tiff16", "long"):
        size = (80_000_000, 1) if kind == "long" else (SIDE, SIDE)
        path = path.with_suffix(".tif" if kind == "tiff16" else ".png")
        Image.new("I;16", size, 3000).save(path)
        return path
    image = coarse.resize((SIDE, SIDE), Image.Resampling.NEAREST)
    if kind == "rgba":
        image.save(path, compress_level=1)
    elif kind == "palette":
        image.convert("RGB").quantize(16).save(path, transparency=3, compress_level=1)
    elif kind == "rgb":
        image.convert("RGB").save(path, compress_level=1)
    elif kind == "webp":
        path = path.with_suffix(".webp")
        image.convert("RGB").resize((9_400, 9_400)).save(path, quality=50, method=0)
    else:
        path = path.with_suffix(".jpg")
        mode = "CMYK" if kind == "cmyk" else "RGB"
        image.convert("RGB").convert(mode).save(path, progressive=kind == "progressive")
    return path


def resident(name: str) -> int:
    """A figure of this process from /proc, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


def measure_one(path: Path) -> None:
    """Read a picture and print what it took; run in a process of its own."""
    small = path.with_name("small.png")
    Image.new("RGB", (8, 8)).save(small)
    read_image(small)  # so that the decoders are loaded
    before, started = resident("VmRSS"), time.perf_counter()
    image = read_image(path)
    seconds = time.perf_counter() - started
    grown = resident("VmHWM") - before
    print(json.dumps({"pixels": image.width * image.height, "bytes": grown, "seconds": seconds}))


def memory(kinds: list[str]) -> dict[str, Any]:
    """Peak memory of each kind."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            path = write(kind, Path(folder))
            command = [sys.executable, __file__, "--read", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                found[kind] = {"error": done.stderr.strip().splitlines()[-1]}
            else:
                found[kind] = json.loads(done.stdout)
                found[kind]["bytes_per_pixel"] = found[kind]["bytes"] / found[kind]["pixels"]
            path.unlink()
            print(f"{kind:12} {found[kind]}", flush=True)
    return found


def speed() -> list[dict[str, Any]]:
    """Photographs a second at each resolution, whole and reduced."""
    rows = []
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number in range(PHOTOS):
            coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize(PHOTO, Image.Resampling.BICUBIC)).astype(np.float32)
            noisy = smooth + rng.normal(0, 6, smooth.shape).astype(np.float32)
            paths.append(Path(folder) / f"{number}.jpg")
            image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
            image.save(paths[-1], quality=90)
        for resolution in RESOLUTIONS:
            row: dict[str, Any] = {"resolution": resolution}
            results = {}
            for name, side in (("whole", None), ("reduced", 2 * resolution)):
                seconds = math.inf
                for _ in range(3):
                    started = time.perf_counter()
                    results[name] = [
                        np.asarray(resize_center_crop(read_image(path, side=side), resolution))
                        for path in paths
                    ]
                    seconds = min(seconds, time.perf_counter() - started)
                row[name] = PHOTOS / seconds
            pairs = zip(results["whole"], results["reduced"], strict=True)
            errors = [((a.astype(float) - b) ** 2).mean() for a, b in pairs]
            row["psnr"] = float(10 * np.log10(255**2 / max(np.mean(errors), 1e-9)))
            rows.append(row)
            print(row, flush=True)
    return rows


def main() -> None:
    """Measure what was asked for and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=KINDS)
    parser.add_argument("--only", choices=("memory", "speed"))
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read is not None:
        measure_one(options.read)
        return
    result: dict[str, Any] = {}
    if options.only != "speed":
        result["memory"] = memory(options.kinds)
    if options.only != "memory":
        result["speed"] = speed()
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
