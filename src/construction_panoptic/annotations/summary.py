"""What the converted data holds: counts per class, and a summary of the whole."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from construction_panoptic.annotations.records import ConvertedRecord
from construction_panoptic.annotations.split.splitting import TRAIN, VAL
from construction_panoptic.annotations.tables import Table, blocks
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.errors import InputDataError

_COUNTED = ("images", "segments", "pixels")
CLASS_COUNT_COLUMNS = [
    "class_id",
    "class",
    "kind",
    *(f"{what}_{side}" for what in _COUNTED for side in (TRAIN, VAL, "total")),
    "rejected",
]


def class_counts(
    records: Iterable[ConvertedRecord],
    split_table: pd.DataFrame,
    taxonomy: Taxonomy,
    rejected: pd.DataFrame | None = None,
    annotations: Table | None = None,
) -> pd.DataFrame:
    """Count images, segments and pixels of every class of the taxonomy.

    Args:
        records: the converted images.
        split_table: columns key and split, with a row for each record.
        taxonomy: the classes.
        rejected: the rejected records (columns source, annotation_id, …); none are counted without it.
        annotations: the accepted annotations (columns source, annotation_id, category_id), which know the
            class of what the merging rejected.

    Returns:
        One row a class, in id order, also for classes that do not occur: class_id, class, kind ("thing" or
        "stuff"), then images, segments and pixels, each for _train, _val and _total, and rejected. A rejected
        annotation belongs to its class in ``annotations``, else to the class that its export is named after;
        where neither is known, no class counts it.

    Raises:
        InputDataError: a record is not in the split, or a segment's class is not in the taxonomy.
    """
    counts: dict[tuple[str, str, int], int] = defaultdict(int)
    for record, side in _with_side(records, split_table):
        for segment in record.segments:
            if segment.category_id not in taxonomy.names:
                raise InputDataError(
                    f"image {record.key!r}, segment {segment.id}: class {segment.category_id} is not in the "
                    "taxonomy; convert again with this taxonomy."
                )
            counts["segments", side, segment.category_id] += 1
            counts["pixels", side, segment.category_id] += segment.area
        for class_id in {segment.category_id for segment in record.segments}:
            counts["images", side, class_id] += 1
    rejected_of = _rejected_of_class(rejected, annotations, taxonomy)
    rows: list[dict[str, Any]] = []
    for class_id, name in taxonomy.names.items():
        kind = "thing" if taxonomy.is_thing[class_id] else "stuff"
        row: dict[str, Any] = {"class_id": class_id, "class": name, "kind": kind}
        for what in _COUNTED:
            train, val = (counts[what, side, class_id] for side in (TRAIN, VAL))
            row |= {f"{what}_{TRAIN}": train, f"{what}_{VAL}": val, f"{what}_total": train + val}
        rows.append(row | {"rejected": rejected_of[class_id]})
    return pd.DataFrame(rows, columns=CLASS_COUNT_COLUMNS)


def dataset_summary(
    records: Iterable[ConvertedRecord],
    split_table: pd.DataFrame,
    taxonomy: Taxonomy,
    rejected: pd.DataFrame | None = None,
    repaired: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """Describe the converted data in numbers, ready for JSON.

    Args:
        records: the converted images.
        split_table: columns key, group and split, with a row for each record.
        taxonomy: the classes.
        rejected: the rejected records (columns source, image, annotation_id, reason, detail).
        repaired: the repaired records, of the same columns.

    Returns:
        ``all``, ``train`` and ``val``, each with images, megapixels, segments, thing_segments,
        crowd_segments, segments_per_image, void_share (of the pixels), images_without_stuff and
        images_without_things; then groups, exports, classes_present and classes_absent (numbers of thing and
        stuff classes), absent_things (names), and rejected and repaired (each with total, images_or_exports,
        annotations, by_reason).

    Raises:
        InputDataError: a record is not in the split.
    """
    sums = {side: _Sums(taxonomy) for side in ("all", TRAIN, VAL)}
    exports = set()
    for record, side in _with_side(records, split_table):
        exports.add(record.source)
        sums["all"].add(record)
        if side in sums:
            sums[side].add(record)
    present = sums["all"].classes
    kinds = {"thing": [c.id for c in taxonomy.things], "stuff": [c.id for c in taxonomy.stuff]}
    return {
        **{side: found.facts() for side, found in sums.items()},
        "groups": int(split_table["group"].nunique()),
        "exports": len(exports),
        "classes_present": {kind: len(present.intersection(known)) for kind, known in kinds.items()},
        "classes_absent": {kind: len(set(known) - present) for kind, known in kinds.items()},
        "absent_things": sorted(c.name for c in taxonomy.things if c.id not in present),
        "rejected": _records_summary(rejected),
        "repaired": _records_summary(repaired),
    }


def _with_side(records: Iterable[ConvertedRecord], split_table: pd.DataFrame) -> Iterable[tuple[ConvertedRecord, str]]:
    side: Mapping[str, str] = dict(zip(split_table["key"], split_table["split"], strict=True))
    for record in records:
        if record.key not in side:
            raise InputDataError(f"image {record.key!r} is not in the split; split again.")
        yield record, side[record.key]


class _Sums:
    """What is added up over the images of one side."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        self._is_thing = taxonomy.is_thing
        self._sums: Counter[str] = Counter()
        self.classes: set[int] = set()

    def add(self, record: ConvertedRecord) -> None:
        """Add an image."""
        things = sum(self._is_thing.get(segment.category_id, False) for segment in record.segments)
        self.classes.update(segment.category_id for segment in record.segments)
        self._sums.update(
            images=1,
            pixels=record.width * record.height,
            void=record.void_pixels,
            segments=len(record.segments),
            things=things,
            crowds=sum(segment.iscrowd for segment in record.segments),
            without_stuff=things == len(record.segments),
            without_things=things == 0,
        )

    def facts(self) -> dict[str, Any]:
        """Give the sums and ratios, ready for JSON."""
        sums = self._sums
        return {
            "images": sums["images"],
            "megapixels": round(sums["pixels"] / 1e6, 3),
            "segments": sums["segments"],
            "thing_segments": sums["things"],
            "crowd_segments": sums["crowds"],
            "segments_per_image": round(sums["segments"] / sums["images"], 3) if sums["images"] else None,
            "void_share": round(sums["void"] / sums["pixels"], 6) if sums["pixels"] else None,
            "images_without_stuff": sums["without_stuff"],
            "images_without_things": sums["without_things"],
        }


def _records_summary(table: pd.DataFrame | None) -> dict[str, Any]:
    if table is None:
        return {"total": 0, "images_or_exports": 0, "annotations": 0, "by_reason": {}}
    annotations = int(table["annotation_id"].notna().sum())
    reasons = Counter(str(reason) for reason in table["reason"])
    return {
        "total": len(table),
        "images_or_exports": len(table) - annotations,
        "annotations": annotations,
        "by_reason": dict(sorted(reasons.items())),
    }


def _rejected_of_class(rejected: pd.DataFrame | None, annotations: Table | None, taxonomy: Taxonomy) -> Counter[int]:
    found: Counter[int] = Counter()
    if rejected is None:
        return found
    of_annotations = rejected[rejected["annotation_id"].notna()]
    ids = map(_id_text, of_annotations["annotation_id"])
    names = list(zip(of_annotations["source"], ids, strict=True))
    class_of = {} if annotations is None else _classes_of(set(names), annotations)
    for name in names:
        class_id = class_of.get(name, taxonomy.thing_id(name[0]))
        if class_id is not None:
            found[int(class_id)] += 1
    return found


def _classes_of(names: set[tuple[str, str]], annotations: Table) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for block in blocks(annotations, ["source", "annotation_id", "category_id"]) if names else ():
        rows = zip(block["source"].tolist(), map(_id_text, block["annotation_id"].tolist()), strict=True)
        found |= {
            name: class_id for name, class_id in zip(rows, block["category_id"].tolist(), strict=True) if name in names
        }
    return found


def _id_text(annotation_id: Any) -> str:
    # A column of ids with gaps comes back from a CSV file as floats.
    return str(int(annotation_id)) if isinstance(annotation_id, float) else str(annotation_id)
