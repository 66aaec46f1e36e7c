import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from construction_panoptic.annotations.merging.masks import segmentation_rle, union_mask
from construction_panoptic.annotations.panoptic_png import encode_id_map
from construction_panoptic.annotations.stuff.fringe import (
    Fringe,
    explained_masks,
    explained_parts,
    leftover_classes,
)
from construction_panoptic.annotations.stuff.label_maps import decode_labels
from construction_panoptic.annotations.stuff.labeller import ImageToLabel
from construction_panoptic.annotations.stuff.labelling import label_all
from construction_panoptic.annotations.stuff.ready import ReadyStuff
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.config.base import Execution
from tests.unit.stored import stored

TAXONOMY = Taxonomy.from_dict(
    {
        "stuff": [
            {"id": 1, "name": "misc", "color": [1, 2, 3]},
            {"id": 2, "name": "ground", "color": [90, 60, 10]},
        ],
        "things": [{"id": 20, "name": "crane", "color": [9, 9, 9]}],
        "coco_to_stuff": [
            {"coco_id": 8, "coco_name": "truck", "stuff": "misc"},
            {"coco_id": 194, "coco_name": "dirt-merged", "stuff": "ground"},
        ],
    }
)


def code_of(segmentation: Any, height: int = 20, width: int = 30) -> str:
    """The counts of a mask's compressed run-length code."""
    counts: bytes = segmentation_rle(segmentation, height, width)["counts"]
    return counts.decode()


def block(rows: slice, columns: slice, shape: tuple[int, int] = (20, 30)) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[rows, columns] = True
    return mask


def test_the_leftover_classes_are_those_of_coco_things() -> None:
    assert leftover_classes(TAXONOMY) == [1]


def test_only_parts_that_things_mostly_cover_are_explained() -> None:
    region = block(slice(2, 12), slice(2, 12)) | block(slice(2, 12), slice(15, 25))
    things = block(slice(3, 11), slice(3, 11)) | block(slice(2, 12), slice(15, 19))
    explained = explained_parts(region, things, 0.5)
    np.testing.assert_array_equal(explained, block(slice(2, 12), slice(2, 12)))
    np.testing.assert_array_equal(explained_parts(region, things, 0.39), region)
    assert not explained_parts(region, things, 1.0).any()


def test_parts_that_touch_at_a_corner_are_one() -> None:
    region = block(slice(0, 4), slice(0, 4)) | block(slice(4, 5), slice(4, 5))
    np.testing.assert_array_equal(explained_parts(region, block(slice(0, 4), slice(0, 4)), 0.5), region)


def test_the_fringe_is_counted_by_hand() -> None:
    labels = np.full((20, 30), 2, dtype=np.uint8)
    labels[5:15, 5:15] = 1
    labels[0, 29] = 1  # far from the thing
    things = block(slice(7, 13), slice(7, 13))
    assert Fringe([1], 1).pixels(labels, things) == 8 * 8 - 6 * 6
    assert Fringe([1], 2).pixels(labels, things) == 10 * 10 - 6 * 6
    assert Fringe([1], 3).pixels(labels, things) == 10 * 10 - 6 * 6
    assert Fringe([], 3).pixels(labels, things) == 0
    assert Fringe([1], 3).pixels(labels, np.zeros_like(things)) == 0


def test_masks_of_any_resolution_are_explained_by_what_covers_them() -> None:
    things = block(slice(0, 10), slice(0, 16))
    masks = np.zeros((4, 10, 15), dtype=bool)  # half the resolution
    masks[0, 0:5, 0:8] = True
    masks[1, 0:5, 0:14] = True  # 40 of 70 cells
    masks[2, 6:10, :] = True
    np.testing.assert_array_equal(explained_masks(masks, things, 0.5), [True, True, False, False])
    np.testing.assert_array_equal(explained_masks(masks, things, 0.6), [True, False, False, False])
    assert not explained_masks(masks, things, 1.0).any()
    assert not explained_masks(masks, np.zeros_like(things), 0.0).any()
    assert explained_masks(masks[:0], things, 0.5).shape == (0,)


def test_things_are_drawn_together() -> None:
    polygon = [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0]]
    rle = {"size": [20, 30], "counts": [400, 15, 185]}
    things = ImageToLabel("a", "a.jpg", (20, 30), (code_of(polygon), code_of(rle))).things()
    expected = union_mask([code_of(polygon).encode()], 20, 30) | union_mask([code_of(rle).encode()], 20, 30)
    np.testing.assert_array_equal(things, expected)
    none = ImageToLabel("b", "b.jpg", (4, 5)).things()
    assert none.shape == (4, 5)
    assert not none.any()


@pytest.mark.parametrize("cut_out", [False, True])
@pytest.mark.parametrize(("share", "workers"), [(0.5, 1), (0.5, 2), (1.0, 1)])
def test_the_rim_of_a_ready_prediction_becomes_void(tmp_path: Path, share: float, workers: int, cut_out: bool) -> None:
    truck, person = block(slice(5, 15), slice(5, 15)), block(slice(5, 15), slice(20, 25))
    things = block(slice(6, 14), slice(6, 14))
    id_map = np.where(truck | person, 7, 8).astype(np.uint32)
    id_map[things & cut_out] = 0  # some predictions leave out what is annotated
    (tmp_path / "panoptic").mkdir()
    (tmp_path / "panoptic/a.png").write_bytes(encode_id_map(id_map))
    content = {
        "images": [{"id": 1, "file_name": "yard/a.jpg"}],
        "annotations": [
            {
                "image_id": 1,
                "file_name": "a.png",
                "segments_info": [{"id": 7, "category_id": 1}, {"id": 8, "category_id": 2}],
            }
        ],
        "categories": [{"id": 1, "name": "misc"}, {"id": 2, "name": "ground"}],
    }
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    names = ["a.jpg", "b.jpg"]
    sizes = {"sha256": "", "height": 20, "width": 30}
    images = pd.DataFrame([{"key": f"yard/{name}", "location": name} | sizes for name in names])
    code = code_of([[6, 6, 14, 6, 14, 14, 6, 14]])
    annotations = stored(pd.DataFrame([{"key": "yard/a.jpg", "is_thing": True, "rle": code}]))
    ready, execution = ReadyStuff(tmp_path, TAXONOMY, share), Execution(workers=workers)
    found, unknown = label_all(images, annotations, ready, Fringe([1], 2), folder=tmp_path, execution=execution)
    assert unknown.labels is None
    assert isinstance(found.labels, bytes)
    labels = decode_labels(found.labels)
    rim = truck & ~things
    assert found.fringe_before == rim.sum() == 36
    if share == 1.0:
        assert found.fringe_after == 36
        return
    assert found.fringe_after == 0
    assert not labels[truck].any()  # the thing lies over its own part
    assert (labels[person] == 1).all()
    assert (labels[~truck & ~person] == 2).all()
