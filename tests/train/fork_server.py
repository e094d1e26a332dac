"""Runs the training scripts many times for the price of one start: imports once, forks per run.

Not a test. Reads one JSON job a line on stdin, answers one JSON line on stdout. In every forked
process the command line is parsed and run exactly as `python train/SCRIPT.py ...` would, with the
environment, files and signals of a process of its own.

    {"script": "tokenizer" | "generator", "argv": [...], "output": PATH, "env": {...},
     "signal": [NAME, STEP] | null, "limit": N | null, "curves": BOOL}
        -> {"pid": N}
    {"wait": PID}
        -> {"status": exit status, or minus the signal that ended it}
"""

import json
import os
import resource
import signal
import sys
import time
from types import ModuleType
from typing import Any, NoReturn

import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401  what a run imports on its way
import scipy.signal  # noqa: F401
import torch
import torch._dynamo
import torchmetrics  # noqa: F401

import tessella.train.generator
import tessella.train.steps
import tessella.train.tokenizer

SCRIPTS = {"tokenizer": tessella.train.tokenizer, "generator": tessella.train.generator}


def signal_at(name: str, step: int) -> None:
    """Send this process a signal at the start of `step`, when every module waits for it."""
    loop: ModuleType = tessella.train.steps
    seed_step = loop.seed_step

    def seed_and_signal(seed: int, now: int, rank: int) -> None:
        seed_step(seed, now, rank)
        if now == step:
            os.kill(os.getpid(), getattr(signal, name))

    loop.seed_step = seed_and_signal  # type: ignore[attr-defined]


def run(job: dict[str, Any]) -> NoReturn:
    """Become one run of a script."""
    script = SCRIPTS[job["script"]]
    output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ |= job.get("env") or {}
    if not job["curves"]:  # drawing takes longer than the training; this is "not installed"
        for name in [name for name in sys.modules if name.startswith("matplotlib")]:
            sys.modules[name] = None  # type: ignore[assignment]
    if job.get("signal"):
        signal_at(*job["signal"])
    if job.get("limit"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writes then fail with EFBIG
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], job["limit"]))
    sys.argv = [f"train/{job['script']}.py", *job["argv"]]
    status = 1
    try:
        script.main()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def status_of(pid: int, seconds: float = 120.0) -> int:
    """Exit status of a child; one that hangs is killed, so that a test fails instead of waiting."""
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGABRT)
        time.sleep(0.01)


def serve() -> None:
    """Answer jobs until stdin closes."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        if "wait" in job:
            answer = {"status": status_of(job["wait"])}
        else:
            answer = {"pid": os.fork()}
            if answer["pid"] == 0:
                run(job)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
