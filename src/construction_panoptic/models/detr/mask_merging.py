"""Mask-wise merging: whole masks by falling quality, instead of each pixel to the highest mask.

Source: Li et al., "Panoptic SegFormer", CVPR 2022 (arXiv 2109.03814), section 3.4.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from construction_panoptic.models.detr.postprocess import TINY_AREA, QueryMasks, segment_record, upsampled
from construction_panoptic.models.protocol import Segmentation

LEAST_PROBABILITY = 0.2
"""Class probability of a query that takes part, exclusive."""
LEAST_FREE = (0.4, 0.2)
"""Least fraction of the mask of a thing, of stuff, that masks of higher quality leave free."""
CHUNK_PIXELS = 16_000_000
"""Upsampled mask pixels at a time: 64 MB in float32, and about three times as much on the way."""


@torch.no_grad()
def merged_masks(
    queries: QueryMasks,
    *,
    processed_size: Sequence[int],
    target_size: Sequence[int],
    is_thing: Mapping[int, bool],
    least_quality: tuple[float, float],
) -> Segmentation:
    """Merge the masks of the queries of one image into a panoptic segmentation, mask by mask.

    The logits are upsampled to ``processed_size`` (bilinear). A query's mask is where its probability is at least 0.5;
    its quality is the class probability times the mean probability inside the mask. From the highest quality down, a
    query takes the pixels of its mask that are still free, unless its quality (least for things, for stuff:
    ``least_quality``) or the free fraction is too low. A thing is one query, the queries of one stuff class are one
    segment, whose score is their highest quality. The ids are then resized to ``target_size`` (nearest, on PIL's grid),
    and segments of at most 4 pixels become void, as do the pixels that nobody took. The other arguments are those of
    `panoptic_result`.

    Memory: a byte for each pixel of each query with enough quality, and `CHUNK_PIXELS`.
    """
    height, width = processed_size
    ids = np.zeros(height * width, dtype=np.int32)
    segments: list[dict[str, Any]] = []
    stuff_segment: dict[int, int] = {}
    for mask, category, quality in _by_quality(queries, (height, width), is_thing, least_quality):
        free = mask & (ids == 0)
        if np.count_nonzero(free) < LEAST_FREE[not is_thing[category]] * np.count_nonzero(mask):
            continue
        segment = None if is_thing[category] else stuff_segment.get(category)
        if segment is None:
            segment = stuff_segment[category] = len(segments) + 1
            segments.append(segment_record(segment, category, is_thing, 0, quality))
        ids[free] = segment
    found = Segmentation(ids.reshape(height, width), segments)
    return found.resized((target_size[0], target_size[1]), least_area=TINY_AREA + 1)


def _by_quality(
    queries: QueryMasks, size: tuple[int, int], is_thing: Mapping[int, bool], least_quality: tuple[float, float]
) -> list[tuple[np.ndarray, int, float]]:
    """Give mask (bool [P]), category and quality of the queries that have enough quality, the highest first."""
    found: list[tuple[np.ndarray, int, float]] = []
    labels = queries.labels.tolist()
    known = [query for query, label in enumerate(labels) if label in is_thing]
    step = max(1, CHUNK_PIXELS // (size[0] * size[1]))
    for start in range(0, len(known), step):
        chunk = known[start : start + step]
        logits = upsampled(queries.masks[chunk], size)
        inside = (logits >= 0).flatten(1)
        certainty = (logits.sigmoid().flatten(1) * inside).sum(1) / inside.sum(1).clamp(min=1)
        qualities = (queries.scores[chunk] * certainty).tolist()
        for number, (query, quality) in enumerate(zip(chunk, qualities, strict=True)):
            category = labels[query]
            if quality > 0 and quality >= least_quality[not is_thing[category]]:
                found.append((inside[number].cpu().numpy(), category, quality))
    return sorted(found, key=lambda entry: -entry[2])
