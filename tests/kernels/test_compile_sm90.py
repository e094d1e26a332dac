"""Every kernel in its default configurations compiled for sm_90, on a machine without a GPU.

The figures are those of Triton 3.9, and a budget is the figure plus a tenth; other versions assign
registers differently (3.6: up to 217 where 3.9 takes 177) and may use what the hardware has.
"""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tessella.tests.kernels.changed import WHEN_CHANGED
from tessella.tests.kernels.sm90 import (
    binary_attention,
    bit_embedding,
    bit_packing,
    codebook_sum,
    low_bit_attention,
    packed_linear,
)
from tessella.tests.kernels.sm90.figure import Figure

pytestmark = [
    pytest.mark.slow,
    WHEN_CHANGED,
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None,
        reason="triton is not installed; pip install 'tessella[triton]'",
    ),
]

PRODUCTS = ("HGMMA", "IGMMA", "QGMMA", "HMMA", "IMMA", "QMMA")
SHARED = 227 * 1024
"""Bytes of shared memory that one program may use on sm_90."""

FAMILIES: dict[str, dict[str, Figure]] = {
    "packed_linear": packed_linear.FIGURES,
    "low_bit_attention": low_bit_attention.FIGURES,
    "binary_attention": binary_attention.FIGURES,
    "bit_packing": bit_packing.FIGURES,
    "bit_embedding": bit_embedding.FIGURES,
    "codebook_sum": codebook_sum.FIGURES,
}


def compiled(family: str, cache: Path) -> dict[str, dict[str, Any]]:
    """What `sm90/compile.py` measures of every launch of a family, with an empty cache."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(cache)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, str(Path(__file__).parent / "sm90" / "compile.py"), family]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def faults(found: dict[str, Any], expected: Figure) -> list[str]:
    """What a compiled launch should not be."""
    wrong = []
    if importlib.metadata.version("triton").startswith("3.9."):
        for resource, budget in (("registers", expected.registers), ("shared", expected.shared)):
            if found[resource] > 1.1 * budget:
                wrong.append(f"{resource}: expected {budget} or a tenth more")
    if found["registers"] > 255 or found["shared"] > SHARED:
        wrong.append("more than a program may use")
    if found["stack"] or found["LDL"] or found["STL"]:
        wrong.append("spills")
    if found["RED"] or found["ATOM"] or found["ATOMG"]:
        wrong.append("atomics")
    if {kind for kind in PRODUCTS if found[kind]} != set(expected.products.split()):
        wrong.append(f"products: expected {expected.products or 'none'}")
    if not expected.narrow_stores and not found["STG"] == found["STG.128"] > 0:
        wrong.append("stores of less than 16 bytes")
    return wrong


@pytest.mark.parametrize("family", FAMILIES)
def test_every_launch_compiles_as_intended(family: str, tmp_path: Path) -> None:
    """There is a figure for each launch, and each launch keeps to its figure."""
    measured, figures = compiled(family, tmp_path), FAMILIES[family]
    assert sorted(measured) == sorted(figures)
    wrong = {name: faults(measured[name], figures[name]) for name in figures}
    report = [f"{name}: {'; '.join(w)}: {measured[name]}" for name, w in wrong.items() if w]
    assert not report, "\n".join(report)
