"""Metrics of the validation during training: functions that turn predictions into ``val/…``, in 0…1.

They draw nothing from the global random generators, so that training is the same with and without validation.
"""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from construction_panoptic.annotations.panoptic_png import decode_id_map
from construction_panoptic.errors import InputDataError
from construction_panoptic.evaluation.precision import average_precision
from construction_panoptic.evaluation.quality import SegmentCounts, check_keys, merge_counts, quality_of_counts
from construction_panoptic.evaluation.segments import counts_of, match_image
from construction_panoptic.models.protocol import Segmentation
from construction_panoptic.parallel import collectives
from construction_panoptic.training.tasks.protocol import Measure

# Metric of the validation → COCO's number.
_PRECISION_METRICS = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "APs",
    "ap_medium": "APm",
    "ap_large": "APl",
    "ar": "AR100",
}


def box_metrics(truth: dict[str, Any]) -> Measure:
    """Measure boxes against a COCO detection file, loaded.

    Takes (image id, boxes as dicts with ``category_id``, ``bbox``, ``score``); gives `_PRECISION_METRICS`, of at most
    100 boxes an image, without sizes that the set has no object of. Raises an `InputDataError` if the truth is
    malformed, or has no object.
    """
    _check(truth, "object")

    def measure(predictions: Iterable[tuple[int, list[dict[str, Any]]]]) -> dict[str, float]:
        own = [{"image_id": image_id, **box} for image_id, boxes in predictions for box in boxes]
        gathered = chain.from_iterable(collectives.gather(own))
        boxes = sorted(gathered, key=lambda box: box["image_id"])
        found = collectives.on_rank_zero(lambda: average_precision(truth, boxes))
        metrics = {name: found[number] for name, number in _PRECISION_METRICS.items()}
        return {name: value for name, value in metrics.items() if value != -1}

    return measure


def panoptic_metrics(truth: dict[str, Any], truth_folder: Path) -> Measure:
    """Measure panoptic quality against a COCO panoptic file, loaded, with its folder of PNGs.

    Takes (image id, `Segmentation`); gives ``pq``, ``sq``, ``rq``, and the same ending in ``_things`` and ``_stuff``
    where there are such classes. Raises an `InputDataError` if the truth is malformed, or has no segment.
    """
    _check(truth, "segment")
    annotations = {annotation["image_id"]: annotation for annotation in truth["annotations"]}

    def measure(predictions: Iterable[tuple[int, Segmentation]]) -> dict[str, float]:
        counts: dict[int, SegmentCounts] = {}
        for image_id, prediction in predictions:
            true = annotations[image_id]
            ids = decode_id_map(truth_folder / true["file_name"])
            rows = match_image(image_id, ids, true["segments_info"], prediction.id_map, prediction.segments)
            counts = merge_counts([counts, *map(counts_of, rows)])
        quality = quality_of_counts(merge_counts(collectives.all_gather(counts)), truth["categories"])
        metrics = {
            f"{score}{suffix}": quality[split][score]
            for split, suffix in (("All", ""), ("Things", "_things"), ("Stuff", "_stuff"))
            for score in ("pq", "sq", "rq")
        }
        return {name: value for name, value in metrics.items() if value is not None}

    return measure


def _check(truth: dict[str, Any], what: str) -> None:
    name = "the validation set"
    check_keys(truth, ("annotations", "categories"), name, "a COCO file")
    objects = (item for annotation in truth["annotations"] for item in annotation.get("segments_info", [annotation]))
    if all(item.get("iscrowd", 0) for item in objects):
        raise InputDataError(f"{name} has no {what} to validate on; put images with {what}s into the split.")
