"""A small data set on disk, with images of different sizes and blocks as segments."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from construction_panoptic.annotations.panoptic_png import encode_id_map
from construction_panoptic.config.training import AugmentationSettings
from construction_panoptic.models.detr import DetrPanoptic
from construction_panoptic.parallel.workers import Workers
from construction_panoptic.training.loading import BatchLoader, build_loader
from construction_panoptic.training.samples import DetectionSamples, PanopticSamples
from tests.unit.evaluation.pairs import PanopticPair, make_random_pair
from tests.unit.small_model import CATEGORIES, small_model

# Height and width of each image, in blocks of 32 pixels.
SIZES = [(4, 6), (6, 4), (4, 4), (5, 4), (4, 6)]


@dataclass
class SmallData:
    """Paths and content of the data set."""

    images: Path
    pngs: Path
    panoptic: dict[str, Any]
    detection: dict[str, Any]
    settings: AugmentationSettings

    def panoptic_loader(self, batch_size: int = 2) -> BatchLoader:
        samples = PanopticSamples(self.panoptic, self.images, self.pngs, self.settings)
        return build_loader(samples, batch_size=batch_size, shuffle=False)

    def detection_loader(self, batch_size: int = 2) -> BatchLoader:
        samples = DetectionSamples(self.detection, self.images, self.settings)
        return build_loader(samples, batch_size=batch_size, shuffle=False)


def _segments(ids: np.ndarray) -> list[dict[str, Any]]:
    segments = []
    for identity in np.unique(ids[ids > 0]):
        rows, columns = np.nonzero(ids == identity)
        bbox = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        segments.append(
            {
                "id": int(identity),
                "category_id": int(identity) % 1000,
                "area": len(rows),
                "bbox": [int(value) for value in bbox],
                "iscrowd": 0,
            }
        )
    return segments


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> SmallData:
    """Five images with class 1 in the upper half, columns of things (3, 4, 5) below and a void corner."""
    folder = tmp_path_factory.mktemp("small_data")
    generator = np.random.default_rng(0)
    images, panoptic, detection = [], [], []
    for number, (rows, columns) in enumerate(SIZES, start=1):
        blocks = np.zeros((rows, columns), np.int64)
        blocks[: rows // 2] = 10_001
        for column in range(columns):
            blocks[rows // 2 :, column] = 1000 * (column + 1) + 3 + column % 3
        blocks[-1, -1] = 0
        ids = blocks.repeat(32, axis=0).repeat(32, axis=1)
        pixels = generator.integers(0, 256, (*ids.shape, 3), dtype=np.uint8)
        (folder / "images").mkdir(exist_ok=True)
        (folder / "pngs").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / "images" / f"image {number}.png")
        (folder / "pngs" / f"{number}.png").write_bytes(encode_id_map(ids))
        height, width = ids.shape
        images.append({"id": number * 7, "file_name": f"image {number}.png", "height": height, "width": width})
        segments = _segments(ids)
        panoptic.append({"image_id": number * 7, "file_name": f"{number}.png", "segments_info": segments})
        detection += [{**segment, "image_id": number * 7, "id": 100 * number + k} for k, segment in enumerate(segments)]
    common = {"images": images, "categories": list(CATEGORIES)}
    data = SmallData(
        folder / "images",
        folder / "pngs",
        {**common, "annotations": panoptic},
        {**common, "annotations": detection},
        AugmentationSettings(evaluation_side=64, max_side=96),
    )
    (folder / "panoptic.json").write_text(json.dumps(data.panoptic))
    return data


@pytest.fixture
def model() -> DetrPanoptic:
    """A small model with random weights, in training mode."""
    network = small_model().network
    assert isinstance(network, DetrPanoptic)
    return network.train()


@pytest.fixture
def ready_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools have started when they get work, so that none of it is done in this process."""
    original = Workers.map

    def started(self: Workers, function: Any, items: Any) -> Iterator[Any]:
        if not self.inline:
            list(original(self, abs, [0]))
            assert self._starting is not None
            wait([self._starting])
        yield from original(self, function, items)

    monkeypatch.setattr(Workers, "map", started)


@pytest.fixture
def random_pair(tmp_path: Path) -> Callable[..., PanopticPair]:
    """Truth and noisy predictions of a few images, from a seed."""

    def make(seed: int, noise: float = 0.25) -> PanopticPair:
        return make_random_pair(tmp_path / str(seed), seed, noise)

    return make
