"""Keeping account of images and annotations: each is in the output or rejected, never in neither or both."""

from collections import Counter
from collections.abc import Iterable, Iterator

import pandas as pd

from construction_panoptic.annotations.records import REJECTED_COLUMNS, ConvertedRecord, Rejected
from construction_panoptic.annotations.tables import StoredTable
from construction_panoptic.errors import InputDataError


class ConservationError(RuntimeError):
    """An annotation or image was lost or used twice on the way: a defect of the conversion, not of its input."""


class RejectedRecords:
    """The records rejected, or repaired, so far; ``fail``: raise `InputDataError` at the first one."""

    def __init__(self, *, fail: bool) -> None:
        self._fail = fail
        self._records: list[Rejected] = []

    def add(self, source: str, image: str, annotation_id: int | str | None, reason: str, detail: str) -> None:
        """Add one; text from the input is made valid UTF-8 and kept short."""
        record = Rejected(source, _clean(image), annotation_id, reason, _clean(detail))
        if self._fail:
            place = f"export {source!r}" + (f", image {record.image!r}" if record.image else "")
            place += "" if annotation_id is None else f", annotation {annotation_id}"
            advice = "Put it right in CVAT and export again, or set on_error to 'quarantine'."
            raise InputDataError(f"{place}: {record.detail} ({reason}). {advice}")
        self._records.append(record)

    @property
    def records(self) -> list[Rejected]:
        """All of them, in the order of their source and image."""
        return sorted(self._records, key=lambda record: (record.source, record.image))


def _clean(text: str) -> str:
    # A carriage return would end a line of the CSV file.
    text = text if len(text) <= 500 else f"{text[:500]}…"
    return text.replace("\0", "").replace("\r", " ").encode(errors="replace").decode()


def rejected_table(rejected: Iterable[Rejected]) -> pd.DataFrame:
    """Return a table with the columns `REJECTED_COLUMNS`, all of text (a missing annotation id is NA)."""
    rows = [r._replace(annotation_id=None if r.annotation_id is None else str(r.annotation_id)) for r in rejected]
    return pd.DataFrame(rows, columns=REJECTED_COLUMNS, dtype="string")


def all_rejected(while_reading: pd.DataFrame, while_merging: pd.DataFrame) -> pd.DataFrame:
    """Return what reading and merging rejected as one table, in the order of sources and images."""
    table = pd.concat([while_reading[REJECTED_COLUMNS].astype("string"), while_merging], ignore_index=True)
    return table.sort_values(["source", "image"], kind="stable", ignore_index=True)


def repaired_and_kept(repaired: pd.DataFrame, rejected: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of ``repaired`` without the annotations that were rejected later (fully hidden ones)."""
    names = ["source", "image", "annotation_id"]
    # The first of several annotations with one id is kept; the others are no later rejection of it.
    later = rejected[rejected["annotation_id"].notna() & (rejected["reason"] != "duplicate_annotation_id")]
    gone = pd.MultiIndex.from_frame(later[names])
    return repaired[~pd.MultiIndex.from_frame(repaired[names]).isin(gone)].reset_index(drop=True)


def check_conservation(
    annotations: StoredTable, images: pd.DataFrame, records: Iterable[ConvertedRecord]
) -> pd.DataFrame:
    """Check that every accepted annotation and image is in the converted data or rejected, exactly once.

    Sums of hashes are compared, so that no names are held; where they differ, names are looked for in the records once
    more. Returns what merging rejected, see `rejected_table`. Raises `ConservationError`, which names some.
    """
    rejected: list[Rejected] = []
    keys = names = 0
    for record in records:
        rejected += record.rejected
        keys += hash(record.key)
        names += sum(map(hash, _annotations_of(record)))
    if keys != sum(map(hash, images["key"])):
        accepted, converted = Counter(images["key"]), Counter(record.key for record in records)
        changed = [*(accepted - converted), *(converted - accepted)]
        raise ConservationError(f"{len(changed)} images were lost or converted twice ({changed[:5]})")
    if names != sum(map(hash, _rows(annotations))):
        before, after = Counter(_rows(annotations)), Counter(n for r in records for n in _annotations_of(r))
        lost, extra = "neither in the output nor rejected", "counted twice, or not in the input"
        problems = [
            f"{found.total()} annotations are {what} ({', '.join(map(': '.join, list(found)[:5]))})"
            for what, found in ((lost, before - after), (extra, after - before))
            if found
        ]
        raise ConservationError("; ".join(problems))
    return rejected_table(rejected)


def _annotations_of(record: ConvertedRecord) -> Iterator[tuple[str, str]]:
    """Give source and id of each annotation that has become part of a segment or was rejected."""
    for segment in record.segments:
        yield from ((record.source, str(number)) for number in segment.annotation_ids)
    yield from ((r.source, str(r.annotation_id)) for r in record.rejected if r.annotation_id is not None)


def _rows(annotations: StoredTable) -> Iterator[tuple[str, str]]:
    return ((row["source"], str(row["annotation_id"])) for row in annotations.rows(["source", "annotation_id"]))
