"""From the network's maps to segments: each pixel of a thing goes to the centre nearest to where it points.

Pixel y of the image is at (y + 0.5) / 4 - 0.5 on the axis of the cells.
"""

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from construction_panoptic.config.model import GroupingSettings
from construction_panoptic.models.panoptic_deeplab.network import SEMANTIC_STRIDE, STRIDE
from construction_panoptic.models.protocol import Segmentation

_CHUNK = 2**22
"""Numbers that a temporary tensor holds at most, or a row's."""


@torch.no_grad()
def group(
    semantic: Tensor,
    center: Tensor,
    offset: Tensor,
    *,
    size: tuple[int, int],
    is_thing: Mapping[int, bool],
    settings: GroupingSettings,
) -> Segmentation:
    """Group the pixels of one image (Cheng et al. 2020, section 3.2).

    A pixel's class is that of its highest logit. Where it is a thing's, the pixel goes to the nearest centre, and all
    pixels of a centre get the class that most of them have. Pixels of things in an image without a centre, and groups
    smaller than the least area, are void. A segment's score is the mean probability of its class in it, for a thing
    times its centre's heat. Memory: a few numbers a pixel, beside the maps, and what `_CHUNK` says.

    ``semantic``, float [C, H / 2, W / 2], are logits, ``center``, float [H / 4, W / 4], logits of the heat, ``offset``
    is float [2, H / 4, W / 4], (down, right) in cells; sizes are rounded up, padding may follow. ``size`` is (H, W) of
    the image as the network saw it, without padding, and that of the result. Classes that are not in ``is_thing`` are
    never predicted.
    """
    device, (height, width) = center.device, size
    categories = sorted(is_thing)
    semantic = semantic[categories, : _cells(height, SEMANTIC_STRIDE), : _cells(width, SEMANTIC_STRIDE)].float()
    h, w = _cells(height, STRIDE), _cells(width, STRIDE)
    center, offset = center[:h, :w].float(), offset[:, :h, :w].float()
    centers = find_centers(center, settings.center_threshold, settings.center_window)
    heat = center.sigmoid()[centers[:, 0], centers[:, 1]]

    # Groups are numbered: those of the centres, then the stuff of each class, then void.
    classes = pixel_classes(semantic, size).flatten()
    numbers, void = classes + len(centers), len(centers) + len(categories)
    things = torch.tensor([is_thing[category] for category in categories], device=device)[classes].nonzero()[:, 0]
    class_of = torch.arange(len(categories), device=device)
    if len(centers):
        numbers[things] = nearest_centers(_pointed_at(offset, size, things), centers)
        votes = (numbers[things] * len(categories) + classes[things]).bincount(minlength=len(centers) * len(categories))
        class_of = torch.cat([votes.reshape(len(centers), -1).argmax(1), class_of])
    else:
        numbers[things] = void

    areas = numbers.bincount(minlength=void + 1)[:void]
    scores = _probability_sum(semantic, numbers, class_of, size) / areas.clamp(min=1)
    scores[: len(centers)] *= heat
    least = torch.full_like(scores, settings.min_stuff_area * height * width)
    least[: len(centers)] = settings.min_thing_area * height * width
    kept = ((areas > 0) & (areas >= least)).nonzero()[:, 0]
    renumbered = torch.zeros(void + 1, dtype=torch.int32, device=device)
    renumbered[kept] = torch.arange(1, len(kept) + 1, dtype=torch.int32, device=device)
    labels = [categories[place] for place in class_of[kept].tolist()]
    segments = [
        {"id": number, "isthing": is_thing[label], "area": area, "category_id": label, "score": score}
        for number, label, area, score in zip(
            range(1, len(kept) + 1), labels, areas[kept].tolist(), scores[kept].tolist(), strict=True
        )
    ]
    return Segmentation(renumbered[numbers].reshape(size).cpu().numpy(), segments)


def find_centers(center: Tensor, threshold: float, window: int) -> Tensor:
    """Cells int64 [K, 2], (row, column), hotter than ``threshold`` and than all others of their window.

    ``center`` float [h, w] are logits of the heat; the ``window``'s side is odd.
    """
    hottest = F.max_pool2d(center[None], window, stride=1, padding=window // 2)[0]
    return ((center == hottest) & (center.sigmoid() > threshold)).nonzero()


def nearest_centers(points: Tensor, centers: Tensor) -> Tensor:
    """Index int64 [P] of the centre [K, 2] nearest to each point [P, 2]; of several the first."""
    rows, columns = centers.to(points.dtype).T
    return torch.cat(
        [
            (part[:, :1] - rows).square_().add_((part[:, 1:] - columns).square_()).argmin(1)
            for part in points.split(max(1, _CHUNK // len(centers)))
        ]
    )


def pixel_classes(semantic: Tensor, size: tuple[int, int]) -> Tensor:
    """Index int64 [H, W] of each pixel's highest logit; ``semantic`` [C, H / 2, W / 2] is enlarged (bilinear)."""
    # max, not argmax: the same index, several times faster on a CPU.
    return torch.cat([strip.max(0).indices for strip in _enlarged(semantic, SEMANTIC_STRIDE, size)])


def _enlarged(maps: Tensor, stride: int, size: tuple[int, int]) -> Iterator[Tensor]:
    """Maps [C, h, w] enlarged by ``stride``, cut to ``size``, in strips of some rows."""
    height, width = size
    rows = max(1, _CHUNK // (len(maps) * width * stride))
    for first in range(0, maps.shape[1], rows):
        # With a row more on either side, where there is one, a strip is what it is in the whole.
        before, last = min(first, 1), min(first + rows, maps.shape[1])
        part = maps[None, :, first - before : last + 1]
        full = F.interpolate(part, scale_factor=stride, mode="bilinear", align_corners=False)[0]
        yield full[:, before * stride :][:, : min(last * stride, height) - first * stride, :width]


def _pointed_at(offset: Tensor, size: tuple[int, int], pixels: Tensor) -> Tensor:
    """Where pixels (indices [P] of the flattened image) point, float [P, 2], cells."""
    moved = torch.cat(list(_enlarged(offset, STRIDE, size)), dim=1).flatten(1)[:, pixels]
    places = torch.stack([pixels // size[1], pixels % size[1]])
    return (moved + (places + 0.5) / STRIDE - 0.5).T.contiguous()


def _probability_sum(semantic: Tensor, numbers: Tensor, class_of: Tensor, size: tuple[int, int]) -> Tensor:
    """Sum float64 [N] over each group of the probability of its class; a pixel has that of its cell."""
    w = semantic.shape[2]
    rows = max(1, _CHUNK // (len(semantic) * w))
    total = torch.cat([part.logsumexp(0) for part in semantic.split(rows, dim=1)]).flatten()
    row, column = (torch.arange(side, device=numbers.device) // SEMANTIC_STRIDE for side in size)
    known = (numbers < len(class_of)).nonzero()[:, 0]
    cell = (row[:, None] * w + column).flatten()[known]
    own = numbers[known]
    probability = (semantic.flatten()[class_of[own] * len(total) + cell] - total[cell]).exp()
    return own.bincount(weights=probability, minlength=len(class_of))


def _cells(length: int, stride: int) -> int:
    return -(-length // stride)
