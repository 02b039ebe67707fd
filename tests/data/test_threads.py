"""Reading in threads: everything once and in order, without threads where they would only pass a lock to each other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmcl.data import threads
from mmcl.data.threads import in_batches, in_threads


@given(total=st.integers(0, 200), tiny=st.integers(0, 200))
def test_results_are_in_order_and_computed_once(total: int, tiny: int) -> None:
    called = list[int]()

    def square(number: int) -> int:
        called.append(number)
        if number == tiny:
            time.sleep(2 * threads._TINY_S)
        return number**2

    assert list(in_threads(square, range(total))) == [number**2 for number in range(total)]
    assert sorted(called) == list(range(total))


@given(total=st.integers(0, 100), size=st.integers(1, 40), slow=st.booleans())
def test_batches_are_in_order_and_read_once(total: int, size: int, slow: bool) -> None:
    called = list[int]()

    def square(number: int) -> int:
        called.append(number)
        if slow and number < 4:
            time.sleep(threads._SMALL_S)
        return number**2

    batches = list(in_batches(square, total, size))
    assert [len(batch) for batch in batches] == [min(size, total - start) for start in range(0, total, size)]
    assert [item for batch in batches for item in batch] == [number**2 for number in range(total)]
    assert sorted(called) == list(range(total))


def test_tiny_calls_stay_in_the_thread_of_the_caller_and_others_do_not() -> None:
    assert _readers(lambda read: list(in_threads(read, range(400))), seconds=0) == {threading.get_ident()}
    assert len(_readers(lambda read: list(in_threads(read, range(60))), seconds=0.005)) > 1


@pytest.mark.parametrize(
    ("cores", "seconds", "at_once"),
    [(2, 0, 0), (4, 0, 0), (2, 0.001, 1), (4, 0.001, 3), (2, 0.03, 2), (1, 0.001, 1), (1, 0.03, 1)],
)
def test_tiny_items_need_no_threads_and_small_ones_leave_a_core_to_the_caller(
    cores: int, seconds: float, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr(threads, "_SMALL_S", 0.02)  # far from both, so that a busy machine does not mix them up
    readers = _readers(lambda read: list(in_batches(read, 60, 20)), seconds=seconds)
    assert len(readers - {threading.get_ident()}) <= at_once
    assert seconds < 0.02 or len(readers - {threading.get_ident()}) == at_once


def test_a_batch_is_read_while_the_one_before_is_in_use() -> None:
    called = set[int]()

    def read(number: int) -> None:
        time.sleep(0.001)
        called.add(number)

    batches = in_batches(read, 30, 10)
    next(batches)
    end = time.monotonic() + 20
    while len(called) < 20 and time.monotonic() < end:
        time.sleep(0.01)
    assert called == set(range(20))


def test_whoever_stops_waits_for_no_more_than_the_items_at_hand() -> None:
    called, going = list[int](), threading.Event()

    def read(number: int) -> None:
        called.append(number)
        if number >= 10:
            going.set()
        time.sleep(0.02)

    batches = in_batches(read, 1000, 10)
    next(batches)
    assert going.wait(20)  # the next batch has begun
    batches.close()
    assert len(called) < 20


def _readers(run: Callable[[Callable[[int], None]], object], *, seconds: float) -> set[int]:
    """Threads that have read something."""
    seen = set[int]()

    def read(_: int) -> None:
        seen.add(threading.get_ident())
        if seconds:
            time.sleep(seconds)

    run(read)
    return seen
