"""Model folders: `config.yaml`, `model.safetensors` and `card.json`, nothing pickled.

The config rebuilds the module, the card says what it is (parameters, data, licence, command,
metrics with their protocol) and holds the fingerprint: a hash of config and weights that token
stores carry, and that detects damage when the folder is read.
"""

import difflib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .config import build_config, read_yaml, to_dict, to_yaml
from .files import atomic_folder
from .tokenizers.base import Tokenizer
from .tokenizers.build import TokenizerConfig, build_tokenizer

CONFIG, WEIGHTS, CARD = "config.yaml", "model.safetensors", "card.json"
_BUNDLED = Path(__file__).parent / "assets" / "models"


class CheckpointError(ValueError):
    """A model folder that is missing, incomplete or damaged."""


def fingerprint(config: dict[str, Any], state: dict[str, torch.Tensor]) -> str:
    """Hash of a config and of every tensor's name, type, shape and bytes, 32 hexadecimal digits.

    The config counts as it stands in the file, so a field that a later version adds, with its
    default, does not change the fingerprint of the models that lack it.
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
    dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """Write a tokenizer's folder, whole or not at all; returns the card written.

    Args:
        tokenizer: A module of `build_tokenizer`, with its `config`.
        path: The folder to make.
        card: Further facts: data, licence, command, seed, steps, metrics. What is computed here
            wins, so that the card of a loaded model can be passed on.
        overwrite: Replace a folder that is already there.
        dtype: Type of float weights in the file, e.g. torch.float16 for half the size; None: as
            they are. Loading gives float32 again.

    Raises:
        FileExistsError: If the folder exists and `overwrite` is False.
        SaveError: If the disk refuses.
    """
    state = {
        name: t.detach()
        .cpu()
        .to(dtype if dtype and t.is_floating_point() else t.dtype)
        .contiguous()
        for name, t in tokenizer.state_dict().items()
    }
    facts = {
        "kind": "tokenizer",
        "system": tokenizer.config.type,
        "tokens": str(tokenizer.spec),
        "bits_per_image": tokenizer.spec.bits_per_image,
        "resolution": tokenizer.resolution,
        "parameters": tokenizer.num_parameters(),
        "fingerprint": fingerprint(to_dict(tokenizer.config), state),
    }
    facts |= {name: fact for name, fact in (card or {}).items() if name not in facts}
    with atomic_folder(path, overwrite=overwrite) as folder:
        (folder / CONFIG).write_text(to_yaml(tokenizer.config), encoding="utf-8")
        save_file(state, folder / WEIGHTS, {"fingerprint": facts["fingerprint"]})
        (folder / CARD).write_text(
            json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    return facts


def load_tokenizer(
    path: str | os.PathLike[str], *, device: str | torch.device = "cpu"
) -> Tokenizer:
    """A tokenizer in eval mode, from a local folder, `bundled:NAME` or `hub:owner/name`.

    Only `hub:` touches the network. The fingerprint is recomputed and compared with the card.
    The result has `.fingerprint` and `.card`.

    Raises:
        CheckpointError: If the folder or one of its files is missing, truncated, changed, or does
            not fit the config; the message names the file.
    """
    folder = find_folder(path)
    stored_config = read_config(folder)
    config = build_config(TokenizerConfig, stored_config, name=str(folder / CONFIG))
    card = read_card(folder)
    if card.get("kind", "tokenizer") != "tokenizer":
        raise CheckpointError(f"{folder}: holds a {card['kind']}, not a tokenizer")
    if "fingerprint" not in card:
        raise CheckpointError(f"{folder / CARD}: has no fingerprint, so damage could not be seen")
    state = _read_weights(folder / WEIGHTS)
    with torch.random.fork_rng(devices=[]):  # loading must not disturb anybody's randomness
        tokenizer = build_tokenizer(config)
    expected = tokenizer.state_dict()
    missing = sorted(expected.keys() - state.keys())
    unexpected = sorted(state.keys() - expected.keys())
    wrong = [n for n in expected.keys() & state.keys() if expected[n].shape != state[n].shape]
    if missing or unexpected or wrong:
        raise CheckpointError(
            f"{folder / WEIGHTS}: does not fit {CONFIG}; missing {missing or 'none'}, "
            f"unexpected {unexpected or 'none'}, other shape {sorted(wrong) or 'none'}"
        )
    tokenizer.load_state_dict(state)
    found = fingerprint(stored_config, state)
    if found != card["fingerprint"]:
        raise CheckpointError(
            f"{folder}: config or weights were changed or damaged; "
            f"fingerprint {found}, the card says {card['fingerprint']}"
        )
    tokenizer.fingerprint, tokenizer.card = found, card
    return tokenizer.eval().to(device)


def find_folder(path: str | os.PathLike[str]) -> Path:
    """The local folder behind a path, `bundled:NAME` or `hub:owner/name` (which downloads).

    Raises:
        CheckpointError: If there is none; lists the bundled names or suggests a near one.
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

        files = [CONFIG, WEIGHTS, CARD]
        return Path(snapshot_download(name.removeprefix("hub:"), allow_patterns=files))
    folder = Path(name)
    if not folder.is_dir():
        what = "a file, not a folder" if folder.exists() else "no such folder"
        raise CheckpointError(f"{folder}: {what}; expected one with {CONFIG}, {WEIGHTS}, {CARD}")
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """The config of a model folder as plain values."""
    if (folder / "checkpoints").is_dir():
        models = sorted(str(p.parent) for p in folder.glob(f"*/{WEIGHTS}"))
        hint = f"the model is in {', '.join(models)}" if models else "it holds no finished model"
        raise CheckpointError(f"{folder}: a training run, not a model folder; {hint}")
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder}: {CONFIG} is missing; this is not a model folder")
    return read_yaml(folder / CONFIG)


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a model folder."""
    path = folder / CARD
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: {CARD} is missing; the folder is incomplete") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    if not isinstance(card, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(card).__name__}")
    return card


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path.parent}: {WEIGHTS} is missing; the folder is incomplete")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: truncated or damaged ({error})") from None
