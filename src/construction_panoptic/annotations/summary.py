"""What the converted data holds: counts per class, and a summary of the whole."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pandas as pd

from construction_panoptic.annotations.coco_files import with_side
from construction_panoptic.annotations.records import ConvertedRecord
from construction_panoptic.annotations.tables import Table, blocks
from construction_panoptic.annotations.taxonomy import Taxonomy

_SIDES = ("train", "val")


def class_counts_and_summary(
    records: Iterable[ConvertedRecord],
    split_table: pd.DataFrame,
    taxonomy: Taxonomy,
    annotations: Table,
    rejected: pd.DataFrame,
    repaired: pd.DataFrame,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Count images, segments and pixels of every class, and describe the converted data in numbers.

    Records are iterated over once; ``split_table`` has a row (key, group, split) for each; ``rejected`` and
    ``repaired`` are of `REJECTED_COLUMNS`, and the accepted ``annotations`` know the class of what merging rejected.

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
    things = sum(taxonomy.is_thing.get(segment.category_id, False) for segment in record.segments)
    return {
        "images": 1,
        "pixels": record.width * record.height,
        "void": record.void_pixels,
        "segments": len(record.segments),
        "things": things,
        "crowds": sum(segment.iscrowd for segment in record.segments),
        "without_stuff": things == len(record.segments),
        "without_things": things == 0,
    }


def _facts(sums: Counter[str]) -> dict[str, Any]:
    images, pixels = sums["images"], sums["pixels"]
    return {
        "images": images,
        "megapixels": round(pixels / 1e6, 3),
        "segments": sums["segments"],
        "thing_segments": sums["things"],
        "crowd_segments": sums["crowds"],
        "segments_per_image": round(sums["segments"] / images, 3) if images else None,
        "void_share": round(sums["void"] / pixels, 6) if pixels else None,
        "images_without_stuff": sums["without_stuff"],
        "images_without_things": sums["without_things"],
    }


def _records_summary(table: pd.DataFrame) -> dict[str, Any]:
    annotations = int(table["annotation_id"].notna().sum())
    reasons = dict(sorted(Counter(map(str, table["reason"])).items()))
    facts = {"total": len(table), "images_or_exports": len(table) - annotations, "annotations": annotations}
    return {**facts, "by_reason": reasons}


def _rejected_of_class(rejected: pd.DataFrame, annotations: Table, taxonomy: Taxonomy) -> Counter[int]:
    of_annotations = rejected[rejected["annotation_id"].notna()]
    names = list(zip(of_annotations["source"], of_annotations["annotation_id"].astype(str), strict=True))
    wanted = set(names)
    class_of: dict[tuple[str, str], int] = {}
    for block in blocks(annotations, ["source", "annotation_id", "category_id"]) if names else ():
        rows = zip(*(block[column].tolist() for column in block), strict=True)
        found = {(source, str(number)): class_id for source, number, class_id in rows}
        class_of |= {name: found[name] for name in found.keys() & wanted}
    classes = (class_of.get(name, taxonomy.thing_id(name[0])) for name in names)
    return Counter(class_id for class_id in classes if class_id is not None)
