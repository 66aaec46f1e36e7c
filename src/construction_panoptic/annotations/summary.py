"""What the converted data holds: counts per class, a summary, and images for the data report."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from construction_panoptic.annotations.coco_files import with_side
from construction_panoptic.annotations.records import ConvertedRecord
from construction_panoptic.annotations.tables import RowsOfKeys, StoredTable
from construction_panoptic.annotations.taxonomy import Taxonomy

_SIDES = ("train", "val")
_SUSPICIOUS, _EXAMPLES = 4, 2  # images of each kind, of each class
_LEAST_SHARE = 0.05  # of void, or of hidden things, that is suspicious

_SEGMENT_STEPS = {"0": 1, "1 to 2": 3, "3 to 5": 6, "6 to 10": 11, "11 to 20": 21, "21 to 50": 51, "51 or more": np.inf}
_MEGAPIXEL_STEPS = {"under 0.5 megapixels": 0.5, "0.5 to 2": 2, "2 to 8": 8, "8 or more": np.inf}
# COCO's borders of small, medium and large, pixels.
_THING_STEPS = {"small (under 32² px)": 32**2, "medium": 96**2, "large (96² px or more)": np.inf}


def class_counts_and_summary(
    records: Iterable[ConvertedRecord],
    split_table: pd.DataFrame,
    taxonomy: Taxonomy,
    annotations: StoredTable,
    rejected: pd.DataFrame,
    repaired: pd.DataFrame,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Count images, segments and pixels of every class, and describe the converted data in numbers.

    Records are iterated over once; ``split_table`` has the columns key, group and split, ``rejected`` and ``repaired``
    those of `REJECTED_COLUMNS`; the accepted ``annotations`` know the class of what merging rejected.

    Gives a table with a row for each class, in id order, also for classes that do not occur: class_id, class, kind
    ("thing" or "stuff"), then images, segments and pixels, each for _train, _val and _total, and rejected (of which
    those whose class is unknown go by the name of their export). And a summary that is ready for JSON. Raises
    `InputDataError`, see `with_side`.
    """
    counts: Counter[tuple[str, str, int]] = Counter()
    sums: dict[str, Counter[str]] = {side: Counter() for side in ("all", *_SIDES)}
    exports = set()
    for record, side in with_side(records, split_table):
        exports.add(record.source)
        found = _sums_of(record, taxonomy)
        sums["all"].update(found)
        sums[side].update(found)
        for segment in record.segments:
            counts["segments", side, segment.category_id] += 1
            counts["pixels", side, segment.category_id] += segment.area
        counts.update({("images", side, segment.category_id) for segment in record.segments})
    present = {class_id for _, _, class_id in counts}
    kinds = {"thing": [c.id for c in taxonomy.things], "stuff": [c.id for c in taxonomy.stuff]}
    summary = {
        **{side: _facts(found) for side, found in sums.items()},
        "groups": int(split_table["group"].nunique()),
        "exports": len(exports),
        "classes_present": {kind: len(present.intersection(known)) for kind, known in kinds.items()},
        "classes_absent": {kind: len(set(known) - present) for kind, known in kinds.items()},
        "absent_things": sorted(c.name for c in taxonomy.things if c.id not in present),
        "rejected": _records_summary(rejected),
        "repaired": _records_summary(repaired),
    }
    rejected_of = _rejected_of_class(rejected, annotations, taxonomy)
    rows = []
    for class_id, name in taxonomy.names.items():
        kind = "thing" if taxonomy.is_thing[class_id] else "stuff"
        row: dict[str, Any] = {"class_id": class_id, "class": name, "kind": kind}
        for what in ("images", "segments", "pixels"):
            train, val = (counts[what, side, class_id] for side in _SIDES)
            row |= {f"{what}_train": train, f"{what}_val": val, f"{what}_total": train + val}
        rows.append(row | {"rejected": rejected_of[class_id]})
    return pd.DataFrame(rows), summary


def _sums_of(record: ConvertedRecord, taxonomy: Taxonomy) -> dict[str, int]:
    segments = record.segments
    things = sum(taxonomy.is_thing.get(segment.category_id, False) for segment in segments)
    return {
        "images": 1,
        "pixels": record.width * record.height,
        "void": record.void_pixels,
        "segments": len(segments),
        "thing_segments": things,
        "crowd_segments": sum(segment.iscrowd for segment in segments),
        "images_without_stuff": things == len(segments),
        "images_without_things": things == 0,
    }


def _facts(sums: Counter[str]) -> dict[str, Any]:
    images, pixels = sums["images"], sums["pixels"]
    return {
        "images": images,
        "megapixels": round(pixels / 1e6, 3),
        **{name: sums[name] for name in ("segments", "thing_segments", "crowd_segments")},
        "segments_per_image": round(sums["segments"] / images, 3) if images else None,
        "void_share": round(sums["void"] / pixels, 6) if pixels else None,
        **{name: sums[name] for name in ("images_without_stuff", "images_without_things")},
    }


def _records_summary(table: pd.DataFrame) -> dict[str, Any]:
    annotations = int(table["annotation_id"].notna().sum())
    reasons = dict(sorted(Counter(map(str, table["reason"])).items()))
    facts = {"total": len(table), "images_or_exports": len(table) - annotations, "annotations": annotations}
    return {**facts, "by_reason": reasons}


def _rejected_of_class(rejected: pd.DataFrame, annotations: StoredTable, taxonomy: Taxonomy) -> Counter[int]:
    of_annotations = rejected[rejected["annotation_id"].notna()]
    # Ids may be of one file, or even of one image (COCO panoptic) of an export.
    names = list(zip(of_annotations["image"], of_annotations["annotation_id"].astype(str), strict=True))
    wanted = set(names)
    class_of: dict[tuple[str, str], int] = {}
    for row in annotations.rows(["key", "annotation_id", "category_id"]) if names else ():
        if (name := (row["key"], str(row["annotation_id"]))) in wanted:
            class_of[name] = row["category_id"]
    sources = zip(names, of_annotations["source"], strict=True)
    classes = (class_of.get(name, taxonomy.thing_id(source)) for name, source in sources)
    return Counter(class_id for class_id in classes if class_id is not None)


class Survey(NamedTuple):
    """What `survey` found."""

    suspicious: list[tuple[ConvertedRecord, str]]  # images and what is special about them, no image twice
    of_class: dict[str, list[ConvertedRecord]]  # by class name, things first, some images that have a segment of it
    sizes: dict[str, dict[str, int]]  # by title, how many images or things fall under each label, in rising order


def survey(
    records: Iterable[ConvertedRecord], annotations: StoredTable, rejected: pd.DataFrame, class_counts: pd.DataFrame
) -> Survey:
    """Choose images that may be annotated wrongly, draw images of every class at random, and count sizes.

    Suspicious are most rejected annotations, largest void, and most overlap (annotated area that other things hide).
    Records come in the order of their keys and are iterated over once; the tables are those of `reading.Exports` and
    `class_counts_and_summary`.
    """
    lost = Counter(rejected.loc[rejected["annotation_id"].notna(), "image"])
    areas = RowsOfKeys(annotations, ["area", "is_thing"])

    def suspicions(record: ConvertedRecord) -> list[tuple[float, str]]:
        """Give how much there is of each kind, and how that is said; 0 where it is too little to be suspicious."""
        void = record.void_pixels / (record.width * record.height)
        area = float(np.sum([row["area"] or 0.0 for row in areas.of(record.key) if row["is_thing"]]))
        visible = sum(segment.area for segment in record.segments if segment.annotation_id is not None)
        hidden = 1 - visible / area if area > 0 else 0.0
        return [
            (lost[record.key], f"{lost[record.key]} rejected"),
            (void if void > _LEAST_SHARE else 0, f"{100 * void:.0f} % void"),
            (hidden if hidden > _LEAST_SHARE else 0, f"{100 * hidden:.0f} % of the things hidden"),
        ]

    highest: list[list[tuple[float, str, ConvertedRecord]]] = [[], [], []]  # of each kind
    drawn = _drawn_places(class_counts)
    seen: Counter[int] = Counter()
    examples: dict[int, dict[int, ConvertedRecord]] = defaultdict(dict)
    segments = Counter(dict.fromkeys(list(_SEGMENT_STEPS)[:-1], 0))  # many segments are listed where there are some
    megapixels, things = dict.fromkeys(_MEGAPIXEL_STEPS, 0), dict.fromkeys(_THING_STEPS, 0)
    for record in records:
        for found, (value, note) in zip(highest, suspicions(record), strict=True):
            if value > 0:
                found.append((value, note, record))
                found.sort(key=itemgetter(0), reverse=True)
                del found[_SUSPICIOUS:]
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
    for _, note, record in chain.from_iterable(highest):
        before = f"{notes[record.key][1]}, " if record.key in notes else ""
        notes[record.key] = (record, before + note)
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
