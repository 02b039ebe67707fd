"""The key queue against a deque."""

from __future__ import annotations

from collections import deque

import pytest
import torch

from mmcl.core.key_queue import KeyQueue


@pytest.mark.parametrize("batches", [[2, 2, 2], [3, 3, 3, 3], [5, 0, 1], [7], [12, 3], [4, 11, 2]])
@pytest.mark.parametrize("size", [0, 1, 5])
def test_holds_exactly_the_last_keys(size: int, batches: list[int]) -> None:
    queue, expected = KeyQueue(size, 2), deque[int](maxlen=size)
    number = 0
    for rows in batches:
        ids = torch.arange(number, number + rows)
        queue.push(torch.stack([ids, -ids], 1).float(), ids)
        expected.extend(ids.tolist())
        number += rows
        assert sorted(queue.ids.tolist()) == sorted(expected)
        assert torch.equal(queue.keys, torch.stack([queue.ids, -queue.ids], 1).float())
        assert len(queue) == len(expected)
        assert queue.full == (len(expected) == size)


def test_the_oldest_go_first_and_the_place_wraps() -> None:
    queue = KeyQueue(5, 1)
    for start in (0, 3, 6):
        ids = torch.arange(start, start + 3)
        queue.push(ids[:, None].float(), ids)
    assert queue.ids.tolist() == [5, 6, 7, 8, 4]


def test_state_is_in_the_buffers_and_without_gradient() -> None:
    queue, copy = KeyQueue(4, 2), KeyQueue(4, 2)
    queue.push(torch.ones(3, 2, requires_grad=True), torch.arange(3))
    assert not queue.keys.requires_grad
    copy.load_state_dict(queue.state_dict())
    for q in (queue, copy):
        q.push(torch.zeros(2, 2), torch.arange(3, 5))
    assert torch.equal(queue.keys, copy.keys)
    assert queue.ids.tolist() == copy.ids.tolist() == [4, 1, 2, 3]
