"""One self-contained HTML page from a template, and numbers and facts as its text."""

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_TEMPLATES = Path(__file__).with_name("templates")
_SIGNIFICANT = 4  # digits of a number without a spread
_DIGITS = 6  # most digits of a mean whose spread asks for more
_CONTROLS = [*(set(range(32)) - {9, 10}), 127, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_UNPRINTABLE = dict.fromkeys(_CONTROLS, "\N{REPLACEMENT CHARACTER}")
NOT_A_NUMBER = "n/a"
ABSENT = "\N{EN DASH}"
GROUPS = {
    "distribution": "Distribution",
    "alignment": "Alignment of images and captions",
    "pixels": "Pixels",
    "perception": "Perception",
    "codes": "Codes",
    "memorisation": "Memorisation",
    "speed": "Speed",
}
"""Groups of metrics in the order of the page, and their titles; unknown groups come last."""
DIRECTIONS = {"lower": "↓ lower is better", "higher": "↑ higher is better", "none": ""}


def render_page(template: str, *, folder: Path = _TEMPLATES, **values: Any) -> str:
    """Fill a template; values are escaped, one script is allowed by its hash.

    Args:
        template: File name of the template.
        folder: Folder of the template; those of `templates/` can be extended and imported there.
        values: Values of the template by name.
    """
    environment = Environment(
        loader=FileSystemLoader([folder, _TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_printable,
    )
    script = (_TEMPLATES / "sort_script.html").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return environment.get_template(template).render(
        script=Markup(script),  # part of the package, not data
        script_hash=digest,
        **values,
    )


def png_uri(blob: bytes) -> str:
    """A PNG file's bytes as a data URI."""
    return "data:image/png;base64," + base64.b64encode(blob).decode("ascii")


def number_text(value: float | None) -> str:
    """Text of a number: counts in full with separators, others to four significant digits."""
    if value is None or not math.isfinite(value):
        return NOT_A_NUMBER
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e9):
        return f"{int(value):,}"
    whole = math.floor(math.log10(abs(value))) + 1  # digits before the point
    if whole > _SIGNIFICANT and whole <= 9:
        return f"{value:,.0f}"
    return f"{value:.{_SIGNIFICANT}g}"


def column_texts(values: Sequence[float | None]) -> list[str]:
    """Texts of the numbers of one column, as `number_text` with equally many decimals."""
    texts = [number_text(value) for value in values]
    if any("e" in text for text in texts):
        return texts
    places = max((len(text.partition(".")[2]) for text in texts), default=0)
    return [
        text if value is None or text == NOT_A_NUMBER else f"{value:,.{places}f}"
        for text, value in zip(texts, values, strict=True)
    ]


def measured_text(mean: float | None, spread: float | None) -> tuple[str, str]:
    """Texts of mean and spread: two digits of the spread, and the mean to the same place.

    Returns:
        Text of the mean, and text of the spread, "" without one.
    """
    if mean is None or spread is None or not (math.isfinite(mean) and math.isfinite(spread)):
        return number_text(mean), ""
    if spread <= 0 or mean == 0:
        return number_text(mean), number_text(spread)
    places = 1 - math.floor(math.log10(spread))
    most = _DIGITS - 1 - math.floor(math.log10(abs(mean)))
    if places > most or spread >= 100:
        return number_text(mean), number_text(spread)
    places = max(0, places)
    return f"{mean:,.{places}f}", f"{spread:,.{places}f}"


def grouped(metrics: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Metrics by their groups: title and metrics of each, in the order of `GROUPS`."""
    names = dict.fromkeys([*GROUPS, *(metric["group"] for metric in metrics.values())])
    parts = [
        (GROUPS.get(group, group), {n: m for n, m in metrics.items() if m["group"] == group})
        for group in names
    ]
    return [(title, members) for title, members in parts if members]


def fact_text(value: Any) -> str:
    """Text of a fact: yes, no, none, numbers with separators, lists with commas."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number_text(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {fact_text(item)}" for key, item in value.items()) or "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(fact_text(item) for item in value) or "none"
    return str(value)


def fact_rows(facts: Mapping[str, Any], *, skip: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Names and texts of all facts; a mapping among them gives one row per entry."""
    rows: list[tuple[str, str]] = []
    for name, value in facts.items():
        if name in skip:
            continue
        if isinstance(value, Mapping) and value:
            rows += [(f"{_words(name)}: {key}", text) for key, text in fact_rows(value)]
        else:
            rows.append((_words(name), fact_text(value)))
    return rows


def fact_block(facts: Mapping[str, Any]) -> str:
    """All facts as lines `name: value` to copy, in the notation of JSON, text without quotes."""
    lines = []
    for name, value in facts.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        lines.append(f"{name}: {text}")
    return "\n".join(lines)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _printable(value: Any) -> Any:
    """Text without control characters: some are not allowed in HTML, some reverse its direction."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return value.translate(_UNPRINTABLE)
