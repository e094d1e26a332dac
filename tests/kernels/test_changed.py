"""The slow tests of the kernels are left out only where nothing that they test has changed."""

import subprocess
from pathlib import Path

import pytest

from tessella.tests.kernels.changed import FORCED, last_version, reason_to_skip


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of two commits, the second of which set the version."""
    for name in FORCED:
        monkeypatch.delenv(name, raising=False)
    git(tmp_path, "init", "--quiet")
    for name, text in (("kernels/a.py", "1"), ("_version.py", '__version__ = "0.1"\n')):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        commit(tmp_path)
    return tmp_path


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def commit(folder: Path) -> None:
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "change")


def test_skipped_where_nothing_changed_since_the_version(checkout: Path) -> None:
    (checkout / "README.md").write_text("changed")
    commit(checkout)
    assert "kernels, tests/kernels, constraints.txt changed since commit" in reason_to_skip(
        checkout
    )


@pytest.mark.parametrize("name", ["kernels/a.py", "kernels/new.py", "constraints.txt"])
def test_run_where_something_changed(name: str, checkout: Path) -> None:
    """Committed or not, known to git or not."""
    (checkout / name).write_text("changed")
    assert reason_to_skip(checkout) == ""
    commit(checkout)
    assert reason_to_skip(checkout) == ""


def test_the_newest_release_counts_from_its_tag(checkout: Path) -> None:
    (checkout / "kernels" / "a.py").write_text("changed")
    commit(checkout)
    git(checkout, "tag", "v0.2")
    assert last_version(checkout)[0] == "v0.2"
    assert "since release v0.2" in reason_to_skip(checkout)


@pytest.mark.parametrize("name", FORCED)
def test_run_where_asked_for(name: str, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value, due in (("true", True), ("1", True), ("false", False), ("", False)):
        monkeypatch.setenv(name, value)
        assert (reason_to_skip(checkout) == "") == due, value


def test_run_without_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FORCED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert reason_to_skip(tmp_path) == ""
    monkeypatch.setenv("PATH", "")
    assert reason_to_skip(tmp_path) == ""
