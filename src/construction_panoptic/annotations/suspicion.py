"""Which converted images are worth a look, and how sizes are distributed."""

import heapq
from collections import Counter
from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd

from construction_panoptic.annotations.records import ConvertedRecord
from construction_panoptic.annotations.tables import RowsOfKeys, Table
from construction_panoptic.annotations.taxonomy import Taxonomy

_SEGMENT_STEPS = [(0, 0), (1, 2), (3, 5), (6, 10), (11, 20), (21, 50)]
# COCO's borders of small, medium and large, pixels.
_SMALL, _MEDIUM = 32**2, 96**2


def suspicious_images(
    records: Iterable[ConvertedRecord], annotations: Table, rejected: pd.DataFrame, *, each: int = 4
) -> list[tuple[ConvertedRecord, str]]:
    """Choose images that may be annotated wrongly.

    Args:
        records: the converted images in the order of their keys; iterated over several times.
        annotations: the accepted annotations (columns key and area as in the export, pixels).
        rejected: the rejected records (columns image and annotation_id).
        each: how many of each kind: most rejected annotations, largest void, most overlap (annotated area
            that other things hide).

    Returns:
        Images and what is special about them, no image twice; those with nothing special are left out.
    """
    lost = Counter(rejected.loc[rejected["annotation_id"].notna(), "image"])
    areas = RowsOfKeys(annotations, ["area"])

    def overlap(record: ConvertedRecord) -> float:
        area = float(np.nansum([row["area"] for row in areas.of(record.key)]))
        visible = sum(segment.area for segment in record.segments if segment.annotation_id is not None)
        return max(0.0, 1 - visible / area) if area > 0 else 0.0

    kinds: list[tuple[Callable[[ConvertedRecord], float], float, Callable[[float], str]]] = [
        (lambda record: float(lost[record.key]), 0.0, lambda value: f"{value:.0f} rejected"),
        (lambda r: r.void_pixels / (r.width * r.height), 0.05, lambda value: f"{100 * value:.0f} % void"),
        (overlap, 0.05, lambda value: f"{100 * value:.0f} % of the things hidden"),
    ]
    chosen: dict[str, tuple[ConvertedRecord, str]] = {}
    for measure, least, text in kinds:
        ranked = ((-measure(record), record.key, record) for record in records)
        for value, _, record in heapq.nsmallest(each, ranked, key=itemgetter(0, 1)):
            if -value > least:
                before = f"{chosen[record.key][1]}, " if record.key in chosen else ""
                chosen[record.key] = (record, before + text(-value))
    return list(chosen.values())


def size_distributions(records: Iterable[ConvertedRecord]) -> dict[str, dict[str, int]]:
    """Count images by their number of segments and by size, and things by size.

    Returns:
        By title, how many fall under each label; labels in rising order.
    """
    segments: Counter[str] = Counter({_step(low, high): 0 for low, high in _SEGMENT_STEPS})
    megapixels = {"under 0.5 megapixels": 0, "0.5 to 2": 0, "2 to 8": 0, "8 or more": 0}
    things = {"small (under 32² px)": 0, "medium": 0, "large (96² px or more)": 0}
    for record in records:
        count = len(record.segments)
        segments[next((_step(low, high) for low, high in _SEGMENT_STEPS if low <= count <= high), "51 or more")] += 1
        size = record.width * record.height / 1e6
        megapixels[list(megapixels)[int(np.searchsorted([0.5, 2, 8], size, side="right"))]] += 1
        for segment in record.segments:
            if segment.annotation_id is not None:
                place = int(np.searchsorted([_SMALL, _MEDIUM], segment.area, side="right"))
                things[list(things)[place]] += 1
    return {"Segments an image": dict(segments), "Sizes of images": megapixels, "Sizes of things": things}


def images_of_classes(
    records: Iterable[ConvertedRecord], taxonomy: Taxonomy, *, each: int = 2, seed: int = 0
) -> dict[str, list[ConvertedRecord]]:
    """Draw images of every class that occurs, at random; ``records`` are iterated over twice.

    Returns:
        By class name, things first: up to ``each`` images that have a segment of it.
    """
    generator = np.random.default_rng(seed)
    having: dict[int, list[str]] = {}
    for record in records:
        for class_id in {segment.category_id for segment in record.segments}:
            having.setdefault(class_id, []).append(record.key)
    order: list[Any] = sorted(having, key=lambda class_id: (not taxonomy.is_thing[class_id], class_id))
    chosen: dict[int, list[str]] = {}
    for class_id in order:
        keys = sorted(having[class_id])
        chosen[class_id] = [keys[place] for place in generator.permutation(len(keys))[:each]]
    wanted = {key for keys in chosen.values() for key in keys}
    found = {record.key: record for record in records if record.key in wanted}
    return {taxonomy.names[class_id]: [found[key] for key in keys] for class_id, keys in chosen.items()}


def _step(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"
