"""What datumaro reads: CVAT's own XML, LabelMe, Cityscapes, Pascal VOC and YOLO, each in a folder."""

import importlib.util
from collections import defaultdict
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from construction_panoptic.annotations.formats.reader import ListedImage, ListedObject, Refused
from construction_panoptic.annotations.formats.sources import Source
from construction_panoptic.annotations.records import UnusableError

FORMATS = ("cvat", "label_me", "cityscapes", "voc_instance_segmentation", "voc_detection", "yolo")
"""datumaro's names of the formats, in the order in which they are tried."""


class DatumaroReader:
    """The formats of `FORMATS`, by way of datumaro, which must be installed and holds an export in memory.

    Shapes of one class in one group of CVAT are one object, as in its COCO exports. Boxes are left out where the same
    image has outlines, if the format gives both of one object (Pascal VOC).
    """

    files = ("(with the extra `datumaro`, unpacked) CVAT XML, LabelMe, Cityscapes, Pascal VOC or YOLO",)

    def sniff(self, source: Source) -> bool:
        """Tell whether a source is a folder of one of `FORMATS`; never, without datumaro."""
        return _format_of(source) is not None

    def read(self, source: Source) -> Iterator[ListedImage | ListedObject | Refused]:
        """Give everything that a source lists, see `reader.AnnotationReader`."""
        from datumaro import AnnotationType, Dataset

        try:
            dataset = Dataset.import_from(str(source.folder), _format_of(source))
            items = list(dataset)
        except Exception as error:  # each format of datumaro raises what it likes
            yield Refused("unreadable_export", f"{source.path}: datumaro cannot read it ({error.__cause__ or error})")
            return
        names = [label.name for label in dataset.categories()[AnnotationType.label]]
        numbers = count(1)
        for item in items:
            image = _image(source, item)
            yield image
            for shapes in _objects(item.annotations, voc="voc" in dataset.format):
                yield _listed(shapes, next(numbers), image, names)


def _format_of(source: Source) -> str | None:
    if source.folder is None or importlib.util.find_spec("datumaro") is None:
        return None
    from datumaro import Environment

    found = Environment().detect_dataset(str(source.folder), depth=0)
    return next((name for name in FORMATS if name in found), None)


def _image(source: Source, item: Any) -> ListedImage:
    path, size = getattr(item.media, "path", None), getattr(item.media, "size", None)
    if not path or size is None:
        problem = UnusableError("missing_file", f"{source.path}: there is no readable image of {item.id!r}")
        return ListedImage(item.id, problem)
    if not Path(path).is_relative_to(source.folder or ""):
        return ListedImage(item.id, UnusableError("unsafe_path", f"{path} is outside of the export"))
    name = Path(path).relative_to(source.folder or "").as_posix()
    return ListedImage(name, None, width=size[1], height=size[0], places=(name,))


def _objects(annotations: list[Any], *, voc: bool) -> Iterator[list[Any]]:
    """Give the shapes of each object, from the lowest layer up."""
    shapes = sorted(annotations, key=lambda shape: getattr(shape, "z_order", 0))
    if voc and any(shape.type.name == "mask" for shape in shapes):
        shapes = [shape for shape in shapes if shape.type.name == "mask"]
    objects: dict[Any, list[Any]] = defaultdict(list)
    for position, shape in enumerate(shapes):
        grouped = shape.group and shape.type.name in ("polygon", "mask")
        objects[(shape.group, shape.label, shape.type.name) if grouped else position].append(shape)
    yield from objects.values()


def _listed(shapes: list[Any], number: int, image: ListedImage, names: list[str]) -> ListedObject:
    kind, first = shapes[0].type.name, shapes[0]
    fields: dict[str, Any] = {"iscrowd": int(any(shape.attributes.get("is_crowd", False) for shape in shapes))}
    if kind == "polygon":
        fields["segmentation"] = [list(shape.points) for shape in shapes]
    elif kind == "ellipse":
        fields["segmentation"] = [list(first.as_polygon())]
    elif kind == "mask":
        pixels = np.logical_or.reduce([shape.image for shape in shapes])
        code = coco_mask.encode(np.asfortranarray(pixels, dtype=np.uint8))
        fields["segmentation"] = {"size": code["size"], "counts": code["counts"].decode()}
    elif kind == "bbox":
        fields |= {"bbox": list(first.get_bbox()), "rotation": float(first.attributes.get("rotation", 0.0))}
    else:
        return ListedObject(number, image, UnusableError("no_segmentation", f"it is no region but a {kind}"))
    if first.label is None:
        return ListedObject(number, image, None, (), "it has no class", **fields)
    name = names[first.label]
    unknown = f"its class {name!r} is not in the taxonomy; add or rename it"
    return ListedObject(number, image, None, (name,), unknown, **fields)
