"""Reading of weights from public checkpoint files without running code that they contain.

Files are safetensors, or PyTorch files read by `torch.load(weights_only=True)`. Training
checkpoints hold more than weights: objects of Lightning classes and argument lists become empty
dicts, and any other class that is not plain data is an error that names it.
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
from .tensors import listed

AVERAGE = "ema"
"""Section of a training checkpoint that holds the running average of the weights."""
WRAPPERS = ("state_dict", "model", "model_state_dict")
"""Sections of a training checkpoint that hold the weights, in order of preference."""
_INERT = re.compile(r"(pytorch_lightning|lightning|lightning_fabric)\..+|argparse\.Namespace")


class Inert:
    """Placeholder for a foreign class in a pickle; creating an instance gives an empty dict."""

    # misc: __new__ returns another class on purpose, so that unpickling never runs foreign code
    def __new__(cls, *_: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        """Return an empty dict."""
        return OrderedDict()


@dataclass(frozen=True, eq=False)
class StoredWeights:
    """The weights of a checkpoint file.

    Args:
        tensors: Tensors by public name.
        section: Section of the file that held them; "" = the file holds nothing else.
        ignored: Reasons why the other sections were left out, by section name.
    """

    tensors: dict[str, Tensor]
    section: str
    ignored: dict[str, str]


def read_weights(path: str | os.PathLike[str], *, average: bool = True) -> StoredWeights:
    """Read the weights of a checkpoint file onto the CPU.

    Args:
        path: A .safetensors file, or a file written by `torch.save`.
        average: Whether to take the section `ema` where there is one.

    Raises:
        CheckpointError: If the file is missing, truncated, of another kind, or a pickle that
            cannot be read without running code; the message says which.
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
    """Read the object in a PyTorch file without running any code.

    Args:
        path: File written by `torch.save`.
        zipped: Whether the file is a zip archive, the format since PyTorch 1.6.
    """
    serialization = torch.serialization
    try:
        foreign = serialization.get_unsafe_globals_in_checkpoint(path) if zipped else []
        refused = [name for name in foreign if not _INERT.fullmatch(name)]
        if not refused:
            with (
                warnings.catch_warnings(),
                serialization.safe_globals([(Inert, name) for name in foreign]),
            ):
                warnings.simplefilter("ignore")  # warnings about odd pickles, which fail anyway
                return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a damaged pickle may raise any exception
        lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
        named = next((line for line in lines if "GLOBAL" in line), "")
        if not named:
            what = "truncated, damaged, or not written by torch.save"
            detail = "" if lines[0].startswith("Weights only") else f" ({lines[0].split('. ')[0]})"
            raise CheckpointError(f"{path}: {what}{detail}") from None
        refused = [named.split("GLOBAL ")[-1].split()[0]]
    raise CheckpointError(
        f"{path}: an unsafe pickle, refused: it names {', '.join(sorted(refused))}; expected "
        "tensors and plain values only (if you trust the file, load it yourself and save its state "
        "dict again)"
    )


def _choose(content: Any, path: Path, average: bool) -> StoredWeights:
    """Select the section with the weights and list the other sections.

    Args:
        content: The unpickled object.
        path: File name for error messages.
        average: Whether the section `ema` comes first.
    """
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
    """Whether an object is a mapping of names to tensors and nothing else, and not empty."""
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(n, str) and isinstance(t, Tensor) for n, t in content.items())
    )
