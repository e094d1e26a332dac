"""Names of decoded pictures: inside their folder, and each of them once."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessella.codec.file_names import file_name


@pytest.mark.parametrize(
    ("image_id", "name"),
    [
        ("a.jpg", "a.png"),
        ("cat/v1.2/a.b.jpeg", "cat/v1.2/a.b.png"),
        ("../../etc/passwd", "etc/passwd.png"),
        ("/etc/passwd", "etc/passwd.png"),
        ("//server/share", "server/share.png"),
        ("a/../../b", "a/b.png"),
        ("", "image.png"),
        ("..", "image.png"),
        ("grid.png", "grid_1.png"),
        ("GRID.jpg", "GRID_1.png"),
        ("x/grid.png", "x/grid.png"),
        ("x.png/y.jpg", "x.png_/y.png"),
        ("x.PNG/y.jpg", "x.PNG_/y.png"),
        ("nul\0byte", "nul_byte.png"),
        ("caf\udce9.jpg", "caf\udce9.png"),
        ("e" * 300 + ".jpg", "e" * 200 + ".png"),
        ("é" * 150 + "/" + "é" * 150, "é" * 100 + "/" + "é" * 100 + ".png"),
    ],
)
def test_names(image_id: str, name: str) -> None:
    assert file_name(image_id, 0, set()) == name


def test_names_are_given_once() -> None:
    taken: set[str] = set()
    ids = ["a.jpg", "a.png", "A.jpg", "a_1.png", "./a.gif", "x.png", "x.png/y", "x.png_/y"]
    names = [file_name(i, 0, taken) for i in ids]
    assert names == [
        *("a.png", "a_1.png", "A_2.png", "a_1_1.png"),
        *("a_3.png", "x.png", "x.png_/y.png", "x.png_/y_1.png"),
    ]
    assert file_name("a.jpg", 3, taken) == "a_aug3.png"
    assert file_name("a_aug3.jpg", 0, taken) == "a_aug3_1.png"


PARTS = st.lists(
    st.one_of(
        st.sampled_from(["..", ".", "", "a.png", "A.PNG", "grid.png", "b", "b.jpg", "x" * 260]),
        st.text(max_size=5),
    ),
    max_size=4,
)


@settings(max_examples=100, deadline=None)
@given(st.lists(PARTS.map("/".join), max_size=12))
def test_any_names_can_be_written_together(
    tmp_path_factory: pytest.TempPathFactory, ids: list[str]
) -> None:
    folder, taken = tmp_path_factory.mktemp("names"), set()
    names = [file_name(i, number % 2, taken) for number, i in enumerate(ids)]
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert Path(os.path.realpath(path)).is_relative_to(folder.resolve())
        path.write_bytes(b"")
    assert len({name.casefold() for name in names}) == len(ids)
    assert sum(p.is_file() for p in folder.rglob("*")) == len(ids)
