"""A small dataset in the COCO panoptic and detection formats, and settings that suit it."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from construction_panoptic.annotations.panoptic_png import encode_id_map
from construction_panoptic.config.base import parse
from construction_panoptic.config.training import (
    DetectionSettings,
    PanopticDeeplabTrainingSettings,
    UniversalTrainingSettings,
)
from construction_panoptic.models.spec import ModelSpec
from tests.unit.universal_models import EOMT_SIDE

NUM_CLASSES = 5  # ids 1 (stuff), 2, 3, 4 (things)
SPEC = ModelSpec(
    categories=tuple({"id": label, "name": str(label), "isthing": int(label > 1)} for label in range(1, NUM_CLASSES)),
    threshold=0.01,
)
DEEPLAB_SPEC = SPEC.model_copy(update={"kind": "panoptic_deeplab"})
UNIVERSAL_SPEC = SPEC.model_copy(update={"kind": "universal", "merging": "masks"})


@dataclass(frozen=True)
class Scene:
    images: Path
    pngs: Path
    panoptic: dict[str, Any]
    detection: dict[str, Any]


def write_scene(folder: Path, count: int, *, width: int = 96, height: int = 72, seed: int = 0) -> Scene:
    """Images of coloured rectangles (things) on a ground (stuff) under a void band."""
    random = np.random.default_rng(seed)
    images, panoptic = [], []
    boxes: list[dict[str, Any]] = []
    (folder / "images").mkdir(parents=True)
    (folder / "panoptic").mkdir()
    for image_id in range(1, count + 1):
        name = f"site__{image_id:03d}"
        size = (height, width) if image_id % 2 else (width, height)
        pixels = np.full((*size, 3), 40, np.uint8) + random.integers(0, 20, (*size, 3), dtype=np.uint8)
        id_map = np.zeros(size, np.uint32)
        id_map[size[0] // 2 :] = 70000 + image_id
        pixels[size[0] // 2 :, :, 1] += 90
        segments = [(70000 + image_id, 1)]
        for number in range(1, 3):
            label = 2 + (image_id + number) % 3
            top, left = int(random.integers(4, size[0] // 3)), int(random.integers(4, size[1] // 2))
            high, wide = int(random.integers(20, 36)), int(random.integers(20, 36))
            region = slice(top, top + high), slice(left, left + wide)
            id_map[region] = number * 300
            pixels[region] = (np.array([[250, 30, 30], [30, 30, 250], [240, 240, 30]])[label - 2]).astype(np.uint8)
            segments.append((number * 300, label))
        segments_info = []
        for segment_id, label in segments:
            rows, columns = np.nonzero(id_map == segment_id)
            if not len(rows):
                continue
            x, y = int(columns.min()), int(rows.min())
            box = [x, y, int(columns.max()) - x + 1, int(rows.max()) - y + 1]
            segments_info.append({"id": segment_id, "category_id": label, "area": len(rows), "bbox": box, "iscrowd": 0})
            boxes.append({**segments_info[-1], "id": len(boxes) + 1, "image_id": image_id})
        Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
        (folder / "panoptic" / f"{name}.png").write_bytes(encode_id_map(id_map))
        images.append({"id": image_id, "file_name": f"{name}.png", "height": size[0], "width": size[1]})
        panoptic.append({"image_id": image_id, "file_name": f"{name}.png", "segments_info": segments_info})
    categories = [{"id": label, "name": str(label), "isthing": int(label > 1)} for label in range(1, NUM_CLASSES)]
    return Scene(
        images=folder / "images",
        pngs=folder / "panoptic",
        panoptic={"images": images, "annotations": panoptic, "categories": categories},
        detection={"images": images, "annotations": boxes, "categories": categories},
    )


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return write_scene(tmp_path_factory.mktemp("scene"), 6)


@pytest.fixture(scope="session")
def small_settings() -> Callable[..., DetectionSettings]:
    """Settings for small images; keywords replace or add parameters."""

    def build(**changes: Any) -> DetectionSettings:
        augmentation = {
            "sides": [64, 72, 80],
            "max_side": 112,
            "first_sides": [60, 70],
            "crop_min": 40,
            "crop_max": 60,
            "evaluation_side": 72,
        }
        data: dict[str, Any] = {
            "epochs": 3,
            "batch_size": 2,
            "workers": 0,
            "device": "cpu",
            "optimizer": {"lr": 1e-3, "lr_backbone": 1e-3},
            "augmentation": augmentation,
        }
        return parse(DetectionSettings, {**data, **changes}, "detection")

    return build


@pytest.fixture(scope="session")
def small_model() -> dict[str, Any]:
    """Keyword arguments of a small detector with dropout and trained batch normalisation."""
    return {
        "num_classes": NUM_CLASSES,
        "backbone": "tiny",
        "norm": "batch",
        "num_queries": 10,
        "hidden_dim": 32,
        "num_heads": 4,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "feedforward_dim": 64,
        "dropout": 0.1,
    }


def deeplab_settings(like: DetectionSettings, **changes: Any) -> PanopticDeeplabTrainingSettings:
    """Settings of a small Panoptic-DeepLab, in all that trainings have in common like those of another stage."""
    common = like.model_dump(exclude={"losses", "matching"})
    model = {"backbone": "tiny", "norm": "batch", "channels": 16, "semantic_channels": 8, "instance_channels": 8}
    return parse(PanopticDeeplabTrainingSettings, {**common, "model": model, **changes}, "panoptic_deeplab")


def universal_settings(like: DetectionSettings, **changes: Any) -> UniversalTrainingSettings:
    """Settings of a small EoMT, in all that trainings have in common like those of another stage."""
    common = like.model_dump(exclude={"losses", "matching"})
    common["weights"] = "eomt"
    common["augmentation"] |= {"max_side": EOMT_SIDE}
    return parse(UniversalTrainingSettings, {**common, **changes}, "universal")


def as_bytes(checkpoint: Mapping[str, Any] | None) -> bytes:
    stream = io.BytesIO()
    torch.save(checkpoint, stream)
    return stream.getvalue()


def through_a_file(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    return torch.load(io.BytesIO(as_bytes(checkpoint)), weights_only=True)


def assert_equal(left: Any, right: Any, where: str = "checkpoint") -> None:
    """Equal bit for bit, times and how often they were taken apart."""
    assert type(left) is type(right), where
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            if key not in {"timings", "seconds", "waited"}:
                assert_equal(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list):
        assert len(left) == len(right), where
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_equal(one, other, f"{where}[{index}]")
    elif isinstance(left, Tensor):
        assert torch.equal(left, right), where
    else:
        assert left == right, where


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
