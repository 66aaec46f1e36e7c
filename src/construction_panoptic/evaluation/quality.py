"""Panoptic quality: PQ, SQ and RQ of predictions in COCO panoptic format."""

import contextlib
import io
import json
import math
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from construction_panoptic.config.base import ONE_PROCESS, Execution
from construction_panoptic.errors import InputDataError, UserError
from construction_panoptic.parallel.workers import Workers, blocks_of

QualityEngine = Literal["hotcoco", "panopticapi"]
Annotation = Mapping[str, Any]

SPLITS = {"All": ("thing", "stuff"), "Things": ("thing",), "Stuff": ("stuff",)}
"""The rows of the PQ table: means over the classes of these kinds."""

_BLOCK = 64
"""Images a task; the same with any number of processes, so that sums round alike."""


class SegmentCounts(NamedTuple):
    """Segments of one class: true positives, false positives, false negatives, and the sum of the matches' IoU."""

    tp: int
    fp: int
    fn: int
    iou: float


def pq_sq_rq(iou: ArrayLike, tp: ArrayLike, fp: ArrayLike, fn: ArrayLike) -> NDArray[np.float64]:
    """Give PQ, SQ and RQ, float64 [3, …], of arrays of one shape; NaN where a class has no segment at all.

    ``PQ = sum of matched IoU / (TP + FP / 2 + FN / 2) = SQ * RQ``, where segments of one class match when their IoU is
    above 0.5 (Kirillov et al., "Panoptic Segmentation", CVPR 2019, section 4).
    """
    iou, tp, fp, fn = (np.asarray(values, dtype=np.float64) for values in (iou, tp, fp, fn))
    segments = tp + fp / 2 + fn / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        sq = np.where((tp == 0) & (segments > 0), 0.0, iou / tp)
        return np.stack([iou / segments, sq, tp / segments])


def panoptic_quality(
    truth: Path | str | dict[str, Any],
    truth_folder: Path | str,
    predictions: Path | str | dict[str, Any],
    prediction_folder: Path | str,
    *,
    engine: QualityEngine = "hotcoco",
    execution: Execution = ONE_PROCESS,
) -> dict[str, Any]:
    """Evaluate panoptic predictions; gives what `quality_of_counts` does, with panopticapi's numbers.

    ``truth`` and ``predictions`` are COCO panoptic JSON, as a path or loaded, with their folders of PNGs. Every image
    of the truth needs a prediction, if one without segments; predictions of other images take no part. A class without
    a segment takes no part in a mean; one that is predicted but absent from the truth has a PQ of 0, as in panopticapi,
    which is the reference engine, slower, of the extra ``reference``. The numbers are the same to the last bit with any
    number of processes.

    Raises:
        InputDataError: a file is missing or malformed, an image has no prediction, a PNG and its
            ``segments_info`` differ, a predicted category is unknown, or the sizes of two PNGs differ.
        UserError: the engine is not installed.
    """
    data = load_json(truth)
    names = name_of(truth, "the ground truth"), name_of(predictions, "the predictions")
    pairs = panoptic_pairs(data, load_json(predictions), *names)
    count = partial(_count, engine, data["categories"], (Path(truth_folder), Path(prediction_folder)), names)
    with Workers(**(execution if len(pairs) > 4 * _BLOCK else ONE_PROCESS).model_dump()) as workers:
        counts = merge_counts(workers.map(count, blocks_of(pairs, _BLOCK)))
    return quality_of_counts(counts, data["categories"])


def merge_counts(parts: Iterable[Mapping[int, SegmentCounts]]) -> dict[int, SegmentCounts]:
    """Add up the counts, by category id, of disjoint sets of images."""
    total: dict[int, SegmentCounts] = {}
    for part in parts:
        for identity, (tp, fp, fn, iou) in part.items():
            so_far = total.get(identity, SegmentCounts(0, 0, 0, 0.0))
            total[identity] = SegmentCounts(so_far.tp + tp, so_far.fp + fp, so_far.fn + fn, so_far.iou + iou)
    return total


def quality_of_counts(counts: Mapping[int, SegmentCounts], categories: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Turn counts into PQ, SQ and RQ of all classes, things, stuff, and each class.

    Gives panopticapi's layout, fractions in 0…1: ``{"All": {"pq", "sq", "rq", "n"}, "Things": …, "Stuff": …,
    "per_class": {"<category id>": {"pq", "sq", "rq", "tp", "fp", "fn", "isthing", "present"}}}``. ``n`` is the number
    of classes in the mean; where it is 0, pq, sq and rq are None. A category that takes no part in the means is not
    ``present`` and has zeros.
    """
    per_class: dict[str, dict[str, Any]] = {}
    for category in categories:
        tp, fp, fn, iou = counts.get(category["id"], (0, 0, 0, 0.0))
        scores = dict(zip(("pq", "sq", "rq"), np.nan_to_num(pq_sq_rq(iou, tp, fp, fn)).tolist(), strict=True))
        kind = {"isthing": bool(category["isthing"]), "present": tp + fp + fn > 0}
        per_class[str(category["id"])] = {**scores, "tp": tp, "fp": fp, "fn": fn, **kind}
    rows = [row for row in per_class.values() if row["present"]]
    means = {
        split: _mean([row for row in rows if ("thing" if row["isthing"] else "stuff") in kinds])
        for split, kinds in SPLITS.items()
    }
    return {**means, "per_class": per_class}


def load_json(source: Path | str | Any) -> Any:
    """Give the content of a JSON file (`InputDataError`: it is missing or no JSON); what is no path, as it is."""
    if not isinstance(source, Path | str):
        return source
    try:
        return json.loads(Path(source).read_bytes())
    except FileNotFoundError as error:
        raise InputDataError(f"{source} does not exist.") from error
    except (OSError, ValueError) as error:
        raise InputDataError(f"{source} cannot be read as JSON: {error}") from error


def name_of(source: Path | str | Any, otherwise: str) -> str:
    """Name what `load_json` reads in a message."""
    return str(source) if isinstance(source, Path | str) else otherwise


def check_keys(item: Any, keys: Collection[str], name: str, needed: str, of: type = object) -> None:
    """Raise an `InputDataError` unless ``item``, which messages call ``name``, is a dict with values of a type."""
    missing = [key for key in keys if not isinstance(item, dict) or key not in item or not isinstance(item[key], of)]
    if missing:
        raise InputDataError(f"{name} has no {', '.join(missing)}; {needed} is needed.")


def _mean(rows: list[dict[str, Any]]) -> dict[str, float | int | None]:
    means = {key: math.fsum(row[key] for row in rows) / len(rows) if rows else None for key in ("pq", "sq", "rq")}
    return {**means, "n": len(rows)}


def panoptic_pairs(truth: Any, predictions: Any, truth_name: str, name: str) -> list[tuple[Annotation, Annotation]]:
    """Check two COCO panoptic files, loaded, and give the annotations of each image of the truth in both."""
    needed = "a COCO panoptic file"
    check_keys(truth, ("annotations", "categories"), truth_name, needed, list)
    check_keys(predictions, ("annotations",), name, needed, list)
    for category in truth["categories"]:
        check_keys(category, ("isthing",), f"{truth_name}: category {category.get('id')}", needed)
    for annotation in truth["annotations"]:
        check_keys(annotation, ("segments_info",), f"{truth_name}: image {annotation.get('image_id')}", needed)
    predicted = {annotation["image_id"]: annotation for annotation in predictions["annotations"]}
    images = [annotation["image_id"] for annotation in truth["annotations"]]
    if not images:
        raise InputDataError(f"{truth_name} has no images; {needed} with at least one is needed.")
    if missing := [image for image in images if image not in predicted]:
        raise InputDataError(
            f"{name} has no prediction for {len(missing)} of the {len(images)} images of {truth_name}, the first being "
            f"image {missing[0]}. An image in which nothing is found needs an annotation without segments."
        )
    return [(annotation, predicted[annotation["image_id"]]) for annotation in truth["annotations"]]


def _count(
    engine: QualityEngine,
    categories: list[dict[str, Any]],
    folders: tuple[Path, Path],
    names: tuple[str, str],
    pairs: list[tuple[Annotation, Annotation]],
) -> dict[int, SegmentCounts]:
    known = {category["id"] for category in categories}
    try:
        true, predicted = ([_checked(annotation, known) for annotation in side] for side in zip(*pairs, strict=True))
        if engine == "hotcoco":
            return _count_with_hotcoco(categories, true, predicted, folders)
        return _count_with_panopticapi(categories, true, predicted, folders)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.args[0] if isinstance(error, KeyError) else error
        raise InputDataError(f"{names[1]} cannot be evaluated against {names[0]}: {reason}") from error


def _checked(annotation: Annotation, known: set[int]) -> dict[str, Any]:
    for segment in annotation["segments_info"]:
        if segment["category_id"] not in known:
            about = f"segment {segment['id']} of image {annotation['image_id']}"
            raise ValueError(f"{about} has the unknown category_id {segment['category_id']}")
    return {**annotation, "segments_info": [{"iscrowd": 0, **segment} for segment in annotation["segments_info"]]}


def _count_with_hotcoco(
    categories: list[dict[str, Any]], true: list[Any], predicted: list[Any], folders: tuple[Path, Path]
) -> dict[int, SegmentCounts]:
    from hotcoco.panoptic import PanopticEval

    evaluator = PanopticEval(
        {"images": [], "annotations": true, "categories": categories},
        {"annotations": predicted},
        gt_folder=folders[0],
        pred_folder=folders[1],
    )
    evaluator.evaluate()
    rows = evaluator.results()["per_class"]
    return {identity: SegmentCounts(row["tp"], row["fp"], row["fn"], row["iou"]) for identity, row in rows.items()}


def _count_with_panopticapi(
    categories: list[dict[str, Any]], true: list[Any], predicted: list[Any], folders: tuple[Path, Path]
) -> dict[int, SegmentCounts]:
    # Not its pq_compute, which starts processes, prints, and divides by zero where there is no thing or stuff class.
    try:
        from panopticapi.evaluation import pq_compute_single_core
    except ModuleNotFoundError as error:
        raise UserError(
            "The engine 'panopticapi' is not installed. Install it with: pip install '.[reference]', "
            "or use the engine 'hotcoco', which gives the same numbers."
        ) from error
    by_id = {category["id"]: category for category in categories}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        found = pq_compute_single_core(0, list(zip(true, predicted, strict=True)), *folders, by_id)
    rows = {identity: found[identity] for identity in by_id}
    return {identity: SegmentCounts(row.tp, row.fp, row.fn, float(row.iou)) for identity, row in rows.items()}
