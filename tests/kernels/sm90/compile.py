"""Compiles the kernels of one operation for sm_90, without a GPU, and prints JSON.

    python tests/kernels/sm90/compile.py bit_embedding

One object per launch of the module of that name beside this file: registers, bytes of stack and
of shared memory, and how often each class of SASS instruction occurs. A process of its own: the
stand-in driver stays in it.
"""

import importlib
import json
import re
import struct
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

OPCODE = r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P[T\d] )?([A-Z0-9.]+)"
"""Address and instruction with its modifiers in a line of SASS, around the predicate."""

BYTES = 16
"""Length of an instruction."""


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


def measure(launches: dict[str, Launch], folder: Path) -> dict[str, dict[str, Any]]:
    """Compile every launch and read its resources from the cubin.

    The disassembler takes far longer to start than to read a kernel, so it starts once, for the
    code of all kernels one after another.
    """
    compiled = {name: launch.compile() for name, launch in launches.items()}
    codes = {name: code_of(kernel.asm["cubin"]) for name, kernel in compiled.items()}
    opcodes = disassemble(codes, folder)
    found = {}
    for name, kernel in compiled.items():
        cubin = folder / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        usage = _output([triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(cubin)])
        used = re.search(r"REG:(\d+) STACK:(\d+)", usage)
        assert used, usage
        counts = {kind: sum(c.split(".")[0] == kind for c in opcodes[name]) for kind in CLASSES}
        wide = [c for c in opcodes[name] if c.startswith("STG") and ".128" in c]
        found[name] = {
            "registers": int(used[1]),
            "stack": int(used[2]),
            "shared": kernel.metadata.shared,
            "instructions": len(opcodes[name]),
            **counts,
            "STG.128": len(wide),
        }
    return found


def code_of(cubin: bytes) -> bytes:
    """The instructions in a cubin, which is an ELF file: its one section `.text.KERNEL`."""
    (table,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(count)]
    texts = []
    for name, _, _, _, offset, length in sections:
        start = sections[names][4] + name
        if cubin[start : cubin.index(b"\0", start)].startswith(b".text."):
            texts.append(cubin[offset : offset + length])
    (text,) = texts
    return text


def disassemble(codes: dict[str, bytes], folder: Path) -> dict[str, list[str]]:
    """The opcodes of every kernel, with modifiers."""
    (folder / "code.bin").write_bytes(b"".join(codes.values()))
    tool = triton.knobs.nvidia.nvdisasm.path
    sass = _output([tool, "--binary", "SM90a", "--no-dataflow", str(folder / "code.bin")])
    placed = [(int(address, 16), code) for address, code in re.findall(OPCODE, sass, re.MULTILINE)]
    assert len(placed) == sum(map(len, codes.values())) // BYTES, "an instruction was not read"
    opcodes, end = {}, 0
    for name, code in codes.items():
        start, end = end, end + len(code)
        opcodes[name] = [opcode for address, opcode in placed if start <= address < end]
    return opcodes


def main() -> None:
    """Compile every launch of the family named on the command line and print one JSON object."""
    family = importlib.import_module(f"tessella.tests.kernels.sm90.{sys.argv[1]}")
    triton.runtime.driver.set_active(StandInDriver())
    with tempfile.TemporaryDirectory() as folder:
        results = measure(dict(family.launches()), Path(folder))
    json.dump(results, sys.stdout, indent=1)


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
