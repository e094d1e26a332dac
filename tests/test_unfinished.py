"""What a kill leaves: readers see the old or the new output, and the next writer sweeps."""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tessella.files import MARKER, atomic_file, atomic_folder
from tessella.unfinished import open_lock, sweep

KILLS = """
import fcntl, json, os, shutil, sys
from pathlib import Path
from tessella import files, unfinished

root, os.fsync = Path(sys.argv[1]), lambda descriptor: None

def folder(content, overwrite=True):
    with files.atomic_folder(root / "out", kind="thing", overwrite=overwrite) as place:
        for name in ("a", "sub/b"):
            (place / name).parent.mkdir(exist_ok=True)
            (place / name).write_text(content)

def file(content):
    with files.atomic_file(root / "out") as place:
        place.write_text(content)

def remove(_):
    files.remove_folder(root / "out", "thing")

def state():
    out = root / "out"
    if not os.path.lexists(out):
        return None
    if out.is_file():
        return out.read_text()
    (marker,) = [files.read_marker(out)]
    texts = {(out / name).read_text() for name in ("a", "sub/b")}
    return texts.pop() if len(texts) == 1 and set(marker["files"]) == {"a", "sub/b"} else "half"

CALLS = [(os, n) for n in "mkdir open write rename replace unlink rmdir chmod fsync".split()]
CALLS += [(fcntl, "flock"), (files, "_exchange")]

def killed(work, at, exchange):
    # Run work in a child that ends, without any clean-up, before its call number `at`.
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    if not exchange:
        files._exchange = lambda one, two: False
    count = 0
    def counted(call):
        def wrapped(*given, **options):
            nonlocal count
            count += 1
            if count > at:
                os._exit(9)
            return call(*given, **options)
        return wrapped
    for place, name in CALLS:
        setattr(place, name, counted(getattr(place, name)))
    work()
    os._exit(0)

found = []
for exchange in (True, False):
    for write, first, second in ((folder, None, "new"), (folder, "old", "new"),
                                 (file, "old", "new"), (remove, "old", None)):
        start = folder if write is remove else write
        seen, at = [], 0
        while True:
            if first is not None:
                start(first)
            ended = not killed(lambda: write(second), at, exchange)
            seen.append(state())
            if write is remove:
                unfinished.sweep(root)
                after = (root / "out").exists()
                assert state() in ("old", None), state()
                assert sorted(os.listdir(root)) == ["out"] * after, os.listdir(root)
            else:
                write("last")
                assert os.listdir(root) == ["out"] and state() == "last", os.listdir(root)
            out = root / "out"
            out.unlink() if out.is_file() else shutil.rmtree(out, ignore_errors=True)
            if ended:
                break
            at += 1
        found.append([exchange, write.__name__, first, at, sorted(set(seen), key=str), seen[-1]])
sys.stdout.write(json.dumps(found))
"""


def test_a_kill_at_any_point_leaves_the_old_or_the_new_and_the_next_writer_sweeps(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-W", "error", "-c", KILLS, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 8
    for exchange, write, first, kills, seen, last in found:
        case = (exchange, write, first)
        assert kills > 8, case
        wanted = {first, None if write == "remove" else "new"}
        if not exchange and write == "folder":
            wanted.add(None)  # between two renames; the next writer puts the old one back
        assert set(seen) == wanted, case
        assert last == (None if write == "remove" else "new"), case


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def dead(path: Path, *, machine: str | None = None, text: str | None = None) -> Path:
    """A workshop as a killed writer leaves it."""
    folder = path.with_name(f".{path.name}.0123abcd.partial")
    (folder / path.name).mkdir(parents=True)
    (folder / path.name / "half").write_text("half")
    about = {"tessella": "writer", "machine": machine or platform.node(), "process": 1}
    (folder / f"{path.name}.writer").write_text(json.dumps(about) if text is None else text)
    return folder


def test_the_replaced_folder_is_put_back(tmp_path: Path) -> None:
    """Between two renames nothing has the name; without a new writer, a sweep is enough."""
    out = tmp_path / "out"
    left = dead(out)
    with atomic_folder(out, kind="thing") as folder:
        (folder / "a").write_text("old")
    left = dead(out)
    os.rename(out, left / "out.replaced")
    with pytest.raises(FileExistsError, match="exists already"), atomic_folder(out, kind="thing"):
        pass
    assert names(tmp_path) == ["out"] and (out / "a").read_text() == "old"


def test_a_folder_that_version_0_5_was_replacing_is_put_back(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    for process in (os.getpid(), ended.pid):
        old = tmp_path / f".out.{process}.old"
        old.mkdir()
        (old / "a").write_text("old")
        back = sweep(tmp_path, "out")
        if process == os.getpid():
            assert not back and names(tmp_path) == [old.name]
            (old / "a").unlink()
            old.rmdir()
    assert back == [tmp_path / "out"] and (tmp_path / "out" / "a").read_text() == "old"


def test_what_a_living_writer_makes_stays(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out", kind="thing") as folder:
        (folder / "a").write_text("mine")
        assert sweep(tmp_path) == []
        with atomic_file(tmp_path / "out.txt") as file:
            assert sweep(tmp_path) == []
            file.write_text("mine")
    assert (tmp_path / "out" / "a").read_text() == (tmp_path / "out.txt").read_text() == "mine"
    assert names(tmp_path) == ["out", "out.txt"]


ORPHAN = """
import os, sys
from pathlib import Path
from tessella.unfinished import workshop
with workshop(Path(sys.argv[1])):
    if not os.fork():
        sys.stdout.write("started")
        sys.stdout.flush()
        sys.stdin.read()
        os._exit(0)
    os._exit(9)
"""


def test_a_forked_child_does_not_keep_the_work_of_its_dead_parent(tmp_path: Path) -> None:
    """Workers of a loader outlive a killed parent by seconds."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-W", "error", "-c", ORPHAN, str(tmp_path / "out")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": environment}
    with subprocess.Popen(command, **pipes) as parent:  # type: ignore[call-overload]
        assert parent.stdout.read(7) == b"started"
        assert parent.wait(timeout=60) == 9
        assert len(names(tmp_path)) == 1
        sweep(tmp_path)
        assert names(tmp_path) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda left: (left / "notes.md").write_text("mine"),
        lambda left: (left / "out.writer").unlink(),
        lambda left: (left / "out.writer").write_text("{}"),
        lambda left: (left / "out.writer").write_text("no JSON"),
        lambda left: os.rename(left, left.with_name(".out.partial")),
        lambda left: os.rename(left, left.with_name(".out.1234567g.partial")),
    ],
)
def test_what_is_no_workshop_of_ours_stays(change: Any, tmp_path: Path) -> None:
    change(dead(tmp_path / "out"))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert sweep(tmp_path) == sweep(tmp_path, "out") == []
    with atomic_folder(tmp_path / "out", kind="thing"):
        pass
    assert {p: p.read_bytes() for p in before} == before


def test_links_and_other_names_stay(tmp_path: Path) -> None:
    elsewhere = dead(tmp_path / "elsewhere" / "out")
    (tmp_path / elsewhere.name).symlink_to(elsewhere)
    other = dead(tmp_path / "other")
    sweep(tmp_path, "out")
    assert (elsewhere / "out" / "half").exists() and (other / "other" / "half").exists()
    assert sweep(tmp_path) == []
    assert not other.exists() and (elsewhere / "out" / "half").exists()


def test_work_of_another_machine_is_left_for_a_day(tmp_path: Path) -> None:
    left = dead(tmp_path / "out", machine="another")
    sweep(tmp_path)
    assert left.exists()
    old = time.time() - 2 * 24 * 3600
    for path in (*left.rglob("*"), left):
        os.utime(path, (old, old))
    sweep(tmp_path)
    assert not left.exists()


def test_a_file_put_into_the_old_folder_in_the_last_moment_is_kept(tmp_path: Path) -> None:
    """Killed between the exchange and the check that nothing foreign is in the old folder."""
    left = dead(tmp_path / "out")
    for part in ("a", MARKER, "photo.png"):
        text = json.dumps({"kind": "thing", "files": {"half": 4, "a": 1}})
        (left / "out" / part).write_text(text if part == MARKER else "x")
    sweep(tmp_path)
    (kept,) = tmp_path.iterdir()
    assert kept.name.startswith("out.kept-") and (kept / "photo.png").read_text() == "x"


def test_a_lock_is_no_link_and_no_pipe(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("mine")
    (tmp_path / ".lock").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic link"):
        open_lock(tmp_path / ".lock")
    (tmp_path / "dangling").symlink_to(tmp_path / "new")
    with pytest.raises(OSError, match="symbolic link"):
        open_lock(tmp_path / "dangling")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no regular file"):
        open_lock(tmp_path / "pipe")
    assert names(tmp_path) == [".lock", "dangling", "pipe", "target"]
