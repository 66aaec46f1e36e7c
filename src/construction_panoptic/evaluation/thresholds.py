"""The effect of the score threshold on panoptic quality."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from construction_panoptic.annotations.panoptic_png import decode_id_map
from construction_panoptic.evaluation.analysis import class_scores, kind_means
from construction_panoptic.evaluation.predictions import evaluating
from construction_panoptic.evaluation.segments import match_image, segment_table
from construction_panoptic.models.protocol import PanopticModel, device_of
from construction_panoptic.parallel.device import autocast
from construction_panoptic.training.loading import Batch

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""The thresholds that are tried beside those in use."""


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
    """Measure PQ at several thresholds and at those in use; the network runs once an image.

    ``truth`` is COCO panoptic JSON, loaded, of the images in ``batches``; see `predict_images` for the rest.

    Returns:
        A row a threshold, ascending: ``threshold``, ``pq``, ``pq_things``, ``pq_stuff`` (fractions, NaN where there is
        no class), ``segments`` (mean number predicted an image), ``images``, ``in_use_things``
        and ``in_use_stuff`` (True for one).
    """
    device = device_of(model.network)
    used = model.spec.overridden(overrides).least_scores
    thresholds = sorted({*thresholds, *used.values()})
    annotations = {annotation["image_id"]: annotation for annotation in truth["annotations"]}
    rows: dict[float, list[tuple[Any, ...]]] = {threshold: [] for threshold in thresholds}
    with evaluating(model.network):
        for batch in batches:
            with autocast(device, precision):
                found = model.segment_at(batch.to(device).inputs(), thresholds, overrides)
            for target, segmentations in zip(batch.targets, found, strict=True):
                true = annotations[int(target["image_id"])]
                given = true["image_id"], decode_id_map(truth_folder / true["file_name"]), true["segments_info"]
                for threshold, each in zip(thresholds, segmentations, strict=True):
                    rows[threshold] += match_image(*given, each.id_map, each.segments)
    table = []
    for threshold in thresholds:
        segments = segment_table(rows[threshold])
        pq = kind_means(class_scores(segments)["pq"], truth["categories"])
        predicted = (segments["side"] == "predicted").sum() / len(annotations)
        in_use = {"in_use_things": threshold == used[True], "in_use_stuff": threshold == used[False]}
        table.append({"threshold": threshold, **pq, "segments": predicted, "images": len(annotations), **in_use})
    return pd.DataFrame(table)
