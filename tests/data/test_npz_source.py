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
    assert (len(source), source.split, source.name) == (5, "val", "batch")
    assert source.classes == ("0", "1", "2", "3", "4")
    assert [source.read(i).label for i in range(5)] == [0, 1, 2, 3, 4]
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


def test_labels_are_checked(tmp_path: Path) -> None:
    np.savez(tmp_path / "none.npz", arr_0=PIXELS)
    none = NpzSource(tmp_path / "none.npz")
    assert none.classes == () and none.read(0).label is None
    for labels in (np.arange(4), np.arange(5) - 1, np.arange(5.0), np.arange(5) + 10**6):
        np.savez(tmp_path / "bad.npz", arr_0=PIXELS, arr_1=labels)
        with pytest.raises(DataError, match=r"arr_1 is .* expected"):
            NpzSource(tmp_path / "bad.npz").read(0)


def test_what_is_no_covariance_is_refused(tmp_path: Path) -> None:
    for sigma, message in (
        (-np.eye(3), "negative eigenvalue"),
        (np.triu(np.ones((3, 3))), "not symmetric"),
        (np.eye(2), "is \\(2, 2\\), its mean"),
        (np.full((3, 3), np.nan), "not finite"),
    ):
        np.savez(tmp_path / "bad.npz", arr_0=PIXELS, mu=np.zeros(3), sigma=sigma)
        with pytest.raises(DataError, match=message):
            NpzSource(tmp_path / "bad.npz").moments()
    np.savez(tmp_path / "half.npz", arr_0=PIXELS, mu=np.zeros(3), sigma=np.eye(3), mu_s=np.ones(2))
    assert set(NpzSource(tmp_path / "half.npz").moments()) == {"mu", "sigma"}


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
