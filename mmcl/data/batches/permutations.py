"""Random permutations by number, of which any element is found without the others."""

from __future__ import annotations

import numpy as np

from mmcl.rng import hash_integers, permutation

# Up to this size a permutation is a sorted list of hashes, 8 bytes for each element. Beyond, it is computed by element: a list
# of a hundred million would take each loader process 800 MB, and seconds at every epoch.
_LARGEST_LIST = 2**20
_ROUNDS = 6


class Permutations:
    """The permutations number 0, 1, ... of range(size).

    Args:
        size: number of elements.
        key: integers that, with its number, determine a permutation.

    Example:
        >>> epochs = Permutations(5, 0)
        >>> sorted(epochs.at(np.zeros(5, np.int64), np.arange(5)).tolist())
        [0, 1, 2, 3, 4]
    """

    def __init__(self, size: int, *key: int):
        self.size, self.key = size, key
        self._lists: dict[int, np.ndarray] = {}

    def at(self, number_b: np.ndarray, place_b: np.ndarray) -> np.ndarray:
        """Returns element `place_b` of permutation `number_b`, row by row: int64 [b] from two of them."""
        if self.size > _LARGEST_LIST:
            return self._computed(number_b, place_b)
        found = np.empty(len(number_b), np.int64)
        for number in np.unique(number_b):
            here = number_b == number
            found[here] = self._list(int(number))[place_b[here]]
        return found

    def _list(self, number: int) -> np.ndarray:
        if number not in self._lists:  # The last two are kept, because a batch rarely needs more.
            self._lists = dict(list(self._lists.items())[-1:]) | {number: permutation(self.size, *self.key, number)}
        return self._lists[number]

    def _computed(self, number_b: np.ndarray, place_b: np.ndarray) -> np.ndarray:
        """Elements by a Feistel network, a bijection of the numbers of 2k bits (Luby & Rackoff, 1988).

        An element outside the range is permuted again until it is inside ("cycle walking", Black & Rogaway, "Ciphers with
        Arbitrary Finite Domains", 2002, section 4), less than three times on average.
        """
        half = (int(self.size - 1).bit_length() + 1) // 2
        found, outside = place_b.astype(np.uint64), np.arange(len(place_b))
        while len(outside):
            found[outside] = self._mixed(number_b[outside], found[outside], half)
            outside = outside[found[outside] >= np.uint64(self.size)]
        return found.astype(np.int64)

    def _mixed(self, number_b: np.ndarray, value_b: np.ndarray, half: int) -> np.ndarray:
        mask = np.uint64(2**half - 1)
        left_b, right_b = value_b >> np.uint64(half), value_b & mask
        for round_number in range(_ROUNDS):
            hashed_b = hash_integers(*self.key, number_b, round_number, right_b) >> np.uint64(32)
            left_b, right_b = right_b, left_b ^ (hashed_b & mask)
        mixed: np.ndarray = left_b << np.uint64(half) | right_b
        return mixed
