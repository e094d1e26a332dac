"""Two gloo processes with a share of the images each measure what one process measures."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

WORKER = Path(__file__).with_name("statistics_worker.py")
TOLERANCE = 1e-6
"""Relative, for sums of floats in another order; integers and what comes of the bank are equal."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """What one process, and each rank of two, found."""
    folder = tmp_path_factory.mktemp("processes")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": "1",
    }
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


@pytest.mark.parametrize("kind", ["interleaved", "contiguous"])
def test_two_processes_equal_one(runs: dict[str, dict[str, Tensor]], kind: str) -> None:
    names = [name for name in runs["single"] if name.startswith(f"{kind}.")]
    assert len(names) == 13
    for name in names:
        expected, found = runs["single"][name], runs["first"][name]
        tolerance = 0 if ".exact." in name else TOLERANCE
        scale = float(expected.double().abs().max())
        torch.testing.assert_close(
            found, expected, rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_both_ranks_hold_the_same(runs: dict[str, dict[str, Tensor]]) -> None:
    assert runs["first"].keys() == runs["second"].keys()
    for name, value in runs["first"].items():
        assert torch.equal(value, runs["second"][name]), name


def test_the_comparison_covers_something(runs: dict[str, dict[str, Tensor]]) -> None:
    single = runs["single"]
    assert int(single["interleaved.exact.duplicates.twins"].sum()) == 5
    assert float(single["interleaved.exact.manifold"].min()) > 0
    assert float(single["interleaved.frechet.distance"]) > 1
    assert single["interleaved.exact.bank.numbers"].tolist() == list(range(61))
