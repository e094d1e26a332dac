"""Saving and loading of models, as folders of `config.yaml`, `model.safetensors` and `card.json`.

The config rebuilds the module. The card describes it and holds the fingerprint, which is checked
before anything is built (`model_folders.py`). A tokenizer's folder may also hold
`probe.safetensors`, a few images with the PSNR it reached (`tokenizers/probe.py`); a generator's
may hold its tokenizer's folder, `tokenizer/`.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from .building import Misfit, build_on_meta, fill
from .config import ConfigError, build_config
from .files import atomic_folder, some_of
from .generators.base import Generator
from .generators.build import GeneratorFileConfig, TokensConfig, build_generator
from .model_folders import (
    CARD,
    CONFIG,
    OWN_TOKENIZER,
    WEIGHTS,
    CheckpointError,
    bundled_models,
    card_of,
    find_folder,
    fingerprint,
    full_name,
    is_local,
    read_card,
    read_config,
    read_weights,
    write_model,
)
from .tokenizers.base import Tokenizer
from .tokenizers.build import build_tokenizer, tokenizer_config
from .tokenizers.probe import ProbeError, read_probe, store_probe

__all__ = [
    "CARD",
    "CONFIG",
    "WEIGHTS",
    "CheckpointError",
    "describe_model",
    "find_folder",
    "fingerprint",
    "load_generator",
    "load_tokenizer",
    "read_card",
    "read_config",
    "save_generator",
    "save_tokenizer",
]

Module = TypeVar("Module", bound=nn.Module)


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

    What is saved loads again: weights that `config` does not describe are refused. A tokenizer
    that was loaded keeps the facts of its card and its probe images, with their PSNR measured
    anew; facts that were measured are kept only while the weights are the same.

    Args:
        tokenizer: Tokenizer from `build_tokenizer` or `load_tokenizer`, with its `config`.
        path: Folder to create.
        card: Further facts: data, licence, command, seed, steps, metrics. Facts computed here
            override them, so the card of a loaded model can be passed on.
        overwrite: Whether to replace an existing tokenizer that tessella wrote.
        inputs: Files and folders that the model was read from, which are never replaced.
        run: Id of the training run; if given, only a tokenizer of the same run is replaced.
        dtype: Type of float weights in the file, e.g. torch.float16 for half the size; None:
            unchanged. Loading gives float32 again.
        probe: A few 8-bit images (B, 3, R, R) and a description of their source, stored with the
            PSNR that the weights in the file reach, for `verify_probe`. They can be seen by
            everyone who gets the folder; `synthetic_probe` gives images that show nothing.

    Raises:
        FileExistsError: If the folder exists and must stay; see `files.check_replaceable`.
        SaveError: If writing fails.
        ValueError: If the weights are not those of a tokenizer of its `config`.
    """
    _check_complete(tokenizer, partial(build_tokenizer, tokenizer.config))
    facts = {
        "kind": "tokenizer",
        "system": tokenizer.config.type,
        "tokens": str(tokenizer.spec),
        "bits_per_image": tokenizer.spec.bits_per_image,
        "resolution": tokenizer.resolution,
        "parameters": tokenizer.num_parameters(),
    }
    probe = _stored_probe(tokenizer) if probe is None else probe
    with atomic_folder(
        path, kind="tokenizer", overwrite=overwrite, inputs=inputs, facts={"run": run}
    ) as folder:
        written = write_model(folder, tokenizer, tokenizer.config, facts, card, dtype)
        if probe is not None:
            stored = load_tokenizer(folder, device=tokenizer.device)
            store_probe(stored, folder, probe[0], source=probe[1])
    return written


def _stored_probe(tokenizer: Tokenizer) -> tuple[torch.Tensor, str] | None:
    """Probe images of the folder that a tokenizer was loaded from, and their source."""
    if tokenizer.origin is None:
        return None
    try:
        return read_probe(find_folder(tokenizer.origin), tokenizer.resolution)
    except (CheckpointError, ProbeError):  # none, or the folder is gone
        return None


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

    What is saved loads again, with its tokenizer: `save_generator(load_generator(F), P)` is a whole
    model. Without `tokenizer_path`, the attached tokenizer is referred to if the folder that it was
    loaded from still holds it as it is, outside of `path` and of other models; otherwise it is
    stored in `path` itself, under `tokenizer/`. A generator that was loaded keeps the facts of its
    card, such as the defaults of sampling; facts that were measured are kept only while the weights
    are the same.

    Args:
        generator: Generator from `build_generator` or `load_generator`, with its `config`, `spec`
            and `classes`.
        path: Folder to create.
        tokenizer_path: Its tokenizer: a folder, a bundled model or `hub:owner/name`. A folder is
            stored both as given and relative to `path`.
        tokenizer_fingerprint: Fingerprint of the tokenizer; None: of the attached one, or else of
            the one at `tokenizer_path`. A generator with neither loads with a `tokenizer=` only.
        card: Further facts; facts computed here override them.
        overwrite: Whether to replace an existing generator that tessella wrote.
        inputs: Files and folders that the model was read from, which are never replaced.
        run: Id of the training run; if given, only a generator of the same run is replaced.
        dtype: Type of float weights in the file; None: unchanged. Loading gives float32 again.

    Raises:
        FileExistsError: If the folder exists and must stay; see `files.check_replaceable`.
        SaveError: If writing fails.
        CheckpointError: If the fingerprint has to be read at `tokenizer_path` and is not there.
        ValueError: If the weights are not those of a generator of its `config`.
    """
    spec, where, kept = generator.spec, full_name(tokenizer_path), None
    _check_complete(generator, partial(build_generator, generator.config, spec))
    if tokenizer_fingerprint is None and (attached := vars(generator).get("_tokenizer")):
        if where or _can_refer(attached[0], Path(path)):
            where, tokenizer_fingerprint = where or attached[0].origin, attached[0].fingerprint
        else:
            kept = attached[0]
    if where and tokenizer_fingerprint is None:
        tokenizer_fingerprint = card_of(find_folder(where), "tokenizer")["fingerprint"]
    facts = {
        "kind": "generator",
        "system": generator.config.type,
        "tokens": str(spec),
        "bits_per_image": spec.bits_per_image,
        "num_classes": generator.num_classes,
        "parameters": generator.num_parameters(),
        "tokenizer": {"path": where},
    }
    if kept is not None:
        facts["tokenizer"]["relative_path"] = OWN_TOKENIZER
    elif where and is_local(where):
        facts["tokenizer"]["relative_path"] = os.path.relpath(where, path)
    with atomic_folder(
        path, kind="generator", overwrite=overwrite, inputs=inputs, facts={"run": run}
    ) as folder:
        if kept is not None:
            own = save_tokenizer(kept, folder / OWN_TOKENIZER)
            tokenizer_fingerprint = own["fingerprint"]
        facts["tokenizer"]["fingerprint"] = tokenizer_fingerprint
        config = GeneratorFileConfig(
            generator=generator.config,
            tokens=TokensConfig(
                shape=spec.shape, codebook_sizes=spec.codebook_sizes, ordered=spec.ordered
            ),
            tokenizer=tokenizer_fingerprint,
            classes=tuple(generator.classes),
            text=None if generator.text is None else generator.text.encoder.fingerprint,
        )
        return write_model(folder, generator, config, facts, card, dtype)


def _can_refer(tokenizer: Tokenizer, path: Path) -> bool:
    """Whether a tokenizer is still where it was loaded from, and will be when `path` is written."""
    if tokenizer.origin is None:
        return False
    if is_local(tokenizer.origin):
        place = Path(tokenizer.origin).resolve()
        if path.resolve() in (place, *place.parents) or (place.parent / CARD).exists():
            return False
    try:
        stored = load_tokenizer(tokenizer.origin)
    except (CheckpointError, ConfigError):
        return False
    found, now = stored.state_dict(), tokenizer.state_dict()
    return stored.fingerprint == tokenizer.fingerprint and all(
        torch.equal(tensor, now[name].cpu()) for name, tensor in found.items()
    )


def _check_complete(module: nn.Module, build: Callable[[], nn.Module]) -> None:
    """Refuse weights that would not load again, before anything is written."""
    expected = {n: t.shape for n, t in build_on_meta(build).state_dict().items()}
    found = {n: t.shape for n, t in module.state_dict().items()}
    if found != expected:
        names = sorted(n for n in {*found, *expected} if found.get(n) != expected.get(n))
        raise ValueError(
            f"the weights are not those that the config describes, so the folder would not load: "
            f"{some_of(names)}; expected a model as it was built or loaded"
        )


def load_tokenizer(
    path: str | os.PathLike[str], *, device: str | torch.device = "cpu"
) -> Tokenizer:
    """Load a tokenizer in eval mode.

    Only `hub:` uses the network. The fingerprint is recomputed and compared with the card before
    the tokenizer is built. Weights are float32 copies: the file may be replaced later.

    Args:
        path: Local folder, `bundled:NAME`, `hub:owner/name`, or the bare name of a bundled model.
        device: Device to load it on.

    Returns:
        The tokenizer; `.fingerprint`, `.card` and `.origin` are set.

    Raises:
        CheckpointError: If the folder or one of its files is missing, truncated, changed, or does
            not fit the config; the message names the file.
    """
    folder = find_folder(path)
    card, stored = card_of(folder, "tokenizer"), read_config(folder)
    config = tokenizer_config(stored, name=str(folder / CONFIG))
    state, found = read_weights(folder, stored, card)
    tokenizer = _built(folder, partial(build_tokenizer, config), state)
    tokenizer.fingerprint, tokenizer.card, tokenizer.origin = found, card, _origin(path)
    return tokenizer.eval().to(device)


def load_generator(
    path: str | os.PathLike[str],
    *,
    tokenizer: Tokenizer | str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
) -> Generator:
    """Load a generator in eval mode with its tokenizer.

    Args:
        path: Folder of the generator, `bundled:NAME`, `hub:owner/name`, or the bare name of a
            bundled model.
        tokenizer: Tokenizer, or its path. None: the one with the fingerprint that the generator
            names, looked for at the path in its card, relative to its folder and as given, and
            among the bundled tokenizers.
        device: Device to load generator and tokenizer on.

    Returns:
        The generator; `.tokenizer`, `.classes`, `.fingerprint`, `.card` and `.origin` are set.

    Raises:
        CheckpointError: If the folder is missing, damaged or does not fit its config, or the
            tokenizer is missing or has another fingerprint.
    """
    folder = find_folder(path)
    generator, expected = _load_generator(folder)
    generator.origin = _origin(path)
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


def load_without_tokenizer(path: str | os.PathLike[str]) -> tuple[Generator, str | None]:
    """Load a generator as `load_generator` does, but not its tokenizer.

    Returns:
        The generator, and the fingerprint of its tokenizer; None: it names none.

    Raises:
        CheckpointError: If the folder is missing, damaged or does not fit its config.
    """
    return _load_generator(find_folder(path))


def _load_generator(folder: Path) -> tuple[Generator, str | None]:
    """A generator without its tokenizer, and the fingerprint of the tokenizer."""
    card, stored = card_of(folder, "generator"), read_config(folder)
    config = build_config(GeneratorFileConfig, stored, name=str(folder / CONFIG))
    state, found = read_weights(folder, stored, card)
    spec = config.tokens
    generator = _built(folder, lambda: build_generator(config.generator, spec.spec()), state)
    generator.fingerprint, generator.card = found, card
    generator.classes = config.classes
    reads = None if generator.text is None else generator.text.encoder.fingerprint
    if reads != config.text:
        raise CheckpointError(
            f"{folder}: was trained with the text vectors {config.text}; this version of tessella "
            f"has {reads}"
        )
    return generator.eval(), config.tokenizer


def _built(folder: Path, build: Callable[[], Module], state: dict[str, torch.Tensor]) -> Module:
    """The module of a folder with its weights, which are read and checked already."""
    try:
        module = build_on_meta(build)
    except (ValueError, RuntimeError) as error:  # too large, tokens or a backend of no use here
        raise CheckpointError(f"{folder / CONFIG}: {error}") from None
    try:
        fill(module, state)
    except Misfit as error:
        raise CheckpointError(f"{folder / WEIGHTS}: does not fit {CONFIG}; {error}") from None
    return module


def _origin(path: str | os.PathLike[str]) -> str:
    """Name by which a model is found again from any current folder."""
    return os.path.abspath(path) if is_local(path) else full_name(path)


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
    for name in bundled_models():
        if read_card(find_folder(f"bundled:{name}")).get("kind", "tokenizer") == "tokenizer":
            yield f"bundled:{name}"
