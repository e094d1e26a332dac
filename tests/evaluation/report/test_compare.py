"""Reports side by side: what may be compared, what is best, and how the page opens."""

import importlib.util
import itertools
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

from tessella.cli.compare import compare
from tessella.evaluation.report.charts import Point, scatter_chart
from tessella.evaluation.report.compare import (
    choose_metric,
    compare_reports,
    distinct_names,
    marks,
)
from tessella.evaluation.report.report import ReportError, write_report
from tessella.tests import browser as browsing


def beside(name: str) -> ModuleType:
    """A module of test support in this folder."""
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"tessella_tests_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


support = beside("full_report")
metric = support.metric


def save(folder: Path, *, name: str, fid: float, spread: float | None, **fields: Any) -> Path:
    """Write a report with one FID; `fields` replace parts of it."""
    report = support.full_report(curves=[], **fields)
    report["subject"] = report["subject"] | {"name": name, "bits_per_image": 64 * len(name)}
    report["metrics"]["gFID"] = metric(fid, spread, protocol=report["protocol"]["id"])
    folder.mkdir()
    write_report(folder, report, support.pictures_of(report))
    return folder


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """Reports of two models of one name, clearly apart."""
    return [
        save(tmp_path / "a", name="maskbit", fid=113.8, spread=0.9),
        save(tmp_path / "b", name="maskbit", fid=140.0, spread=1.0),
    ]


def test_two_reports_side_by_side(two: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = compare_reports(two, out)
    assert json.loads((out / "compare.json").read_text(encoding="utf-8")) == result
    assert [s["name"] for s in result["subjects"]] == ["maskbit (a)", "maskbit (b)"]
    assert result["metric"] == "gFID" and result["protocol"]["id"] == support.PROTOCOL
    assert [c["mark"] for c in result["metrics"]["gFID"]["cells"]] == ["best", ""]
    assert [c["mark"] for c in result["metrics"]["KID"]["cells"]] == ["best", "best"]
    assert [c["mark"] for c in result["metrics"]["peak memory"]["cells"]] == ["", ""]
    assert result["metrics"]["recall"]["cells"][0]["mean"] is None
    page = (out / "compare.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 2 and "FID against bits per image" in page
    assert page.count(support.PROTOCOL) > 10
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(before) == {".tessella.json", "compare.json", "compare.html"}
    with pytest.raises(FileExistsError, match="exists already"):
        compare_reports(two, out)
    compare_reports(two, out, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_report_files_serve_as_well_as_folders(two: list[Path], tmp_path: Path) -> None:
    files = [folder / "report.json" for folder in two]
    result = compare_reports(files, tmp_path / "out")
    assert [s["name"] for s in result["subjects"]] == ["maskbit (a)", "maskbit (b)"]


@pytest.mark.parametrize(
    ("metrics", "better", "expected"),
    [
        ([(10, None), (12, None)], "lower", ["best", ""]),
        ([(10, None), (12, None)], "higher", ["", "best"]),
        ([(10, None), (12, None)], "none", ["", ""]),
        ([(10, None), (10, None), (12, None)], "lower", ["best", "best", ""]),
        ([(10, 1.0), (10, 1.0), (13, 0.5)], "lower", ["best", "best", ""]),
        ([(10, 1.0), (11.4, 0.5), (13, 0.5)], "lower", ["within spread", "within spread", ""]),
        ([(10, 1.0), (11.5, 0.5)], "lower", ["best", ""]),
        ([(10, 1.0), (10.5, None)], "lower", ["within spread", "within spread"]),
        ([(None, None), (10, None), (11, None)], "lower", ["", "best", ""]),
        ([None, (10, None)], "lower", ["", ""]),
    ],
)
def test_best_and_within_spread(metrics: list[Any], better: str, expected: list[str]) -> None:
    given = [None if m is None else {"mean": m[0], "spread": m[1]} for m in metrics]
    assert marks(given, better) == expected


def test_another_protocol_is_refused_with_what_differs(two: list[Path], tmp_path: Path) -> None:
    changed = support.protocol_of(5000).to_dict()
    metrics = {"KID": metric(0.03, protocol=changed["id"])}
    other = save(
        tmp_path / "c", name="c", fid=90, spread=None, protocol=changed, metrics=metrics, floor=None
    )
    with pytest.raises(ReportError) as caught:
        compare_reports([*two, other], tmp_path / "out")
    message = str(caught.value)
    for words in (
        f"of protocol {support.PROTOCOL}",
        f"of {changed['id']}",
        "num_samples: 1,381 against 5,000",
    ):
        assert words in message
    assert "resize" not in message and not (tmp_path / "out").exists()


def test_what_cannot_be_compared_is_refused(two: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ReportError, match="1 report given, expected at least 2"):
        compare_reports(two[:1], out)
    with pytest.raises(ReportError, match=r"no report\.json there"):
        compare_reports([two[0], tmp_path / "nowhere"], out)
    other = save(tmp_path / "r", name="r", fid=1, spread=None, kind="reconstructions")
    with pytest.raises(ReportError, match=r"reports samples, .* reconstructions"):
        compare_reports([two[0], other], out)
    for own in (two[0], tmp_path):
        with pytest.raises(FileExistsError, match="an input of this command"):
            compare_reports(two, own, overwrite=True)
    assert (two[0] / "report.json").is_file() and not out.exists()


def test_what_is_missing_is_said(two: list[Path], tmp_path: Path) -> None:
    (two[0] / "samples.png").unlink()
    report = json.loads((two[1] / "report.json").read_text(encoding="utf-8"))
    report["subject"]["bits_per_image"] = None
    report["machine"]["device"] = "NVIDIA H100"
    report["protocol"]["reference"] = "my emoji (train)"
    report["notes"] = ["Only this one."]
    (two[1] / "report.json").write_text(json.dumps(report), encoding="utf-8")
    notes = compare_reports(two, tmp_path / "out")["notes"]
    said = "\n".join(notes)
    assert "maskbit (b) is not on the chart: its report has no bits per image." in notes
    assert "maskbit (a) has no picture here: samples.png" in said
    assert "Not of one device: maskbit (a) cpu, maskbit (b) NVIDIA H100." in notes
    assert "Protocol, reference: emoji (train) against my emoji (train)." in notes
    assert "maskbit (b): Only this one." in notes


def test_a_report_from_before_captions_is_of_the_same_protocol(
    two: list[Path], tmp_path: Path
) -> None:
    report = json.loads((two[1] / "report.json").read_text(encoding="utf-8"))
    for field in ("conditions", "alignment"):
        del report["protocol"][field]
    (two[1] / "report.json").write_text(json.dumps(report), encoding="utf-8")
    assert "Protocol, " not in "\n".join(compare_reports(two, tmp_path / "out")["notes"])


def test_the_metric_of_the_chart() -> None:
    def reports(kind: str, *names: str) -> list[dict[str, Any]]:
        one = {"kind": kind, "metrics": {name: metric(1.0) for name in names}}
        return [one, one]

    samples = reports("samples", "KID", "FD@random#1", "gFID", "precision")
    assert choose_metric(samples, None) == "gFID"
    assert choose_metric(samples, "gfid") == "gFID"
    assert choose_metric(samples, "precision") == "precision"
    assert choose_metric(reports("samples", "precision"), None) == "precision"
    assert choose_metric(reports("reconstructions", "rFID", "PSNR"), None) == "PSNR"
    assert choose_metric(reports("reconstructions", "MAE", "rFID"), None) == "rFID"
    with pytest.raises(ReportError, match="did you mean precision"):
        choose_metric(samples, "precison")
    with pytest.raises(ReportError, match=r"not in these reports \(they have KID, FD@random"):
        choose_metric(samples, "zzz")
    with pytest.raises(ReportError, match="any of gFID, gFIDx"):
        choose_metric(reports("samples", "gFID", "gFIDx"), "gF")
    apart = [{"kind": "samples", "metrics": {name: metric(1.0)}} for name in ("A", "B")]
    with pytest.raises(ReportError, match="no metric in common"):
        choose_metric(apart, None)


def test_names_are_made_distinct() -> None:
    folders = [Path("/x/one"), Path("/x/two"), Path("/y/one"), Path("/y/z")]
    assert distinct_names(["m", "m", "m", "k"], folders) == [
        "m (one)",
        "m (two)",
        "m (one) #2",
        "k",
    ]


def test_labels_of_near_points_do_not_cover_each_other() -> None:
    """Eight points in two columns, nearer to each other than a line of text is high."""
    values = [20, 20.01, 20.3, 20.31, 21, 20, 20.05, 21]
    points = [
        Point(name=f"model number {i}", bits=1024 * (1 + i // 5), value=values[i]) for i in range(8)
    ]
    text = scatter_chart(points, y_name="PSNR", key="q")
    assert text == scatter_chart(points, y_name="PSNR", key="q")
    boxes = []
    for anchor, x, y in re.findall(
        r'text-anchor: (\w+)[^>]* x="([\d.]+)" y="([\d.]+)"[^>]*>model number \d<', text
    ):
        left = float(x) - {"start": 0, "middle": 30, "end": 60}[anchor]  # 14 narrow letters
        boxes.append((left, float(y) - 7, left + 60, float(y)))
    assert len(boxes) == 8
    for one, two in itertools.combinations(boxes, 2):
        apart = one[2] <= two[0] or two[2] <= one[0] or one[3] <= two[1] or two[3] <= one[1]
        assert apart, (one, two)
    assert scatter_chart(points[:1], y_name="PSNR", key="q")
    wide = [Point(name=str(bits), bits=bits, value=1.0) for bits in (64, 1024, 16384)]
    assert ">16,384<" in scatter_chart(wide, y_name="PSNR", key="q")


def test_command_prints_and_explains(two: list[Path], tmp_path: Path) -> None:
    words = [*map(str, two), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(compare, [*words, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["metric"] == "gFID"
    done = CliRunner().invoke(compare, [*words, "--overwrite", "--metric", "kid"])
    assert done.exit_code == 0 and "113.80 ± 0.90 best" in done.stdout
    assert support.PROTOCOL in done.stdout
    done = CliRunner().invoke(compare, [*words, "--overwrite", "--metric", "gFIB"])
    assert done.exit_code == 1 and "did you mean gFID?" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(not browsing.CHROMIUM.exists(), reason="needs Debian package chromium")
def test_comparison_opens_without_a_complaint(two: list[Path], tmp_path: Path) -> None:
    nasty = save(tmp_path / "n", name=support.NASTY, fid=120, spread=None, notes=[support.NASTY])
    compare_reports([*two, nasty], tmp_path / "out")
    decoded = "Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))"
    width = "document.documentElement.scrollWidth"
    names = "[...document.querySelectorAll('thead')][0].textContent"
    page = tmp_path / "out" / "compare.html"
    with browsing.Browser() as browser:
        wide = browser.visit(page, [decoded, width, names])
        narrow = browser.visit(page, [decoded, width], width=390, height=844, dark=True)
    for visit, expected in ((wide, 1280), (narrow, 390)):
        assert visit.messages == [] and visit.outside == []
        assert visit.values[0] == [400, 400, 400]
        assert visit.values[1] == expected
    assert support.NASTY_SHOWN in wide.values[2]
