from pathlib import Path

import numpy as np
import pytest

from construction_panoptic.evaluation.predictions import PREDICTIONS_FILE, predict_images, write_predictions
from construction_panoptic.evaluation.quality import panoptic_quality
from construction_panoptic.evaluation.thresholds import threshold_curve
from construction_panoptic.models.detr import DetrPanoptic
from tests.unit.evaluation.conftest import SmallData


def test_each_threshold_has_the_pq_of_its_own_predictions(
    small_data: SmallData, model: DetrPanoptic, tmp_path: Path
) -> None:
    thresholds = [0.6, 0.2, 0.4]
    curve = threshold_curve(
        model, small_data.panoptic_loader(), small_data.panoptic, small_data.pngs, thresholds=thresholds
    )
    assert curve["threshold"].tolist() == [0.2, 0.4, 0.6]
    assert curve["segments"].is_monotonic_decreasing
    assert curve["segments"].nunique() > 1  # the thresholds do something
    for row in curve.to_dict("records"):
        folder = tmp_path / str(row["threshold"])
        predictions = predict_images(
            model,
            small_data.panoptic_loader(),
            categories=small_data.panoptic["categories"],
            threshold=row["threshold"],
        )
        write_predictions(predictions, folder)
        quality = panoptic_quality(small_data.panoptic, small_data.pngs, folder / PREDICTIONS_FILE, folder)
        for column, split in (("pq", "All"), ("pq_things", "Things"), ("pq_stuff", "Stuff")):
            assert row[column] == pytest.approx(quality[split]["pq"], abs=1e-12)
        assert row["images"] == 5


def test_a_threshold_that_keeps_nothing_has_a_pq_of_zero(small_data: SmallData, model: DetrPanoptic) -> None:
    curve = threshold_curve(model, small_data.panoptic_loader(), small_data.panoptic, small_data.pngs, thresholds=[1.0])
    assert curve[["pq", "segments"]].to_numpy().tolist() == [[0.0, 0.0]]
    assert model.training
    assert not np.isnan(curve["pq_stuff"].iloc[0])
