"""Laying the things of an image over its stuff: one panoptic segmentation."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Any, Literal
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from construction_panoptic.annotations.images import normalise_image, perceptual_hash
from construction_panoptic.annotations.merging.masks import MaskError, MaskWindow, mask_window, segmentation_rle
from construction_panoptic.annotations.merging.segment_shapes import segment_extents
from construction_panoptic.annotations.panoptic_png import MAX_SEGMENT_ID, encode_id_map
from construction_panoptic.annotations.records import ConvertedImage, ConvertedRecord, Rejected, Segment
from construction_panoptic.annotations.stuff.label_maps import decode_labels
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.errors import InputDataError, ParameterError

Overlap = Literal["last_on_top", "smallest_on_top", "fail"]
OVERLAPS = ("last_on_top", "smallest_on_top", "fail")
_LONGEST_STEM = 150
METHOD = 2  # raised when the same input is to give another result, so that nothing finished before is kept


@dataclass(frozen=True)
class _Instance:
    """A thing on its way into the id map; ``area`` is that of its own mask, in pixels."""

    annotation_id: int
    category_id: int
    iscrowd: int
    order: int
    window: MaskWindow

    @property
    def area(self) -> int:
        return int(self.window.pixels.sum())


@dataclass(frozen=True)
class MergeTask:
    """An image to convert: its rows of the tables, its stuff, and where the result belongs."""

    image: dict[str, Any]
    annotations: list[dict[str, Any]]
    stuff: NDArray[np.uint8] | bytes | None
    stem: str
    digest: str
    finished: ConvertedRecord | None


def merge_image(
    image: Mapping[str, Any],
    annotations: Sequence[Mapping[str, Any]],
    stuff_labels: NDArray[np.uint8] | None,
    *,
    taxonomy: Taxonomy,
    overlap: Overlap = "last_on_top",
    stem: str | None = None,
) -> ConvertedImage:
    """Lay an image's things over its stuff.

    Each stuff class is one segment, and each thing is one; a pixel that neither covers is void. Segment ids
    count from 1: stuff by class id, then things from the lowest layer up. Area and box are those of the
    visible pixels.

    Args:
        image: a row of the table of images.
        annotations: its rows of the table of annotations.
        stuff_labels: uint8 [H, W] of the project's stuff ids, 0 = none; None for an image without stuff.
        taxonomy: the project's classes.
        overlap: ``last_on_top``: the later annotation in the export covers the earlier, as CVAT draws it;
            ``smallest_on_top``: the smaller mask covers the larger (of equal ones, the later); ``fail``: no
            two may share a pixel.
        stem: file name stem; from the key if not given.

    Returns:
        The converted image; an annotation that others cover completely is in ``rejected`` as
        ``fully_hidden``, a crowd that became part of another of its class as ``joined_crowd``, and one that cannot
        be drawn under its reason in `masks.MaskError`.

    Raises:
        InputDataError: stuff labels of another size or of unknown classes, a class that is not a thing, two
            things that overlap where ``overlap`` is ``fail``, an image file that cannot be read; names the
            image.
        ParameterError: ``overlap`` has another value.
    """
    if overlap not in OVERLAPS:
        raise ParameterError(f"overlap must be one of {', '.join(OVERLAPS)}, not {overlap!r}.")
    key, height, width = str(image["key"]), int(image["height"]), int(image["width"])
    stuff_ids, layers = _stuff_layers(stuff_labels, key, (height, width), taxonomy)
    instances, rejected = _draw(image, annotations, taxonomy)
    if overlap == "smallest_on_top":
        instances.sort(key=lambda instance: (-instance.area, instance.order))
    _paint(layers, instances, len(stuff_ids), key, may_overlap=overlap != "fail")
    joined = _join_crowds(layers, instances, len(stuff_ids))

    source = str(image["source"])
    ids, areas, boxes = _number_segments(layers, len(stuff_ids) + len(instances), key)
    segments = [
        Segment(ids[layer], class_id, areas[layer], boxes[layer], 0, None)
        for layer, class_id in enumerate(stuff_ids, start=1)
        if ids[layer]
    ]
    for layer, instance in enumerate(instances, start=len(stuff_ids) + 1):
        number = instance.annotation_id
        if ids[layer]:
            box = boxes[layer]
            segments.append(Segment(ids[layer], instance.category_id, areas[layer], box, instance.iscrowd, number))
        elif ids[joined.get(layer, layer)]:
            crowd = instances[joined[layer] - len(stuff_ids) - 1].annotation_id
            detail = f"its pixels are in the crowd of annotation {crowd}; an image has one crowd of a class"
            rejected.append(Rejected(source, key, number, "joined_crowd", detail))
        else:
            detail = "annotations above it cover all of its pixels"
            rejected.append(Rejected(source, key, number, "fully_hidden", detail))

    normalised = normalise_image(image["location"])
    if (normalised.width, normalised.height) != (width, height):
        raise InputDataError(f"image {key!r}: {image['location']} has changed since its export was read.")
    stem = unique_stems([key])[key] if stem is None else stem
    return ConvertedImage(
        key=key,
        stem=stem,
        image_file=stem + normalised.suffix,
        width=width,
        height=height,
        segments=segments,
        void_pixels=areas[0],
        png=encode_id_map(layers),
        image=normalised.content,
        rejected=rejected,
        phash=str(image["phash"]) if image.get("phash") else perceptual_hash(image["location"]),
    )


def merge_task(taxonomy: Taxonomy, overlap: Overlap, task: MergeTask) -> ConvertedImage | ConvertedRecord:
    """Convert one image, unless it is finished. Runs in other processes."""
    if task.finished is not None:
        return task.finished
    stuff = decode_labels(task.stuff) if isinstance(task.stuff, bytes) else task.stuff
    merged = merge_image(task.image, task.annotations, stuff, taxonomy=taxonomy, overlap=overlap, stem=task.stem)
    return replace(merged, digest=task.digest)


def _stuff_layers(
    labels: NDArray[np.uint8] | None, key: str, size: tuple[int, int], taxonomy: Taxonomy
) -> tuple[list[int], NDArray[np.int32]]:
    """Return the stuff classes of an image, and int32 [H, W]: 0 void, 1 the first of them, 2 the second, …"""
    if labels is None:
        return [], np.zeros(size, dtype=np.int32)
    if labels.shape != size or labels.dtype != np.uint8:
        found = f"{labels.dtype} {list(labels.shape)}"
        raise InputDataError(f"image {key!r}: its stuff labels are {found}, not uint8 {list(size)}.")
    flat = labels.ravel()
    starts = np.flatnonzero(flat[1:] != flat[:-1]) + 1  # labels come in long runs
    class_ids = sorted({int(flat[0]), *flat[starts].tolist()} - {0})
    unknown = [label for label in class_ids if taxonomy.is_thing.get(label, True)]
    if unknown:
        raise InputDataError(f"image {key!r}: its stuff labels hold {unknown}, which are no stuff classes.")
    layer_of_label = bytearray(256)
    for layer, label in enumerate(class_ids, start=1):
        layer_of_label[label] = layer
    layers = np.frombuffer(labels.tobytes().translate(layer_of_label), dtype=np.uint8)
    return class_ids, layers.reshape(size).astype(np.int32)


def _draw(
    image: Mapping[str, Any], annotations: Sequence[Mapping[str, Any]], taxonomy: Taxonomy
) -> tuple[list[_Instance], list[Rejected]]:
    """Return the things of an image in the order of the export, and what could not be drawn."""
    instances, rejected = [], []
    for row in sorted(annotations, key=lambda row: row["order"]):
        number, class_id = int(row["annotation_id"]), int(row["category_id"])
        if not taxonomy.is_thing.get(class_id, False):
            place = f"image {image['key']!r}, annotation {number}"
            raise InputDataError(f"{place}: the category id {class_id} is not a thing of the taxonomy.")
        try:
            code = segmentation_rle(json.loads(row["segmentation"]), int(image["height"]), int(image["width"]))
            window = mask_window(code)
        except MaskError as error:
            rejected.append(Rejected(str(image["source"]), str(image["key"]), number, error.reason, str(error)))
            continue
        instances.append(_Instance(number, class_id, int(row["iscrowd"]), int(row["order"]), window))
    return instances, rejected


def _paint(layers: NDArray[np.int32], instances: list[_Instance], below: int, key: str, *, may_overlap: bool) -> None:
    """Paint the instances over the ``below`` layers that are there, the first of them lowest."""
    for layer, instance in enumerate(instances, start=below + 1):
        view, pixels = layers[instance.window.slices], instance.window.pixels
        if not may_overlap:
            covered = int(view[pixels].max())
            if covered > below:
                other = instances[covered - below - 1].annotation_id
                raise InputDataError(
                    f"image {key!r}: the annotations {other} and {instance.annotation_id} overlap. Separate "
                    "them in CVAT, or choose the overlap 'last_on_top' or 'smallest_on_top'."
                )
        view[pixels] = layer


def _join_crowds(layers: NDArray[np.int32], instances: list[_Instance], below: int) -> dict[int, int]:
    """Make the crowds of each class one, as COCO has it: panopticapi counts all but one of them as wrong.

    Returns:
        For each layer that is no more, the one that has its pixels.
    """
    first: dict[int, int] = {}
    joined = {}
    for layer, instance in enumerate(instances, start=below + 1):
        if instance.iscrowd and first.setdefault(instance.category_id, layer) != layer:
            joined[layer] = first[instance.category_id]
    if joined:
        layers[...] = np.array([joined.get(layer, layer) for layer in range(below + len(instances) + 1)])[layers]
    return joined


def _number_segments(
    layers: NDArray[np.int32], count: int, key: str
) -> tuple[list[int], list[int], list[tuple[int, int, int, int]]]:
    """Turn layers into segment ids, in place: ids count the layers that are visible.

    Returns:
        Three lists by layer (0 is void): segment id (0: not visible), area and box.
    """
    extents = segment_extents(layers)
    areas = [0, *(extents[layer][0] if layer in extents else 0 for layer in range(1, count + 1))]
    areas[0] = layers.size - sum(areas)
    visible = np.array(areas) > 0
    visible[0] = False
    ids = np.where(visible, visible.cumsum(), 0)
    if ids.max() > MAX_SEGMENT_ID:
        raise InputDataError(f"image {key!r}: {ids.max()} segments; a panoptic PNG holds {MAX_SEGMENT_ID}.")
    boxes = [_box(extents[layer][1]) if layer in extents else (0, 0, 0, 0) for layer in range(count + 1)]
    if not visible[1:].all():
        layers[...] = ids.astype(np.int32)[layers]
    return ids.tolist(), areas, boxes


def _box(box: list[int]) -> tuple[int, int, int, int]:
    x, y, width, height = box
    return x, y, width, height


def unique_stems(keys: Sequence[str]) -> dict[str, str]:
    """Return a file name stem for each image key: the key without suffix, ``/`` as ``__``.

    Keys whose stems would be the same, on file systems that ignore case or how accented letters are written too, or
    too long get a part of the key's SHA-256 appended. A stem depends on such clashes alone, not on the order of the
    keys.
    """
    plain = {key: key.removesuffix(PurePosixPath(key).suffix).replace("/", "__") for key in keys}
    alike = {stem: normalize("NFC", stem).casefold() for stem in plain.values()}
    counts = Counter(alike[stem] for stem in plain.values())
    stems = {}
    for key, stem in plain.items():
        start = stem.encode()[:_LONGEST_STEM].decode(errors="ignore")
        clear = counts[alike[stem]] == 1 and start == stem
        stems[key] = stem if clear else f"{start}__{sha256(key.encode()).hexdigest()[:12]}"
    return stems
