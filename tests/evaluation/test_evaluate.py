"""One call that measures whatever is named, and writes a report where a folder is given."""

from pathlib import Path

import pytest
import torch

import tessella
from tessella.data.images import save_png

Folders = tuple[Path, Path]
FAST = {"protocol": "val-paired", "features": "random", "progress": False, "cache": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of 32 pixels in a split `val`, without classes."""
    folder = tmp_path_factory.mktemp("data")
    rng = torch.Generator().manual_seed(0)
    for i in range(8):
        save_png(torch.rand(3, 32, 32, generator=rng) * 2 - 1, folder / "val" / f"{i}.png")
    return folder


def test_a_tokenizer_is_measured_by_path_or_as_it_is(folders: Folders, data: Path) -> None:
    tokenizer = tessella.load_tokenizer(folders[1])
    by_path = tessella.evaluate(tokenizer=folders[1], data=str(data), **FAST)
    as_it_is = tessella.evaluate(tokenizer=tokenizer, data=str(data), **FAST)
    assert by_path is not None and as_it_is is not None
    assert by_path.protocol.id == as_it_is.protocol.id
    assert by_path.metrics["psnr"].mean == as_it_is.metrics["psnr"].mean
    assert (by_path.subject["name"], as_it_is.subject["name"]) == (str(folders[1]), "vqgan")


def test_a_report_is_written_where_a_folder_is_given(
    folders: Folders, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    found = tessella.evaluate(tokenizer=folders[1], data=str(data), out=out, **FAST)
    assert found is not None and found.written["protocol"]["id"] == found.protocol.id
    assert (out / "report.html").is_file() and (out / "report.json").is_file()
    with pytest.raises(FileExistsError, match="exists already"):
        tessella.evaluate(tokenizer=folders[1], data=str(data), out=out, **FAST)
    with pytest.raises(
        FileExistsError, match="is an input of this command, which is never replaced"
    ):
        tessella.evaluate(tokenizer=folders[1], data=str(data), out=data, overwrite=True, **FAST)
    assert len(list((data / "val").iterdir())) == 8


def test_what_cannot_be_measured_is_refused(folders: Folders, data: Path) -> None:
    with pytest.raises(ValueError, match="nothing to measure"):
        tessella.evaluate(data=str(data))
    with pytest.raises(ValueError, match="give one of generator, tokenizer and samples"):
        tessella.evaluate(samples=data, tokenizer=folders[1])
    with pytest.raises(TypeError, match="evaluate: num_steps unknown, or only of use with a gen"):
        tessella.evaluate(tokenizer=folders[1], num_steps=3)
    generator = tessella.load_generator(folders[0])
    with pytest.raises(ValueError, match="tokenizer: a loaded generator has its tokenizer"):
        tessella.evaluate(generator=generator, tokenizer=folders[1], data=str(data))
    with pytest.raises(TypeError, match="tokenizer: expected a tokenizer or its path, found Mask"):
        tessella.evaluate(tokenizer=generator, data=str(data))
    with pytest.raises(ValueError, match="repeats"):
        tessella.evaluate(tokenizer=folders[1], data=str(data), repeats=0)
