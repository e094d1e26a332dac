"""Tokens of arrays and `.npy` files of other programs."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tessella.data.image_source import DataError
from tessella.data.npz_source import NpzSource
from tessella.tokens.code_arrays import read_code_file, tokens_of_codes
from tessella.tokens.tokens import Tokens, TokenSpec

SPEC = TokenSpec((2, 3), (4, 3, 2))


@pytest.fixture
def tokens() -> Tokens:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, SPEC.codebook_sizes, (5, 6, 3))
    return Tokens(torch.from_numpy(codes), SPEC)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64, np.uint64])
def test_every_usual_shape_and_type(tokens: Tokens, dtype: type, tmp_path: Path) -> None:
    entries = tokens.indices.numpy().astype(dtype)
    joint = tokens.regroup((24,)).indices[..., 0].numpy().astype(dtype)
    arrays = (entries, entries.reshape(5, 2, 3, 3), joint, joint.reshape(5, 2, 3))
    for array in arrays:
        assert tokens_of_codes(array, SPEC).equal(tokens), array.shape
        np.save(tmp_path / "a.npy", array)
        assert read_code_file(tmp_path / "a.npy", SPEC).equal(tokens)
    assert tokens_of_codes(torch.from_numpy(joint.astype(np.int64)), SPEC).equal(tokens)
    bits = TokenSpec((2, 3), (2,) * 3)
    assert tokens_of_codes(entries[..., :1] % 2, TokenSpec((6,), (2,))).spec.num_tokens == 6
    assert tokens_of_codes(np.zeros((0, 6), dtype), bits).indices.shape == (0, 6, 3)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((5, 6)), "expected integers, found float64"),
        (np.zeros((5, 6), bool), "expected integers, found bool"),
        (
            np.zeros((5, 7), int),
            r"\(B, 6, 3\), \(B, 2, 3, 3\), \(B, 6\) or \(B, 2, 3\) for .*found \(5, 7\)",
        ),
        (np.zeros(6, int), r"found \(6,\)"),
        (np.full((5, 6), 24), "found 24, expected 0 to 23, the joint indices"),
        (np.full((5, 6), -1), "found -1, expected 0 to 23"),
        (np.full((5, 6, 3), 2), r"indices\[0, 0, 2\]: found 2, expected 0 to 1"),
        (np.full((5, 6, 3), 2**64 - 1, np.uint64), "expected less than 2\\*\\*62"),
    ],
)
def test_other_arrays_are_refused(array: np.ndarray, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        tokens_of_codes(array, SPEC)
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=rf"a\.npy: .*{message}"):
        read_code_file(tmp_path / "a.npy", SPEC)


def test_other_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "many.npy.npz", a=np.zeros(3))
    (tmp_path / "many.npy.npz").rename(tmp_path / "many.npy")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("0 1 2")
    (tmp_path / "empty.npy").write_bytes(b"")
    np.save(tmp_path / "short.npy", np.zeros((5, 6), int))
    blob = (tmp_path / "short.npy").read_bytes()
    (tmp_path / "short.npy").write_bytes(blob[:-8])
    (tmp_path / "huge.npy").write_bytes(blob.replace(b"(5, 6)", b"(9**9)"))
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(ValueError, match=rf"{path.name}: .*(\.npy file of integers|archive)"):
            read_code_file(path, SPEC)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_code_file(tmp_path / "none.npy", SPEC)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<i8', 'fortran_order': False, 'shape': (5, 6, 3), ",  # TokenError of tokenize
        "{[]: 1}",  # TypeError
        "(" * 5000,  # MemoryError or SyntaxError of the parser
        "  x\n y",  # IndentationError
        "{'descr': '<i8', 'fortran_order': False, 'shape': (10**12, 6, 3), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (5, 6, 3), }",
        "{'descr': 3, 'fortran_order': False, 'shape': (5, 6, 3), }",
    ],
)
def test_a_damaged_header_is_told(header: str, tmp_path: Path) -> None:
    path, text = tmp_path / "a.npy", header.encode()
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(720))
    with pytest.raises(ValueError, match=r"a\.npy: not a whole \.npy file of integers"):
        read_code_file(path, SPEC)
    archive = tmp_path / "a.npz"
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(archive, "w", compression) as file:
            file.write(path, "arr_0.npy")
        with pytest.raises(DataError, match=r"a\.npz: not a readable \.npz file"):
            NpzSource(archive)
