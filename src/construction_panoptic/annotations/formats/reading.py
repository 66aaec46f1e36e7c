"""Reading the exports in a folder into tables, whatever their format, with every image and annotation checked."""

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, count, groupby
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from construction_panoptic.annotations.formats.checking import Task, check_objects, image_row
from construction_panoptic.annotations.formats.coco_panoptic import CocoPanopticReader
from construction_panoptic.annotations.formats.cvat_coco import CvatCocoReader
from construction_panoptic.annotations.formats.datumaro_formats import DatumaroReader
from construction_panoptic.annotations.formats.reader import AnnotationReader, ListedImage, ListedObject, Refused
from construction_panoptic.annotations.formats.sources import (
    NoExportError,
    Source,
    find_sources,
    not_read,
    whole_folder,
)
from construction_panoptic.annotations.records import UnusableError
from construction_panoptic.annotations.rejected import RejectedRecords, rejected_table
from construction_panoptic.annotations.tables import StoredTable, TableWriter
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.config.base import ONE_PROCESS
from construction_panoptic.config.conversion import ConversionSettings
from construction_panoptic.errors import InputDataError
from construction_panoptic.parallel.workers import Workers, blocks_of

READERS: tuple[AnnotationReader, ...] = (CocoPanopticReader(), CvatCocoReader(), DatumaroReader())
"""The export formats that can be read, in the order in which they are tried."""

_OBJECTS_AT_ONCE = 16
_ROWS_AT_ONCE = 10_000
_IMAGE_COLUMNS = {
    "key": "string",
    "source": "string",
    "file_name": "string",  # relative to the export's folder of images
    "location": "string",  # absolute path, or <zip>::<member>
    "width": "int64",  # upright, pixels
    "height": "int64",
    "sha256": "string",
    "phash": "string",
}
_ANNOTATION_COLUMNS = {
    "key": "string",
    "source": "string",
    "annotation_id": "int64",
    "category_id": "int64",
    "category": "string",
    "is_thing": "bool",
    "rle": "string",  # counts of its mask as a compressed COCO run-length code
    "iscrowd": "int64",
    "order": "int64",  # position in the export; later is on top
    "bbox": "string",  # JSON; as in the export, where it may be missing, unless repaired
    "area": "float64",  # the same
}
_IN_ONE_PROCESS = ConversionSettings(execution=ONE_PROCESS)
_HELP = (
    "Put one folder (or .zip) per CVAT export there, each with `coco.json` or `annotations/instances_default.json`, "
    "and `images/`. To try the project without data of your own, make the sample: `make demo`"
)


class Exports(NamedTuple):
    """What the exports hold."""

    images: pd.DataFrame  # `_IMAGE_COLUMNS`, one row an accepted image, sorted by key
    annotations: StoredTable  # `_ANNOTATION_COLUMNS`, one row an accepted annotation, sorted by key and order
    rejected: pd.DataFrame  # what was not accepted; `REJECTED_COLUMNS`
    repaired: pd.DataFrame  # what was accepted and changed, and images without annotations; the same columns


def read_exports(raw_data: Path, taxonomy: Taxonomy, settings: ConversionSettings = _IN_ONE_PROCESS) -> Exports:
    """Read every export in a folder, one at a time: annotations wait in a temporary file.

    ``raw_data`` holds one folder or ``.zip`` an export, of any format in `READERS`; or is itself an export, which is
    then named after it. Images and annotations are checked in processes; one worker is this process, with threads for
    the images. Raises `NoExportError`. `InputDataError`: no image can be used; or, in the ``fail`` mode, anything that
    would be rejected, which it names.
    """
    try:
        sources, strays = find_sources(Path(raw_data))
    except NoExportError as error:
        raise NoExportError(f"{error} {_HELP}.") from None
    recognised = [_recognise(source) for source in sources]
    if not any(isinstance(found, tuple) for found in recognised):
        whole = whole_folder(Path(raw_data))
        if isinstance(found := _recognise(whole), tuple):
            if not all(source.path.is_dir() for source in sources):
                detail = "is itself an export, and there are archives in it; move it into a folder of its own"
                raise NoExportError(f"{raw_data} {detail}. {_HELP}.")
            sources, recognised, strays = [whole], [found], []
        elif not any(recognised):
            raise NoExportError(f"{raw_data}: there is no CVAT export in it. {_HELP}.")
    with Workers(settings.execution.workers, settings.execution.engine) as pool:
        reading = _Reading(taxonomy, settings, pool)
        # In the order of the keys that their images get, so that the tables need not be sorted as a whole.
        for source, found in sorted(zip(sources, recognised, strict=True), key=lambda pair: f"{pair[0].name}/"):
            reading.read(source, found)
    for path in strays:
        detail = f"{path}: not read; put it and its images into a folder or .zip of their own, or remove it"
        reading.rejected.add(path.name, "", None, "stray_file", detail)
    return reading.exports(Path(raw_data))


Recognised = tuple[Source, AnnotationReader] | UnusableError | None
"""A source, or the one folder in it, and its reader; or why it cannot be read; None: nothing reads it."""


def _recognise(source: Source) -> Recognised:
    try:
        for candidate in (source, source.inner()):
            for reader in READERS:
                if candidate is not None and reader.sniff(candidate):
                    return candidate, reader
    except UnusableError as error:
        return error
    return None


Row = dict[str, Any]
Images = dict[ListedImage, tuple[str, Row | UnusableError]]
"""Of each listed image its name in the records, and its row of the table or why it has none."""


class _Reading:
    """The tables as they grow, export by export."""

    def __init__(self, taxonomy: Taxonomy, settings: ConversionSettings, workers: Workers) -> None:
        self._taxonomy, self._workers = taxonomy, workers
        keep_boxes, keep_crowds = settings.boxes_without_polygon == "keep", settings.crowds == "keep"
        self._check = partial(check_objects, keep_boxes=keep_boxes, keep_crowds=keep_crowds)
        self.rejected, self._repaired = RejectedRecords(fail=settings.on_error == "fail"), RejectedRecords(fail=False)
        self._images, self._annotations = TableWriter(_IMAGE_COLUMNS), TableWriter(_ANNOTATION_COLUMNS)
        self._seen: set[str] = set()

    def read(self, source: Source, recognised: Recognised) -> None:
        """Read one export."""
        name, problem = source.name, None
        if name in self._seen:
            detail = "a folder or archive of the same name was read already; remove one"
            problem = UnusableError("duplicate_export", detail)
        self._seen.add(name)
        if not isinstance(recognised, UnusableError):
            for reason, detail in not_read(source):
                self.rejected.add(name, "", None, reason, detail)
        if recognised is None:
            files = " nor ".join(file for reader in READERS for file in reader.files)
            recognised = UnusableError("no_annotation_file", f"{source.path} has neither {files}")
        if isinstance(recognised, UnusableError):
            self.rejected.add(name, "", None, recognised.reason, str(recognised))
            return
        source, reader = recognised
        images: Images = {}
        objects = TableWriter(_ANNOTATION_COLUMNS)
        lost: Counter[str] = Counter()
        order = count()
        listed: Iterator[Any] = reader.read(source)
        for kind, group in groupby(listed, type):
            if kind is Refused:
                for reason, detail in group:
                    self.rejected.add(name, "", None, reason, detail)
            elif kind is ListedImage:
                images |= self._read_images(source, list(group), problem)
            else:
                tasks = (self._task(item, images, problem) for item in group)
                for block in blocks_of(self._read_objects(name, tasks, order, lost), _ROWS_AT_ONCE):
                    objects.append(block)
        annotations = objects.table().frame().sort_values(["key", "order"])
        self._annotations.append(annotations)
        rows = {row["key"]: row for _, row in reversed(images.values()) if not isinstance(row, UnusableError)}
        for key in sorted(rows.keys() - set(annotations["key"])):
            why = f"all of its {lost[key]} annotations are rejected" if lost[key] else "it has no annotation"
            detail = f"{why}; kept as an image of stuff alone"
            self._repaired.add(name, key, None, "image_without_annotations", detail)
        self._images.append([rows[key] for key in sorted(rows)])

    def _read_images(self, source: Source, listed: list[ListedImage], problem: UnusableError | None) -> Images:
        images: Images = {}
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            pool = threads if self._workers.inline else self._workers
            usable = (image for image in listed if problem is None and image.problem is None)
            checked = iter(pool.map(partial(image_row, source), usable))
            for image in listed:
                name = "" if image.file_name is None else f"{source.name}/{image.file_name}"
                found = problem or image.problem or next(checked)
                if isinstance(found, UnusableError):
                    self.rejected.add(source.name, name, None, found.reason, str(found))
                images[image] = (name if isinstance(found, UnusableError) else found["key"], found)
        return images

    def _read_objects(
        self, source: str, tasks: Iterator[Task], order: Iterator[int], lost: Counter[str]
    ) -> Iterator[Row]:
        """Check objects, reject them or give their rows."""
        results = chain.from_iterable(self._workers.map(self._check, blocks_of(tasks, _OBJECTS_AT_ONCE)))
        for (label, name, found), place in zip(results, order, strict=False):
            if isinstance(found, UnusableError):
                lost[name] += 1
                self.rejected.add(source, name, label, found.reason, str(found))
                continue
            row, repairs = found
            class_id = row["category_id"]
            names = {"category": self._taxonomy.names[class_id], "is_thing": self._taxonomy.is_thing[class_id]}
            yield row | names | {"source": source, "order": place}
            for reason, detail in repairs:
                self._repaired.add(source, name, label, reason, detail)

    def _task(self, item: ListedObject, images: Images, problem: UnusableError | None) -> Task:
        name, image = ("", None) if item.image is None else images[item.image]
        problem = problem or item.problem
        if problem is not None or image is None:
            return Task(item, name, problem)
        if isinstance(image, UnusableError):
            return Task(item, name, image)
        found = (self._taxonomy.thing_id(name) or self._taxonomy.stuff_id(name) for name in item.classes)
        class_id = next(filter(None, found), None)
        if class_id is None:
            return Task(item, name, UnusableError("unknown_class", item.unknown_class))
        return Task(item, name, None, class_id, image["height"], image["width"])

    def exports(self, raw_data: Path) -> Exports:
        """Return the tables."""
        rejected, images = self.rejected.records, self._images.table().frame()
        if images.empty:
            examples = "; ".join(f"{r.source} {r.image}: {r.detail} ({r.reason})" for r in rejected[:5])
            raise InputDataError(f"{raw_data}: not one image can be used. {examples}.")
        annotations = self._annotations.table()
        return Exports(images, annotations, rejected_table(rejected), rejected_table(self._repaired.records))
