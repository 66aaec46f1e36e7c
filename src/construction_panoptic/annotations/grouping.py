"""Groups of near-duplicate images, so that a split can keep them on one side."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from construction_panoptic.errors import InputDataError, ParameterError

_FLUSH_EDGES = 1_000_000


def near_duplicate_groups(phashes: Sequence[str], keys: Sequence[str], max_distance: int) -> list[int]:
    """Group images whose perceptual hashes are close, directly or through other images.

    Two images are neighbours if their hashes differ in at most ``max_distance`` bits; a group is a connected
    component of neighbours. The answer is exact: all pairs are compared, or, where that is less work, those
    pairs that agree in at least one of ``max_distance + 1`` bands of bits, as every pair within that distance
    must (pigeonhole).

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
    component = _components(unique, max_distance)[inverse.reshape(-1)]
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


def _components(hashes: NDArray[np.uint8], max_distance: int) -> NDArray[np.int64]:
    """Component number of each of the unique ``hashes`` (uint8 [N, bytes])."""
    count = len(hashes)
    words = _words(hashes)
    edges = _Edges(count)
    bands = _bands(hashes, max_distance + 1)
    candidates = sum(int((sizes * (sizes - 1) // 2).sum()) for sizes in map(_bucket_sizes, bands))
    # A pair found through a band costs a gather, about three times a pair of the plain sweep.
    if 3 * candidates < count * (count - 1) // 2:
        for band in bands:
            order = np.argsort(band, kind="stable")
            _sweep(words[:, order], order, max_distance, edges, bucket=band[order])
    else:
        _sweep(words, np.arange(count), max_distance, edges, bucket=None)
    return edges.components()


def _words(hashes: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """uint64 [words, N]: word by word, so that comparing the first word of many pairs reads one row."""
    padding = -hashes.shape[1] % 8
    padded = np.pad(hashes, ((0, 0), (0, padding)))
    return np.ascontiguousarray(padded.view(np.uint64).T)


def _bands(hashes: NDArray[np.uint8], count: int) -> list[NDArray[np.int64]]:
    """Number the values of each of ``count`` bands of bits; no band is empty unless bits run out."""
    bits = np.unpackbits(hashes, axis=1)
    bands = []
    for part in np.array_split(np.arange(bits.shape[1]), count):
        packed = np.packbits(bits[:, part], axis=1)
        if packed.shape[1] == 0:
            # More bands than bits: an empty band agrees for every pair.
            bands.append(np.zeros(len(hashes), dtype=np.int64))
        else:
            bands.append(np.unique(packed, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64))
    return bands


def _bucket_sizes(band: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.bincount(band).astype(np.int64)


def _sweep(
    words: NDArray[np.uint64],
    index: NDArray[np.int64],
    max_distance: int,
    edges: "_Edges",
    *,
    bucket: NDArray[np.int64] | None,
) -> None:
    """Compare each hash with those 1, 2, 3 … places on, within its (sorted) bucket, and record neighbours."""
    count = words.shape[1]
    left = np.arange(count)
    for offset in range(1, count):
        if bucket is None:
            difference = words[0, :-offset] ^ words[0, offset:]
            near = np.flatnonzero(np.bitwise_count(difference) <= max_distance)
        else:
            left = left[: np.searchsorted(left, count - offset)]
            left = left[bucket[left] == bucket[left + offset]]
            if not len(left):
                return
            difference = words[0, left] ^ words[0, left + offset]
            near = left[np.bitwise_count(difference) <= max_distance]
        if len(near):
            distance = np.bitwise_count(words[:, near] ^ words[:, near + offset]).sum(axis=0, dtype=np.int64)
            near = near[distance <= max_distance]
            edges.add(index[near], index[near + offset])


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
