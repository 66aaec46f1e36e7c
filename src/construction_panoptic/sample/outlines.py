"""Masks to polygons, as an annotator would click them."""

import contourpy
import numpy as np
from numpy.typing import NDArray

from construction_panoptic.sample.textures import FloatArray

TOLERANCE = 0.3  # pixels, the largest distance between an outline and its simplified form
SMALLEST_PART = 6  # square pixels


def simplify(points: NDArray[np.float64], tolerance: float) -> NDArray[np.float64]:
    """Drop vertices that lie within ``tolerance`` pixels of the line through their neighbours.

    Douglas and Peucker (1973), on an open [N, 2] line.
    """
    keep = np.zeros(len(points), bool)
    keep[[0, -1]] = True
    stack = [(0, len(points) - 1)]
    while stack:
        first, last = stack.pop()
        if last - first < 2:
            continue
        start, along = points[first], points[last] - points[first]
        offsets = points[first + 1 : last] - start
        length = float(np.hypot(*along))
        if length > 1e-9:
            distance = np.abs(along[0] * offsets[:, 1] - along[1] * offsets[:, 0]) / length
        else:
            distance = np.hypot(offsets[:, 0], offsets[:, 1])
        farthest = int(distance.argmax())
        if distance[farthest] > tolerance:
            middle = first + 1 + farthest
            keep[middle] = True
            stack += [(first, middle), (middle, last)]
    return points[keep]


def polygon_area(points: NDArray[np.float64]) -> float:
    """Area of a closed polygon with vertices [N, 2], by the shoelace formula, without its sign."""
    x, y = points[:, 0], points[:, 1]
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def outline(coverage: FloatArray) -> list[NDArray[np.float64]]:
    """Outer outlines of what is covered by more than one half; holes are filled, since CVAT's polygons have none.

    Args:
        coverage: [H, W] float32 in 0…1, the fraction of each pixel that the thing covers.

    Returns:
        Polygons [N, 2] of (x, y) in image pixels (the first pixel spans 0…1), inside the image, largest first.
    """
    height, width = coverage.shape
    rows, columns = np.flatnonzero(coverage.max(1) > 0.5), np.flatnonzero(coverage.max(0) > 0.5)
    if not len(rows):
        return []
    top, bottom = max(0, rows[0] - 1), min(height, rows[-1] + 2)
    left, right = max(0, columns[0] - 1), min(width, columns[-1] + 2)
    padded = np.pad(coverage[top:bottom, left:right], 1)
    rings = contourpy.contour_generator(z=padded, name="serial", fill_type="OuterOffset").filled(0.5, 2.0)
    polygons = []
    for points, offsets in zip(rings[0], rings[1], strict=True):
        if points is None or offsets is None:
            continue
        # Pixel centres lie at one half; the padding moved everything by one.
        ring = np.asarray(points, np.float64)[: int(offsets[1])] + np.array([left - 0.5, top - 0.5])
        ring = np.clip(simplify(ring, TOLERANCE), 0, (width, height)).round(2)[:-1]
        if len(ring) >= 3 and polygon_area(ring) >= SMALLEST_PART:
            polygons.append(ring)
    return sorted(polygons, key=polygon_area, reverse=True)
