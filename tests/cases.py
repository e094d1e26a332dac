"""Many small cases in one test: pytest takes longer to start a test than most of them run."""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def naming(case: object) -> Iterator[None]:
    """Add the name of the case to whatever fails inside, below its message and traceback.

    Args:
        case: What the failing assertion was about; its `str` is shown.
    """
    try:
        yield
    except BaseException as error:
        error.add_note(f"case: {case}")
        raise


def over(
    names: str | tuple[str, ...], cases: Iterable[Any], ids: Any = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """As `pytest.mark.parametrize`, but a loop in one test, for cases of a few milliseconds.

    The first case that fails ends the test and is named. Fixtures are made once for all cases, so
    they must not change; a case cannot skip.

    Args:
        names: Arguments of the test, separated by commas, or a tuple of them.
        cases: Their values; tuples of values where there are several names.
        ids: Ignored, so that a test can move from the one decorator to the other.
    """
    words = [w.strip() for w in names.split(",")] if isinstance(names, str) else list(names)
    rows = [dict(zip(words, (c,) if len(words) == 1 else c, strict=True)) for c in cases]
    assert rows, f"{names}: no cases"

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(**fixtures: Any) -> None:
            for row in rows:
                with naming(", ".join(f"{name}={value!r}" for name, value in row.items())):
                    test(**fixtures, **row)

        given = inspect.signature(test)
        assert given.parameters.keys() >= set(words), f"{names}: not all are arguments of the test"
        rest = [p for name, p in given.parameters.items() if name not in words]
        run.__signature__ = given.replace(parameters=rest)  # type: ignore[attr-defined]
        return run

    return decorate
