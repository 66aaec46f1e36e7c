"""From masks of queries to the panoptic segmentation, pixel by pixel (DETR, section 4.4)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from construction_panoptic.models.protocol import Segmentation, nearest_index

# Segments of at most this many pixels of the final image are left out.
TINY_AREA = 4


def keep_queries(logits: Tensor, threshold: float = 0.85) -> tuple[Tensor, Tensor, Tensor]:
    """Of ``logits`` [Q, C + 1] choose the queries whose best class is an object with a probability above ``threshold``
    (DETR's for panoptic segmentation); gives their indices, ascending, scores and labels, [K] each.
    """
    scores, labels = logits.float().softmax(-1).max(-1)
    kept = ((labels != logits.shape[-1] - 1) & (scores > threshold)).nonzero()[:, 0]
    return kept, scores[kept], labels[kept]


def likely_queries(logits: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """As `keep_queries`, but by the best class other than no-object, even where no-object is likelier."""
    scores, labels = logits.float().softmax(-1)[:, :-1].max(-1)
    kept = (scores > threshold).nonzero()[:, 0]
    return kept, scores[kept], labels[kept]


@dataclass(frozen=True)
class QueryMasks:
    """Of the kept queries of one image mask logits, float [K, h, w], without padding; class probabilities [K]; and
    labels, int64 [K].
    """

    masks: Tensor
    scores: Tensor
    labels: Tensor

    def select(self, used: Tensor | list[int]) -> "QueryMasks":
        """The queries where ``used``, bool [K], is true, or of these indices."""
        return QueryMasks(self.masks[used], self.scores[used], self.labels[used])


@torch.no_grad()
def panoptic_result(
    queries: QueryMasks, *, processed_size: Sequence[int], target_size: Sequence[int], is_thing: Mapping[int, bool]
) -> Segmentation:
    """Merge the masks of the kept queries of one image into a panoptic segmentation.

    Sizes are (height, width): ``processed_size`` is the image's as the model saw it, without padding, ``target_size``
    the result's. A query whose label is not in ``is_thing`` takes no part.

    The logits are upsampled to ``processed_size`` (bilinear), each pixel goes to the query with the highest
    one, all queries of one stuff class form one segment. A segment with at most 4 pixels at ``target_size``
    is dropped with its queries, its pixels go to the best of those that remain, and so on until there is
    none. The ids are then resized to ``target_size`` (nearest, on PIL's grid). Every pixel belongs to a
    segment; where no query is kept or none remains, every pixel is void and there is no segment. Gives the segments in
    the order of their first query, without boxes; a stuff segment has its queries' highest score.

    Memory: the upsampled logits, 4 · K · h · w bytes on the masks' device, and on the host 4 bytes a pixel of
    the target.
    """
    known = [query for query, label in enumerate(queries.labels.tolist()) if label in is_thing]
    if not known:
        return Segmentation(np.zeros(tuple(target_size), dtype=np.int32), [])
    queries = queries.select(known)
    categories, scores = queries.labels.tolist(), queries.scores.tolist()
    height, width = processed_size
    rows, columns = nearest_index(height, target_size[0]), nearest_index(width, target_size[1])
    # How many pixels of the result each processed pixel becomes.
    copies = np.outer(np.bincount(rows, minlength=height), np.bincount(columns, minlength=width)).ravel()
    logits = upsampled(queries.masks, (height, width)).flatten(1)
    first: dict[int, int] = {}  # query of a class
    # For each query the first query of its segment: of its class for stuff, itself for things.
    groups = np.array(
        [k if is_thing[category] else first.setdefault(category, k) for k, category in enumerate(categories)]
    )
    winners, areas = _assign_pixels(logits, groups, copies)

    ids = np.zeros(len(categories), dtype=np.int32)
    segments = []
    for number, leader in enumerate(np.flatnonzero(areas).tolist(), 1):
        members = np.flatnonzero(groups == leader)
        ids[members] = number
        score = max(scores[member] for member in members)
        segments.append(segment_record(number, categories[leader], is_thing, areas[leader], score))
    id_map = ids[winners].reshape(height, width).take(columns, axis=1).take(rows, axis=0)
    return Segmentation(id_map, segments)


def segment_record(number: int, category: int, is_thing: Mapping[int, bool], area: int, score: float) -> dict[str, Any]:
    """One of `Segmentation.segments`."""
    thing = bool(is_thing[category])
    return {"id": number, "category_id": category, "isthing": thing, "area": int(area), "score": score}


def upsampled(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask logits [K, h, w] brought to ``size``, bilinear, float32."""
    return F.interpolate(masks[:, None].float(), size=size, mode="bilinear", align_corners=False)[:, 0]


def _assign_pixels(logits: Tensor, groups: np.ndarray, copies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the winning query of each pixel, int [P], without tiny segments, and the area of each segment at the index
    of its first query, int [K]; all areas are 0 where no segment remains. ``copies`` [P] counts a pixel's copies.
    """
    count = len(groups)
    # max, not argmax: the same index, several times faster on a CPU.
    winners = logits.max(0).indices.cpu().numpy()
    alive = np.ones(count, dtype=bool)
    while True:
        of_query = np.bincount(winners, weights=copies, minlength=count)
        areas = np.bincount(groups, weights=of_query, minlength=count).astype(np.int64)
        tiny = alive & (areas[groups] <= TINY_AREA)
        if not tiny.any():
            return winners, areas
        alive &= ~tiny
        if not alive.any():
            return winners, np.zeros_like(areas)
        # The others keep their pixels: their logit is still the highest.
        lost = np.flatnonzero(tiny[winners])
        rest = np.flatnonzero(alive)
        contest = logits[torch.from_numpy(rest)[:, None], torch.from_numpy(lost)]
        winners[lost] = rest[contest.max(0).indices.cpu().numpy()]
