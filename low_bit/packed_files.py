"""Low-bit weights in a safetensors file: tensors by name, their formats as JSON in the header.

The parameter `a.b.weight` is stored as `a.b._weight_qdata`, `a.b._weight_scale` and, if it is
asymmetric, `a.b._weight_zero`, which are the names that torchao gives the parts of its quantized
tensors. `lowbit.layers` in the header describes each weight by the name of its parameter. Codes are
plain uint8, as safetensors cannot save the narrower integer types of torch.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..documents import check, parse_json
from ..kernels.packed_linear.formats import PackedWeight, check_tag

VERSION = "1"
"""Version of the layout; files of any other version are refused."""
VERSION_KEY, LAYERS_KEY = "lowbit.version", "lowbit.layers"
BITS = {"bin1": 1, "bin2": 2, "tern2": 2, "tern3": 1.6, "u2": 2, "u4": 4}
"""Nominal bits of a code by format, without scales."""
REMARKS = ("source",)
"""Keys of an entry that do not change its meaning."""
_LAYOUTS = {2: "oi", 4: "oihw"}


def part_name(name: str, part: str) -> str:
    """Name of the tensor of a part, `a.b._weight_scale` for `a.b.weight` and the part `scale`."""
    folder, _, parameter = name.rpartition(".")
    return f"{folder}{'.' if folder else ''}_{parameter}_{part}"


def to_tensors(weights: Mapping[str, PackedWeight]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header entries of low-bit weights.

    Args:
        weights: Packed weights by the name of the parameter that each replaces, `a.b.weight`.

    Returns:
        Contiguous copies of the tensors by name (a file cannot hold shared memory), and strings for
        the metadata of the file.
    """
    tensors: dict[str, Tensor] = {}
    layers: dict[str, Any] = {}
    for name, weight in weights.items():
        parts = {"qdata": weight.qdata, "scale": weight.scale, "zero": weight.zero}
        for part, tensor in parts.items():
            if tensor is not None:
                copy = tensor.clone(memory_format=torch.contiguous_format)
                tensors[part_name(name, part)] = copy
        layers[name] = _describe(weight)
    return tensors, {VERSION_KEY: VERSION, LAYERS_KEY: json.dumps(layers)}


def from_tensors(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None
) -> dict[str, PackedWeight]:
    """Read the low-bit weights of a file, by the names of their parameters.

    Args:
        tensors: Tensors of the file by name; those of other parameters are ignored.
        metadata: Header strings of the file, or None; without `lowbit.layers` there are no low-bit
            weights.

    Returns:
        The weights, with checked values.

    Raises:
        ValueError: If the header cannot be read, the version, a tag, a part or a key is unknown, a
            tensor is missing, or a tensor or value does not fit; the message has the weight's name.
    """
    metadata = metadata or {}
    if LAYERS_KEY not in metadata:
        return {}
    if metadata.get(VERSION_KEY) != VERSION:
        raise ValueError(
            f"{VERSION_KEY}: expected {VERSION!r}, found {metadata.get(VERSION_KEY)!r}"
        )
    layers = check(
        parse_json(metadata[LAYERS_KEY], name=LAYERS_KEY), dict[str, Any], name=LAYERS_KEY
    )
    weights = {}
    for name, entry in layers.items():
        try:
            weights[name] = _read(name, entry, tensors)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return weights


def _describe(weight: PackedWeight) -> dict[str, Any]:
    """JSON entry of a weight; `shape` is in the order of `orig_layout`."""
    return {
        "tag": weight.tag,
        "shape": list(weight.shape),
        "orig_layout": _LAYOUTS[len(weight.shape)],
        "k_order": "khkwci",
        "group": weight.group_size if weight.num_groups > 1 else None,
        "bits": BITS[weight.tag],
        "zero_point": weight.zero is not None,
        "level_table": None if weight.level_table is None else list(weight.level_table),
    }


def _read(name: str, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PackedWeight:
    """Read one weight; every key that changes the meaning of codes must be known."""
    if not isinstance(entry, dict):
        raise ValueError(f"expected an object, found {entry!r}")
    check_tag(entry.get("tag"))
    lacking = {"shape", "zero_point", "level_table"} - entry.keys()
    if lacking:
        raise ValueError(f"expected {min(lacking)} in its entry, found none")
    shape, level_table = entry["shape"], entry["level_table"]
    if not isinstance(shape, list):
        raise ValueError(f"shape: expected a list, found {shape!r}")
    if not (level_table is None or isinstance(level_table, list)):
        raise ValueError(f"level_table: expected a list or null, found {level_table!r}")
    parts = ["qdata", "scale", *(["zero"] if entry["zero_point"] else [])]
    wanted = {part: part_name(name, part) for part in parts}
    missing = [tensor for tensor in wanted.values() if tensor not in tensors]
    if missing:
        raise ValueError(f"expected {missing[0]} in the file, found none")
    prefix = part_name(name, "")
    unknown = sorted(k for k in tensors if k.startswith(prefix) and k not in wanted.values())
    if unknown:
        raise ValueError(f"{unknown[0]} is a part that {entry['tag']} does not have here")
    weight = PackedWeight(
        entry["tag"],
        tuple(shape),
        tensors[wanted["qdata"]],
        tensors[wanted["scale"]],
        tensors[wanted["zero"]] if entry["zero_point"] else None,
        None if level_table is None else tuple(level_table),
    )
    described = _describe(weight)
    for key, found in described.items():
        if entry.get(key) != found:
            raise ValueError(f"expected {key} {found!r} by its tensors, found {entry.get(key)!r}")
    strange = sorted(entry.keys() - described.keys() - set(REMARKS))
    if strange:
        raise ValueError(f"{strange[0]} is a key that this version does not know")
    return weight.check_values()
