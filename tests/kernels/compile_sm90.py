"""Compiles every kernel in its default configurations for sm_90, without a GPU, and prints JSON.

    python tests/kernels/compile_sm90.py

One object per kernel and configuration: registers, bytes of stack and of shared memory, and how
often each class of SASS instruction occurs. A process of its own: the stand-in driver stays in it.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from tessella.kernels.bit_embedding import fused as bit_embedding
from tessella.kernels.codebook_sum import fused as codebook_sum
from tessella.kernels.launch import Launch

CLASSES = ("HGMMA", "HMMA", "LDL", "STL", "RED", "ATOM", "ATOMG", "LDGSTS", "I2F", "STG")
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


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor without memory, aligned as torch's own are."""
    return torch.empty(shape, dtype=dtype, device="meta")


def bit_embedding_launches(
    dtype: torch.dtype,
    bits: int,
    groups: int,
    *,
    replace: bool = False,
    weights: torch.dtype | None = None,
) -> dict[str, Launch]:
    """Forward and backward at MaskBit's shape, or at BiGR's with a mask token.

    Weights of another type than the result are those of autocast.
    """
    weights = weights or dtype
    batch, tokens, width = 64, 256, 1024
    codes = meta(batch, tokens, groups, dtype=torch.int64)
    mask = meta(batch, tokens, 1 if replace else groups, dtype=torch.bool)
    place = "first" if replace else "last"
    settings: dict[str, Any] = {"bits_per_group": bits // groups, "values": "pm1"}
    forward = bit_embedding.forward_launch(
        codes,
        meta(width, bits, dtype=weights).t(),
        meta(width, dtype=weights),
        None if replace else meta(tokens + 1, width, dtype=weights),
        meta(1001, width, dtype=weights),
        meta(batch, dtype=torch.int64),
        mask,
        meta(width, dtype=weights) if replace else None,
        class_position=place,
        dtype=dtype,
        **settings,
    )
    backward = bit_embedding.backward_launch(
        meta(batch, tokens + 1, width, dtype=dtype),
        codes,
        mask,
        class_position=place,
        replace=replace,
        need_position=not replace,
        **settings,
    )
    return {"forward": forward, "backward": backward}


def codebook_sum_launches(dtype: torch.dtype, groups: int, size: int) -> dict[str, Launch]:
    """Forward and both backward kernels at UniTok's or MaskGIT's shape."""
    batch, tokens, width = 64, 256, 1024
    grad = meta(batch, tokens + 1, width, dtype=dtype)
    forward = codebook_sum.forward_launch(
        meta(batch, groups, tokens, dtype=torch.int64).transpose(1, 2),
        [meta(size, width, dtype=dtype) for _ in range(groups)],
        [size] * groups,
        meta(tokens + 1, width, dtype=dtype),
        meta(1001, width, dtype=dtype),
        meta(batch, dtype=torch.int64),
        meta(batch, tokens, groups, dtype=torch.bool),
        class_position="last",
    )
    is_last = meta(batch, tokens, groups, dtype=torch.bool)
    dense = codebook_sum.dense_launch(grad, is_last, class_position="last", need_position=True)
    order = meta(batch * tokens * groups, dtype=torch.int64)
    starts = meta(groups * size + 1, dtype=torch.int64)
    rows = codebook_sum.rows_launch(grad, order, starts, num_tokens=tokens, class_position="last")
    return {"forward": forward, "backward_dense": dense, "backward_rows": rows}


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
    """Compile everything and print one JSON object."""
    triton.runtime.driver.set_active(StandInDriver())
    names = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
    cases: dict[str, Callable[[], dict[str, Launch]]] = {}
    cases["bit_embedding 2x7 autocast"] = lambda: bit_embedding_launches(
        torch.bfloat16, 14, 2, weights=torch.float32
    )
    for dtype, name in names.items():
        cases[f"bit_embedding 2x7 {name}"] = lambda d=dtype: bit_embedding_launches(d, 14, 2)
    for dtype in (torch.float32, torch.bfloat16):
        name = names[dtype]
        cases[f"bit_embedding 2x9 {name}"] = lambda d=dtype: bit_embedding_launches(d, 18, 2)
        cases[f"bit_embedding 20x1 token {name}"] = lambda d=dtype: bit_embedding_launches(
            d, 20, 20, replace=True
        )
        cases[f"codebook_sum 8 {name}"] = lambda d=dtype: codebook_sum_launches(d, 8, 4096)
    cases["codebook_sum 1 bfloat16"] = lambda: codebook_sum_launches(torch.bfloat16, 1, 1025)
    cases["bit_embedding 2x30 float32"] = lambda: bit_embedding_launches(torch.float32, 60, 2)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for case, make in cases.items():
            for direction, launch in make().items():
                results[f"{case} {direction}"] = measure(launch, Path(folder))
    json.dump(results, sys.stdout, indent=1)


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
