"""Runs of the training script: in this process, forked, and as the command a user types."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import tessella
from tessella.train.run_folder import read_log
from tessella.train.tokenizer import main

ROOT = Path(tessella.__file__).parent
DEBUG = ROOT / "configs" / "tokenizer" / "debug.yaml"


@dataclass(frozen=True)
class Ended:
    """What a run left behind: statuses by rank, output of all ranks, its folder."""

    statuses: list[int]
    output: str
    out: Path

    def records(self, *without: str) -> list[dict[str, Any]]:
        """Lines of the log, less the named values."""
        return [
            {name: value for name, value in record.items() if name not in without}
            for record in read_log(self.out / "log.jsonl")
        ]

    def weights(self, step: int) -> dict[str, Tensor]:
        """Every tensor of every module in a checkpoint, by `module.name`."""
        folder = self.out / "checkpoints" / f"step_{step}"
        files = sorted(folder.glob("*.safetensors"))
        assert files, f"{folder}: no weights"
        return {f"{f.stem}.{name}": t for f in files for name, t in load_file(f).items()}

    def state(self, step: int) -> dict[str, Any]:
        """Optimizers and counters in a checkpoint."""
        path = self.out / "checkpoints" / f"step_{step}" / "state.pt"
        return torch.load(path, weights_only=True)


class Script:
    """Starts the forked runs; see `fork_server.py`."""

    def __init__(self) -> None:
        command = [sys.executable, "-W", "error", str(Path(__file__).with_name("fork_server.py"))]
        self._server = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )

    def _ask(self, job: dict[str, Any]) -> dict[str, Any]:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def __call__(
        self,
        out: Path,
        *arguments: str,
        config: Path = DEBUG,
        processes: int = 1,
        signals: dict[int, tuple[str, int]] | None = None,
        limit: int | None = None,
        curves: bool = False,
    ) -> Ended:
        """One run to its end.

        Args:
            out: Run folder.
            arguments: Further words of the command line.
            config: YAML file.
            processes: Processes of the run, connected by gloo.
            signals: By rank: a signal and the step at whose start the process sends it to itself.
            limit: Largest file that the run can write, in bytes: a full disk.
            curves: Whether matplotlib can be imported.
        """
        port, pids, outputs = _free_port(), [], []
        for rank in range(processes):
            env = {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
            if processes > 1:
                env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
                env |= {"LOCAL_WORLD_SIZE": str(processes)}
                env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            outputs.append(out.parent / f"{out.name}.{rank}.txt")
            job = {
                "argv": ["--config", str(config), "--out", str(out), *arguments],
                "output": str(outputs[-1]),
                "env": env,
                "signal": (signals or {}).get(rank),
                "limit": limit,
                "curves": curves,
            }
            pids.append(self._ask(job)["pid"])
        statuses = [self._ask({"wait": pid})["status"] for pid in pids]
        return Ended(statuses, "".join(path.read_text() for path in outputs), out)

    def close(self) -> None:
        """End the server."""
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def script() -> Iterator[Script]:
    """Runs `train/tokenizer.py` in processes of its own; they share the imports."""
    server = Script()
    yield server
    server.close()


@pytest.fixture(scope="session")
def debug_config() -> Path:
    """configs/tokenizer/debug.yaml."""
    return DEBUG


@pytest.fixture(scope="session")
def debug_run(script: Script, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """debug.yaml from beginning to end, a log line each step, one process."""
    ended = script(tmp_path_factory.mktemp("debug") / "run", "run.log_every=1", curves=True)
    assert ended.statuses == [0], ended.output
    return ended


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of twelve pictures to train on and five to validate with, 32x32 pixels."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 5)):
        (root / split).mkdir()
        for i in range(count):
            coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC)
            image.save(root / split / f"{i:02d}.png")
    return root


@pytest.fixture
def reset_accelerate() -> Iterator[None]:
    """accelerate keeps its state per process; a test that builds an Accelerator leaves none."""
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    PartialState._reset_state()


@pytest.fixture
def command(reset_accelerate: None) -> Callable[..., Result]:
    """`command("--out", ...)`: the command line in this process; returns click's result."""

    def run(*words: str | Path) -> Result:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        return CliRunner().invoke(main, [str(word) for word in words])

    return run
