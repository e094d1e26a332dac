"""Two gloo processes with half the batch each equal one process with all of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

WORKER = Path(__file__).with_name("ranks_worker.py")
BITS = ("lfq", "lfq_groups", "bsq")
VECTORS = ("vq", "vq_sphere", "ema_vq", "ema_vq_no_init", "ema_vq_sphere")
CASES = (*BITS, *VECTORS, "lecam", "adaptive")
TOLERANCE = 1e-6
"""Sums of the same numbers in another order, relative to the largest entry."""
ENTROPY_TOLERANCE = 5e-6
"""The codebook gradient of the softmax entropy is a difference of logarithms that nearly cancel."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """What one process, and each rank of two, found."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    processes = {}
    for name, rank, ranks in (("single", 0, 1), ("first", 0, 2), ("second", 1, 2)):
        arguments = [str(rank), str(ranks), str(folder / "rendezvous"), str(folder / name)]
        processes[name] = subprocess.Popen(
            [sys.executable, str(WORKER), *arguments],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
    for name, process in processes.items():
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, f"{name}: {errors}"
    return {name: load_file(folder / name) for name in processes}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(runs: dict[str, dict[str, Tensor]], case: str) -> None:
    names = [name for name in runs["single"] if name.startswith(f"{case}.")]
    assert names
    for name in names:
        expected, found = runs["single"][name], runs["first"][name]
        tolerance = ENTROPY_TOLERANCE if case == "vq" else TOLERANCE
        scale = expected.abs().max().clamp(min=1e-3).item() if expected.numel() else 1.0
        torch.testing.assert_close(
            found, expected, rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_both_ranks_hold_the_same_state(runs: dict[str, dict[str, Tensor]]) -> None:
    assert runs["first"].keys() == runs["second"].keys()
    for name, value in runs["first"].items():
        assert torch.equal(value, runs["second"][name]), name


@pytest.mark.parametrize("case", ["ema_vq", "ema_vq_no_init", "ema_vq_sphere"])
def test_revival_took_place(runs: dict[str, dict[str, Tensor]], case: str) -> None:
    """Otherwise the comparison would not cover it: revived codes share the smallest count."""
    counts = runs["single"][f"{case}.1.state.counts"]
    assert (counts == counts.min()).sum() > 1
