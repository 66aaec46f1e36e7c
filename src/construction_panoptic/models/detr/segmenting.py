"""Panoptic segmentation of a batch: masks for the kept queries only."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from construction_panoptic.models.detr.model import DetrPanoptic, PanopticFeatures
from construction_panoptic.models.detr.postprocess import PanopticResult, keep_queries, panoptic_result


@dataclass(frozen=True)
class QueryMasks:
    """The kept queries of one image.

    Attributes:
        masks: float32 [K, h, w], mask logits; h and w are a quarter of the processed size, rounded up.
        scores: float32 [K], class probabilities.
        labels: int64 [K].
    """

    masks: Tensor
    scores: Tensor
    labels: Tensor

    def select(self, used: Tensor) -> "QueryMasks":
        """The queries where ``used``, bool [K], is true."""
        return QueryMasks(self.masks[used], self.scores[used], self.labels[used])


def query_masks(
    model: DetrPanoptic,
    features: PanopticFeatures,
    *,
    processed_sizes: Sequence[tuple[int, int]],
    is_thing: Mapping[int, bool],
    threshold: float,
    keep: Callable[[Tensor, float], tuple[Tensor, Tensor, Tensor]] = keep_queries,
) -> list[QueryMasks]:
    """Compute the masks of the kept queries of each image of a batch; call it without gradients.

    ``processed_sizes`` are (height, width) of each image within its padding. ``keep``, `keep_queries` or
    `likely_queries`, chooses the queries with a class probability above ``threshold``; those whose label is not in
    ``is_thing`` are treated as no-object.
    """
    kept = [_known(keep(logits, threshold), is_thing) for logits in features.pred_logits]
    counts = [len(queries) for queries, _, _ in kept]
    batch_index = torch.arange(len(kept)).repeat_interleave(torch.tensor(counts)).to(features.queries.device)
    masks = model.masks(features, batch_index, torch.cat([queries for queries, _, _ in kept]))
    return [
        # A mask has a cell for each four pixels, the last of them may be partly padding.
        QueryMasks(logits[:, : -(-height // 4), : -(-width // 4)].float(), scores, labels)
        for logits, (height, width), (_, scores, labels) in zip(masks.split(counts), processed_sizes, kept, strict=True)
    ]


def segment_images(
    model: DetrPanoptic,
    images: Tensor,
    padding_mask: Tensor | None,
    *,
    processed_sizes: Sequence[tuple[int, int]],
    target_sizes: Sequence[tuple[int, int]],
    is_thing: Mapping[int, bool],
    threshold: float,
) -> tuple[list[PanopticResult], PanopticFeatures]:
    """Segment the images of a batch as published, pixel by pixel, each at its target size; see `query_masks`.

    Gives the segmentation of each image, and the
    model's features with logits and boxes of all queries.
    """
    features = model.features(images, padding_mask)
    found = query_masks(model, features, processed_sizes=processed_sizes, is_thing=is_thing, threshold=threshold)
    results = [
        panoptic_result(
            queries.masks,
            queries.scores,
            queries.labels,
            processed_size=processed,
            target_size=target,
            is_thing=is_thing,
        )
        for queries, processed, target in zip(found, processed_sizes, target_sizes, strict=True)
    ]
    return results, features


def _known(kept: tuple[Tensor, Tensor, Tensor], is_thing: Mapping[int, bool]) -> tuple[Tensor, Tensor, Tensor]:
    queries, scores, labels = kept
    chosen = torch.isin(labels, torch.tensor(sorted(is_thing), dtype=labels.dtype, device=labels.device))
    return queries[chosen], scores[chosen], labels[chosen]
