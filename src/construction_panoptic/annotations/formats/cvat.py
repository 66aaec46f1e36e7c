"""Reading CVAT's "COCO 1.0" exports into tables, with every image and annotation checked."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pandas as pd

from construction_panoptic.annotations.formats.coco_entries import (
    Document,
    EntryError,
    ImageEntry,
    annotation_label,
    as_id,
    check_image_entry,
    parse_document,
    resolve_classes,
    used_categories,
)
from construction_panoptic.annotations.formats.entry_rows import (
    Found,
    ListedImage,
    Options,
    Rules,
    check_annotations,
    image_row,
)
from construction_panoptic.annotations.formats.export_files import Export, find_exports
from construction_panoptic.annotations.images import ImageError
from construction_panoptic.annotations.rejected import RejectedRecords, compare_accounts, rejected_table
from construction_panoptic.annotations.tables import StoredTable, TableBuilder, TableWriter
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.errors import InputDataError, ParameterError
from construction_panoptic.parallel.workers import Engine, WorkerCount, Workers, blocks_of

OnError = Literal["quarantine", "fail"]
Boxes = Literal["reject", "keep"]
Crowds = Literal["keep", "single"]

_ENTRIES_AT_ONCE = 16
_IMAGE_COLUMNS = {
    "key": "string",
    "source": "string",
    "file_name": "string",
    "location": "string",
    "width": "int64",
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
    "segmentation": "string",
    "iscrowd": "int64",
    "order": "int64",
    "bbox": "string",
    "area": "float64",
}
_NAME_COLUMNS = {"source": "string", "annotation_id": "string"}


@dataclass(frozen=True)
class Exports:
    """What the exports hold.

    Attributes:
        images: one row an accepted image, sorted by ``key``: key, source, file_name (relative to
            ``images/``), location (absolute path, or ``<zip>::<member>``), width and height (upright,
            pixels), sha256, phash.
        accepted: one row an accepted annotation, sorted by ``key`` and ``order``: key, source,
            annotation_id, category_id, category, segmentation (JSON), iscrowd, order (position in the export;
            later is on top), bbox (JSON) and area (as in the export, where both may be missing, unless repaired).
        rejected: what was not accepted; columns source, image, annotation_id, reason, detail.
        repaired: what was accepted and changed, and images without annotations; the same columns.
        listed: source and annotation_id of every annotation in the exports, accepted or not.
    """

    images: pd.DataFrame
    accepted: StoredTable
    rejected: pd.DataFrame
    repaired: pd.DataFrame
    listed: StoredTable

    @property
    def annotations(self) -> pd.DataFrame:
        """All of ``accepted`` in memory."""
        return self.accepted.frame()

    @property
    def inputs(self) -> pd.DataFrame:
        """All of ``listed`` in memory."""
        return self.listed.frame()


def read_exports(
    raw_data: Path,
    taxonomy: Taxonomy,
    *,
    on_error: OnError = "quarantine",
    boxes_without_polygon: Boxes = "reject",
    crowds: Crowds = "keep",
    workers: WorkerCount = 1,
    engine: Engine = "local",
) -> Exports:
    """Read every export in a folder, one at a time: annotations wait in temporary files.

    Args:
        raw_data: holds one folder or ``.zip`` per export: ``coco.json`` or ``annotations/instances_*.json``,
            and ``images/``. An export that uses one category is that class, see
            `coco_entries.resolve_classes`.
        taxonomy: the project's classes.
        on_error: ``quarantine`` lists what cannot be used in ``rejected``; ``fail`` raises at the first.
        boxes_without_polygon: ``reject`` an annotation that has a box but no outline, or ``keep`` the box as its
            mask.
        crowds: ``keep`` what has ``iscrowd`` 1 as crowds, or take each as a ``single`` thing.
        workers: processes that check images and annotations, or "auto" for one a CPU core; 1: this process, with
            threads for the images. The result is the same with any number.
        engine: what runs these processes, see `parallel.Workers`.

    Raises:
        InputDataError: there is no export, or no image that can be used; or, in the ``fail`` mode, anything
            that would be rejected. Names the export, image and annotation.
        ParameterError: ``on_error`` has another value.
    """
    if on_error not in ("quarantine", "fail"):
        raise ParameterError(f"on_error must be 'quarantine' or 'fail', not {on_error!r}.")
    seen: set[str] = set()
    with Workers(workers, engine) as pool:
        rejected = RejectedRecords(fail=on_error == "fail")
        options = Options(keep_boxes=boxes_without_polygon == "keep", keep_crowds=crowds == "keep")
        reader = _Reader(taxonomy, rejected, pool, options)
        # In the order of the keys that their images get, so that the tables need not be sorted as a whole.
        for export in sorted(find_exports(Path(raw_data)), key=lambda export: f"{export.source}/"):
            reader.read(export, repeated=export.source in seen)
            seen.add(export.source)
    return reader.exports(Path(raw_data))


@dataclass(frozen=True)
class _File:
    """An annotation file of an export; ``unused`` says why nothing in it is used."""

    name: str
    document: Document
    unused: EntryError | None

    @property
    def subset(self) -> str:
        return PurePosixPath(self.name).stem.removeprefix("instances_") if "/" in self.name else ""


class _Reader:
    def __init__(self, taxonomy: Taxonomy, rejected: RejectedRecords, workers: Workers, options: Options) -> None:
        self._workers = workers
        self._taxonomy = taxonomy
        self._rejected = rejected
        self._repaired = RejectedRecords(fail=False)
        self._options = options
        self._images = TableBuilder(_IMAGE_COLUMNS)
        self._annotations = TableWriter(_ANNOTATION_COLUMNS)
        self._names = TableWriter(_NAME_COLUMNS)
        self._begin()

    def _begin(self) -> None:
        """Begin an export."""
        self._of_image: dict[str, dict[str, Any]] = {}
        self._accepted = TableBuilder(_ANNOTATION_COLUMNS)
        self._listed = TableBuilder(_NAME_COLUMNS)
        self._listed_images: dict[tuple[str, str], bool] = {}
        self._lost: Counter[str] = Counter()

    def _end(self) -> None:
        """Put what is in an export to the rest."""
        annotations = self._accepted.table().sort_values(["key", "order"])
        self._annotations.append(annotations)
        self._names.append(self._listed.table())
        self._list_bare_images(set(annotations["key"].unique()))
        for key in sorted(self._of_image):
            self._images.add(self._of_image[key])
        self._rejected.check_images(listed for listed, accepted in self._listed_images.items() if not accepted)

    def exports(self, raw_data: Path) -> Exports:
        rejected, images = self._rejected.records, self._images.table()
        if images.empty:
            examples = "; ".join(f"{r.source} {r.image}: {r.detail} ({r.reason})" for r in rejected[:5])
            raise InputDataError(f"{raw_data}: not one image can be used. {examples}.")
        exports = Exports(
            images,
            self._annotations.table(),
            rejected_table(rejected),
            rejected_table(self._repaired.records),
            self._names.table(),
        )
        compare_accounts(exports.listed, exports.accepted, exports.rejected)
        return exports

    def _list_bare_images(self, annotated: set[str]) -> None:
        for key in sorted(self._of_image.keys() - annotated):
            why = (
                f"all of its {self._lost[key]} annotations are rejected" if self._lost[key] else "it has no annotation"
            )
            detail = f"{why}; kept as an image of stuff alone"
            self._repaired.add(self._of_image[key]["source"], key, None, "image_without_annotations", detail)

    def read(self, export: Export, *, repeated: bool) -> None:
        """Read one export; ``repeated``: one of the same name was read before, so this one is not used."""
        self._begin()
        files = self._open_files(export, repeated)
        used = set().union(*(used_categories(file.document) for file in files if file.unused is None))
        classes = resolve_classes(used, export.source, self._taxonomy)
        order = 0
        for file in files:
            images = self._read_images(export, file)
            rules = Rules(file.unused, file.document.categories, classes, self._options)
            entries = (
                (annotation_label(entry, place), entry, _image_of(entry, images))
                for place, entry in enumerate(file.document.annotations(), order)
            )
            ids: set[int | str] = set()
            for checked in self._workers.map(partial(check_annotations, rules), blocks_of(entries, _ENTRIES_AT_ONCE)):
                for label, name, found in checked:
                    self._take(export.source, order, label, name, _repeated() if label in ids else found)
                    ids.add(label)
                    order += 1
        self._end()

    def _take(self, source: str, order: int, label: int | str, name: str, found: Found) -> None:
        """Put an annotation and what was changed in it into the tables, or among the rejected."""
        self._listed.add({"source": source, "annotation_id": str(label)})
        if isinstance(found, Exception):
            self._lost[name] += 1
            self._rejected.add(source, name, label, found.reason, str(found))
            return
        row, repairs = found
        names = {"source": source, "category": self._taxonomy.names[row["category_id"]]}
        self._accepted.add(row | names | {"order": order})
        for reason, detail in repairs:
            self._repaired.add(source, row["key"], label, reason, detail)

    def _open_files(self, export: Export, repeated: bool) -> list[_File]:
        try:
            names = export.annotation_files()
        except ImageError as error:
            self._rejected.add(export.source, "", None, error.reason, str(error))
            return []
        if not names:
            detail = f"{export.path} has neither coco.json nor annotations/instances_*.json"
            self._rejected.add(export.source, "", None, "no_annotation_file", detail)
        files = []
        for name in names:
            try:
                document = parse_document(partial(export.open, name))
            except (EntryError, ImageError) as error:
                self._rejected.add(export.source, "", None, "unreadable_json", f"{name}: {error}")
                continue
            if not document.images:
                self._rejected.add(export.source, "", None, "no_images", f"{name} lists no image")
            files.append(_File(name, document, _why_unused(name, names, document, repeated)))
        return files

    def _read_images(self, export: Export, file: _File) -> dict[int, ListedImage]:
        """Check the images of a file, accept or reject each, and return them by their id in the file."""
        images: dict[int, ListedImage] = {}
        entries: dict[int, ImageEntry] = {}
        for entry in file.document.images or []:
            name = entry.get("file_name") if isinstance(entry, dict) else None
            key = f"{export.source}/{name}" if isinstance(name, str) else ""
            number = as_id(entry.get("id")) if isinstance(entry, dict) else None
            self._listed_images.setdefault((export.source, key), False)
            try:
                if file.unused is not None:
                    raise file.unused
                checked = check_image_entry(entry)
                if entries.setdefault(checked.id, checked) != checked:
                    raise EntryError("duplicate_image_id", f"another image has the id {checked.id} too")
            except EntryError as error:
                self._rejected.add(export.source, key, None, error.reason, str(error))
                if number is not None:
                    images[number] = ListedImage(key, problem=error)
        for number, problem in [(n, image.problem) for n, image in images.items()]:
            # Annotations of an id that stands for two images could belong to either.
            first = entries.pop(number, None)
            if first is not None and problem is not None:
                key = f"{export.source}/{first.file_name}"
                self._rejected.add(export.source, key, None, "duplicate_image_id", str(problem))
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            pool = threads if self._workers.inline else self._workers
            rows = pool.map(partial(image_row, export, file.subset), entries.values())
            for entry, row in zip(entries.values(), rows, strict=True):
                if isinstance(row, dict):
                    self._of_image.setdefault(row["key"], row)
                    self._listed_images[export.source, f"{export.source}/{entry.file_name}"] = True
                    images[entry.id] = ListedImage(row["key"], entry.width, entry.height)
                else:
                    key = f"{export.source}/{entry.file_name}"
                    self._rejected.add(export.source, key, None, row.reason, str(row))
                    images[entry.id] = ListedImage(key, problem=row)
        return images


def _why_unused(name: str, names: list[str], document: Document, repeated: bool) -> EntryError | None:
    if repeated:
        return EntryError("duplicate_export", "a folder or archive of the same name was read already; remove one")
    if names[0] == "coco.json" and name != "coco.json":
        return EntryError("second_annotation_file", f"{name} is not used beside coco.json; remove one of them")
    if document.category_ids is None:
        return EntryError("no_annotations", f"{name} has no list `annotations`; export it from CVAT again")
    return None


def _image_of(entry: Any, images: dict[int, ListedImage]) -> ListedImage | None:
    number = as_id(entry.get("image_id")) if isinstance(entry, dict) else None
    return None if number is None else images.get(number)


def _repeated() -> EntryError:
    return EntryError("duplicate_annotation_id", "an annotation before it has the same id")
