"""One image: its things laid over its stuff, as a panoptic segmentation."""

from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from operator import itemgetter
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from construction_panoptic.annotations.images import normalise_image
from construction_panoptic.annotations.merging.masks import pixel_runs
from construction_panoptic.annotations.merging.segment_shapes import run_starts, segment_shapes
from construction_panoptic.annotations.panoptic_png import encode_id_map
from construction_panoptic.annotations.records import ConvertedImage, ConvertedRecord, Rejected, Segment
from construction_panoptic.annotations.stuff.label_maps import decode_labels
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.errors import InputDataError

Overlap = Literal["last_on_top", "smallest_on_top", "fail"]
_LONGEST_STEM = 150
METHOD = 4  # raised when the same input is to give another result, so that nothing finished before is kept


class MergeTask(NamedTuple):
    """An image to convert, and where the result belongs."""

    image: dict[str, Any]  # its row of the table of images
    annotations: list[dict[str, Any]]  # its rows of the table of annotations
    stuff: bytes | None  # its labelled stuff, see `label_maps.encode_labels`; None: there is none
    stem: str  # of the names of the converted files
    digest: str = ""  # of all that the result is made from
    finished: ConvertedRecord | None = None  # what an earlier run has made of the same


class _Region(NamedTuple):
    """An annotation on its way into the id map; ``area`` is that of its own mask, in pixels."""

    annotation_id: int
    category_id: int
    is_thing: bool
    iscrowd: int
    area: int
    counts: bytes


def merge_image(
    taxonomy: Taxonomy, overlap: Overlap, overlap_stuff: Overlap, task: MergeTask
) -> ConvertedImage | ConvertedRecord:
    """Lay an image's annotated things over its annotated stuff, and that over its labelled stuff.

    Each stuff class is one segment, and each thing is one; a pixel that nothing covers is void. Segment ids count from
    1: stuff by class id, then things from the lowest layer up. Area and box are those of the visible pixels.
    ``overlap`` says which of two things is on top, ``overlap_stuff`` which of two annotations of stuff.
    ``last_on_top``: the later annotation in the export covers the earlier, as CVAT draws it; ``smallest_on_top``: the
    smaller mask covers the larger (of equal ones, the later); ``fail``, of things alone: no two may share a pixel.

    An annotation that others cover completely is in ``rejected`` as ``fully_hidden``, a crowd that became part of
    another of its class as ``joined_crowd``. Of a finished image the record alone is given. Runs in other processes.
    Raises `InputDataError`, which names the image: stuff labels of another size or of unknown classes, an annotation of
    an unknown class, things that overlap where they may not, an image file that cannot be read.
    """
    if task.finished is not None:
        return task.finished
    image, stem = task.image, task.stem
    key, source = str(image["key"]), str(image["source"])
    height, width = int(image["height"]), int(image["width"])
    rows = sorted(task.annotations, key=itemgetter("order"))
    regions = [_region(row, key, (height, width), taxonomy) for row in rows]
    stuff, things = ([region for region in regions if region.is_thing == kind] for kind in (False, True))
    for group, order in ((stuff, overlap_stuff), (things, overlap)):
        if order == "smallest_on_top":
            group.sort(key=lambda region: -region.area)
    regions = stuff + things
    labels = None if task.stuff is None else decode_labels(task.stuff)
    classes, layers = _stuff_layers(labels, key, (height, width), taxonomy, stuff, len(regions))
    first_region, first_thing = len(classes) + 1, len(classes) + len(stuff) + 1
    _paint(layers, regions, first_region, first_thing if overlap == "fail" else None, key)
    shown = _join(layers, regions, classes, first_region)
    layers = layers.reshape(width, height).T

    shapes = segment_shapes(layers)
    ids = {layer: number for number, layer in enumerate(shapes, start=1)}  # of the visible layers
    segments, rejected = [], []
    for layer, class_id in enumerate(classes, start=1):
        if layer in ids:
            parts = [region.annotation_id for region, at in zip(stuff, shown, strict=False) if at == layer]
            segments.append(Segment(ids[layer], class_id, *shapes[layer], 0, None, tuple(parts)))
    for layer, (region, at) in enumerate(zip(regions, shown, strict=True), start=first_region):
        number = region.annotation_id
        if at is None or at not in ids:
            detail = "annotations above it cover all of its pixels"
            rejected.append(Rejected(source, key, number, "fully_hidden", detail))
        elif at == layer:
            segments.append(Segment(ids[at], region.category_id, *shapes[at], region.iscrowd, number))
        elif region.is_thing:
            crowd = regions[at - first_region].annotation_id
            detail = f"its pixels are in the crowd of annotation {crowd}; an image has one crowd of a class"
            rejected.append(Rejected(source, key, number, "joined_crowd", detail))

    normalised = normalise_image(image["location"])
    if (normalised.width, normalised.height) != (width, height):
        raise InputDataError(f"image {key!r}: {image['location']} has changed since its export was read.")
    if len(ids) < len(classes) + len(regions):
        number_of = np.zeros(len(classes) + len(regions) + 1, dtype=layers.dtype)
        number_of[list(ids)] = list(ids.values())
        layers = number_of[layers]
    png = encode_id_map(layers)
    record = ConvertedRecord(
        key=key,
        stem=stem,
        image_file=stem + normalised.suffix,
        width=width,
        height=height,
        segments=segments,
        void_pixels=layers.size - sum(shape.area for shape in shapes.values()),
        rejected=rejected,
        phash=str(image["phash"]),
        png_sha256=sha256(png).hexdigest(),
    )
    return ConvertedImage(record, png, image=normalised.content, digest=task.digest)


def _region(row: Mapping[str, Any], key: str, size: tuple[int, int], taxonomy: Taxonomy) -> _Region:
    number, class_id, counts = int(row["annotation_id"]), int(row["category_id"]), row["rle"].encode()
    if class_id not in taxonomy.is_thing:
        raise InputDataError(f"image {key!r}, annotation {number}: the category id {class_id} is not in the taxonomy.")
    area = int(coco_mask.area({"size": list(size), "counts": counts}))
    return _Region(number, class_id, taxonomy.is_thing[class_id], int(row["iscrowd"]), area, counts)


def _stuff_layers(
    labels: NDArray[np.uint8] | None,
    key: str,
    size: tuple[int, int],
    taxonomy: Taxonomy,
    annotated: Sequence[_Region],
    above: int,
) -> tuple[list[int], NDArray[np.unsignedinteger]]:
    """Return the stuff classes of an image, labelled or annotated, and a layer number for each pixel.

    Layers are numbered from 1 in the order of the classes, 0 is void. They are given column by column, as masks are
    coded, in an integer type that has room for ``above`` more.
    """
    present: set[int] = set()
    if labels is not None:
        if labels.shape != size:
            raise InputDataError(f"image {key!r}: its stuff labels are {list(labels.shape)}, not {list(size)}.")
        flat = labels.ravel()
        present = {*flat[run_starts(flat)].tolist()} - {0}  # labels come in long runs
        if unknown := [label for label in sorted(present) if taxonomy.is_thing.get(label, True)]:
            raise InputDataError(f"image {key!r}: its stuff labels hold {unknown}, which are no stuff classes.")
    classes = sorted(present.union(region.category_id for region in annotated))
    dtype = np.min_scalar_type(len(classes) + above)
    if labels is None:
        return classes, np.zeros(size[0] * size[1], dtype=dtype)
    layer_of_label = bytearray(256)
    for layer, class_id in enumerate(classes, start=1):
        layer_of_label[class_id] = layer
    columns = labels.tobytes(order="F").translate(layer_of_label)
    return classes, np.frombuffer(columns, dtype=np.uint8).astype(dtype)


def _paint(
    layers: NDArray[np.unsignedinteger], regions: list[_Region], first: int, first_thing: int | None, key: str
) -> None:
    """Paint regions over what is there, the first of them lowest; things may overlap if ``first_thing`` is None."""
    for layer, region in enumerate(regions, start=first):
        runs = pixel_runs(region.counts)
        if first_thing is not None and region.is_thing:
            covered = max(int(layers[run].max()) for run in runs)
            if covered >= first_thing:
                other = regions[covered - first].annotation_id
                raise InputDataError(
                    f"image {key!r}: the annotations {other} and {region.annotation_id} overlap. Separate "
                    "them in CVAT, or choose the overlap 'last_on_top' or 'smallest_on_top'."
                )
        for run in runs:
            layers[run] = layer


def _join(
    layers: NDArray[np.unsignedinteger], regions: list[_Region], classes: list[int], first: int
) -> list[int | None]:
    """Join annotated stuff to the segment of its class, and the crowds of a class to one: panopticapi knows one alone.

    Gives the layer that has the pixels of each region now; None for stuff that has none.
    """
    crowds: dict[int, int] = {}
    joined: list[int | None] = []
    for layer, region in enumerate(regions, start=first):
        if not region.is_thing:
            joined.append(classes.index(region.category_id) + 1)
        else:
            joined.append(crowds.setdefault(region.category_id, layer) if region.iscrowd else layer)
    if joined == list(range(first, first + len(regions))):
        return joined
    visible = np.bincount(layers, minlength=first + len(regions))[first:] > 0
    layers[...] = np.array([*range(first), *joined], dtype=layers.dtype)[layers]
    return [at if region.is_thing or seen else None for at, region, seen in zip(joined, regions, visible, strict=True)]


def unique_stems(keys: Sequence[str]) -> dict[str, str]:
    """Return a file name stem for each image key: the key without suffix, ``/`` as ``__``.

    Where stems would be the same, on file systems that ignore case or how accented letters are written too, or too
    long, a part of the key's SHA-256 is appended. A stem depends on such clashes alone, not on the order of the keys.
    """
    plain = {key: key.removesuffix(PurePosixPath(key).suffix).replace("/", "__") for key in keys}
    alike = {stem: normalize("NFC", stem).casefold() for stem in plain.values()}
    counts = Counter(alike[stem] for stem in plain.values())
    stems = {}
    for key, stem in plain.items():
        start = stem.encode()[:_LONGEST_STEM].decode(errors="ignore")
        clear = counts[alike[stem]] == 1 and start == stem
        stems[key] = stem if clear else f"{start}__{sha256(key.encode()).hexdigest()[:12]}"
    return stems
