"""Average precision and recall of predicted boxes, as COCO defines them."""

import contextlib
import copy
import io
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np

from construction_panoptic.errors import InputDataError
from construction_panoptic.evaluation.quality import check_keys, load_json, name_of

PrecisionEngine = Literal["hotcoco", "pycocotools"]

PRECISION_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""The 12 COCO numbers, in the order in which pycocotools prints them."""


def average_precision(
    truth: Path | str | dict[str, Any],
    results: Path | str | list[dict[str, Any]],
    *,
    engine: PrecisionEngine = "hotcoco",
) -> dict[str, Any]:
    """Evaluate predicted boxes; the numbers are those of pycocotools, the slower engine, on the same files.

    AP is the mean over IoU thresholds 0.50:0.05:0.95 and classes of the area under the interpolated precision-recall
    curve (Lin et al., "Microsoft COCO", ECCV 2014; cocodataset.org/#detection-eval), of at most 100 boxes an image,
    those with the highest scores. ``truth`` is COCO detection JSON, ``results`` COCO box results ``[{image_id,
    category_id, bbox (x, y, width, height in pixels), score}]``, those of unknown categories take no part; both as a
    path or loaded.

    Gives the 12 numbers of :data:`PRECISION_NAMES` as fractions in 0…1, -1 (as in COCO) where the truth has no object
    of that size; and ``per_class``: {"<category id>": AP}, -1 for a class that is absent from the truth.

    Raises:
        InputDataError: a file is missing or malformed, or a result names an image that the truth does not have.
    """
    truth_data, result_data = load_json(truth), load_json(results)
    truth_name = name_of(truth, "the truth")
    _check_truth(truth_data, truth_name)
    known = _known_results(truth_data, result_data, truth_name, name_of(results, "the box results"))
    # Both engines print while they load and when they summarise.
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = _evaluator(truth_data, known, engine)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    precision = np.asarray(evaluator.eval["precision"])
    category_ids = sorted({category["id"] for category in truth_data["categories"]})
    per_class: dict[str, float] = {}
    for k, identity in enumerate(category_ids):
        values = precision[:, :, k, 0, -1]  # of all areas, at most 100 detections
        values = values[values > -1]
        per_class[str(identity)] = float(values.mean()) if values.size else -1.0
    return {**dict(zip(PRECISION_NAMES, map(float, evaluator.stats), strict=True)), "per_class": per_class}


def _check_truth(truth: Any, name: str) -> None:
    needed = "a COCO detection file"
    check_keys(truth, ("images", "annotations", "categories"), name, needed, list)
    for annotation in truth["annotations"]:
        about = f"{name}: annotation {annotation.get('id')} of image {annotation.get('image_id')}"
        check_keys(annotation, ("id", "image_id", "category_id", "bbox", "area", "iscrowd"), about, needed)


def _known_results(truth: dict[str, Any], results: Any, truth_name: str, name: str) -> list[dict[str, Any]]:
    """Check the results and leave out those of categories that are not evaluated."""
    if not isinstance(results, list):
        raise InputDataError(f"{name} must be a list of COCO box results.")
    images = {image["id"] for image in truth["images"]}
    categories = {category["id"] for category in truth["categories"]}
    keys = ("image_id", "category_id", "bbox", "score")
    known = []
    for number, result in enumerate(results):
        this = f"{name}: result {number}"
        check_keys(result, keys, this, "a COCO box result")
        image, category, bbox, score = (result[key] for key in keys)
        if image not in images:
            raise InputDataError(f"{this} is of image {image}, which {truth_name} does not have; predict its images.")
        numbers = [*bbox, score]
        if len(numbers) != 5 or not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
            raise InputDataError(
                f"{this} (image {image}) has the bbox {bbox} and the score {score}; "
                "x, y, width, height and the score must be finite numbers."
            )
        if category in categories:
            known.append({key: result[key] for key in keys})
    return known


def _evaluator(truth: dict[str, Any], results: list[dict[str, Any]], engine: PrecisionEngine) -> Any:
    if engine == "hotcoco":
        import hotcoco

        loaded = hotcoco.COCO(truth)
        return hotcoco.COCOeval(loaded, loaded.load_res(results), "bbox")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    data = COCO()
    data.dataset = copy.deepcopy(truth)  # pycocotools writes into the annotations
    data.createIndex()
    # loadRes looks into the first result to learn of what kind they are.
    predicted = data.loadRes(copy.deepcopy(results)) if results else COCO()
    predicted.dataset.setdefault("annotations", [])
    return COCOeval(data, predicted, "bbox")
