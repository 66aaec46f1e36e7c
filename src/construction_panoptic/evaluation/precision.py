"""Average precision and recall of predicted boxes, as COCO defines them.

Source: Lin et al., "Microsoft COCO: Common Objects in Context", and cocodataset.org/#detection-eval. AP is the mean
over IoU thresholds 0.50:0.05:0.95 and classes of the area under the interpolated precision-recall curve.
"""

import contextlib
import copy
import io
import math
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from construction_panoptic.errors import InputDataError, ParameterError
from construction_panoptic.evaluation.quality import load_json, name_of

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

    At most 100 boxes an image count, those with the highest scores. Boxes whose category is not in the truth take no
    part. ``truth`` is COCO detection JSON, ``results`` COCO box results ``[{image_id, category_id, bbox (x, y, width,
    height in pixels), score}]``; both as a path or loaded.

    Gives the 12 numbers of :data:`PRECISION_NAMES` as fractions in 0…1, -1 (as in COCO) where the truth has no object
    of that size; and ``per_class``: {"<category id>": AP}, -1 for a class that is absent from the truth.

    Raises:
        InputDataError: a file is missing or malformed, or a result names an image that the truth does not have.
        ParameterError: an unknown engine.
    """
    if engine not in get_args(PrecisionEngine):
        raise ParameterError(f"engine must be one of {', '.join(get_args(PrecisionEngine))}; it is {engine!r}.")
    truth_data, result_data = load_json(truth), load_json(results)
    truth_name = name_of(truth, "the truth")
    _check_truth(truth_data, truth_name)
    known = _known_results(truth_data, result_data, truth_name, name_of(results, "the box results"))
    evaluate = _evaluate_with_hotcoco if engine == "hotcoco" else _evaluate_with_pycocotools
    # Both engines print while they load and when they summarise.
    with contextlib.redirect_stdout(io.StringIO()):
        numbers, precision = evaluate(truth_data, known)
    category_ids = sorted({category["id"] for category in truth_data["categories"]})
    per_class: dict[str, float] = {}
    for k, identity in enumerate(category_ids):
        values = precision[:, :, k, 0, -1]  # of all areas, at most 100 detections
        values = values[values > -1]
        per_class[str(identity)] = float(values.mean()) if values.size else -1.0
    return {**dict(zip(PRECISION_NAMES, map(float, numbers), strict=True)), "per_class": per_class}


def _check_truth(truth: Any, name: str) -> None:
    for key in ("images", "annotations", "categories"):
        if not isinstance(truth, dict) or not isinstance(truth.get(key), list):
            raise InputDataError(f'{name} has no "{key}" list; a COCO detection file is needed.')
    for annotation in truth["annotations"]:
        if missing := {"id", "image_id", "category_id", "bbox", "area", "iscrowd"} - annotation.keys():
            raise InputDataError(
                f"{name}: annotation {annotation.get('id')} of image {annotation.get('image_id')} has no "
                f"{', '.join(sorted(missing))}; a COCO detection file is needed."
            )


def _known_results(truth: dict[str, Any], results: Any, truth_name: str, name: str) -> list[dict[str, Any]]:
    """Check the results and leave out those of categories that are not evaluated."""
    if not isinstance(results, list):
        raise InputDataError(f"{name} must be a list of COCO box results.")
    images = {image["id"] for image in truth["images"]}
    categories = {category["id"] for category in truth["categories"]}
    known = []
    for number, result in enumerate(results):
        this = f"{name}: result {number}"
        if missing := {"image_id", "category_id", "bbox", "score"} - result.keys():
            raise InputDataError(f"{this} has no {', '.join(sorted(missing))}.")
        image, bbox = result["image_id"], result["bbox"]
        if image not in images:
            raise InputDataError(
                f"{this} is of image {image}, which {truth_name} does not have. "
                "Evaluate against the file whose images were predicted."
            )
        if len(bbox) != 4:
            raise InputDataError(f"{this} (image {image}) has the bbox {bbox}; x, y, width and height are needed.")
        if not all(isinstance(v, int | float) and math.isfinite(v) for v in (*bbox, result["score"])):
            raise InputDataError(f"{this} (image {image}) has a bbox or score that is not a finite number.")
        if result["category_id"] in categories:
            known.append({key: result[key] for key in ("image_id", "category_id", "bbox", "score")})
    return known


def _evaluate_with_hotcoco(truth: dict[str, Any], results: list[dict[str, Any]]) -> tuple[Any, np.ndarray]:
    import hotcoco

    data = hotcoco.COCO(truth)
    evaluator = hotcoco.COCOeval(data, data.load_res(results), "bbox")
    evaluator.run()
    evaluation: dict[str, Any] = evaluator.eval  # type: ignore[assignment]  # None only before the run
    return evaluator.stats, np.asarray(evaluation["precision"])


def _evaluate_with_pycocotools(truth: dict[str, Any], results: list[dict[str, Any]]) -> tuple[Any, np.ndarray]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    data = COCO()
    data.dataset = copy.deepcopy(truth)  # pycocotools writes into the annotations
    data.createIndex()
    # loadRes looks into the first result to learn of what kind they are.
    predicted = data.loadRes(copy.deepcopy(results)) if results else COCO()
    predicted.dataset.setdefault("annotations", [])
    evaluator = COCOeval(data, predicted, "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return evaluator.stats, np.asarray(evaluator.eval["precision"])
