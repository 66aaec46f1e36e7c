"""What the conversion hands on: segments, records of converted images, and what was rejected."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from construction_panoptic.errors import InputDataError, damaged

REJECTED_COLUMNS = ["source", "image", "annotation_id", "reason", "detail"]


class UnusableError(InputDataError):
    """Something in an export cannot be used; ``reason`` is the code for the rejected records, in snake_case."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)  # both, so that it can be pickled
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[1])


class Rejected(NamedTuple):
    """Something that the conversion did not use, and why."""

    source: str  # the export: folder name or zip stem
    image: str  # its key, or the file name in the export where there is no key, or "" if neither is known
    annotation_id: int | str | None  # "#<position>" where it has no usable one; None: it is about an image or export
    reason: str  # a code in snake_case, such as size_mismatch
    detail: str  # one sentence for the reader


class Segment(NamedTuple):
    """One segment of a panoptic PNG."""

    id: int  # its 24-bit id in the PNG, at least 1
    category_id: int  # the project's class id
    area: int  # its pixels in the PNG
    bbox: tuple[int, int, int, int]  # x, y, width, height of its pixels, in pixels
    counts: str  # the same pixels, as COCO's compressed run-length code
    iscrowd: int  # 1 for a group that was not separated into instances
    annotation_id: int | None  # the annotation that a thing came from; None for stuff
    stuff_annotation_ids: tuple[int, ...] = ()  # annotations of stuff that have pixels in it; none in labelled stuff

    @property
    def annotation_ids(self) -> tuple[int, ...]:
        """All annotations that have pixels in it."""
        return self.stuff_annotation_ids if self.annotation_id is None else (self.annotation_id,)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types; ``stuff_annotation_ids`` only where there are some."""
        fields = self._asdict() | {"bbox": list(self.bbox)}
        ids = fields.pop("stuff_annotation_ids")
        return fields | ({"stuff_annotation_ids": list(ids)} if ids else {})


class ConvertedRecord(NamedTuple):
    """What is kept of a converted image beside its two files."""

    key: str  # <source>/<image path>
    stem: str  # file name stem of image and PNG in the converted data
    image_file: str  # file name of the converted image
    width: int  # in pixels, upright
    height: int
    segments: list[Segment]  # every id of the PNG, and nothing else
    void_pixels: int  # pixels of the PNG that belong to no segment
    rejected: Sequence[Rejected] = ()  # annotations of this image that have no segment
    phash: str = ""  # 16 x 16 perceptual hash as hexadecimal text (`imagehash.phash(hash_size=16)`)
    png_sha256: str = ""  # of the PNG file, as hexadecimal text

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
    def from_dict(cls, data: dict[str, Any]) -> "ConvertedRecord":
        """Build from what `to_dict` gave; raises `ValueError` where it is something else."""
        return _RECORD.validate_python(data)


_RECORD = TypeAdapter(ConvertedRecord)


@dataclass(frozen=True)
class ConvertedImage:
    """A converted image with the contents of its two files."""

    record: ConvertedRecord
    png: bytes = field(repr=False)
    image: Path | bytes = field(repr=False)  # a path if the source file can be used unchanged (link or copy it)
    digest: str = ""  # of all that it was made from; "" where that is not known


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
                    record = _RECORD.validate_json(line)
                except ValueError as error:
                    raise damaged(self.index, error, f", line {number},") from error
                yield record
