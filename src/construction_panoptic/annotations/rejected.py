"""Keeping account of images and annotations: each is in the output or rejected, never in neither or both."""

from collections import Counter
from collections.abc import Iterable

import pandas as pd

from construction_panoptic.annotations.records import (
    REJECTED_COLUMNS,
    ConvertedImage,
    ConvertedRecord,
    Rejected,
    rejected_table,
)
from construction_panoptic.annotations.tables import TableBuilder
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
        recorded = {(record.source, record.image) for record in self._records if record.annotation_id is None}
        lost = [image for source, image in unused if (source, _clean(image)) not in recorded]
        if lost:
            raise ConservationError(f"{len(lost)} images are neither in the output nor rejected ({lost[:5]})")

    def __len__(self) -> int:
        return len(self._records)


def _clean(text: str) -> str:
    # A carriage return would end a line of the CSV file.
    text = text if len(text) <= 500 else f"{text[:500]}…"
    return text.replace("\0", "").replace("\r", " ").encode(errors="replace").decode()


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
    inputs: pd.DataFrame,
    records: Iterable[ConvertedImage] | Iterable[ConvertedRecord],
    rejected: pd.DataFrame,
    images: pd.DataFrame | None = None,
) -> None:
    """Check that every input annotation is either in the output or rejected, exactly once.

    Args:
        inputs: columns ``source`` and ``annotation_id``, one row an annotation of the exports.
        records: the converted images; iterated over twice.
        rejected: all rejected records, of reading and of merging (see `all_rejected`).
        images: column ``key``, one row an accepted image: each must be in the output once. Not checked if None.

    Raises:
        ConservationError: an annotation is in neither or in both, or turned up from nowhere, or an image did;
            names some.
    """
    if images is not None:
        accepted, converted = Counter(images["key"]), Counter(record.key for record in records)
        if changed := [*(accepted - converted), *(converted - accepted)]:
            raise ConservationError(f"{len(changed)} images were lost or converted twice ({changed[:5]})")
    output = TableBuilder({"source": "string", "annotation_id": "string"})
    for record in records:
        for segment in record.segments:
            if segment.annotation_id is not None:
                output.add({"source": record.key.split("/", 1)[0], "annotation_id": str(segment.annotation_id)})
    compare_accounts(inputs, output.table(), rejected)


def compare_accounts(inputs: pd.DataFrame, output: pd.DataFrame, rejected: pd.DataFrame) -> None:
    """Do what `check_conservation` does for an output given as a table with the same columns as ``inputs``.

    Raises:
        ConservationError: see `check_conservation`.
    """
    of_annotations = rejected[rejected["annotation_id"].notna()]
    sides = [_named(inputs, 1), _named(output, -1), _named(of_annotations, -1)]
    left = pd.concat(sides, ignore_index=True).groupby(_NAMES, sort=False, dropna=False)["count"].sum()
    problems = [
        *(_problem("neither in the output nor rejected", left[left > 0])),
        *(_problem("counted twice, or not in the input", -left[left < 0])),
    ]
    if problems:
        raise ConservationError("; ".join(problems))


def _named(table: pd.DataFrame, count: int) -> pd.DataFrame:
    return table[_NAMES].astype("string").assign(count=count)


def _problem(what: str, annotations: pd.Series) -> list[str]:
    if annotations.empty:
        return []
    names = ", ".join(f"{source}: {annotation_id}" for source, annotation_id in annotations.index[:5])
    return [f"{annotations.sum()} annotations are {what} ({names})"]
