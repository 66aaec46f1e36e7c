"""The effect of the score threshold on panoptic quality."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from construction_panoptic.annotations.panoptic_png import decode_id_map
from construction_panoptic.evaluation.analysis import class_scores
from construction_panoptic.evaluation.predictions import evaluating
from construction_panoptic.evaluation.segments import match_image, segment_table
from construction_panoptic.models.detr.model import DetrPanoptic
from construction_panoptic.models.detr.postprocess import PanopticResult, panoptic_result
from construction_panoptic.models.detr.segmenting import QueryMasks, query_masks
from construction_panoptic.parallel.device import autocast
from construction_panoptic.training.loading import Batch

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""The thresholds that are tried beside the one in use."""


def threshold_curve(
    model: DetrPanoptic,
    batches: Iterable[Batch],
    truth: Mapping[str, Any],
    truth_folder: Path,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    device: torch.device | None = None,
    precision: str = "auto",
) -> pd.DataFrame:
    """Measure PQ at several thresholds; the network runs once an image.

    Args:
        model: the model; in eval mode while this runs.
        batches: what a loader of `PanopticSamples` (not in training) gives.
        truth: COCO panoptic JSON, loaded, with an annotation for each image.
        truth_folder: folder of its PNGs.
        thresholds: least class probabilities of a query that is kept, exclusive.
        device: where to run; by default where the model is. The model is not moved.
        precision: ``auto``, ``float32`` or ``bfloat16``; see `autocast`.

    Returns:
        A row a threshold, ascending: ``threshold``, ``pq``, ``pq_things``, ``pq_stuff`` (fractions, NaN where there is
        no class), ``segments`` (mean number predicted an image), ``images``.
    """
    thresholds = sorted(set(thresholds))
    is_thing = {int(category["id"]): bool(category["isthing"]) for category in truth["categories"]}
    annotations = {annotation["image_id"]: annotation for annotation in truth["annotations"]}
    device = device or next(model.parameters()).device
    rows: dict[float, list[tuple[Any, ...]]] = {threshold: [] for threshold in thresholds}
    images = 0
    with evaluating(model), torch.no_grad():
        for batch in batches:
            mask = None if batch.padding_mask is None else batch.padding_mask.to(device)
            with autocast(device, precision):
                sizes = [tuple(target["size"].tolist()) for target in batch.targets]
                found, _ = query_masks(
                    model,
                    batch.images.to(device),
                    mask,
                    processed_sizes=sizes,
                    is_thing=is_thing,
                    threshold=thresholds[0],
                )
            for target, size, queries in zip(batch.targets, sizes, found, strict=True):
                images += 1
                annotation = annotations[int(target["image_id"])]
                true_ids = decode_id_map(truth_folder / annotation["file_name"])
                for threshold in thresholds:
                    result = _segmented(queries, threshold, size, true_ids.shape, is_thing)
                    rows[threshold] += match_image(
                        annotation["image_id"],
                        true_ids,
                        annotation["segments_info"],
                        result.id_map.numpy(),
                        result.segments,
                    )
    return pd.DataFrame([_measured(threshold, rows[threshold], is_thing, images) for threshold in thresholds])


def _segmented(
    queries: QueryMasks, threshold: float, size: tuple[int, int], target: tuple[int, ...], is_thing: Mapping[int, bool]
) -> PanopticResult:
    kept = queries.select(queries.scores > threshold)
    return panoptic_result(
        kept.masks, kept.scores, kept.labels, processed_size=size, target_size=target, is_thing=is_thing
    )


def _measured(
    threshold: float, rows: list[tuple[Any, ...]], is_thing: Mapping[int, bool], images: int
) -> dict[str, float]:
    segments = segment_table(rows)
    pq = class_scores(segments)["pq"]
    things = np.array([is_thing[category] for category in pq.index], dtype=bool)
    return {
        "threshold": threshold,
        "pq": pq.mean(),
        "pq_things": pq[things].mean(),
        "pq_stuff": pq[~things].mean(),
        "segments": (segments["side"] == "predicted").sum() / images,
        "images": images,
    }
