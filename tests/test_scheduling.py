"""How processes share the suite: what stays together, what is apart, and what names there are."""

from pathlib import Path

from tessella.tests.conftest import LONG, SPREAD, TOGETHER, first_match, group_of


def test_every_name_is_that_of_a_test() -> None:
    root = Path(__file__).parent
    files = [path.relative_to(root).as_posix() for path in root.rglob("test_*.py")]
    for start in (*LONG, *SPREAD, *TOGETHER):
        assert any(file.startswith(start) for file in files), start


def test_shared_runs_stay_in_one_process_and_long_files_are_spread() -> None:
    resume, golden = "tests/train/test_resume.py::test_a", "tests/train/test_golden.py::test_b[1]"
    assert group_of(resume) == group_of(golden)
    assert group_of("tests/train/test_generator_run.py::test_a") != group_of(resume)
    family = "tests/kernels/test_compile_sm90.py::test_a[%s]"
    assert group_of(family % "x") != group_of(family % "y")
    assert group_of("tests/tokens/test_store.py::test_a[b::c]") == "tests/tokens/test_store.py"
    assert first_match("tests/tokens/test_store.py::test_a", LONG) == len(LONG)
    assert first_match("tests/kernels/test_compile_sm90.py::test_a", LONG) == 0
