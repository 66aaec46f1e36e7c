"""Panoptic segmentation of a batch: masks for the kept queries only."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from construction_panoptic.detr.model import DetrPanoptic, PanopticFeatures
from construction_panoptic.detr.postprocess import PanopticResult, keep_queries, panoptic_result


def segment_images(
    model: DetrPanoptic,
    images: Tensor,
    padding_mask: Tensor | None,
    *,
    processed_sizes: Sequence[tuple[int, int]],
    target_sizes: Sequence[tuple[int, int]],
    is_thing: Mapping[int, bool],
    threshold: float,
    choose: Callable[[int, Tensor, Tensor], Tensor] | None = None,
) -> tuple[list[PanopticResult], PanopticFeatures]:
    """Segment the images of a batch.

    Args:
        model: in the mode in which it is to run; call without gradients.
        images: [B, 3, H, W] float, normalised, zero on padding.
        padding_mask: [B, H, W] bool, True where the pixel is padding; None when there is no padding.
        processed_sizes: (height, width) of each image within its padding.
        target_sizes: (height, width) of each segmentation.
        is_thing: label → is a thing. A query with another label is treated as no-object.
        threshold: smallest class probability of a query that is kept, exclusive.
        choose: called with an image's number in the batch, the mask logits [K, h, w] of its kept queries (h and
            w a quarter of the processed size, rounded up) and their labels [K]; gives bool [K], True for those
            that may take part in the segmentation.

    Returns:
        The segmentation of each image, and the model's features with logits and boxes of all queries.
    """
    features = model.features(images, padding_mask)
    kept = [_keep_known(logits, threshold, is_thing) for logits in features.pred_logits]
    counts = [len(queries) for queries, _, _ in kept]
    batch_index = torch.arange(len(kept)).repeat_interleave(torch.tensor(counts)).to(images.device)
    masks = model.masks(features, batch_index, torch.cat([queries for queries, _, _ in kept]))
    results = []
    for number, (logits, (_, scores, labels)) in enumerate(zip(masks.split(counts), kept, strict=True)):
        height, width = processed_sizes[number]
        # A mask has a cell for each four pixels, the last of them may be partly padding.
        inside = logits[:, : -(-height // 4), : -(-width // 4)].float()
        used = slice(None) if choose is None else choose(number, inside, labels)
        results.append(
            panoptic_result(
                inside[used],
                scores[used],
                labels[used],
                processed_size=(height, width),
                target_size=target_sizes[number],
                is_thing=is_thing,
            )
        )
    return results, features


def _keep_known(logits: Tensor, threshold: float, is_thing: Mapping[int, bool]) -> tuple[Tensor, Tensor, Tensor]:
    queries, scores, labels = keep_queries(logits, threshold)
    chosen = torch.isin(labels, torch.tensor(sorted(is_thing), dtype=labels.dtype, device=labels.device))
    return queries[chosen], scores[chosen], labels[chosen]
