"""What the conversion hands on: segments, converted images, their records, and what was rejected."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

REJECTED_COLUMNS = ["source", "image", "annotation_id", "reason", "detail"]


@dataclass(frozen=True, slots=True)
class Rejected:
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

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Rejected":
        """Build from what `to_dict` gave."""
        return cls(**data)


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment of a panoptic PNG.

    Attributes:
        id: its 24-bit id in the PNG, at least 1.
        category_id: the project's class id.
        area: its pixels in the PNG.
        bbox: x, y, width, height of its pixels, in pixels.
        iscrowd: 1 for a group that was not separated into instances.
        annotation_id: the CVAT annotation that it came from; None for stuff.
    """

    id: int
    category_id: int
    area: int
    bbox: tuple[int, int, int, int]
    iscrowd: int
    annotation_id: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {
            "id": self.id,
            "category_id": self.category_id,
            "area": self.area,
            "bbox": list(self.bbox),
            "iscrowd": self.iscrowd,
            "annotation_id": self.annotation_id,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Segment":
        """Build from what `to_dict` gave."""
        x, y, width, height = data["bbox"]
        return cls(**(data | {"bbox": (x, y, width, height)}))


@dataclass(frozen=True, slots=True)
class ConvertedRecord:
    """What is kept of a converted image beside its two files.

    Attributes:
        key: ``<source>/<image path>``.
        stem: file name stem of image and PNG in the converted data.
        image_file: file name of the converted image.
        width: in pixels, upright.
        height: in pixels, upright.
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
    rejected: list[Rejected] = field(default_factory=list)
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
        return {
            "key": self.key,
            "stem": self.stem,
            "image_file": self.image_file,
            "width": self.width,
            "height": self.height,
            "segments": [segment.to_dict() for segment in self.segments],
            "void_pixels": self.void_pixels,
            "rejected": [rejected.to_dict() for rejected in self.rejected],
            "phash": self.phash,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "ConvertedRecord":
        """Build from what `to_dict` gave."""
        lists = {
            "segments": [Segment.from_dict(segment) for segment in data["segments"]],
            "rejected": [Rejected.from_dict(rejected) for rejected in data["rejected"]],
        }
        return cls(**(data | lists))


@dataclass(frozen=True)
class ConvertedImage:
    """A converted image with the contents of its two files; the other fields are those of `ConvertedRecord`.

    Attributes:
        png: the encoded 24-bit panoptic PNG.
        image: a path if the source file can be used unchanged (link or copy it), else the new file's content.
        digest: of all that it was made from; "" where that is not known.
    """

    key: str
    stem: str
    image_file: str
    width: int
    height: int
    segments: list[Segment]
    void_pixels: int
    png: bytes = field(repr=False)
    image: Path | bytes = field(repr=False)
    rejected: list[Rejected] = field(default_factory=list)
    phash: str = ""
    digest: str = ""

    @property
    def record(self) -> ConvertedRecord:
        """The same without the contents of the files."""
        return ConvertedRecord(
            key=self.key,
            stem=self.stem,
            image_file=self.image_file,
            width=self.width,
            height=self.height,
            segments=self.segments,
            void_pixels=self.void_pixels,
            rejected=self.rejected,
            phash=self.phash,
        )
