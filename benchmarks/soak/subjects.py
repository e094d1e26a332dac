"""What is fuzzed: for each kind of file valid ones, and how it is read to the end.

A reader prints what it read, or a hash of it, so that a silent change shows; it meets errors as the
commands do (`one_clear_error`), so that what it lets through would be a traceback for a user.
"""

import dataclasses
import hashlib
import importlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from tessella.checkpoints import load_tokenizer, save_generator, save_tokenizer
from tessella.cli.main import main
from tessella.cli.options import one_clear_error
from tessella.config import build_config, load_config
from tessella.generators.build import build_generator
from tessella.generators.masked import MaskBitConfig
from tessella.sample.samples import SampleFolder
from tessella.tokenizers.vqgan import VQGAN, VQGANConfig
from tessella.tokens.store import TokenStore, load_tokens
from tessella.train.command import run_script
from tessella.train.run_folder import RunFolder
from tessella.train.run_log import forget_after
from tessella.train.tokenizer_recipe import TrainTokenizerConfig

RECIPE = Path(__file__).parents[2] / "configs" / "tokenizer" / "debug.yaml"
AUTOENCODER = {"base_channels": 8, "channel_multipliers": [1, 2], "norm_groups": 4}
TOKENIZER = {"resolution": 16, "autoencoder": AUTOENCODER, "quantizer": {"type": "lfq", "bits": 4}}
TRANSFORMER = {"width": 16, "num_layers": 1, "num_heads": 1}
GENERATOR = {"type": "maskbit", "num_classes": 2, "transformer": TRANSFORMER}


@dataclasses.dataclass(frozen=True)
class Subject:
    """One kind of file.

    Args:
        room: Room of the package that reads it, for the report.
        files: The files that are changed, by path below the folder of all subjects.
        read: Reads a copy of that folder and prints what it read.
        checked: Whether the files carry checksums, so that a change must be noticed.
    """

    room: str
    files: tuple[str, ...]
    read: Callable[[Path], None]
    checked: bool = False


def command(*words: object) -> None:
    """Run `tessella WORDS` as the shell would."""
    main([str(word) for word in words], prog_name="tessella")


def run(*words: object) -> None:
    """Run `tessella WORDS` and go on afterwards."""
    main([str(word) for word in words], standalone_mode=False)


def reader(read: Callable[[Path], Any]) -> Callable[[Path], None]:
    """A reader that prints the result of `read`; errors are told as the commands tell them."""

    def work(root: Path) -> None:
        import click

        @click.command()
        @one_clear_error
        def shown() -> None:
            click.echo(_text(read(root)))

        shown([], prog_name="soak")

    return work


def _text(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        return "; ".join(f"{name} {_text(value[name])}" for name in sorted(value))
    return repr(value)


def make(root: Path) -> None:
    """Write the valid files of every subject below a folder."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    pictures = [
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)) for _ in range(6)
    ]
    images = root / "images"
    for label in ("a", "b"):
        (images / label).mkdir(parents=True)
    for number, ending in enumerate(("png", "jpg", "webp", "bmp", "gif", "tiff")):
        pictures[number].save(images / "ab"[number % 2] / f"{number}.{ending}")
    with tarfile.open(root / "set.tar", "w") as tar:
        for number, picture in enumerate(pictures):
            blob = io.BytesIO()
            picture.save(blob, "PNG")
            record = json.dumps({"class_id": number % 2, "class_name": "ab"[number % 2]}).encode()
            for name, data in ((f"{number}.png", blob.getvalue()), (f"{number}.json", record)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    arrays = rng.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    np.savez(root / "set.npz", arr_0=arrays)
    np.savez_compressed(root / "packed.npz", arr_0=arrays)
    eight = torch.from_numpy(arrays.transpose(0, 3, 1, 2).copy())
    save_tokenizer(
        VQGAN(build_config(VQGANConfig, TOKENIZER)), root / "tokenizer", probe=(eight, "noise")
    )
    tokenizer = load_tokenizer(root / "tokenizer")
    generator = build_generator(build_config(MaskBitConfig, GENERATOR), tokenizer.spec)
    generator.tokenizer = tokenizer
    save_generator(generator, root / "generator", tokenizer_path=root / "tokenizer")
    run("encode", "--tokenizer", root / "tokenizer", images, "--out", root / "store")
    tokenizer.encode(eight.float() / 127.5 - 1).save(root / "tokens.safetensors")
    drawn = ("--num", 4, "--num-steps", 2, "--out", root / "samples")
    run("sample", "--generator", root / "generator", *drawn)
    (root / "run.yaml").write_text(RECIPE.read_text())
    config = load_config(TrainTokenizerConfig, RECIPE)
    folder = RunFolder(root / "run", config, resume=False, writes=True)
    folder.begin()
    weights = {"tokenizer": {name: t for name, t in tokenizer.state_dict().items()}}
    folder.save_checkpoint(5, weights, {"rng": torch.get_rng_state()}, keep=2)
    for step in range(6):
        folder.log({"step": step, "loss": 1 / (step + 1)})
    # Names of tensors as in public files: the tests of the importers have them.
    _, state = importlib.import_module("tessella.tests.importers.test_vqgan").example("maskgit")
    torch.save({"state_dict": state}, root / "public.pt")
    torch.save(state, root / "public_old.pt", _use_new_zipfile_serialization=False)
    save_file({name: t.contiguous() for name, t in state.items()}, root / "public.safetensors")


def _encode(*names: str) -> Callable[[Path], None]:
    def work(root: Path) -> None:
        sources = [root / name for name in names]
        words = ("--tokenizer", root / "tokenizer", *sources, "--out", root / "out", "--json")
        command("encode", *words)

    return work


def _import(name: str) -> Callable[[Path], None]:
    def work(root: Path) -> None:
        words = ("import", "maskgit-vq", root / name, "--resolution", 16, "--out", root / "out")
        command(*words, "--json")

    return work


def _recipe(root: Path) -> None:
    def train(
        config: TrainTokenizerConfig, out: Path, *, resume: bool, changed: bool, command: str
    ) -> dict[str, Any]:
        print(config)
        return {}

    import click

    @click.command()
    def script() -> None:
        run_script(
            "train/tokenizer.py",
            train,
            TrainTokenizerConfig,
            default_config=RECIPE,
            config_path=root / "run.yaml",
            out=root / "out",
            resume=False,
            changed=False,
            overrides=(),
        )

    script([], prog_name="train/tokenizer.py")


def _store(root: Path) -> Any:
    store = TokenStore(root / "store")
    columns = {"packed": store.packed, "labels": store.labels, "psnr": store.psnr}
    return columns | {"header": str(store.header), "ids": str(store.ids)}


def _samples(root: Path) -> Any:
    folder = SampleFolder(root / "samples")
    found = [folder.read(index) for index in range(len(folder))]
    return [(sample.id, sample.label) for sample in found], folder.classes


def _tokenizer(root: Path) -> Any:
    tokenizer = load_tokenizer(root / "tokenizer")
    return tokenizer.state_dict() | {"card": tokenizer.card}


def _checkpoint(root: Path) -> Any:
    config = load_config(TrainTokenizerConfig, RECIPE)
    found = RunFolder(root / "run", config, resume=True, writes=True).load_checkpoint()
    assert found is not None
    return found[0]["tokenizer"] | found[1]


def _log(root: Path) -> Any:
    return forget_after(root / "run" / "log.jsonl", 3)


PICTURES = tuple(
    f"images/{'ab'[n % 2]}/{n}.{ending}"
    for n, ending in enumerate(("png", "jpg", "webp", "bmp", "gif", "tiff"))
)
SUBJECTS: dict[str, Subject] = {
    "picture": Subject("data", PICTURES, _encode("images")),
    "tar": Subject("data", ("set.tar",), _encode("set.tar")),
    "npz": Subject("data", ("set.npz", "packed.npz"), _encode("set.npz", "packed.npz")),
    "store": Subject(
        "tokens",
        ("store/store.json", "store/shard-00000.safetensors", "store/.tessella.json"),
        reader(_store),
        checked=True,
    ),
    "probe of a store": Subject(
        "tokens", ("store/probe.safetensors",), reader(_store), checked=True
    ),
    "token file": Subject(
        "tokens",
        ("tokens.safetensors",),
        reader(lambda root: load_tokens(root / "tokens.safetensors").indices),
        checked=True,
    ),
    "tokenizer": Subject(
        "checkpoints",
        tuple(f"tokenizer/{n}" for n in ("config.yaml", "card.json", "model.safetensors")),
        reader(_tokenizer),
        checked=True,
    ),
    "probe of a tokenizer": Subject(
        "tokenizers",
        ("tokenizer/probe.safetensors",),
        lambda root: command("verify", root / "tokenizer", "--json"),
        checked=True,
    ),
    "generator": Subject(
        "checkpoints",
        tuple(f"generator/{n}" for n in ("config.yaml", "card.json", "model.safetensors")),
        lambda root: command("info", root / "generator", "--json"),
        checked=True,
    ),
    "samples": Subject("sample", ("samples/images.jsonl",), reader(_samples), checked=True),
    "recipe": Subject("config", ("run.yaml",), _recipe),
    "checkpoint": Subject(
        "train",
        tuple(
            f"run/checkpoints/step_5/{name}"
            for name in ("state.pt", "tokenizer.safetensors", "checksums.json")
        ),
        reader(_checkpoint),
        checked=True,
    ),
    "log": Subject("train", ("run/log.jsonl",), reader(_log)),
    "public checkpoint": Subject("importers", ("public.pt",), _import("public.pt")),
    "old public checkpoint": Subject("importers", ("public_old.pt",), _import("public_old.pt")),
    "public safetensors": Subject(
        "importers", ("public.safetensors",), _import("public.safetensors")
    ),
}
