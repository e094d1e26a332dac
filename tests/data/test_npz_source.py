"""Reference batches as .npz: mapped or compressed, checked, with statistics beside them."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from tessella.data.image_source import DataError
from tessella.data.npz_source import NpzSource
from tessella.data.sources import open_source

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_come_back(tmp_path: Path, save) -> None:
    save(tmp_path / "batch.npz", arr_0=PIXELS, arr_1=np.arange(5))
    source = open_source(tmp_path / "batch.npz", "val")
    assert isinstance(source, NpzSource)
    assert (len(source), source.split, source.name, source.classes) == (5, "val", "batch", ())
    for i in range(5):
        assert np.array_equal(np.asarray(source.read(i).image), PIXELS[i])
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(np.asarray(again.read(4).image), PIXELS[4])
    assert source.moments() == {}
    with pytest.raises(IndexError):
        source.read(5)


def test_not_compressed_images_are_mapped(tmp_path: Path) -> None:
    np.savez(tmp_path / "batch.npz", mu=np.zeros(3), arr_0=PIXELS)
    assert isinstance(NpzSource(tmp_path / "batch.npz")._images, np.memmap)


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", arr_0=PIXELS)
    np.savez(tmp_path / "b.npz", arr_0=PIXELS[::-1])
    a, b = (NpzSource(tmp_path / name) for name in ("a.npz", "b.npz"))
    assert a.fingerprint() != b.fingerprint()


def test_statistics(tmp_path: Path) -> None:
    moments = {"mu": np.ones(4), "sigma": np.eye(4), "mu_s": np.zeros(2), "sigma_s": np.eye(2)}
    np.savez(tmp_path / "batch.npz", arr_0=PIXELS, **moments)
    found = NpzSource(tmp_path / "batch.npz").moments()
    assert set(found) == set(moments)
    assert all(np.array_equal(found[name], moments[name]) for name in moments)


def test_what_is_no_batch_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "batch.npz"
    for stored, message in (
        ({"arr_0": PIXELS.astype(np.float32)}, "arr_0 is float32 .* expected uint8"),
        ({"arr_0": PIXELS[..., 0]}, r"arr_0 is uint8 \(5, 8, 8\)"),
        ({"arr_0": PIXELS[:0]}, "holds no images"),
        ({"images": PIXELS}, "has no arr_0"),
        ({"arr_0": np.array([{}], dtype=object)}, "Python objects"),
    ):
        np.savez(file, **stored)
        with pytest.raises(DataError, match=message):
            NpzSource(file)
    np.savez(file, arr_0=PIXELS)
    for cut in (10, file.stat().st_size // 2):
        file.write_bytes(file.read_bytes()[:cut])
        with pytest.raises(DataError, match=r"not a readable \.npz"):
            NpzSource(file)
