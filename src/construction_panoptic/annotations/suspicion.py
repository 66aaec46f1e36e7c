"""What the data report shows of converted images: those worth a look, examples of each class, and sizes."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import pandas as pd

from construction_panoptic.annotations.records import ConvertedRecord
from construction_panoptic.annotations.tables import RowsOfKeys, Table

_SUSPICIOUS, _EXAMPLES = 4, 2  # images of each kind, of each class

_SEGMENT_STEPS = {"0": 1, "1 to 2": 3, "3 to 5": 6, "6 to 10": 11, "11 to 20": 21, "21 to 50": 51, "51 or more": np.inf}
_MEGAPIXEL_STEPS = {"under 0.5 megapixels": 0.5, "0.5 to 2": 2, "2 to 8": 8, "8 or more": np.inf}
# COCO's borders of small, medium and large, pixels.
_THING_STEPS = {"small (under 32² px)": 32**2, "medium": 96**2, "large (96² px or more)": np.inf}


class Survey(NamedTuple):
    """What `survey` found."""

    suspicious: list[tuple[ConvertedRecord, str]]  # images and what is special about them, no image twice
    of_class: dict[str, list[ConvertedRecord]]  # by class name, things first, some images that have a segment of it
    sizes: dict[str, dict[str, int]]  # by title, how many images or things fall under each label, in rising order


def survey(
    records: Iterable[ConvertedRecord], annotations: Table, rejected: pd.DataFrame, class_counts: pd.DataFrame
) -> Survey:
    """Choose images that may be annotated wrongly, draw images of every class at random, and count sizes.

    Suspicious are most rejected annotations, largest void, and most overlap (annotated area that other things hide).
    Records come in the order of their keys and are iterated over once; the tables are those of `reading.Exports` and
    `summary.class_counts_and_summary`.
    """
    lost = Counter(rejected.loc[rejected["annotation_id"].notna(), "image"])
    areas = RowsOfKeys(annotations, ["area"])

    def overlap(record: ConvertedRecord) -> float:
        area = float(np.nansum([row["area"] for row in areas.of(record.key)]))
        visible = sum(segment.area for segment in record.segments if segment.annotation_id is not None)
        return max(0.0, 1 - visible / area) if area > 0 else 0.0

    # What is measured, from which value on it is suspicious, and how that is said.
    kinds: list[tuple[Callable[[ConvertedRecord], float], float, Callable[[float], str]]] = [
        (lambda record: float(lost[record.key]), 0.0, lambda value: f"{value:.0f} rejected"),
        (lambda r: r.void_pixels / (r.width * r.height), 0.05, lambda value: f"{100 * value:.0f} % void"),
        (overlap, 0.05, lambda value: f"{100 * value:.0f} % of the things hidden"),
    ]
    highest: list[list[tuple[float, ConvertedRecord]]] = [[] for _ in kinds]
    drawn = _drawn_places(class_counts)
    seen: Counter[int] = Counter()
    examples: dict[int, dict[int, ConvertedRecord]] = defaultdict(dict)
    segments = Counter(dict.fromkeys(list(_SEGMENT_STEPS)[:-1], 0))  # many segments are listed where there are some
    megapixels, things = dict.fromkeys(_MEGAPIXEL_STEPS, 0), dict.fromkeys(_THING_STEPS, 0)
    for record in records:
        for place, (measure, least, _) in enumerate(kinds):
            if (value := measure(record)) > least:
                ranked = sorted([*highest[place], (value, record)], key=itemgetter(0), reverse=True)
                highest[place] = ranked[:_SUSPICIOUS]
        for class_id in {segment.category_id for segment in record.segments}:
            if seen[class_id] in drawn[class_id]:
                examples[class_id][seen[class_id]] = record
            seen[class_id] += 1
        segments[_label(_SEGMENT_STEPS, len(record.segments))] += 1
        megapixels[_label(_MEGAPIXEL_STEPS, record.width * record.height / 1e6)] += 1
        for segment in record.segments:
            if segment.annotation_id is not None:
                things[_label(_THING_STEPS, segment.area)] += 1
    notes: dict[str, tuple[ConvertedRecord, str]] = {}
    for found, (_, _, text) in zip(highest, kinds, strict=True):
        for value, record in found:
            before = f"{notes[record.key][1]}, " if record.key in notes else ""
            notes[record.key] = (record, before + text(value))
    names = dict(zip(class_counts["class_id"], class_counts["class"], strict=True))
    return Survey(
        list(notes.values()),
        {names[class_id]: [examples[class_id][place] for place in places] for class_id, places in drawn.items()},
        {"Segments an image": dict(segments), "Sizes of images": megapixels, "Sizes of things": things},
    )


def _drawn_places(class_counts: pd.DataFrame) -> dict[int, list[int]]:
    """Draw which of the images of each class are shown; the classes that occur, things first."""
    generator = np.random.default_rng(0)
    occurring = class_counts[class_counts["images_total"] > 0]
    ordered = occurring.sort_values(["kind", "class_id"], ascending=[False, True])
    pairs = zip(ordered["class_id"], ordered["images_total"], strict=True)
    return {class_id: generator.permutation(count)[:_EXAMPLES].tolist() for class_id, count in pairs}


def _label(steps: dict[str, float], value: float) -> str:
    return next(label for label, end in steps.items() if value < end)
