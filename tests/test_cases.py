"""Loops over cases in one test run all of them and name the one that fails."""

import inspect

import pytest

from tessella.tests.cases import naming, over


def test_the_case_that_fails_is_named() -> None:
    with pytest.raises(AssertionError) as error, naming("fsq with bits"):
        raise AssertionError("wrong")
    assert error.value.__notes__ == ["case: fsq with bits"]


def test_a_loop_runs_every_combination_until_one_fails() -> None:
    seen = []

    @over("letter", "ab")
    @over(("number", "square"), [(2, 4), (3, 9)], ids=str)
    def test(letter: str, number: int, square: int, fixture: str) -> None:
        """What it is about."""
        seen.append((fixture, letter, number))
        assert number * number == square
        assert (letter, number) != ("b", 3), "wrong"

    assert list(inspect.signature(test).parameters) == ["fixture"]
    assert test.__name__ == "test" and test.__doc__ == "What it is about."
    with pytest.raises(AssertionError, match="wrong") as error:
        test(fixture="f")
    assert seen == [("f", "a", 2), ("f", "a", 3), ("f", "b", 2), ("f", "b", 3)]
    assert error.value.__notes__ == ["case: number=3, square=9", "case: letter='b'"]


def test_a_loop_without_cases_or_of_another_argument_is_refused() -> None:
    with pytest.raises(AssertionError, match="number: no cases"):
        over("number", [])
    with pytest.raises(AssertionError, match="not all are arguments of the test"):
        over("other", [1])(lambda number: None)
