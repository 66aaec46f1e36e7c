"""Matching of ground-truth and predicted segments, one by one, for the error analysis and for validation.

Segments are matched as in panoptic quality (Kirillov et al. 2019, section 4.1), but whatever their class: void pixels
leave a predicted segment's area, and IoU > 0.5 makes a pair, of which a segment can have only one. A pair of one class
is what PQ counts as a true positive, so PQ follows from these rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from construction_panoptic.annotations.panoptic_png import decode_id_map
from construction_panoptic.config.base import ONE_PROCESS, Execution
from construction_panoptic.errors import InputDataError
from construction_panoptic.evaluation.quality import SegmentCounts, merge_counts, quality_of_counts
from construction_panoptic.parallel.workers import Workers

IdMap = NDArray[np.integer[Any]]

NEAR = 0.1  # least IoU of a segment that was found, but outlined badly (TIDE's background limit, Bolya et al. 2020)

_FEW = 64  # images; more processes would take longer to start

COLUMNS = (
    "image_id",
    "side",
    "segment_id",
    "category_id",
    "area",
    "score",
    "outcome",
    "iou",
    "other_id",
    "other_category_id",
)


def match_segments(
    truth: Mapping[str, Any],
    truth_folder: Path,
    predictions: Mapping[str, Any],
    prediction_folder: Path,
    execution: Execution = ONE_PROCESS,
) -> pd.DataFrame:
    """Say of every segment of a data set what became of it.

    Args:
        truth: COCO panoptic JSON, loaded.
        truth_folder: folder of its PNGs.
        predictions: COCO panoptic results, loaded, with an annotation for each image of the truth.
        prediction_folder: folder of their PNGs.
        execution: the processes that match; the rows are the same with any.

    Returns:
        A row a segment; crowd segments of the truth have none. Columns ``image_id``; ``side`` (true, predicted);
        ``segment_id``; ``category_id``; ``area`` (pixels); ``score`` (0…1, NaN for true ones); ``outcome``; ``iou``
        with the other side's segment that decided the outcome (0 if there is none), and its ``other_id`` and
        ``other_category_id`` (missing if there is none). Outcomes:

        - ``matched``: IoU > 0.5 with a segment of its class. PQ's true positives.
        - ``mislabelled``: IoU > 0.5 with a segment of another class.
        - ``badly_outlined``: IoU from 0.1 to 0.5 with a segment of its class that is not matched.
        - ``missed`` (true) or ``spurious`` (predicted): none of these; the other segment is the one it overlaps most.
        - ``ignored`` (predicted): without a pair of its class, and more than half of it void or crowd of its class;
          PQ does not count it.

    Raises:
        InputDataError: an image has no prediction, or the sizes of its two PNGs differ.
    """
    if len(truth["annotations"]) <= _FEW:
        execution = ONE_PROCESS
    with Workers(**execution.model_dump()) as workers:
        matched = workers.map(partial(_match_files, truth_folder, prediction_folder), _pairs(truth, predictions))
        return segment_table(list(chain.from_iterable(matched)))


def _pairs(
    truth: Mapping[str, Any], predictions: Mapping[str, Any]
) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    by_image = {annotation["image_id"]: annotation for annotation in predictions["annotations"]}
    for annotation in truth["annotations"]:
        image_id = annotation["image_id"]
        if image_id not in by_image:
            raise InputDataError(f"image {image_id} ({annotation['file_name']}) has no prediction; predict again.")
        yield annotation, by_image[image_id]


def _match_files(
    truth_folder: Path, prediction_folder: Path, pair: tuple[Mapping[str, Any], Mapping[str, Any]]
) -> list[tuple[Any, ...]]:
    true, predicted = pair
    true_ids = decode_id_map(truth_folder / true["file_name"])
    predicted_ids = decode_id_map(prediction_folder / predicted["file_name"])
    if true_ids.shape != predicted_ids.shape:
        raise InputDataError(
            f"image {true['image_id']}: {true['file_name']} is {true_ids.shape[::-1]}, the prediction "
            f"{predicted['file_name']} {predicted_ids.shape[::-1]} pixels (width, height); predict again."
        )
    segments = true["segments_info"], predicted["segments_info"]
    return list(match_image(true["image_id"], true_ids, segments[0], predicted_ids, segments[1]))


def segment_table(rows: Sequence[tuple[Any, ...]]) -> pd.DataFrame:
    """Set rows of :func:`match_image` in a table; see :func:`match_segments`."""
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype({"score": float, "iou": float, "other_id": "Int64", "other_category_id": "Int64"})


def match_image(
    image_id: int,
    true_ids: IdMap,
    true_segments: Sequence[Mapping[str, Any]],
    predicted_ids: IdMap,
    predicted_segments: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[Any, ...]]:
    """Give a row for each segment of one image, with the columns of :func:`match_segments`.

    Args:
        image_id: id of the image.
        true_ids: [H, W], segment ids, 0 = void.
        true_segments: COCO's ``segments_info``: ``id``, ``category_id``, ``iscrowd`` (0 if absent).
        predicted_ids: [H, W].
        predicted_segments: the same, and ``score``.
    """
    shared = _shared_pixels(true_ids, true_segments, predicted_ids, predicted_segments)
    true_area, predicted_area = shared.sum(axis=1)[1:], shared.sum(axis=0)[1:]
    true_class, predicted_class = (
        np.array([segment["category_id"] for segment in segments], dtype=np.int64)
        for segments in (true_segments, predicted_segments)
    )
    crowd = np.array([bool(segment.get("iscrowd", 0)) for segment in true_segments], dtype=bool)
    void = shared[0, 1:]
    union = true_area[:, None] + predicted_area[None] - shared[1:, 1:] - void[None]
    iou = shared[1:, 1:] / np.maximum(union, 1)
    iou[crowd] = 0
    same = true_class[:, None] == predicted_class[None]
    true_outcome, true_other = _outcomes(iou, same, "missed")
    predicted_outcome, predicted_other = _outcomes(iou.T, same.T, "spurious")
    unpaired = (predicted_outcome != "matched") & (
        _uncounted(shared, crowd, true_class, predicted_class) > predicted_area / 2
    )
    predicted_outcome[unpaired] = "ignored"
    for k in np.flatnonzero(~crowd).tolist():
        partner = (iou[k], int(true_other[k]), predicted_segments)
        yield _row(image_id, "true", true_segments[k], int(true_area[k]), true_outcome[k], *partner)
    for k, segment in enumerate(predicted_segments):
        partner = (iou[:, k], int(predicted_other[k]), true_segments)
        yield _row(image_id, "predicted", segment, int(predicted_area[k]), predicted_outcome[k], *partner)


def _shared_pixels(
    true_ids: IdMap,
    true_segments: Sequence[Mapping[str, Any]],
    predicted_ids: IdMap,
    predicted_segments: Sequence[Mapping[str, Any]],
) -> NDArray[np.int64]:
    """Count the pixels that segments share, int64 [true + 1, predicted + 1]; position 0 is void."""
    columns = len(predicted_segments) + 1
    index = _positions(true_ids, true_segments) * columns + _positions(predicted_ids, predicted_segments)
    counts = np.bincount(index.ravel(), minlength=(len(true_segments) + 1) * columns)
    return counts.reshape(-1, columns)


def _positions(ids: IdMap, segments: Sequence[Mapping[str, Any]]) -> NDArray[np.int64]:
    """Replace ids by positions in the list: 0 for void and for ids that it lacks, k for the k-th segment."""
    known = np.array([0, *(segment["id"] for segment in segments)], dtype=np.int64)
    order = np.argsort(known)
    place = np.searchsorted(known, ids, sorter=order).clip(max=len(known) - 1)
    return np.where(known[order][place] == ids, order[place], 0)


def _outcomes(
    iou: NDArray[np.float64], same: NDArray[np.bool_], nothing: str
) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
    """Outcome of each row's segment and the column that decided it.

    Args:
        iou: [N, M].
        same: bool [N, M], whether the classes are the same.
        nothing: the outcome of a segment that nothing fits.
    """
    count, others = iou.shape
    outcome = np.full(count, nothing, dtype=object)
    if not others:
        return outcome, np.zeros(count, dtype=np.int64)
    best = iou.argmax(axis=1)
    paired, agreeing = iou.max(axis=1) > 0.5, same[np.arange(count), best]
    # A pair has IoU > 0.5, so it is the best of its row and of its column.
    free = ~np.any((iou > 0.5) & same, axis=0, keepdims=True)
    near = np.where(same & free, iou, 0)
    badly = ~paired & (near.max(axis=1) >= NEAR)
    outcome[badly] = "badly_outlined"
    outcome[paired & agreeing], outcome[paired & ~agreeing] = "matched", "mislabelled"
    return outcome, np.where(badly, near.argmax(axis=1), best)


def _uncounted(
    shared: NDArray[np.int64],
    crowd: NDArray[np.bool_],
    true_class: NDArray[np.int64],
    predicted_class: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Pixels of each predicted segment that are void or in the crowd segment of its class."""
    # COCO has one crowd segment a class in an image; of several, panopticapi takes the last.
    crowds = {int(true_class[k]): k + 1 for k in np.flatnonzero(crowd)}
    inside = [
        shared[crowds[int(category)], k] if int(category) in crowds else 0
        for k, category in enumerate(predicted_class, start=1)
    ]
    return shared[0, 1:] + np.array(inside, dtype=np.int64)


def _row(
    image_id: int,
    side: str,
    segment: Mapping[str, Any],
    area: int,
    outcome: str,
    iou: NDArray[np.float64],
    position: int,
    others: Sequence[Mapping[str, Any]],
) -> tuple[Any, ...]:
    met = len(iou) > 0 and iou[position] > 0
    other = (others[position]["id"], others[position]["category_id"]) if met else (None, None)
    common = (segment["id"], segment["category_id"], area, segment.get("score"), outcome)
    return (image_id, side, *common, float(iou[position]) if met else 0.0, *other)


class QualityCounter:
    """Panoptic quality of predictions in memory, image by image, as `panoptic_quality` measures it in files."""

    def __init__(self) -> None:
        self._counts: dict[int, SegmentCounts] = {}

    def add(
        self,
        true_ids: IdMap,
        true_segments: Sequence[Mapping[str, Any]],
        predicted_ids: IdMap,
        predicted_segments: Sequence[Mapping[str, Any]],
    ) -> None:
        """Count the segments of one image; arguments as of `match_image`."""
        rows = match_image(0, true_ids, true_segments, predicted_ids, predicted_segments)
        self._counts = merge_counts([self._counts, *map(_counts_of, rows)])

    def merge(self, other: "QualityCounter") -> None:
        """Add what another process has counted, of other images."""
        self._counts = merge_counts([self._counts, other._counts])

    def result(self, categories: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Give PQ, SQ and RQ in panopticapi's layout; see `quality_of_counts`."""
        return quality_of_counts(self._counts, categories)


def _counts_of(row: tuple[Any, ...]) -> dict[int, SegmentCounts]:
    _, side, _, category, _, _, outcome, iou, *_ = row
    if side == "true":
        matched = outcome == "matched"
        return {category: SegmentCounts(int(matched), 0, int(not matched), iou if matched else 0.0)}
    return {category: SegmentCounts(0, int(outcome not in ("matched", "ignored")), 0, 0.0)}
