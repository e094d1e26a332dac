"""The soak in its short form, and that it finds what it looks for when it is there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tessella
from tessella.benchmarks.soak.mutations import BINARY, JSON, YAML, change_json, mutations_of

PLANTED = """
import os, signal, sys, time
from pathlib import Path
from tessella.benchmarks.soak import fuzz
from tessella.benchmarks.soak.subjects import SUBJECTS, Subject

def make(root):
    root.mkdir()
    (root / "file.bin").write_bytes(bytes(1000))

def large():
    Path("/dev/null").write_bytes(b"x" * (400 << 20))

FAULTS = {
    "traceback": lambda: {}["x"],
    "hang": lambda: time.sleep(60),
    "memory": large,
    "signal": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "silent": lambda: None,
    "error": lambda: sys.exit(1),
}

def read(kind):
    def work(root):
        data = (root / "file.bin").read_bytes()
        print(len(data), sum(data))
        if data != bytes(1000):
            FAULTS[kind]()
    return work

resident = int(Path("/proc/self/statm").read_text().split()[1])
own = resident * os.sysconf("SC_PAGE_SIZE") / 2**20
fuzz.make, fuzz.MOST_MEGABYTES = make, own + 200
for kind in FAULTS:
    fuzz.LONGEST = 1.0 if kind == "hang" else 30.0
    SUBJECTS.clear()
    SUBJECTS["planted"] = Subject("data", ("file.bin",), read(kind), checked=True)
    folder = Path(sys.argv[1]) / kind
    folder.mkdir()
    test = fuzz.Fuzz(folder, 0)
    test.run(iter(range(2)))
    print(kind, dict(test.counts), [f.what for f in test.findings])
"""


def python(*words: str) -> subprocess.CompletedProcess[str]:
    """A python that finds this package, and nothing on a graphics card."""
    paths = [str(Path(tessella.__file__).parent.parent), *filter(None, sys.path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=environment, check=False
    )


@pytest.mark.slow
def test_a_short_soak_finds_nothing(tmp_path: Path) -> None:
    """Every kind of file, and two kills of the writer that starts fastest."""
    words = ("--cases", "17", "--kills", "2", "--target", "encode", "--out", str(tmp_path))
    done = python("-m", "tessella.benchmarks.soak.soak", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["fuzz"]["cases"] == 17 and found["fuzz"]["error"] > 5
    assert found["kills"]["kills"] >= 2 and found["kills"]["starts"] > found["kills"]["kills"]
    assert found["fuzz"]["findings"] == found["kills"]["findings"] == []


@pytest.mark.slow
def test_planted_faults_are_found(tmp_path: Path) -> None:
    done = python("-c", PLANTED, str(tmp_path))
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        kind = line.split()[0]
        expected = [] if kind == "error" else [kind] * 2
        assert line.endswith(str(expected)), line
    assert len(done.stdout.splitlines()) == 6


def test_a_case_is_the_same_every_time() -> None:
    text = b'{"a": [1, 2, {"b": "c"}], "d": null}' * 3
    for mutation in {*BINARY, *JSON, *YAML}:
        for case in range(5):
            first, again = (mutation(text, np.random.default_rng([7, case])) for _ in range(2))
            assert first == again, mutation
        assert isinstance(mutation(b"", np.random.default_rng(0)), bytes), mutation
    header = b'{"__metadata__":{"a":"b"}}'
    blob = len(header).to_bytes(8, "little") + header + b"tensors"
    changed = change_json(blob, np.random.default_rng(0))
    size = int.from_bytes(changed[:8], "little")
    assert json.loads(changed[8 : 8 + size]) != json.loads(header)
    assert changed[8 + size :] == b"tensors"
    assert change_json in mutations_of("store/store.json")


def test_a_process_is_stopped_at_its_limit(tmp_path: Path) -> None:
    program = """
import sys, time
from pathlib import Path
from tessella.benchmarks.soak import process
def work():
    print("begun", flush=True)
    time.sleep(60)
start = time.monotonic()
ended = process.run(work, Path(sys.argv[1]), limit=0.2)
print(ended.status, ended.stopped, ended.output.strip(), time.monotonic() - start < 10)
ended = process.run(lambda: sys.exit(3), Path(sys.argv[1]), limit=10)
print(ended.status, ended.stopped)
"""
    done = python("-c", program, str(tmp_path / "log.txt"))
    assert done.stdout.split("\n")[:2] == ["-9 True begun True", "3 False"], done.stderr
