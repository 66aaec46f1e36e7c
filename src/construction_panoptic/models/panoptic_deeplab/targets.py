"""What the network shall learn of a batch, from its maps of segment ids."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from construction_panoptic.models.panoptic_deeplab.network import STRIDE

IGNORED = -100
"""Semantic target of pixels that take no part: void, crowds, padding; what torch's cross-entropy ignores."""


@dataclass(frozen=True)
class Targets:
    """Targets of a batch; h and w are H / 4 and W / 4, rounded up.

    Attributes:
        semantic: int64 [B, H, W], category ids, `IGNORED` where a pixel takes no part.
        semantic_weight: float32 [B, H, W], more than 1 in small things.
        center: float32 [B, h, w], heat of centres, 0…1.
        center_weight: float32 [B, h, w], 0 or 1.
        offset: float32 [B, 2, h, w], (down, right) to the centre of the cell's thing, cells; 0 elsewhere.
        offset_weight: float32 [B, h, w], 1 on things.
    """

    semantic: Tensor
    semantic_weight: Tensor
    center: Tensor
    center_weight: Tensor
    offset: Tensor
    offset_weight: Tensor


@torch.no_grad()
def make_targets(
    segmentations: Sequence[Mapping[str, Tensor]],
    size: tuple[int, int],
    is_thing: Tensor,
    *,
    sigma: float = 1.5,
    small_area: float = 0.01,
    small_weight: float = 3.0,
) -> Targets:
    """Make the targets of a batch.

    A centre is the mean of a thing's pixels that are in the image, as published; the Gaussian is around that place
    itself, not around the nearest cell. A cell belongs to the segment of its middle pixel.

    Args:
        segmentations: one an image, each with ``id_map`` int32 [height, width] and, for the segments that take part,
            ``segment_ids`` int64 [N] and ``labels`` int64 [N]. Ids that are not among them are void or crowds.
        size: (H, W) of the padded batch.
        is_thing: bool [num_classes].
        sigma: standard deviation of the Gaussians, cells.
        small_area: fraction of the image below which a thing is small.
        small_weight: weight of a small thing's pixels.
    """
    count, (height, width), device = len(segmentations), size, is_thing.device
    segments, labels, starts, areas = [], [], [0], []
    index_map = torch.zeros(count, height, width, dtype=torch.int64, device=device)  # 0: takes no part
    for image, item in enumerate(segmentations):
        ids, order = item["segment_ids"].sort()
        id_map = item["id_map"]
        found = torch.searchsorted(ids, id_map.long()).clamp(max=max(len(ids) - 1, 0)) if len(ids) else None
        if found is not None:
            known = ids[found] == id_map
            rows, columns = id_map.shape
            index_map[image, :rows, :columns] = torch.where(known, found + starts[-1] + 1, 0)
        labels.append(item["labels"][order])
        areas.append(torch.full((len(ids),), small_area * id_map.numel(), device=device))
        segments.append(torch.full((len(ids),), image, device=device))
        starts.append(starts[-1] + len(ids))
    nothing = torch.tensor([IGNORED], device=device)
    label = torch.cat([nothing, *labels])  # by index
    thing = torch.cat([nothing < IGNORED, is_thing[label[1:]]])
    image_of = torch.cat([nothing, *segments])
    smallest = torch.cat([torch.zeros(1, device=device), *areas])

    # Centres, in cells: pixel y is at (y + 0.5) / 4 - 0.5.
    flat = index_map.flatten()
    area = flat.bincount(minlength=len(label)).float()
    by_row = (index_map + len(label) * torch.arange(height, device=device)[:, None]).flatten()
    by_column = (index_map + len(label) * torch.arange(width, device=device)).flatten()
    rows = _mean_place(by_row, height, len(label), area)
    columns = _mean_place(by_column, width, len(label), area)
    center = torch.stack([rows, columns])  # [2, S]

    weight = torch.where(thing & (area < smallest), small_weight, 1.0)
    cells = index_map[:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
    h, w = -(-height // STRIDE), -(-width // STRIDE)
    if cells.shape[1:] != (h, w):  # the last cell's middle lies outside
        cells = torch.nn.functional.pad(cells, (0, w - cells.shape[2], 0, h - cells.shape[1]))
    on_thing = thing[cells]
    place = torch.stack(torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij"))
    offset = (center[:, cells].transpose(0, 1) - place) * on_thing[:, None]
    seen = thing & (area > 0)
    return Targets(
        semantic=label[index_map],
        semantic_weight=weight[index_map],
        center=_heat(center[:, seen], image_of[seen], (count, h, w), sigma),
        center_weight=(cells > 0).float(),
        offset=offset,
        offset_weight=on_thing.float(),
    )


def _mean_place(by_place: Tensor, places: int, count: int, area: Tensor) -> Tensor:
    pixels = by_place.bincount(minlength=places * count).reshape(places, count).float()
    middles = (torch.arange(places, device=area.device) + 0.5) / STRIDE - 0.5
    return middles @ pixels / area.clamp(min=1)


def _heat(center: Tensor, image: Tensor, shape: tuple[int, int, int], sigma: float) -> Tensor:
    """The highest of the Gaussians around the centres [2, K], each cut off at three standard deviations."""
    _, h, w = shape
    reach = math.ceil(3 * sigma)
    window = torch.arange(-reach, reach + 1, device=center.device)
    rows, columns = (center.round().long()[:, :, None] + window).unbind()  # [K, window]
    fall = (torch.stack([rows, columns]) - center[:, :, None]).square().div(-2 * sigma**2).exp()
    inside = (((rows >= 0) & (rows < h))[:, :, None] & ((columns >= 0) & (columns < w))[:, None]).float()
    value = fall[0][:, :, None] * fall[1][:, None] * inside
    index = (image[:, None, None] * h + rows.clamp(0, h - 1)[:, :, None]) * w + columns.clamp(0, w - 1)[:, None]
    heat = torch.zeros(shape, device=center.device)
    heat.view(-1).scatter_reduce_(0, index.flatten(), value.flatten(), "amax")
    return heat
