"""Pictures by which to watch a training."""

from collections.abc import Mapping
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
        self._files = {image["id"]: image["file_name"] for image in choose_images(truth, count)}
        self._classes = ClassTable.from_categories(truth["categories"])
        self._image_folder = converted.image_folder
        self._truth = {image_id: self._draw(image_id, _found(truth, image_id, converted)) for image_id in self._files}
        self._seen: dict[int, Picture] = {}

    def see(self, image_id: int, prediction: Any) -> None:
        """Draw a prediction, a `Segmentation` or boxes as dicts, of a score of 0.5 or more, if its image is shown."""
        if image_id in self._files:
            self._seen[image_id] = self._draw(image_id, prediction)

    def take(self, epoch: int) -> Image.Image | None:
        """Give the sheet of what all processes have seen since the last one; None if that is nothing."""
        seen = {image_id: picture for part in collectives.all_gather(self._seen) for image_id, picture in part.items()}
        self._seen = {}
        if not seen:
            return None
        pictures, titles = [], []
        ids = list(self._files)
        for start in range(0, len(ids), PROGRESS_COLUMNS):
            row = ids[start : start + PROGRESS_COLUMNS]
            blank = [np.full((1, 4, 3), 255, np.uint8)] * (PROGRESS_COLUMNS - len(row) if start else 0)
            pictures += [self._truth[i] for i in row] + blank + [seen[i] for i in row] + blank
            titles += [self._files[i] for i in row] + [""] * len(blank)
            titles += [f"epoch {epoch}"] * len(row) + [""] * len(blank)
        columns = min(len(ids), PROGRESS_COLUMNS)
        return mosaic(pictures, titles, columns=columns, width=columns * PROGRESS_CELL)

    def _draw(self, image_id: int, found: Segmentation | list[dict[str, Any]]) -> Picture:
        photograph = read_rgb(self._image_folder / self._files[image_id])
        if isinstance(found, Segmentation):
            return panoptic_overlay(photograph, found.id_map, found.segments, self._classes, max_side=PROGRESS_CELL)
        boxes = [box for box in found if box.get("score", 1) >= LEAST_SCORE]
        return boxes_overlay(photograph, boxes, self._classes, max_side=PROGRESS_CELL)


def _found(truth: Mapping[str, Any], image_id: int, converted: ConvertedImages) -> Segmentation | list[dict[str, Any]]:
    """The truth of an image, as a model would predict it."""
    own = [annotation for annotation in truth["annotations"] if annotation["image_id"] == image_id]
    if own and "segments_info" in own[0]:
        id_map = decode_id_map(converted.png_folder / own[0]["file_name"])
        return Segmentation(id_map.astype(np.int32), own[0]["segments_info"])
    return own
