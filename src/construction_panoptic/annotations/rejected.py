"""Keeping account of images and annotations: each is in the output or rejected, never in neither or both."""

from collections import Counter
from collections.abc import Iterable, Iterator

import pandas as pd

from construction_panoptic.annotations.records import (
    REJECTED_COLUMNS,
    ConvertedImage,
    ConvertedRecord,
    Rejected,
)
from construction_panoptic.annotations.tables import Table, TableBuilder, blocks
from construction_panoptic.errors import InputDataError

_NAMES = ["source", "annotation_id"]


class RejectionError(InputDataError):
    """A record was rejected while rejecting is not allowed."""


class ConservationError(RuntimeError):
    """An annotation or image was lost or used twice on the way: a defect of the conversion, not of its input."""


class RejectedRecords:
    """The records rejected, or repaired, so far.

    Args:
        fail: raise `RejectionError` at the first one.
    """

    def __init__(self, *, fail: bool) -> None:
        self._fail = fail
        self._records: list[Rejected] = []
        self._images: set[tuple[str, str]] = set()

    def add(self, source: str, image: str, annotation_id: int | str | None, reason: str, detail: str) -> None:
        """Add one; text from the input is made valid UTF-8 and kept short.

        Raises:
            RejectionError: in the ``fail`` mode.
        """
        record = Rejected(source, _clean(image), annotation_id, reason, _clean(detail))
        if self._fail:
            place = ", ".join(
                [f"export {source!r}"]
                + ([f"image {record.image!r}"] if record.image else [])
                + ([f"annotation {annotation_id}"] if annotation_id is not None else [])
            )
            advice = "Put it right in CVAT and export again, or set on_error to 'quarantine'."
            raise RejectionError(f"{place}: {record.detail} ({reason}). {advice}")
        self._records.append(record)
        if annotation_id is None:
            self._images.add((source, record.image))

    @property
    def records(self) -> list[Rejected]:
        """All of them, in the order of their source and image (those of one image as they came)."""
        return sorted(self._records, key=lambda record: (record.source, record.image))

    def check_images(self, unused: Iterable[tuple[str, str]]) -> None:
        """Check that every image that is not used has a record.

        Args:
            unused: source and image of each.

        Raises:
            ConservationError: names some that have none.
        """
        lost = [image for source, image in unused if (source, _clean(image)) not in self._images]
        if lost:
            raise ConservationError(f"{len(lost)} images are neither in the output nor rejected ({lost[:5]})")

    def __len__(self) -> int:
        return len(self._records)


def _clean(text: str) -> str:
    # A carriage return would end a line of the CSV file.
    text = text if len(text) <= 500 else f"{text[:500]}…"
    return text.replace("\0", "").replace("\r", " ").encode(errors="replace").decode()


def rejected_table(rejected: Iterable[Rejected]) -> pd.DataFrame:
    """Return a table with the columns `REJECTED_COLUMNS`, all of text (a missing annotation id is NA)."""
    rows = [
        (r.source, r.image, None if r.annotation_id is None else str(r.annotation_id), r.reason, r.detail)
        for r in rejected
    ]
    return pd.DataFrame(rows, columns=REJECTED_COLUMNS, dtype="string")


def all_rejected(read: pd.DataFrame, records: Iterable[ConvertedImage] | Iterable[ConvertedRecord]) -> pd.DataFrame:
    """Return what reading and merging rejected as one table with the columns `REJECTED_COLUMNS`."""
    merged = rejected_table(rejected for record in records for rejected in record.rejected)
    table = pd.concat([read[REJECTED_COLUMNS].astype("string"), merged], ignore_index=True)
    return table.sort_values(["source", "image"], kind="stable", ignore_index=True)


def repaired_and_kept(repaired: pd.DataFrame, rejected: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of ``repaired`` without the annotations that were rejected later (fully hidden ones)."""
    names = ["source", "image", "annotation_id"]
    # The first of several annotations with one id is kept; the others are no later rejection of it.
    later = rejected[rejected["annotation_id"].notna() & (rejected["reason"] != "duplicate_annotation_id")]
    gone = pd.MultiIndex.from_frame(later[names])
    return repaired[~pd.MultiIndex.from_frame(repaired[names]).isin(gone)].reset_index(drop=True)


def check_conservation(
    inputs: Table,
    records: Iterable[ConvertedImage] | Iterable[ConvertedRecord],
    rejected: pd.DataFrame,
    images: pd.DataFrame | None = None,
) -> None:
    """Check that every input annotation is either in the output or rejected, exactly once.

    Sums of hashes are compared, so that nothing is held; names are looked for where they differ.

    Args:
        inputs: columns ``source`` and ``annotation_id``, one row an annotation of the exports.
        records: the converted images; iterated over several times.
        rejected: all records rejected of ``inputs``.
        images: column ``key``, one row an accepted image: each must be in the output once. Not checked if None.

    Raises:
        ConservationError: an annotation is in neither or in both, or turned up from nowhere, or an image did;
            names some.
    """
    keys = segments = 0
    for record in records:
        keys += hash(record.key)
        segments += sum(map(hash, _names_of_segments(record)))
    if images is not None and keys != sum(map(hash, images["key"])):
        accepted, converted = Counter(images["key"]), Counter(record.key for record in records)
        changed = [*(accepted - converted), *(converted - accepted)]
        raise ConservationError(f"{len(changed)} images were lost or converted twice ({changed[:5]})")
    if _sum(inputs) != segments + _sum(_of_annotations(rejected)):
        output = TableBuilder(dict.fromkeys(_NAMES, "string"))
        for name in (name for record in records for name in _names_of_segments(record)):
            output.add(dict(zip(_NAMES, name, strict=True)))
        _name_differences(inputs, output.table(), rejected)


def compare_accounts(inputs: Table, output: Table, rejected: pd.DataFrame) -> None:
    """Do what `check_conservation` does for an output given as a table with the same columns as ``inputs``.

    Raises:
        ConservationError: see `check_conservation`.
    """
    if _sum(inputs) != _sum(output) + _sum(_of_annotations(rejected)):
        _name_differences(inputs, output, rejected)


def _names_of_segments(record: ConvertedImage | ConvertedRecord) -> Iterator[tuple[str, str]]:
    source = record.key.split("/", 1)[0]
    numbers = (segment.annotation_id for segment in record.segments)
    return ((source, str(number)) for number in numbers if number is not None)


def _of_annotations(rejected: pd.DataFrame) -> pd.DataFrame:
    return rejected[rejected["annotation_id"].notna()]


def _sum(table: Table) -> int:
    total = 0
    for block in blocks(table, _NAMES):
        sources, ids = (block[name].astype("string").tolist() for name in _NAMES)
        total += sum(map(hash, zip(sources, ids, strict=True)))
    return total


def _name_differences(inputs: Table, output: Table, rejected: pd.DataFrame) -> None:
    sides = [(inputs, 1), (output, -1), (_of_annotations(rejected), -1)]
    counted = [block.astype("string").assign(count=count) for side, count in sides for block in blocks(side, _NAMES)]
    left = pd.concat(counted, ignore_index=True).groupby(_NAMES, sort=False, dropna=False)["count"].sum()
    problems = [
        *(_problem("neither in the output nor rejected", left[left > 0])),
        *(_problem("counted twice, or not in the input", -left[left < 0])),
    ]
    if problems:
        raise ConservationError("; ".join(problems))


def _problem(what: str, annotations: pd.Series) -> list[str]:
    if annotations.empty:
        return []
    names = ", ".join(f"{source}: {annotation_id}" for source, annotation_id in annotations.index[:5])
    return [f"{annotations.sum()} annotations are {what} ({names})"]
