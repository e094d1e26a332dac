"""Model folders: `config.yaml`, `model.safetensors` and `card.json`, without pickles.

The config rebuilds the module. The card describes it and holds the fingerprint: a hash of config
and weights that token stores repeat, and that detects damage. A tokenizer's folder may also hold
`probe.safetensors`, a few images with the PSNR it reached (`tokenizers/probe.py`).
"""

import difflib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from .config import build_config, read_yaml, to_dict, to_yaml
from .documents import read_json
from .files import atomic_folder
from .generators.base import Generator
from .generators.build import GeneratorFileConfig, TokensConfig, build_generator
from .tokenizers.base import Tokenizer
from .tokenizers.build import build_tokenizer, tokenizer_config
from .tokenizers.probe import PROBE, store_probe

CONFIG, WEIGHTS, CARD = "config.yaml", "model.safetensors", "card.json"
_BUNDLED = Path(__file__).parent / "assets" / "models"


class CheckpointError(ValueError):
    """A model folder that is missing, incomplete or damaged."""


def fingerprint(config: dict[str, Any], state: dict[str, torch.Tensor]) -> str:
    """Hash of a config and of every tensor's name, type, shape and bytes, 32 hexadecimal digits.

    The config is hashed as it is stored in the file, so a field that a later version adds, with
    its default, does not change the fingerprint of models without it.
    """
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def save_tokenizer(
    tokenizer: Tokenizer,
    path: str | os.PathLike[str],
    *,
    card: dict[str, Any] | None = None,
    overwrite: bool = False,
    inputs: Iterable[str | os.PathLike[str]] = (),
    run: str | None = None,
    dtype: torch.dtype | None = None,
    probe: tuple[torch.Tensor, str] | None = None,
) -> dict[str, Any]:
    """Write a tokenizer's folder atomically and return its card.

    Args:
        tokenizer: Tokenizer from `build_tokenizer`, with its `config`.
        path: Folder to create.
        card: Further facts: data, licence, command, seed, steps, metrics. Facts computed here
            override them, so the card of a loaded model can be passed on.
        overwrite: Whether to replace an existing tokenizer that tessella wrote.
        inputs: Files and folders that the model was read from, which are never replaced.
        run: Id of the training run; if given, only a tokenizer of the same run is replaced.
        dtype: Type of float weights in the file, e.g. torch.float16 for half the size; None:
            unchanged. Loading gives float32 again.
        probe: A few 8-bit images (B, 3, R, R) and a description of their source, stored with the
            PSNR that the weights in the file reach, for `verify_probe`.

    Raises:
        FileExistsError: If the folder exists and must stay; see `files.check_replaceable`.
        SaveError: If writing fails.
    """
    facts = {
        "kind": "tokenizer",
        "system": tokenizer.config.type,
        "tokens": str(tokenizer.spec),
        "bits_per_image": tokenizer.spec.bits_per_image,
        "resolution": tokenizer.resolution,
        "parameters": tokenizer.num_parameters(),
    }
    with atomic_folder(
        path, kind="tokenizer", overwrite=overwrite, inputs=inputs, facts={"run": run}
    ) as folder:
        written = _write(folder, tokenizer, tokenizer.config, facts, card, dtype)
        if probe is not None:
            stored = load_tokenizer(folder, device=tokenizer.device)
            store_probe(stored, folder, probe[0], source=probe[1])
    return written


def save_generator(
    generator: Generator,
    path: str | os.PathLike[str],
    *,
    tokenizer_path: str | os.PathLike[str] = "",
    tokenizer_fingerprint: str | None = None,
    card: dict[str, Any] | None = None,
    overwrite: bool = False,
    inputs: Iterable[str | os.PathLike[str]] = (),
    run: str | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """Write a generator's folder atomically and return its card.

    Args:
        generator: Generator from `build_generator`, with its `config`, `spec` and `classes`.
        path: Folder to create.
        tokenizer_path: Its tokenizer: a folder, `bundled:NAME` or `hub:owner/name`. A folder is
            stored both as given and relative to `path`.
        tokenizer_fingerprint: Fingerprint of the tokenizer; None: of the attached one.
        card: Further facts; facts computed here override them.
        overwrite: Whether to replace an existing generator that tessella wrote.
        inputs: Files and folders that the model was read from, which are never replaced.
        run: Id of the training run; if given, only a generator of the same run is replaced.
        dtype: Type of float weights in the file; None: unchanged. Loading gives float32 again.

    Raises:
        FileExistsError: If the folder exists and must stay; see `files.check_replaceable`.
        SaveError: If writing fails.
    """
    spec, where = generator.spec, os.fspath(tokenizer_path)
    if tokenizer_fingerprint is None and (attached := vars(generator).get("_tokenizer")):
        tokenizer_fingerprint = attached[0].fingerprint
    config = GeneratorFileConfig(
        generator=generator.config,
        tokens=TokensConfig(
            shape=spec.shape, codebook_sizes=spec.codebook_sizes, ordered=spec.ordered
        ),
        tokenizer=tokenizer_fingerprint,
        classes=tuple(generator.classes),
    )
    facts = {
        "kind": "generator",
        "system": generator.config.type,
        "tokens": str(spec),
        "bits_per_image": spec.bits_per_image,
        "num_classes": generator.num_classes,
        "parameters": generator.num_parameters(),
        "tokenizer": {"path": where, "fingerprint": tokenizer_fingerprint},
    }
    if where and not where.startswith(("bundled:", "hub:")):
        facts["tokenizer"]["relative_path"] = os.path.relpath(where, path)
    with atomic_folder(
        path, kind="generator", overwrite=overwrite, inputs=inputs, facts={"run": run}
    ) as folder:
        return _write(folder, generator, config, facts, card, dtype)


def _write(
    folder: Path,
    module: nn.Module,
    config: Any,
    facts: dict[str, Any],
    card: dict[str, Any] | None,
    dtype: torch.dtype | None,
) -> dict[str, Any]:
    """Write config, weights and card of any model; return the card, where `facts` override it."""
    state = {
        name: t.detach()
        .cpu()
        .to(dtype if dtype and t.is_floating_point() else t.dtype)
        .contiguous()
        for name, t in module.state_dict().items()
    }
    facts = facts | {"fingerprint": fingerprint(to_dict(config), state)}
    facts |= {name: fact for name, fact in (card or {}).items() if name not in facts}
    (folder / CONFIG).write_text(to_yaml(config), encoding="utf-8")
    save_file(state, folder / WEIGHTS, {"fingerprint": facts["fingerprint"]})
    (folder / CARD).write_text(
        json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return facts


def load_tokenizer(
    path: str | os.PathLike[str], *, device: str | torch.device = "cpu"
) -> Tokenizer:
    """Load a tokenizer in eval mode, from a local folder, `bundled:NAME` or `hub:owner/name`.

    Only `hub:` uses the network. The fingerprint is recomputed and compared with the card.
    The result has `.fingerprint` and `.card`.

    Raises:
        CheckpointError: If the folder or one of its files is missing, truncated, changed, or does
            not fit the config; the message names the file.
    """
    folder = find_folder(path)
    card = _card_of(folder, "tokenizer")
    stored = read_config(folder)
    config = tokenizer_config(stored, name=str(folder / CONFIG))
    with torch.random.fork_rng(devices=[]):  # loading must not change the global random state
        tokenizer = build_tokenizer(config)
    tokenizer.fingerprint, tokenizer.card = _fill(tokenizer, folder, stored, card), card
    return tokenizer.eval().to(device)


def load_generator(
    path: str | os.PathLike[str],
    *,
    tokenizer: Tokenizer | str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
) -> Generator:
    """Load a generator in eval mode with its tokenizer.

    Args:
        path: Folder of the generator, `bundled:NAME` or `hub:owner/name`.
        tokenizer: Tokenizer, or its path. None: the one with the fingerprint that the generator
            names, looked for at the path in its card, relative to its folder and as given, and
            among the bundled tokenizers.
        device: Device to load generator and tokenizer on.

    Returns:
        The generator; `.tokenizer`, `.classes`, `.fingerprint` and `.card` are set.

    Raises:
        CheckpointError: If the folder is missing, damaged or does not fit its config, or the
            tokenizer is missing or has another fingerprint.
    """
    folder = find_folder(path)
    generator, expected = _load_generator(folder)
    if tokenizer is None:
        named = (generator.card or {}).get("tokenizer") or {}
        if not isinstance(named, dict) or {type(v) for v in named.values()} - {str, type(None)}:
            raise CheckpointError(f"{folder / CARD}: tokenizer: expected paths, found {named!r}")
        tokenizer = _find_tokenizer(folder, expected, named)
    elif not isinstance(tokenizer, Tokenizer):
        tokenizer = load_tokenizer(tokenizer)
    if expected is not None and tokenizer.fingerprint != expected:
        raise CheckpointError(
            f"{folder}: was trained on tokens of the tokenizer {expected}; "
            f"this one is {tokenizer.fingerprint or 'of no folder'}"
        )
    generator.tokenizer = tokenizer.to(device)
    return generator.to(device)


def describe_model(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Card of a model folder, after loading the whole model to check that it is intact.

    Raises:
        CheckpointError: If the folder is damaged, or is no model folder.
    """
    folder = find_folder(path)
    card = read_card(folder)
    _load_generator(folder) if card.get("kind") == "generator" else load_tokenizer(folder)
    return card


def _load_generator(folder: Path) -> tuple[Generator, str | None]:
    """A generator without its tokenizer, and the fingerprint of the tokenizer."""
    card = _card_of(folder, "generator")
    stored = read_config(folder)
    config = build_config(GeneratorFileConfig, stored, name=str(folder / CONFIG))
    try:
        with torch.random.fork_rng(devices=[]):
            generator = build_generator(config.generator, config.tokens.spec())
    except (ValueError, RuntimeError) as error:  # tokens or a backend that cannot be used here
        raise CheckpointError(f"{folder / CONFIG}: {error}") from None
    generator.fingerprint, generator.card = _fill(generator, folder, stored, card), card
    generator.classes = config.classes
    return generator.eval(), config.tokenizer


def _find_tokenizer(folder: Path, expected: str | None, named: dict[str, Any]) -> Tokenizer:
    """The tokenizer with the expected fingerprint, looked for in every place of `_places`."""
    hint = "give its folder (--tokenizer, or load_generator(tokenizer=...))"
    if expected is None:
        raise CheckpointError(f"{folder}: names no tokenizer; {hint}")
    tried = []
    for place in _places(folder, named):
        try:
            card = read_card(find_folder(place))
        except CheckpointError:
            tried.append(f"{place}: not there")
            continue
        if card.get("fingerprint") == expected:
            return load_tokenizer(place)
        tried.append(f"{place}: is {card.get('fingerprint')}")
    raise CheckpointError(
        f"{folder}: its tokenizer {expected} was not found ({'; '.join(tried)}); {hint}"
    )


def _places(folder: Path, named: dict[str, Any]) -> Iterator[str]:
    if "relative_path" in named:
        yield str(folder / named["relative_path"])
    if named.get("path"):
        yield named["path"]
    for bundled in sorted(_BUNDLED.iterdir()) if _BUNDLED.is_dir() else []:
        if read_card(bundled).get("kind", "tokenizer") == "tokenizer":
            yield f"bundled:{bundled.name}"


def _card_of(folder: Path, kind: str) -> dict[str, Any]:
    """The card of a model folder, which must be of this kind and have a fingerprint."""
    read_config(folder)  # has the clearest messages for a folder that holds no model
    card = read_card(folder)
    found = card.get("kind", "tokenizer")
    if found != kind:
        raise CheckpointError(f"{folder}: holds a {found}, not a {kind}")
    if "fingerprint" not in card:
        raise CheckpointError(f"{folder / CARD}: has no fingerprint, so damage is not detectable")
    return card


def _fill(module: nn.Module, folder: Path, stored: dict[str, Any], card: dict[str, Any]) -> str:
    """Load a folder's weights into a module; return the fingerprint, which the card must have."""
    state, expected = _read_weights(folder / WEIGHTS), module.state_dict()
    missing = sorted(expected.keys() - state.keys())
    unexpected = sorted(state.keys() - expected.keys())
    wrong = [n for n in expected.keys() & state.keys() if expected[n].shape != state[n].shape]
    if missing or unexpected or wrong:
        raise CheckpointError(
            f"{folder / WEIGHTS}: does not fit {CONFIG}; missing {missing or 'none'}, "
            f"unexpected {unexpected or 'none'}, other shape {sorted(wrong) or 'none'}"
        )
    module.load_state_dict(state)
    found = fingerprint(stored, state)
    if found != card["fingerprint"]:
        raise CheckpointError(
            f"{folder}: config or weights were changed or damaged; "
            f"fingerprint {found}, the card says {card['fingerprint']}"
        )
    return found


def find_folder(path: str | os.PathLike[str]) -> Path:
    """Local folder of a path, `bundled:NAME` or `hub:owner/name` (which is downloaded).

    Raises:
        CheckpointError: If there is none; the message suggests or lists bundled names.
    """
    name = os.fspath(path)
    if not name:
        raise CheckpointError("no path given; expected a folder, bundled:NAME or hub:owner/name")
    if name.startswith("bundled:"):
        names = sorted(p.name for p in _BUNDLED.iterdir()) if _BUNDLED.is_dir() else []
        wanted = name.removeprefix("bundled:")
        if wanted not in names:
            near = difflib.get_close_matches(wanted, names, n=1)
            hint = f"did you mean bundled:{near[0]}?" if near else f"there are: {', '.join(names)}"
            raise CheckpointError(f"{name}: no such bundled model; {hint}")
        return _BUNDLED / wanted
    if name.startswith("hub:"):
        from huggingface_hub import snapshot_download

        files = [CONFIG, WEIGHTS, CARD, PROBE]
        try:
            return Path(snapshot_download(name.removeprefix("hub:"), allow_patterns=files))
        except Exception as error:  # network, permission, name: the hub has many ways to fail
            raise CheckpointError(f"{name}: {error}") from None
    folder = Path(name)
    if not folder.is_dir():
        what = "a file, not a folder" if folder.exists() else "no such folder"
        raise CheckpointError(f"{folder}: {what}; expected one with {CONFIG}, {WEIGHTS}, {CARD}")
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """Config of a model folder as plain values."""
    if (folder / "checkpoints").is_dir():
        models = sorted(str(p.parent) for p in folder.glob(f"*/{WEIGHTS}"))
        hint = f"the model is in {', '.join(models)}" if models else "it holds no finished model"
        raise CheckpointError(f"{folder}: a training run, not a model folder; {hint}")
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder}: {CONFIG} is missing; this is not a model folder")
    return read_yaml(folder / CONFIG)


def read_card(folder: Path) -> dict[str, Any]:
    """Card of a model folder."""
    path = folder / CARD
    try:
        return read_json(path, dict[str, Any], error=CheckpointError, non_finite=True)
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: {CARD} is missing; the folder is incomplete") from None


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path.parent}: {WEIGHTS} is missing; the folder is incomplete")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: truncated or damaged ({error})") from None
