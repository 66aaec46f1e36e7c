from pathlib import Path

import pytest

from construction_panoptic.evaluation.predictions import PREDICTIONS_FILE, predict_images, write_predictions
from construction_panoptic.evaluation.quality import panoptic_quality
from construction_panoptic.evaluation.thresholds import threshold_curve
from construction_panoptic.models.detr import DetrModel
from tests.unit.evaluation.conftest import SmallData
from tests.unit.small_model import small_model


@pytest.mark.parametrize("merging", ["pixels", "masks"])
def test_each_threshold_has_the_pq_of_its_own_predictions(small_data: SmallData, merging: str, tmp_path: Path) -> None:
    model = small_model(merging=merging)
    things, stuff = (0.2, 0.2) if merging == "pixels" else (0.4, 0.3)
    files, truth = small_data.panoptic_loader(), small_data.panoptic
    curve = threshold_curve(model, files, truth, small_data.pngs, thresholds=[0.6, 0.3, 0.4])
    assert curve["threshold"].tolist() == sorted({0.3, 0.4, 0.6, things, stuff})
    assert curve["threshold"][curve["in_use_things"]].tolist() == [things]
    assert curve["threshold"][curve["in_use_stuff"]].tolist() == [stuff]
    assert curve["segments"].is_monotonic_decreasing
    assert curve["segments"].nunique() > 1  # the thresholds do something
    for row in curve.to_dict("records"):
        folder = tmp_path / str(row["threshold"])
        write_predictions(predict_images(model, files, overrides={"threshold": row["threshold"]}), folder)
        quality = panoptic_quality(truth, small_data.pngs, folder / PREDICTIONS_FILE, folder)
        for column, split in (("pq", "All"), ("pq_things", "Things"), ("pq_stuff", "Stuff")):
            assert row[column] == pytest.approx(quality[split]["pq"], abs=1e-12)
        assert row["images"] == 5


def test_a_threshold_that_keeps_nothing_has_a_pq_of_zero(small_data: SmallData) -> None:
    model: DetrModel = small_model(threshold=0.9999)
    model.network.train()
    curve = threshold_curve(model, small_data.panoptic_loader(), small_data.panoptic, small_data.pngs, thresholds=[])
    assert curve[["pq", "pq_stuff", "segments"]].to_numpy().tolist() == [[0.0, 0.0, 0.0]]
    assert model.network.training
