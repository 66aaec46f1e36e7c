"""The published way to merge masks into a panoptic segmentation, step by step, with whole-image operations.

DETR, section 4.4: the class probabilities choose the queries, a softmax and argmax over their masks chooses
each pixel's query, masks of one stuff class are merged, and segments of a few pixels are removed and the
choice made again. The result goes through a colour picture that is resized, as the published tool's does.
"""

from collections.abc import Mapping
from io import BytesIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

TINY_AREA = 4


def merge_masks(
    masks: Tensor,
    labels: list[int],
    *,
    processed_size: tuple[int, int],
    target_size: tuple[int, int],
    is_thing: Mapping[int, bool],
) -> tuple[np.ndarray, bytes]:
    """Merge the masks of the kept queries of one image.

    Args:
        masks: float [K, h, w], logits, at least one.
        labels: category of each.
        processed_size: (height, width) of the image as the model saw it.
        target_size: (height, width) of the result.
        is_thing: by category, whether it is a thing.

    Returns:
        int64 [H, W], 1, 2, … for the segments in the order of their first queries, and its PNG.
    """
    logits = F.interpolate(masks[:, None], size=processed_size, mode="bilinear", align_corners=False)[:, 0].flatten(1)
    queries = list(range(len(labels)))
    while True:
        first_of_query = _first_of_each_segment([labels[query] for query in queries], is_thing)
        chosen = logits[queries].transpose(0, 1).softmax(-1).argmax(-1).view(*processed_size)
        for place, first in enumerate(first_of_query):
            chosen.masked_fill_(chosen.eq(place), first)
        ids = _resized(chosen, target_size)
        areas = [int(np.equal(ids, place).sum()) for place in range(len(queries))]
        large = [areas[first] > TINY_AREA for first in first_of_query]
        if all(large):
            break
        queries = [query for query, is_large in zip(queries, large, strict=True) if is_large]
    numbers = {first: number for number, first in enumerate(sorted(set(first_of_query)), 1)}
    numbered = np.zeros_like(ids)
    for first, number in numbers.items():
        numbered[ids == first] = number
    stream = BytesIO()
    Image.fromarray(_colours(numbered)).save(stream, format="PNG")
    return numbered, stream.getvalue()


def _first_of_each_segment(labels: list[int], is_thing: Mapping[int, bool]) -> list[int]:
    return [place if is_thing[label] else labels.index(label) for place, label in enumerate(labels)]


def _resized(chosen: Tensor, target_size: tuple[int, int]) -> np.ndarray:
    picture = Image.fromarray(_colours(chosen.cpu().numpy()))
    picture = picture.resize((target_size[1], target_size[0]), Image.Resampling.NEAREST)
    colours = np.asarray(picture).astype(np.int64)
    return colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]


def _colours(ids: np.ndarray) -> np.ndarray:
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)


def keep(logits: Tensor, threshold: float) -> tuple[Tensor, list[int]]:
    """Queries [K] of one image, from logits [Q, C + 1], that are sure of a class, and their labels."""
    scores, labels = logits.softmax(-1).max(-1)
    kept = labels.ne(logits.shape[-1] - 1) & (scores > threshold)
    return kept.nonzero()[:, 0], [int(label) for label in labels[kept]]


def threshold_for(logits: Tensor, count: int) -> float:
    """A threshold that keeps ``count`` of the queries of one image, logits [Q, C + 1], none of them no-object."""
    scores = torch.sort(logits.softmax(-1).max(-1).values, descending=True).values
    return float((scores[count - 1] + scores[count]) / 2)
