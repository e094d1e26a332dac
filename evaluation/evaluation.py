"""A finished evaluation of samples or of reconstructions, and the report it becomes."""

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .._version import __version__
from ..files import atomic_folder
from ..metrics.protocol import MetricValue, Protocol
from ..metrics.token_statistics import TokenStatistics
from .report.report import REPORT_FORMAT, write_report
from .settings import EvaluationSettings

HEADLINES = {
    "samples": ("gFID", "FD@", "KID", "KD@", "precision", "recall"),
    "reconstructions": ("psnr", "ssim", "lpips", "rFID", "FD@"),
}
"""Beginnings of the names of the four metrics at the top of a report, in this order."""
FEW_IMAGES = 2048
"""Below as many images as Inception has features, a Fréchet distance is mostly bias."""


@dataclass(kw_only=True)
class Evaluation:
    """A finished measurement, before it is written.

    Attributes:
        kind: `samples` or `reconstructions`.
        protocol: Protocol of all values in `metrics`.
        subject: Facts about the model or the images that were measured.
        metrics: Values by name.
        floor: Values of real images by name, under protocols of their own.
        protocols: Protocols of floor and curves, by id.
        calibration: What noise and real images get in the metrics of pairs, or None.
        alignment: What real images get in the alignment of images and captions, and samples with
            each other's captions; or None.
        captions: Captions of the samples in `samples.png`, in their order; empty without captions.
        notes: Sentences that a reader must know.
        per_class: Table with `columns`, `rows` and `about`, or None.
        curves: Curves in the form of a report: `x`, `metric`, `protocol` and `lines`.
        pictures: Title, a line about it and the picture, by file name.
        broken: Reason by id of each image that could not be read.
        images_per_second: Speed of sampling and decoding, or of encoding and decoding, in images
            per second; None: images were given.
        seconds: Duration of the whole evaluation in seconds.
        written: Content of report.json, once written.
    """

    kind: str
    protocol: Protocol
    subject: dict[str, Any]
    metrics: dict[str, MetricValue]
    floor: dict[str, MetricValue] = field(default_factory=dict)
    protocols: dict[str, Protocol] = field(default_factory=dict)
    calibration: dict[str, Any] | None = None
    alignment: dict[str, Any] | None = None
    captions: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    per_class: dict[str, Any] | None = None
    curves: list[dict[str, Any]] = field(default_factory=list)
    pictures: dict[str, tuple[str, str, Image.Image]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    images_per_second: float | None = None
    seconds: float = 0.0
    written: dict[str, Any] = field(default_factory=dict)

    def add_bits(self, tokens: TokenStatistics | None) -> None:
        """Add the heat map of correlations of bits, if the tokens are bits."""
        picture = None if tokens is None else tokens.correlation_picture()
        if picture is not None:
            about = "of every pair of bits of a position: red agree, blue differ, white neither"
            self.pictures["bits.png"] = ("Correlation of bits", about, picture)

    def report(self, settings: EvaluationSettings) -> dict[str, Any]:
        """The content of report.json: everything but the pictures themselves."""
        device = torch.device(settings.device)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        processes = 1 if settings.processes is None else settings.processes.num_processes
        now = datetime.datetime.now(datetime.UTC)
        report = {
            "format": REPORT_FORMAT,
            "version": __version__,
            "created": now.isoformat(timespec="seconds").replace("+00:00", "Z"),
            "command": settings.command,
            "kind": self.kind,
            "subject": self.subject,
            "protocol": self.protocol.to_dict(),
            "protocols": {name: found.to_dict() for name, found in self.protocols.items()},
            "metrics": {name: value.to_dict() for name, value in self.metrics.items()},
            "headline": self._headline(),
            "calibration": self.calibration,
            "notes": self.notes,
            "per_class": self.per_class,
            "curves": self.curves,
            "pictures": [
                {"file": file, "title": title, "about": about}
                for file, (title, about, _) in self.pictures.items()
            ],
            "broken": self.broken,
            "machine": {
                "device": name,
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "processes": processes,
                "seconds": round(self.seconds, 1),
                "images_per_second": self.images_per_second,
            },
        }
        if self.alignment is not None:
            report["alignment"] = self.alignment
        if self.captions:
            report["captions"] = self.captions
        if self.floor:
            report["floor"] = {name: value.to_dict() for name, value in self.floor.items()}
        return report

    def _headline(self) -> list[str]:
        """Names of the metrics at the top of the report: the first one of each beginning."""
        found = [
            next((name for name in self.metrics if name.startswith(start)), None)
            for start in HEADLINES[self.kind]
        ]
        return [name for name in found if name is not None][:4]

    def write(
        self,
        out: Path,
        settings: EvaluationSettings,
        *,
        overwrite: bool,
        inputs: Sequence[str | os.PathLike[str]] = (),
    ) -> dict[str, Any]:
        """Write report.html, report.json and the pictures; returns what the JSON says.

        Raises:
            FileExistsError: If the folder exists and must stay; see `files.check_replaceable`.
            SaveError: If the disk refuses; nothing is left behind.
        """
        with atomic_folder(out, kind="report", overwrite=overwrite, inputs=inputs) as folder:
            pictures = {file: picture for file, (_, _, picture) in self.pictures.items()}
            self.written = write_report(folder, self.report(settings), pictures)
        return self.written


def few_images_note(protocol: Protocol) -> list[str]:
    """A note for the report if there are so few images that Fréchet distances are mostly bias."""
    smaller = protocol.smaller_side
    if smaller >= FEW_IMAGES:
        return []
    return [
        f"Fréchet distances of {smaller:,} images are mostly bias: they compare under this very "
        f"protocol only, and not with published numbers."
    ]
