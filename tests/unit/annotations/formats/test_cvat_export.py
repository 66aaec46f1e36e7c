import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from pycocotools import mask
from scipy import ndimage

from construction_panoptic.annotations.coco_files import CocoFiles
from construction_panoptic.annotations.formats.cvat_export import ANNOTATIONS_FILE, cvat_files, pixel_outlines
from construction_panoptic.annotations.formats.reading import read_exports
from construction_panoptic.annotations.merging.converting import merge_images
from construction_panoptic.annotations.merging.masks import run_lengths, segmentation_rle, union_mask
from construction_panoptic.annotations.panoptic_png import decode_id_map
from construction_panoptic.annotations.records import ConvertedImage
from construction_panoptic.annotations.stuff.label_maps import encode_labels
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.errors import InputDataError


def converted_files(raw: Path, target: Path, taxonomy: Taxonomy) -> list[ConvertedImage]:
    exports = read_exports(raw, taxonomy)
    assert exports.rejected.empty
    stuff = encode_labels(np.ones((30, 40), np.uint8))
    images: Any = list(merge_images(exports.images, exports.annotations, lambda key: stuff, taxonomy))
    target.mkdir()
    for image in images:
        content = image.image if isinstance(image.image, bytes) else image.image.read_bytes()
        (target / image.record.image_file).write_bytes(content)
        (target / image.record.png_file).write_bytes(image.png)
    return images


def thing_masks(images: list[ConvertedImage]) -> dict[str, list[tuple[int, int, bytes]]]:
    """Class, crowd and pixels of the things of each image, in a fixed order."""
    found = {}
    for image in images:
        id_map = decode_id_map(image.png)
        found[image.record.image_file.rpartition("__")[2]] = sorted(
            (s.category_id, s.iscrowd, (id_map == s.id).tobytes())
            for s in image.record.segments
            if s.annotation_id is not None
        )
    return found


@pytest.fixture
def converted(
    make_export: Callable[..., Path], make_document: Callable[..., dict[str, Any]], site_taxonomy: Taxonomy
) -> tuple[list[ConvertedImage], Path, dict[str, Any]]:
    shapes: list[Any] = [
        [[2, 2, 20, 3, 11, 25]],
        [[10, 10, 30, 10, 30, 20, 10, 20], [1, 20, 5, 20, 5, 28]],
        {"size": [30, 40], "counts": [0, 7, 23, 7, 1163]},
    ]
    [annotation] = make_document()["annotations"]
    annotations = [
        annotation | {"id": n, "image_id": 1 + n % 2, "category_id": 1 + n % 3, "segmentation": shape, "iscrowd": n % 2}
        for n, shape in enumerate(shapes * 2)
    ]
    document = make_document(
        categories=[{"id": n, "name": name} for n, name in enumerate(["pump", "pipes", "tower crane"], 1)],
        images=[{"id": n, "file_name": f"{n}.png", "width": 40, "height": 30} for n in (1, 2, 3)],
        annotations=annotations,
    )
    raw = make_export("yard", document, photos=("1.png", "2.png", "3.png")).parent
    folder = raw.parent / "converted"
    images = converted_files(raw, folder, site_taxonomy)
    keys = [image.record.key for image in images]
    table = pd.DataFrame({"key": keys, "split": "val"})
    panoptic = CocoFiles([image.record for image in images], table, site_taxonomy).panoptic("val")
    return images, folder, panoptic | {name: list(panoptic[name]) for name in ("images", "annotations")}


@pytest.mark.parametrize("shapes", ["masks", "polygons"])
def test_what_goes_to_cvat_comes_back_the_same(
    converted: tuple[list[ConvertedImage], Path, dict[str, Any]], tmp_path: Path, site_taxonomy: Taxonomy, shapes: Any
) -> None:
    images, folder, panoptic = converted
    for name, content in cvat_files(panoptic, folder, folder, shapes=shapes):
        path = tmp_path / "again/corrected" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    again = converted_files(tmp_path / "again", tmp_path / "twice", site_taxonomy)
    before, after = thing_masks(images), thing_masks(again)
    assert before == after
    assert [len(things) for things in before.values()] == [3, 3, 0]
    document = json.loads((tmp_path / "again/corrected" / ANNOTATIONS_FILE).read_text())
    crowds = [entry["iscrowd"] for entry in document["annotations"] if isinstance(entry["segmentation"], dict)]
    assert len(crowds) == 6 if shapes == "masks" else crowds == [1, 1, 1]


def test_a_missing_image_is_named(converted: tuple[list[ConvertedImage], Path, dict[str, Any]]) -> None:
    images, folder, panoptic = converted
    (folder / images[0].record.image_file).unlink()
    with pytest.raises(InputDataError, match=images[0].record.image_file):
        list(cvat_files(panoptic, folder, folder))


def test_another_size_is_refused(converted: tuple[list[ConvertedImage], Path, dict[str, Any]]) -> None:
    _, folder, panoptic = converted
    panoptic["images"][0]["width"] += 1
    with pytest.raises(InputDataError, match="another size"):
        list(cvat_files(panoptic, folder, folder))


def test_run_lengths_come_back() -> None:
    lengths = [3, 40, 0, 1000, 2, 7, 148]
    code = mask.frPyObjects({"size": [30, 40], "counts": lengths}, 30, 40)
    assert run_lengths(code["counts"]).tolist() == lengths


@settings(max_examples=200, deadline=None)
@given(arrays.arrays(np.bool_, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_polygons_along_the_pixels_draw_the_mask(pixels: NDArray[np.bool_]) -> None:
    outlines = pixel_outlines(pixels)
    # What is not reached from outside, without passing corners, is a hole.
    _, parts_outside = ndimage.label(np.pad(~pixels, 1, constant_values=True), structure=np.ones((3, 3)))
    assert (outlines is None) == (parts_outside > 1 or not pixels.any())
    if outlines is not None:
        assert np.array_equal(union_mask([segmentation_rle(outlines, *pixels.shape)["counts"]], *pixels.shape), pixels)
        assert len(outlines) == ndimage.label(pixels)[1]
