"""Reading of weights from public checkpoint files without running code that they contain.

Files are safetensors, or PyTorch files read by `torch.load(weights_only=True)`; an index names the
files of a checkpoint in parts, and a folder is searched for one. Training checkpoints hold more
than weights: objects of Lightning classes and argument lists become empty dicts, and any other
class that is not plain data is an error that names it.
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
from ..documents import read_json
from ..files import some_of
from .file_kinds import container_of
from .sections import check_stored, choose_section, find_sections
from .tensors import listed

INDEX = ".index.json"
"""End of the name of an index: a JSON file that tells which file holds which tensor."""
_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".th", ".ckpt")
_INERT = re.compile(r"(pytorch_lightning|lightning|lightning_fabric)\..+|argparse\.Namespace")


class Inert:
    """Placeholder for a foreign class in a pickle; creating an instance gives an empty dict."""

    # misc: __new__ returns another class on purpose, so that unpickling never runs foreign code
    def __new__(cls, *_: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        """Return an empty dict."""
        return OrderedDict()


@dataclass(frozen=True, eq=False)
class StoredWeights:
    """The weights of a checkpoint.

    Args:
        tensors: Tensors by public name, without the prefixes of wrappers.
        section: Section of the checkpoint that held them; "" = it holds nothing else.
        averaged: Whether they are a running average.
        completed: Number of tensors that the average lacked and that are those of the weights.
        found: Number of tensors of every section, by its label.
        ignored: Reasons why other parts were left out, by their names.
        files: Files that were read.
        container: What the files are.
    """

    tensors: dict[str, Tensor]
    section: str
    averaged: bool
    completed: int
    found: dict[str, int]
    ignored: dict[str, str]
    files: list[Path]
    container: str


def read_weights(
    path: str | os.PathLike[str], *, average: bool = True, section: str | None = None
) -> StoredWeights:
    """Read the weights of a checkpoint onto the CPU.

    Args:
        path: A .safetensors file, a file written by `torch.save`, a `*.index.json` beside the
            files that it names, or a folder with one of these.
        average: Whether to take a running average of the weights where there is one.
        section: Label of the section to take; None: chosen by its name (`sections.py`).

    Raises:
        CheckpointError: If the file is missing, truncated, of another kind, or a pickle that
            cannot be read without running code; the message says which.
    """
    path = Path(path)
    if path.is_dir():
        path = _file_in(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    files = _files_of(path) if path.name.endswith(INDEX) else [path]
    content, container = _joined(files) if len(files) > 1 else _content_of(files[0])
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not named tensors")
    try:
        sections = find_sections(content)
        if not sections:
            raise CheckpointError(
                "holds no weights: expected named tensors, at the top or in a section such as "
                f"state_dict, model or ema; found {listed(map(str, content))}"
            )
        chosen = choose_section(sections, average=average, name=section)
        check_stored(
            chosen.tensors, sum(f.stat().st_size for f in files), chosen.label or "weights"
        )
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    labels = [one.label for one in sections]
    ignored = {
        one.label or "weights of no section": (
            "another copy of the weights"
            if one.tensors.keys() == chosen.tensors.keys()
            else "not the weights that are taken"
        )
        for one in sections
        if one is not chosen
    }
    for name, value in content.items():
        inside = any(f"{label}.".startswith(f"{name}.") for label in labels)
        if not inside and not isinstance(value, Tensor):
            ignored[str(name)] = "not weights"
    return StoredWeights(
        chosen.tensors,
        chosen.label,
        chosen.averaged,
        chosen.completed,
        {one.label: len(one.tensors) for one in sections},
        ignored,
        files if files == [path] else [path, *files],
        container,
    )


def _file_in(folder: Path) -> Path:
    """The one checkpoint in a folder: an index, or the only file of weights."""
    names = sorted(p.name for p in folder.iterdir())
    if "card.json" in names and "config.yaml" in names:
        raise CheckpointError(f"{folder}: a model folder of tessella's, which needs no import")
    if ".metadata" in names and any(name.endswith(".distcp") for name in names):
        raise CheckpointError(
            f"{folder}: a distributed checkpoint; expected one file: python -m "
            "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE makes it"
        )
    indices = [name for name in names if name.endswith(INDEX)]
    files = [name for name in names if name.endswith(_ENDINGS)]
    safe = [name for name in indices or files if ".safetensors" in name]
    for found in (safe, indices or files):
        if len(found) == 1:
            return folder / found[0]
    raise CheckpointError(
        f"{folder}: a folder; expected the checkpoint file in it, found "
        f"{listed(indices or files or names)}"
    )


def _files_of(index: Path) -> list[Path]:
    """The files that an index names, which must be there, beside it."""
    named = read_json(index, dict[str, Any], error=CheckpointError).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise CheckpointError(f"{index}: has no weight_map; expected the file of each tensor")
    names = set(named.values())
    if odd := [n for n in names if not isinstance(n, str) or Path(n).name != n]:
        raise CheckpointError(f"{index}: weight_map names {odd[0]!r}; expected a file beside it")
    files = [index.parent / name for name in sorted(names)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(
            f"{index}: {len(missing)} of its {len(files)} files are missing: {some_of(missing)}"
        )
    return files


def _joined(files: list[Path]) -> tuple[dict[Any, Any], str]:
    """What the files of a checkpoint in several parts hold, and what kind of files they are."""
    whole: dict[Any, Any] = {}
    kinds = set()
    for file in files:
        part, kind = _content_of(file)
        if not isinstance(part, Mapping):
            raise CheckpointError(f"{file}: holds a {type(part).__name__}, not named tensors")
        if repeated := whole.keys() & part.keys():
            raise CheckpointError(
                f"{file}: has tensors that another file of the checkpoint has: {some_of(repeated)}"
            )
        whole |= part
        kinds.add(kind)
    return whole, f"{len(files)} files ({', '.join(sorted(kinds))})"


def _content_of(path: Path) -> tuple[Any, str]:
    """What a file holds, and what kind of file it is."""
    kind = container_of(path)
    if kind != "safetensors":
        return _load_pickle(path, zipped=kind == "PyTorch file"), kind
    try:
        return load_file(path), kind
    except SafetensorError as error:
        raise CheckpointError(f"{path}: truncated or damaged ({error})") from None


def _load_pickle(path: Path, *, zipped: bool) -> Any:
    """Read the object in a PyTorch file without running any code.

    Args:
        path: File written by `torch.save`.
        zipped: Whether the file is a zip archive, the format since PyTorch 1.6.
    """
    serialization = torch.serialization
    mapped = zipped and path.suffix != ".safetensors"  # by this ending torch would go
    try:
        with path.open("rb") as opened:
            foreign = serialization.get_unsafe_globals_in_checkpoint(opened) if zipped else []
            opened.seek(0)
            refused = [name for name in foreign if not _INERT.fullmatch(name)]
            if not refused:
                with (
                    warnings.catch_warnings(),
                    serialization.safe_globals([(Inert, name) for name in foreign]),
                ):
                    warnings.simplefilter("ignore")  # about odd pickles, which fail anyway
                    file = path if mapped else opened
                    return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
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
