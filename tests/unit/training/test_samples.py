import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_convert, masks_to_boxes

from construction_panoptic.config.training import AugmentationSettings
from construction_panoptic.errors import InputDataError
from construction_panoptic.training import augmentations
from construction_panoptic.training.augmentations import Annotated, Others, resize
from construction_panoptic.training.samples import DetectionSamples, PanopticSamples

# Evaluation at the images' own size (72 x 96), so that nothing is resized.
UNCHANGED = AugmentationSettings(evaluation_side=72, max_side=1333)


def test_detection_sample(scene: Any) -> None:
    samples = DetectionSamples(scene.detection, scene.images, UNCHANGED)
    assert len(samples) == 6
    image, target = samples[1]
    stated = [item for item in scene.detection["annotations"] if item["image_id"] == 2]
    assert image.shape == (3, 96, 72)
    assert image.dtype == torch.float32
    assert target["image_id"] == 2
    assert target["file_name"] == "site__002.png"
    assert target["orig_size"].tolist() == target["size"].tolist() == [96, 72]
    assert target["labels"].tolist() == [item["category_id"] for item in stated]
    corners = box_convert(target["boxes"], "cxcywh", "xyxy") * torch.tensor([72, 96, 72, 96])
    x, y, width, height = stated[0]["bbox"]
    assert corners[0].tolist() == pytest.approx([x, y, x + width, y + height], abs=1e-4)
    assert "id_map" not in target
    pixels = np.asarray(Image.open(scene.images / "site__002.png"), dtype=np.float32) / 255
    expected = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert np.abs(image.permute(1, 2, 0).numpy() - expected).max() < 1e-5


def test_panoptic_sample_has_the_boxes_and_labels_of_the_detection_sample(scene: Any) -> None:
    panoptic = PanopticSamples(scene.panoptic, scene.images, scene.pngs, UNCHANGED)
    detection = DetectionSamples(scene.detection, scene.images, UNCHANGED)
    for index in range(6):
        image, target = panoptic[index]
        other_image, other = detection[index]
        assert torch.equal(image, other_image)
        assert torch.equal(target["boxes"], other["boxes"])
        assert torch.equal(target["labels"], other["labels"])
        boxes = masks_to_boxes(target["id_map"] == target["segment_ids"][:, None, None])
        boxes[:, 2:] += 1
        height, width = target["size"].tolist()
        corners = box_convert(target["boxes"], "cxcywh", "xyxy") * torch.tensor([width, height, width, height])
        assert torch.allclose(corners, boxes, atol=1e-4)


@pytest.mark.parametrize("kind", ["panoptic", "detection"])
def test_samples_of_a_file_in_any_order_are_the_same(scene: Any, kind: str) -> None:
    data = getattr(scene, kind)
    turned = {name: value[::-1] if name == "images" else value for name, value in data.items()}
    # Objects of an image keep their order, images do not.
    turned["annotations"] = sorted(data["annotations"], key=lambda item: -item["image_id"])
    folders = (scene.images, scene.pngs) if kind == "panoptic" else (scene.images,)
    make: Any = PanopticSamples if kind == "panoptic" else DetectionSamples
    usual, other = make(data, *folders), make(turned, *folders)
    for name in ("image_ids", "sizes", "starts", "boxes", "labels", "segment_ids"):
        np.testing.assert_array_equal(getattr(other, name), getattr(usual, name), strict=True)
    assert other.file_names == usual.file_names
    objects = [item for a in data["annotations"] for item in a.get("segments_info", [a])]
    x, y, width, height = np.array([item["bbox"] for item in objects], dtype=np.float32).T
    np.testing.assert_array_equal(usual.boxes, np.stack([x, y, x + width, y + height], axis=1))


def test_sample_depends_on_seed_epoch_and_image_alone(scene: Any, small_settings: Any) -> None:
    augmentation = small_settings().augmentation

    def build(seed: int, **other: Any) -> PanopticSamples:
        return PanopticSamples(
            scene.panoptic, scene.images, scene.pngs, augmentation, training=True, seed=seed, **other
        )

    samples = build(3)
    first = samples[0, 2]
    _ = samples[1, 2], samples[0, 4]
    np.random.seed(1)  # noqa: NPY002 - the global generators must not matter
    torch.manual_seed(1)
    for other in (samples[0, 2], build(3)[0, 2], build(3, cache_mb=1)[0, 2]):
        assert torch.equal(first[0], other[0])
        assert torch.equal(first[1]["id_map"], other[1]["id_map"])
    changed = [samples[epoch, 2][0] for epoch in range(6)] + [build(seed)[0, 2][0] for seed in range(4, 8)]
    assert len({image.numpy().tobytes() for image in changed}) > 5


def test_cache_gives_the_same_and_is_bounded(scene: Any) -> None:
    plain = PanopticSamples(scene.panoptic, scene.images, scene.pngs, UNCHANGED)
    cached = PanopticSamples(scene.panoptic, scene.images, scene.pngs, UNCHANGED, cache_mb=1)
    for _ in range(2):
        for index in range(6):
            assert torch.equal(plain[index][0], cached[index][0])
            assert torch.equal(plain[index][1]["id_map"], cached[index][1]["id_map"])
    assert len(cached._cache) == 6
    assert len(plain._cache) == 0
    full = PanopticSamples(scene.panoptic, scene.images, scene.pngs, UNCHANGED)
    full._cache_room = sum(part.nbytes for part in cached._cache[0] if part is not None)
    for index in (0, 0, 1, 2):
        assert torch.equal(plain[index][0], full[index][0])
    assert list(full._cache) == [0]
    assert full._cache_room == 0


def test_crowds_are_no_targets(scene: Any) -> None:
    detection = json.loads(json.dumps(scene.detection))
    crowd = next(item for item in detection["annotations"] if item["image_id"] == 1)
    crowd["iscrowd"] = 1
    target = DetectionSamples(detection, scene.images, UNCHANGED)[0][1]
    assert len(target["labels"]) == len(DetectionSamples(scene.detection, scene.images, UNCHANGED)[0][1]["labels"]) - 1
    panoptic = json.loads(json.dumps(scene.panoptic))
    panoptic["annotations"][0]["segments_info"][0]["iscrowd"] = 1
    target = PanopticSamples(panoptic, scene.images, scene.pngs, UNCHANGED)[0][1]
    assert panoptic["annotations"][0]["segments_info"][0]["id"] not in target["segment_ids"].tolist()


def test_image_without_objects(scene: Any) -> None:
    data = {"images": scene.detection["images"], "annotations": []}
    for training in (False, True):
        target = DetectionSamples(data, scene.images, AugmentationSettings(), training=training)[0][1]
        assert target["boxes"].shape == (0, 4)
        assert target["labels"].dtype == torch.int64


def test_boxes_are_clipped_to_the_image_and_empty_ones_dropped(scene: Any) -> None:
    boxes = [[-5, 10, 20, 10], [90, 60, 50, 50], [96, 0, 4, 4], [3, 3, 0, 5]]
    annotations = [{"id": index, "image_id": 1, "category_id": 2, "bbox": box} for index, box in enumerate(boxes, 1)]
    data = {"images": scene.detection["images"], "annotations": annotations}
    target = DetectionSamples(data, scene.images, UNCHANGED)[0][1]
    corners = box_convert(target["boxes"], "cxcywh", "xyxy") * torch.tensor([96, 72, 96, 72])
    assert torch.allclose(corners, torch.tensor([[0, 10, 15, 20], [90, 60, 96, 72.0]]), atol=1e-4)


def test_unknown_category_is_named(scene: Any) -> None:
    data = {**scene.detection, "categories": scene.detection["categories"][:3]}
    message = r"category id 4 in site__00\d\.png is not in the taxonomy, whose ids end at 3"
    with pytest.raises(InputDataError, match=message):
        DetectionSamples(data, scene.images)


class Overlay:
    """Puts the darker of each pixel and of another sample's there, and takes its objects over."""

    def __call__(self, sample: Annotated, others: Others, random: np.random.Generator) -> Annotated:
        other = resize(others(), sample.size)
        image = torch.minimum(sample.image, other.image)
        return Annotated(image, torch.cat([sample.boxes, other.boxes]), torch.cat([sample.labels, other.labels]))


def test_an_augmentation_may_ask_for_other_samples(scene: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One class and one line; what it draws depends on seed, epoch and image alone."""
    monkeypatch.setattr(augmentations, "build_augmentations", lambda *_: [Overlay()])
    samples, again = (DetectionSamples(scene.detection, scene.images, training=True, seed=4) for _ in range(2))
    _ = again[3, 2]
    plain = DetectionSamples(scene.detection, scene.images, UNCHANGED)
    first = samples[0, 1]
    assert torch.equal(first[0], again[0, 1][0])
    own, found = plain[1][1]["labels"].tolist(), first[1]["labels"].tolist()
    assert found[: len(own)] == own
    assert len(found) > len(own)
    seen = {tuple(samples[epoch, 1][1]["labels"].tolist()) for epoch in range(8)}
    assert len(seen) > 1


def test_wrong_input_is_named(scene: Any, tmp_path: Path) -> None:
    detection = json.loads(json.dumps(scene.detection))
    with pytest.raises(InputDataError, match="no annotations in it"):
        DetectionSamples({"images": []}, scene.images)
    with pytest.raises(InputDataError, match="there are no images"):
        DetectionSamples({"images": [], "annotations": []}, scene.images)
    with pytest.raises(InputDataError, match="no segments_info"):
        PanopticSamples(scene.detection, scene.images, scene.pngs)
    with pytest.raises(InputDataError, match=r"images/site__001\.png: there is no such file"):
        DetectionSamples(scene.detection, tmp_path / "images")[0]
    with pytest.raises(InputDataError, match=r"pngs/site__001\.png: there is no such file"):
        PanopticSamples(scene.panoptic, scene.images, tmp_path / "pngs")[0]
    (tmp_path / "site__001.png").write_bytes(b"not an image")
    with pytest.raises(InputDataError, match=r"site__001\.png: not a readable image"):
        DetectionSamples(scene.detection, tmp_path)[0]
    truncated = (scene.images / "site__001.png").read_bytes()[:3000]
    (tmp_path / "site__001.png").write_bytes(truncated)
    with pytest.raises(InputDataError, match=r"site__001\.png: not a readable image"):
        DetectionSamples(scene.detection, tmp_path)[0]
    detection["annotations"][0]["image_id"] = 99
    with pytest.raises(InputDataError, match="annotation 1 is of the unknown image 99"):
        DetectionSamples(detection, scene.images)
    detection = json.loads(json.dumps(scene.detection))
    detection["images"][0]["width"] = 95
    with pytest.raises(InputDataError, match=r"site__001\.png: 96 x 72 pixels, but the annotations say 95 x 72"):
        DetectionSamples(detection, scene.images)[0]


def test_repeat_factors_are_those_of_the_rarest_class() -> None:
    def item(number: int, image: int, category: int) -> dict[str, Any]:
        return {"id": number, "image_id": image, "category_id": category, "bbox": [0, 0, 4, 4]}

    images = [{"id": n, "file_name": f"{n}.png", "width": 9, "height": 9} for n in range(1, 101)]
    annotations = [item(n, n, 1) for n in range(1, 100)] + [item(n, n - 100, 2) for n in range(101, 105)]
    samples = DetectionSamples({"images": images, "annotations": annotations}, "nowhere")
    factors = samples.repeat_factors(0.16)
    assert factors[:4] == pytest.approx([2.0] * 4)  # sqrt(0.16 / 0.04)
    assert factors[4:] == [1.0] * 96  # frequent ones, and an image without objects
