import numpy as np
import pandas as pd

from construction_panoptic.evaluation.segments import match_image, segment_table
from construction_panoptic.visualisation import ClassTable
from construction_panoptic.visualisation.examples import ERROR_COLORS, errors_overlay


def test_each_error_has_its_colour_and_what_is_right_is_grey(classes: ClassTable) -> None:
    """Five columns of 100 pixels: matched, mislabelled, missed, spurious, badly outlined."""
    true, predicted = np.zeros((2, 400, 500), np.int32)
    true[:, :100], true[:, 100:200], true[:, 200:300], true[:300, 400:] = 1, 2, 3, 4
    predicted[:, :100], predicted[:, 100:200], predicted[250:, 300:400], predicted[200:, 400:] = 1, 2, 3, 4
    # Over void of the ground truth, the spurious one would be ignored.
    true[250:, 300:400] = 1
    true_segments, predicted_segments = (
        [{"id": k, "category_id": category} for k, category in enumerate(categories, start=1)]
        for categories in ([1, 2, 3, 4], [1, 3, 2, 4])
    )
    matches = segment_table(list(match_image(7, true, true_segments, predicted, predicted_segments)))
    image = np.zeros((400, 500, 3), np.uint8)
    image[..., 0] = 90
    picture = errors_overlay(image, true, predicted, matches, classes).astype(int)

    assert len(set(picture[390, 10])) == 1
    for x, outcome in ((110, "mislabelled"), (210, "missed"), (310, "spurious"), (490, "badly_outlined")):
        blended = np.round(0.6 * np.array(ERROR_COLORS[outcome]) + 0.4 * image[0, 0])
        assert np.abs(picture[390, x] - blended).max() <= 1, outcome


def test_without_errors_nothing_is_coloured(classes: ClassTable) -> None:
    ids = np.ones((400, 400), np.int32)
    rows = list(match_image(7, ids, [{"id": 1, "category_id": 1}], ids, [{"id": 1, "category_id": 1}]))
    matches: pd.DataFrame = segment_table(rows)
    picture = errors_overlay(np.full((400, 400, 3), (90, 0, 0), np.uint8), ids, ids, matches, classes)
    assert (picture == picture[0, 0, 0]).all()
