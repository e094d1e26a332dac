"""Weights out of foreign checkpoint files, without running anything that is in them.

safetensors, or PyTorch files through `torch.load(weights_only=True)`. Training checkpoints carry
more than weights: what names a class of Lightning or an argument list becomes an inert dict, any
other foreign class is refused by name.
"""

import os
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..checkpoints import CheckpointError
from .vqgan import listed

AVERAGE = "ema"
WRAPPERS = ("state_dict", "model", "model_state_dict")
"""Sections of a training checkpoint that hold the weights, in order of preference."""
_INERT = re.compile(r"(pytorch_lightning|lightning|lightning_fabric)\..+|argparse\.Namespace")


class Inert:
    """Stands in for a foreign class in a pickle: to make one is to make a dict."""

    def __new__(cls, *_: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


@dataclass(frozen=True, eq=False)
class StoredWeights:
    """What a checkpoint file holds.

    Args:
        tensors: By public name.
        section: Where in the file they were; "" = it holds nothing else.
        ignored: Other sections, each with the reason why it was left out.
    """

    tensors: dict[str, Tensor]
    section: str
    ignored: dict[str, str]


def read_weights(path: str | os.PathLike[str], *, average: bool = True) -> StoredWeights:
    """The weights in a checkpoint file.

    Args:
        path: A .safetensors file, or one written by `torch.save`, on the CPU.
        average: Take the section `ema` where there is one.

    Raises:
        CheckpointError: If the file is missing, truncated, of another kind, or a pickle that would
            have to run code to be read; the message says which.
    """
    path = Path(path)
    if not path.is_file():
        what = "a folder; expected the checkpoint file in it" if path.is_dir() else "no such file"
        raise CheckpointError(f"{path}: {what}")
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:9] == b"{":
        try:
            return StoredWeights(load_file(path), "", {})
        except SafetensorError as error:
            raise CheckpointError(f"{path}: truncated or damaged ({error})") from None
    zipped = head.startswith(b"PK\x03\x04")
    if not zipped and not head.startswith(b"\x80"):
        raise CheckpointError(
            f"{path}: not a checkpoint; expected safetensors or a file written by torch.save"
        )
    return _choose(_load_pickle(path, zipped), path, average)


def _load_pickle(path: Path, zipped: bool) -> Any:
    """The object in a PyTorch file, read without running anything."""
    serialization = torch.serialization
    try:
        foreign = serialization.get_unsafe_globals_in_checkpoint(path) if zipped else []
        refused = [name for name in foreign if not _INERT.fullmatch(name)]
        if not refused:
            with (
                warnings.catch_warnings(),
                serialization.safe_globals([(Inert, name) for name in foreign]),
            ):
                warnings.simplefilter("ignore")  # of odd pickles, which fail anyway
                return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # unpicklers of damaged files raise anything
        lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
        named = next((line for line in lines if "GLOBAL" in line), "")
        if not named:
            what = "truncated, damaged, or not written by torch.save"
            detail = "" if lines[0].startswith("Weights only") else f" ({lines[0].split('. ')[0]})"
            raise CheckpointError(f"{path}: {what}{detail}") from None
        refused = [named.split("GLOBAL ")[-1].split()[0]]
    raise CheckpointError(
        f"{path}: an unsafe pickle, refused: it names {', '.join(sorted(refused))}; expected "
        "tensors and plain values only (whoever trusts the file can save its state dict anew)"
    )


def _choose(content: Any, path: Path, average: bool) -> StoredWeights:
    """The section with the weights, and what else there is."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not named tensors")
    if _is_state(content):
        return StoredWeights(dict(content), "", {})
    order = (AVERAGE, *WRAPPERS) if average else (*WRAPPERS, AVERAGE)
    section = next((name for name in order if _is_state(content.get(name))), None)
    if section is None:
        raise CheckpointError(
            f"{path}: holds no weights: expected named tensors, at the top or under "
            f"{', '.join(order)}; found {listed(map(str, content))}"
        )
    ignored = {
        str(name): "another copy of the weights" if name in order else "not weights"
        for name in content
        if name != section
    }
    return StoredWeights(dict(content[section]), section, ignored)


def _is_state(content: Any) -> bool:
    """Whether it is named tensors and nothing else."""
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(n, str) and isinstance(t, Tensor) for n, t in content.items())
    )
