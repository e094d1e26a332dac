"""Compiles the kernels of one operation for sm_90, without a GPU, and prints JSON.

    python tests/kernels/sm90/compile.py bit_embedding

One object per launch of the module of that name beside this file: registers, bytes of stack and
of shared memory, and how often each class of SASS instruction occurs. A process of its own: the
stand-in driver stays in it.
"""

import importlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from tessella.kernels.launch import Launch

PRODUCTS = ("HGMMA", "IGMMA", "QGMMA", "HMMA", "IMMA", "QMMA")
CLASSES = (*PRODUCTS, "LDL", "STL", "RED", "ATOM", "ATOMG", "LDGSTS", "I2F", "MUFU", "STG")
"""SASS instructions that say how a kernel was lowered."""

OPCODE = r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[T\d] )?([A-Z0-9.]+)"
"""An instruction and its modifiers in a line of SASS, behind address and predicate."""


class StandInDriver(DriverBase):
    """An sm_90 that compiles and cannot run."""

    def __init__(self) -> None:
        pass

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_benchmarker(self) -> Any:
        return None

    def get_device_interface(self) -> Any:
        return None

    def get_empty_cache_for_benchmark(self) -> Any:
        return None

    def clear_cache(self, cache: Any) -> None:
        pass


def measure(launch: Launch, folder: Path) -> dict[str, Any]:
    """Compile a launch and read its resources from the cubin."""
    compiled = launch.compile()
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tools = triton.knobs.nvidia
    usage = _output([tools.cuobjdump.path, "-res-usage", str(cubin)])
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    sass = _output([tools.nvdisasm.path, "-c", str(cubin)])
    opcodes = re.findall(OPCODE, sass, flags=re.MULTILINE)
    counts = {name: sum(code.split(".")[0] == name for code in opcodes) for name in CLASSES}
    counts["STG.128"] = sum(code.startswith("STG") and ".128" in code for code in opcodes)
    return {
        "registers": int(found[1]),
        "stack": int(found[2]),
        "shared": compiled.metadata.shared,
        "instructions": len(opcodes),
        **counts,
    }


def main() -> None:
    """Compile every launch of the family named on the command line and print one JSON object."""
    family = importlib.import_module(f"tessella.tests.kernels.sm90.{sys.argv[1]}")
    triton.runtime.driver.set_active(StandInDriver())
    with tempfile.TemporaryDirectory() as folder:
        results = {name: measure(launch, Path(folder)) for name, launch in family.launches()}
    json.dump(results, sys.stdout, indent=1)


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
