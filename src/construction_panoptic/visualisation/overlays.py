"""Segments and boxes drawn over photographs, and what this takes of a taxonomy."""

import colorsys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import find_objects, maximum_filter, minimum_filter

from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.errors import InputDataError
from construction_panoptic.evaluation.quality import check_keys
from construction_panoptic.evaluation.segments import positions
from construction_panoptic.visualisation.labels import LabelPlacer, draw_text, label_size, load_font, text_size

Color = tuple[int, int, int]


@dataclass(frozen=True)
class ClassTable:
    """A plain table of classes, for label sets other than the project's taxonomy."""

    names: Mapping[int, str]
    colors: Mapping[int, Color]
    is_thing: Mapping[int, bool]

    @classmethod
    def from_categories(cls, categories: Iterable[Mapping[str, Any]]) -> "ClassTable":
        """Read COCO's ``categories``; `InputDataError`: one lacks ``id``, ``name``, ``isthing`` or ``color``."""
        names, colors, is_thing = {}, {}, {}
        for category in categories:
            needed = "a category of a COCO panoptic file"
            check_keys(category, ("id", "name", "isthing", "color"), f"category {category}", needed)
            names[category["id"]] = category["name"]
            red, green, blue = category["color"]
            colors[category["id"]] = (red, green, blue)
            is_thing[category["id"]] = bool(category["isthing"])
        return cls(names, colors, is_thing)


Classes = ClassTable | Taxonomy
"""Names, colours (RGB, 0 to 255) and kinds by category id."""


def display_name(name: str) -> str:
    """Give a class name as people read it: ``wheel_loader`` is shown as ``wheel loader``."""
    return name.replace("_", " ").strip() or name


def legend_entries(segments: Iterable[Mapping[str, Any]], classes: Classes) -> list[tuple[str, Color]]:
    """List the classes of ``segments`` once each, things first, as (shown name, colour)."""
    ids = {int(segment["category_id"]) for segment in segments} & classes.names.keys()
    order = sorted(ids, key=lambda i: (not classes.is_thing[i], classes.names[i]))
    return [(display_name(classes.names[i]), classes.colors[i]) for i in order]


Picture = NDArray[np.uint8]

MIN_SIDE = 384  # pixels; a shorter side is enlarged, for names to be readable
BORDER_COLOR: Color = (255, 255, 255)
# How far the colour of a class's 2nd, 3rd … instance goes towards white (> 0) or black (< 0).
INSTANCE_SHADES = (0.0, 0.3, -0.25, 0.42, -0.4, 0.15, -0.12)


def panoptic_overlay(
    image: Picture,
    id_map: NDArray[np.integer[Any]],
    segments: Sequence[Mapping[str, Any]],
    classes: Classes,
    *,
    alpha: float = 0.5,
    max_side: int = 1600,
    hatch_void: bool = True,
) -> Picture:
    """Draw a panoptic segmentation over its image, uint8 [H, W, 3] RGB; gives uint8 [h, w, 3] with names and scores.

    Each segment has its class's colour, by the weight ``alpha``; further instances of a thing class are lighter or
    darker, borders are white, and void is grey, with diagonal lines if ``hatch_void``. See `display_size` for
    ``max_side``, in pixels.

    ``id_map``, integer [H, W], is the segment id of each pixel, 0 = void; ``segments`` have ``id``, ``category_id`` and
    optionally ``score`` (0 to 1) and ``iscrowd``. `InputDataError`: sizes differ, an id of the map has no segment, or a
    category is not in ``classes``.
    """
    _check_image(image)
    if id_map.shape != image.shape[:2]:
        raise InputDataError(f"image and id map must be of one size, not {image.shape[:2]} and {id_map.shape}")
    _check_categories((int(segment["category_id"]) for segment in segments), classes)
    places = positions(id_map, segments)
    if (unknown := np.unique(id_map[(places == 0) & (id_map != 0)])).size:
        raise InputDataError(f"the id map has ids {unknown[:5].tolist()} that no segment describes")
    base = _resized(image, max_side)
    height, width, _ = base.shape
    index = np.asarray(Image.fromarray(places.astype(np.int32)).resize((width, height), Image.Resampling.NEAREST))

    colors = np.array([(0, 0, 0), *segment_colors(segments, classes)], dtype=np.float32)
    blended = base * np.float32(1 - alpha) + colors[index] * np.float32(alpha)
    picture = np.where((index == 0)[..., None], _pale(base, hatch_void), blended).round().astype(np.uint8)
    picture[_borders(index, width=1 if max(height, width) < 700 else 2)] = BORDER_COLOR
    return _with_names(picture, index, segments, classes)


def boxes_overlay(
    image: Picture, boxes: Iterable[Mapping[str, Any]], classes: Classes, *, max_side: int = 1600
) -> Picture:
    """Draw COCO boxes (``bbox``, ``category_id``, optionally ``score``) with names; else as `panoptic_overlay`."""
    _check_image(image)
    # Weak boxes first, so that the strongest lie on top.
    boxes = sorted(boxes, key=lambda box: box.get("score", 0))
    _check_categories((box["category_id"] for box in boxes), classes)
    picture = Image.fromarray(_resized(image, max_side))
    scale = np.array([picture.width / image.shape[1], picture.height / image.shape[0]] * 2)
    draw = ImageDraw.Draw(picture)
    size = max(11, round(label_size(*picture.size) * 0.75))
    line = max(2, size // 7)
    corners = []
    for box in boxes:
        x, y, box_width, box_height = box["bbox"]
        corners.append(tuple(scale * (x, y, x + box_width, y + box_height)))
        if box_width >= 0 and box_height >= 0:
            draw.rectangle(corners[-1], outline=classes.colors[box["category_id"]], width=line)
    for box, place in zip(boxes, corners, strict=True):  # after all boxes, so that none crosses a name
        text = _with_score(display_name(classes.names[box["category_id"]]), box.get("score"))
        _draw_tag(draw, place, text, classes.colors[box["category_id"]], size)
    return np.asarray(picture)


def display_size(height: int, width: int, max_side: int) -> tuple[int, int]:
    """Height and width at which an image is shown: of `MIN_SIDE` at least, but above all of ``max_side`` at most."""
    scale = min(max(1.0, MIN_SIDE / min(height, width)), max_side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _resized(image: Picture, max_side: int) -> Picture:
    height, width = display_size(image.shape[0], image.shape[1], max_side)
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0))


def segment_colors(segments: Sequence[Mapping[str, Any]], classes: Classes) -> list[Color]:
    """Colour of each segment: its class's, made lighter or darker from a thing class's second instance on."""
    seen: Counter[int] = Counter()
    colors = []
    for segment in segments:
        category = int(segment["category_id"])
        color = classes.colors[category]
        if classes.is_thing[category]:
            color = _shaded(color, seen[category])
            seen[category] += 1
        colors.append(color)
    return colors


def _shaded(color: Color, instance: int) -> Color:
    shade = INSTANCE_SHADES[instance % len(INSTANCE_SHADES)]
    hue, lightness, saturation = colorsys.rgb_to_hls(*(channel / 255 for channel in color))
    # What is nearly black has no darker neighbour, what is nearly white no lighter one.
    if shade < 0 and lightness < 0.3:
        shade = 0.35 - shade
    elif shade > 0 and lightness > 0.75:
        shade = -0.35 - shade
    lightness += shade * (1 - lightness if shade > 0 else lightness)
    red, green, blue = (round(255 * channel) for channel in colorsys.hls_to_rgb(hue, lightness, saturation))
    return red, green, blue


def _check_image(image: Picture) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputDataError(f"an image must be uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")


def _check_categories(categories: Iterable[int], classes: Classes) -> None:
    if unknown := sorted(set(categories) - classes.names.keys()):
        raise InputDataError(f"category ids {unknown} are not in the taxonomy, so they have no name or colour")


def _pale(base: Picture, hatched: bool) -> NDArray[np.float32]:
    """The image in pale grey, under diagonal lines if ``hatched``."""
    grey = base.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    grey = grey * np.float32(0.5) + np.float32(60)
    height, width = grey.shape
    period = max(8, round(label_size(width, height) * 0.7))
    diagonal = np.add.outer(np.arange(height), np.arange(width)) % period
    if hatched:
        grey[diagonal < max(1, period // 7)] += np.float32(50)
    return np.repeat(grey[..., None], 3, axis=2)


def _borders(index: NDArray[np.int32], width: int) -> NDArray[np.bool_]:
    """Mark the pixels along borders: width 1 marks one side of each, 2 both, and so on outwards."""
    size, origin = width + 1, -(width % 2)
    return maximum_filter(index, size, origin=origin) != minimum_filter(index, size, origin=origin)


def _with_names(
    picture: Picture, index: NDArray[np.int32], segments: Sequence[Mapping[str, Any]], classes: Classes
) -> Picture:
    size = label_size(*index.shape)
    placer = LabelPlacer(np.zeros(index.shape, dtype=bool), size, smallest=max(10, round(0.55 * size)))
    places = find_objects(index, max_label=len(segments))
    areas = np.bincount(index.ravel(), minlength=len(segments) + 1)[1:]
    result = Image.fromarray(picture)
    draw = ImageDraw.Draw(result)
    # Small segments have little choice, so they come first; large ones keep clear of them.
    for k in np.argsort(areas, kind="stable"):
        if (box := places[k]) is None:
            continue
        segment, offset = segments[k], (box[1].start, box[0].start)
        text = display_name(classes.names[int(segment["category_id"])]) + " (crowd)" * bool(segment.get("iscrowd"))
        label = placer.place(index[box] == k + 1, offset, _with_score(text, segment.get("score")))
        if label is not None:
            draw_text(draw, label.center, label.text, load_font(label.size))
    return np.asarray(result)


def _with_score(text: str, score: float | None) -> str:
    return text if score is None else f"{text} {score:.0%}"


def _draw_tag(draw: ImageDraw.ImageDraw, box: tuple[float, ...], text: str, color: Color, size: int) -> None:
    """Write ``text`` on a plate of the box's colour, above the box or, where there is no room, inside it."""
    font = load_font(size)
    width, height = text_size(text, font)
    limits = draw.im.size
    left = min(max(box[0], 0), max(limits[0] - width, 0))
    top = box[1] - height if box[1] >= height else max(box[1], 0)
    top = min(top, limits[1] - height)
    draw.rectangle((left, top, left + width, top + height), fill=color)
    ink = "white" if 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] < 140 else "black"
    draw.text((left + width / 2, top + height / 2), text, ink, font, anchor="mm")
