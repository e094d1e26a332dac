"""Pictures of a run: curves of the log, grids of reconstructions and samples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data.images import grid_of_pairs, image_grid, save_png
from ..files import atomic_file

CURVES_HINT = "curves.png needs matplotlib: pip install 'tessella[report]'"


def draw_curves(records: list[dict[str, Any]], path: Path, panels: dict[str, list[str]]) -> bool:
    """Draw series of a log over the steps, one panel for each title.

    Args:
        records: Records of log.jsonl.
        path: PNG file to write.
        panels: Title to names of the series in it; series without values are left out.

    Returns:
        False if matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    series = {}
    for names in panels.values():
        for name in names:
            points = [(r["step"], r[name]) for r in records if isinstance(r.get(name), int | float)]
            if points:
                series[name] = points
    shown = {title: [n for n in names if n in series] for title, names in panels.items()}
    shown = {title: names for title, names in shown.items() if names}
    if not shown:
        return True
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for position, (title, names) in enumerate(shown.items(), 1):
        axes = figure.add_subplot(rows, columns, position)
        for name in names:
            alone = "o" if len(series[name]) == 1 else ""  # no line goes through one point
            axes.plot(*zip(*series[name], strict=True), label=name, linewidth=1.2, marker=alone)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        if len(names) > 1 or names[0] != title:
            axes.legend(fontsize=8)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return True


def draw_reconstructions(originals: Tensor, reconstructions: Tensor, path: Path) -> None:
    """Write rows of originals, each above the row of its reconstructions, as one PNG.

    Args:
        originals: Images, (B, 3, H, W) in [-1, 1].
        reconstructions: Reconstructions of the originals, of the same shape and range.
        path: PNG to write.
    """
    save_png(grid_of_pairs(originals, reconstructions), path)


def draw_samples(images: Tensor, names: Sequence[str], per_class: int, path: Path) -> None:
    """Write a labelled grid of samples as one PNG, about 8 to a row, classes unbroken.

    Args:
        images: Samples, (B, 3, H, W) in [-1, 1], `per_class` of each class after the other.
        names: Caption of each sample.
        per_class: Samples of each class.
        path: PNG to write.
    """
    columns = per_class * max(1, 8 // per_class)
    save_png(image_grid(images, columns, names), path)
