"""Groups of images that a split keeps on one side: near-duplicates, and frames of one video."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from construction_panoptic.errors import InputDataError

_FLUSH_EDGES = 1_000_000
_SORTED = 30  # a hash that is sorted into its bucket, and
_GATHERED = 3  # a pair found through a bucket, cost as much as so many pairs of the plain sweep

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]


def near_duplicate_groups(
    phashes: Sequence[str], keys: Sequence[str], max_distance: int, names: Sequence[str | None] = ()
) -> list[int]:
    """Group images whose perceptual hashes (hexadecimal, of one length) are close, directly or through other images.

    Two images are neighbours if their hashes differ in at most ``max_distance`` bits, or if they have one of ``names``
    (None: no name) in common; a group is a connected component of neighbours. The answer is exact, see `near_pairs`:
    one group number an image, from 0 in the order of the groups' smallest keys, so that the same images have the same
    numbers whatever order they come in. Raises `InputDataError`: a hash is not hexadecimal or has another length than
    the first.
    """
    if not keys:
        return []
    unique, inverse = np.unique(hash_bytes(phashes, keys), axis=0, return_inverse=True)
    place = inverse.reshape(-1)
    first: dict[str, int] = {}
    named = zip(place.tolist(), names or [None] * len(keys), strict=True)
    edges = [(one, first.setdefault(name, one)) for one, name in named if name]
    left, right = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    component = _components(len(unique), chain(near_pairs(unique, max_distance), [(left, right)]))[place]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    groups = np.empty(len(keys), dtype=np.int64)
    groups[order] = pd.factorize(component[order])[0]
    return groups.tolist()


def video_names(keys: Sequence[str], pattern: str) -> list[str | None]:
    """Name the video that each image is a frame of, or whatever else images have in common by their names.

    The whole file name without suffix must match the pattern, whose first group, if it has one, names the video within
    the image's folder; None for an image that does not match.
    """
    compiled = re.compile(pattern)
    names: list[str | None] = []
    for path in map(PurePosixPath, keys):
        match = compiled.fullmatch(path.stem)
        group = match[1] if match and compiled.groups else None
        names.append(f"{path.parent}/{group or ''}" if match else None)
    return names


def hash_bytes(phashes: Sequence[str], keys: Sequence[str]) -> NDArray[np.uint8]:
    """Parse hexadecimal hashes to uint8 [N, bytes a hash]; the images' keys are for messages.

    Raises `InputDataError`: a hash is not hexadecimal or has another length than the first one.
    """
    rows: list[bytes] = []
    for phash, key in zip(phashes, keys, strict=True):
        try:
            row = bytes.fromhex(phash)
        except ValueError:
            what = f"perceptual hash {phash!r} is not whole hexadecimal bytes"
            raise InputDataError(f"image {key!r}: {what}; convert again.") from None
        rows.append(row)
        if not row or len(row) != len(rows[0]):
            what = f"perceptual hash has {8 * len(row)} bits, the first one has {8 * len(rows[0])}"
            raise InputDataError(f"image {key!r}: {what}; convert all images with one hash size.")
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), -1)


def near_pairs(hashes: NDArray[np.uint8], max_distance: int) -> Iterator[Pairs]:
    """Find all pairs of hashes, uint8 [N, bytes a hash], that differ in at most ``max_distance`` bits.

    The cheapest of three exact ways is taken. All pairs are compared; or those that agree in one of
    ``max_distance + 1`` bands of bits, as every near pair must (pigeonhole); or those that agree but for at most one
    bit in one of half as many, wider bands, as every near pair must too. Gives positions of the two of each pair, int64
    [n] each; a pair can come more than once.
    """
    words = words_of(hashes)
    slips = _cheapest_slips(hashes, max_distance)
    if slips is None:
        candidates = _all_pairs(words[0], max_distance)
    else:
        buckets = (bucket for band in _bands(hashes, max_distance, slips) for bucket in _buckets(*band, slips))
        candidates = chain.from_iterable(_pairs_in_buckets(words[0], bucket, max_distance) for bucket in buckets)
    for one, other in candidates:
        near = np.bitwise_count(words[:, one] ^ words[:, other]).sum(axis=0, dtype=np.int64) <= max_distance
        if near.any():
            yield one[near], other[near]


def words_of(hashes: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Give hashes as uint64 [words, N]: word by word, so that comparing the first word of many pairs reads one row."""
    padded = np.pad(hashes, ((0, 0), (0, -hashes.shape[1] % 8)))
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


def _all_pairs(word: NDArray[np.uint64], max_distance: int) -> Iterator[Pairs]:
    """Compare the first word of each hash with those 1, 2, 3 … places on."""
    for offset in range(1, len(word)):
        near = np.flatnonzero(np.bitwise_count(word[:-offset] ^ word[offset:]) <= max_distance)
        if len(near):
            yield near, near + offset


def _pairs_in_buckets(word: NDArray[np.uint64], bucket: NDArray[np.int64], max_distance: int) -> Iterator[Pairs]:
    """Compare the first word of each hash with those 1, 2, 3 … places on within its bucket."""
    order = np.argsort(bucket, kind="stable")
    bucket = bucket[order]
    left = np.arange(len(order))
    for offset in range(1, len(order)):
        left = left[: np.searchsorted(left, len(order) - offset)]
        left = left[bucket[left] == bucket[left + offset]]
        if not len(left):
            return
        one, other = order[left], order[left + offset]
        near = np.bitwise_count(word[one] ^ word[other]) <= max_distance
        if near.any():
            yield one[near], other[near]


def _components(count: int, pairs: Iterable[Pairs]) -> NDArray[np.int64]:
    """Number the connected components of ``count`` nodes, int64 [count]; pairs are folded so that memory stays flat."""
    labels = np.arange(count, dtype=np.int64)
    for left, right in _gathered(pairs):
        edges: Any = (np.ones(len(left), dtype=np.int8), (labels[left], labels[right]))
        graph = coo_array(edges, shape=(count, count))
        labels = connected_components(graph, directed=False)[1].astype(np.int64)[labels]
    return labels


def _gathered(pairs: Iterable[Pairs]) -> Iterator[NDArray[np.int64]]:
    """Give pairs in blocks, int64 [2, n]."""
    waiting: list[NDArray[np.int64]] = []
    size = 0
    for some in pairs:
        waiting.append(np.stack(some))
        size += len(some[0])
        if size > _FLUSH_EDGES:
            yield np.concatenate(waiting, axis=1)
            waiting, size = [], 0
    if waiting:
        yield np.concatenate(waiting, axis=1)
