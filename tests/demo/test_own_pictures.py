"""Pictures to fine-tune on: the made style, too few of them, classes, words and limits."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tessella.data.image_source import DataError
from tessella.data.sources import open_source
from tessella.demo.own_pictures import LEAST_PICTURES, blueprint, open_pictures, write_pictures

SIDE = 16


def save_pictures(folder: Path, count: int, *, size: tuple[int, int] = (24, 20)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", size, (number, 2 * number, 100)).save(folder / f"{number}.png")


def test_a_blueprint_has_white_lines_on_blue() -> None:
    image = Image.new("RGB", (8, 8), "white")
    image.paste((0, 0, 0), (4, 0, 8, 8))
    drawn = np.asarray(blueprint(image))
    assert (drawn[:, :3] == (24, 62, 128)).all()  # white is paper
    assert (drawn[:, 3:5] == (235, 242, 250)).all()  # both sides of an edge are ink
    shade = np.round(np.array([24, 62, 128]) + 0.35 * np.array([211, 180, 122]))
    assert (drawn[:, 5:] == shade).all()  # black is shaded


@pytest.mark.parametrize("count", [0, 1, 3, LEAST_PICTURES - 1])
def test_too_few_pictures_are_refused(tmp_path: Path, count: int) -> None:
    save_pictures(tmp_path / "few", count)
    (tmp_path / "few" / "notes.txt").write_text("no picture")
    with pytest.raises(DataError, match=r"few: (no images found|found \d+ pictures)") as found:
        open_pictures(str(tmp_path / "few"), SIDE)
    assert "expected" in str(found.value)
    assert not count or f"found {count} pictures" in str(found.value)


def test_pictures_that_cannot_be_read_do_not_count(tmp_path: Path) -> None:
    save_pictures(tmp_path / "mixed", 5)
    for number in range(20):
        (tmp_path / "mixed" / f"broken{number}.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="found 5 pictures that can be read, expected at least 16"):
        open_pictures(str(tmp_path / "mixed"), SIDE)
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        open_pictures(str(tmp_path / "nowhere"), SIDE)


def test_classes_are_kept_where_the_generator_has_them_and_words_always(tmp_path: Path) -> None:
    for name in ("cat", "garden_gnome"):
        save_pictures(tmp_path / "mine" / name, 12)
    (tmp_path / "mine" / "cat" / "3.txt").write_text("a very dark cat")
    pictures = open_pictures(str(tmp_path / "mine"), SIDE)
    written = write_pictures(
        pictures, tmp_path / "w", side=SIDE, classes=("ship", "cat"), most=100, seconds=60
    )
    assert (written.train, written.val, written.there, written.broken) == (18, 6, 18, 0)
    sources = [open_source(tmp_path / "w", split) for split in ("train", "val")]
    samples = [source.read(i) for source in sources for i in range(len(source))]
    assert sources[0].classes == ("ship", "cat") and len(samples) == 24
    assert {sample.image.size for sample in samples} == {(SIDE, SIDE)}
    labels = {sample.caption: sample.label for sample in samples}
    assert labels == {"cat": 1, "a very dark cat": 1, "garden gnome": None}


def test_pictures_without_classes_are_called_like_their_folder(tmp_path: Path) -> None:
    save_pictures(tmp_path / "old-ships", 40)
    pictures = open_pictures(str(tmp_path / "old-ships"), SIDE)
    written = write_pictures(pictures, tmp_path / "w", side=SIDE, classes=(), most=20, seconds=60)
    assert (written.train, written.val, written.there) == (20, 10, 30)
    train = open_source(tmp_path / "w", "train")
    assert {train.read(i).caption for i in range(20)} == {"old ships"}
    assert len({train.read(i).image.getpixel((0, 0)) for i in range(20)}) == 20


def test_reading_ends_in_time(tmp_path: Path) -> None:
    written = write_pictures(
        open_pictures(None, SIDE), tmp_path / "w", side=SIDE, classes=("face",), most=100, seconds=0
    )
    assert (written.train, written.val) == (LEAST_PICTURES // 2, LEAST_PICTURES // 2)
    val = open_source(tmp_path / "w", "val")
    assert all(val.read(i).image.getpixel((0, 0))[2] > 100 for i in range(len(val)))
