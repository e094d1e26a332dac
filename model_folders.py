"""Files of a model folder, `config.yaml`, `model.safetensors` and `card.json`, and where one is.

The card describes the model and holds its fingerprint: a hash of config and weights that token
stores repeat, and that detects damage. `checkpoints.py` makes models of these files.
"""

import difflib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .config import read_yaml, to_dict, to_yaml
from .documents import read_json
from .generators.base import Generator
from .tokenizers.base import Tokenizer
from .tokenizers.probe import PROBE

CONFIG, WEIGHTS, CARD = "config.yaml", "model.safetensors", "card.json"
NOT_STATED = "not stated"
"""What is said of a fact that a card does not have."""
OWN_TOKENIZER = "tokenizer"
"""Folder inside a generator's folder that holds its tokenizer, if none of its own does."""
_LASTING = ("sampling", "data", "licence", "imported")
"""Facts of a card that stay true when the weights change, unlike measurements."""
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
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def bundled_models() -> list[str]:
    """Names of the models that ship with the package, in alphabetical order."""
    return sorted(p.name for p in _BUNDLED.iterdir()) if _BUNDLED.is_dir() else []


def full_name(path: str | os.PathLike[str]) -> str:
    """The path as given, but `bundled:NAME` for the bare name of a bundled model.

    A folder or file of that name in the current folder comes first.
    """
    name = os.fspath(path)
    return f"bundled:{name}" if name in bundled_models() and not os.path.lexists(name) else name


def is_local(path: str | os.PathLike[str]) -> bool:
    """Whether a path names a folder of the user's, not `bundled:NAME` or `hub:owner/name`."""
    return not full_name(path).startswith(("bundled:", "hub:"))


def find_folder(path: str | os.PathLike[str]) -> Path:
    """Local folder of a path, a bundled model or `hub:owner/name` (which is downloaded).

    Args:
        path: Folder, `bundled:NAME`, `hub:owner/name`, or the bare name of a bundled model where
            nothing else has that name. `hub:owner/name@revision` takes a branch, tag or commit.

    Raises:
        CheckpointError: If there is none; the message suggests or lists bundled names.
    """
    if not os.fspath(path):
        raise CheckpointError("no path given; expected a folder, bundled:NAME or hub:owner/name")
    name = full_name(path)
    if name.startswith("bundled:"):
        names, wanted = bundled_models(), name.removeprefix("bundled:")
        if wanted not in names:
            near = difflib.get_close_matches(wanted, names, n=1)
            hint = f"did you mean bundled:{near[0]}?" if near else f"there are: {', '.join(names)}"
            raise CheckpointError(f"{name}: no such bundled model; {hint}")
        return _BUNDLED / wanted
    if name.startswith("hub:"):
        repository, at, revision = name.removeprefix("hub:").partition("@")
        if not repository or (at and not revision):
            raise CheckpointError(f"{name}: expected hub:owner/name or hub:owner/name@revision")
        from huggingface_hub import snapshot_download

        files = [CONFIG, WEIGHTS, CARD, PROBE]
        files += [f"{OWN_TOKENIZER}/{file}" for file in files]
        try:
            return Path(
                snapshot_download(repository, revision=revision or None, allow_patterns=files)
            )
        except Exception as error:  # network, permission, name: the hub has many ways to fail
            raise CheckpointError(f"{name}: {error}") from None
    folder = Path(name)
    if not folder.is_dir():
        what = "a file, not a folder" if folder.exists() else "no such folder"
        near = [] if os.sep in name else difflib.get_close_matches(name, bundled_models(), n=1)
        hint = (
            f"; did you mean the bundled model {near[0]}?" if near and not folder.exists() else ""
        )
        raise CheckpointError(
            f"{folder}: {what}; expected one with {CONFIG}, {WEIGHTS}, {CARD}{hint}"
        )
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
    try:
        return read_json(folder / CARD, dict[str, Any], error=CheckpointError, non_finite=True)
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: {CARD} is missing; the folder is incomplete") from None


def card_of(folder: Path, kind: str) -> dict[str, Any]:
    """The card of a model folder, which must be of this kind and have a fingerprint."""
    read_config(folder)  # has the clearest messages for a folder that holds no model
    card = read_card(folder)
    found = card.get("kind", "tokenizer")
    if found != kind:
        raise CheckpointError(f"{folder}: holds a {found}, not a {kind}")
    if "fingerprint" not in card:
        raise CheckpointError(f"{folder / CARD}: has no fingerprint, so damage is not detectable")
    return card


def read_weights(
    folder: Path, stored: dict[str, Any], card: dict[str, Any]
) -> tuple[dict[str, torch.Tensor], str]:
    """Weights of a folder, and their fingerprint with the config, which must be the card's.

    Args:
        folder: Model folder.
        stored: Its config, as in the file.
        card: Its card.

    Returns:
        The tensors, which may be mapped from the file, and the fingerprint.

    Raises:
        CheckpointError: If the file is missing or truncated, or the fingerprint is another one.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"{folder}: {WEIGHTS} is missing; the folder is incomplete")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: truncated or damaged ({error})") from None
    found = fingerprint(stored, state)
    if found != card["fingerprint"]:
        raise CheckpointError(
            f"{folder}: config or weights were changed or damaged; "
            f"fingerprint {found}, the card says {card['fingerprint']}"
        )
    return state, found


def write_model(
    folder: Path,
    module: Tokenizer | Generator,
    config: Any,
    facts: dict[str, Any],
    card: dict[str, Any] | None,
    dtype: torch.dtype | None,
) -> dict[str, Any]:
    """Write config, weights and card of any model into an unfinished folder; return the card.

    Args:
        folder: Folder to write into.
        module: The model.
        config: Its config, which is hashed with the weights.
        facts: Facts computed from it, which override all others.
        card: Facts given by the caller, which override those of an earlier card.
        dtype: Type of float weights in the file; None: unchanged.
    """
    state = {
        name: t.detach()
        .cpu()
        .to(dtype if dtype and t.is_floating_point() else t.dtype)
        .contiguous()
        for name, t in module.state_dict().items()
    }
    facts = facts | {"fingerprint": fingerprint(to_dict(config), state)}
    earlier, same = module.card or {}, module.fingerprint == facts["fingerprint"]
    given = {n: fact for n, fact in earlier.items() if same or n in _LASTING} | (card or {})
    facts |= {name: fact for name, fact in given.items() if name not in facts}
    (folder / CONFIG).write_text(to_yaml(config), encoding="utf-8")
    save_file(state, folder / WEIGHTS, {"fingerprint": facts["fingerprint"]})
    (folder / CARD).write_text(
        json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return facts


def trained_on(card: Mapping[str, Any] | None) -> str:
    """What a model learned from, in a few words for people: `emoji, 1,381 images`.

    Args:
        card: Card of a model, such as `generator.card`; None: of a model that was not loaded.

    Returns:
        Name of the data and number of images, as far as the card has them; `not stated` otherwise.
    """
    data = (card or {}).get("data")
    if isinstance(data, str):
        return data or NOT_STATED
    if not isinstance(data, Mapping) or not isinstance(source := data.get("source"), str):
        return NOT_STATED
    images = data.get("images")
    return f"{source}, {images:,} images" if isinstance(images, int) else source
