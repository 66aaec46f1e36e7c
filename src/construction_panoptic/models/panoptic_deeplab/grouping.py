"""From the network's maps to segments: pixels go to the centre nearest to where they point."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from construction_panoptic.models.panoptic_deeplab.network import SEMANTIC_STRIDE, STRIDE
from construction_panoptic.models.panoptic_deeplab.settings import GroupingSettings

_CHUNK = 2**22
"""Numbers of a temporary tensor, at most or about."""


def cells(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Rows and columns of the map of an image of ``size``."""
    return -(-size[0] // stride), -(-size[1] // stride)


def find_centers(center: Tensor, threshold: float, window: int) -> Tensor:
    """Cells [K, 2], (row, column), that are the hottest of their window; ``center`` float [h, w], logits."""
    highest = F.max_pool2d(center[None], window, stride=1, padding=window // 2)[0]
    return ((center == highest) & (center.sigmoid() > threshold)).nonzero()


def nearest_centers(points: Tensor, centers: Tensor) -> Tensor:
    """Index int64 [P] of the centre [K, 2] nearest to each point [P, 2], in memory that does not grow with K P."""
    centers = centers.to(points.dtype)
    parts = [
        ((part[:, None, 0] - centers[:, 0]).square_() + (part[:, None, 1] - centers[:, 1]).square_()).min(1).indices
        for part in points.split(max(1, _CHUNK // max(1, len(centers))))
    ]
    return torch.cat(parts) if parts else points.new_zeros(0, dtype=torch.int64)


def enlarge(maps: Tensor, factor: int, size: tuple[int, int], rows: slice) -> Tensor:
    """The given rows of maps [C, h, w] enlarged by ``factor`` (bilinear) and cut to ``size``."""
    first, last = rows.start // factor, -(-rows.stop // STRIDE)
    before, after = max(0, first - 1), min(maps.shape[1], last + 1)
    part = F.interpolate(maps[None, :, before:after], scale_factor=factor, mode="bilinear", align_corners=False)[0]
    start = rows.start - before * factor
    return part[:, start : start + rows.stop - rows.start, : size[1]]


def pixel_classes(semantic: Tensor, size: tuple[int, int]) -> Tensor:
    """Class int64 [H, W] of the highest enlarged logit of each pixel."""
    height, width = size
    step = max(1, _CHUNK // (len(semantic) * width * SEMANTIC_STRIDE)) * SEMANTIC_STRIDE
    strips = [slice(start, min(start + step, height)) for start in range(0, height, step)]
    return torch.cat([enlarge(semantic, SEMANTIC_STRIDE, size, rows).max(0).indices for rows in strips])


@torch.no_grad()
def group(
    semantic: Tensor,
    center: Tensor,
    offset: Tensor,
    *,
    size: tuple[int, int],
    target_size: tuple[int, int],
    is_thing: Mapping[int, bool],
    settings: GroupingSettings,
) -> tuple[NDArray[np.int32], list[dict[str, Any]]]:
    """Segment one image.

    Args:
        semantic: float [C, h, w], logits.
        center: float [h, w], logits.
        offset: float [2, h, w], cells.
        size: (height, width) of the image as the network saw it, without padding.
        target_size: (height, width) of the result.
        is_thing: category id → is a thing; others are never predicted.
        settings: thresholds.
    """
    height, width = size
    h, w = cells(size, STRIDE)
    center, offset = center[:h, :w].float(), offset[:, :h, :w].float()
    h, w = cells(size, SEMANTIC_STRIDE)
    semantic = semantic[:, :h, :w].float()
    categories = sorted(is_thing)
    semantic = semantic[categories]
    of_thing = torch.tensor([is_thing[category] for category in categories], device=center.device)
    classes = pixel_classes(semantic, size).flatten()
    centers = find_centers(center, settings.center_threshold, settings.center_window)
    count = len(centers)

    # A segment's number: its centre's for a thing, after them the class's for stuff, then void.
    numbers = classes + count
    things = of_thing[classes].nonzero()[:, 0]
    void = count + len(categories)
    numbers[things] = nearest_centers(_targets_of(offset, size, things), centers) if count else void
    votes = torch.zeros(count * len(categories), dtype=torch.int64, device=center.device)
    if count:
        votes = (numbers[things] * len(categories) + classes[things]).bincount(minlength=len(votes))
    class_of = torch.cat([votes.reshape(count, len(categories)).max(1).indices if count else classes[:0], torch.arange(len(categories), device=center.device)])

    # A pixel's probability is that of its cell.
    rows, columns = torch.arange(height, device=center.device), torch.arange(width, device=center.device)
    cell = ((rows // SEMANTIC_STRIDE)[:, None] * w + columns // SEMANTIC_STRIDE).flatten()
    taken = numbers < void
    probability = semantic.softmax(0).flatten()[class_of[numbers[taken]] * (h * w) + cell[taken]]
    area = numbers.bincount(minlength=void + 1)[:void]
    total = numbers[taken].bincount(weights=probability, minlength=void)
    mean = total / area.clamp(min=1)
    heat = torch.cat([center.sigmoid()[centers[:, 0], centers[:, 1]], torch.ones(len(categories), device=center.device)])
    score = (mean * heat).tolist()
    least = torch.full((void,), settings.min_stuff_area * height * width)
    least[:count] = settings.min_thing_area * height * width
    kept = (area.cpu() >= least) & (area.cpu() > 0)

    ids = np.zeros(void + 1, dtype=np.int32)
    segments = []
    for number in kept.nonzero()[:, 0].tolist():
        category = categories[int(class_of[number])]
        ids[number] = len(segments) + 1
        segments.append(
            {"id": len(segments) + 1, "category_id": category, "isthing": is_thing[category], "score": score[number], "area": int(area[number])}
        )
    id_map = ids[numbers.cpu().numpy()].reshape(height, width)
    if size != target_size:
        r = ((np.arange(target_size[0]) + 0.5) * height / target_size[0]).astype(int)
        c = ((np.arange(target_size[1]) + 0.5) * width / target_size[1]).astype(int)
        id_map = id_map[r][:, c]
    return id_map, segments


def _targets_of(offset: Tensor, size: tuple[int, int], pixels: Tensor) -> Tensor:
    """Where the pixels (flat indices) point, [P, 2] in cells."""
    moved = enlarge(offset, STRIDE, size, slice(0, size[0])).flatten(1)[:, pixels]
    places = torch.stack([pixels // size[1], pixels % size[1]])
    return (moved + (places + 0.5) / STRIDE - 0.5).T.contiguous()
