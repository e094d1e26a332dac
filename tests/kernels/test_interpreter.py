"""Runs every `test_triton_*.py` on CPU tensors, in Triton's interpreter, each in a process."""

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from packaging.version import Version

HERE = Path(__file__).parent
PASSED = {
    "binary_attention": 45,
    "bit_packing": 100,
    "embeddings": 27,
    "low_bit_attention": 80,
    "packed_linear": 144,
}
"""Tests that at least must pass, by file."""


def test_every_contract_is_listed() -> None:
    found = {path.stem.removeprefix("test_triton_") for path in HERE.glob("test_triton_*.py")}
    assert found == set(PASSED)


@pytest.fixture(scope="module")
def runs() -> Iterator[Callable[[str], subprocess.CompletedProcess[str]]]:
    """A finished pytest process of a file; two of them run at a time."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    environment.pop("TESSELLA_KERNELS", None)

    def run(name: str) -> subprocess.CompletedProcess[str]:
        tests = str(HERE / f"test_triton_{name}.py")
        command = [sys.executable, "-m", "pytest", tests, "-q", "-p", "no:cacheprovider"]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    with ThreadPoolExecutor(2) as pool:
        done = {name: pool.submit(run, name) for name in PASSED}
        yield lambda name: done[name].result()


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed; pip install 'tessella[triton]'",
)
@pytest.mark.parametrize("name", PASSED)
def test_contract_holds_in_the_interpreter(name: str, request: pytest.FixtureRequest) -> None:
    installed = importlib.metadata.version("triton")
    if Version(installed) < Version("3.9"):
        pytest.skip(f"the interpreter of triton {installed} cannot loop with numpy 2.4 and later")
    done = request.getfixturevalue("runs")(name)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= PASSED[name], done.stdout[-2_000:]
