"""What is wrong with a prediction, drawn over its image."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import ImageColor

from construction_panoptic.visualisation.charts import LOSS_COLORS
from construction_panoptic.visualisation.classes import Classes, ClassTable, Color, display_name
from construction_panoptic.visualisation.overlays import Picture, panoptic_overlay

ERROR_COLORS: dict[str, Color] = {name: ImageColor.getrgb(color)[:3] for name, color in LOSS_COLORS.items()}

# (outcome, the side whose outline is drawn), the later over the earlier.
_DRAWN = (("missed", "true"), ("badly_outlined", "predicted"), ("mislabelled", "predicted"), ("spurious", "predicted"))


def errors_overlay(
    image: Picture,
    true_ids: NDArray[np.integer],
    predicted_ids: NDArray[np.integer],
    matches: pd.DataFrame,
    classes: Classes,
    *,
    max_side: int = 1600,
) -> Picture:
    """Draw the segments that are wrong in the colours of `charts.LOSS_COLORS`, and all else in grey.

    Args:
        image: uint8 [H, W, 3] RGB.
        true_ids: [H, W], segment ids of the ground truth, 0 = void.
        predicted_ids: [H, W], segment ids of the prediction.
        matches: the rows of this image in `segments.match_segments`.
        classes: names of the categories.
        max_side: as in `overlays.panoptic_overlay`.

    Returns:
        uint8 [h, w, 3].
    """
    id_map = np.zeros(true_ids.shape, np.int32)
    names: dict[int, str] = {}
    colors: dict[int, Color] = {}
    for outcome, side in _DRAWN:
        rows = matches[(matches["outcome"] == outcome) & (matches["side"] == side)]
        for row in rows.to_dict("records"):
            number = len(names) + 1
            id_map[(true_ids if side == "true" else predicted_ids) == row["segment_id"]] = number
            names[number] = display_name(classes.names[row["category_id"]])
            if outcome == "mislabelled":
                names[number] += f", is {display_name(classes.names[row['other_category_id']])}"
            colors[number] = ERROR_COLORS[outcome]
    errors = ClassTable(names, colors, dict.fromkeys(names, False))
    segments = [{"id": number, "category_id": number} for number in names]
    return panoptic_overlay(image, id_map, segments, errors, alpha=0.6, max_side=max_side, hatch_void=False)
