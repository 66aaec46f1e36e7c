"""Overlays of converted images, for the nodes that draw."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from construction_panoptic.annotations.panoptic_png import decode_id_map
from construction_panoptic.visualisation.classes import Classes
from construction_panoptic.visualisation.overlays import Picture, panoptic_overlay
from construction_panoptic.visualisation.sheets import CELL_SIDE


def overlay_of(
    image_folder: Path,
    png_folder: Path,
    image: Mapping[str, Any],
    annotation: Mapping[str, Any],
    classes: Classes,
) -> tuple[Picture, Picture]:
    """Read an image and draw one annotation of a COCO panoptic file over it.

    Returns:
        The image and the overlay, uint8 [H, W, 3] each; the overlay's size suits a cell of a sheet.
    """
    with Image.open(image_folder / image["file_name"]) as file:
        photograph = np.asarray(file.convert("RGB"))
    id_map = decode_id_map(png_folder / annotation["file_name"])
    overlay = panoptic_overlay(photograph, id_map, annotation["segments_info"], classes, max_side=CELL_SIDE)
    return photograph, overlay
