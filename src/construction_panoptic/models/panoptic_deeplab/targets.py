"""What Panoptic-DeepLab shall learn of a batch, from its maps of segment ids."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from construction_panoptic.config.training import TargetSettings
from construction_panoptic.models.panoptic_deeplab.network import STRIDE

IGNORED = -100
"""Class of pixels that take no part: void, crowds, padding. It is what torch's cross-entropy ignores."""


@dataclass(frozen=True)
class Targets:
    """Targets of a batch, for images [B, 3, H, W] and maps of h = H / 4 by w = W / 4 cells, rounded up."""

    semantic: Tensor  # int64 [B, H, W], category ids, `IGNORED` where a pixel takes no part
    semantic_weight: Tensor  # float32 [B, H, W], more than 1 in small things
    center: Tensor  # float32 [B, h, w], heat of centres, 0…1
    center_weight: Tensor  # float32 [B, h, w], 1 where a cell takes part, else 0
    offset: Tensor  # float32 [B, 2, h, w], (down, right) to the centre of the cell's thing, cells; 0 without one
    offset_weight: Tensor  # float32 [B, h, w], 1 on things, else 0


@torch.no_grad()
def make_targets(
    segmentations: Sequence[Mapping[str, Tensor]], size: tuple[int, int], is_thing: Tensor, settings: TargetSettings
) -> Targets:
    """Make the targets of a batch (Cheng et al. 2020, section 3.1).

    A thing's centre is the mean of those of its pixels that are in the image. The Gaussian is around that place itself,
    not around the nearest cell. A cell belongs to the segment of the pixel in its middle.

    ``segmentations`` have of each image ``id_map`` int32 [height, width] and, for the segments that take part,
    ``segment_ids`` int64 [N] and ``labels`` int64 [N]; pixels of other ids are void or of crowds. ``size`` is (H, W) of
    the padded batch, ``is_thing`` bool [C], by category id.
    """
    # All segments of the batch are numbered from 1; 0 is what takes no part.
    numbers = torch.zeros(len(segmentations), *size, dtype=torch.int64, device=is_thing.device)
    labels, images, least = [numbers.new_full((1,), IGNORED)], [numbers.new_zeros(1)], [numbers.new_zeros(1)]
    count = 1
    for image, item in enumerate(segmentations):
        id_map, (ids, order) = item["id_map"], item["segment_ids"].sort()
        if len(ids):
            place = torch.searchsorted(ids, id_map.long()).clamp_(max=len(ids) - 1)
            numbers[image, : id_map.shape[0], : id_map.shape[1]] = (place + count) * (ids[place] == id_map)
        labels.append(item["labels"][order])
        images.append(torch.full_like(ids, image))
        least.append(torch.full_like(ids, math.ceil(settings.small_area * id_map.numel())))
        count += len(ids)
    label, image_of, least_area = torch.cat(labels), torch.cat(images), torch.cat(least)
    thing = is_thing[label.clamp(min=0)] & (label != IGNORED)

    flat = numbers.flatten()
    area = flat.bincount(minlength=count)
    centers = torch.stack([_sums(numbers, axis, count) for axis in (1, 2)]).div_(area.clamp(min=1)).float()  # [2, S]
    small = thing & (area < least_area)
    weight = torch.where(small, settings.small_weight, 1.0)

    cells = numbers[:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
    h, w = (-(-side // STRIDE) for side in size)
    cells = F.pad(cells, (0, w - cells.shape[2], 0, h - cells.shape[1]))  # a cell whose middle is outside has no part
    on_thing = thing[cells]
    place = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")).to(cells.device)
    offset = centers[:, cells].transpose(0, 1) - place
    seen = thing & (area > 0)
    return Targets(
        semantic=label[numbers],
        semantic_weight=weight[numbers],
        center=_heat(centers[:, seen], image_of[seen], (len(cells), h, w), settings.sigma),
        center_weight=(cells > 0).float(),
        offset=offset * on_thing[:, None],
        offset_weight=on_thing.float(),
    )


def _sums(numbers: Tensor, axis: int, count: int) -> Tensor:
    """Sum float64 [count] over each segment's pixels of their place on an axis, in cells."""
    place = (torch.arange(numbers.shape[axis], dtype=torch.float64, device=numbers.device) + 0.5) / STRIDE - 0.5
    shape = [-1 if dimension == axis else 1 for dimension in range(3)]
    return numbers.flatten().bincount(weights=place.view(shape).expand_as(numbers).flatten(), minlength=count)


def _heat(centers: Tensor, image: Tensor, shape: tuple[int, int, int], sigma: float) -> Tensor:
    """The highest of the Gaussians around the centres [2, K], each cut off at about three standard deviations."""
    _, h, w = shape
    reach = math.ceil(3 * sigma)
    window = torch.arange(-reach, reach + 1, device=centers.device)
    cells = centers.round().long()[..., None] + window  # [2, K, window]
    fall = ((cells - centers[..., None]).square() / (-2 * sigma**2)).exp()
    value = fall[0][:, :, None] * fall[1][:, None]
    rows, columns = cells[0][:, :, None], cells[1][:, None]
    inside = (rows >= 0) & (rows < h) & (columns >= 0) & (columns < w)
    index = (image[:, None, None] * h + rows) * w + columns
    heat = torch.zeros(shape, device=centers.device)
    heat.view(-1).scatter_reduce_(0, index[inside], value[inside], "amax")
    return heat
