"""A piece of work in a forked process of its own, with limits, so that nothing it does stops us."""

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

POLL = 0.005
"""Seconds between two looks at a process."""


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Args:
        status: Exit status, or minus the signal that ended it.
        seconds: Time that it ran.
        megabytes: Largest resident memory, with what it shares with us.
        output: What it printed.
        stopped: Whether we ended it, at the limit of time or as asked.
    """

    status: int
    seconds: float
    megabytes: float
    output: str
    stopped: bool


def run(
    work: Callable[[], None],
    log: Path,
    *,
    limit: float,
    room: int = 8 << 30,
) -> Ended:
    """Run work in a forked process.

    Args:
        work: Work; its exit status is 0, that of its SystemExit, or 1 after a traceback.
        log: File for what it prints.
        limit: Seconds after which it is killed.
        room: Address space that it may map beyond ours, in bytes, to protect the machine.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child, started = os.fork(), time.monotonic()
    if not child:
        _become(work, log, room)
    stopped = False
    while True:
        ended, status, used = os.wait4(child, os.WNOHANG)
        if ended:
            break
        if not stopped and time.monotonic() - started > limit:
            stopped = True
            os.killpg(child, signal.SIGKILL)
        time.sleep(POLL)
    seconds = time.monotonic() - started
    output = log.read_text(encoding="utf-8", errors="backslashreplace")
    megabytes = used.ru_maxrss / 1024
    return Ended(os.waitstatus_to_exitcode(status), seconds, megabytes, output, stopped)


def _become(work: Callable[[], None], log: Path, room: int) -> None:
    """Be the process that works; never returns."""
    status = 1
    try:
        os.setpgid(0, 0)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        resource.setrlimit(resource.RLIMIT_AS, (_mapped() + room,) * 2)
        work()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _mapped() -> int:
    """Address space of this process, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")
