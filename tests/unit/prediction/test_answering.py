import base64
import os
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
from construction_panoptic.prediction import answering
from construction_panoptic.prediction.answering import answer
from construction_panoptic.prediction.running import PredictedPicture, predict_source
from construction_panoptic.prediction.sources import find_files
from tests.unit.prediction.conftest import huge_png


def test_a_path_bytes_and_base64_give_the_same(trained: PanopticModel, site: Path) -> None:
    content = (site / "a.jpg").read_bytes()
    text = base64.b64encode(content).decode()
    wrapped = "\n".join(text[k : k + 76] for k in range(0, len(text), 76))
    images = ["a.jpg", str(site / "a.jpg"), content, text, wrapped, f"data:image/jpeg;base64,{text}"]
    found = answer(trained, images, folder=site)
    assert found[0]["segments"]
    assert all(other == found[0] for other in found)


def test_the_answer_is_the_prediction(trained: PanopticModel, site: Path) -> None:
    files = find_files(str(site / "*.png"))
    (picture,) = predict_source(trained, files, PredictionSettings(device="cpu", threshold=0.1))
    assert isinstance(picture, PredictedPicture)
    expected = picture.prediction
    (found,) = answer(trained, ["a.png"], 0.1, site)

    assert (found["width"], found["height"]) == (70, 90)
    assert base64.b64decode(found["png"]) == expected.png
    id_map = decode_id_map(expected.png)
    assert [segment["id"] for segment in found["segments"]] == [segment["id"] for segment in expected.segments_info]
    for segment, of_image in zip(found["segments"], expected.segments_info, strict=True):
        assert {key: segment[key] for key in ("category_id", "score", "area", "bbox")}.items() <= of_image.items()
        assert segment["class"] == f"class {segment['category_id']}"
        np.testing.assert_array_equal(rle_codec.decode(segment["rle"]), id_map == segment["id"])


def test_a_threshold_can_be_given(trained: PanopticModel, site: Path) -> None:
    assert answer(trained, ["a.jpg"], 0.99999, site)[0]["segments"] == []
    with pytest.raises(ParameterError, match=r"threshold is 1\.5"):
        answer(trained, ["a.jpg"], 1.5, site)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("x" * 5001, "neither base64 of an image file"),
        (b"no picture", "not a readable image"),
        (base64.b64encode(b"no picture").decode(), "neither base64 of an image file"),
        ("", "not a readable image"),
        (None, "a path, bytes or base64 is needed, not NoneType"),
    ],
)
def test_what_is_no_image_is_named(trained: PanopticModel, site: Path, image: Any, words: str) -> None:
    with pytest.raises(InputDataError, match=f"Image 2: .*{words}"):
        answer(trained, ["a.jpg", image], folder=site)


def test_damaged_pixels_are_named(trained: PanopticModel, site: Path) -> None:
    content = (site / "a.jpg").read_bytes()
    with pytest.raises(InputDataError, match=r"Image 2: .*not a readable image"):
        answer(trained, [content, content[: len(content) // 2]])


@pytest.fixture
def yard(site: Path, tmp_path: Path) -> Path:
    """A folder below which paths are taken, with links and other things that lead out of it; `site` is outside."""
    folder = tmp_path / "yard"
    (folder / "gate").mkdir(parents=True)
    (folder / "gate" / "b.jpg").write_bytes((site / "a.jpg").read_bytes())
    (folder / "in.jpg").symlink_to(folder / "gate" / "b.jpg")
    (folder / "out.jpg").symlink_to(site / "a.jpg")
    (folder / "outside").symlink_to(site)
    (folder / "circle").symlink_to(folder / "circle")
    (tmp_path / "yard_2").mkdir()
    (tmp_path / "yard_2" / "a.jpg").write_bytes((site / "a.jpg").read_bytes())
    os.mkfifo(folder / "pipe")
    return folder


def refusal(trained: PanopticModel, image: str, folder: Path | None) -> str:
    with pytest.raises(InputDataError) as caught:
        answer(trained, [image], folder=folder)
    return str(caught.value)


def test_paths_lead_to_nothing_outside_the_folder(trained: PanopticModel, site: Path, yard: Path) -> None:
    inside = answer(trained, ["gate/b.jpg", "in.jpg", "./gate/../gate/b.jpg", str(yard / "in.jpg")], folder=yard)
    assert all(found == inside[0] for found in inside)
    outside = [
        *(str(site / "a.jpg"), "../site/a.jpg", "out.jpg", "outside/a.jpg", "../yard_2/a.jpg"),
        *("/etc/passwd", "/etc/nope", "/etc", ".", "..", "gate", "pipe", "circle", "nowhere.jpg", "a\0.jpg", "~"),
    ]
    # One sentence for all, and the same where there is no folder, whether the file exists or not.
    words = {refusal(trained, image, folder) for image in outside for folder in (yard, None)}
    assert len(words) == 1
    assert words == {refusal(trained, str(yard / "in.jpg"), None), refusal(trained, "cGF0aHM=", yard)}


@pytest.mark.filterwarnings("ignore:Image size")
def test_a_request_has_bounds(trained: PanopticModel, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (site / "a.jpg").read_bytes()
    with pytest.raises(InputDataError, match="has 65 images; send at most 64"):
        answer(trained, [content] * 65)
    with pytest.raises(InputDataError, match="Image 1: 40000 x 4000 pixels; a request may have 100000000 in all"):
        answer(trained, [huge_png(40_000, 4_000)])
    with pytest.raises(InputDataError, match=r"Image 1: .*more than 178956970 pixels"):
        answer(trained, [huge_png(100_000, 100_000)])
    monkeypatch.setattr(answering, "MAX_PIXELS", 120 * 80 * 2)
    assert len(answer(trained, [content] * 2)) == 2
    with pytest.raises(InputDataError, match="Image 3: 120 x 80 pixels"):
        answer(trained, [content] * 3)
    monkeypatch.setattr(answering, "MAX_BYTES", 2 * len(content))
    for image in ("a.jpg", content, base64.b64encode(content).decode()):
        assert len(answer(trained, [image] * 2, folder=site)) == 2
        with pytest.raises(InputDataError, match=f"Image 3: the image files .* {2 * len(content)} bytes in all"):
            answer(trained, [image] * 3, folder=site)


def test_a_long_text_is_refused_before_it_is_decoded(trained: PanopticModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "MAX_BYTES", 1000)
    monkeypatch.setattr(answering, "base64", None)
    with pytest.raises(InputDataError, match="1000 bytes in all"):
        answer(trained, ["A" * 2000])


def test_a_jpeg_of_endless_scans_is_refused(trained: PanopticModel, site: Path) -> None:
    content = (site / "a.jpg").read_bytes()
    scan = content[content.index(b"\xff\xda") : -2]
    with pytest.raises(InputDataError, match=r"Image 1: .*a JPEG of more than 100 scans"):
        answer(trained, [content[:-2] + scan * 100 + content[-2:]])


def test_images_that_are_too_large_are_refused(
    trained: PanopticModel, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 9000)
    with pytest.raises(InputDataError, match=r"Image 1: .*more than 9000 pixels"):
        answer(trained, [(site / "a.jpg").read_bytes()])
