"""Groups of near-duplicate images, so that a split can keep them on one side."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from construction_panoptic.errors import InputDataError, ParameterError

_FLUSH_EDGES = 1_000_000
_SORTED = 30  # a hash that is sorted into its bucket, and
_GATHERED = 3  # a pair found through a bucket, cost as much as so many pairs of the plain sweep

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]


def near_duplicate_groups(phashes: Sequence[str], keys: Sequence[str], max_distance: int) -> list[int]:
    """Group images whose perceptual hashes are close, directly or through other images.

    Two images are neighbours if their hashes differ in at most ``max_distance`` bits; a group is a connected
    component of neighbours. The answer is exact, see `near_pairs`.

    Args:
        phashes: one hexadecimal hash an image, all of the same length (such as 64 digits = 256 bits).
        keys: one unique key an image, in the order of ``phashes``.
        max_distance: largest Hamming distance of neighbours, in bits; 0 groups equal hashes only.

    Returns:
        One group number an image, in the order of ``keys``. Groups are numbered from 0 in the order of their
        smallest key, so the same images have the same numbers whatever order they come in.

    Raises:
        InputDataError: a key comes twice, or a hash is not hexadecimal or has another length than the first.
        ParameterError: ``max_distance`` is negative.
        ValueError: ``phashes`` and ``keys`` differ in length.
    """
    if len(phashes) != len(keys):
        raise ValueError(f"{len(phashes)} hashes for {len(keys)} keys")
    if max_distance < 0:
        raise ParameterError(f"max_distance is {max_distance}; give 0 or more bits.")
    if not keys:
        return []
    order = sorted(range(len(keys)), key=keys.__getitem__)
    for one, other in pairwise(order):
        if keys[one] == keys[other]:
            raise InputDataError(f"image {keys[one]!r} is listed twice; every image needs its own key.")
    hashes = hash_bytes(phashes, keys)[order]
    unique, inverse = np.unique(hashes, axis=0, return_inverse=True)
    edges = _Edges(len(unique))
    for left, right in near_pairs(unique, max_distance):
        edges.add(left, right)
    component = edges.components()[inverse.reshape(-1)]
    # Number by first appearance in key order.
    _, first, compact = np.unique(component, return_index=True, return_inverse=True)
    rank = np.empty_like(first)
    rank[np.argsort(first)] = np.arange(len(first))
    groups = np.empty(len(keys), dtype=np.int64)
    groups[order] = rank[compact.reshape(-1)]
    return [int(group) for group in groups]


def hash_bytes(phashes: Sequence[str], keys: Sequence[str]) -> NDArray[np.uint8]:
    """Parse hexadecimal hashes.

    Args:
        phashes: hashes of one length.
        keys: the images' keys, for messages.

    Returns:
        uint8 [N, bytes a hash].

    Raises:
        InputDataError: a hash is not hexadecimal or has another length than the first one.
    """
    rows: list[bytes] = []
    for phash, key in zip(phashes, keys, strict=True):
        try:
            row = bytes.fromhex(phash)
        except ValueError:
            raise InputDataError(
                f"image {key!r}: perceptual hash {phash!r} is not whole hexadecimal bytes; convert again."
            ) from None
        if not row or (rows and len(row) != len(rows[0])):
            raise InputDataError(
                f"image {key!r}: perceptual hash has {8 * len(row)} bits, the first one has "
                f"{8 * len(rows[0]) if rows else 0}; convert all images with one hash size."
            )
        rows.append(row)
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), -1)


def near_pairs(hashes: NDArray[np.uint8], max_distance: int) -> Iterator[Pairs]:
    """Find all pairs of hashes that differ in at most ``max_distance`` bits.

    The cheapest of three exact ways is taken. All pairs are compared; or those that agree in one of
    ``max_distance + 1`` bands of bits, as every near pair must (pigeonhole); or those that agree but for at most one
    bit in one of half as many, wider bands, as every near pair must too.

    Args:
        hashes: uint8 [N, bytes a hash]; many equal ones make many pairs.
        max_distance: in bits.

    Yields:
        Positions of the two of each pair, int64 [n] each; a pair can come more than once.
    """
    words = _words(hashes)
    slips = _cheapest_slips(hashes, max_distance)
    if slips is None:
        yield from _all_pairs(words, max_distance)
    else:
        for band in _bands(hashes, max_distance, slips):
            for bucket in _buckets(*band, slips):
                yield from _pairs_of_buckets(words, bucket, max_distance)


def _words(hashes: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """uint64 [words, N]: word by word, so that comparing the first word of many pairs reads one row."""
    padding = -hashes.shape[1] % 8
    padded = np.pad(hashes, ((0, 0), (0, padding)))
    return np.ascontiguousarray(padded.view(np.uint64).T)


def _cheapest_slips(hashes: NDArray[np.uint8], max_distance: int) -> int | None:
    """How many bits of a band may differ so that the search costs least; None where comparing all pairs does."""
    count = len(hashes)
    cheapest, best = count * (count - 1) // 2, None
    for slips in (0, 1):
        cost = 0
        for values, bits in _bands(hashes, max_distance, slips):
            # The buckets without one bit of a band hold about as many pairs as those without another.
            sizes = np.bincount(next(_buckets(values, bits, slips)))
            pairs = int((sizes * (sizes - 1) // 2).sum())
            cost += (bits if slips and bits else 1) * (_SORTED * count + _GATHERED * pairs)
            if cost >= cheapest:
                break
        else:
            cheapest, best = cost, slips
    return best


def _bands(hashes: NDArray[np.uint8], max_distance: int, slips: int) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Give bands of bits of which every near pair agrees in one but for ``slips`` bits: values [N], number of bits.

    A band is cut to the bits that spread the hashes over buckets of about one; it stays true then.
    """
    total, columns = 8 * hashes.shape[1], np.ascontiguousarray(hashes.T)
    most = max(1, len(hashes).bit_length() + 1)
    for part in np.array_split(np.arange(total), max_distance // (slips + 1) + 1):
        values = np.zeros(len(hashes), dtype=np.int64)
        for bit in part[:most].tolist():
            values <<= 1
            values |= (columns[bit // 8] >> (7 - bit % 8)) & 1
        yield values, len(part[:most])


def _buckets(values: NDArray[np.int64], bits: int, slips: int) -> Iterator[NDArray[np.int64]]:
    """Number buckets of the values of a band: equal ones, or those that are equal without one of the bits."""
    if slips and bits:
        yield from (values & ~(1 << bit) for bit in range(bits))
    else:
        yield values


def _all_pairs(words: NDArray[np.uint64], max_distance: int) -> Iterator[Pairs]:
    """Compare each hash with those 1, 2, 3 … places on."""
    for offset in range(1, words.shape[1]):
        near = np.flatnonzero(np.bitwise_count(words[0, :-offset] ^ words[0, offset:]) <= max_distance)
        yield from _near(words, near, near + offset, max_distance)


def _pairs_of_buckets(words: NDArray[np.uint64], bucket: NDArray[np.int64], max_distance: int) -> Iterator[Pairs]:
    """Compare each hash with those 1, 2, 3 … places on within its bucket."""
    order = np.argsort(bucket, kind="stable")
    bucket = bucket[order]
    left = np.arange(len(order))
    for offset in range(1, len(order)):
        left = left[: np.searchsorted(left, len(order) - offset)]
        left = left[bucket[left] == bucket[left + offset]]
        if not len(left):
            return
        one, other = order[left], order[left + offset]
        near = np.bitwise_count(words[0, one] ^ words[0, other]) <= max_distance
        yield from _near(words, one[near], other[near], max_distance)


def _near(
    words: NDArray[np.uint64], one: NDArray[np.int64], other: NDArray[np.int64], max_distance: int
) -> Iterator[Pairs]:
    if len(one):
        distance = np.bitwise_count(words[:, one] ^ words[:, other]).sum(axis=0, dtype=np.int64)
        near = distance <= max_distance
        if near.any():
            yield one[near], other[near]


class _Edges:
    """Pairs of neighbours, folded into components now and then so that memory stays flat."""

    def __init__(self, count: int) -> None:
        self._labels = np.arange(count, dtype=np.int64)
        self._pending: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self._pending_size = 0

    def add(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> None:
        if len(left):
            self._pending.append((left, right))
            self._pending_size += len(left)
            if self._pending_size > _FLUSH_EDGES:
                self._fold()

    def components(self) -> NDArray[np.int64]:
        self._fold()
        return self._labels

    def _fold(self) -> None:
        if not self._pending:
            return
        left, right = (self._labels[np.concatenate(side)] for side in zip(*self._pending, strict=True))
        size = len(self._labels)
        graph: Any = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(size, size))
        _, component = connected_components(graph, directed=False)
        self._labels = component.astype(np.int64)[self._labels]
        self._pending, self._pending_size = [], 0
