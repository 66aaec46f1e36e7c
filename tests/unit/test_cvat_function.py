"""The function for cvat-cli, checked by cvat-sdk itself."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle_codec
from scipy.ndimage import binary_fill_holes

from construction_panoptic.annotations.images import read_rgb
from construction_panoptic.models.files import export_model
from construction_panoptic.models.protocol import PanopticModel
from construction_panoptic.prediction.running import predict_pixels
from tests.unit.prediction.conftest import pixels
from tests.unit.small_model import small_model

pytest.importorskip("cvat_sdk")

import cvat_sdk.auto_annotation as cvataa
from cvat_sdk import models
from cvat_sdk.auto_annotation.driver import _AnnotationMapper
from cvat_sdk.masks import decode_mask

from construction_panoptic.cvat_function import PanopticFunction, create

HEIGHT, WIDTH = 80, 120


@dataclass
class Context(cvataa.DetectionFunctionContext):
    frame_name: str = "a.jpg"
    conf_threshold: float | None = None
    conv_mask_to_poly: bool = False


@pytest.fixture(scope="module")
def trained() -> PanopticModel:
    return small_model(threshold=0.05)


@pytest.fixture(scope="module")
def function(trained: PanopticModel, tmp_path_factory: pytest.TempPathFactory) -> PanopticFunction:
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_model(trained, folder)
    return create(str(folder), device="cpu")


def in_task(function: PanopticFunction, context: Context, image: Image.Image) -> list[models.LabeledShapeRequest]:
    """What the SDK would send to a task that has the same labels under ids of its own, for its frame 7."""
    labels = [
        cvataa.label_spec(each.name, 100 + each.id, type="any", attributes=[], sublabels=[])
        for each in function.spec.labels
    ]
    mapper = _AnnotationMapper(
        logging.getLogger("test"),
        function.spec.labels,
        labels,
        allow_unmatched_labels=False,
        conv_mask_to_poly=context.conv_mask_to_poly,
    )
    tags, shapes = mapper.validate_and_remap(function.detect(context, image), 7)
    assert not tags
    assert all(shape.frame == 7 for shape in shapes)
    return shapes


def test_labels_are_the_classes(function: PanopticFunction) -> None:
    assert isinstance(function.spec, cvataa.DetectionFunctionSpec)
    assert [(each.id, each.name) for each in function.spec.labels] == [(n, f"class {n}") for n in range(1, 6)]


def test_masks_are_the_segments(function: PanopticFunction, trained: PanopticModel) -> None:
    shapes = in_task(function, Context(), Image.fromarray(pixels(1)))
    (expected,) = predict_pixels(trained, [pixels(1)])
    assert shapes
    for shape, segment in zip(shapes, expected.segments_info, strict=True):
        assert (shape.type.value, shape.label_id) == ("mask", 100 + segment["category_id"])
        found = decode_mask(shape.points, image_width=WIDTH, image_height=HEIGHT)
        np.testing.assert_array_equal(found, expected.id_map == segment["id"])


def test_grey_of_16_bits_is_read_as_everywhere(function: PanopticFunction, tmp_path: Path) -> None:
    Image.fromarray(pixels(1)[..., 0].astype(np.uint16) << 8).save(tmp_path / "grey.png")
    with Image.open(tmp_path / "grey.png") as image:
        found = in_task(function, Context(), image)
    assert found == in_task(function, Context(), Image.fromarray(read_rgb(tmp_path / "grey.png")))


def test_polygons_are_the_segments_without_holes(function: PanopticFunction, trained: PanopticModel) -> None:
    shapes = in_task(function, Context(conv_mask_to_poly=True), Image.fromarray(pixels(1)))
    (expected,) = predict_pixels(trained, [pixels(1)])
    assert {shape.type.value for shape in shapes} == {"polygon"}
    for segment in expected.segments_info:
        same_label = [shape for shape in shapes if shape.label_id == 100 + segment["category_id"]]
        others = [s for s in expected.segments_info if s["category_id"] == segment["category_id"]]
        drawn = drawing([shape.points for shape in same_label])
        masks = [binary_fill_holes(expected.id_map == other["id"]) for other in others]
        np.testing.assert_array_equal(drawn, np.any(masks, axis=0))


def drawing(rings: list[Any]) -> np.ndarray:
    codes = rle_codec.frPyObjects([list(map(float, ring)) for ring in rings], HEIGHT, WIDTH)
    return rle_codec.decode(rle_codec.merge(codes)).astype(bool)


def test_the_threshold_of_the_task_is_used(function: PanopticFunction, trained: PanopticModel) -> None:
    image = Image.fromarray(pixels(1))
    counts = [len(function.detect(Context(conf_threshold=threshold), image)) for threshold in (0.0, 0.3, 1.0)]
    expected = [len(next(predict_pixels(trained, [pixels(1)], t)).segments_info) for t in (0.0, 0.3, 0.9999999)]
    assert counts == expected
    assert counts[0] > counts[2] == 0


def test_images_of_any_mode_are_taken_upright(function: PanopticFunction, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels(1)).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as turned:
        shapes = function.detect(Context(), turned)
    upright = Image.fromarray(np.rot90(pixels(1), -1)).convert("RGBA")
    assert [shape.points for shape in shapes] == [shape.points for shape in function.detect(Context(), upright)]
