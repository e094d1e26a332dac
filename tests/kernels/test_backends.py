"""Which implementation runs: arguments, environment, missing packages, devices."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from tessella.kernels import backends
from tessella.kernels.backends import autocast_dtype, no_autocast, resolve_backend, triton_refusal
from tessella.kernels.bit_embedding.op import bit_embedding
from tessella.kernels.codebook_sum.op import codebook_embedding_sum

CPU, CUDA, FLOAT = torch.device("cpu"), torch.device("cuda"), torch.float32


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No environment of the caller's; triton is installed; no warning has been given."""
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    monkeypatch.setattr(backends, "_triton_installed", lambda: True)
    monkeypatch.setattr(backends, "_warned", set())
    monkeypatch.setattr(backends, "INTERPRETED", False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    yield


def test_auto_is_triton_on_cuda_and_the_reference_elsewhere() -> None:
    assert resolve_backend("auto", "op", CUDA, FLOAT) == "triton"
    assert resolve_backend("auto", "op", CPU, FLOAT) == "reference"
    assert resolve_backend("reference", "op", CUDA, FLOAT) == "reference"


def test_the_environment_decides_where_the_caller_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(backends.VARIABLE, "reference")
    assert resolve_backend("auto", "op", CUDA, FLOAT) == "reference"
    assert resolve_backend("triton", "op", CUDA, FLOAT) == "triton"
    monkeypatch.setenv(backends.VARIABLE, "triton")
    with pytest.raises(RuntimeError, match="op: TESSELLA_KERNELS 'triton' cannot run here"):
        resolve_backend("auto", "op", CPU, FLOAT)
    monkeypatch.setenv(backends.VARIABLE, "fast")
    with pytest.raises(ValueError, match=r"TESSELLA_KERNELS: expected one of .*, found 'fast'"):
        resolve_backend("auto", "op", CPU, FLOAT)


@pytest.mark.parametrize(
    ("device", "dtype", "changes", "reason"),
    [
        (CPU, FLOAT, {}, "the tensors are on cpu, not on an NVIDIA GPU"),
        (CUDA, torch.float64, {}, "no kernel computes in float64"),
        (CUDA, FLOAT, {"capability": (7, 5)}, "compute capability 7.5 is below 8.0"),
        (CUDA, FLOAT, {"missing": True}, "triton is not installed; pip install"),
        (CUDA, FLOAT, {"interpreted": True}, "TRITON_INTERPRET=1 runs on CPU tensors"),
        (CUDA, FLOAT, {"refusal": "too many rows"}, "too many rows"),
    ],
)
def test_every_refusal_has_a_reason(
    device: torch.device,
    dtype: torch.dtype,
    changes: dict[str, object],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "capability" in changes:
        capability = changes["capability"]
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    if "missing" in changes:
        monkeypatch.setattr(backends, "_triton_installed", lambda: False)
    if "interpreted" in changes:
        monkeypatch.setattr(backends, "INTERPRETED", True)
    refusal = changes.get("refusal")
    assert refusal or reason in str(triton_refusal(device, dtype))
    with pytest.raises(RuntimeError, match="op: backend 'triton' cannot run here: .*" + reason):
        resolve_backend("triton", "op", device, dtype, refusal=refusal)  # type: ignore[arg-type]
    if device is CUDA:
        with pytest.warns(UserWarning, match="op: the slower reference runs on CUDA: .*" + reason):
            found = resolve_backend("auto", "op", device, dtype, refusal=refusal)  # type: ignore[arg-type]
        assert found == "reference"  # and a second warning would be an error
        assert resolve_backend("auto", "op", device, dtype, refusal=refusal) == "reference"  # type: ignore[arg-type]


def test_a_backend_asked_for_by_name_never_falls_back() -> None:
    codes = torch.zeros(1, 2, 1, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="bit_embedding: backend 'triton' cannot run here"):
        bit_embedding(codes, torch.ones(3, 4), bits_per_group=3, backend="triton")
    with pytest.raises(RuntimeError, match="codebook_embedding_sum: backend 'triton' cannot"):
        codebook_embedding_sum(codes, torch.ones(1, 3, 4), backend="triton")


def test_autocast_is_off_where_it_does_not_exist() -> None:
    meta = torch.device("meta")
    assert autocast_dtype(CPU) is None and autocast_dtype(meta) is None
    with torch.autocast("cpu", torch.float16):
        assert autocast_dtype(CPU) == torch.float16 and autocast_dtype(meta) is None
        with no_autocast(CPU), no_autocast(meta):
            assert autocast_dtype(CPU) is None
    codes = torch.zeros(1, 2, 1, dtype=torch.int64, device=meta)
    embedded = bit_embedding(codes, torch.ones(3, 4, device=meta), bits_per_group=3)
    assert embedded.is_meta and embedded.shape == (1, 2, 4)
    summed = codebook_embedding_sum(codes, torch.ones(1, 3, 4, device=meta))
    assert summed.is_meta and summed.shape == (1, 2, 4)


WITHOUT_TRITON = """
import sys
import torch


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name == "triton" or name.startswith("triton."):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Blocked())
import tessella
from tessella.generators.masked import MaskBitConfig, MaskedGenerator
from tessella.generators.networks.bert import TransformerConfig
from tessella.kernels.bit_embedding.op import bit_embedding
from tessella.kernels.codebook_sum.op import codebook_embedding_sum
from tessella.tokens.tokens import Tokens, TokenSpec

codes = torch.zeros(1, 2, 1, dtype=torch.int64)
assert bit_embedding(codes, torch.ones(3, 4), bits_per_group=3).shape == (1, 2, 4)
assert codebook_embedding_sum(codes, torch.ones(1, 3, 4)).shape == (1, 2, 4)
try:
    bit_embedding(codes, torch.ones(3, 4), bits_per_group=3, backend="triton")
except RuntimeError as error:
    assert "triton is not installed" in str(error), error
else:
    raise AssertionError("ran without triton")
trunk = TransformerConfig(width=8, num_layers=1, num_heads=1)
config = MaskBitConfig(transformer=trunk, num_classes=2, embedding="fused")
spec = TokenSpec((2, 2), (2,) * 4)
generator = MaskedGenerator(config, spec)
generator(Tokens(torch.zeros(2, 4, 4, dtype=torch.int64), spec)).loss.backward()
assert not [name for name in sys.modules if name.split(".")[0] == "triton"]
"""


def test_everything_but_triton_works_without_triton() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    command = [sys.executable, "-W", "error", "-c", WITHOUT_TRITON]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
