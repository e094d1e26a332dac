"""The folder of a token store that is being written, which an interrupted writer continues.

`NAME.unfinished` stands beside the store NAME until that is complete:

    writer.json                 the lock: held by the writer, and released when its process ends
    shard-00000.safetensors     finished shards
    pending-00003.safetensors   rows after the last finished shard
    probe.safetensors           original images, see `store.py`
    progress.json               list of these files, settings and progress of the writer

`progress.json` is replaced last and at once, so it always lists files that are complete. What it
does not list is what a killed writer left, and is removed. Nothing else there is touched.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import STRICT, to_dict
from ..documents import DocumentError, check, parse_json, read_json
from ..files import SaveError, atomic_file
from ..unfinished import UnfinishedFolder
from .store_format import UNFINISHED, StoredFile, StoreError, check_file

LOCK, STATE = UnfinishedFolder.LOCK, "progress.json"
_OURS = re.compile(
    r"writer\.json|progress\.json|probe\.safetensors|(shard|pending)-\d{5,}\.safetensors"
    r"|\.(progress\.json|probe\.safetensors|(shard|pending)-\d{5,}\.safetensors)\.\w+\.partial"
)


@dataclass(frozen=True, kw_only=True)
class WorkState:
    """Content of `progress.json`.

    Args:
        settings: What decides the content of the store, JSON values by name; a writer with other
            settings does not continue it.
        about: Names for the header of the store: `tokenizer` and `source`.
        shards: Finished shards, in order.
        pending: File of the rows after the last shard, or None.
        probe: File of original images, or None.
        progress: Progress of the work, JSON values, as `TokenStoreWriter.mark` got it.
        finished: Whether all rows are in the shards.
    """

    __pydantic_config__ = STRICT
    settings: dict[str, Any]
    about: dict[str, str]
    shards: tuple[StoredFile, ...] = ()
    pending: StoredFile | None = None
    probe: StoredFile | None = None
    progress: dict[str, Any] = field(default_factory=dict)
    finished: bool = False

    @property
    def rows(self) -> int:
        """Number of rows that are kept."""
        return sum(s.rows for s in self.shards) + (self.pending.rows if self.pending else 0)

    @property
    def files(self) -> list[StoredFile]:
        """Every file that is listed."""
        return [*self.shards, *filter(None, (self.pending, self.probe))]


class WorkFolder:
    """The unfinished folder of a store; `lock` it before anything else.

    Args:
        store: Path of the store.

    Attributes:
        path: Path of the unfinished folder.
    """

    def __init__(self, store: Path) -> None:
        self.path = store.with_name(f"{store.name}{UNFINISHED}")
        self._folder = UnfinishedFolder(self.path, _OURS)

    def lock(self) -> None:
        """Make the folder and hold its lock until `release`, or until this process ends.

        Raises:
            StoreError: If another writer holds it.
            FileExistsError: If something else stands at its path.
            SaveError: If it cannot be made.
        """
        try:
            owner = self._folder.take()
        except FileExistsError:
            raise
        except OSError as error:
            raise SaveError(f"cannot write {self.path}: {error.strerror}") from None
        if owner is not None:
            raise StoreError(f"{self.path}: another process is writing this token store ({owner})")

    def release(self) -> None:
        """Give the lock back; without a lock, do nothing."""
        self._folder.release()

    def is_empty(self) -> bool:
        """Whether no state is kept here."""
        return not (self.path / STATE).exists()

    def read(self, *, verify: bool = True) -> WorkState | None:
        """The state of an interrupted writer, and every file of it checked; None if there is none.

        Raises:
            StoreError: If the state or a file is damaged.
        """
        path = self.path / STATE
        try:
            data = read_json(path, dict[str, Any])
            found = data.pop("sha256", None)
            state = check(data, WorkState, name=str(path))
            if found != _checksum(data):
                raise DocumentError(f"{path}: its checksum is another one")
        except FileNotFoundError:
            return None
        except DocumentError as error:
            raise StoreError(f"{error}: damaged; delete {self.path} to begin anew") from None
        for stored in state.files:
            check_file(self.path / stored.file, stored, verify=verify)
        return state

    def commit(self, state: WorkState) -> None:
        """Replace the state, and remove files of ours that it does not list.

        Raises:
            SaveError: If writing fails; the state before stays.
        """
        data = to_dict(state)
        text = json.dumps(data | {"sha256": _checksum(data)}, indent=1)
        with atomic_file(self.path / STATE) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
        self._remove_others({LOCK, STATE, *(stored.file for stored in state.files)})

    def clear(self) -> None:
        """Remove our files, and the folder unless something else is in it."""
        if (self.path / STATE).exists():
            os.unlink(self.path / STATE)  # first: what it lists must exist as long as it does
        self._remove_others({LOCK})

    def remove(self) -> None:
        """Clear the folder and remove it; only while the lock is held."""
        self.clear()
        self._folder.remove()

    def _remove_others(self, kept: set[str]) -> None:
        for name in os.listdir(self.path):
            if name in kept or not _OURS.fullmatch(name):
                continue
            if name.endswith(".partial"):  # an unfinished file: a killed writer's, since we lock
                _remove_workshop(self.path / name)
            else:
                os.unlink(self.path / name)

    def differences(self, state: WorkState, settings: Mapping[str, Any]) -> list[str]:
        """Settings that are not those of the interrupted writer, each with both values."""
        now = parse_json(json.dumps(dict(settings)), name="settings")
        return describe_differences(state.settings, now, "begun with", "now")


def _remove_workshop(folder: Path) -> None:
    """Remove a folder in which a file was made (`unfinished.py`), if nothing else is in it."""
    name = folder.name.removeprefix(".").removesuffix(".partial").rpartition(".")[0]
    for left in (name, f"{name}.writer"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(folder / left)
    with contextlib.suppress(OSError):
        os.rmdir(folder)


def read_state(folder: Path) -> WorkState | None:
    """State of an unfinished folder, for information; None if it is none or has no state.

    Raises:
        StoreError: If it is damaged.
    """
    if not folder.name.endswith(UNFINISHED):
        return None
    return WorkFolder(folder.with_name(folder.name.removesuffix(UNFINISHED))).read(verify=False)


def describe_differences(
    first: Mapping[str, Any], second: Mapping[str, Any], one: str, two: str
) -> list[str]:
    """Names whose values differ, each with both values, for messages."""
    names = [*first, *(name for name in second if name not in first)]
    return [
        f"{name} ({one} {_short(first.get(name))}, {two} {_short(second.get(name))})"
        for name in names
        if first.get(name) != second.get(name)
    ]


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _checksum(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
