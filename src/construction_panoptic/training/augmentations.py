"""DETR's augmentation and resizing, on a uint8 image, its boxes and its map of segment ids.

The id map is transformed once with nearest-neighbour sampling, which gives every pixel the segment that it
would have if each segment's mask were transformed by itself. Random numbers come from the generator given,
never from a global one.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from construction_panoptic.config.training import AugmentationSettings
from construction_panoptic.models.preprocessing import evaluation_resize, normalise, resized_size

__all__ = ["evaluation_resize", "normalise", "resized_size"]


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
    """Resize to ``size`` (height, width): the image bilinear with antialiasing, the id map nearest."""
    height, width = sample.size
    if size == (height, width):
        return sample
    scale_x, scale_y = size[1] / width, size[0] / height
    image = transforms.resize(sample.image, list(size), InterpolationMode.BILINEAR, antialias=True)
    boxes = sample.boxes * torch.tensor([scale_x, scale_y, scale_x, scale_y])
    id_map = sample.id_map
    if id_map is not None:
        # float32 holds every 24-bit id exactly.
        pixels = torch.nn.functional.interpolate(id_map[None, None].float(), size=size, mode="nearest")
        id_map = pixels[0, 0].to(torch.int32)
    return replace(sample, image=image, boxes=boxes, id_map=id_map)


def flip(sample: Annotated) -> Annotated:
    """Mirror left and right."""
    _, width = sample.size
    boxes = sample.boxes[:, [2, 1, 0, 3]] * torch.tensor([-1.0, 1.0, -1.0, 1.0])
    boxes = boxes + torch.tensor([width, 0, width, 0], dtype=torch.float32)
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
    # Segments are connected runs of pixels: comparing neighbours first leaves few values to sort.
    flat = id_map.reshape(-1)
    starts = torch.ones(flat.shape, dtype=torch.bool)
    starts[1:] = flat[1:] != flat[:-1]
    return flat[starts].unique().long()


def random_crop(sample: Annotated, smallest: int, largest: int, random: np.random.Generator) -> Annotated:
    """Cut out a region with sides drawn between ``smallest`` and ``largest`` pixels, or the image's."""
    height, width = sample.size
    crop_width = int(random.integers(min(smallest, width), min(width, largest), endpoint=True))
    crop_height = int(random.integers(min(smallest, height), min(height, largest), endpoint=True))
    top = int(random.integers(0, height - crop_height, endpoint=True))
    left = int(random.integers(0, width - crop_width, endpoint=True))
    return crop(sample, top, left, crop_height, crop_width)


def augment(sample: Annotated, settings: AugmentationSettings, random: np.random.Generator) -> Annotated:
    """DETR's augmentation: a flip, then a resize, or a resize, a crop and a resize (section A.4).

    Objects that end up without an area, or without a pixel in the id map, are dropped.
    """
    if random.random() < settings.flip:
        sample = flip(sample)
    if random.random() < settings.crop:
        first = int(random.choice(settings.first_sides))
        sample = resize(sample, resized_size(sample.size, first))
        sample = random_crop(sample, settings.crop_min, settings.crop_max, random)
    side = int(random.choice(settings.sides))
    return drop_empty(resize(sample, resized_size(sample.size, side, settings.max_side)))


def normalised_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes [N, 4] from corners in pixels to centre and size (cx, cy, w, h) as shares of ``size`` (h, w)."""
    height, width = size
    shares = torch.tensor([width, height, width, height], dtype=torch.float32)
    return box_convert(boxes, "xyxy", "cxcywh") / shares
