"""The sample dataset as files, in the layout in which annotated images arrive."""

import io
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import contourpy
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from construction_panoptic.annotations.formats.cvat_export import cvat_document
from construction_panoptic.annotations.merging.masks import polygon_area
from construction_panoptic.annotations.panoptic_png import encode_id_map
from construction_panoptic.config.sample import SampleSettings
from construction_panoptic.sample.backdrops import COCO_CATEGORIES
from construction_panoptic.sample.painting import FloatArray, NoiseBank
from construction_panoptic.sample.scenes import ALTERATIONS, Alteration, Instance, Scene, altered, draw_scene
from construction_panoptic.sample.stuff import predict_stuff

MIXED_FOLDER = "mixed_site"
"""Name of the export that holds several classes together."""

TOLERANCE = 0.3  # pixels, the largest distance between an outline and its simplified form
SMALLEST_PART = 6  # square pixels


class Frame(NamedTuple):
    """One image to make; frames that share a scene are near-duplicates."""

    folder: str
    scene: int  # its number
    alteration: Alteration | None = None


def plan_frames(settings: SampleSettings) -> dict[str, list[Frame]]:
    """Which scenes go to which export folder, folders in alphabetical order.

    Near-duplicates repeat a scene of their own folder; the rare class has none.
    """
    rng = np.random.default_rng([settings.seed, 0])
    rare = {settings.rare_class: settings.rare_images} if settings.rare_class else {}
    share, extra = divmod(settings.single_class_images, len(settings.classes))
    counts = {name: share + (place < extra) for place, name in enumerate(settings.classes)}
    if settings.mixed_images:
        counts[MIXED_FOLDER] = settings.mixed_images
    repeating = sorted(counts)
    chances = np.array([counts[name] for name in repeating]) / sum(counts.values())
    repeated = rng.choice(repeating, settings.near_duplicates, p=chances)
    plan: dict[str, list[Frame]] = {}
    scene = 1
    for folder, count in sorted((counts | rare).items()):
        frames = [Frame(folder, scene + place) for place in range(count)]
        scene += count
        for _ in range(np.count_nonzero(repeated == folder)):
            original = frames[int(rng.integers(len(frames)))]
            frames.append(Frame(folder, original.scene, ALTERATIONS[int(rng.integers(len(ALTERATIONS)))]))
        plan[folder] = [frames[place] for place in rng.permutation(len(frames))]
    return plan


def generate(settings: SampleSettings) -> Iterator[tuple[str, bytes]]:
    """Make the dataset file by file: (path relative to the raw data folder, content), annotations after images."""
    noise = noise_bank(settings)
    stuff_images: list[dict[str, Any]] = []
    stuff_annotations: list[dict[str, Any]] = []
    for folder, frames in plan_frames(settings).items():
        names = sorted(settings.classes) if folder == MIXED_FOLDER else [folder]
        export = cvat_document(dict(enumerate(names, 1)), [])
        for number, frame in enumerate(frames, 1):
            scene = make_scene(frame, settings, noise)
            file_name = f"{folder}_{number:04d}.jpg"
            quality = max(30, settings.jpeg_quality - (15 if frame.alteration == "recompressed" else 0))
            yield f"construction/{folder}/images/{file_name}", _encode_jpeg(scene.rgb, quality)
            _annotate(export, file_name, scene)
            stuff_rng = np.random.default_rng([settings.seed, 3, len(stuff_images)])
            predicted = predict_stuff(scene, settings, stuff_rng, noise)
            png_name = f"{folder}__{file_name.removesuffix('.jpg')}.png"
            yield f"stuff_predictions/panoptic/{png_name}", encode_id_map(predicted.id_map)
            height, width = scene.labels.shape
            image_id, name = len(stuff_images) + 1, f"{folder}/{file_name}"
            stuff_images.append({"id": image_id, "file_name": name, "width": width, "height": height})
            stuff_annotations.append({"image_id": image_id, "file_name": png_name, "segments_info": predicted.segments})
        name = "annotations/instances_default.json" if folder == MIXED_FOLDER else "coco.json"
        yield f"construction/{folder}/{name}", _json_bytes(export)
    info = {"description": "stuff regions of the sample images, with COCO panoptic categories"}
    categories = [
        {"id": number, "name": name, "supercategory": "", "isthing": int(thing)}
        for name, (number, thing) in COCO_CATEGORIES.items()
    ]
    stuff = {"info": info, "categories": categories, "images": stuff_images, "annotations": stuff_annotations}
    yield "stuff_predictions/panoptic.json", _json_bytes(stuff)


def noise_bank(settings: SampleSettings) -> NoiseBank:
    """The noise that all scenes of a dataset share."""
    return NoiseBank(np.random.default_rng([settings.seed, 1]), max(256, settings.height * 2, *settings.widths))


def make_scene(frame: Frame, settings: SampleSettings, noise: NoiseBank) -> Scene:
    """Draw the scene of a frame; it depends on the seed and the scene's number alone."""
    rng = np.random.default_rng([settings.seed, 2, frame.scene])
    mixed = frame.folder == MIXED_FOLDER
    names = settings.classes if mixed else (frame.folder,)
    scene = draw_scene(names, settings, rng, noise, fewest=2 if mixed else 1)
    return altered(scene, frame.alteration) if frame.alteration else scene


def _annotate(export: dict[str, Any], file_name: str, scene: Scene) -> None:
    """Add an image and its things to the annotation file of an export."""
    images, annotations = export["images"], export["annotations"]
    ids_of = {category["name"]: category["id"] for category in export["categories"]}
    height, width = scene.labels.shape
    image = {"id": len(images) + 1, "width": width, "height": height, "file_name": file_name, "license": 0}
    images.append(image | {"flickr_url": "", "coco_url": "", "date_captured": 0})
    for instance in scene.instances:
        ids = {"id": len(annotations) + 1, "image_id": len(images), "category_id": ids_of[instance.name]}
        annotations.append(ids | _annotation(instance))


def _annotation(instance: Instance) -> dict[str, Any]:
    polygons = outline(instance.visible if instance.outlined_as_seen else instance.coverage)
    corners = np.concatenate(polygons)
    (left, top), (right, bottom) = corners.min(0), corners.max(0)
    return {
        "segmentation": [polygon.ravel().tolist() for polygon in polygons],
        "area": round(sum(polygon_area(polygon) for polygon in polygons), 2),
        "bbox": [round(float(v), 2) for v in (left, top, right - left, bottom - top)],
        "iscrowd": 0,
        "attributes": {"occluded": instance.hidden > 0.05},
    }


def simplify(points: NDArray[np.float64], tolerance: float) -> NDArray[np.float64]:
    """Drop vertices of an open line [N, 2] within ``tolerance`` pixels of it, as Douglas and Peucker (1973)."""
    if len(points) < 3:
        return points
    start, along = points[0], points[-1] - points[0]
    offsets = points[1:-1] - start
    length = float(np.hypot(*along))
    if length > 1e-9:
        distance = np.abs(along[0] * offsets[:, 1] - along[1] * offsets[:, 0]) / length
    else:
        distance = np.hypot(offsets[:, 0], offsets[:, 1])
    middle = int(distance.argmax()) + 1
    if distance[middle - 1] <= tolerance:
        return points[[0, -1]]
    return np.concatenate([simplify(points[: middle + 1], tolerance)[:-1], simplify(points[middle:], tolerance)])


def outline(coverage: FloatArray) -> list[NDArray[np.float64]]:
    """Outline what is covered by more than one half, as an annotator would click it.

    ``coverage`` [H, W] in 0…1 is the fraction of each pixel that the thing covers. Gives polygons [N, 2] of (x, y) in
    image pixels, largest first; holes are filled, since CVAT's polygons have none.
    """
    height, width = coverage.shape
    rows, columns = np.flatnonzero(coverage.max(1) > 0.5), np.flatnonzero(coverage.max(0) > 0.5)
    if not len(rows):
        return []
    top, bottom = max(0, rows[0] - 1), min(height, rows[-1] + 2)
    left, right = max(0, columns[0] - 1), min(width, columns[-1] + 2)
    padded = np.pad(coverage[top:bottom, left:right], 1)
    rings = contourpy.contour_generator(z=padded, name="serial", fill_type="OuterOffset").filled(0.5, 2.0)
    polygons = []
    for points, offsets in zip(rings[0], rings[1], strict=True):
        if points is None or offsets is None:
            continue
        # Pixel centres lie at one half; the padding moved everything by one.
        ring = np.asarray(points, np.float64)[: int(offsets[1])] + np.array([left - 0.5, top - 0.5])
        ring = np.clip(simplify(ring, TOLERANCE), 0, (width, height)).round(2)[:-1]
        if len(ring) >= 3 and polygon_area(ring) >= SMALLEST_PART:
            polygons.append(ring)
    return sorted(polygons, key=polygon_area, reverse=True)


def _encode_jpeg(rgb: NDArray[np.uint8], quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def _json_bytes(data: dict[str, Any]) -> bytes:
    return json.dumps(data, allow_nan=False).encode()
