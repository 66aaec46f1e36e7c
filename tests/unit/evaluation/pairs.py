"""Pairs of truth and predictions, as COCO panoptic files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CATEGORIES = [{"id": i, "name": f"class {i}", "supercategory": "x", "isthing": int(i > 3)} for i in range(1, 8)]


def save_ids(path: Path, ids: np.ndarray) -> None:
    """Write an id map as the 24-bit PNG of COCO panoptic."""
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(path)


def load_ids(path: Path) -> np.ndarray:
    """Read the 24-bit PNG of COCO panoptic."""
    rgb = np.asarray(Image.open(path).convert("RGB")).astype(np.int64)
    return rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]


@dataclass
class PanopticPair:
    """Truth and predictions of a few images, in memory and as PNGs."""

    truth: dict[str, Any]
    predictions: dict[str, Any]
    truth_folder: Path
    prediction_folder: Path

    @property
    def arguments(self) -> tuple[dict[str, Any], Path, dict[str, Any], Path]:
        return self.truth, self.truth_folder, self.predictions, self.prediction_folder


def entry(image_id: int, folder: Path, ids: np.ndarray, classes: dict[int, int], crowd: set[int]) -> dict[str, Any]:
    """Write the PNG of one image and give its annotation."""
    save_ids(folder / f"{image_id}.png", ids)
    segments = [
        {
            "id": identity,
            "category_id": category,
            "area": int(np.count_nonzero(ids == identity)),
            "bbox": [0, 0, 1, 1],
            "iscrowd": int(identity in crowd),
        }
        for identity, category in classes.items()
        if np.any(ids == identity)
    ]
    return {"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": segments}


def _random_side(
    generator: np.random.Generator, regions: np.ndarray, classes: dict[int, int], crowds: bool
) -> tuple[np.ndarray, dict[int, int], set[int]]:
    """Give the regions random 24-bit ids, some another class, some (with ``crowds``) the crowd flag."""
    ids = np.zeros_like(regions)
    named: dict[int, int] = {}
    crowd: set[int] = set()
    for region in np.unique(regions[regions > 0]):
        identity = int(generator.integers(1, 2**24))
        ids[regions == region] = identity
        changed = generator.random() < 0.15
        named[identity] = int(generator.integers(1, 8)) if changed else classes[int(region)]
        if crowds and generator.random() < 0.2:
            crowd.add(identity)
    return ids, named, crowd


def make_random_pair(folder: Path, seed: int, noise: float = 0.25) -> PanopticPair:
    """Random rectangles with void between; the prediction is the truth with noise, void, wrong classes."""
    generator = np.random.default_rng(seed)
    truth: list[dict[str, Any]] = []
    predictions: list[dict[str, Any]] = []
    for image_id in range(1, int(generator.integers(2, 5))):
        height, width = generator.integers(8, 30, 2)
        regions = np.zeros((height, width), np.int64)
        for region in range(1, int(generator.integers(1, 9))):
            y, x = generator.integers(0, height), generator.integers(0, width)
            regions[y : y + generator.integers(2, height), x : x + generator.integers(2, width)] = region
        predicted = regions.copy()
        noisy = np.less(generator.random(regions.shape), noise * generator.random())
        predicted[noisy] = generator.integers(0, 9, np.count_nonzero(noisy))
        classes = {region: region % 7 + 1 for region in range(10)}
        for side, out, map_ in (("truth", truth, regions), ("predictions", predictions, predicted)):
            ids, named, crowd = _random_side(generator, map_, classes, crowds=side == "truth")
            out.append(entry(image_id, folder / side, ids, named, crowd))
    return PanopticPair(
        {"annotations": truth, "categories": CATEGORIES},
        {"annotations": predictions},
        folder / "truth",
        folder / "predictions",
    )
