"""The door for export formats: a reader knows the files of one format and gives what they list, item by item."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from construction_panoptic.annotations.formats.sources import Source
from construction_panoptic.annotations.records import UnusableError


@dataclass(frozen=True, slots=True, eq=False)
class ListedImage:
    """An image that an export lists; where it has a problem, the fields below that mean nothing."""

    file_name: str | None  # as the export has it; None where it has none
    problem: UnusableError | None = None  # why the image cannot be used
    width: int = 0  # in pixels, upright, as the annotations have it
    height: int = 0
    folder: str = ""  # of images in the source; the rest of a file's name goes into the image's key
    # Names in the source that its file may have, in `folder`; the first that exists counts.
    places: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ListedObject:
    """An annotated thing, or region of stuff, that an export lists; after a problem, the fields below mean nothing."""

    label: int | str  # its id in the export; "#<position>" where it has none that can be used
    image: ListedImage | None  # that it lies in
    problem: UnusableError | None = None  # why it cannot be used
    classes: tuple[str, ...] = ()  # names of its class; the first that the taxonomy knows counts
    unknown_class: str = ""  # what to say where the taxonomy knows none of them
    segmentation: Any = None  # polygons [[x, y, x, y, …], …] or a COCO run-length code, in pixels, not checked
    iscrowd: int = 0  # 1 for a group that is not separated into instances
    bbox: list[float] | None = None  # x, y, width, height in pixels; None where the export has none
    rotation: float = 0.0  # of the box, clockwise degrees around its middle
    area: float | None = None  # in pixels; None where the export has none
    unusable: tuple[str, ...] = ()  # "bbox" and "area", where they are there and no numbers


class Refused(NamedTuple):
    """A file of an export, or all of it, that cannot be used: reason code and sentence for the rejected records."""

    reason: str
    detail: str


class AnnotationReader(Protocol):
    """One export format: a class in a module of its own, and a line in `reading.READERS`.

    Finding exports and opening their files is done by `sources`; checking images, drawing outlines and naming classes
    by `reading`.
    """

    @property
    def files(self) -> tuple[str, ...]:
        """The files by which it is known, for messages."""
        ...

    def sniff(self, source: Source) -> bool:
        """Tell whether a source is of this format; raises `ImageError` where it cannot be read."""
        ...

    def read(self, source: Source) -> Iterator[ListedImage | ListedObject | Refused]:
        """Give everything that a source lists: images before their objects, objects from the lowest layer up.

        What cannot be used is given too, with its ``problem``. Only one object at a time need be in memory.
        """
        ...
