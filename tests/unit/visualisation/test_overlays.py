from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from construction_panoptic.errors import InputDataError
from construction_panoptic.visualisation import ClassTable, overlays, panoptic_overlay
from construction_panoptic.visualisation.overlays import boxes_overlay, display_size, segment_colors


def grey_image(height: int, width: int, value: int = 100) -> np.ndarray:
    return np.full((height, width, 3), value, dtype=np.uint8)


def halves(height: int, width: int) -> np.ndarray:
    """Id 7 at the left, id 300000 at the right."""
    id_map = np.full((height, width), 7, dtype=np.int32)
    id_map[:, width // 2 :] = 300000
    return id_map


LEFT_RIGHT = [{"id": 7, "category_id": 1}, {"id": 300000, "category_id": 3}]


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64])
def test_segments_are_blended_with_their_class_colours(classes: ClassTable, dtype: Any) -> None:
    image, id_map = grey_image(400, 600), halves(400, 600).astype(dtype)
    opaque = panoptic_overlay(image, id_map, LEFT_RIGHT, classes, alpha=1.0)[:150]  # above the names
    assert (opaque[:, :299] == classes.colors[1]).all()
    assert (opaque[:, 300:] == classes.colors[3]).all()
    mixed = panoptic_overlay(image, id_map, LEFT_RIGHT, classes, alpha=0.25)
    assert mixed[0, 0].tolist() == [round(75 + 0.25 * channel) for channel in classes.colors[1]]
    assert mixed.dtype == np.uint8
    assert (image == 100).all()


def test_instances_of_a_thing_differ_and_parts_of_stuff_do_not(classes: ClassTable) -> None:
    segments = [{"id": i, "category_id": category} for i, category in enumerate([3, 3, 4, 3, 1, 1], start=1)]
    colors = segment_colors(segments, classes)
    assert colors[0] == classes.colors[3]
    assert colors[2] == classes.colors[4]
    assert len({colors[0], colors[1], colors[3]}) == 3
    assert colors[4] == colors[5] == classes.colors[1]


@pytest.mark.parametrize("color", [(0, 0, 10), (240, 240, 250), (200, 30, 30), (197, 226, 255)])
def test_instances_are_told_apart_in_every_colour(color: tuple[int, int, int]) -> None:
    one = ClassTable({1: "pump"}, {1: color}, {1: True})
    colors = segment_colors([{"id": i, "category_id": 1} for i in range(5)], one)
    apart = np.abs(np.array(colors)[:, None] - np.array(colors)).sum(axis=2)
    assert (apart + 100 * np.eye(5) >= 20).all()


@pytest.mark.parametrize(("width", "columns"), [(600, [299]), (800, [399, 400])])
def test_borders_are_where_segments_meet(classes: ClassTable, width: int, columns: list[int]) -> None:
    picture = without_names(grey_image(400, width), halves(400, width), LEFT_RIGHT, classes)
    white = (picture == 255).all(axis=2)
    assert np.flatnonzero(white.all(axis=0)).tolist() == columns
    assert white.sum() == 400 * len(columns)


def test_horizontal_borders_are_drawn_too(classes: ClassTable) -> None:
    picture = without_names(grey_image(800, 400), halves(400, 800).T, LEFT_RIGHT, classes)
    assert np.flatnonzero((picture == 255).all(axis=(1, 2))).tolist() == [399, 400]


def test_void_is_grey_and_striped_and_has_no_name(classes: ClassTable) -> None:
    image = np.zeros((400, 500, 3), dtype=np.uint8)
    image[..., 0] = 200
    picture = panoptic_overlay(image, np.zeros((400, 500), dtype=np.int32), [], classes)
    assert (picture[..., 0] == picture[..., 1]).all()
    assert (picture[..., 0] == picture[..., 2]).all()
    assert len(np.unique(picture)) == 2


def without_names(*arguments: Any) -> np.ndarray:
    with patch.object(overlays, "_with_names", lambda picture, *_: picture):
        return panoptic_overlay(*arguments)


def name_pixels(id_map: np.ndarray, segments: list[dict[str, Any]], classes: ClassTable) -> np.ndarray:
    """Where the names are."""
    arguments = grey_image(*id_map.shape), id_map, segments, classes
    return (panoptic_overlay(*arguments) != without_names(*arguments)).any(axis=2)


def test_names_are_inside_their_segments_and_leave_void_alone(classes: ClassTable) -> None:
    id_map = np.zeros((400, 600), dtype=np.int32)
    id_map[50:350, 20:250] = 1
    id_map[50:350, 300:590] = 2
    segments = [{"id": 1, "category_id": 3}, {"id": 2, "category_id": 4}]
    named = name_pixels(id_map, segments, classes)
    assert not named[id_map == 0].any()
    for i in (1, 2):
        rows, columns = np.nonzero(named & (id_map == i))
        assert np.ptp(rows) >= 8
        assert np.ptp(columns) >= 30
        inside_rows, inside_columns = np.nonzero(id_map == i)
        assert abs(rows.mean() - inside_rows.mean()) < 20
        assert abs(columns.mean() - inside_columns.mean()) < 20


def test_a_name_stays_in_a_ring(classes: ClassTable) -> None:
    """The centre of gravity of a ring is outside of it."""
    y, x = np.mgrid[:400, :400] - 199.5
    radius = np.hypot(y, x)
    id_map = np.where((radius > 110) & (radius < 195), 1, 0).astype(np.int32)
    named = name_pixels(id_map, [{"id": 1, "category_id": 1}], classes)
    assert named.any()
    assert not named[id_map == 0].any()


def test_the_text_is_the_class_name_and_the_score(classes: ClassTable) -> None:
    id_map = np.ones((400, 400), dtype=np.int32)

    def pixels(**segment: Any) -> int:
        return int(name_pixels(id_map, [{"id": 1, **segment}], classes).sum())

    bare = pixels(category_id=1)
    assert bare < pixels(category_id=1, score=0.9) < pixels(category_id=1, score=0.9, iscrowd=1)
    assert bare == pixels(category_id=1, score=None, iscrowd=0)
    assert bare < pixels(category_id=3)


def test_a_small_image_is_enlarged_until_names_are_readable(classes: ClassTable) -> None:
    picture = panoptic_overlay(grey_image(96, 128), halves(96, 128), LEFT_RIGHT, classes)
    assert picture.shape == (384, 512, 3)
    plain = without_names(grey_image(96, 128), halves(96, 128), LEFT_RIGHT, classes)
    rows, _ = np.nonzero((picture[:, :250] != plain[:, :250]).any(axis=2))
    assert np.ptp(rows) >= 9
    assert (plain[:, :250] == plain[0, 0]).all(axis=2).mean() == 1


def test_a_large_image_is_reduced(classes: ClassTable) -> None:
    picture = panoptic_overlay(grey_image(3000, 4000), halves(3000, 4000), LEFT_RIGHT, classes)
    assert picture.shape == (1200, 1600, 3)
    assert picture[5, 5].tolist() == [round(50 + 0.5 * channel) for channel in classes.colors[1]]


@pytest.mark.parametrize(
    ("size", "expected"),
    [((96, 96), (384, 384)), ((500, 400), (500, 400)), ((10, 1000), (16, 1600)), ((1, 1), (384, 384))],
)
def test_display_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert display_size(*size, 1600) == expected


def test_64_classes_are_all_named(many_classes: ClassTable) -> None:
    rows, columns = np.mgrid[:8, :8]
    id_map = np.kron(rows * 8 + columns + 1, np.ones((100, 160), dtype=np.int64))
    segments = [{"id": i, "category_id": i} for i in range(1, 65)]
    named = name_pixels(id_map, segments, many_classes)
    assert all(named[id_map == i].any() for i in range(1, 65))


def test_one_class_over_all_the_image() -> None:
    one = ClassTable({1: "wheel_loader"}, {1: (200, 30, 30)}, {1: True})
    picture = panoptic_overlay(
        grey_image(9, 9), np.ones((9, 9), dtype=int), [{"id": 1, "category_id": 1}], one, alpha=1
    )
    assert (picture[:150] == (200, 30, 30)).all()  # above the name


def test_specks_and_segments_without_pixels_get_no_name(classes: ClassTable) -> None:
    id_map = np.zeros((400, 400), dtype=np.int32)
    id_map[200, 200] = 1
    segments = [{"id": 1, "category_id": 3}, {"id": 2, "category_id": 4}]
    assert not name_pixels(id_map, segments, classes).any()


def test_bad_input_is_named(classes: ClassTable) -> None:
    with pytest.raises(InputDataError, match="of one size"):
        panoptic_overlay(grey_image(20, 30), halves(30, 20), LEFT_RIGHT, classes)
    with pytest.raises(InputDataError, match=r"300000.* no segment"):
        panoptic_overlay(grey_image(20, 30), halves(20, 30), LEFT_RIGHT[:1], classes)
    with pytest.raises(InputDataError, match=r"\[99\].*taxonomy"):
        panoptic_overlay(grey_image(20, 30), halves(20, 30), [{"id": 7, "category_id": 99}], classes)
    with pytest.raises(InputDataError, match="uint8"):
        panoptic_overlay(grey_image(20, 30).astype(float), halves(20, 30), LEFT_RIGHT, classes)


def box(bbox: tuple[int, int, int, int], category_id: int, **score: float) -> dict[str, Any]:
    return {"bbox": bbox, "category_id": category_id, **score}


def test_boxes_are_outlined_in_their_class_colours(classes: ClassTable) -> None:
    image = grey_image(400, 500)
    picture = boxes_overlay(image, [box((50, 60, 150, 240), 3), box((300, 100, 150, 250), 4)], classes)
    for (x1, y1, x2, y2), label in (((50, 60, 200, 300), 3), ((300, 100, 450, 350), 4)):
        for y, x in ((y2, (x1 + x2) // 2), ((y1 + y2) // 2, x1), ((y1 + y2) // 2, x2)):
            assert picture[y, x].tolist() == list(classes.colors[label])
        assert picture[(y1 + y2) // 2, (x1 + x2) // 2].tolist() == [100, 100, 100]
    assert (picture[375:] == 100).all()


def test_boxes_are_scaled_with_a_small_image(classes: ClassTable) -> None:
    picture = boxes_overlay(grey_image(96, 96), [box((24, 24, 48, 48), 3, score=0.5)], classes)
    assert picture.shape == (384, 384, 3)
    assert picture[288, 192].tolist() == list(classes.colors[3])


def test_the_tag_of_a_box_at_the_edge_is_in_the_picture(classes: ClassTable) -> None:
    picture = boxes_overlay(grey_image(400, 500), [box((490, 0, 110, 20), 3, score=1.0)], classes)
    tag = (picture == classes.colors[3]).all(axis=2)
    assert tag[:20, 400:480].sum() > 200


def test_stronger_boxes_lie_on_top(classes: ClassTable) -> None:
    boxes = [box((50, 60, 150, 240), 3, score=0.9), box((50, 60, 150, 240), 4, score=0.3)]
    picture = boxes_overlay(grey_image(400, 500), boxes, classes)
    assert picture[300, 120].tolist() == list(classes.colors[3])


def test_no_boxes_leave_the_image_as_it_is(classes: ClassTable) -> None:
    image = grey_image(400, 500)
    assert np.array_equal(boxes_overlay(image, [], classes), image)


def test_a_box_of_an_unknown_class_is_named(classes: ClassTable) -> None:
    with pytest.raises(InputDataError, match="taxonomy"):
        boxes_overlay(grey_image(40, 50), [box((0, 0, 0, 0), 9)], classes)
