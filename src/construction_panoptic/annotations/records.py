"""What the conversion hands on: segments, records of converted images, and what was rejected."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from construction_panoptic.errors import InputDataError, damaged

REJECTED_COLUMNS = ["source", "image", "annotation_id", "reason", "detail"]


class UnusableError(InputDataError):
    """Something in an export cannot be used; ``reason`` is the code for the rejected records, in snake_case."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[Self], tuple[str, str]]:
        """Let the error come back from another process with its reason."""
        return type(self), (self.reason, str(self))


class Rejected(NamedTuple):
    """Something that the conversion did not use, and why.

    Attributes:
        source: the export (folder name or zip stem).
        image: the image key, or the file name in the export where there is no key, or "" if neither is known.
        annotation_id: the id in the export; ``"#<position>"`` where the entry has no usable id; None where
            the row is about an image or the export as a whole.
        reason: a code in snake_case, such as ``size_mismatch``.
        detail: one sentence for the reader.
    """

    source: str
    image: str
    annotation_id: int | str | None
    reason: str
    detail: str


class Segment(NamedTuple):
    """One segment of a panoptic PNG.

    Attributes:
        id: its 24-bit id in the PNG, at least 1.
        category_id: the project's class id.
        area: its pixels in the PNG.
        bbox: x, y, width, height of its pixels, in pixels.
        iscrowd: 1 for a group that was not separated into instances.
        annotation_id: the annotation that a thing came from; None for stuff.
        stuff_annotation_ids: the annotations of stuff that have pixels in it; none in what was labelled.
    """

    id: int
    category_id: int
    area: int
    bbox: tuple[int, int, int, int]
    iscrowd: int
    annotation_id: int | None
    stuff_annotation_ids: tuple[int, ...] = ()

    @property
    def annotation_ids(self) -> tuple[int, ...]:
        """All annotations that have pixels in it."""
        return self.stuff_annotation_ids if self.annotation_id is None else (self.annotation_id,)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types; ``stuff_annotation_ids`` only where there are some."""
        fields = self._asdict() | {"bbox": list(self.bbox), "stuff_annotation_ids": list(self.stuff_annotation_ids)}
        return fields if self.stuff_annotation_ids else {name: fields[name] for name in self._fields[:-1]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Build from what `to_dict` gave."""
        x, y, width, height = data["bbox"]
        stuff = tuple(data.get("stuff_annotation_ids", ()))
        return cls(**(data | {"bbox": (x, y, width, height), "stuff_annotation_ids": stuff}))


class ConvertedRecord(NamedTuple):
    """What is kept of a converted image beside its two files.

    Attributes:
        key: ``<source>/<image path>``.
        stem: file name stem of image and PNG in the converted data.
        image_file: file name of the converted image, of width and height in pixels, upright.
        segments: every id of the PNG, and nothing else.
        void_pixels: pixels of the PNG that belong to no segment.
        rejected: annotations of this image that have no segment.
        phash: 16 x 16 perceptual hash as hexadecimal text (``imagehash.phash(hash_size=16)``).
    """

    key: str
    stem: str
    image_file: str
    width: int
    height: int
    segments: list[Segment]
    void_pixels: int
    rejected: Sequence[Rejected] = ()
    phash: str = ""

    @property
    def source(self) -> str:
        """The export that the image came from."""
        return self.key.split("/", 1)[0]

    @property
    def png_file(self) -> str:
        """File name of the panoptic PNG."""
        return f"{self.stem}.png"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        segments = [segment.to_dict() for segment in self.segments]
        return self._asdict() | {"segments": segments, "rejected": [rejected._asdict() for rejected in self.rejected]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Build from what `to_dict` gave."""
        segments = [Segment.from_dict(segment) for segment in data["segments"]]
        return cls(**(data | {"segments": segments, "rejected": [Rejected(**row) for row in data["rejected"]]}))


@dataclass(frozen=True)
class ConvertedImage:
    """A converted image with the contents of its two files.

    The image is a path if the source file can be used unchanged (link or copy it). ``digest`` is that of all that it
    was made from; "" where that is not known.
    """

    record: ConvertedRecord
    png: bytes = field(repr=False)
    image: Path | bytes = field(repr=False)
    digest: str = ""


@dataclass(frozen=True)
class ConvertedImages:
    """The converted images: where their files are, and a record for each."""

    image_folder: Path
    png_folder: Path
    index: Path

    def __iter__(self) -> Iterator[ConvertedRecord]:
        with self.index.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    record = ConvertedRecord.from_dict(json.loads(line))
                except (ValueError, KeyError, TypeError) as error:
                    raise damaged(self.index, error, f", line {number},") from error
                yield record
