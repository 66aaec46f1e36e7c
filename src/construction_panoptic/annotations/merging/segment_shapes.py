"""The shapes of all segments of an id map, found in one pass over it."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_codec


class Shape(NamedTuple):
    """The pixels of a segment: their number, box (x, y, width, height) and compressed run-length code."""

    area: int
    bbox: tuple[int, int, int, int]
    counts: str


def run_starts(flat: NDArray[Any]) -> NDArray[np.int64]:
    """Return where runs of equal values begin in an array [n], n at least 1."""
    return np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])


def segment_rles(id_map: NDArray[np.unsignedinteger]) -> dict[int, dict[str, Any]]:
    """Encode the mask of every id of a map [H, W] but 0, void: ``{"size": [H, W], "counts": str}`` as pycocotools."""
    height, width = id_map.shape
    flat = id_map.ravel(order="F")
    starts = run_starts(flat)
    order = np.argsort(flat[starts], kind="stable")
    ids, first = np.unique(flat[starts[order]], return_index=True)
    codes: dict[int, dict[str, Any]] = {}
    # Counts alternate between pixels outside and inside: differences of the run borders in turn.
    borders = np.split(np.stack([starts, np.append(starts[1:], flat.size)], axis=1)[order], first[1:])
    for segment_id, of_segment in zip(ids.tolist(), borders, strict=True):
        if segment_id == 0:
            continue
        counts = np.diff(of_segment.ravel(), prepend=0, append=flat.size).tolist()
        if counts[-1] == 0:
            del counts[-1]
        code = rle_codec.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        codes[segment_id] = {"size": [height, width], "counts": code["counts"].decode("ascii")}
    return codes


def segment_shapes(id_map: NDArray[np.unsignedinteger]) -> dict[int, Shape]:
    """Measure and encode every id of a map [H, W] but 0, void, in rising order."""
    rles = segment_rles(id_map)
    boxes = rle_codec.toBbox(list(rles.values())).astype(int).tolist()
    # One by one: of more than 255, pycocotools measures no areas.
    return {
        number: Shape(int(rle_codec.area(rle)), (x, y, width, height), rle["counts"])
        for (number, rle), (x, y, width, height) in zip(rles.items(), boxes, strict=True)
    }
