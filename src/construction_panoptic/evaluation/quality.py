"""Panoptic quality: PQ, SQ and RQ of predictions in COCO panoptic format.

Source of the measure: Kirillov et al., "Panoptic Segmentation", CVPR 2019, section 4. A predicted and a true
segment of one class match when their IoU is above 0.5; per class, over all images, ``PQ = sum of matched IoU
/ (TP + FP / 2 + FN / 2) = SQ * RQ``.
"""

import contextlib
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from construction_panoptic.config.base import ONE_PROCESS, Execution
from construction_panoptic.errors import InputDataError, ParameterError, UserError
from construction_panoptic.parallel.workers import Engine, Workers, blocks_of

QualityEngine = Literal["hotcoco", "panopticapi"]

Annotation = Mapping[str, Any]
_Counter = Callable[[dict[str, Any], Path, dict[str, Any], Path], Mapping[int, tuple[int, int, int, float]]]

_IMAGES_IN_BLOCK: dict[Engine, int] = {"local": 256, "ray": 16}  # Ray gets its blocks by 16
_UNITS = 2**53


class SegmentCounts(NamedTuple):
    """Segments of one class: true positives, false positives, false negatives, and the sum of the matches' IoU.

    The sum is exact, so that counts add up to the same in any order.
    """

    tp: int
    fp: int
    fn: int
    iou: Fraction


_NONE = SegmentCounts(0, 0, 0, Fraction(0))


def panoptic_quality(
    truth: Path | str | dict[str, Any],
    truth_folder: Path | str,
    predictions: Path | str | dict[str, Any],
    prediction_folder: Path | str,
    *,
    engine: QualityEngine = "hotcoco",
    execution: Execution = ONE_PROCESS,
) -> dict[str, Any]:
    """Evaluate panoptic predictions; the numbers are those of panopticapi on the same files.

    Every image of the truth needs a prediction (one without segments is a prediction); predictions of other
    images take no part. A class with neither a true segment, nor a predicted one that counts, takes no part
    in a mean. As in panopticapi, a class that is predicted but absent from the truth has false positives, so
    its PQ of 0 does count. Pixels that are void in the truth, and crowd segments, are not held against a
    prediction.

    Args:
        truth: COCO panoptic JSON, as a path or loaded. Each category needs ``isthing``.
        truth_folder: folder of the truth's PNGs.
        predictions: COCO panoptic results: ``{"annotations": [{image_id, file_name, segments_info}]}``.
        prediction_folder: folder of the predictions' PNGs.
        engine: ``hotcoco``, or ``panopticapi`` (the reference, slower; needs the extra ``reference``).
        execution: the processes that count segments; the numbers are the same to the last bit with any.

    Returns:
        panopticapi's layout, fractions in 0…1: ``{"All": {"pq", "sq", "rq", "n"}, "Things": …, "Stuff": …,
        "per_class": {"<category id>": {"pq", "sq", "rq", …}}}``. ``n`` is the number of classes in the mean;
        with ``n`` = 0 there is no mean and pq, sq, rq are None. ``per_class`` has all categories of the
        truth, with panopticapi's zeros for one that takes no part, and these additions: ``present`` (whether
        the class takes part in the means), ``isthing``, and the segment counts ``tp``, ``fp``, ``fn``.

    Raises:
        InputDataError: a file is missing or malformed, an image has no prediction, a PNG and its
            ``segments_info`` differ, a predicted category is unknown, or the sizes of two PNGs differ.
        ParameterError: an unknown engine, or Ray is asked for and not installed.
        UserError: ``panopticapi`` is asked for and not installed.
    """
    truth_data = load_json(truth)
    counts = segment_counts(
        truth_data,
        truth_folder,
        predictions,
        prediction_folder,
        engine=engine,
        execution=execution,
        truth_name=_name(truth, "the truth"),
    )
    return quality_of_counts(counts, truth_data["categories"])


def segment_counts(
    truth: Path | str | dict[str, Any],
    truth_folder: Path | str,
    predictions: Path | str | dict[str, Any],
    prediction_folder: Path | str,
    *,
    engine: QualityEngine = "hotcoco",
    execution: Execution = ONE_PROCESS,
    truth_name: str | None = None,
) -> dict[int, SegmentCounts]:
    """Count the segments from which panoptic quality follows, by category id; see `panoptic_quality`.

    Counts of disjoint sets of images add up (`merge_counts`), so that blocks of images go to processes, and a large
    evaluation to several machines, see `shard`.
    """
    if engine not in get_args(QualityEngine):
        raise ParameterError(f"engine must be one of {', '.join(get_args(QualityEngine))}; it is {engine!r}.")
    truth_name, prediction_name = truth_name or _name(truth, "the truth"), _name(predictions, "the predictions")
    truth_data = load_json(truth)
    prediction_data = load_json(predictions)
    _check_truth(truth_data, truth_name)
    _check_coverage(truth_data, prediction_data, truth_name, prediction_name)
    predicted = {annotation["image_id"]: annotation for annotation in prediction_data["annotations"]}
    pairs = [(annotation, predicted[annotation["image_id"]]) for annotation in truth_data["annotations"]]
    count = partial(
        _count_block,
        engine,
        (Path(truth_folder), Path(prediction_folder)),
        frozenset(category["id"] for category in truth_data["categories"]),
        f"{prediction_name} cannot be evaluated against {truth_name}",
    )
    if len(pairs) <= _IMAGES_IN_BLOCK["local"]:
        execution = ONE_PROCESS
    with Workers(**execution.model_dump()) as workers:
        return merge_counts(workers.map(count, blocks_of(pairs, _IMAGES_IN_BLOCK[execution.engine])))


def merge_counts(parts: Iterable[Mapping[int, SegmentCounts]]) -> dict[int, SegmentCounts]:
    """Add up the counts of disjoint sets of images, exactly, in memory that does not grow with their number."""
    total: dict[int, SegmentCounts] = {}
    for part in parts:
        for identity, (tp, fp, fn, iou) in part.items():
            so_far = total.get(identity, _NONE)
            total[identity] = SegmentCounts(so_far.tp + tp, so_far.fp + fp, so_far.fn + fn, so_far.iou + iou)
    return total


def shard(truth: Mapping[str, Any], number: int, of: int) -> dict[str, Any]:
    """Give one of ``of`` disjoint parts of a COCO panoptic file, ``number`` counting from 0; together they are all."""
    annotations = truth["annotations"][number::of]
    wanted = {annotation["image_id"] for annotation in annotations}
    images = [image for image in truth.get("images", []) if image["id"] in wanted]
    return {**truth, "images": images, "annotations": annotations}


def quality_of_counts(counts: Mapping[int, SegmentCounts], categories: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Turn counts into the result of `panoptic_quality`; a category that has none takes no part."""
    is_thing = {category["id"]: bool(category["isthing"]) for category in categories}
    return _summarise({identity: counts.get(identity, _NONE) for identity in is_thing}, is_thing)


def load_json(source: Path | str | Any) -> Any:
    """Give the content of a JSON file; anything that is not a path is given back as it is.

    Raises:
        InputDataError: the file is missing or is not JSON.
    """
    if not isinstance(source, Path | str):
        return source
    try:
        return json.loads(Path(source).read_bytes())
    except FileNotFoundError as error:
        raise InputDataError(f"{source} does not exist.") from error
    except (OSError, ValueError) as error:
        raise InputDataError(f"{source} cannot be read as JSON: {error}") from error


def _name(source: Path | str | dict[str, Any], otherwise: str) -> str:
    return str(source) if isinstance(source, Path | str) else otherwise


def _check_truth(truth: Any, name: str) -> None:
    """Check the parts of the truth that the evaluation reads."""
    for key in ("annotations", "categories"):
        if not isinstance(truth, dict) or not isinstance(truth.get(key), list) or not truth[key]:
            raise InputDataError(f'{name} has no "{key}"; a COCO panoptic file with at least one image is needed.')
    for category in truth["categories"]:
        if "isthing" not in category:
            raise InputDataError(
                f'{name}: category {category.get("id")} has no "isthing"; set it to 1 (thing) or 0 (stuff).'
            )
    for annotation in truth["annotations"]:
        if "segments_info" not in annotation:
            raise InputDataError(
                f'{name}: the annotation of image {annotation.get("image_id")} has no "segments_info"; '
                "this is not a COCO panoptic file."
            )


def _check_coverage(truth: dict[str, Any], predictions: Any, truth_name: str, prediction_name: str) -> None:
    if not isinstance(predictions, dict) or not isinstance(predictions.get("annotations"), list):
        raise InputDataError(f'{prediction_name} has no "annotations" list; COCO panoptic results are needed.')
    predicted = {annotation["image_id"] for annotation in predictions["annotations"]}
    missing = [a["image_id"] for a in truth["annotations"] if a["image_id"] not in predicted]
    if missing:
        count = f"{len(missing)} of the {len(truth['annotations'])} images"
        raise InputDataError(
            f"{prediction_name} has no prediction for {count} of {truth_name}, the first being image "
            f"{missing[0]}. Predict all of them; an image in which nothing is found needs an entry with "
            'empty "segments_info" and an all-zero PNG.'
        )


def _count_block(
    engine: QualityEngine,
    folders: tuple[Path, Path],
    classes: frozenset[int],
    failure: str,
    pairs: list[tuple[Annotation, Annotation]],
) -> dict[int, SegmentCounts]:
    """Count the segments of some images.

    To the engine, the classes of an image are classes of their own: what it adds up in floating point is then of one
    image, and does not depend on which images are in the block.
    """
    numbers: dict[tuple[int, int], int] = {}
    try:
        true, predicted = ([_by_image(side, numbers, classes) for side in sides] for sides in zip(*pairs, strict=True))
        # Number 0 has no segments, but there is one class at least.
        categories = [{"id": number, "name": str(number), "isthing": 1} for number in range(len(numbers) + 1)]
        truth = {"images": [], "annotations": true, "categories": categories}
        count = _count_with_hotcoco if engine == "hotcoco" else _reference_counter()
        found = count(truth, folders[0], {"annotations": predicted}, folders[1])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        raise InputDataError(f"{failure}: {reason}") from error
    totals: dict[int, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for (_, category), number in numbers.items():
        *counts, iou = found[number]
        # Each IoU is above 1/2, so in float64 it is a whole number of units, and so is what they add up to.
        totals[category] = [a + b for a, b in zip(totals[category], (*counts, int(iou * _UNITS)), strict=True)]
    return {
        category: SegmentCounts(tp, fp, fn, Fraction(iou, _UNITS)) for category, (tp, fp, fn, iou) in totals.items()
    }


def _by_image(annotation: Annotation, numbers: dict[tuple[int, int], int], classes: frozenset[int]) -> dict[str, Any]:
    """Give an annotation whose classes are numbered by image and class; new ones are added to ``numbers``."""
    image, segments = annotation["image_id"], []
    for segment in annotation["segments_info"]:
        category = segment["category_id"]
        if category not in classes:
            raise ValueError(f"segment {segment['id']} of image {image} has the unknown category_id {category}")
        number = numbers.setdefault((image, category), len(numbers) + 1)
        segments.append({"iscrowd": 0, **segment, "category_id": number})
    return {"image_id": image, "file_name": annotation["file_name"], "segments_info": segments}


def _count_with_hotcoco(
    truth: dict[str, Any], truth_folder: Path, predictions: dict[str, Any], prediction_folder: Path
) -> dict[int, tuple[int, int, int, float]]:
    from hotcoco.panoptic import PanopticEval

    evaluator = PanopticEval(truth, predictions, gt_folder=truth_folder, pred_folder=prediction_folder)
    evaluator.evaluate()
    per_class = evaluator.results()["per_class"]
    return {identity: (row["tp"], row["fp"], row["fn"], row["iou"]) for identity, row in per_class.items()}


def _reference_counter() -> _Counter:
    """Give panopticapi's counting of segments.

    Its ``pq_compute`` starts a pool of processes, prints, and divides by zero where a data set has no thing
    or no stuff class at all; the function that it calls in each process has none of this.
    """
    try:
        from panopticapi.evaluation import pq_compute_single_core
    except ModuleNotFoundError as error:
        raise UserError(
            "The engine 'panopticapi' is not installed. Install it with: pip install '.[reference]', "
            "or use the engine 'hotcoco', which gives the same numbers."
        ) from error

    def count(
        truth: dict[str, Any], truth_folder: Path, predictions: dict[str, Any], prediction_folder: Path
    ) -> dict[int, tuple[int, int, int, float]]:
        pairs = list(zip(truth["annotations"], predictions["annotations"], strict=True))
        categories = {category["id"]: category for category in truth["categories"]}
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            statistics = pq_compute_single_core(0, pairs, truth_folder, prediction_folder, categories)
        rows = ((identity, statistics[identity]) for identity in categories)
        return {identity: (row.tp, row.fp, row.fn, float(row.iou)) for identity, row in rows}

    return count


def _summarise(counts: Mapping[int, SegmentCounts], is_thing: Mapping[int, bool]) -> dict[str, Any]:
    per_class: dict[int, dict[str, Any]] = {}
    for identity, thing in is_thing.items():
        tp, fp, fn, iou = counts[identity]
        pq, sq, rq = _scores(tp, fp, fn, float(iou))
        counted = {"tp": tp, "fp": fp, "fn": fn}
        per_class[identity] = {
            **{"pq": pq, "sq": sq, "rq": rq},
            **counted,
            "isthing": thing,
            "present": sum(counted.values()) > 0,
        }
    return {
        "All": _mean(list(per_class.values())),
        "Things": _mean([row for row in per_class.values() if row["isthing"]]),
        "Stuff": _mean([row for row in per_class.values() if not row["isthing"]]),
        "per_class": {str(identity): row for identity, row in per_class.items()},
    }


def _scores(tp: int, fp: int, fn: int, iou: float) -> tuple[float, float, float]:
    """PQ, SQ and RQ of one class."""
    if tp == 0:
        return 0.0, 0.0, 0.0
    denominator = tp + 0.5 * fp + 0.5 * fn
    return iou / denominator, iou / tp, tp / denominator


def _mean(rows: list[dict[str, Any]]) -> dict[str, float | int | None]:
    rows = [row for row in rows if row["present"]]
    if not rows:
        return {"pq": None, "sq": None, "rq": None, "n": 0}
    mean: dict[str, float | int | None] = {key: sum(row[key] for row in rows) / len(rows) for key in ("pq", "sq", "rq")}
    return {**mean, "n": len(rows)}
