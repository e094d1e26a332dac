"""Runs of the training scripts: in this process, forked, and as the command a user types."""

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
from click import Command
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import tessella.train.generator
import tessella.train.tokenizer
from tessella.checkpoints import load_tokenizer, save_tokenizer
from tessella.codec.encode import encode_source
from tessella.data.sources import open_source
from tessella.data.transforms import AugmentConfig
from tessella.tokenizers.build import build_tokenizer
from tessella.tokenizers.networks.conv_autoencoder import ConvAutoencoderConfig
from tessella.tokenizers.quantizers.lfq import LFQConfig
from tessella.tokenizers.vqgan import VQGANConfig
from tessella.train.run_folder import read_log

CONFIGS = Path(tessella.__file__).parent / "configs"
DEBUG = {name: CONFIGS / name / "debug.yaml" for name in ("tokenizer", "generator")}
KINDS = {
    "bibert": "generator.transformer={binarized_attention: bibert, attention_dropout: 0}",
    "bivit": "generator.transformer={binarized_attention: bivit, attention_dropout: 0}",
    "binary_qk": "generator.transformer={binarized_attention: binary_qk, attention_dropout: 0}",
    "low_bit": "generator.transformer={width: 64, attention: low_bit, attention_dropout: 0}",
    "bld": "generator={type: bld, transformer: {width: 32, num_layers: 1, num_heads: 2}}",
    "bigr": "generator={type: bigr, transformer: {width: 32, num_layers: 1, num_heads: 2},"
    " head: {width: 32, num_blocks: 1}}",
    "bfn": "generator={type: bfn, transformer: {width: 32, num_layers: 1, num_heads: 2}}",
    "ar": "generator={type: ar, transformer: {width: 32, num_layers: 1, num_heads: 2}}",
}
"""Overrides that make the debug run one of another generator, or of another attention."""


def quick_samples(kind: str) -> str:
    """Override of how a run of that kind draws its samples: in two steps, where it can choose."""
    num_steps = "null" if kind == "ar" else 2
    return f"samples={{num_steps: {num_steps}, guidance: 2.0}}"


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

    @staticmethod
    def differences(ours: Any, theirs: Any, where: str = "") -> list[str]:
        """Paths at which two nests of dicts, lists, tensors and numbers differ in any bit."""
        if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
            same = ours.dtype == theirs.dtype and torch.equal(ours, theirs)
            return [] if same else [where]
        if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
            return [
                f
                for key in ours
                for f in Ended.differences(ours[key], theirs[key], f"{where}.{key}")
            ]
        if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple):
            if len(ours) != len(theirs):
                return [where]
            pairs = enumerate(zip(ours, theirs, strict=True))
            return [f for i, (a, b) in pairs for f in Ended.differences(a, b, f"{where}.{i}")]
        return [] if type(ours) is type(theirs) and ours == theirs else [where]


class Server:
    """The process that forks the runs; see `fork_server.py`."""

    def __init__(self) -> None:
        command = [sys.executable, "-W", "error", str(Path(__file__).with_name("fork_server.py"))]
        self._server = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def close(self) -> None:
        """End the server."""
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait()


@dataclass(frozen=True)
class Script:
    """Starts forked runs of one training script, with its debug.yaml where nothing else is said."""

    name: str
    server: Server
    words: tuple[str, ...] = ()

    def __call__(
        self,
        out: Path,
        *arguments: str,
        config: Path | None = None,
        processes: int = 1,
        signals: dict[int, tuple[str, int]] | None = None,
        limit: int | None = None,
        curves: bool = False,
    ) -> Ended:
        """One run to its end.

        Args:
            out: Run folder.
            arguments: Further words of the command line.
            config: YAML file; None: debug.yaml.
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
            words = ["--config", str(config or DEBUG[self.name]), "--out", str(out)]
            job = {
                "script": self.name,
                "argv": [*words, *self.words, *arguments],
                "output": str(outputs[-1]),
                "env": env,
                "signal": (signals or {}).get(rank),
                "limit": limit,
                "curves": curves,
            }
            pids.append(self.server.ask(job)["pid"])
        statuses = [self.server.ask({"wait": pid})["status"] for pid in pids]
        return Ended(statuses, "".join(path.read_text() for path in outputs), out)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Processes of their own that share the imports."""
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="session")
def script(server: Server) -> Script:
    """Runs `train/tokenizer.py`."""
    return Script("tokenizer", server)


@pytest.fixture(scope="session")
def generator_script(server: Server, generator_words: tuple[str, ...]) -> Script:
    """Runs `train/generator.py` on the small pictures and their tokenizer."""
    return Script("generator", server, generator_words)


@pytest.fixture(scope="session")
def debug_config() -> Path:
    """configs/tokenizer/debug.yaml."""
    return DEBUG["tokenizer"]


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


def make_tokenizer(folder: Path, *, seed: int = 0, resolution: int = 16) -> Path:
    """A folder with an untrained bit tokenizer: stride 4, tokens of 8 bits."""
    torch.manual_seed(seed)
    networks = ConvAutoencoderConfig(
        base_channels=8, channel_multipliers=(1, 1, 2), num_res_blocks=1, norm_groups=4
    )
    config = VQGANConfig(resolution=resolution, autoencoder=networks, quantizer=LFQConfig(bits=8))
    save_tokenizer(build_tokenizer(config), folder)
    return folder


@pytest.fixture(scope="session")
def small_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tokenizer that encodes fast."""
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer") / "model")


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in three classes, 16x16 pixels: ten of each to train on, two to validate with."""
    root = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 2)):
        for name in ("blob", "dot", "sky"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
                image = Image.fromarray(coarse).resize((16, 16), Image.Resampling.BICUBIC)
                image.save(root / split / name / f"{i:02d}.png")
    return root


@pytest.fixture(scope="session")
def store(small_tokenizer: Path, classes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token store of the classes, three views of every picture."""
    out = tmp_path_factory.mktemp("store") / "store"
    encode_source(
        load_tokenizer(small_tokenizer),
        open_source(classes, "train"),
        out,
        augment=AugmentConfig(random_crop=0.5, flip=True),
        views=3,
        progress=False,
    )
    return out


@pytest.fixture(scope="session")
def generator_words(small_tokenizer: Path, classes: Path) -> tuple[str, ...]:
    """Overrides of configs/generator/debug.yaml: the small tokenizer and pictures."""
    return (f"tokenizer={small_tokenizer}", f"data.source={classes}")


@pytest.fixture(scope="session")
def generator_run(generator_script: Script, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """The generators' debug.yaml from beginning to end, a log line each step, one process."""
    out = tmp_path_factory.mktemp("generator") / "run"
    views = ("data.views=2", "data.augment={random_crop: 0.5, flip: true}")
    ended = generator_script(out, "run.log_every=1", *views, curves=True)
    assert ended.statuses == [0], ended.output
    return ended


@pytest.fixture
def reset_accelerate() -> Iterator[None]:
    """accelerate keeps its state per process; a test that builds an Accelerator leaves none."""
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    PartialState._reset_state()


@pytest.fixture
def command(reset_accelerate: None) -> Callable[..., Result]:
    """`command("--out", ...)`: train/tokenizer.py in this process; returns click's result."""
    return lambda *words: _invoke(tessella.train.tokenizer.main, *words)


@pytest.fixture
def generator_command(
    reset_accelerate: None, generator_words: tuple[str, ...]
) -> Callable[..., Result]:
    """`generator_command("--out", ...)`: train/generator.py, debug.yaml on the small pictures."""
    start = ("--config", DEBUG["generator"], *generator_words)
    return lambda *words: _invoke(tessella.train.generator.main, *start, *words)


def _invoke(main: Command, *words: str | Path) -> Result:
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    return CliRunner().invoke(main, [str(word) for word in words])
