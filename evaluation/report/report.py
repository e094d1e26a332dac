"""The report of an evaluation: report.json for programs, report.html for people.

Both say the same: what was measured, under which protocol, the values, and how to repeat it. The
page is one file that loads nothing from the network: its pictures are data URIs, its charts SVG,
and its Content-Security-Policy forbids the rest. A value of another protocol is refused.
"""

import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...data.images import to_pil
from ...documents import read_json
from ...manifest import check_files
from ...metrics.protocol import Protocol, ProtocolError
from .charts import require_charts
from .page import DIRECTIONS
from .report_page import report_page

REPORT_FORMAT = 1
FILE = "report.json"
KINDS = ("samples", "reconstructions")

_TEXT, _LIST, _DICT, _NUMBER, _ANY = "text", "a list", "a mapping", "a number or null", "anything"
_REPORT = {
    "version": _TEXT,
    "created": _TEXT,
    "command": _TEXT,
    "kind": _TEXT,
    "subject": _DICT,
    "protocol": _DICT,
    "metrics": _DICT,
    "notes": _LIST,
    "curves": _LIST,
    "pictures": _LIST,
    "machine": _DICT,
}
_SUBJECT = {
    "name": _TEXT,
    "system": _TEXT,
    "fingerprint": _TEXT,
    "parameters": _NUMBER,
    "resolution": _ANY,
    "tokens": _ANY,
    "bits_per_image": _NUMBER,
}
_METRIC = {
    "mean": _NUMBER,
    "spread": _NUMBER,
    "values": _LIST,
    "unit": _TEXT,
    "better": _TEXT,
    "protocol": _TEXT,
    "about": _TEXT,
    "group": _TEXT,
}
_ALIGNMENT = {
    "features": _TEXT,
    "vectors": _TEXT,
    "ridge": _NUMBER,
    "num_pairs": _NUMBER,
    "num_captions": _NUMBER,
    "num_samples": _NUMBER,
    "floor": _DICT,
    "num_ceiling": _NUMBER,
    "ceiling": _DICT,
}
_CALIBRATION = {
    "network": _TEXT,
    "num_noise": _NUMBER,
    "num_reference": _NUMBER,
    "noise": _DICT,
    "num_real": _NUMBER,
    "real": _DICT,
    "withheld": _LIST,
}


class ReportError(ValueError):
    """Error of a report that cannot be written, read or compared; says where and why."""


def write_report(
    folder: Path, report: Mapping[str, Any], pictures: Mapping[str, Image.Image]
) -> dict[str, Any]:
    """Write report.json, report.html and the pictures as PNG into a folder; returns the JSON.

    Args:
        folder: Existing folder to write to, best one of `files.atomic_folder`.
        report: Content of the report (see `check_report`). Numbers that are not finite become null.
        pictures: Image for each `file` that the report's `pictures` name.

    Raises:
        ReportError: If a key is missing or of the wrong kind, a number is of another protocol than
            the report, or the pictures are not those that the report names.
        MissingCharts: If there are curves and matplotlib is not installed.
    """
    plain: dict[str, Any] = _plain(report, "report")
    check_report(plain)
    if plain["curves"]:
        require_charts()
    named = [picture["file"] for picture in plain["pictures"]]
    if sorted(named) != sorted(pictures):
        raise ReportError(f"pictures {sorted(pictures)} given, the report names {sorted(named)}")
    blobs = {name: _png(pictures[name]) for name in named}
    page = report_page(plain, blobs)
    for name, blob in blobs.items():
        (folder / name).write_bytes(blob)
    (folder / FILE).write_text(json_text(plain), encoding="utf-8")
    (folder / "report.html").write_text(page, encoding="utf-8")
    return plain


def read_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check a report, given its folder or its report.json.

    Raises:
        ReportError: If there is none, or it is broken, incomplete or of another format.
    """
    file = Path(path)
    file = file / FILE if file.is_dir() else file
    try:
        report = read_json(file, dict[str, Any], error=ReportError)
        check_files(file.parent, (file.name,), error=ReportError)
    except FileNotFoundError:
        raise ReportError(f"{path}: no {FILE} there; `tessella evaluate` writes one") from None
    try:
        check_report(report)
        for stored in (report["protocol"], *(report.get("protocols") or {}).values()):
            Protocol.from_dict(stored)
        _check_sums(report)
    except (ReportError, ProtocolError) as error:
        raise ReportError(f"{file}: {error}") from error
    return report


def _check_sums(report: dict[str, Any]) -> None:
    """Refuse a mean that is not the mean of its values: one of them was changed.

    Raises:
        ReportError: With the name of the metric.
    """
    for name, metric in [*report["metrics"].items(), *(report.get("floor") or {}).items()]:
        values = [value for value in metric["values"] if value is not None]
        if not values or metric["mean"] is None:
            continue
        mean = sum(values) / len(values)
        if not math.isclose(mean, metric["mean"], rel_tol=1e-6, abs_tol=1e-9):
            raise ReportError(f"{name}: mean {metric['mean']}, that of its values is {mean}")


def check_report(report: Any) -> None:
    """Refuse content that is not a complete report of this format and of one protocol.

    `floor` (what real images get, under protocols of their own), `calibration` (what noise and real
    images get in the metrics of pairs), `alignment` (what real images and shuffled captions get in
    it), `captions` (of the samples in the picture), `per_class`, `broken` (reasons by image) and
    `headline` (names of the metrics at the top of the page) may be absent. Facts under `subject`,
    `protocol` and `machine` are free beyond those that are needed here.

    Raises:
        ReportError: With the key and the value that was expected there.
    """
    if not isinstance(report, dict) or "format" not in report:
        raise ReportError("not a report: it has no format number")
    if report["format"] != REPORT_FORMAT:
        found, newer = report["format"], ""
        if isinstance(found, int) and found > REPORT_FORMAT:
            newer = "; a newer version of tessella wrote it"
        raise ReportError(
            f"a report of format {found!r}, this version reads {REPORT_FORMAT}{newer}"
        )
    _check_keys(report, _REPORT, "report")
    if report["kind"] not in KINDS:
        raise ReportError(f"report.kind: {report['kind']!r}, expected one of {', '.join(KINDS)}")
    _check_keys(report["subject"], _SUBJECT, "report.subject")
    _check_keys(report["protocol"], {"id": _TEXT, "name": _TEXT}, "report.protocol")
    protocol = report["protocol"]["id"]
    _check_metrics(report["metrics"], protocol, "report.metrics")
    if report.get("floor") is not None:
        _check_keys(report, {"floor": _DICT}, "report")
        _check_metrics(report["floor"], None, "report.floor")
    if report.get("calibration") is not None:
        _check_keys(report, {"calibration": _DICT}, "report")
        _check_keys(report["calibration"], _CALIBRATION, "report.calibration")
        for side in ("noise", "real"):
            numbers = report["calibration"][side]
            _check_numbers(list(numbers.values()), f"report.calibration.{side}")
    if report.get("alignment") is not None:
        _check_keys(report, {"alignment": _DICT}, "report")
        _check_keys(report["alignment"], _ALIGNMENT, "report.alignment")
        for side in ("floor", "ceiling"):
            numbers = report["alignment"][side]
            _check_numbers(list(numbers.values()), f"report.alignment.{side}")
    if report.get("captions") is not None:
        _check_keys(report, {"captions": _LIST}, "report")
    if not report["metrics"]:
        raise ReportError("report.metrics: empty, expected at least one metric")
    if report.get("per_class") is not None:
        _check_keys(report, {"per_class": _DICT}, "report")
        _check_table(report["per_class"])
    headline = report.get("headline") or []
    if not isinstance(headline, list):
        raise ReportError(f"report.headline: {headline!r}, expected a list of metrics")
    for name in headline:
        if name not in report["metrics"]:
            raise ReportError(f"report.headline: {name!r} is not a metric of the report")
    for number, curve in enumerate(report["curves"]):
        _check_curve(curve, f"report.curves[{number}]")
    _check_pictures(report["pictures"])


def _check_keys(section: Any, expected: Mapping[str, str], where: str) -> None:
    kinds: dict[str, tuple[type, ...]] = {
        _TEXT: (str,),
        _LIST: (list,),
        _DICT: (dict,),
        _NUMBER: (int, float, type(None)),
        _ANY: (object,),
    }
    if not isinstance(section, dict):
        raise ReportError(f"{where}: {section!r}, expected a mapping")
    missing = [name for name in expected if name not in section]
    if missing:
        raise ReportError(f"{where}: {', '.join(missing)} missing")
    for name, kind in expected.items():
        value = section[name]
        if not isinstance(value, kinds[kind]) or (kind == _NUMBER and isinstance(value, bool)):
            raise ReportError(f"{where}.{name}: {value!r}, expected {kind}")


def _check_metrics(metrics: dict[str, Any], protocol: str | None, where: str) -> None:
    """Refuse incomplete metrics and, if `protocol` is given, those of another one."""
    for name, metric in metrics.items():
        _check_keys(metric, _METRIC, f"{where}.{name}")
        if protocol is not None and metric["protocol"] != protocol:
            raise ReportError(
                f"{name} is of protocol {metric['protocol']}, the report of {protocol}"
            )
        if metric["better"] not in DIRECTIONS:
            raise ReportError(f"{where}.{name}.better: {metric['better']!r}, expected lower, higher"
                              " or none")  # fmt: skip
        _check_numbers(metric["values"], f"{where}.{name}.values")


def _check_numbers(values: Any, where: str) -> None:
    _check_keys({"list": values}, {"list": _LIST}, where)
    for number, value in enumerate(values):
        _check_keys({str(number): value}, {str(number): _NUMBER}, where)


def _check_table(table: dict[str, Any]) -> None:
    _check_keys(table, {"columns": _LIST, "rows": _LIST, "about": _TEXT}, "report.per_class")
    width = len(table["columns"])
    for number, row in enumerate(table["rows"]):
        if not isinstance(row, list) or len(row) != width:
            raise ReportError(f"report.per_class.rows[{number}]: {row!r}, expected {width} cells")


def _check_curve(curve: Any, where: str) -> None:
    _check_keys(curve, {"x": _TEXT, "metric": _TEXT, "protocol": _TEXT, "lines": _LIST}, where)
    if not curve["lines"]:
        raise ReportError(f"{where}.lines: empty, expected at least one line")
    for number, line in enumerate(curve["lines"]):
        place = f"{where}.lines[{number}]"
        _check_keys(line, {"name": _TEXT, "x": _LIST, "y": _LIST}, place)
        for name in ("x", "y", "spread"):
            values = line.get(name)
            if values is None and name == "spread":
                continue
            _check_numbers(values, f"{place}.{name}")
            if len(values) != len(line["x"]):
                raise ReportError(f"{place}.{name}: {len(values)} numbers for {len(line['x'])} x")
        if None in line["x"]:
            raise ReportError(f"{place}.x: null, expected finite numbers")


def _check_pictures(pictures: list[Any]) -> None:
    seen: set[str] = set()
    for number, picture in enumerate(pictures):
        where = f"report.pictures[{number}]"
        _check_keys(picture, {"file": _TEXT, "title": _TEXT, "about": _TEXT}, where)
        name = picture["file"]
        if name != Path(name).name or "\\" in name or not name.endswith(".png") or name in seen:
            raise ReportError(f"{where}.file: {name!r}, expected a file name NAME.png, each once")
        seen.add(name)


def _plain(value: Any, where: str) -> Any:
    """A value as JSON can hold it: Python numbers, None for non-finite ones, UTF-8 text."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_plain(str(key), where): _plain(v, f"{where}.{key}") for key, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_plain(item, f"{where}[{number}]") for number, item in enumerate(value)]
    raise ReportError(f"{where}: a {type(value).__name__} cannot be stored in a report")


def json_text(content: dict[str, Any]) -> str:
    """Text of a JSON file: indented, UTF-8, without NaN."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    to_pil(image).save(buffer, "PNG", optimize=False)
    return buffer.getvalue()
