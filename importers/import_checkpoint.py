"""Import of public checkpoints: read the file, translate it, load it strictly, write a folder."""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from .._version import __version__
from ..building import build_on_meta, fill
from ..checkpoints import load_tokenizer, save_generator, save_tokenizer
from ..config import STRICT, build_config, read_yaml
from ..data.path_source import local_places
from ..data.sources import open_source
from ..files import check_replaceable, sha256_file
from ..generators.base import Generator
from ..generators.build import GeneratorConfig, build_generator
from ..model_folders import NOT_STATED
from ..sample.samplers import published_sampling
from ..tokenizers.base import Tokenizer
from ..tokenizers.build import TokenizerConfig, build_tokenizer, tokenizer_config
from ..tokenizers.probe import DEFAULT_DATA, choose_probe
from .checkpoint_file import read_weights
from .generator_formats import FORMATS as GENERATOR_FORMATS
from .generator_formats import translate_generator
from .tensors import LayoutError
from .tokenizer_formats import FORMATS as TOKENIZER_FORMATS
from .vqgan import PUBLISHED_RESOLUTION, translate_tokenizer

Module = TypeVar("Module", bound=nn.Module)

FORMATS = (*TOKENIZER_FORMATS, *GENERATOR_FORMATS)
"""Names of the formats that `import_checkpoint` reads."""


@dataclass(frozen=True, kw_only=True)
class _GeneratorSection:
    """The section of a training config that describes the generator."""

    __pydantic_config__ = STRICT
    generator: GeneratorConfig


def import_checkpoint(
    format_name: str,
    file: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    config: str | os.PathLike[str] | None = None,
    resolution: int | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    average: bool = True,
    section: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Convert a public checkpoint to a model folder; after any error nothing is written.

    Args:
        format_name: Name of the format, one of `FORMATS`.
        file: File in safetensors format or from `torch.save`, the index of a checkpoint in several
            files, or a folder with one of these; pickles are read as plain data.
        out: Folder to create.
        config: YAML file of the model to build: a training config, or its section `tokenizer` or
            `generator`. None: the sizes are inferred from the shapes.
        resolution: Image size of a tokenizer, in pixels; None: that of the config, else 256.
        tokenizer: Folder of a generator's tokenizer, `bundled:NAME` or `hub:owner/name`.
        average: Whether to take the running average of the weights (EMA) if the file has one.
        section: Section of the file that holds the weights; None: told by its name.
        overwrite: Whether to replace a model folder of the same kind that tessella wrote.

    Returns:
        Facts for the user: `kind`, `format`, `out`, `tokens`, `parameters`, `fingerprint`,
        `container` (kind of file), `sections` (number of tensors of each that was found),
        `section` (the one taken; "" = the file has no other), `weights`, `stored_as` (types in the
        file), `missing` and `unexpected` (empty, since the load is strict), and `dropped`, the keys
        that were left out, each with the reason.

    Raises:
        CheckpointError: If the file cannot be read without running code from it, or at all.
        LayoutError: If the file does not fit the format; the message lists the keys.
        ConfigError: If the config is invalid.
        ValueError: If an option does not apply to the format.
        FileExistsError: If `out` exists and must stay; see `files.check_replaceable`.
    """
    if format_name not in FORMATS:
        raise ValueError(f"format: found {format_name!r}, expected one of {', '.join(FORMATS)}")
    is_generator = format_name in GENERATOR_FORMATS
    inputs = local_places(file, config, tokenizer)
    kind = "generator" if is_generator else "tokenizer"
    check_replaceable(out, kind, overwrite=overwrite, inputs=inputs)
    if is_generator and resolution is not None:
        raise ValueError("resolution: a generator has none of its own, only its tokenizer has one")
    if not is_generator and tokenizer is not None:
        raise ValueError(
            f"tokenizer: {format_name} is a tokenizer itself; only a generator is given one"
        )
    weights = read_weights(file, average=average, section=section)
    first, *others = weights.files
    imported: dict[str, Any] = {
        "format": format_name,
        "file": first.name,
        "sha256": sha256_file(first),
        "by": f"tessella {__version__}",
    }
    if others:
        imported["parts"] = {part.name: sha256_file(part) for part in others}
    card: dict[str, Any] = {"imported": imported, "licence": NOT_STATED}
    averaged = weights.averaged
    try:
        if is_generator:
            found = load_tokenizer(tokenizer) if tokenizer is not None else None
            chosen_config = _generator_config(config)
            generator, dropped = _generator(format_name, weights.tensors, chosen_config, found)
            card |= published_sampling(generator.config)
            card = save_generator(
                generator,
                out,
                tokenizer_path=tokenizer or "",
                tokenizer_fingerprint=found.fingerprint if found is not None else None,
                card=card,
                overwrite=overwrite,
                inputs=inputs,
            )
        else:
            chosen = _tokenizer_config(config, resolution)
            translated = translate_tokenizer(
                weights.tensors,
                format_name,
                config=chosen,
                resolution=resolution or PUBLISHED_RESOLUTION,
                average=average,
            )
            averaged, dropped = averaged or translated.averaged, translated.dropped
            module = _filled(lambda: build_tokenizer(translated.config), translated.state)
            probe = choose_probe(open_source(DEFAULT_DATA, "val"), module.resolution)
            card = save_tokenizer(
                module, out, card=card, overwrite=overwrite, inputs=inputs, probe=probe
            )
    except LayoutError as error:
        raise LayoutError(f"{file}: {error}") from None
    kind_of_weights = "running average" if averaged else "as stored"
    if weights.completed:
        kind_of_weights += f", which lacks {weights.completed} tensors: those are as stored"
    return {
        "kind": card["kind"],
        "format": format_name,
        "out": str(out),
        "tokens": card["tokens"],
        "parameters": card["parameters"],
        "container": weights.container,
        "sections": weights.found,
        "section": weights.section,
        "weights": kind_of_weights,
        "stored_as": sorted(
            {str(t.dtype).removeprefix("torch.") for t in weights.tensors.values()}
        ),
        "fingerprint": card["fingerprint"],
        "missing": [],
        "unexpected": [],
        "dropped": {f"{name}.*": why for name, why in weights.ignored.items()} | dropped,
    }


def _filled(build: Callable[[], Module], state: dict[str, Tensor]) -> Module:
    """A module with exactly these weights, in eval mode."""
    module = build_on_meta(build)
    fill(module, state)
    return module.eval()


def _generator(
    format_name: str,
    stored: dict[str, Tensor],
    config: GeneratorConfig | None,
    tokenizer: Tokenizer | None,
) -> tuple[Generator, dict[str, str]]:
    """The generator, and the keys that were left out with the reasons."""
    spec = tokenizer.spec if tokenizer is not None else None
    translated = translate_generator(stored, format_name, config=config, spec=spec)
    module = _filled(lambda: build_generator(translated.config, translated.spec), translated.state)
    return module, translated.dropped


def _tokenizer_config(
    path: str | os.PathLike[str] | None, resolution: int | None
) -> TokenizerConfig | None:
    """The tokenizer's config from the user's file and resolution; None without a file."""
    if path is None:
        return None
    data = read_yaml(path)
    config = tokenizer_config(data.get("tokenizer", data), name=str(path))
    return config if resolution is None else dataclasses.replace(config, resolution=resolution)


def _generator_config(path: str | os.PathLike[str] | None) -> GeneratorConfig | None:
    """The generator's config from the user's file; None without a file."""
    if path is None:
        return None
    data = read_yaml(path)
    section = {"generator": data.get("generator", data)}
    return build_config(_GeneratorSection, section, name=str(path)).generator
