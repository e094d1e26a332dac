"""Many small cases in one test: pytest takes longer to start a test than most of them run."""

from collections.abc import Iterator
from contextlib import contextmanager


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
