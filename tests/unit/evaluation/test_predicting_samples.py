from typing import Any

import pytest

from construction_panoptic.config.base import Execution
from construction_panoptic.config.evaluation import EvaluationSettings
from construction_panoptic.evaluation.inference import predict_samples
from construction_panoptic.evaluation.predictions import ImagePrediction, predict_images
from construction_panoptic.models.detr import DetrPanoptic
from construction_panoptic.training.samples import PanopticSamples


def predicted(model: DetrPanoptic, data: Any, **execution: Any) -> list[ImagePrediction]:
    samples = PanopticSamples(data.panoptic, data.images, data.pngs, data.settings)
    settings = EvaluationSettings(
        execution=Execution(**execution), batch_size=2, workers=0, device="cpu", threshold=0.2
    )
    return list(predict_samples(model, samples, settings, data.panoptic["categories"]))


@pytest.mark.usefixtures("one_thread")
def test_processes_predict_as_one_does(model: DetrPanoptic, small_data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("construction_panoptic.parallel.model_pool.IMAGES_IN_BLOCK", 2)
    expected = predicted(model, small_data, workers=1)
    assert [len(prediction.boxes) > 0 for prediction in expected] == [True] * len(small_data.panoptic["images"])
    loader = small_data.panoptic_loader(2)
    assert expected == list(predict_images(model, loader, categories=expected[0].categories, threshold=0.2))
    assert predicted(model, small_data, workers=2) == expected


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread", "ray_cluster")
def test_ray_predicts_as_one_process_does(model: DetrPanoptic, small_data: Any) -> None:
    assert predicted(model, small_data, engine="ray", workers=2) == predicted(model, small_data, workers=1)
