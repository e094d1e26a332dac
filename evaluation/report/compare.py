"""Reports of one protocol side by side: compare.json for programs, compare.html for people."""

import difflib
import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..._version import __version__
from ...data.images import BrokenImage, read_image
from ...files import atomic_folder, check_replaceable
from ...metrics.protocol import LATER, Protocol, differing_fields
from .charts import Point, require_charts, scatter_chart
from .page import (
    ABSENT,
    DIRECTIONS,
    fact_block,
    fact_rows,
    fact_text,
    grouped,
    measured_text,
    number_text,
    png_uri,
    render_page,
)
from .report import ReportError, json_text, read_report

BEST, NEAR = "best", "within spread"
_DEFAULTS = {"samples": ("gfid", "fd@"), "reconstructions": ("psnr", "rfid")}
"""Beginnings of the names of metrics that stand for quality, the first choice first."""
_FACTS = ("system", "parameters", "resolution", "tokens", "bits_per_image", "fingerprint")
_MISSING = "(not recorded)"


def compare_reports(
    paths: Sequence[str | os.PathLike[str]],
    out: Path,
    *,
    metric: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Put reports of one protocol side by side.

    Args:
        paths: Report folders or report.json files, at least two.
        out: Folder to write compare.json and compare.html to.
        metric: Metric of the chart, a name or its beginning; None: FID (or the first Fréchet
            distance) of samples, PSNR or rFID of reconstructions.
        overwrite: Replace a comparison of ours that is at `out`.

    Returns:
        What compare.json holds: `protocol`, `kind`, `metric`, `subjects` (in the order of `paths`),
        `metrics` (of each: `cells` with mean, spread and mark, in the order of the subjects) and
        `notes`. A mark is "best", "within spread" or "".

    Raises:
        ReportError: If there are fewer than two reports, one is broken, their protocols or kinds
            differ, or no report has the metric.
        FileExistsError: If `out` exists and must stay; see `files.check_replaceable`.
        MissingCharts: If matplotlib is not installed.
    """
    require_charts()
    if len(paths) < 2:
        raise ReportError(f"{len(paths)} report given, expected at least 2 to compare")
    folders = [Path(path) if Path(path).is_dir() else Path(path).parent for path in paths]
    check_replaceable(out, "comparison", overwrite=overwrite, inputs=folders)
    reports = [read_report(path) for path in paths]
    for path, report in zip(paths[1:], reports[1:], strict=True):
        _refuse_other(reports[0], report, os.fspath(paths[0]), os.fspath(path))
    names = distinct_names([report["subject"]["name"] for report in reports], folders)
    chosen = choose_metric(reports, metric)
    notes = _notes(reports, names)
    points = []
    for name, report in zip(names, reports, strict=True):
        bits, quality = report["subject"]["bits_per_image"], report["metrics"].get(chosen, {})
        if bits is None or bits <= 0 or quality.get("mean") is None:
            lacking = "bits per image" if quality.get("mean") is not None else chosen
            notes.append(f"{name} is not on the chart: its report has no {lacking}.")
            continue
        points.append(Point(name=name, bits=bits, value=quality["mean"], spread=quality["spread"]))
    pictures = []
    for name, folder, report in zip(names, folders, reports, strict=True):
        try:
            pictures += _first_picture(name, folder, report)
        except BrokenImage as error:
            notes.append(f"{name} has no picture here: {error}.")
    result = {
        "format": 1,
        "version": __version__,
        "protocol": reports[0]["protocol"],
        "kind": reports[0]["kind"],
        "metric": chosen,
        "subjects": [
            report["subject"] | {"name": name, "path": os.fspath(path)}
            for name, path, report in zip(names, paths, reports, strict=True)
        ],
        "metrics": _rows(reports),
        "notes": notes,
    }
    page = _page(result, reports, points, pictures)
    with atomic_folder(out, kind="comparison", overwrite=overwrite, inputs=folders) as folder:
        (folder / "compare.json").write_text(json_text(result), encoding="utf-8")
        (folder / "compare.html").write_text(page, encoding="utf-8")
    return result


def _refuse_other(first: dict[str, Any], other: dict[str, Any], name: str, path: str) -> None:
    one, two = first["protocol"], other["protocol"]
    if one["id"] != two["id"]:
        fields = differing_fields(Protocol.from_dict(one), Protocol.from_dict(two))
        differing = [
            f"{field}: {fact_text(here)} against {fact_text(there)}"
            for field, (here, there) in fields.items()
        ]
        raise ReportError(
            f"{name} is of protocol {one['id']}, {path} of {two['id']}; their numbers cannot be "
            f"compared. {'; '.join(differing)}"
        )
    if first["kind"] != other["kind"]:
        raise ReportError(f"{name} reports {first['kind']}, {path} {other['kind']}")


def distinct_names(names: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Names without repetition: equal ones get the name of their folder, then a number."""
    named = [
        f"{name} ({folder.resolve().name})" if names.count(name) > 1 else name
        for name, folder in zip(names, folders, strict=True)
    ]
    result: list[str] = []
    for name in named:
        candidate, number = name, 1
        while candidate in result or (number > 1 and candidate in named):
            number += 1
            candidate = f"{name} #{number}"
        result.append(candidate)
    return result


def choose_metric(reports: Sequence[dict[str, Any]], wanted: str | None) -> str:
    """The metric that stands for quality: the one asked for, or the usual one of this kind.

    Args:
        reports: Reports of one kind.
        wanted: Name of a metric, or the beginning of exactly one (FID for FID#1a2b3c4d); case is
            ignored. None: the usual one.

    Raises:
        ReportError: If no report has the metric, or the reports have none in common.
    """
    known: list[str] = list(dict.fromkeys(n for report in reports for n in report["metrics"]))
    if wanted is not None:
        if wanted in known:
            return wanted
        begins = [name for name in known if name.lower().startswith(wanted.lower())]
        same = [name for name in begins if name.lower() == wanted.lower()] or begins
        if len(same) == 1:
            return same[0]
        if same:
            raise ReportError(f"--metric {wanted}: can be any of {', '.join(same)}")
        lower = {name.lower(): name for name in known}
        near = difflib.get_close_matches(wanted.lower(), lower, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(lower[name] for name in near)}?" if near else ""
        raise ReportError(f"--metric {wanted}: not in these reports{hint} (they have "
                          f"{', '.join(known)})")  # fmt: skip
    common = [
        name
        for name in known
        if all(report["metrics"].get(name, {}).get("mean") is not None for report in reports)
    ]
    for start in _DEFAULTS[reports[0]["kind"]]:
        for name in common:
            if name.lower().startswith(start):
                return name
    if not common:
        raise ReportError("the reports have no metric in common; nothing can be compared")
    return common[0]


def marks(metrics: Sequence[Mapping[str, Any] | None], better: str) -> list[str]:
    """Mark of each number of a row: "best", "within spread" or "".

    Equal means are best together. If another mean differs from the best by less than their two
    spreads together, nobody is best and those near are "within spread". A missing spread is 0.

    Args:
        metrics: Mapping with `mean` and `spread` of each report, None where it lacks the metric.
        better: Direction of the metric: "lower", "higher" or "none" (no marks).
    """
    result = [""] * len(metrics)
    known = [
        (i, m["mean"], m["spread"] or 0.0)
        for i, m in enumerate(metrics)
        if m is not None and m["mean"] is not None
    ]
    if better == "none" or len(known) < 2:
        return result
    best = (min if better == "lower" else max)(mean for _, mean, _ in known)
    reach = max(spread for _, mean, spread in known if mean == best)
    near = [i for i, mean, spread in known if mean != best and abs(mean - best) < reach + spread]
    for i, mean, _ in known:
        if mean == best:
            result[i] = NEAR if near else BEST
    for i in near:
        result[i] = NEAR
    return result


def _rows(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Every metric that any report has, and its value in each report."""
    rows: dict[str, Any] = {}
    for name in dict.fromkeys(name for report in reports for name in report["metrics"]):
        found = [report["metrics"].get(name) for report in reports]
        facts = next(metric for metric in found if metric is not None)
        same = all(metric["better"] == facts["better"] for metric in found if metric is not None)
        better = facts["better"] if same else "none"
        cells = [
            {
                "mean": None if metric is None else metric["mean"],
                "spread": None if metric is None else metric["spread"],
                "num_values": 0 if metric is None else len(metric["values"]),
                "mark": mark,
            }
            for metric, mark in zip(found, marks(found, better), strict=True)
        ]
        kept = {key: facts[key] for key in ("unit", "about", "group")}
        rows[name] = kept | {"better": better, "cells": cells}
    return rows


def _notes(reports: Sequence[dict[str, Any]], names: Sequence[str]) -> list[str]:
    """Notes on what makes numbers less comparable than their protocol says, and reports' notes."""
    notes = []
    for title, values in (
        ("tessella", [report["version"] for report in reports]),
        ("device", [fact_text(report["machine"].get("device")) for report in reports]),
    ):
        if len(set(values)) > 1:
            each = ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))
            notes.append(f"Not of one {title}: {each}.")
    protocols = [LATER | report["protocol"] for report in reports]
    fields = dict.fromkeys(field for protocol in protocols for field in protocol)
    for field in fields:
        values = [fact_text(protocol.get(field, _MISSING)) for protocol in protocols]
        if len(set(values)) > 1:
            notes.append(f"Protocol, {field}: {' against '.join(dict.fromkeys(values))}.")
    said: dict[str, list[str]] = {}
    for name, report in zip(names, reports, strict=True):
        for note in report["notes"]:
            said.setdefault(fact_text(note), []).append(name)
    for note, by in said.items():
        notes.append(note if len(by) == len(reports) else f"{', '.join(by)}: {note}")
    return notes


def _first_picture(name: str, folder: Path, report: dict[str, Any]) -> list[dict[str, Any]]:
    """The first picture that a report names; an empty list if it names none."""
    if not report["pictures"]:
        return []
    picture = report["pictures"][0]
    buffer = BytesIO()
    image = read_image(folder / picture["file"], name=picture["file"])
    image.save(buffer, "PNG")
    size = {"width": image.width, "height": image.height}
    facts = {"name": name, "title": picture["title"], "about": picture["about"]}
    return [facts | size | {"data": png_uri(buffer.getvalue())}]


def _page(
    result: dict[str, Any],
    reports: Sequence[dict[str, Any]],
    points: Sequence[Point],
    pictures: list[dict[str, Any]],
) -> str:
    metrics, chosen = result["metrics"], result["metric"]
    names = [subject["name"] for subject in result["subjects"]]
    groups = [
        (title, [_row_texts(name, row) for name, row in members.items()])
        for title, members in grouped(metrics)
    ]
    chart = None
    if points:
        chart = {
            "title": f"{chosen} against bits per image",
            "svg": Markup(scatter_chart(points, y_name=chosen, key="quality")),
            "about": f"{DIRECTIONS[metrics[chosen]['better']]}; bars: ± spread.".lstrip("; "),
        }
    rows = [
        dict(fact_rows({key: report["subject"][key] for key in _FACTS}))
        | dict(fact_rows(report["subject"], skip=("name", *_FACTS)))
        | dict(fact_rows({"tessella": report["version"], "created": report["created"]}))
        | dict(fact_rows(report["machine"]))
        for report in reports
    ]
    sections = {
        "metrics": "Metrics",
        "notes": "Reading these numbers" if result["notes"] else "",
        "chart": chart["title"] if chart else "",
        "subjects": "What was compared",
        "pictures": "Pictures" if pictures else "",
        "protocol": "Protocol",
    }
    return render_page(
        "compare.html",
        title=" against ".join(names) if len(names) == 2 else f"{len(names)} models compared",
        kind=result["kind"],
        protocol=result["protocol"],
        protocol_block=fact_block(result["protocol"]),
        sections=[(key, title) for key, title in sections.items() if title],
        subjects=[
            {"name": name, "command": report["command"]}
            for name, report in zip(names, reports, strict=True)
        ],
        groups=groups,
        notes=result["notes"],
        chart=chart,
        facts=[
            (name, [row.get(name, ABSENT) for row in rows])
            for name in dict.fromkeys(name for row in rows for name in row)
        ],
        pictures=pictures,
        version=result["version"],
    )


def _row_texts(name: str, row: dict[str, Any]) -> dict[str, Any]:
    cells = []
    for cell in row["cells"]:
        value, spread = measured_text(cell["mean"], cell["spread"])
        lacking = cell["mean"] is None and not cell["num_values"]
        cells.append(
            {"value": ABSENT if lacking else value, "spread": spread, "mark": cell["mark"]}
        )
    return {
        "name": name,
        "direction": DIRECTIONS[row["better"]],
        "unit": row["unit"],
        "cells": cells,
    }


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """A comparison for the terminal: value and mark of every model, by metric."""
    names = [subject["name"] for subject in result["subjects"]]
    shown: dict[str, Any] = {"protocol": result["protocol"]["id"], "kind": result["kind"]}
    bits = [subject["bits_per_image"] for subject in result["subjects"]]
    shown["bits per image"] = dict(zip(names, map(number_text, bits), strict=True))
    for name, row in result["metrics"].items():
        cells = _row_texts(name, row)["cells"]
        shown[name] = {
            model: " ".join(
                [c["value"], *([f"± {c['spread']}"] if c["spread"] else []), c["mark"]]
            ).strip()
            for model, c in zip(names, cells, strict=True)
        }
    return shown
