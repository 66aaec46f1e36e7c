"""Stuff predictions as a COCO panoptic model would give them: nearly right."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from construction_panoptic.annotations.merging.segment_shapes import segment_shapes
from construction_panoptic.config.sample import SampleSettings
from construction_panoptic.sample.backdrops import COCO_CATEGORIES, LABELS
from construction_panoptic.sample.painting import NoiseBank
from construction_panoptic.sample.scenes import Scene
from construction_panoptic.sample.shapes import DRAWINGS

SMALLEST_REGION = 30
"""Regions with fewer pixels are left void, as panoptic post-processing does."""


class StuffPrediction(NamedTuple):
    """An id map [H, W], 0 = void, and the COCO ``segments_info`` of its ids."""

    id_map: NDArray[np.uint32]
    segments: list[dict[str, Any]]


def predict_stuff(
    scene: Scene, settings: SampleSettings, rng: np.random.Generator, noise: NoiseBank
) -> StuffPrediction:
    """Regions of everything but the annotated things, with wobbly borders, void fringes and some leaks."""
    shape = scene.labels.shape
    if rng.random() < settings.without_stuff_fraction:
        return StuffPrediction(np.zeros(shape, np.uint32), [])
    labels = _wobbly(scene.labels, settings.border_wobble, rng, noise)
    taken = np.zeros(shape, bool)
    trucks: list[NDArray[np.bool_]] = []
    for instance in scene.instances:
        seen = instance.visible > 0.5
        taken |= seen
        if not DRAWINGS[instance.name].truck:
            if rng.random() < 0.5:
                labels[seen] = 0
        elif rng.random() < settings.leak_fraction:
            trucks.append(ndimage.binary_dilation(seen, iterations=2))
        else:
            trucks.append(ndimage.binary_erosion(seen))
        if rng.random() < settings.fringe_fraction:
            labels[ndimage.binary_dilation(seen) & ~seen] = 0
    return _segments(labels, trucks, taken)


def _wobbly(labels: NDArray[np.uint8], wobble: float, rng: np.random.Generator, noise: NoiseBank) -> NDArray[np.uint8]:
    """Look up each pixel's label a little beside it, so that borders move by about ``wobble`` pixels."""
    height, width = labels.shape
    steps = [np.rint(wobble * noise.crop(rng, labels.shape, 5)).astype(int) for _ in range(2)]
    rows = np.clip(np.arange(height)[:, None] + steps[0], 0, height - 1)
    columns = np.clip(np.arange(width)[None] + steps[1], 0, width - 1)
    return labels[rows, columns]


def _segments(labels: NDArray[np.uint8], trucks: list[NDArray[np.bool_]], taken: NDArray[np.bool_]) -> StuffPrediction:
    masks: list[tuple[str, NDArray[np.bool_]]] = []
    for value in np.unique(labels[labels > 0]):
        name, region = LABELS[value], labels == value
        if COCO_CATEGORIES[name][1]:
            parts, count = ndimage.label(region)
            masks += [(name, parts == part) for part in range(1, count + 1)]
        elif np.count_nonzero(region & ~taken) >= SMALLEST_REGION:
            masks.insert(0, (name, region))
    masks += [("truck", mask) for mask in trucks]
    id_map = np.zeros(labels.shape, np.uint32)
    names: dict[int, str] = {}
    for number, (name, mask) in enumerate(masks, 1):
        segment = COCO_CATEGORIES[name][0] * 1000 + number
        id_map[mask] = segment
        names[segment] = name
    segments = []
    for segment, (area, box, _) in segment_shapes(id_map).items():
        if area < SMALLEST_REGION:
            id_map[id_map == segment] = 0
            continue
        about = {"id": segment, "category_id": COCO_CATEGORIES[names[segment]][0]}
        segments.append({**about, "area": area, "bbox": list(box), "iscrowd": 0})
    return StuffPrediction(id_map, segments)
