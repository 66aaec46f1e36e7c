"""The shapes of all segments of an id map, each found in one pass over it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_codec


def run_starts(flat: NDArray[Any]) -> NDArray[np.int64]:
    """Return where runs of equal values begin in an array [n], n at least 1."""
    return np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])


def segment_rles(id_map: NDArray[np.unsignedinteger]) -> dict[int, dict[str, Any]]:
    """Encode the mask of every id of a map [H, W] but 0, void: ``{"size": [H, W], "counts": str}`` as pycocotools."""
    height, width = id_map.shape
    flat = id_map.ravel(order="F")
    ids, first, starts, lengths = _runs_by_id(flat, run_starts(flat))
    codes: dict[int, dict[str, Any]] = {}
    # Counts alternate between pixels outside and inside: differences of the run borders in turn.
    borders = np.split(np.stack([starts, starts + lengths], axis=1), first[1:])
    for segment_id, of_segment in zip(ids.tolist(), borders, strict=True):
        if segment_id == 0:
            continue
        counts = np.diff(of_segment.ravel(), prepend=0, append=flat.size).tolist()
        if counts[-1] == 0:
            del counts[-1]
        code = rle_codec.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        codes[segment_id] = {"size": [height, width], "counts": code["counts"].decode("ascii")}
    return codes


def segment_extents(id_map: NDArray[np.integer]) -> dict[int, tuple[int, tuple[int, int, int, int]]]:
    """Measure every id of a map [H, W] but 0, void: its area and box (x, y, width, height) in pixels."""
    width = id_map.shape[1]
    flat = id_map.ravel()
    borders = np.empty(flat.size, dtype=bool)
    np.not_equal(flat[1:], flat[:-1], out=borders[1:])
    borders[::width] = True
    ids, first, starts, lengths = _runs_by_id(flat, np.flatnonzero(borders))
    rows, columns = np.divmod(starts, width)
    left, top = np.minimum.reduceat(columns, first), np.minimum.reduceat(rows, first)
    right = np.maximum.reduceat(columns + lengths, first)
    bottom = np.maximum.reduceat(rows, first) + 1
    areas = np.add.reduceat(lengths, first)
    boxes = zip(left.tolist(), top.tolist(), (right - left).tolist(), (bottom - top).tolist(), strict=True)
    measured = zip(ids.tolist(), areas.tolist(), boxes, strict=True)
    return {segment_id: (area, box) for segment_id, area, box in measured if segment_id}


def _runs_by_id(flat: NDArray[Any], starts: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
    """Sort runs of equal values by these: the values, the first run of each, starts and lengths of all runs."""
    order = np.argsort(flat[starts], kind="stable")
    lengths = np.diff(starts, append=flat.size)
    ids, first = np.unique(flat[starts[order]], return_index=True)
    return ids, first, starts[order], lengths[order]
