"""Images with their ground truth, their predictions and what is wrong with these, for sheets and reports."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import ImageColor

from construction_panoptic.annotations.images import read_rgb
from construction_panoptic.annotations.panoptic_png import decode_id_map
from construction_panoptic.evaluation.predictions import read_results
from construction_panoptic.visualisation import overlays
from construction_panoptic.visualisation.charts import LOSS_COLORS
from construction_panoptic.visualisation.overlays import Classes, ClassTable, Color, Picture, panoptic_overlay
from construction_panoptic.visualisation.sheets import CELL_SIDE, Example

ERROR_COLORS: dict[str, Color] = {name: ImageColor.getrgb(color)[:3] for name, color in LOSS_COLORS.items()}

# Outcome → the side whose outline is drawn; the later over the earlier.
DRAWN_ERRORS = {"missed": "true", "badly_outlined": "predicted", "mislabelled": "predicted", "spurious": "predicted"}


def overlay_of(image: Path, png: Path, segments: Sequence[Mapping[str, Any]], classes: Classes) -> Picture:
    """Draw a panoptic PNG over its image: uint8 [h, w, 3], of a size for a cell of a sheet."""
    return panoptic_overlay(read_rgb(image), decode_id_map(png), segments, classes, max_side=CELL_SIDE)


def overlays_of(coco: Mapping[str, Any], images: Path, pngs: Path) -> list[Picture]:
    """Draw the segments of each image of a loaded COCO panoptic file over it, in the order of its images."""
    classes = ClassTable.from_categories(coco["categories"])
    found = {annotation["image_id"]: annotation for annotation in coco["annotations"]}
    pairs = ((images / image["file_name"], found[image["id"]]) for image in coco["images"])
    return [overlay_of(image, pngs / own["file_name"], own["segments_info"], classes) for image, own in pairs]


def examples_of(
    qualities: Mapping[int, float | None],
    truth: Mapping[str, Any],
    folders: tuple[Path, Path],
    predictions: Path,
    segments: pd.DataFrame | None = None,
    *,
    max_side: int = CELL_SIDE,
) -> Iterator[Example]:
    """Draw images, their ground truth and their predictions, one after the other.

    ``qualities`` are PQ (0…1, or None) of the images that are wanted, by their ids and in their order; ``truth`` is
    COCO panoptic, ``folders`` those of its images and of its PNGs. With ``segments``, see `segments.match_segments`,
    what is wrong is drawn too. The overlays' longest side is ``max_side`` pixels.
    """
    classes = ClassTable.from_categories(truth["categories"])
    names = {image["id"]: image["file_name"] for image in truth["images"]}
    truth_of = {annotation["image_id"]: annotation for annotation in truth["annotations"]}
    prediction_of = {annotation["image_id"]: annotation for annotation in read_results(predictions)["annotations"]}
    for image_id, quality in qualities.items():
        photograph = read_rgb(folders[0] / names[image_id])
        true, predicted = truth_of[image_id], prediction_of[image_id]
        true_ids, true_info = decode_id_map(folders[1] / true["file_name"]), true["segments_info"]
        ids, info = decode_id_map(predictions / predicted["file_name"]), predicted["segments_info"]
        pictures = {
            "Image": photograph,
            "Ground truth": panoptic_overlay(photograph, true_ids, true_info, classes, max_side=max_side),
            "Prediction": panoptic_overlay(photograph, ids, info, classes, max_side=max_side),
        }
        legend = overlays.legend_entries([*true_info, *info], classes)
        if segments is not None:
            matches = segments[segments["image_id"] == image_id]
            pictures["Errors"] = errors_overlay(photograph, true_ids, ids, matches, classes, max_side=max_side)
            legend += [(overlays.display_name(outcome), color) for outcome, color in ERROR_COLORS.items()]
        yield Example(names[image_id], pictures, quality, legend)


def errors_overlay(
    image: Picture,
    true_ids: NDArray[np.integer],
    predicted_ids: NDArray[np.integer],
    matches: pd.DataFrame,
    classes: Classes,
    *,
    max_side: int = 1600,
) -> Picture:
    """Draw the segments that are wrong in `ERROR_COLORS`, and all else in grey.

    Id maps are [H, W], 0 = void, and ``matches`` are the image's rows of `segments.match_segments`.
    """
    id_map = np.zeros(true_ids.shape, np.int32)
    names: dict[int, str] = {}
    colors: dict[int, Color] = {}
    for outcome, side in DRAWN_ERRORS.items():
        rows = matches[(matches["outcome"] == outcome) & (matches["side"] == side)]
        for row in rows.to_dict("records"):
            number = len(names) + 1
            id_map[(true_ids if side == "true" else predicted_ids) == row["segment_id"]] = number
            names[number] = classes.names[row["category_id"]]
            if outcome == "mislabelled":
                names[number] += f", is {classes.names[row['other_category_id']]}"
            colors[number] = ERROR_COLORS[outcome]
    errors = ClassTable(names, colors, dict.fromkeys(names, False))
    segments = [{"id": number, "category_id": number} for number in names]
    return panoptic_overlay(image, id_map, segments, errors, alpha=0.6, max_side=max_side, hatch_void=False)
