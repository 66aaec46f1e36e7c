"""Pictures by which to watch a training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from construction_panoptic.annotations.images import read_rgb
from construction_panoptic.annotations.panoptic_png import decode_id_map
from construction_panoptic.annotations.records import ConvertedImages
from construction_panoptic.evaluation.examples import choose_images
from construction_panoptic.models.protocol import Segmentation
from construction_panoptic.parallel import collectives
from construction_panoptic.visualisation.overlays import ClassTable, Picture, boxes_overlay, panoptic_overlay
from construction_panoptic.visualisation.sheets import mosaic

PROGRESS_COLUMNS, PROGRESS_CELL = 4, 400  # images a row, and pixels an image
LEAST_SCORE = 0.5  # of the boxes that are drawn, as in DETR's demonstrations


class ProgressSheet:
    """The same few validation images, as the model sees them from validation to validation, below their truth.

    ``truth`` is a COCO panoptic or a COCO detection file, loaded, over whose images ``count`` are spread.
    """

    def __init__(self, truth: Mapping[str, Any], converted: ConvertedImages, count: int) -> None:
        self._images = {image["id"]: image for image in choose_images(truth, count)} if count else {}
        self._classes = ClassTable.from_categories(truth["categories"])
        self._converted = converted
        self._truth = self._true_pictures(truth)
        self._seen: dict[int, Picture] = {}

    def see(self, image_id: int, prediction: Any) -> None:
        """Draw a prediction, a `Segmentation` or boxes as dicts, of a score of 0.5 or more, if its image is shown."""
        if image_id not in self._images:
            return
        if isinstance(prediction, Segmentation):
            self._seen[image_id] = self._segments(image_id, prediction.id_map, prediction.segments)
        else:
            self._seen[image_id] = self._boxes(image_id, [box for box in prediction if box["score"] >= LEAST_SCORE])

    def take(self, epoch: int) -> Image.Image | None:
        """Give the sheet of what all processes have seen since the last one; None if that is nothing."""
        seen = {image_id: picture for part in collectives.all_gather(self._seen) for image_id, picture in part.items()}
        self._seen = {}
        if not seen:
            return None
        pictures, titles = [], []
        ids = list(self._images)
        for start in range(0, len(ids), PROGRESS_COLUMNS):
            row = ids[start : start + PROGRESS_COLUMNS]
            blank = [np.full((1, 4, 3), 255, np.uint8)] * (PROGRESS_COLUMNS - len(row) if start else 0)
            pictures += [self._truth[i] for i in row] + blank + [seen[i] for i in row] + blank
            titles += [self._images[i]["file_name"] for i in row] + [""] * len(blank)
            titles += [f"epoch {epoch}"] * len(row) + [""] * len(blank)
        columns = min(len(ids), PROGRESS_COLUMNS)
        return mosaic(pictures, titles, columns=columns, width=columns * PROGRESS_CELL)

    def _true_pictures(self, truth: Mapping[str, Any]) -> dict[int, Picture]:
        annotations = [a for a in truth["annotations"] if a["image_id"] in self._images]
        if any("segments_info" in annotation for annotation in annotations):
            return {
                a["image_id"]: self._segments(
                    a["image_id"], decode_id_map(self._converted.png_folder / a["file_name"]), a["segments_info"]
                )
                for a in annotations
            }
        return {i: self._boxes(i, [a for a in annotations if a["image_id"] == i]) for i in self._images}

    def _segments(self, image_id: int, id_map: Any, segments: Sequence[Mapping[str, Any]]) -> Picture:
        return panoptic_overlay(self._photograph(image_id), id_map, segments, self._classes, max_side=PROGRESS_CELL)

    def _boxes(self, image_id: int, boxes: list[dict[str, Any]]) -> Picture:
        return boxes_overlay(self._photograph(image_id), boxes, self._classes, max_side=PROGRESS_CELL)

    def _photograph(self, image_id: int) -> Picture:
        return read_rgb(self._converted.image_folder / self._images[image_id]["file_name"])
