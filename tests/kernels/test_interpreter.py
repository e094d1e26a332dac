"""Runs `test_triton.py` on CPU tensors, in Triton's interpreter and a process of its own."""

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.version import Version


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed; pip install 'tessella[triton]'",
)
def test_contract_holds_in_the_interpreter() -> None:
    installed = importlib.metadata.version("triton")
    if Version(installed) < Version("3.9"):
        pytest.skip(f"the interpreter of triton {installed} cannot loop with numpy 2.4 and later")
    tests = Path(__file__).with_name("test_triton.py")
    command = [sys.executable, "-m", "pytest", str(tests), "-q", "-p", "no:cacheprovider"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    environment.pop("TESSELLA_KERNELS", None)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= 20, done.stdout[-2_000:]
