"""A report with everything in it, and with text that must stay text."""

from typing import Any

import numpy as np
from PIL import Image

from tessella.metrics.presets import PRESETS
from tessella.metrics.protocol import Protocol


def protocol_of(num_samples: int) -> Protocol:
    """A protocol of samples of the bundled data."""
    return PRESETS["bundled"].bind(
        task="samples",
        resolution=64,
        features="inception_fid#7ff4a85c",
        feature_resize="TF1 bilinear without half-pixel centres to 299 px",
        classifier="efflite0#57934424",
        perceptual="none",
        reference="emoji (train)",
        reference_hash="0123456789abcdef",
        reference_images=1381,
        num_samples=num_samples,
    )


PROTOCOL, FLOOR, CURVES = (protocol_of(count).id for count in (1381, 154, 300))
NASTY = "<script>alert('x')</script> & \"quotes\" 'single' $x_{$ \u202e\u6f22\u5b57"
NASTY_SHOWN = NASTY.replace("\u202e", "\ufffd")


def metric(mean: float | None, spread: float | None = None, **fields: Any) -> dict[str, Any]:
    """One number of a report, as if of three seeds where it has a spread."""
    around = () if spread is None or mean is None else (mean - spread, mean + spread)
    known = {
        "mean": mean,
        "spread": spread,
        "values": [mean, *around],
        "unit": "",
        "better": "lower",
        "protocol": PROTOCOL,
        "about": "Fréchet distance on 2,048 Inception features.",
        "group": "distribution",
    }
    return known | fields


def full_report(*, nasty: bool = False, **fields: Any) -> dict[str, Any]:
    """A report of samples with every section."""
    text = NASTY if nasty else "bundled:maskbit-emoji-64"
    emotions = ["face", "person", "animal", "food", "vehicle", "flag", "symbol", "building"]
    classes = [*emotions, NASTY] if nasty else emotions
    rng = np.random.default_rng(0)
    rows = [
        [name, int(rng.integers(12, 400)), *np.round(rng.uniform((18, 0.05), (26, 0.3)), 4)]
        for name in classes
    ]
    rows[3][2] = float("nan")
    known: dict[str, Any] = {
        "format": 1,
        "version": "0.3.0",
        "created": "2026-11-21T15:00:00Z",
        "command": "tessella evaluate --generator bundled:maskbit-emoji-64 --data bundled:emoji "
        f"--protocol bundled --seeds 3 --out runs/{text if nasty else 'report'}",
        "kind": "samples",
        "subject": {
            "name": text,
            "system": "maskbit",
            "fingerprint": "5f3a9c0d1e2b4c6d",
            "parameters": 3_760_000,
            "resolution": 64,
            "tokens": "8x8 of 24 bits",
            "bits_per_image": 1536,
            "tokenizer": {"name": "bundled:bits-emoji-64", "fingerprint": "a0b1c2d3e4f50617"},
            "sampling": {"sampler": "confidence", "num_steps": 16, "guidance": 2.0},
            "licence": "Apache-2.0",
        },
        "protocol": protocol_of(1381).to_dict(),
        "protocols": {p.id: p.to_dict() for p in map(protocol_of, (154, 300))},
        "metrics": {
            "gFID": metric(113.8, 0.9),
            "KID": metric(0.03124, 0.0011, about="Kernel distance, unbiased for few images."),
            "precision": metric(0.7312, 0.02, better="higher", about="Share of samples near data."),
            "recall": metric(float("nan"), None, better="higher", about="Not defined here."),
            "features distance": metric(
                0.41723,
                None,
                group="perception",
                about="Mean distance to the nearest training image in feature space.",
            ),
            "copies": metric(
                0.0123,
                0.004,
                group="memorisation",
                about="Share of samples nearer to a training image than that image's neighbour.",
            ),
            "codebook usage": metric(
                0.9123, None, better="higher", group="codes", about="Share of entries drawn."
            ),
            "images per second": metric(
                12.71, 0.3, unit="images/s", better="higher", group="speed", about="Batch of 16."
            ),
            "peak memory": metric(
                1234567890,
                None,
                unit="bytes",
                better="none",
                group="speed",
                about="Of the process.",
            ),
        },
        "floor": {
            "gFID": metric(100.9, protocol=FLOOR),
            "precision": metric(0.8841, 0.01, better="higher"),
            "copies": metric(0.0065, group="memorisation"),
        },
        "alignment": {
            "features": "efflite0#57934424",
            "vectors": "words#775a8a44",
            "ridge": 3.1622776601683795,
            "num_pairs": 1381,
            "num_captions": 1380,
            "num_samples": 1381,
            "floor": {"alignment_recall_10": 0.0072, "alignment_8": 0.1227},
            "num_ceiling": 154,
            "ceiling": {"alignment_recall_10": 0.2338, "alignment_8": float("nan")},
        },
        "captions": ["yawning face", text],
        "notes": [
            "FID at 154 images is mostly bias: 154 real validation images get 100.9.",
            "1 of the 1,381 reference images is a near copy of another."
            if not nasty
            else f"A note with {NASTY}",
        ],
        "per_class": {
            "columns": ["class", "images", "psnr", "distance"],
            "rows": rows,
            "about": "Each class against its own validation images.",
        },
        "broken": {f"{text} {i}.png": "image file is truncated" for i in range(7)},
        "curves": [
            {
                "x": "num_steps",
                "metric": name,
                "protocol": CURVES,
                "lines": [
                    {
                        "name": NASTY if nasty and guidance == 2 else f"guidance {guidance:g}",
                        "x": [4, 8, 16, 32, 64],
                        "y": [scale * y * (1 + 0.06 * abs(guidance - 2)) for y in falling],
                        "spread": [0.02 * scale * y for y in falling],
                    }
                    for guidance in (1, 2, 3.5)
                ],
            }
            for name, scale in (("gFID", 1.0), ("KID", 0.0004))
            for falling in [(160.1, 131.5, 113.8, 112.0, 113.1)]
        ],
        "pictures": [
            {"file": "samples.png", "title": "Samples", "about": "first 64, labels below"},
            {"file": "worst.png", "title": "Worst reconstructions", "about": "above: original"},
            {"file": "nearest.png", "title": "Nearest training images", "about": text},
        ],
        "machine": {
            "device": "cpu",
            "torch": "2.13.0",
            "threads": 2,
            "processes": 1,
            "seconds": 812.0,
        },
    }
    return known | fields


def pictures_of(report: dict[str, Any]) -> dict[str, Image.Image]:
    """Small pictures under the names that a report gives."""
    rng = np.random.default_rng(1)
    return {
        picture["file"]: Image.fromarray(rng.integers(0, 256, (120, 400, 3), dtype=np.uint8))
        for picture in report["pictures"]
    }
