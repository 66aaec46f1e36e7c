"""From polygons and run-length codes to pixels, exactly as pycocotools draws them.

Run lengths go down the columns, first of background. Everything is checked before it reaches pycocotools,
which trusts its input and can read or write out of bounds where that is damaged.
"""

import reprlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from construction_panoptic.annotations.records import UnusableError

# pycocotools walks along each outline in steps of a fifth of a pixel and holds all of them in memory.
_MAX_OUTLINE_STEPS = 20_000_000
_FARTHEST = 100_000  # px
_MERGED_AT_ONCE = 8


def segmentation_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Return the compressed run-length code of a COCO segmentation, clipped to an image of this size in pixels.

    The segmentation is a list of polygons (their union), or ``{"size": [height, width], "counts": …}`` with a list of
    run lengths or COCO's compressed text; the code is ``{"size": [height, width], "counts": bytes}``. Raises
    `UnusableError`: it cannot be drawn, or has no pixel in the image.
    """
    if not segmentation:
        raise UnusableError("no_segmentation", "it has no outline; draw one, or set boxes_without_polygon to 'keep'")
    if isinstance(segmentation, dict):
        rle = _checked_rle(segmentation, height, width)
    elif isinstance(segmentation, list):
        rings = [_checked_ring(ring, height, width) for ring in segmentation]
        _check_outline(rings, height, width)
        rle = _union(coco_mask.frPyObjects(rings, height, width))
    else:
        raise UnusableError("bad_polygon", "its segmentation is neither a list of polygons nor a run-length code")
    if coco_mask.area(rle) == 0:
        raise UnusableError("zero_area", "its outline covers no pixel of the image")
    return rle


def union_mask(codes: Iterable[bytes], height: int, width: int) -> NDArray[np.bool_]:
    """Return the union of masks, given as `segmentation_rle`'s ``counts`` for one size, as bool [height, width]."""
    parts = [{"size": [height, width], "counts": counts} for counts in codes]
    if not parts:
        return np.zeros((height, width), dtype=bool)
    # Row by row, as all that it is compared with; pycocotools gives it column by column.
    return np.ascontiguousarray(coco_mask.decode(_union(parts))).view(bool)


def pixel_runs(counts: bytes) -> list[slice]:
    """Return where a mask's pixels lie among its image's pixels column by column, a slice a run; see `run_lengths`."""
    ends = np.cumsum(run_lengths(counts))
    runs = zip(ends[:-1:2].tolist(), ends[1::2].tolist(), strict=True)
    return [slice(start, end) for start, end in runs if start < end]


def run_lengths(encoded: bytes) -> NDArray[np.int64]:
    """Return the run lengths of COCO's compressed text, int64 (``rleFrString`` in pycocotools' ``maskApi.c``).

    Each number is written low bits first, 5 bits a character (offset 48), bit 6 telling that more follow and
    bit 5 of the last character the sign; from the fourth on, it is the difference to the number two before. Raises
    `UnusableError` (``bad_rle``): the text is damaged.
    """
    chars = np.frombuffer(encoded, dtype=np.uint8).astype(np.int64) - 48
    if chars.size == 0 or chars.min() < 0 or chars.max() > 63 or chars[-1] & 0x20:
        raise UnusableError("bad_rle", "its compressed run-length code is damaged")
    ends = np.flatnonzero((chars & 0x20) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:
        raise UnusableError("bad_rle", "its compressed run-length code has a number that is too large")
    places = np.arange(len(chars)) - np.repeat(starts, lengths)
    values = np.add.reduceat((chars & 0x1F) << (5 * places), starts)
    values -= ((chars[ends] & 0x10) != 0) * (1 << (5 * lengths))
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return values


def following_points(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return, for each point of a ring [n, 2], the next; ``np.roll`` would take several times as long."""
    return np.concatenate([ring[1:], ring[:1]])


def polygon_area(points: NDArray[np.float64]) -> float:
    """Return the area of a closed polygon [n, 2], by the shoelace formula, without its sign."""
    (x, y), (next_x, next_y) = points.T, following_points(points).T
    return abs(float(x @ next_y - next_x @ y)) / 2


def _checked_ring(ring: Any, height: int, width: int) -> NDArray[np.float64]:
    """Return a polygon's coordinates, float64 [2 n]: x, y, x, y, …"""
    if not isinstance(ring, list) or not set(map(type, ring)) <= {int, float}:
        raise UnusableError("bad_polygon", "a polygon is not a list of numbers")
    if len(ring) % 2:
        raise UnusableError("odd_coordinates", f"a polygon has {len(ring)} coordinates, an odd number")
    if len(ring) < 6:
        raise UnusableError("too_few_points", f"a polygon has {len(ring) // 2} points; it needs three")
    try:
        points = np.array(ring, dtype=np.float64)
    except OverflowError:
        points = np.array([np.inf])
    if not np.isfinite(points).all():
        raise UnusableError("not_finite", "a polygon has a coordinate that is not a finite number")
    if np.abs(points).max() > max(_FARTHEST, 2 * height, 2 * width):
        raise UnusableError("outside_image", "a polygon has a point that is far outside the image")
    return points


def _check_outline(rings: list[NDArray[np.float64]], height: int, width: int) -> None:
    x, y = np.concatenate(rings).reshape(-1, 2).T
    if x.max() <= 0 or y.max() <= 0 or x.min() >= width or y.min() >= height:
        raise UnusableError("outside_image", f"it lies outside the image of {width} x {height} pixels")
    points = (ring.reshape(-1, 2) for ring in rings)
    length = sum(np.abs(ring - following_points(ring)).max(axis=1).sum() for ring in points)
    if 5 * length > _MAX_OUTLINE_STEPS:
        raise UnusableError("too_complex", f"its outline is {length:.0f} pixels long")


def _union(codes: list[dict[str, Any]]) -> dict[str, Any]:
    """Merge a few at a time: pycocotools adds one after the other to all before, so time grows as the square."""
    while len(codes) > _MERGED_AT_ONCE:
        starts = range(0, len(codes), _MERGED_AT_ONCE)
        codes = [coco_mask.merge(codes[start : start + _MERGED_AT_ONCE]) for start in starts]
    merged: dict[str, Any] = coco_mask.merge(codes)
    return merged


def _checked_rle(code: dict[Any, Any], height: int, width: int) -> dict[str, Any]:
    size, counts = code.get("size"), code.get("counts")
    if size != [height, width]:
        stated = reprlib.repr(size)  # which may be anything, of any length and depth
        raise UnusableError("bad_rle", f"its run-length code is for [height, width] {stated}, not {[height, width]}")
    if isinstance(counts, str):
        if not counts.isascii():
            raise UnusableError("bad_rle", "its compressed run-length code is damaged")
        encoded = counts.encode()
        _check_counts(run_lengths(encoded), height, width)
        return {"size": [height, width], "counts": encoded}
    if not isinstance(counts, list) or not all(type(c) is int and 0 <= c <= height * width for c in counts):
        raise UnusableError("bad_rle", "its run lengths are not a list of whole numbers within the image")
    _check_counts(np.array(counts, dtype=np.int64), height, width)
    return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)


def _check_counts(counts: NDArray[np.int64], height: int, width: int) -> None:
    if counts.size and counts.min() < 0:
        raise UnusableError("bad_rle", "its run-length code has a negative run")
    if counts.sum() != height * width:
        raise UnusableError("bad_rle", f"its run lengths add up to {counts.sum()}, not {height * width} pixels")
