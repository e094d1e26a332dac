"""Encoding that is interrupted, killed, shared or repeated gives the bytes of one quiet run."""

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tessella.codec.blocks import Blocks, changes_of
from tessella.codec.encode import encode_source
from tessella.data.image_source import DataError, ImageSource, Sample
from tessella.data.images import BrokenImage
from tessella.data.transforms import AugmentConfig
from tessella.files import SaveError
from tessella.tokenizers.base import Tokenizer
from tessella.tokens import store_writer
from tessella.tokens.store import StoreError, TokenStore
from tessella.tokens.store_merge import merge_stores
from tessella.tokens.tokens import Tokens, TokenSpec

SPEC = TokenSpec((2, 2), (256,))
AUGMENT = AugmentConfig(random_crop=0.5, flip=True)


class Greys(Tokenizer):
    """Tokens are the grey values of the four quarters of a picture of 4 x 4 pixels."""

    def __init__(self, fingerprint: str = "f00d") -> None:
        super().__init__()
        self.spec, self.resolution, self.fingerprint = SPEC, 4, fingerprint
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def encode(self, images: torch.Tensor, *, rng: torch.Generator | None = None) -> Tokens:
        greys = torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), 2)
        return Tokens(((greys.flatten(1)[..., None] + 1) * 127.5).round().long(), SPEC)

    def decode(self, tokens: Tokens, *, rng: torch.Generator | None = None) -> torch.Tensor:
        greys = tokens.indices.view(-1, 1, 2, 2).float() / 127.5 - 1
        return greys.repeat_interleave(2, 2).repeat_interleave(2, 3).expand(-1, 3, -1, -1)


class Pictures(ImageSource):
    """Pictures of random pixels; some broken; `event` runs before each is read."""

    def __init__(self, count: int, event: Callable[[int], None] = lambda index: None) -> None:
        self.name, self.split, self.count, self.event = "pictures", "train", count, event

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Sample:
        self.event(index)
        if index % 7 == 3:
            raise BrokenImage(self.id_of(index), "torn")
        pixels = np.random.default_rng(index).integers(0, 256, (4 + index % 3, 5, 3), np.uint8)
        caption = f"number {index}" if index % 2 else None
        return Sample(
            image=Image.fromarray(pixels), id=self.id_of(index), label=index % 2, caption=caption
        )

    def id_of(self, index: int) -> str:
        return f"{'ab'[index % 2]}/{index}.png"

    @property
    def classes(self) -> tuple[str, ...]:
        return ("a", "b")

    def _sizes(self) -> Iterable[int]:
        return range(self.count)


def encode(out: Path, source: ImageSource | None = None, **changes: Any) -> dict[str, Any]:
    tokenizer = changes.pop("tokenizer", None) or Greys()
    settings = {"batch_size": 4, "views": 2, "augment": AUGMENT, "seed": 3, "progress": False}
    return encode_source(tokenizer, source or Pictures(22), out, **(settings | changes))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by name."""
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of 5 rows, and every mark reaches the disk."""
    monkeypatch.setattr(store_writer, "SAVE_SECONDS", -1.0)
    defaults = store_writer.TokenStoreWriter.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "rows_per_shard", 5)


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    """Files of a store that nothing interrupted: 19 readable pictures, twice each."""
    result = encode(tmp_path / "whole" / "store")
    assert result["images"] == 38 and result["resumed"] == 0
    assert len(TokenStore(tmp_path / "whole" / "store").header.shards) == 8
    return contents(tmp_path / "whole" / "store")


def in_child(work: Callable[[], None]) -> int:
    """Run in a process of its own; how it ended, as of `os.waitpid`."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


CALLS = ("replace", "link", "unlink", "rmdir", "mkdir", "fsync")


def at_changes_of_the_disk(monkeypatch: pytest.MonkeyPatch, event: Callable[[], None]) -> None:
    """Call `event` before each change that this process makes."""

    def watched(real: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            event()
            return real(*args, **options)

        return call

    for name in CALLS:
        monkeypatch.setattr(os, name, watched(getattr(os, name)))


def killed_at(monkeypatch: pytest.MonkeyPatch, point: int, work: Callable[[], object]) -> bool:
    """Run `work` in a process that is killed at one of its changes of the disk; False: it ended."""

    def run() -> None:
        left = iter(range(point))

        def kill() -> None:
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        at_changes_of_the_disk(monkeypatch, kill)
        work()

    return os.WIFSIGNALED(in_child(run))


def test_killed_at_changes_of_the_disk_and_resumed_it_is_the_same_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine readable pictures: two shards, three marks, and the change of names at the end."""
    few, changes = {"source": Pictures(10), "views": 1, "augment": None}, []
    with monkeypatch.context() as watching:
        at_changes_of_the_disk(watching, lambda: changes.append(None))
        encode(tmp_path / "quiet" / "store", **few)
    last = len(changes)
    quiet, out, kept = contents(tmp_path / "quiet" / "store"), tmp_path / "out" / "store", set()
    for point in sorted({*range(0, last, last // 20), *range(last - 12, last)}):
        assert killed_at(monkeypatch, point, lambda: encode(out, **few)), point
        if not out.exists():
            result = encode(out, resume=True, **few)
            assert result["images"] == 9 and list(result["broken"]) == ["b/3.png"], point
            kept.add(result["resumed"])
        else:  # killed after the store got its name: nothing is left to do
            with pytest.raises(FileExistsError, match="exists already"):
                encode(out, resume=True, **few)
            kept.add(None)
        assert contents(out) == quiet, point
        assert [p.name for p in out.parent.iterdir()] == ["store"], point
        shutil.rmtree(out.parent)
    assert not killed_at(monkeypatch, last, lambda: encode(out, **few))
    assert {None, 0, 3, 7, 9} == kept


def test_a_run_killed_again_and_again_still_ends(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, rounds = tmp_path / "store", 0
    while killed_at(monkeypatch, 60, lambda: encode(out, resume=True)):
        rounds += 1
        assert rounds < 20
    assert rounds > 1 and contents(out) == whole


@pytest.mark.parametrize("workers", [0, 1])
def test_an_interrupted_run_says_how_to_continue(
    tmp_path: Path, whole: dict[str, bytes], workers: int
) -> None:
    calls = iter([None] * 3)

    class Interrupted(Greys):
        def encode(self, images: torch.Tensor, *, rng: Any = None) -> Tokens:
            next(calls)  # StopIteration at the fourth batch of views
            return super().encode(images)

    out = tmp_path / "out" / "store"
    with pytest.raises(StopIteration) as caught:
        encode(out, tokenizer=Interrupted(), workers=workers)
    assert [p.name for p in out.parent.iterdir()] == ["store.unfinished"]
    note = f"6 rows are kept in {out}.unfinished; the same again with resume (--resume)"
    assert caught.value.__notes__[0].startswith(note)
    with pytest.raises(FileExistsError, match="6 rows of an interrupted writer; continue it"):
        encode(out)
    result = encode(out, resume=True, workers=workers)
    assert result["resumed"] == 6 and contents(out) == whole
    sizes = {"unchanged": 0, "enlarged": 0, "shrunk": 0, "cropped": 0}
    for index in range(22):
        for change in changes_of((5, 4 + index % 3), 4) if index % 7 != 3 else []:
            sizes[change] += 1
    assert result["sizes"] == {name: count for name, count in sizes.items() if count}
    assert [p.name for p in out.parent.iterdir()] == ["store"]


def test_what_was_not_marked_is_not_kept(tmp_path: Path) -> None:
    def fail(index: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        encode(tmp_path / "store", Pictures(22, fail))
    assert not hasattr(caught.value, "__notes__") and not list(tmp_path.iterdir())
    with pytest.raises(DataError, match=r"no image can be read; b/3\.png: torn"):
        encode(tmp_path / "store", Only(Pictures(22), [3, 10, 17]))
    assert not list(tmp_path.iterdir())


class Only(Pictures):
    """Some pictures of another source."""

    def __init__(self, source: Pictures, indices: list[int]) -> None:
        super().__init__(len(indices))
        self.chosen, self.source = indices, source

    def read(self, index: int) -> Sample:
        return self.source.read(self.chosen[index])

    def id_of(self, index: int) -> str:
        return self.source.id_of(self.chosen[index])


@pytest.mark.parametrize("written", [0, 1, 2, 9])
def test_a_full_disk_keeps_what_was_written(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    left = written
    write_bytes = Path.write_bytes

    def until_full(path: Path, blob: bytes) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(path, blob)

    monkeypatch.setattr(Path, "write_bytes", until_full)
    out = tmp_path / "out" / "store"
    with pytest.raises(SaveError, match=r"cannot write .*: No space left") as caught:
        encode(out)
    monkeypatch.undo()
    told = [str(caught.value), *getattr(caught.value, "__notes__", [])]
    if written < 3:  # not one state could be written
        assert told[-1].endswith("nothing was left behind") and not list(out.parent.iterdir())
    else:
        assert "nothing was left" not in told[0] and "rows are kept" in told[1]
    monkeypatch.setitem(store_writer.TokenStoreWriter.__init__.__kwdefaults__, "rows_per_shard", 5)
    result = encode(out, resume=True)
    assert (result["resumed"] > 0) == (written > 2) and contents(out) == whole


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"batch_size": 5}, ["batch size (begun with 4, now 5)"]),
        ({"seed": 4, "views": 3}, ["seed (begun with 3, now 4)", "views (begun with 2, now 3)"]),
        ({"tokenizer": Greys("beef")}, ['tokenizer (begun with "f00d", now "beef")']),
        ({"source": Pictures(23)}, ["number of images (begun with 22, now 23)", "data ("]),
        ({"limit": 8}, ["number of images (begun with 22, now 8)"]),
        ({"shard": (0, 2)}, ['part (begun with nothing, now "0/2")']),
        ({"augment": AugmentConfig(flip=True)}, ['augment (begun with {"random_crop": 0.5']),
    ],
)
def test_other_work_is_not_continued(
    tmp_path: Path, changes: dict[str, Any], named: list[str]
) -> None:
    def fail(index: int) -> None:
        if index == 14:
            raise RuntimeError("stop")

    out = tmp_path / "store"
    with pytest.raises(RuntimeError, match="stop"):
        encode(out, Pictures(22, fail))
    before = contents(tmp_path / "store.unfinished")
    with pytest.raises(StoreError, match="this is not the work that was begun") as caught:
        encode(out, resume=True, **changes)
    assert all(text in str(caught.value) for text in named), str(caught.value)
    after = contents(tmp_path / "store.unfinished")
    assert {n: b for n, b in after.items() if n != "writer.json"} == {
        n: b for n, b in before.items() if n != "writer.json"
    }
    encode(out, overwrite=True, **changes)
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_a_copy_of_the_data_under_another_name_is_the_same_data(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    def fail(index: int) -> None:
        if index == 14:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        encode(tmp_path / "store", Pictures(22, fail))
    moved = Pictures(22)
    moved.name = "elsewhere"
    encode(tmp_path / "store", moved, resume=True, name="/other/path/of/the/tokenizer")
    assert contents(tmp_path / "store") == whole


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_shards_merge_to_the_bytes_of_one_process(
    tmp_path: Path, whole: dict[str, bytes], count: int
) -> None:
    paths = [tmp_path / f"part-{i}" for i in range(count)]
    for i, path in enumerate(paths):
        encode(path, shard=(i, count))
    parts = [TokenStore(path) for path in reversed(paths)]
    assert parts[0].header.part is not None and parts[0].header.part.index == count - 1
    result = merge_stores(parts, tmp_path / "merged", rows_per_shard=5)
    assert result == {"store": str(tmp_path / "merged"), "images": 38, "parts": count}
    assert contents(tmp_path / "merged") == whole


def test_a_shard_is_resumed_as_a_whole_store_is(tmp_path: Path) -> None:
    def fail(index: int) -> None:
        if index == 18:
            raise RuntimeError

    encode(tmp_path / "quiet", shard=(1, 2))
    with pytest.raises(RuntimeError):
        encode(tmp_path / "part", Pictures(22, fail), shard=(1, 2))
    assert encode(tmp_path / "part", shard=(1, 2), resume=True)["resumed"] == 8
    assert contents(tmp_path / "part") == contents(tmp_path / "quiet")


def test_shards_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    for i in range(3):
        encode(tmp_path / f"{i}", shard=(i, 3))
    encode(tmp_path / "other seed", shard=(2, 3), seed=4)
    encode(tmp_path / "other count", shard=(1, 2))
    encode(tmp_path / "whole")
    stores = {p.name: TokenStore(p) for p in tmp_path.iterdir()}
    for names, message in (
        (["0", "2"], "found 2 of 3 parts; 1 missing"),
        (["0", "1", "2", "1"], "are both part 1 of 3"),
        (["0", "1", "other seed"], r"seed \(.*0 3, .*other seed 4\)"),
        (["0", "1", "other count"], r"number of parts \(.*0 3, .*other count 2\)"),
        (["0", "whole"], r"number of parts \(.*0 3, .*whole nothing\)"),
        ([], "at least one token store"),
    ):
        with pytest.raises(StoreError, match=message):
            merge_stores([stores[name] for name in names], tmp_path / "merged")
    with pytest.raises(FileExistsError, match="exists already"):
        merge_stores([stores["whole"]], tmp_path / "whole")
    with pytest.raises(FileExistsError, match="input of this command"):
        merge_stores([stores["whole"]], tmp_path / "whole", overwrite=True)
    assert len(list(tmp_path.iterdir())) == len(stores)
    with pytest.raises(DataError, match="22 images are 6 batches of 4, too few for 7 shards"):
        encode(tmp_path / "many", shard=(0, 7))
    with pytest.raises(ValueError, match=r"part 3/3: expected 0/3 to 2/3"):
        encode(tmp_path / "many", shard=(3, 3))


def test_whole_stores_are_joined_in_the_order_given(tmp_path: Path) -> None:
    encode(tmp_path / "a", Pictures(5))
    encode(tmp_path / "b", Pictures(9))
    stores = [TokenStore(tmp_path / name) for name in ("b", "a")]
    merge_stores(stores, tmp_path / "c", rows_per_shard=7)
    joined = TokenStore(tmp_path / "c")
    assert joined.tokens().equal(Tokens.cat([store.tokens() for store in stores]))
    assert joined.ids == stores[0].ids + stores[1].ids
    assert joined.captions == stores[0].captions + stores[1].captions
    assert joined.labels.tolist() == stores[0].labels.tolist() + stores[1].labels.tolist()
    assert {shard.rows for shard in joined.header.shards} == {7, 3}


def test_limit_takes_the_first_images(tmp_path: Path) -> None:
    encode(tmp_path / "all", views=1, augment=None)
    result = encode(tmp_path / "some", views=1, augment=None, limit=9)
    some, everything = TokenStore(tmp_path / "some"), TokenStore(tmp_path / "all")
    assert result["images"] == len(some) == 8 and list(result["broken"]) == ["b/3.png"]
    assert some.tokens().equal(everything[:8]) and some.ids == everything.ids[:8]
    assert encode(tmp_path / "more", limit=99, views=1, augment=None)["images"] == 19
    with pytest.raises(ValueError, match="limit=0"):
        encode(tmp_path / "none", limit=0)


def test_reader_processes_change_nothing(tmp_path: Path, whole: dict[str, bytes]) -> None:
    assert encode(tmp_path / "store", workers=2)["images"] == 38
    assert contents(tmp_path / "store") == whole


def test_two_writers_of_one_store_are_told_at_once(tmp_path: Path) -> None:
    """Another process, and another writer of this one; the first finishes undisturbed."""
    out, told = tmp_path / "store", tmp_path / "told.json"

    def second(index: int) -> None:
        if index != 5:
            return

        def attempt() -> None:
            messages = []
            for changes in ({}, {"resume": True}, {"overwrite": True}):
                with pytest.raises(StoreError) as caught:
                    encode(out, **changes)
                messages.append(str(caught.value))
            told.write_text(json.dumps(messages))

        assert in_child(attempt) == 0
        with pytest.raises(StoreError, match="with another writer"):
            encode(out)

    assert encode(out, Pictures(22, second))["images"] == 38
    busy = f"{out}.unfinished: another process is writing this token store (process {os.getpid()}"
    messages = json.loads(told.read_text())
    assert len(messages) == 3 and all(text.startswith(busy) for text in messages)
    assert not (tmp_path / "store.unfinished").exists()


def test_a_folder_of_somebody_else_in_the_place_of_ours_stays(tmp_path: Path) -> None:
    mine = tmp_path / "store.unfinished"
    mine.mkdir()
    (mine / "shard-00000.safetensors").write_bytes(b"mine")
    for changes in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(FileExistsError, match="did not write there: shard-00000"):
            encode(tmp_path / "store", **changes)
    assert contents(mine) == {"shard-00000.safetensors": b"mine"}
    (mine / "shard-00000.safetensors").unlink()
    mine.rmdir()
    mine.symlink_to(tmp_path)
    with pytest.raises(FileExistsError, match="is in the way"):
        encode(tmp_path / "store")
    assert mine.is_symlink()


@pytest.mark.parametrize("damaged", ["progress.json", "shard-00001", "pending", "probe"])
def test_damage_of_what_was_kept_is_found(tmp_path: Path, damaged: str) -> None:
    def fail(index: int) -> None:
        if index == 9:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        encode(tmp_path / "store", Pictures(22, fail))
    (path,) = (p for p in (tmp_path / "store.unfinished").iterdir() if p.name.startswith(damaged))
    blob = bytearray(path.read_bytes())
    blob[-8] ^= 1
    path.write_bytes(blob)
    with pytest.raises(StoreError, match=rf"{damaged}.*damaged"):
        encode(tmp_path / "store", resume=True)
    assert path.exists()


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        ((8, 8), ["unchanged"]),
        ((8, 9), ["cropped"]),
        ((7, 7), ["enlarged"]),
        ((30, 7), ["enlarged", "cropped"]),
        ((9, 9), ["shrunk"]),
        ((9, 30), ["shrunk", "cropped"]),
    ],
)
def test_changes_of_size(size: tuple[int, int], changes: list[str]) -> None:
    assert changes_of(size, 8) == changes


def test_blocks_are_numbered(tmp_path: Path) -> None:
    blocks = Blocks(Pictures(9), 4, 4)
    assert len(blocks) == 3 and [len(blocks[i].ids) for i in range(3)] == [3, 4, 1]
    with pytest.raises(IndexError, match="block 3: expected 0 to 2"):
        blocks[3]
