"""Augmentation and resizing of a uint8 image, its boxes and its map of segment ids."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.random import Generator
from scipy.ndimage import find_objects
from torch import Tensor
from torchvision.ops import box_convert
from torchvision.transforms.v2 import functional as transforms
from torchvision.tv_tensors import BoundingBoxFormat

from construction_panoptic.config.training import AugmentationSettings
from construction_panoptic.models.preprocessing import resized_size


@dataclass(frozen=True)
class Annotated:
    """An image and what is known about it.

    Attributes:
        image: uint8 [3, H, W], RGB.
        boxes: float32 [N, 4], x1, y1, x2, y2 in pixels.
        labels: int64 [N], category ids.
        id_map: int32 [H, W], segment ids with 0 = void; None where only boxes are used.
        segment_ids: int64 [N], the segment of each box; None together with ``id_map``.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    id_map: Tensor | None = None
    segment_ids: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        height, width = self.image.shape[-2:]
        return int(height), int(width)


def resize(sample: Annotated, size: tuple[int, int]) -> Annotated:
    """Resize to ``size`` (height, width): the image bilinear with antialiasing, the id map nearest.

    Each pixel then has the segment that it would have if each segment's mask were resized by itself.
    """
    if size == sample.size:
        return sample
    image = transforms.resize_image(sample.image, list(size))
    boxes, _ = transforms.resize_bounding_boxes(sample.boxes, sample.size, list(size))
    # By way of float32, which holds every 24-bit id exactly.
    id_map = None if sample.id_map is None else transforms.resize_mask(sample.id_map, list(size))
    return replace(sample, image=image, boxes=boxes, id_map=id_map)


def flip(sample: Annotated) -> Annotated:
    """Mirror left and right."""
    boxes = transforms.horizontal_flip_bounding_boxes(sample.boxes, BoundingBoxFormat.XYXY, sample.size)
    id_map = None if sample.id_map is None else sample.id_map.flip(-1)
    return replace(sample, image=sample.image.flip(-1), boxes=boxes, id_map=id_map)


def crop(sample: Annotated, top: int, left: int, height: int, width: int) -> Annotated:
    """Cut out a region in pixels; boxes are clipped to it, segments without a part in it are dropped."""
    rows, columns = slice(top, top + height), slice(left, left + width)
    boxes = sample.boxes - torch.tensor([left, top, left, top], dtype=torch.float32)
    limits = torch.tensor([width, height, width, height], dtype=torch.float32)
    boxes = boxes.clamp(min=0).minimum(limits)
    id_map = None if sample.id_map is None else sample.id_map[rows, columns]
    return drop_empty(replace(sample, image=sample.image[:, rows, columns], boxes=boxes, id_map=id_map))


def drop_empty(sample: Annotated) -> Annotated:
    """Drop the objects whose box has no area or, where there is an id map, that have no pixel in it."""
    boxes = sample.boxes
    keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    segment_ids = sample.segment_ids
    if sample.id_map is not None and segment_ids is not None:
        keep &= torch.isin(segment_ids, _present(sample.id_map))
        segment_ids = segment_ids[keep]
    return replace(sample, boxes=boxes[keep], labels=sample.labels[keep], segment_ids=segment_ids)


def _present(id_map: Tensor) -> Tensor:
    # Segments are connected runs of pixels: one of each run leaves few values to sort.
    return torch.unique_consecutive(id_map.reshape(-1)).unique().long()


Others = Callable[[], Annotated]
"""Gives another sample of the data set, as it is on disk, drawn by the seed."""

Augmentation = Callable[[Annotated, Others, Generator], Annotated]
"""Gives the sample that takes the place of a sample; it may have parts of others.

Whatever it draws comes from the generator, which depends on seed, epoch and image.
"""


def build_augmentations(settings: AugmentationSettings, things: frozenset[int] = frozenset()) -> list[Augmentation]:
    """DETR's (section A.4), a flip, then a resize, or a resize, a crop and a resize; then what the settings add.

    ``things`` are the category ids of which copy-paste takes objects.
    """
    geometry = [partial(step, settings) for step in (random_flip, resize_and_crop, random_resize)]
    return [*geometry, partial(copy_paste, settings, things, geometry), partial(color_jitter, settings)]


def random_flip(settings: AugmentationSettings, sample: Annotated, _others: Others, random: Generator) -> Annotated:
    """Mirror left and right with a probability."""
    return flip(sample) if random.random() < settings.flip else sample


def resize_and_crop(settings: AugmentationSettings, sample: Annotated, _others: Others, random: Generator) -> Annotated:
    """With a probability, resize the shorter side and cut out a region, whose sides are the image's at most."""
    if random.random() >= settings.crop:
        return sample
    sample = resize(sample, resized_size(sample.size, int(random.choice(settings.first_sides))))
    height, width = sample.size
    smallest, largest = settings.crop_min, settings.crop_max
    crop_width = int(random.integers(min(smallest, width), min(width, largest), endpoint=True))
    crop_height = int(random.integers(min(smallest, height), min(height, largest), endpoint=True))
    top = int(random.integers(0, height - crop_height, endpoint=True))
    left = int(random.integers(0, width - crop_width, endpoint=True))
    return crop(sample, top, left, crop_height, crop_width)


def random_resize(settings: AugmentationSettings, sample: Annotated, _others: Others, random: Generator) -> Annotated:
    """Resize the shorter side to one of several, within the limit of the longer one."""
    return resize(sample, resized_size(sample.size, int(random.choice(settings.sides)), settings.max_side))


def color_jitter(settings: AugmentationSettings, sample: Annotated, _others: Others, random: Generator) -> Annotated:
    """Multiply brightness, contrast and saturation, each by a factor around 1."""
    strength, image = settings.color_jitter, sample.image
    if not strength:
        return sample
    for adjust in (transforms.adjust_brightness, transforms.adjust_contrast, transforms.adjust_saturation):
        image = adjust(image, float(random.uniform(1 - strength, 1 + strength)))
    return replace(sample, image=image)


def copy_paste(
    settings: AugmentationSettings,
    things: frozenset[int],
    geometry: Sequence[Augmentation],
    sample: Annotated,
    others: Others,
    random: Generator,
) -> Annotated:
    """With a probability, paste things of another image over this one (Ghiasi et al. 2020, arXiv 2012.07177).

    The other image goes through ``geometry`` first, so that its things come in another place and size. Each of them is
    taken with probability 1/2. It needs an id map.
    """
    if random.random() >= settings.copy_paste:
        return sample
    other = others()
    for augmentation in geometry:
        other = augmentation(other, others, random)
    is_thing = np.isin(other.labels.numpy(), list(things))
    return paste(sample, other, torch.from_numpy(is_thing & (random.random(len(is_thing)) < 0.5)))


def paste(sample: Annotated, other: Annotated, chosen: Tensor) -> Annotated:
    """Paste the ``chosen`` (bool [N]) objects of ``other`` over ``sample``, at the same place from the top left corner.

    What they hide is taken out of the id map; boxes become those of what can be seen.
    """
    if sample.id_map is None or sample.segment_ids is None or other.id_map is None or other.segment_ids is None:
        raise ValueError("copy-paste needs id maps")
    height, width = (min(sides) for sides in zip(sample.size, other.size, strict=True))
    region = (slice(height), slice(width))
    theirs, ours = other.id_map[region], _present(sample.id_map)
    chosen = chosen & torch.isin(other.segment_ids, _present(theirs))
    ids, labels = other.segment_ids[chosen], other.labels[chosen]
    if not len(ids):
        return sample
    # The lowest numbers that are free, for ids have 24 bits.
    numbers = torch.arange(1, len(ours) + len(ids) + 1)
    numbers = numbers[~torch.isin(numbers, ours)][: len(ids)]
    place = _places(theirs, ids)
    mask = place >= 0
    image, id_map = sample.image.clone(), sample.id_map.clone()
    image[:, *region] = torch.where(mask, other.image[:, *region], image[:, *region])
    id_map[region] = torch.where(mask, numbers[place].to(torch.int32), id_map[region])
    segment_ids, labels = torch.cat([sample.segment_ids, numbers]), torch.cat([sample.labels, labels])
    seen = torch.isin(segment_ids, _present(id_map))
    segment_ids = segment_ids[seen]
    return Annotated(image, segment_boxes(id_map, segment_ids), labels[seen], id_map, segment_ids)


def segment_boxes(id_map: Tensor, segment_ids: Tensor) -> Tensor:
    """Boxes float32 [N, 4] (x1, y1, x2, y2, pixels) of the segments of an id map [H, W]; each has a pixel."""
    regions = find_objects((_places(id_map, segment_ids) + 1).numpy(), len(segment_ids))
    return torch.tensor([[x.start, y.start, x.stop, y.stop] for y, x in regions], dtype=torch.float32)


def _places(id_map: Tensor, segment_ids: Tensor) -> Tensor:
    """Where each pixel's id is in ``segment_ids`` (at least one), int64 [H, W]; -1 where it is not."""
    ids, order = segment_ids.sort()
    place = torch.searchsorted(ids, id_map.long()).clamp_(max=len(ids) - 1)
    return torch.where(ids[place] == id_map, order[place], -1)


def normalised_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes [N, 4] from corners in pixels to centre and size (cx, cy, w, h) as fractions of ``size`` (h, w)."""
    height, width = size
    sides = torch.tensor([width, height, width, height], dtype=torch.float32)
    return box_convert(boxes, "xyxy", "cxcywh") / sides
