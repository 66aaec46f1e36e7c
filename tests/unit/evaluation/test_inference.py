import io
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from construction_panoptic.config.base import Execution
from construction_panoptic.config.evaluation import EvaluationSettings
from construction_panoptic.errors import InputDataError
from construction_panoptic.evaluation.inference import ImageFiles, predict_files
from construction_panoptic.evaluation.predictions import ImagePrediction, predict_images
from construction_panoptic.models.preprocessing import prepare
from construction_panoptic.training.loading import build_loader
from tests.unit.small_model import small_model

pytestmark = pytest.mark.medium


def predicted(data: Any, **execution: Any) -> list[ImagePrediction]:
    model = small_model()
    files = ImageFiles(data.panoptic, data.images, model.prepare)
    settings = EvaluationSettings(execution=Execution(**execution), batch_size=2, workers=0, device="cpu")
    return [prediction.packed() for prediction in predict_files(model, files, settings)]


@pytest.mark.usefixtures("one_thread")
def test_processes_predict_as_one_does(small_data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("construction_panoptic.parallel.model_pool.IMAGES_IN_BLOCK", 2)
    expected = predicted(small_data, workers=1)
    assert [len(prediction.boxes) > 0 for prediction in expected] == [True] * len(small_data.panoptic["images"])
    assert predicted(small_data, workers=2) == expected


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread", "ray_cluster")
def test_ray_predicts_as_one_process_does(small_data: Any) -> None:
    assert predicted(small_data, engine="ray", workers=2) == predicted(small_data, workers=1)


def test_files_are_prepared_as_samples_are(small_data: Any) -> None:
    model = small_model()
    as_samples = partial(prepare, settings=small_data.settings)
    files = ImageFiles(small_data.panoptic, small_data.images, as_samples)
    own = list(predict_images(model, build_loader(files, batch_size=2, shuffle=False)))
    samples = list(predict_images(model, small_data.panoptic_loader(2)))
    assert [prediction.packed() for prediction in own] == [prediction.packed() for prediction in samples]


def test_image_files_are_read_upright_and_predicted(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90°
    Image.new("RGB", (128, 192), (9, 90, 200)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("L", (128, 128), 7).save(tmp_path / "grey.png")
    model = small_model()
    images = [{"id": 7, "file_name": "grey.png"}, {"id": 3, "file_name": "turned.jpg"}]
    files = ImageFiles({"images": images}, tmp_path, model.prepare)
    image, target = files[0]
    assert image.shape == (3, 64, 96)
    assert (target["orig_size"].tolist(), target["size"].tolist()) == ([128, 192], [64, 96])
    predictions = list(predict_images(model, build_loader(files, batch_size=2, shuffle=False)))
    found = [(p.image_id, p.file_name, p.width, p.height) for p in predictions]
    assert found == [(3, "turned.jpg", 192, 128), (7, "grey.png", 128, 128)]
    with Image.open(io.BytesIO(predictions[0].png)) as png:
        assert png.size == (192, 128)


def test_bad_image_files(small_data: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no image")
    model = small_model()
    with pytest.raises(InputDataError, match=r"a\.jpg"):
        ImageFiles({"images": [{"id": 1, "file_name": "a.jpg"}]}, tmp_path, model.prepare)[0]
    first = small_data.panoptic["images"][0] | {"width": 5}
    with pytest.raises(InputDataError, match="192 x 128 pixels, but the annotations say 5 x 128"):
        ImageFiles({"images": [first]}, small_data.images, model.prepare)[0]
