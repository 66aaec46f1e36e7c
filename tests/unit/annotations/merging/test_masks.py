import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from construction_panoptic.annotations.merging.masks import pixel_runs, segmentation_rle, union_mask
from construction_panoptic.annotations.records import UnusableError

pytestmark = pytest.mark.medium

HEIGHT, WIDTH = 23, 31
SQUARE = [5, 5, 15, 5, 15, 15, 5, 15]

# Hundredths, as CVAT writes them: they hit the exact halves where rounding could differ.
coordinates = st.integers(-1000, 4000).map(lambda value: value / 100)
rings = st.lists(
    st.integers(3, 8).flatmap(lambda n: st.lists(coordinates, min_size=2 * n, max_size=2 * n)),
    min_size=1,
    max_size=3,
)


def segmentation_mask(segmentation: Any, height: int, width: int) -> NDArray[np.bool_]:
    return union_mask([segmentation_rle(segmentation, height, width)["counts"]], height, width)


def painted(counts: bytes, height: int, width: int) -> NDArray[np.bool_]:
    pixels = np.zeros(height * width, dtype=bool)
    for run in pixel_runs(counts):
        assert not pixels[run].any()
        pixels[run] = True
    return pixels.reshape(width, height).T


def rle_or_error(segmentation: Any, height: int, width: int) -> dict[str, Any] | UnusableError:
    try:
        return segmentation_rle(segmentation, height, width)
    except UnusableError as error:
        return error


@settings(max_examples=150, deadline=None)
@given(rings, st.integers(1, HEIGHT), st.integers(1, WIDTH))
def test_any_polygon_is_drawn_as_pycocotools_does_or_refused(polygons: list[Any], height: int, width: int) -> None:
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))).astype(bool)
    code = rle_or_error(polygons, height, width)
    if isinstance(code, UnusableError):
        assert code.reason in ("zero_area", "outside_image")
        assert not expected.any()
        return
    assert np.array_equal(segmentation_mask(polygons, height, width), expected)
    assert np.array_equal(painted(code["counts"], height, width), expected)
    # The same from both kinds of run lengths.
    text = {"size": [height, width], "counts": code["counts"].decode()}
    assert np.array_equal(segmentation_mask(text, height, width), expected)
    columns = np.concatenate([[False], expected.T.ravel(), [False]])
    edges = np.flatnonzero(columns[1:] != columns[:-1])
    counts = np.diff(np.concatenate([[0], edges, [height * width]])).tolist()
    plain = {"size": [height, width], "counts": counts}
    assert np.array_equal(segmentation_mask(plain, height, width), expected)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.characters(min_codepoint=40, max_codepoint=120), max_size=20))
def test_any_compressed_text_is_drawn_or_refused(counts: str) -> None:
    code = rle_or_error({"size": [4, 5], "counts": counts}, 4, 5)
    if isinstance(code, UnusableError):
        assert code.reason in ("bad_rle", "zero_area")
    else:
        assert 0 < coco_mask.decode(code).sum() == painted(code["counts"], 4, 5).sum()


def test_several_rings_are_one_mask() -> None:
    second = [20, 2, 25, 2, 25, 8, 20, 8]
    both = segmentation_mask([SQUARE, second], HEIGHT, WIDTH)
    assert np.array_equal(both, segmentation_mask([SQUARE], HEIGHT, WIDTH) | segmentation_mask([second], HEIGHT, WIDTH))


def test_square_has_its_pixels() -> None:
    mask = segmentation_mask([SQUARE], HEIGHT, WIDTH)
    expected = np.zeros((HEIGHT, WIDTH), dtype=bool)
    expected[5:15, 5:15] = True
    assert np.array_equal(mask, expected)


def test_empty_runs_are_left_out() -> None:
    # Set runs of length 0 at both ends, one pixel at x = 1, y = 2.
    code = segmentation_rle({"size": [4, 3], "counts": [0, 0, 6, 1, 5, 0]}, 4, 3)
    assert pixel_runs(code["counts"]) == [slice(6, 7)]


def test_masks_are_joined() -> None:
    second = [20, 2, 25, 2, 25, 8, 20, 8]
    codes = [segmentation_rle([ring], HEIGHT, WIDTH)["counts"] for ring in (SQUARE, second)]
    assert np.array_equal(union_mask(codes, HEIGHT, WIDTH), segmentation_mask([SQUARE, second], HEIGHT, WIDTH))
    assert not union_mask([], HEIGHT, WIDTH).any()


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        (None, "no_segmentation"),
        ([], "no_segmentation"),
        ({}, "no_segmentation"),
        ("polygon", "bad_polygon"),
        (3, "bad_polygon"),
        ([1, 2, 3, 4, 5, 6], "bad_polygon"),
        ([[1, 2, 3, 4, 5, "6"]], "bad_polygon"),
        ([[1, 2, 3, 4, 5, True]], "bad_polygon"),
        ([[]], "too_few_points"),
        ([[1, 2, 3, 4]], "too_few_points"),
        ([SQUARE, [1, 2, 3, 4]], "too_few_points"),
        ([[1, 2, 3, 4, 5, 6, 7]], "odd_coordinates"),
        ([[1, 2, 3, 4, 5, float("nan")]], "not_finite"),
        ([[1, 2, 3, 4, 5, float("inf")]], "not_finite"),
        ([[1, 2, 3, 4, 5, 10**400]], "not_finite"),
        ([[1, 2, 3, 4, 5, 1e12]], "outside_image"),
        ([[1, 2, 3, 4, 5, -100_001]], "outside_image"),
        ([[-9, 1, -2, 1, -2, 9]], "outside_image"),
        ([[1, 30, 9, 30, 9, 40]], "outside_image"),
        ([[5, 5, 10, 10, 5, 5]], "zero_area"),
        ({"size": [WIDTH, HEIGHT], "counts": [HEIGHT * WIDTH]}, "bad_rle"),
        ({"size": [HEIGHT, WIDTH]}, "bad_rle"),
        ({"size": [HEIGHT, WIDTH], "counts": []}, "bad_rle"),
        ({"size": [HEIGHT, WIDTH], "counts": ""}, "bad_rle"),
        ({"size": [HEIGHT, WIDTH], "counts": "é"}, "bad_rle"),
        ({"size": [HEIGHT, WIDTH], "counts": "oooooooooooooooo0"}, "bad_rle"),
        ({"size": [HEIGHT, WIDTH], "counts": "o"}, "bad_rle"),
        ({"size": [HEIGHT, WIDTH], "counts": "\ud800"}, "bad_rle"),
        ({"size": json.loads("[" * 900 + "]" * 900), "counts": [1]}, "bad_rle"),
        ({"size": [HEIGHT, WIDTH], "counts": [1, 2]}, "bad_rle"),
        ({"size": [HEIGHT, WIDTH], "counts": [2**70, 1]}, "bad_rle"),
        ({"size": [HEIGHT, WIDTH], "counts": [-1, HEIGHT * WIDTH + 1]}, "bad_rle"),
        ({"size": [HEIGHT, WIDTH], "counts": [1.5, HEIGHT * WIDTH - 1.5]}, "bad_rle"),
        ({"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}, "zero_area"),
    ],
)
def test_refused_segmentations(segmentation: Any, reason: str) -> None:
    with pytest.raises(UnusableError) as caught:
        segmentation_rle(segmentation, HEIGHT, WIDTH)
    assert caught.value.reason == reason


def test_an_outline_without_end_is_refused_before_it_fills_the_memory() -> None:
    zigzag = [coordinate for _ in range(3000) for coordinate in (0, 0, 3000, 3000)]
    with pytest.raises(UnusableError) as caught:
        segmentation_rle([zigzag], 3000, 3000)
    assert caught.value.reason == "too_complex"


def test_many_outlines_are_one_too_long() -> None:
    square = [0, 0, 3000, 0, 3000, 3000, 0, 3000]
    assert segmentation_rle([square] * 300, 3000, 3000)
    with pytest.raises(UnusableError) as caught:
        segmentation_rle([square] * 400, 3000, 3000)
    assert caught.value.reason == "too_complex"


def test_many_outlines_are_their_union() -> None:
    corners = np.random.default_rng(0).uniform(-5, 45, (300, 2)).tolist()
    rings = [[x, y, x + 2, y, x + 2, y + 2] for x, y in corners]
    expected = coco_mask.merge(coco_mask.frPyObjects(rings, HEIGHT, WIDTH))
    assert segmentation_rle(rings, HEIGHT, WIDTH) == expected


def test_outlines_that_reach_far_out_are_cut_at_the_edge() -> None:
    """Triangles around the image or beside it: each pixel is right, wherever their corners are."""
    left, right = [-90_000, -3, 20, -3, 20, 90_000], [20, -3, 90_000, -3, 20, 90_000]
    masks = [segmentation_mask([ring], HEIGHT, WIDTH) for ring in (left, right)]
    assert masks[0][:, :20].all()
    assert not masks[0][:, 20:].any()
    assert np.array_equal(masks[1], ~masks[0])
