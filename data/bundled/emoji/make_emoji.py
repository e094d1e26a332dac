"""Build a small labelled and captioned image set from free emoji artwork.

Sources (npm packages, unpacked; fetch with `npm pack NAME@VERSION` and `tar -xzf`):

- noto: emoji-datasource-google 16.0.0, 64x64 PNG, images Apache-2.0 (Noto Emoji)
- twemoji: emoji-datasource-twitter 16.0.0, 64x64 PNG, images CC-BY-4.0 (Twemoji)
- fluent3d: @lobehub/fluent-emoji-3d 1.1.0, 256x256 WebP, MIT (Fluent UI Emoji, 3D)

The metadata (names, Unicode groups, code points) always comes from emoji.json of the noto package.
Output: one tar, webdataset naming, `train/000000.png` + `train/000000.json` (and `val/...`). Images
are RGB on a plain background. The tar is byte-reproducible for a fixed Pillow version. Needs Pillow
only, and runs as a script or through `build`.

Default bundle:
    python make_emoji.py --noto emoji-datasource-google --out noto_emoji64.tar \
        --cap flag=100 --cap person=180
Large set (all three styles, with skin tones):
    python make_emoji.py --noto A --twemoji B --fluent3d C --skin-tones --out emoji64_full.tar
"""

import argparse
import collections
import hashlib
import io
import json
import re
import sys
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

CLASSES = [
    "face",
    "hand",
    "person",
    "animal",
    "plant",
    "food",
    "vehicle",
    "place",
    "sky",
    "clothing",
    "object",
    "symbol",
    "flag",
]

# Unicode sub-group -> class; anything not listed falls back to the group rule below.
SUB = {
    "cat-face": "face",
    "monkey-face": "face",
    "heart": "symbol",
    "emotion": "symbol",
    "body-parts": "hand",
    "hands": "hand",
    "plant-flower": "plant",
    "plant-other": "plant",
    "food-fruit": "plant",
    "food-vegetable": "plant",
    "transport-ground": "vehicle",
    "transport-air": "vehicle",
    "transport-water": "vehicle",
    "sky & weather": "sky",
    "time": "sky",
    "clothing": "clothing",
    "hotel": "object",
}
GROUP = {
    "Smileys & Emotion": "face",
    "People & Body": "person",
    "Animals & Nature": "animal",
    "Food & Drink": "food",
    "Travel & Places": "place",
    "Activities": "object",
    "Objects": "object",
    "Symbols": "symbol",
    "Flags": "flag",
}
SKIP_SUB = {"skin-tone", "person-symbol", "alphanum", "keycap", "gender"}
SKIP_CODE = {"1F595"}  # rude gesture
SKIN = {
    "1F3FB": "light skin tone",
    "1F3FC": "medium-light skin tone",
    "1F3FD": "medium skin tone",
    "1F3FE": "medium-dark skin tone",
    "1F3FF": "dark skin tone",
}
STYLE = {"noto": None, "twemoji": "flat style", "fluent3d": "3d style"}
"""What captions say of a drawing style, if they name it."""
LICENCE = {"noto": "Apache-2.0", "twemoji": "CC-BY-4.0", "fluent3d": "MIT"}


def class_of(group: str, sub: str) -> str | None:
    """Class of a Unicode group and sub-group; None if the group has no class."""
    if sub.startswith("hand-"):
        return "hand"
    return SUB.get(sub, GROUP.get(group))


def caption_of(name: str) -> str:
    """Caption from a Unicode name."""
    text = re.sub(r"\s+", " ", name.strip())
    if text.endswith(" Flag"):
        return "flag of " + text[:-5]
    return text.lower() if text.isupper() else text


def family_key(unified: str) -> str:
    """Key shared by near-duplicates (gender, direction, skin tone), which share a split."""
    drop = {"200D", "FE0F", "2640", "2642", "27A1"} | set(SKIN)
    kept = [p for p in unified.split("-") if p not in drop]
    parts = ["P" if p in ("1F468", "1F469", "1F9D1") else p for p in kept]
    code = int(parts[0], 16) if parts and parts[0] != "P" else 0
    if 0x1F550 <= code <= 0x1F567:  # clock faces
        return "clock"
    if 0x1F311 <= code <= 0x1F318:  # moon phases
        return "moon"
    return "-".join(parts) or unified


def unit_hash(text: str, salt: str) -> float:
    """Hash of a text as a number in [0, 1]."""
    return int.from_bytes(hashlib.sha256((salt + text).encode()).digest()[:8], "big") / 2.0**64


def choose_val(kept: list[tuple[str, str]], fraction: float) -> set[str]:
    """Per class, hold out whole families (in hash order) until `fraction` is reached."""
    by_class: dict[str, dict[str, list[str]]] = collections.defaultdict(
        lambda: collections.defaultdict(list)
    )
    owner: dict[str, str] = {}
    for unified, cls in kept:
        fam = family_key(unified)
        by_class[owner.setdefault(fam, cls)][fam].append(unified)
    val = set()
    for fams in by_class.values():
        quota, used = round(fraction * sum(map(len, fams.values()))), 0
        for fam in sorted(fams, key=lambda f: unit_hash(f, "split:")):
            if used + len(fams[fam]) <= quota:
                val.add(fam)
                used += len(fams[fam])
    return val


def find_image(style: str, folder: Path, unified: str) -> Path | None:
    """Image file of an emoji in one drawing style; None if the package has none."""
    low = unified.lower()
    if style == "noto":
        names = [f"img/google/64/{low}.png"]
    elif style == "twemoji":
        names = [f"img/twitter/64/{low}.png"]
    else:
        short = low.lstrip("0")
        stems = [low, short, low.replace("-fe0f", ""), short.replace("-fe0f", "")]
        names = [f"assets/{stem}.webp" for stem in stems]
    return next((folder / name for name in names if (folder / name).exists()), None)


def load_rgb(path: Path, size: int, background: int) -> Image.Image:
    """Load an image as size x size RGB pixels on a grey background (0..255)."""
    with Image.open(path, formats=["PNG", "WEBP"]) as opened:
        img = opened.convert("RGBA")
    if img.size != (size, size):
        # resize with premultiplied alpha so that hidden colours do not bleed into the edges
        img = img.convert("RGBa").resize((size, size), Image.Resampling.LANCZOS).convert("RGBA")
    base = Image.new("RGBA", img.size, (background,) * 3 + (255,))
    base.alpha_composite(img)
    return base.convert("RGB")


def entries(
    meta: list[dict[str, Any]], skin_tones: bool
) -> Iterator[tuple[str, str, str, str, str | None]]:
    """Yield code points, name, group, sub-group and skin tone of the emoji to include."""
    for e in meta:
        group, sub = e["category"], e["subcategory"]
        if (
            group not in GROUP
            or sub in SKIP_SUB
            or e["unified"] in SKIP_CODE
            or "FACING RIGHT" in e["name"]
        ):
            continue
        yield e["unified"], e["name"], group, sub, None
        if skin_tones:
            for tones, v in sorted(e.get("skin_variations", {}).items()):
                first = tones.split("-")[0]
                if len(set(tones.split("-"))) == 1 and first in SKIN:
                    yield v["unified"], e["name"], group, sub, SKIN[first]


def build(
    out: str | Path,
    noto: str | Path,
    *,
    twemoji: str | Path | None = None,
    fluent3d: str | Path | None = None,
    size: int = 64,
    background: int = 255,
    skin_tones: bool = False,
    val: float = 0.1,
    caps: dict[str, int] | None = None,
    held_out: Collection[str] = (),
    name_styles: bool = False,
    show: Callable[[list[Any]], Iterable[Any]] = iter,
) -> dict[str, dict[str, int]]:
    """Write the tar.

    Args:
        out: Path of the tar to write.
        noto: Unpacked emoji-datasource-google; also gives emoji.json.
        twemoji: Unpacked emoji-datasource-twitter, or None to leave the style out.
        fluent3d: Unpacked @lobehub/fluent-emoji-3d, or None to leave the style out.
        size: Side of the images in pixels.
        background: Grey level 0..255 under transparent pixels.
        skin_tones: Add the five skin tones of each emoji that has them.
        val: Fraction of concept families held out for validation.
        caps: Largest number of concepts of a class, by class name.
        held_out: Families that are held out in any case.
        name_styles: Name the drawing style in the captions of all but the first one.
        show: Function that passes on the pictures of a split, and may show the progress.

    Returns:
        Number of images by class name, for `train` and `val`.
    """
    folders = {"noto": noto, "twemoji": twemoji, "fluent3d": fluent3d}
    styles = [(style, Path(folder)) for style, folder in folders.items() if folder]
    caps = caps or {}
    meta = json.loads((Path(noto) / "emoji.json").read_text(encoding="utf-8"))

    items = list(entries(meta, skin_tones))
    items.sort(key=lambda t: unit_hash(t[0], "order:"))
    subs = sorted({(g, s) for _, _, g, s, _ in items})
    sub_id = {gs: i for i, gs in enumerate(subs)}
    taken: collections.Counter[str] = collections.Counter()
    kept, rows = [], []
    for unified, name, group, sub, tone in items:
        cls = class_of(group, sub)
        assert cls is not None  # entries() leaves unknown groups out
        if taken[cls] < caps.get(cls, 1 << 30):
            taken[cls] += 1
            kept.append((unified, name, group, sub, tone, cls))
    chosen_families = choose_val([(k[0], k[5]) for k in kept], val) | set(held_out)
    for unified, name, group, sub, tone, cls in kept:
        split = "val" if family_key(unified) in chosen_families else "train"
        for style, folder in styles:
            path = find_image(style, folder, unified)
            if path is None:
                continue
            words = [caption_of(name), tone, STYLE[style] if name_styles else None]
            text = ", ".join(filter(None, words))
            rows.append((split, unified, cls, group, sub, text, style, path))
    rows.sort(key=lambda r: unit_hash(r[1] + r[6], "mix:"))

    count: collections.Counter[str] = collections.Counter()
    stats: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    with tarfile.open(out, "w", format=tarfile.USTAR_FORMAT) as tar:

        def add(name: str, blob: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(blob), 0, 0o644
            tar.addfile(info, io.BytesIO(blob))

        for split in ("train", "val"):
            chosen = [row[1:] for row in rows if row[0] == split]
            for unified, cls, group, sub, text, style, path in show(chosen):
                stem = f"{split}/{count[split]:06d}"
                count[split] += 1
                stats[split][cls] += 1
                buf = io.BytesIO()
                load_rgb(path, size, background).save(buf, "PNG", optimize=True)
                record = {
                    "class_id": CLASSES.index(cls),
                    "class_name": cls,
                    "caption": text,
                    "style": style,
                    "codepoint": unified,
                    "unicode_group": group,
                    "unicode_subgroup": sub,
                    "subgroup_id": sub_id[(group, sub)],
                    "family": family_key(unified),
                    "license": LICENCE[style],
                }
                line = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
                add(stem + ".png", buf.getvalue())
                add(stem + ".json", line.encode())
        classes = {"classes": CLASSES, "subgroups": [list(s) for s in subs], "count": dict(count)}
        add("classes.json", json.dumps(classes, indent=0).encode())
    return {split: dict(stats[split]) for split in ("train", "val")}


def main() -> None:
    """Build the tar from command line arguments and print the class counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--noto", required=True, help="unpacked emoji-datasource-google")
    parser.add_argument("--twemoji")
    parser.add_argument("--fluent3d")
    parser.add_argument("--out", required=True)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--background", type=int, default=255)
    parser.add_argument("--skin-tones", action="store_true")
    parser.add_argument("--val", type=float, default=0.1, help="fraction of families held out")
    parser.add_argument(
        "--cap", action="append", default=[], metavar="CLASS=N", help="keep at most N concepts"
    )
    given = vars(parser.parse_args())
    caps = {name: int(count) for name, count in (text.split("=") for text in given.pop("cap"))}
    stats = build(given.pop("out"), given.pop("noto"), caps=caps, **given)
    for split, classes in stats.items():
        sys.stdout.write(f"{split} {sum(classes.values())} {classes}\n")


if __name__ == "__main__":
    main()
