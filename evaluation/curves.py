"""Quality over settings of the sampler: the settings to measure, and the lines of the chart."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..metrics.presets import MIN_IMAGES
from ..metrics.protocol import Protocol, ProtocolError
from ..sample.sampler import Sampling

SHOWN = ("gFID", "FD@", "precision", "recall", "alignment_8")
"""Beginnings of the names of the metrics that are drawn."""


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Settings of the sampler to measure besides the main ones.

    Attributes:
        num_steps: Numbers of sampling steps; empty: that of the main settings.
        guidance: Guidance scales, 1 is off; empty: that of the main settings.
        num: Number of samples at each point, drawn once, under a protocol of their own.
    """

    num_steps: tuple[int, ...] = ()
    guidance: tuple[float, ...] = ()
    num: int = 1000

    def __post_init__(self) -> None:
        if self.num < MIN_IMAGES:
            raise ProtocolError(f"curves: expected at least {MIN_IMAGES} samples, found {self.num}")
        if any(steps < 1 for steps in self.num_steps):
            raise ValueError(f"curves: expected steps >= 1, found {list(self.num_steps)}")
        if any(not scale >= 0 for scale in self.guidance):
            raise ValueError(f"curves: expected guidance >= 0, found {list(self.guidance)}")

    def settings(self, main: Sampling) -> list[Sampling]:
        """The main settings with every combination of steps and guidance asked for."""
        if not (self.num_steps or self.guidance):
            return []
        changes: list[dict[str, Any]] = [
            {"num_steps": steps, "guidance": scale}
            for scale in self.guidance or (main.guidance,)
            for steps in self.num_steps or (main.num_steps,)
        ]
        return [dataclasses.replace(main, **change) for change in changes]


def draw_lines(
    points: list[tuple[Sampling, dict[str, float]]], protocol: Protocol
) -> list[dict[str, Any]]:
    """Distance, precision and recall over steps, or over guidance where steps are one number.

    Args:
        points: Settings of each point and the metrics measured with them.
        protocol: Protocol of all points.

    Returns:
        Curves in the form of a report: `x`, `metric`, `protocol` and `lines`.
    """
    over, line = "num_steps", "guidance"
    if len({chosen.num_steps for chosen, _ in points}) == 1:
        over, line = line, over
    curves = []
    for name in [name for name in points[0][1] if name.startswith(SHOWN)]:
        lines = []
        for value in sorted({getattr(chosen, line) for chosen, _ in points}):
            here = sorted(
                (getattr(chosen, over), values[name])
                for chosen, values in points
                if getattr(chosen, line) == value
            )
            title = f"{line.removeprefix('num_')} {value:g}"
            x, y = zip(*here, strict=True)
            lines.append({"name": title, "x": list(x), "y": list(y), "spread": None})
        curves.append({"x": over, "metric": name, "protocol": protocol.id, "lines": lines})
    return curves
