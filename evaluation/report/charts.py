"""Charts for the HTML reports, as SVG text that takes its colors from the page.

matplotlib draws them with placeholder colors, which become `currentColor` and the custom properties
`--series-N` and `--rule` of the page, so that one chart serves light and dark. The text stays text
in the font of the page. Equal input gives equal text.
"""

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _RULE = "#fe0200", "#fe0201"
_SERIES = tuple(f"#fe01{number:02x}" for number in range(8))
_PAGE_COLORS = {_INK: "currentColor", _RULE: "var(--rule)"} | {
    color: f"var(--series-{number})" for number, color in enumerate(_SERIES)
}
_MARKERS = ("o", "s", "^", "D", "v")
_MARKER_PATHS = (
    "M11 6a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "M11.5 2.5h7v7h-7z",
    "M15 1.5l4 8h-8z",
    "M15 1.5l4.5 4.5l-4.5 4.5l-4.5-4.5z",
    "M15 10.5l4-8h-8z",
)
_DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)))
_SWATCH_DASHES = ("none", "5 2", "1.5 1.5")
_SIZE = (4.4, 2.9)  # inches; the page scales it
_LONGEST = 40  # characters of a label


class MissingCharts(ValueError):
    """Error of a request for charts where matplotlib is not installed."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart; a missing or non-finite y leaves a gap.

    Attributes:
        name: Name of the line, for the legend.
        x: Values of the variable.
        y: Values of the metric, one per x.
        spread: Standard deviation of each y, drawn as a bar; None: no bars.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    spread: Sequence[float | None] | None = None


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model in a chart of quality against bits per image.

    Attributes:
        name: Name of the model.
        bits: Number of bits per image, > 0.
        value: Value of the metric.
        spread: Standard deviation of the value, drawn as a bar; None: no bar.
    """

    name: str
    bits: float
    value: float
    spread: float | None = None


def require_charts() -> None:
    """Refuse work that needs charts, before it starts, where none can be drawn.

    Raises:
        MissingCharts: If matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingCharts(
            "charts need matplotlib, which is not installed: pip install 'tessella[report]'"
        ) from error


def line_chart(lines: Sequence[Line], *, x_name: str, y_name: str, key: str) -> str:
    """Lines over one variable, with markers and bars of +- spread, as an SVG element.

    The variable's axis is logarithmic where its values span a factor of 8 or more.

    Args:
        lines: Lines to draw, at least one; the page draws the legend (`swatch`).
        x_name: Name of the variable.
        y_name: Name of the metric.
        key: Beginning of every id in the SVG: letters, digits and dashes, another for each chart of
            a page.
    """
    with _figure(key) as figure:
        axes = _axes(figure, x_name, y_name)
        for number, line in enumerate(lines):
            color = _SERIES[number % len(_SERIES)]
            y = [_or_nan(value) for value in line.y]
            axes.plot(
                line.x,
                y,
                color=color,
                marker=_MARKERS[number % len(_MARKERS)],
                linestyle=_DASHES[number // len(_SERIES) % len(_DASHES)],
                markersize=4.5,
                linewidth=1.5,
            )
            if line.spread is not None:
                bars = [max(0.0, _or_nan(value)) for value in line.spread]
                axes.errorbar(line.x, y, bars, fmt="none", ecolor=color, elinewidth=1, capsize=2)
        _scale_x(axes, sorted({float(x) for line in lines for x in line.x}), 8)
        names = ", ".join(line.name for line in lines)
        return _svg(figure, key, f"{y_name} over {x_name}: {names}")


def scatter_chart(points: Sequence[Point], *, y_name: str, key: str) -> str:
    """Quality against bits per image, one labelled point a model, as an SVG element.

    The axis of bits is logarithmic (base 2) where they span a factor of 4 or more.

    Args:
        points: Points to draw, at least one, with finite values.
        y_name: Name of the metric.
        key: Beginning of every id in the SVG: letters, digits and dashes, another for each chart of
            a page.
    """
    with _figure(key) as figure:
        axes = _axes(figure, "bits per image", y_name)
        axes.margins(0.18, 0.16)
        for number, point in enumerate(points):
            axes.errorbar(
                [point.bits],
                [point.value],
                None if point.spread is None else [point.spread],
                color=_SERIES[number % len(_SERIES)],
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=6,
                elinewidth=1,
                capsize=3,
            )
        bits = sorted({point.bits for point in points})
        _scale_x(axes, bits, 4)
        if len(bits) == 1:
            axes.set_xlim(bits[0] * 0.5, bits[0] * 1.5)
        _place_labels(figure, axes, points)
        names = ", ".join(point.name for point in points)
        return _svg(figure, key, f"{y_name} against bits per image: {names}")


def swatch(number: int) -> str:
    """The line and marker of line `number` of a chart, as a small SVG element for a legend."""
    color = f"var(--series-{number % len(_SERIES)})"
    dash = _SWATCH_DASHES[number // len(_SERIES) % len(_SWATCH_DASHES)]
    return (
        '<svg viewBox="0 0 30 12" aria-hidden="true"><path d="M0 6h30" fill="none"'
        f' stroke-width="2" stroke-dasharray="{dash}" style="stroke: {color}"/>'
        f'<path d="{_MARKER_PATHS[number % len(_MARKER_PATHS)]}" style="fill: {color}"/></svg>'
    )


@contextmanager
def _figure(key: str) -> "Iterator[Figure]":
    """An empty figure with settings that do not depend on the user's configuration."""
    require_charts()
    import matplotlib
    import matplotlib.style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with (
        warnings.catch_warnings(),
        matplotlib.style.context("default"),
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": key}),
    ):
        # The page has the fonts; matplotlib's own only measures the text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=_SIZE, layout="constrained")
        FigureCanvasSVG(figure)
        yield figure


def _axes(figure: "Figure", x_name: str, y_name: str) -> "Axes":
    axes = figure.add_subplot(1, 1, 1)
    axes.patch.set_visible(False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_INK)
    axes.tick_params(labelsize=9, colors=_INK, width=0.8)
    axes.grid(color=_RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    for label, name in ((axes.set_xlabel, x_name), (axes.set_ylabel, y_name)):
        label(_label(name), fontsize=9.5, color=_INK, parse_math=False)
    return axes


def _scale_x(axes: "Axes", values: list[float], factor: float) -> None:
    """A logarithmic axis for wide positive ranges; few values are the ticks themselves."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    if not values:
        return
    wide = values[0] > 0 and values[-1] / values[0] >= factor
    if wide:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(LogLocator(base=2, numticks=9))
        axes.xaxis.set_minor_locator(NullLocator())
    ratios = [high / low for low, high in pairwise(values) if low > 0]
    apart = all(ratio >= 1.4 for ratio in ratios) if wide else len(values) <= 2
    if apart and len(values) <= 8:
        axes.xaxis.set_major_locator(FixedLocator(values))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def _place_labels(figure: "Figure", axes: "Axes", points: Sequence[Point]) -> None:
    """Place each name where it covers least of other names, points and the border."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    scale = figure.dpi / 72
    inside = axes.get_window_extent()
    places = axes.transData.transform([(point.bits, point.value) for point in points])
    taken = [
        Bbox.from_bounds(x - 4 * scale, y - 4 * scale, 8 * scale, 8 * scale) for x, y in places
    ]
    sides = [("left", 1), ("right", -1), ("center", 0)]
    choices = [
        (horizontal, sign * 7 if lift == 0 else sign * 4, lift)
        for lift in (0, 9, -9, 18, -18, 27, -27)
        for horizontal, sign in sides
        if lift or sign
    ]
    for point, own in zip(points, list(taken), strict=True):
        best: tuple[float, Any, Bbox] | None = None
        for horizontal, right, up in choices:
            text = axes.annotate(
                _label(point.name),
                (point.bits, point.value),
                xytext=(right, up),
                textcoords="offset points",
                ha=horizontal,
                va="center",
                fontsize=8.5,
                color=_INK,
                parse_math=False,
                annotation_clip=False,
            )
            box = text.get_window_extent()
            covered = sum(_shared(box, other) for other in taken if other is not own)
            cost = covered + 2 * (box.width * box.height - _shared(box, inside)) + abs(up) / 10
            if best is None or cost < best[0]:
                if best is not None:
                    best[1].remove()
                best = (cost, text, box)
            else:
                text.remove()
        assert best is not None
        taken.append(best[2])


def _shared(one: Any, two: Any) -> float:
    """Area that two boxes share, in square pixels."""
    width = min(one.x1, two.x1) - max(one.x0, two.x0)
    height = min(one.y1, two.y1) - max(one.y0, two.y0)
    return float(max(0.0, width) * max(0.0, height))


def _svg(figure: "Figure", key: str, about: str) -> str:
    """The figure as an SVG element with colors and font of the page; ids begin with `key`."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if _bare(child.tag) in ("metadata", "style"):
                parent.remove(child)
    text = " ".join(value for node in root.iter() for value in node.attrib.values())
    used = set(re.findall(r"#([\w-]+)", text))
    for node in root.iter():
        node.tag = _bare(node.tag)
        attributes = {_bare(name): value for name, value in node.attrib.items()}
        if attributes.get("id") not in used:
            attributes.pop("id", None)
        node.attrib.clear()
        node.attrib.update({name: _for_page(name, attributes[name], key) for name in attributes})
    view = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update(
        {"class": "chart", "viewBox": view, "role": "img", "aria-label": _one_line(about)}
    )
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)


def _for_page(name: str, value: str, key: str) -> str:
    if name == "id":
        return f"{key}-{value}"
    if name == "href":
        return value.replace("#", f"#{key}-", 1)
    if name in ("style", "clip-path", "fill", "stroke"):
        value = value.replace("url(#", f"url(#{key}-")
        value = re.sub(r"font: ([\d.]+px)[^;]*", r"font-size: \1", value)
        value = re.sub(r"font-family:[^;]*;\s*", "", value)
        for color, page in _PAGE_COLORS.items():
            value = value.replace(color, page)
    return value


def _bare(name: str) -> str:
    """A name of XML without its namespace."""
    return name.rpartition("}")[2]


def _label(text: str) -> str:
    """Printable text of one line and at most 40 characters, for a chart."""
    text = _one_line(text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)
