"""The kill test: random SIGKILLs of trainings and of encode, restarted until they end.

The result must equal that of an uninterrupted run bit for bit, and nothing may be left over.
"""

import dataclasses
import functools
import hashlib
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import tessella.train.generator
import tessella.train.tokenizer
from tessella.checkpoints import save_tokenizer
from tessella.cli.main import main
from tessella.config import build_config
from tessella.tokenizers.vqgan import VQGAN, VQGANConfig
from tessella.tokens.store import TokenStore

from . import process
from .subjects import TOKENIZER

CONFIGS = Path(__file__).parents[2] / "configs"
MOST_ROUNDS = 60
"""Restarts of one case, after which it counts as one that never ends."""


@dataclasses.dataclass(frozen=True)
class Target:
    """Something that is killed.

    Args:
        start: Starts it in an output folder, with the folder of its data, and whether it was
            started there before.
        result: Hashes of what must be equal, by name.
    """

    start: Callable[[Path, Path, bool], None]
    result: Callable[[Path], dict[str, str]]


def make(root: Path) -> None:
    """Write a few pictures of two classes, and a tokenizer that reads them."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 4)):
        for number in range(count):
            folder = root / "pictures" / split / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            coarse.resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{number:02d}.png")
    torch.manual_seed(0)
    save_tokenizer(VQGAN(build_config(VQGANConfig, TOKENIZER)), root / "tokenizer")


def _script(kind: str, *words: str) -> Callable[[Path, Path, bool], None]:
    module = {"tokenizer": tessella.train.tokenizer, "generator": tessella.train.generator}[kind]

    def start(out: Path, data: Path, again: bool) -> None:
        for name in [name for name in sys.modules if name.startswith("matplotlib")]:
            sys.modules[name] = None  # type: ignore[assignment]  # curves take longer than a run
        given = ["--config", str(CONFIGS / kind / "debug.yaml"), "--out", str(out), *words]
        given += [f"data.source={data / 'pictures'}"]
        given += [f"tokenizer={data / 'tokenizer'}"] * (kind == "generator")
        given += ["--resume"] * (again and (out / "config.yaml").exists())
        sys.argv = [f"train/{kind}.py", *given]
        module.main()

    return start


def _files(pattern: str) -> Callable[[Path], dict[str, str]]:
    def result(out: Path) -> dict[str, str]:
        found = sorted(path for path in out.glob(pattern) if path.is_file())
        return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}

    return result


def _checkpoint(out: Path) -> dict[str, str]:
    """Weights, optimizers and counters of the last checkpoint, and the final model."""
    newest = max((out / "checkpoints").glob("step_*"), key=lambda path: int(path.name[5:]))
    state = torch.load(newest / "state.pt", weights_only=True)
    state.pop("seconds", None)  # how long it took
    found = _files(f"checkpoints/{newest.name}/*.safetensors")(out)
    found |= _files("*/model.safetensors")(out)
    return found | {"state": hashlib.sha256(_bytes(state)).hexdigest()}


def _bytes(value: Any) -> bytes:
    if isinstance(value, torch.Tensor):
        return str((value.dtype, value.shape)).encode() + value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return b"".join(repr(key).encode() + _bytes(value[key]) for key in sorted(value, key=str))
    if isinstance(value, list | tuple):
        return b"".join(map(_bytes, value))
    return repr(value).encode()


def _encode(out: Path, data: Path, again: bool) -> None:
    if (out / "store").exists():
        return
    words = ["encode", "--tokenizer", str(data / "tokenizer"), str(data / "pictures")]
    words += ["--batch-size", "2", "--views", "20", "--flip", "--out", str(out / "store")]
    main([*words, *["--resume"] * again], prog_name="tessella")


def _store(out: Path) -> dict[str, str]:
    store = TokenStore(out / "store")
    return _files("store/*.safetensors")(out) | {"ids": repr(store.ids)}


SHORT = ("run.preview_every=10", "run.evaluate_every=20", "run.checkpoint_every=3")
TARGETS: dict[str, Target] = {
    "encode": Target(_encode, _store),
    "tokenizer": Target(_script("tokenizer", *SHORT), _checkpoint),
    "generator": Target(_script("generator", *SHORT), _checkpoint),
}


class Kills:
    """Kill tests of one seed.

    Args:
        folder: Folder for the runs, which is filled.
        seed: Seed of the moments of the kills.
        only: Names of targets; empty: all.
    """

    def __init__(self, folder: Path, seed: int, only: tuple[str, ...] = ()) -> None:
        self.folder, self.seed, self.names = folder, seed, only or tuple(TARGETS)
        self.kills = self.rounds = 0
        self.findings: list[dict[str, Any]] = []
        self._whole: dict[str, tuple[dict[str, str], float]] = {}
        self._data = folder / "data"
        made = process.run(lambda: make(self._data), folder / "data.txt", limit=300)
        if made.status:
            raise RuntimeError(f"the data could not be made:\n{made.output}")

    def run(self, most: int, until: float = float("inf")) -> None:
        """Run whole cases until there were `most` kills, or until a time of `time.monotonic`."""
        case = 0
        while self.kills < most and time.monotonic() < until:
            self.run_case(case)
            case += 1

    def run_case(self, case: int) -> None:
        """Kill one target at random moments, and start it again, until it ends by itself."""
        name = self.names[case % len(self.names)]
        target, rng = TARGETS[name], np.random.default_rng([self.seed, case])
        whole, seconds = self._uninterrupted(name)
        out, log = self.folder / f"kill-{case}", self.folder / f"kill-{case}.txt"
        for started in range(MOST_ROUNDS):
            limit = float(rng.uniform(0.02, 1.1)) * seconds if started < 8 else 600.0
            start = functools.partial(target.start, out, self._data, started > 0)
            ended = process.run(start, log, limit=limit)
            self.rounds += 1
            if ended.status == 0:
                break
            if not ended.stopped:
                self._found(case, name, f"status {ended.status}: {ended.output.strip()[-400:]}")
                return
            self.kills += 1
        try:
            result = target.result(out)
        except (OSError, ValueError) as error:
            self._found(case, name, f"no result: {error}")
            return
        if wrong := [
            key for key in whole.keys() | result.keys() if whole.get(key) != result.get(key)
        ]:
            self._found(case, name, f"differs from the uninterrupted run: {sorted(wrong)}")
        left = [str(p.relative_to(out)) for p in out.rglob("*") if _is_left_over(p.name)]
        if left:
            self._found(case, name, f"left over: {left}")
        if not wrong and not left:
            shutil.rmtree(out)
            log.unlink()

    def _uninterrupted(self, name: str) -> tuple[dict[str, str], float]:
        """Result and seconds of a run that nobody kills."""
        if name not in self._whole:
            out = self.folder / f"whole-{name}"
            start = TARGETS[name].start
            log = self.folder / f"whole-{name}.txt"
            ended = process.run(lambda: start(out, self._data, False), log, limit=600)
            if ended.status:
                raise RuntimeError(f"{name}: an uninterrupted run fails:\n{ended.output}")
            self._whole[name] = TARGETS[name].result(out), ended.seconds
        return self._whole[name]

    def _found(self, case: int, name: str, about: str) -> None:
        self.findings.append({"case": case, "target": name, "about": about})
        print(f"kill case {case}, {name}: {about}", file=sys.stderr, flush=True)

    def summary(self) -> dict[str, Any]:
        """Numbers of kills and starts, and the findings."""
        return {
            "seed": self.seed,
            "kills": self.kills,
            "starts": self.rounds,
            "findings": self.findings,
        }


def _is_left_over(name: str) -> bool:
    return name.endswith((".partial", ".old", ".unfinished", ".replaced", ".writer"))
