"""The effect of the score threshold on panoptic quality."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from construction_panoptic.annotations.panoptic_png import decode_id_map
from construction_panoptic.evaluation.analysis import class_scores
from construction_panoptic.evaluation.predictions import evaluating, images_of
from construction_panoptic.evaluation.segments import match_image, segment_table
from construction_panoptic.models.protocol import PanopticModel
from construction_panoptic.parallel.device import autocast
from construction_panoptic.training.loading import Batch

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""The thresholds that are tried beside the one in use."""


def threshold_curve(
    model: PanopticModel,
    batches: Iterable[Batch],
    truth: Mapping[str, Any],
    truth_folder: Path,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    overrides: Mapping[str, Any] | None = None,
    precision: str = "auto",
) -> pd.DataFrame:
    """Measure PQ at several thresholds and at the one in use; the network runs once an image.

    Args:
        model: the model; its network is in eval mode while this runs.
        batches: what a loader of `ImageFiles` gives.
        truth: COCO panoptic JSON, loaded, with an annotation for each image.
        truth_folder: folder of its PNGs.
        thresholds: least scores of a segment.
        overrides: other values for the model's spec; see `ModelSpec.overridden`.
        precision: ``auto``, ``float32`` or ``bfloat16``; see `autocast`.

    Returns:
        A row a threshold, ascending: ``threshold``, ``pq``, ``pq_things``, ``pq_stuff`` (fractions, NaN where there is
        no class), ``segments`` (mean number predicted an image), ``images``, ``in_use`` (True for one).
    """
    in_use = model.spec.overridden(overrides).least_score
    thresholds = sorted({*thresholds, in_use})
    is_thing = {int(category["id"]): bool(category["isthing"]) for category in truth["categories"]}
    annotations = {annotation["image_id"]: annotation for annotation in truth["annotations"]}
    rows: dict[float, list[tuple[Any, ...]]] = {threshold: [] for threshold in thresholds}
    count = 0
    with evaluating(model.network):
        for batch in batches:
            images = images_of(batch, model.network)
            with autocast(images.pixels.device, precision):
                found = model.segment_at(images, thresholds, overrides)
            for target, segmentations in zip(batch.targets, found, strict=True):
                count += 1
                annotation = annotations[int(target["image_id"])]
                image_id, true_segments = annotation["image_id"], annotation["segments_info"]
                true_ids = decode_id_map(truth_folder / annotation["file_name"])
                for threshold, each in zip(thresholds, segmentations, strict=True):
                    rows[threshold] += match_image(image_id, true_ids, true_segments, each.id_map, each.segments)
    measured = [_measured(threshold, rows[threshold], is_thing, count) for threshold in thresholds]
    return pd.DataFrame(measured).assign(in_use=[threshold == in_use for threshold in thresholds])


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
