"""The cores of a processor that a model takes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from mmcl.interop.device import _SMALL_WORK, beside_reading


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize(("multiplications", "threads"), [(1, 2), (_SMALL_WORK, 2), (_SMALL_WORK + 1, 3)])
def test_a_small_network_leaves_a_core_to_those_who_read(multiplications: int, threads: int) -> None:
    def fail() -> None:
        with beside_reading(torch.device("cpu"), multiplications):
            assert torch.get_num_threads() == threads
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_on_a_gpu_there_is_nothing_to_leave() -> None:
    with beside_reading(torch.device("cuda"), 1):
        assert torch.get_num_threads() == 3


def test_the_last_thread_stays() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with beside_reading(torch.device("cpu"), 1):
            assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_several_callers_at_once_leave_the_number_as_it_was() -> None:
    together = Barrier(4)

    def encode(_: int) -> None:
        with beside_reading(torch.device("cpu"), 1):
            together.wait()

    with ThreadPoolExecutor(4) as callers:
        list(callers.map(encode, range(4)))
        assert set(callers.map(lambda _: torch.get_num_threads(), range(40))) == {3}
    assert torch.get_num_threads() == 3
