import numpy as np
import pytest
from pycocotools import mask as coco_mask

from construction_panoptic.annotations.merging.masks import polygon_area
from construction_panoptic.sample.export import outline, simplify


def disc(height: int, width: int, x: float, y: float, radius: float) -> np.ndarray:
    """Coverage of the pixels by a disc, from 8 × 8 samples a pixel."""
    rows = (np.arange(height * 8) + 0.5) / 8
    columns = (np.arange(width * 8) + 0.5) / 8
    inside = (columns[None] - x) ** 2 + (rows[:, None] - y) ** 2 <= radius**2
    return inside.reshape(height, 8, width, 8).mean((1, 3)).astype(np.float32)


def raster(polygons: list[np.ndarray], height: int, width: int) -> np.ndarray:
    codes = coco_mask.frPyObjects([polygon.ravel().tolist() for polygon in polygons], height, width)
    return coco_mask.decode(coco_mask.merge(codes)).astype(bool)


def test_disc_is_outlined_to_a_fraction_of_a_pixel() -> None:
    polygons = outline(disc(50, 60, 31.3, 22.7, 14))
    assert len(polygons) == 1
    distance = np.hypot(polygons[0][:, 0] - 31.3, polygons[0][:, 1] - 22.7)
    assert np.abs(distance - 14).max() < 0.25
    assert polygon_area(polygons[0]) == pytest.approx(np.pi * 14**2, rel=0.03)
    assert len(polygons[0]) < 40


def test_shape_over_the_border_is_cut_at_the_border() -> None:
    polygons = outline(disc(40, 40, 2, 38, 12))
    corners = np.concatenate(polygons)
    assert corners.min() == 0
    assert corners.max() == 40
    truth = disc(40, 40, 2, 38, 12) > 0.5
    drawn = raster(polygons, 40, 40)
    assert (truth & drawn).sum() / (truth | drawn).sum() > 0.94


def test_holes_are_filled_and_specks_left_out() -> None:
    coverage = disc(60, 60, 25, 30, 18) - disc(60, 60, 25, 30, 6)
    coverage[3:5, 50:52] = 1
    coverage[40:50, 48:58] = 1
    polygons = outline(coverage)
    assert len(polygons) == 2
    assert polygon_area(polygons[0]) == pytest.approx(np.pi * 18**2, rel=0.03)
    # The corners of the square are cut at half a pixel.
    assert polygon_area(polygons[1]) == pytest.approx(100, abs=1)


def test_nothing_covered_has_no_outline() -> None:
    assert outline(np.zeros((10, 12), np.float32)) == []


def test_simplify_keeps_corners_and_the_tolerance() -> None:
    along = np.linspace(0, 10, 50)
    wiggle = 0.1 * np.sin(along * 9)
    line = np.concatenate([np.stack([along, wiggle], 1), np.stack([10 + wiggle, along], 1)[1:]])
    kept = simplify(line, 0.3)
    assert len(kept) == 3
    assert np.allclose(kept, [line[0], (10, wiggle[-1]), line[-1]], atol=0.25)
    assert len(simplify(line, 0.01)) > 20
