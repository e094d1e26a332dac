"""Whether the slow tests of the kernels are due: the interpreter's and the compiler's.

They are where kernels differ from the last version, in CI, and by `make test-kernels`.
"""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WATCHED = ("kernels", "tests/kernels", "constraints.txt")
"""What the outcome of these tests depends on; constraints.txt names the version of Triton."""
FORCED = ("CI", "TESSELLA_TEST_KERNELS")
"""Environment variables of which one that is neither empty nor false makes the tests run."""


def reason_to_skip(root: Path = ROOT) -> str:
    """Why the tests are not due, as one sentence; empty if they are.

    Args:
        root: Folder of a checkout. Where its history cannot be read, the tests are due.
    """
    if any(os.environ.get(name, "").lower() not in ("", "0", "false") for name in FORCED):
        return ""
    base, name = last_version(root)
    if not base:
        return ""
    changed = _git(root, "diff", "--name-only", base, "--", *WATCHED)
    new = _git(root, "ls-files", "--others", "--exclude-standard", "--", *WATCHED)
    if changed is None or new is None or changed or new:
        return ""
    return f"nothing under {', '.join(WATCHED)} changed since {name}; make test-kernels runs these"


def last_version(root: Path) -> tuple[str, str]:
    """Commit of the newest release tag, else the commit that set the version, and its name."""
    if tag := _git(root, "describe", "--tags", "--abbrev=0", "--match", "v*"):
        return tag, f"release {tag}"
    commit = _git(root, "log", "-1", "--format=%H", "-G", "^__version__", "--", "_version.py")
    return (commit, f"commit {commit[:10]}, which set the version") if commit else ("", "")


def _git(root: Path, *words: str) -> str | None:
    """Output of a git command; None if there is no git, or no history, or the command fails."""
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


_REASON = reason_to_skip()
WHEN_CHANGED = pytest.mark.skipif(bool(_REASON), reason=_REASON or "the kernels changed")
