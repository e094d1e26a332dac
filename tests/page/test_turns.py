"""One job at a time, in the order in which they came; more than a few are turned away."""

import threading

import pytest

from tessella.page.turns import Busy, Turns


def test_jobs_take_turns_in_order() -> None:
    turns, order = Turns(waiting=3), []
    entered = [threading.Event() for _ in range(3)]

    def work(number: int) -> None:
        with turns.place() as place:
            entered[number].set()
            while place.wait(5):
                pass
            order.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    with turns.place() as first:
        assert first.wait(0) == 0
        for thread, event in zip(threads, entered, strict=True):
            thread.start()
            assert event.wait(5)
        with pytest.raises(Busy, match="busy: one job runs and 3 wait"), turns.place():
            pass
        assert order == []
    for thread in threads:
        thread.join(5)
    assert order == [0, 1, 2]


def test_a_place_says_how_many_come_before_and_is_left_on_errors() -> None:
    turns = Turns(waiting=1)
    with turns.place() as first, turns.place() as second:
        assert (first.wait(0.01), second.wait(0.01)) == (0, 1)
    with pytest.raises(ZeroDivisionError), turns.place():
        1 / 0  # noqa: B018
    with turns.place() as place:
        assert place.wait(0) == 0
