"""Reading in threads: in order, not further ahead than asked, and no further once nobody reads."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmcl.data import threads
from mmcl.data.threads import in_threads


@given(total=st.integers(0, 300), ahead=st.integers(1, 100), taken=st.integers(0, 300))
def test_results_are_in_order_and_only_so_many_wait(total: int, ahead: int, taken: int) -> None:
    called = list[int]()

    def square(number: int) -> int:
        called.append(number)
        return number**2

    results = in_threads(square, range(total), ahead=ahead)
    found = [result for _, result in zip(range(taken), results, strict=False)]
    assert found == [number**2 for number in range(min(taken, total))]
    results.close()
    assert len(called) < len(found) + 1 + ahead + threads._RUN
    assert len(called) == len({*called})


def test_the_next_are_computed_while_the_caller_is_busy() -> None:
    called = set[int]()
    results = in_threads(called.add, range(100), ahead=20)
    next(results)
    end = time.monotonic() + 20
    while len(called) < 20 and time.monotonic() < end:
        time.sleep(0.01)
    assert called == set(range(20))
    results.close()


def test_an_error_is_raised_where_its_result_is_due() -> None:
    results = in_threads(lambda number: 1 // (3 - number), range(10), ahead=4)
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
