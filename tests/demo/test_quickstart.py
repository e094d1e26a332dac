"""`make demo` in small: the page of the first minute, the fine-tuning, and what is refused."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

import tessella
from tessella.checkpoints import load_generator, load_tokenizer
from tessella.demo import demo_page, quickstart, tuning
from tessella.demo.commands import CommandStopped
from tessella.demo.quickstart import choose_folder, main

ROOT = Path(tessella.__file__).parent


@pytest.fixture
def tiny(with_words: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A tiny model in the place of the shipped one, and a folder to work in, which is returned."""
    monkeypatch.setattr(quickstart, "GENERATOR", str(with_words))
    monkeypatch.setattr(demo_page, "cores", lambda: 1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def demo(*words: str) -> Result:
    return CliRunner().invoke(main, words)


def save_pictures(folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        Image.linear_gradient("L").resize((70, 64)).rotate(9 * number).save(
            folder / f"{number}.png"
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("models", "names"),
    [("with_words", "green trees"), ("with_classes", "")],
    ids=["words", "none"],
)
def test_the_demo_makes_what_it_says(
    models: str,
    names: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tiny: Path,
    in_process: list[str],
) -> None:
    shipped = load_generator(request.getfixturevalue(models))
    monkeypatch.setattr(quickstart, "GENERATOR", shipped.origin)
    save_pictures(tiny / "green trees", 24)
    result = demo("--minutes", "0.02", "--data", "green trees", "--out", "out")
    assert result.exit_code == 0, result.output
    assert in_process == [
        f"train {what} --config out/{what}.yaml --out out/{what}"
        for what in ("tokenizer", "generator")
    ]
    out = Path("out")
    for promised in ("index.html", "tokenizer/tokenizer", "generator/generator"):
        assert (out / promised).exists() and str(out / promised) in result.stdout
    tokenizer = load_tokenizer(out / "tokenizer" / "tokenizer")
    generator = load_generator(out / "generator" / "generator")
    assert tokenizer.card is not None and generator.card is not None
    assert tokenizer.card["init"]["fingerprint"] == shipped.tokenizer.fingerprint
    assert generator.card["init"]["fingerprint"] == shipped.fingerprint
    assert generator.tokenizer.fingerprint == tokenizer.fingerprint != shipped.tokenizer.fingerprint
    assert generator.classes == shipped.classes
    page = (out / "index.html").read_text(encoding="utf-8")
    for text in ("Drawn by class", "Where the time went", "all 6 that were kept apart"):
        assert text in page
    assert ("red apple" in page) == ("Drawn by words" in page) == shipped.reads_text
    found = re.search(r"kept apart come back with ([\d.]+) dB before and ([\d.]+) dB after", page)
    assert found and result.stdout.count(f"{found[2]} dB, before {found[1]}") == 1
    # What was drawn before and after: by the name of the folder, or by nothing.
    assert page.count("<span>green trees</span>") == 8 * bool(names)
    assert page.count('alt="after, ') == page.count('alt="before, ') == 6 + 8
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)


def test_ctrl_c_leaves_the_page_of_the_first_minute(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def stop(*words: str) -> None:
        seen.append(Path("out/index.html").read_text(encoding="utf-8"))
        raise CommandStopped("stopped")

    monkeypatch.setattr(tuning, "tessella", stop)
    result = demo("--minutes", "0.02", "--out", "out")
    assert result.exit_code == 130 and "stopped; out/index.html shows the shipped" in result.output
    page = Path("out/index.html").read_text(encoding="utf-8")
    assert "A fine-tuning of 0.02 minutes was started at" in seen[0] and "Drawn by words" in seen[0]
    assert "was stopped before it ended" in page and "Drawn by words" in page
    strip = re.compile(r'<p class="status">.*?</p>')
    assert strip.sub("", page) == strip.sub("", seen[0])


def test_a_picture_of_ones_own_is_encoded(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*words: str) -> None:
        raise CommandStopped("stopped")

    monkeypatch.setattr(tuning, "tessella", stop)
    Image.linear_gradient("L").resize((300, 150)).save("my & photo.jpg")
    assert demo("--picture", "my & photo.jpg", "--minutes", "0.02").exit_code == 130
    page = Path("runs/demo/index.html").read_text(encoding="utf-8")
    assert "my &amp; photo.jpg" in page and re.search("256 . 128 pixels", page)


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "-inf"])
def test_minutes_in_which_nothing_can_be_done_are_refused(tiny: Path, minutes: str) -> None:
    result = demo("--minutes", minutes)
    assert result.exit_code == 2 and f"more than 0 minutes, found {minutes}" in result.output
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--data", "none"), "none: no images found; expected"),
        (("--data", "three"), "--data three: found 3 pictures that can be read, expected at least"),
        (("--data", "nowhere"), "nowhere: no such file or folder"),
        (("--picture", "nowhere.png"), "nowhere.png"),
        (("--picture", "three/notes.txt"), "notes.txt"),
        (("--out", "three"), "--out three: is not empty, there is 0.png, 1.png, 2.png and 1 more"),
        (("--out", "three/0.png"), "--out three/0.png: is not empty, there is a file"),
    ],
)
def test_what_cannot_be_used_is_told_before_any_work(
    tiny: Path, words: tuple[str, ...], message: str
) -> None:
    Path("none").mkdir()
    save_pictures(Path("three"), 3)
    Path("three/notes.txt").write_text("no picture")
    before = sorted(tiny.rglob("*"))
    result = demo(*words)
    assert result.exit_code == 1 and message in result.output, result.output
    assert len(result.output.strip().splitlines()) == 1 and sorted(tiny.rglob("*")) == before


def test_the_demo_takes_the_first_free_folder(tiny: Path) -> None:
    assert choose_folder(None) == Path("runs/demo")
    Path("runs/demo").mkdir(parents=True)
    assert choose_folder(None) == Path("runs/demo")
    Path("runs/demo/mine.txt").write_bytes(b"mine")
    assert choose_folder(None) == Path("runs/demo-2")
    Path("runs/demo-2").write_bytes(b"a file")
    assert choose_folder(None) == Path("runs/demo-3")
    assert choose_folder(Path("elsewhere")) == Path("elsewhere")
    assert Path("runs/demo/mine.txt").read_bytes() == b"mine"


def test_make_demo_removes_nothing() -> None:
    recipe = (ROOT / "Makefile").read_text().split("\ndemo:")[1].split("\n\n")[0]
    assert "demo/quickstart.py" in recipe and "rm " not in recipe
