"""Randomness as a pure function of integers.

Sample order, augmentation and caption choice are drawn from hashes of (seed, epoch, sample, ...), never from a stateful
generator. So no random state needs saving, and a run is the same for any number of workers and processes, and after a resume.
The hash is splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014): its finalizer is a
bijection of 64-bit integers. NumPy's and torch's own streams may change between versions; this one does not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_GOLDEN, _MUL_1, _MUL_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB

_MASK = 2**64 - 1

_BLOCK = 2**16
"""Numbers hashed at a time; a block fits into the CPU cache."""

Integers = int | np.ndarray


def _finalize(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_MUL_1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_MUL_2)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def hash_integers(*parts: Integers) -> np.ndarray:
    """Hashes integers, or broadcastable integer arrays, to uniform 64-bit integers.

    For fixed other parts, the hash is a bijection of the last part: distinct last parts never collide.

    Returns:
        uint64 with the broadcast shape of `parts`.
    """
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            state = _finalize((state ^ np.asarray(part).astype(np.uint64)) + np.uint64(_GOLDEN))
    return state


def uniform(*parts: Integers) -> np.ndarray:
    """Uniform numbers in [0, 1), one per hash: float64 with the broadcast shape of `parts`."""
    return (hash_integers(*parts) >> np.uint64(11)) * (1.0 / (1 << 53))


def few_uniform(*key: int) -> Callable[[int], float]:
    """Returns the function k -> `uniform(*key, k)` in pure Python, which is much faster than NumPy for a few numbers."""
    state = 0
    for part in key:
        state = _finalize_one(state, part)
    return lambda k: (_finalize_one(state, k) >> 11) * (1.0 / (1 << 53))


def _finalize_one(state: int, part: int) -> int:
    """Hashes one more part into the state, as in `hash_integers`."""
    x = ((state ^ (part & _MASK)) + _GOLDEN) & _MASK
    x = ((x ^ (x >> 30)) * _MUL_1) & _MASK
    x = ((x ^ (x >> 27)) * _MUL_2) & _MASK
    return x ^ (x >> 31)


def permutation(n: int, *key: int) -> np.ndarray:
    """Random permutation of range(n), int64 [n]; depends only on `n` and the integers in `key`."""
    hashes = np.empty(n, np.uint64)
    for start in range(0, n, _BLOCK):
        stop = min(start + _BLOCK, n)
        hashes[start:stop] = hash_integers(*key, np.arange(start, stop))
    # No two hashes are equal (see `hash_integers`), so every sorting algorithm gives the same order.
    return np.argsort(hashes)


def sample_seed(*key: int) -> int:
    """Seed in [0, 2**63) for a library's own generator."""
    return int(hash_integers(*key) >> np.uint64(1))
