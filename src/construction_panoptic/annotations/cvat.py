"""Reading CVAT's "COCO 1.0" exports into tables, with every image and annotation checked."""

import json
import os
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pandas as pd
from pycocotools import mask as coco_mask

from construction_panoptic.annotations.coco_entries import (
    Category,
    Document,
    EntryError,
    ImageEntry,
    annotation_label,
    as_id,
    check_annotation_entry,
    check_image_entry,
    parse_document,
    resolve_classes,
    used_categories,
)
from construction_panoptic.annotations.export_files import Export, find_exports
from construction_panoptic.annotations.images import ImageError, check_image
from construction_panoptic.annotations.masks import MaskError, plain_segmentation, segmentation_rle
from construction_panoptic.annotations.parallel import Engine, WorkerCount, Workers, blocks_of
from construction_panoptic.annotations.records import rejected_table
from construction_panoptic.annotations.rejected import RejectedRecords, compare_accounts
from construction_panoptic.annotations.repairs import Repair, box_outline, find_repairs
from construction_panoptic.annotations.tables import TableBuilder
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.errors import InputDataError, ParameterError

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


@dataclass(frozen=True)
class Exports:
    """What the exports hold.

    Attributes:
        images: one row an accepted image, sorted by ``key``: key, source, file_name (relative to
            ``images/``), location (absolute path, or ``<zip>::<member>``), width and height (upright,
            pixels), sha256, phash.
        annotations: one row an accepted annotation, sorted by ``key`` and ``order``: key, source,
            annotation_id, category_id, category, segmentation (JSON), iscrowd, order (position in the export;
            later is on top), bbox (JSON) and area (as in the export, where both may be missing, unless repaired).
        rejected: what was not accepted; columns source, image, annotation_id, reason, detail.
        repaired: what was accepted and changed, and images without annotations; the same columns.
        inputs: source and annotation_id of every annotation in the exports, accepted or not.
    """

    images: pd.DataFrame
    annotations: pd.DataFrame
    rejected: pd.DataFrame
    repaired: pd.DataFrame
    inputs: pd.DataFrame


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
    """Read every export in a folder.

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
        options = _Options(keep_boxes=boxes_without_polygon == "keep", keep_crowds=crowds == "keep")
        reader = _Reader(taxonomy, rejected, pool, options)
        for export in find_exports(Path(raw_data)):
            reader.read(export, repeated=export.source in seen)
            seen.add(export.source)
    return reader.exports(Path(raw_data))


@dataclass(frozen=True)
class _Options:
    """What becomes of annotations that can be read in two ways, see `read_exports`."""

    keep_boxes: bool
    keep_crowds: bool


@dataclass(frozen=True)
class _File:
    """An annotation file of an export; ``unused`` says why nothing in it is used."""

    name: str
    document: Document
    unused: EntryError | None

    @property
    def subset(self) -> str:
        return PurePosixPath(self.name).stem.removeprefix("instances_") if "/" in self.name else ""


@dataclass(frozen=True)
class _Image:
    """An entry of ``images`` and its key; ``problem`` says why it is not used."""

    key: str
    width: int = 0
    height: int = 0
    problem: EntryError | ImageError | None = None


@dataclass(frozen=True)
class _Rules:
    """What decides over the annotations of a file, apart from each itself and its image."""

    unused: EntryError | None
    categories: Mapping[int, str]
    classes: Mapping[Category, int | EntryError]
    options: _Options


_Entry = tuple[int | str, Any, _Image | None]
_Found = tuple[dict[str, Any], list[Repair]] | EntryError | ImageError | MaskError


class _Reader:
    def __init__(self, taxonomy: Taxonomy, rejected: RejectedRecords, workers: Workers, options: _Options) -> None:
        self._workers = workers
        self._taxonomy = taxonomy
        self._rejected = rejected
        self._repaired = RejectedRecords(fail=False)
        self._options = options
        self._images: dict[str, dict[str, Any]] = {}
        self._annotations = TableBuilder(_ANNOTATION_COLUMNS)
        self._inputs = TableBuilder({"source": "string", "annotation_id": "string"})
        self._listed_images: dict[tuple[str, str], bool] = {}

    def exports(self, raw_data: Path) -> Exports:
        rejected = self._rejected.records
        if not self._images:
            examples = "; ".join(f"{r.source} {r.image}: {r.detail} ({r.reason})" for r in rejected[:5])
            raise InputDataError(f"{raw_data}: not one image can be used. {examples}.")
        annotations = self._annotations.table().sort_values(["key", "order"], ignore_index=True)
        self._list_bare_images(set(annotations["key"].unique()))
        images = TableBuilder(_IMAGE_COLUMNS)
        for key in sorted(self._images):
            images.add(self._images[key])
        exports = Exports(
            images.table(),
            annotations,
            rejected_table(rejected),
            rejected_table(self._repaired.records),
            self._inputs.table(),
        )
        compare_accounts(exports.inputs, annotations, exports.rejected)
        self._rejected.check_images(listed for listed, accepted in self._listed_images.items() if not accepted)
        return exports

    def _list_bare_images(self, annotated: set[str]) -> None:
        rejected = Counter(record.image for record in self._rejected.records if record.annotation_id is not None)
        for key in sorted(self._images.keys() - annotated):
            why = f"all of its {rejected[key]} annotations are rejected" if rejected[key] else "it has no annotation"
            detail = f"{why}; kept as an image of stuff alone"
            self._repaired.add(self._images[key]["source"], key, None, "image_without_annotations", detail)

    def read(self, export: Export, *, repeated: bool) -> None:
        """Read one export; ``repeated``: one of the same name was read before, so this one is not used."""
        files = self._open_files(export, repeated)
        used = set().union(*(used_categories(file.document) for file in files if file.unused is None))
        classes = resolve_classes(used, export.source, self._taxonomy)
        order = 0
        for file in files:
            images = self._read_images(export, file)
            rules = _Rules(file.unused, file.document.categories, classes, self._options)
            entries = (
                (annotation_label(entry, place), entry, _image_of(entry, images))
                for place, entry in enumerate(file.document.annotations(), order)
            )
            ids: set[int | str] = set()
            for checked in self._workers.map(partial(_check_annotations, rules), blocks_of(entries, _ENTRIES_AT_ONCE)):
                for label, name, found in checked:
                    self._take(export.source, order, label, name, _repeated() if label in ids else found)
                    ids.add(label)
                    order += 1

    def _take(self, source: str, order: int, label: int | str, name: str, found: _Found) -> None:
        """Put an annotation and what was changed in it into the tables, or among the rejected."""
        self._inputs.add({"source": source, "annotation_id": str(label)})
        if isinstance(found, Exception):
            self._rejected.add(source, name, label, found.reason, str(found))
            return
        row, repairs = found
        names = {"source": source, "category": self._taxonomy.names[row["category_id"]]}
        self._annotations.add(row | names | {"order": order})
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

    def _read_images(self, export: Export, file: _File) -> dict[int, _Image]:
        """Check the images of a file, accept or reject each, and return them by their id in the file."""
        images: dict[int, _Image] = {}
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
                    images[number] = _Image(key, problem=error)
        for number, problem in [(n, image.problem) for n, image in images.items()]:
            # Annotations of an id that stands for two images could belong to either.
            first = entries.pop(number, None)
            if first is not None and problem is not None:
                key = f"{export.source}/{first.file_name}"
                self._rejected.add(export.source, key, None, "duplicate_image_id", str(problem))
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            pool = threads if self._workers.inline else self._workers
            rows = pool.map(partial(_image_row, export, file.subset), entries.values())
            for entry, row in zip(entries.values(), rows, strict=True):
                if isinstance(row, dict):
                    self._images.setdefault(row["key"], row)
                    self._listed_images[export.source, f"{export.source}/{entry.file_name}"] = True
                    images[entry.id] = _Image(row["key"], entry.width, entry.height)
                else:
                    key = f"{export.source}/{entry.file_name}"
                    self._rejected.add(export.source, key, None, row.reason, str(row))
                    images[entry.id] = _Image(key, problem=row)
        return images


def _why_unused(name: str, names: list[str], document: Document, repeated: bool) -> EntryError | None:
    if repeated:
        return EntryError("duplicate_export", "a folder or archive of the same name was read already; remove one")
    if names[0] == "coco.json" and name != "coco.json":
        return EntryError("second_annotation_file", f"{name} is not used beside coco.json; remove one of them")
    if document.category_ids is None:
        return EntryError("no_annotations", f"{name} has no list `annotations`; export it from CVAT again")
    return None


def _image_row(export: Export, subset: str, entry: ImageEntry) -> dict[str, Any] | EntryError | ImageError:
    """Return an image's row of the table, or why it has none. Runs in threads or processes, so it changes nothing."""
    try:
        file_name, location = export.find_image(entry.file_name, subset)
        facts = check_image(location)
    except ImageError as error:
        return error
    if (facts.width, facts.height) != (entry.width, entry.height):
        turned = (facts.height, facts.width) == (entry.width, entry.height)
        detail = f"the image is {facts.width} x {facts.height} pixels upright, its annotations are for "
        detail += f"{entry.width} x {entry.height}" + (", as before its EXIF rotation" if turned else "")
        return EntryError("size_mismatch", detail)
    names = {"key": f"{export.source}/{file_name}", "source": export.source, "file_name": file_name}
    return names | {"location": location} | asdict(facts)


def _image_of(entry: Any, images: dict[int, _Image]) -> _Image | None:
    number = as_id(entry.get("image_id")) if isinstance(entry, dict) else None
    return None if number is None else images.get(number)


def _repeated() -> EntryError:
    return EntryError("duplicate_annotation_id", "an annotation before it has the same id")


def _check_annotations(rules: _Rules, block: list[_Entry]) -> list[tuple[int | str, str, _Found]]:
    """Return for each annotation its label, its image and its row or why it has none. Runs in processes."""
    checked: list[tuple[int | str, str, _Found]] = []
    for label, entry, image in block:
        found: _Found
        try:
            found = _annotation_row(entry, image, rules)
        except (EntryError, ImageError, MaskError) as error:
            found = error
        checked.append((label, "" if image is None else image.key, found))
    return checked


def _annotation_row(entry: Any, image: _Image | None, rules: _Rules) -> tuple[dict[str, Any], list[Repair]]:
    """Return an annotation's row, without source, category name and order, and what was changed in it.

    Raises:
        EntryError, ImageError, MaskError: it cannot be used; the error's ``reason`` is the code.
    """
    options = rules.options
    if rules.unused is not None:
        raise rules.unused
    checked = check_annotation_entry(entry)
    if image is None:
        raise EntryError("annotation_without_image", f"there is no image with its image_id {checked.image_id}")
    if image.problem is not None:
        raise image.problem
    if checked.category_id is None:
        raise EntryError("unknown_class", "its category_id is missing or not a whole number")
    class_id = rules.classes[checked.category_id, rules.categories.get(checked.category_id)]
    if isinstance(class_id, EntryError):
        raise class_id
    repairs = []
    if options.keep_boxes and not checked.segmentation and checked.bbox is not None and min(checked.bbox[2:]) > 0:
        checked = replace(checked, segmentation=box_outline(checked.bbox, entry.get("attributes")), bbox=None)
        repairs.append(("box_as_mask", "it has a box and no outline; the whole box is its mask"))
    if checked.iscrowd and not options.keep_crowds:
        checked = replace(checked, iscrowd=0)
        repairs.append(("crowd_as_single", "it is marked as a crowd; taken as a single thing"))
    code = segmentation_rle(checked.segmentation, image.height, image.width)
    repairs += find_repairs(checked, code, image.height, image.width)
    bbox, area = checked.bbox, checked.area
    if repairs:
        bbox, area = coco_mask.toBbox(code).astype(int).tolist(), float(coco_mask.area(code))
    row = {
        "key": image.key,
        "annotation_id": checked.id,
        "category_id": class_id,
        "segmentation": json.dumps(plain_segmentation(checked.segmentation)),
        "iscrowd": checked.iscrowd,
        "bbox": None if bbox is None else json.dumps(bbox),
        "area": float("nan") if area is None else area,
    }
    return row, repairs
