"""The HTML page of one report: headline, metrics, pictures, classes, curves, reproduction."""

import io
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup
from PIL import Image

from .charts import Line, line_chart, swatch
from .page import (
    ABSENT,
    DIRECTIONS,
    column_texts,
    fact_block,
    fact_rows,
    fact_text,
    grouped,
    measured_text,
    number_text,
    png_uri,
    render_page,
)

_HEADLINES = 4  # numbers at the top
_BROKEN = 5  # unreadable images named on the page


def report_page(report: dict[str, Any], pictures: Mapping[str, bytes]) -> str:
    """The report as one HTML page.

    Args:
        report: Content of the report, checked.
        pictures: PNG bytes by the `file` that the report names; others are left out.

    Raises:
        MissingCharts: If there are curves and matplotlib is not installed.
    """
    subject, protocol, machine = report["subject"], report["protocol"], report["machine"]
    floor = {n: m for n, m in (report.get("floor") or {}).items() if n in report["metrics"]}
    groups = [
        (title, [_metric_row(name, metric, floor.get(name)) for name, metric in metrics.items()])
        for title, metrics in grouped(report["metrics"])
    ]
    shown = [
        picture | {"data": png_uri(blob), "width": width, "height": height}
        for picture in report["pictures"]
        if (blob := pictures.get(picture["file"])) is not None
        for width, height in [Image.open(io.BytesIO(blob)).size]
    ]
    table = report.get("per_class")
    sections = {
        "measured": "What was measured",
        "metrics": "All metrics",
        "notes": "Reading these numbers" if report["notes"] or report.get("broken") else "",
        "pictures": "Pictures" if shown else "",
        "classes": "By class" if table else "",
        "curves": "Curves" if report["curves"] else "",
        "reproduce": "How to reproduce",
    }
    fixed = {"tessella": report["version"], "created": report["created"]}
    return render_page(
        "report.html",
        kind=report["kind"],
        subject=subject,
        protocol=protocol,
        lead=_lead(subject),
        headline=_headline(report, [row for _, rows in groups for row in rows]),
        sections=[(name, title) for name, title in sections.items() if title],
        subject_facts=fact_rows(subject, skip=("name",)),
        protocol_block=fact_block(protocol),
        groups=groups,
        has_floor=bool(floor),
        beside=[table for table in (_alignment(report), _calibration(report)) if table],
        notes=[fact_text(note) for note in report["notes"]] + _broken(report.get("broken") or {}),
        pictures=shown,
        per_class=_class_table(table) if table else None,
        curves=[_curve(curve, f"curve-{i}") for i, curve in enumerate(report["curves"])],
        command=report["command"],
        reproduce_facts=fact_rows(fixed | {"fingerprint": subject["fingerprint"]} | machine),
        version=report["version"],
    )


def _lead(subject: dict[str, Any]) -> str:
    bits, parameters = subject["bits_per_image"], subject["parameters"]
    size = subject["resolution"]
    parts = [
        subject["system"],
        f"{size}x{size} pixels" if isinstance(size, int) else fact_text(size),
        f"{fact_text(subject['tokens'])} tokens" if isinstance(subject["tokens"], int) else "",
        fact_text(subject["tokens"]) if isinstance(subject["tokens"], str) else "",
        f"{number_text(bits)} bits per image" if bits is not None else "",
        f"{number_text(parameters)} parameters" if parameters is not None else "",
    ]
    return " · ".join(part for part in parts if part)


def _broken(broken: Mapping[str, Any]) -> list[str]:
    """A note that names the first images that could not be read; empty if there are none."""
    if not broken:
        return []
    shown = [f"{name} ({fact_text(reason)})" for name, reason in broken.items()]
    more = [f"and {len(shown) - _BROKEN:,} more, see report.json"] if len(shown) > _BROKEN else []
    return [f"Images left out as unreadable, {len(shown):,}: {'; '.join(shown[:_BROKEN] + more)}."]


def _metric_row(name: str, metric: dict[str, Any], floor: dict[str, Any] | None) -> dict[str, Any]:
    value, spread = measured_text(metric["mean"], metric["spread"])
    each = column_texts(metric["values"]) if len(set(metric["values"])) > 1 else []
    return {
        "name": name,
        "value": value,
        "spread": spread,
        "unit": metric["unit"],
        "direction": DIRECTIONS[metric["better"]],
        "about": metric["about"],
        "protocol": metric["protocol"],
        "num_values": len(metric["values"]) or ABSENT,
        "each": " · ".join(each),
        "floor": "" if floor is None else _with_spread(floor),
        "floor_protocol": "" if floor is None else floor["protocol"],
    }


def _calibration(report: dict[str, Any]) -> dict[str, Any] | None:
    """Table of the metrics of pairs: of the images, of noise, of real images; None without it."""
    found = report.get("calibration")
    if not found:
        return None
    names = list(found["noise"])
    measured = {name.partition("@")[0]: metric for name, metric in report["metrics"].items()}
    halves = f"{number_text(found['num_real'])} real images against as many others"
    rows = [
        ("these images", [_with_spread(measured[n]) if n in measured else "" for n in names]),
        (f"{number_text(found['num_noise'])} images of noise",
         [number_text(found["noise"][n]) for n in names]),
        (halves, [number_text(found["real"].get(n)) for n in names]),
    ]  # fmt: skip
    return {
        "title": "What noise and real images get",
        "names": names,
        "rows": rows if found["real"] else rows[:-1],
        "about": f"On {found['network']}, against {number_text(found['num_reference'])} reference "
        "images. Metrics are not given where noise does not stay below half of real images.",
    }


def _alignment(report: dict[str, Any]) -> dict[str, Any] | None:
    """Table of the alignment of images and captions beside ceiling and floor; None without it."""
    found = report.get("alignment")
    if not found:
        return None
    names = list(found["floor"])
    measured = report["metrics"]
    real = f"{number_text(found['num_ceiling'])} real validation images, their own captions"
    shuffled = f"{number_text(found['num_samples'])} samples, captions of other samples"
    rows = [
        ("these images, their own captions",
         [_with_spread(measured[n]) if n in measured else "" for n in names]),
        (real, [number_text(found["ceiling"].get(n)) for n in names]),
        (shuffled, [number_text(found["floor"][n]) for n in names]),
    ]  # fmt: skip
    return {
        "title": "Alignment: what real images and shuffled captions get",
        "names": names,
        "rows": rows if found["ceiling"] else [rows[0], rows[2]],
        "about": f"Ridge regression from {found['features']} to {found['vectors']}, learned from "
        f"{number_text(found['num_pairs'])} real images with captions (strength "
        f"{number_text(found['ridge'])}). Each image is mapped by a regression that has not seen "
        f"its caption, which is looked for among {number_text(found['num_captions'])}.",
    }


def _with_spread(metric: dict[str, Any]) -> str:
    value, spread = measured_text(metric["mean"], metric["spread"])
    return f"{value} ± {spread}" if spread else value


def _headline(report: dict[str, Any], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the metrics at the top of the page.

    They are those that the report names under `headline`; by default the first one of each group,
    then others. Codes, speed and metrics without a direction are left to the table.
    """
    metrics = report["metrics"]
    judged = {
        name: metric
        for name, metric in metrics.items()
        if metric["better"] != "none" and metric["group"] not in ("codes", "speed")
    }
    firsts = [next(iter(members)) for _, members in grouped(judged)]
    names = list(dict.fromkeys([*firsts, *judged]))[:_HEADLINES] or list(metrics)[:_HEADLINES]
    if report.get("headline"):
        names = report["headline"]
    by_name = {row["name"]: row for row in rows}
    word = "seed" if report["kind"] == "samples" else "run"
    counts = {name: len(metrics[name]["values"]) for name in names}
    return [
        by_name[name] | {"count": f"{counts[name]} {word}{'' if counts[name] == 1 else 's'}"}
        for name in names
    ]


def _class_table(table: dict[str, Any]) -> dict[str, Any]:
    """The table per class, each cell as text to show and text to sort by."""
    columns = []
    for values in zip(*table["rows"], strict=True):
        numbers = all(
            v is None or (isinstance(v, int | float) and v is not True and v is not False)
            for v in values
        )
        texts = column_texts(values) if numbers else [fact_text(value) for value in values]
        keys = ["" if v is None else str(v) for v in values] if numbers else texts
        columns.append([{"text": t, "value": k} for t, k in zip(texts, keys, strict=True)])
    names = [fact_text(name) for name in table["columns"]]
    return {"columns": names, "rows": list(zip(*columns, strict=True)), "about": table["about"]}


def _curve(curve: dict[str, Any], key: str) -> dict[str, Any]:
    """A chart, its legend, and a table of its numbers: a row per x, a column per line."""
    lines = [
        Line(name=line["name"], x=line["x"], y=line["y"], spread=line.get("spread"))
        for line in curve["lines"]
    ]
    cells: list[dict[float, str]] = []
    for line in lines:
        spreads = line.spread if line.spread is not None else [None] * len(line.x)
        triples = zip(line.x, line.y, spreads, strict=True)
        cells.append({x: _with_spread({"mean": y, "spread": s}) for x, y, s in triples})
    places = sorted({x for line in lines for x in line.x})
    name = curve["x"].removeprefix("num_").replace("_", " ")
    return {
        "x": name,
        "metric": curve["metric"],
        "protocol": curve["protocol"],
        "svg": Markup(line_chart(lines, x_name=name, y_name=curve["metric"], key=key)),
        "legend": [(line.name, Markup(swatch(i))) for i, line in enumerate(lines)],
        "table": [(number_text(x), [column.get(x, ABSENT) for column in cells]) for x in places],
    }
