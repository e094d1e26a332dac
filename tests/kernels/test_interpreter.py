"""Runs every `test_triton_*.py` on CPU tensors, in Triton's interpreter, each in a process."""

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.version import Version

from tessella.tests.kernels.changed import WHEN_CHANGED

HERE = Path(__file__).parent
PASSED = {
    "low_bit_attention": 80,
    "packed_linear": 144,
    "binary_attention": 45,
    "embeddings": 27,
    "bit_packing": 100,
}
"""Tests that at least must pass, by file, those that take longest first."""


def test_every_contract_is_listed() -> None:
    found = {path.stem.removeprefix("test_triton_") for path in HERE.glob("test_triton_*.py")}
    assert found == set(PASSED)


@pytest.mark.slow
@WHEN_CHANGED
@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed; pip install 'tessella[triton]'",
)
@pytest.mark.parametrize("name", PASSED)
def test_contract_holds_in_the_interpreter(name: str) -> None:
    installed = importlib.metadata.version("triton")
    if Version(installed) < Version("3.9"):
        pytest.skip(f"the interpreter of triton {installed} cannot loop with numpy 2.4 and later")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    for variable in ("TESSELLA_KERNELS", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):
        environment.pop(variable, None)
    command = [sys.executable, "-m", "pytest", str(HERE / f"test_triton_{name}.py"), "-q"]
    command += ["-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= PASSED[name], done.stdout[-2_000:]
