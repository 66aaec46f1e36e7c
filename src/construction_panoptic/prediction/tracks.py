"""The identity of things over the frames of a video."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pycocotools import mask as rle_codec
from scipy.optimize import linear_sum_assignment

from construction_panoptic.annotations.merging.segment_shapes import segment_rles
from construction_panoptic.evaluation.predictions import ImagePrediction

LEAST_IOU = 0.2
PATIENCE = 5
"""Frames for which a thing may be missing until it counts as gone."""


@dataclass
class _Track:
    category_id: int
    rle: dict[str, Any]
    last_frame: int


class Tracker:
    """Follows the things of one video.

    The things of a frame are matched to those last seen, all at once (Hungarian algorithm), so that the sum of the
    masks' IoU is largest; a pair needs the same class and an IoU of `LEAST_IOU`. A thing without a pair is new.
    """

    def __init__(self) -> None:
        self._tracks: dict[int, _Track] = {}
        self._frame = 0
        self._count = 0

    def follow(self, prediction: ImagePrediction) -> ImagePrediction:
        """Give the next frame's prediction, with the ``track_id`` of each thing, from 1, in ``segments_info``."""
        self._frame += 1
        self._tracks = {k: track for k, track in self._tracks.items() if self._frame - track.last_frame <= PATIENCE + 1}
        things = [segment for segment in prediction.segments_info if segment["isthing"]]
        codes = segment_rles(prediction.id_map.astype(np.uint32)) if things else {}
        known = self._match(things, codes)
        ids: dict[int, int] = {}
        for thing in things:
            number = known.get(thing["id"])
            if number is None:
                number = self._count = self._count + 1
            ids[thing["id"]] = number
            self._tracks[number] = _Track(thing["category_id"], codes[thing["id"]], self._frame)
        segments = [s | {"track_id": ids[s["id"]]} if s["id"] in ids else s for s in prediction.segments_info]
        return replace(prediction, segments_info=segments)

    def _match(self, things: list[dict[str, Any]], codes: dict[int, dict[str, Any]]) -> dict[int, int]:
        """Segment id → track id of the things that were seen before."""
        if not things or not self._tracks:
            return {}
        numbers, tracks = list(self._tracks), list(self._tracks.values())
        iou = rle_codec.iou([codes[s["id"]] for s in things], [track.rle for track in tracks], [0] * len(tracks))
        same = np.equal.outer([s["category_id"] for s in things], [track.category_id for track in tracks])
        rows, columns = linear_sum_assignment(iou * same, maximize=True)
        pairs = zip(rows.tolist(), columns.tolist(), strict=True)
        return {things[r]["id"]: numbers[c] for r, c in pairs if same[r, c] and iou[r, c] >= LEAST_IOU}
