import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as rle_codec

from construction_panoptic.annotations import images
from construction_panoptic.annotations.panoptic_png import decode_id_map
from construction_panoptic.config.prediction import PredictionSettings
from construction_panoptic.errors import InputDataError, ParameterError
from construction_panoptic.models.protocol import PanopticModel
from construction_panoptic.prediction.answering import answer
from construction_panoptic.prediction.running import PredictedPicture, predict_source
from construction_panoptic.prediction.sources import find_files


def test_a_path_bytes_and_base64_give_the_same(trained: PanopticModel, site: Path) -> None:
    content = (site / "a.jpg").read_bytes()
    text = base64.b64encode(content).decode()
    wrapped = "\n".join(text[k : k + 76] for k in range(0, len(text), 76))
    found = answer(trained, [str(site / "a.jpg"), content, text, wrapped, f"data:image/jpeg;base64,{text}"])
    assert found[0]["segments"]
    assert all(other == found[0] for other in found)


def test_the_answer_is_the_prediction(trained: PanopticModel, site: Path) -> None:
    files = find_files(str(site / "*.png"))
    (picture,) = predict_source(trained, files, PredictionSettings(device="cpu", threshold=0.1))
    assert isinstance(picture, PredictedPicture)
    expected = picture.prediction
    (found,) = answer(trained, [str(files[0].path)], 0.1)

    assert (found["width"], found["height"]) == (70, 90)
    assert base64.b64decode(found["png"]) == expected.png
    id_map = decode_id_map(expected.png)
    assert [segment["id"] for segment in found["segments"]] == [segment["id"] for segment in expected.segments_info]
    for segment, of_image in zip(found["segments"], expected.segments_info, strict=True):
        assert {key: segment[key] for key in ("category_id", "score", "area", "bbox")}.items() <= of_image.items()
        assert segment["class"] == f"class {segment['category_id']}"
        np.testing.assert_array_equal(rle_codec.decode(segment["rle"]), id_map == segment["id"])


def test_a_threshold_can_be_given(trained: PanopticModel, site: Path) -> None:
    assert answer(trained, [str(site / "a.jpg")], 0.99999)[0]["segments"] == []
    with pytest.raises(ParameterError, match=r"threshold is 1\.5"):
        answer(trained, [str(site / "a.jpg")], 1.5)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("nowhere.jpg", r"'nowhere\.jpg' is neither a file on this machine nor base64"),
        ("x" * 5001, r"'x{60}…' is neither a file"),
        (b"no picture", "not a readable image"),
        (base64.b64encode(b"no picture").decode(), "not a readable image"),
        ("", "not a readable image"),
        (None, "a path, bytes or base64 is needed, not NoneType"),
    ],
)
def test_what_is_no_image_is_named(trained: PanopticModel, site: Path, image: Any, words: str) -> None:
    with pytest.raises(InputDataError, match=f"Image 2: .*{words}"):
        answer(trained, [str(site / "a.jpg"), image])


def test_images_that_are_too_large_are_refused(
    trained: PanopticModel, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 9000)
    with pytest.raises(InputDataError, match=r"Image 1: .*more than 9000 pixels"):
        answer(trained, [(site / "a.jpg").read_bytes()])
