"""Matching of ground-truth and predicted segments, one by one, for the error analysis and for validation."""

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
from construction_panoptic.evaluation.quality import Annotation, SegmentCounts, panoptic_pairs
from construction_panoptic.parallel.workers import Workers

IdMap = NDArray[np.integer[Any]]
Segments = Sequence[Mapping[str, Any]]

NEAR = 0.1  # least IoU of a segment that was found, but outlined badly (TIDE's background limit, Bolya et al. 2020)

_FEW = 64  # images; more processes would take longer to start

_OWN_COLUMNS = ("image_id", "side", "segment_id", "category_id", "area", "score")
_FOUND_COLUMNS = ("outcome", "iou", "other_id", "other_category_id")


def match_segments(
    truth: Mapping[str, Any],
    truth_folder: Path,
    predictions: Mapping[str, Any],
    prediction_folder: Path,
    execution: Execution = ONE_PROCESS,
) -> pd.DataFrame:
    """Say of every segment of a data set what became of it.

    ``truth`` and ``predictions`` are COCO panoptic JSON, loaded, with their folders of PNGs. Segments are matched as in
    panoptic quality (Kirillov et al. 2019, section 4.1), but whatever their class: void pixels leave a predicted
    segment's area, and IoU > 0.5 makes a pair, of which a segment can have only one. The rows are the same with any
    number of processes.

    Returns:
        A row a segment; crowd segments of the truth have none. Columns ``image_id``; ``side`` (true, predicted);
        ``segment_id``; ``category_id``; ``area`` (pixels); ``score`` (0…1, NaN for true ones); ``outcome``; ``iou``
        with the other side's segment that decided the outcome (0 if there is none), and its ``other_id`` and
        ``other_category_id`` (missing if there is none). Outcomes:

        - ``matched``: IoU > 0.5 with a segment of its class: PQ's true positives.
        - ``mislabelled``: IoU > 0.5 with a segment of another class.
        - ``badly_outlined``: IoU from 0.1 to 0.5 with a segment of its class that is not matched.
        - ``missed`` (true) or ``spurious`` (predicted): none of these; the other segment is the one it overlaps most.
        - ``ignored`` (predicted): without a pair of its class, and more than half of it void or crowd of its class;
          PQ does not count it.

    Raises:
        InputDataError: an image has no prediction, or the sizes of its two PNGs differ.
    """
    pairs = panoptic_pairs(truth, predictions, "the ground truth", "the predictions")
    with Workers(**(execution if len(pairs) > _FEW else ONE_PROCESS).model_dump()) as workers:
        matched = workers.map(partial(_match_files, truth_folder, prediction_folder), pairs)
        return segment_table(list(chain.from_iterable(matched)))


def _match_files(
    truth_folder: Path, prediction_folder: Path, pair: tuple[Annotation, Annotation]
) -> list[tuple[Any, ...]]:
    true, predicted = pair
    true_ids = decode_id_map(truth_folder / true["file_name"])
    predicted_ids = decode_id_map(prediction_folder / predicted["file_name"])
    if true_ids.shape != predicted_ids.shape:
        raise InputDataError(
            f"image {true['image_id']}: {true['file_name']} is {true_ids.shape[::-1]}, the prediction "
            f"{predicted['file_name']} {predicted_ids.shape[::-1]} pixels (width, height); predict again."
        )
    rows = match_image(true["image_id"], true_ids, true["segments_info"], predicted_ids, predicted["segments_info"])
    return list(rows)


def segment_table(rows: Sequence[tuple[Any, ...]]) -> pd.DataFrame:
    """Set rows of :func:`match_image` in a table; see :func:`match_segments`."""
    table = pd.DataFrame(rows, columns=[*_OWN_COLUMNS, *_FOUND_COLUMNS])
    return table.astype({"score": float, "iou": float, "other_id": "Int64", "other_category_id": "Int64"})


def match_image(
    image_id: int, true_ids: IdMap, true_segments: Segments, predicted_ids: IdMap, predicted_segments: Segments
) -> Iterator[tuple[Any, ...]]:
    """Give a row for each segment of one image, with the columns of :func:`match_segments`.

    Id maps are [H, W], 0 = void; segments are COCO's ``segments_info``, ``iscrowd`` 0 if absent, predicted ones with
    ``score``.
    """
    columns = len(predicted_segments) + 1
    index = positions(true_ids, true_segments) * columns + positions(predicted_ids, predicted_segments)
    counts = np.bincount(index.ravel(), minlength=(len(true_segments) + 1) * columns)
    shared = counts.reshape(-1, columns)  # pixels, [true + 1, predicted + 1]; position 0 is void
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
    in_crowd = np.zeros_like(void)
    for k in np.flatnonzero(crowd):  # of several crowd segments of a class, panopticapi takes the last
        in_crowd = np.where(same[k], shared[k + 1, 1:], in_crowd)
    predicted_outcome[(predicted_outcome != "matched") & (void + in_crowd > predicted_area / 2)] = "ignored"
    for row in zip(true_segments, true_area, true_outcome, iou, true_other, strict=True):
        if not row[0].get("iscrowd"):
            yield image_id, "true", *_row(*row, predicted_segments)
    for row in zip(predicted_segments, predicted_area, predicted_outcome, iou.T, predicted_other, strict=True):
        yield image_id, "predicted", *_row(*row, true_segments)


def positions(ids: IdMap, segments: Segments) -> NDArray[np.int64]:
    """Replace ids, [H, W], by positions in the list: 0 for void and for ids that it lacks, k for the k-th segment."""
    known = np.array([0, *(segment["id"] for segment in segments)], dtype=np.int64)
    order = np.argsort(known)
    place = np.searchsorted(known, ids, sorter=order).clip(max=len(known) - 1)
    return np.where(known[order][place] == ids, order[place], 0)


def _outcomes(
    iou: NDArray[np.float64], same: NDArray[np.bool_], nothing: str
) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
    """Outcome of each of N segments, ``nothing`` where nothing fits, and which of M others decided it.

    ``iou`` and ``same`` (whether the classes are the same) are [N, M].
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


def _row(
    segment: Mapping[str, Any], area: int, outcome: str, iou: NDArray[np.float64], position: int, others: Segments
) -> tuple[Any, ...]:
    met = float(iou[position]) if others else 0.0
    other = others[position] if met > 0 else {}
    own = segment["id"], segment["category_id"], int(area), segment.get("score"), outcome
    return *own, met, other.get("id"), other.get("category_id")


def counts_of(row: tuple[Any, ...]) -> dict[int, SegmentCounts]:
    """Say what a row of :func:`match_image` adds to the counts of PQ."""
    _, side, _, category, _, _, outcome, iou, *_ = row
    if side == "true":
        matched = outcome == "matched"
        return {category: SegmentCounts(int(matched), 0, int(not matched), iou if matched else 0.0)}
    return {category: SegmentCounts(0, int(outcome not in ("matched", "ignored")), 0, 0.0)}
