"""The report of an evaluation: what it refuses, what it holds, and how its page opens."""

import copy
import importlib.util
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tessella.evaluation.report.charts import Line, MissingCharts, line_chart, require_charts
from tessella.evaluation.report.page import column_texts, fact_text, measured_text, number_text
from tessella.evaluation.report.report import ReportError, read_report, write_report
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
full_report, pictures_of, metric = support.full_report, support.pictures_of, support.metric
needs_chromium = pytest.mark.skipif(
    not browsing.CHROMIUM.exists(), reason="needs Debian package chromium"
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything in it and names that must stay text."""
    folder = tmp_path_factory.mktemp("report")
    report = full_report(nasty=True)
    write_report(folder, report, pictures_of(report))
    return folder


class Links(HTMLParser):
    """What a page points to, which scripts and handlers it has, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.handlers: list[str] = []
        self.tags: list[str] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            text = value or ""
            if name.split(":")[-1] in ("src", "href", "srcset", "action", "data", "poster"):
                self.targets.append(text)
            if name.startswith("on"):
                self.handlers.append(name)
            self.targets += re.findall(r"url\(\s*['\"]?([^'\")]*)", text)

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] == ["script"] and data.strip():
            self.scripts.append(data)
        if self.tags[-1:] == ["style"]:
            self.targets += re.findall(r"url\(\s*['\"]?([^'\")]*)", data)
            assert "@import" not in data
        self.words.append(data)


def without(report: dict[str, Any], *path: Any) -> dict[str, Any]:
    """A copy that lacks the key at the end of `path`."""
    report = copy.deepcopy(report)
    place: Any = report
    for step in path[:-1]:
        place = place[step]
    del place[path[-1]]
    return report


def test_what_is_written_is_read_again(written: Path) -> None:
    report = read_report(written)
    assert report == read_report(written / "report.json")
    given = full_report(nasty=True)
    assert report["metrics"]["recall"] | {"values": []} == given["metrics"]["recall"] | {
        "mean": None,
        "values": [],
    }
    assert report["metrics"]["recall"]["values"] == [None]
    assert report["per_class"]["rows"][3][2] is None
    for name in ("subject", "protocol", "notes", "curves", "pictures", "machine", "command"):
        assert report[name] == given[name]
    assert "NaN" not in (written / "report.json").read_text(encoding="utf-8")
    names = {"report.json", "report.html", "samples.png", "worst.png", "nearest.png"}
    assert {path.name for path in written.iterdir()} == names
    with Image.open(written / "samples.png") as picture:
        expected = np.asarray(pictures_of(given)["samples.png"])
        np.testing.assert_array_equal(np.asarray(picture), expected)


def test_equal_reports_give_equal_files(tmp_path: Path, written: Path) -> None:
    report = full_report(nasty=True)
    write_report(tmp_path, report, pictures_of(report))
    for path in written.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_page_is_one_file_that_points_nowhere(written: Path) -> None:
    text = (written / "report.html").read_text(encoding="utf-8")
    page = Links(text)
    assert page.targets and page.tags.count("img") == 3
    wrong = [t[:60] for t in page.targets if not t.startswith(("data:", "#"))]
    assert not wrong
    anchors = {t for t in page.targets if t.startswith("#")}
    assert all(f'id="{anchor[1:]}"' in text for anchor in anchors)
    assert not page.handlers and len(page.scripts) == page.tags.count("script") == 1
    assert not {"iframe", "object", "embed", "form", "base"} & set(page.tags)
    assert "default-src 'none'; img-src data:;" in text and "unsafe-eval" not in text
    assert '<html lang="en">' in text and 'name="viewport"' in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_names_stay_text(written: Path) -> None:
    text = (written / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert text.count("&lt;script&gt;alert") > 10
    said = "".join(Links(text).words)
    assert f"A note with {support.NASTY_SHOWN}" in said
    assert "\u202e" not in said  # would turn the text after it around


def test_page_says_protocol_spread_seeds_and_floor(written: Path) -> None:
    text = (written / "report.html").read_text(encoding="utf-8")
    said = " ".join(" ".join(Links(text).words).split())
    assert "113.80 ± 0.90" in said and "113.8 · 112.9 · 114.7" in said
    assert "↓ lower is better" in said and "3 seeds" in said and "real images 100.9" in said
    assert support.FLOOR in said and support.CURVES in said
    assert "n/a" in said and "nan" not in said.replace("finance", "").lower().split()
    assert text.count(f'title="gFID, protocol {support.PROTOCOL}"') == 2
    assert "licence" in said and "Apache-2.0" in said  # a fact that no schema knows
    assert "3,760,000 parameters" in said and "num_samples: 1381" in said
    assert "and 2 more, see report.json" in said


def test_page_puts_alignment_between_real_images_and_shuffled_captions(tmp_path: Path) -> None:
    aligned = metric(0.5132, 0.01, better="higher", group="alignment")
    report = full_report(curves=[], pictures=[])
    report["metrics"] |= {"alignment_8": aligned}
    write_report(tmp_path, report, {})
    said = " ".join(" ".join(Links((tmp_path / "report.html").read_text("utf-8")).words).split())
    assert "154 real validation images, their own captions 0.2338 n/a" in said
    assert "these images, their own captions not given 0.513 ± 0.010" in said
    assert "1,381 samples, captions of other samples 0.0072 0.1227" in said
    assert "from efflite0#57934424 to words#775a8a44, learned from 1,381 real images" in said
    assert "(strength 3.162)" in said and "looked for among 1,380" in said


def test_reconstructions_without_extras_have_a_page(tmp_path: Path) -> None:
    report = full_report(kind="reconstructions", curves=[], pictures=[], notes=[], per_class=None)
    report = without(without(without(report, "floor"), "broken"), "alignment")
    report["subject"] |= {"parameters": None, "bits_per_image": None}
    report["metrics"] = {"PSNR": metric(21.25, unit="dB", better="higher", group="pixels")}
    write_report(tmp_path, report, {})
    said = " ".join("".join(Links((tmp_path / "report.html").read_text("utf-8")).words).split())
    assert "Tokenizer" in said and "1 run" in said and "21.25" in said
    assert "Curves" not in said and "By class" not in said and "Real images" not in said


def test_headline_is_chosen_or_asked_for(tmp_path: Path) -> None:
    def names(**fields: Any) -> list[str]:
        write_report(tmp_path, full_report(curves=[], pictures=[], **fields), {})
        text = (tmp_path / "report.html").read_text(encoding="utf-8")
        return re.findall(r'<div class="name">([^<]*)</div>', text)

    assert names() == ["gFID", "features distance", "copies", "KID"]
    assert names(headline=["recall", "peak memory"]) == ["recall", "peak memory"]
    assert names(headline=None, metrics={"n": metric(1.0, better="none")}) == ["n"]
    with pytest.raises(ReportError, match=r"headline: 'FIB' is not a metric"):
        names(headline=["FIB"])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (("format",), "no format number"),
        (("protocol",), "report: protocol missing"),
        (("machine",), "report: machine missing"),
        (("protocol", "id"), "report.protocol: id missing"),
        (("subject", "fingerprint"), "report.subject: fingerprint missing"),
        (("metrics", "gFID", "better"), "report.metrics.gFID: better missing"),
        (("floor", "gFID", "mean"), "report.floor.gFID: mean missing"),
        (("alignment", "ridge"), "report.alignment: ridge missing"),
        (("per_class", "about"), "report.per_class: about missing"),
        (("curves", 0, "protocol"), r"report.curves\[0\]: protocol missing"),
        (("curves", 0, "lines", 1, "y"), r"report.curves\[0\].lines\[1\]: y missing"),
        (("pictures", 0, "title"), r"report.pictures\[0\]: title missing"),
    ],
)
def test_missing_keys_are_named(tmp_path: Path, path: tuple[Any, ...], message: str) -> None:
    report = full_report()
    with pytest.raises(ReportError, match=message):
        write_report(tmp_path, without(report, *path), pictures_of(report))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["metrics"]["gFID"].update(mean="12"), "FID.mean: '12', expected a number"),
        (lambda r: r["metrics"]["gFID"].update(mean=True), "FID.mean: True, expected a number"),
        (lambda r: r["metrics"]["gFID"].update(better="less"), "expected lower, higher or none"),
        (lambda r: r["metrics"].clear(), "expected at least one metric"),
        (lambda r: r["alignment"]["floor"].update(a="0"), "alignment.floor.*expected a number"),
        (lambda r: r.update(captions="none"), "captions: 'none', expected a list"),
        (lambda r: r.update(kind="images"), "expected one of samples, reconstructions"),
        (lambda r: r.update(format=2), "format 2.*newer version"),
        (lambda r: r["per_class"]["rows"][0].pop(), r"rows\[0\].*expected 4 cells"),
        (lambda r: r["curves"][0]["lines"][0]["y"].pop(), "4 numbers for 5 x"),
        (lambda r: r["curves"][0]["lines"].clear(), "expected at least one line"),
        (lambda r: r["pictures"][0].update(file="../a.png"), "expected a file name"),
        (lambda r: r["pictures"][0].update(file="worst.png"), "each once"),
        (lambda r: r["pictures"].pop(), "the report names"),
        (lambda r: r["subject"].update(extra=object()), "subject.extra: a object cannot be"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, change: Any, message: str) -> None:
    report = full_report()
    pictures = pictures_of(report)
    change(report)
    with pytest.raises(ReportError, match=message):
        write_report(tmp_path, report, pictures)
    assert not list(tmp_path.iterdir())


def test_a_number_of_another_protocol_is_refused(tmp_path: Path) -> None:
    report = full_report()
    report["metrics"]["gFID"]["protocol"] = "adm-256-00000000"
    message = f"gFID is of protocol adm-256-00000000, the report of {support.PROTOCOL}"
    with pytest.raises(ReportError, match=message):
        write_report(tmp_path, report, pictures_of(report))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["protocol"].update(num_samples=50_000), "the protocol's fields were changed"),
        (lambda r: r["protocol"].update(licence="MIT"), "not a protocol: .*licence"),
        (lambda r: r["protocols"][support.FLOOR].update(crop="none"), "fields were changed"),
        (lambda r: r["metrics"]["gFID"].update(mean=1.0), "gFID: mean 1.0, that of its values"),
        (lambda r: r.update(headline=5), "headline: 5, expected a list"),
    ],
)
def test_a_report_edited_by_hand_is_refused(written: Path, change: Any, message: str) -> None:
    file = written / "report.json"
    before = file.read_text(encoding="utf-8")
    report = json.loads(before)
    change(report)
    file.write_text(json.dumps(report), encoding="utf-8")
    try:
        with pytest.raises(ReportError, match=message):
            read_report(written)
    finally:
        file.write_text(before, encoding="utf-8")
    assert read_report(written)["protocol"]["id"] == support.PROTOCOL


def test_reading_says_what_is_wrong(tmp_path: Path, written: Path) -> None:
    file = tmp_path / "report.json"
    for path in (tmp_path, file, tmp_path / "nowhere"):
        with pytest.raises(ReportError, match=r"no report\.json there"):
            read_report(path)
    whole = (written / "report.json").read_text(encoding="utf-8")
    for content, message in (
        (whole[: len(whole) // 2], "not valid JSON"),
        ("", "not valid JSON"),
        ("[1]", "should be an object"),
        ("{}", "no format number"),
        (whole.replace('"format": 1', '"format": 7'), "format 7.*newer version of tessella"),
        (json.dumps(without(json.loads(whole), "metrics")), "metrics missing"),
    ):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(ReportError, match=message):
            read_report(tmp_path)
    file.write_bytes(b"\xff\xfe{}")
    with pytest.raises(ReportError, match="not UTF-8"):
        read_report(file)


def test_numbers_of_numpy_and_broken_text_are_stored(tmp_path: Path) -> None:
    report = full_report(curves=[], pictures=[])
    numbers = {"mean": np.float32(1.5), "values": [np.float16(1), 2], "spread": np.float64("inf")}
    report["metrics"]["gFID"] |= numbers
    report["subject"] |= {"parameters": np.int64(7), "tokens": (8, 8), "path": "\udcff.png"}
    write_report(tmp_path, report, {})
    read = read_report(tmp_path)
    assert read["metrics"]["gFID"]["mean"] == 1.5 and read["metrics"]["gFID"]["spread"] is None
    assert read["subject"]["parameters"] == 7 and read["subject"]["tokens"] == [8, 8]
    assert read["subject"]["path"] == "\\udcff.png"


def test_without_matplotlib_curves_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    report = full_report()
    for call in (require_charts, lambda: write_report(tmp_path, report, pictures_of(report))):
        with pytest.raises(MissingCharts, match=r"pip install 'tessella\[report\]'"):
            call()
    assert not list(tmp_path.iterdir())
    report["curves"] = []
    write_report(tmp_path, report, pictures_of(report))


def test_charts_hold_gaps_odd_names_and_page_colours() -> None:
    lines = [
        Line(name="_hidden $\\frac", x=[1, 2, 4], y=[1.0, None, float("nan")]),
        Line(name="漢字 <b>", x=[4, 64], y=[2.0, 3.0], spread=[0.1, None]),
    ]
    text = line_chart(lines, x_name="a\x00b $x", y_name="FID & <i>", key="one")
    assert text == line_chart(lines, x_name="a\x00b $x", y_name="FID & <i>", key="one")
    assert "currentColor" in text and "var(--series-1)" in text and "#fe0" not in text
    assert "FID &amp; &lt;i&gt;" in text and "a b $x" in text and "\x00" not in text
    assert set(re.findall(r'id="([^-"]+)-', text)) == {"one"}
    assert "font-family" not in text
    assert not re.search(r"<(style|metadata|script)", text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "n/a"),
        (float("inf"), "n/a"),
        (3_760_000, "3,760,000"),
        (20.0, "20"),
        (0.0, "0"),
        (113.8, "113.8"),
        (0.031241, "0.03124"),
        (-0.5, "-0.5"),
        (123456.78, "123,457"),
        (1.5e-7, "1.5e-07"),
        (3.2e20, "3.2e+20"),
    ],
)
def test_numbers_read_well(value: float | None, text: str) -> None:
    assert number_text(value) == text


def test_spreads_set_the_last_place() -> None:
    assert measured_text(113.8, 0.9) == ("113.80", "0.90")
    assert measured_text(21.34567, 0.0123) == ("21.346", "0.012")
    assert measured_text(0.5, 0.0) == ("0.5", "0")
    assert measured_text(12345.6, 321.0) == ("12,346", "321")
    assert measured_text(113.8123, 1e-7) == ("113.8", "1e-07")
    assert measured_text(5.0, None) == ("5", "")
    assert measured_text(None, 1.0) == ("n/a", "")
    assert measured_text(0.0, 0.1) == ("0", "0.1")
    assert column_texts([20.4, 20.16, None, 7.0]) == ["20.40", "20.16", "n/a", "7.00"]
    assert column_texts([20, 1381]) == ["20", "1,381"]
    assert fact_text([True, None, 1381, "x"]) == "yes, none, 1,381, x"


IMAGES = "Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth > 0)))"
WIDTH = "document.documentElement.scrollWidth"
SORTED = """(() => {
  const button = document.querySelectorAll("table.sortable button")[2];
  const column = () => [...document.querySelectorAll("table.sortable tbody tr")]
    .map((row) => row.cells[2].textContent);
  button.click();
  const up = column();
  button.click();
  return [up, column(), button.parentElement.getAttribute("aria-sort")];
})()"""


@pytest.mark.slow
@needs_chromium
def test_report_opens_without_a_complaint(written: Path) -> None:
    with browsing.Browser() as browser:
        page = written / "report.html"
        wide = browser.visit(page, [IMAGES, WIDTH, SORTED, "document.title"])
        narrow = browser.visit(page, [IMAGES, WIDTH], width=390, height=844, dark=True)
    for visit in (wide, narrow):
        assert visit.messages == []
        assert visit.outside == []
        assert visit.url in visit.requests
        assert visit.values[0] == [True, True, True]
    assert narrow.values[1] == 390
    up, down, state = wide.values[2]
    numbers = [float(text) for text in up if text != "n/a"]
    assert numbers == sorted(numbers) and len(numbers) == len(up) - 1
    assert up[-1] == down[-1] == "n/a" and state == "descending"
    assert [float(text) for text in down[:-1]] == numbers[::-1]
    assert support.NASTY_SHOWN in wide.values[3]


@pytest.mark.slow
@needs_chromium
def test_the_browser_notices_what_a_report_must_not_do(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<!doctype html><title>x</title><link rel=icon href='data:,'>"
        "<img src='https://example.invalid/a.png'><p style='width: 900px'>wide</p>"
        "<script>console.error('said', 1); setTimeout(() => { throw Error('thrown') })</script>",
        encoding="utf-8",
    )
    forbidden = tmp_path / "forbidden.html"
    forbidden.write_text(
        "<!doctype html><meta http-equiv=Content-Security-Policy content=\"default-src 'none'\">"
        "<title>x</title><link rel=icon href='data:,'><script>document.title = 'ran'</script>",
        encoding="utf-8",
    )
    shot = tmp_path / "shot.png"
    with browsing.Browser() as browser:
        visit = browser.visit(page, [WIDTH], width=390, screenshot=shot)
        refused = browser.visit(forbidden, ["document.title"])
        with pytest.raises(browsing.BrowserError, match="nothing is not defined"):
            browser.visit(page, ["nothing"])
        with pytest.raises(browsing.BrowserError, match="ERR_FILE_NOT_FOUND"):
            browser.visit(tmp_path / "missing.html")
    assert "https://example.invalid/a.png" in visit.outside
    assert "console.error: said 1" in visit.messages
    assert any(text.startswith("exception: Error: thrown") for text in visit.messages)
    assert visit.values[0] > 390
    with Image.open(shot) as picture:
        assert picture.width == 390
    assert refused.values == ["x"]
    assert any("Content Security Policy" in text for text in refused.messages)
