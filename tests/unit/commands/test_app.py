"""The application behind the page, without a browser."""

import base64
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from zipfile import ZipFile

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from construction_panoptic.annotations.panoptic_png import decode_id_map
from construction_panoptic.commands import app
from construction_panoptic.models.protocol import PanopticModel
from construction_panoptic.models.spec import ModelSpec
from construction_panoptic.prediction.running import predict_pixels
from tests.unit.small_model import CATEGORIES, small_model

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(app.build(small_model(), hosts=["localhost"]), base_url="http://localhost")


def photograph(width: int = 90, height: int = 60, kind: str = "JPEG", **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def image_of(url: str) -> bytes:
    return base64.b64decode(url.partition(",")[2])


def test_the_segments_are_those_of_the_ids(client: TestClient) -> None:
    found = client.post("/segments?name=a.jpg", content=photograph()).raise_for_status().json()
    ids = decode_id_map(image_of(found["ids"]))
    assert (found["width"], found["height"]) == (90, 60)
    assert ids.shape == (60, 90)
    assert found["segments"]
    assert {s["id"]: s["area"] for s in found["segments"]} == {
        number: int((ids == number).sum()) for number in np.unique(ids).tolist() if number
    }
    assert {s["category_id"] for s in found["segments"]} <= {c["id"] for c in CATEGORIES}


def test_a_large_image_is_shown_small_and_upright(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "SHOWN_SIDE", 45)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    found = client.post("/segments?name=a.jpg", content=photograph(exif=exif)).raise_for_status().json()
    assert (found["width"], found["height"]) == (60, 90)
    for name in ("image", "ids"):
        assert Image.open(io.BytesIO(image_of(found[name]))).size == (30, 45)


def test_results_are_those_of_predict(client: TestClient) -> None:
    answer = client.post("/results?name=../site.png&threshold=0.2", content=photograph(kind="PNG")).raise_for_status()
    names = set(ZipFile(io.BytesIO(answer.content)).namelist())
    assert {
        "masks/site.jpg",
        "boxes/site.jpg",
        "panoptic/site.png",
        "panoptic/predictions.json",
        "seen.csv",
        "cvat.zip",
    } <= names


def test_things_and_stuff_have_thresholds_of_their_own(client: TestClient) -> None:
    for things, stuff, kinds in ((0.2, 0.2, {0, 1}), (0.2, 0.999, {1}), (0.999, 0.2, {0})):
        query = f"name=site.png&threshold={things}&threshold_stuff={stuff}"
        answer = client.post(f"/results?{query}", content=photograph(kind="PNG")).raise_for_status()
        found = json.loads(ZipFile(io.BytesIO(answer.content)).read("panoptic/predictions.json"))
        is_thing = {category["id"]: category["isthing"] for category in found["categories"]}
        segments = found["annotations"][0]["segments_info"]
        assert {is_thing[segment["category_id"]] for segment in segments} == kinds


def test_what_is_no_image_is_refused_without_a_path(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("/etc/passwd", "..\\..\\x.jpg", ""):
        answer = client.post("/segments", params={"name": name}, content=b"root:x:0:0")
        assert answer.status_code == 400
        assert "not a readable image" in answer.json()["detail"]
        assert "/tmp" not in answer.json()["detail"]
    monkeypatch.setattr(app, "MAX_BYTES", 100)
    assert client.post("/segments?name=a.jpg", content=photograph()).status_code == 413


@pytest.mark.parametrize("name", ["..", "a%00.png", "a" * 300])
def test_what_is_no_name_of_a_file_is_refused(client: TestClient, name: str) -> None:
    answer = client.post(f"/segments?name={name}", content=photograph())
    assert (answer.status_code, answer.json()["detail"]) == (400, "The name is none that a file can have.")


def test_a_file_may_be_called_results(client: TestClient) -> None:
    client.post("/results?name=results&threshold=0.2", content=photograph()).raise_for_status()


def test_other_names_of_the_machine_are_refused(client: TestClient) -> None:
    assert client.get("/").status_code == 200
    assert client.get("/", headers={"Host": "elsewhere.example"}).status_code == 400


@pytest.mark.parametrize(
    "least",
    [
        {"merging": "pixels", "threshold": 0.7, "threshold_stuff": 0.2},
        {"merging": "masks", "quality_things": 0.4, "quality_stuff": 0.7},
    ],
)
def test_weak_queries_are_not_sent_as_they_change_what_is_shown(tmp_path: Path, least: dict[str, Any]) -> None:
    model = small_model(**least)
    path = tmp_path / "site.png"
    path.write_bytes(photograph(kind="PNG"))
    (expected,) = predict_pixels(model, [np.asarray(Image.open(path))])
    assert app.segments_of(model, path)["segments"] == expected.segments_info
    (weak,) = predict_pixels(model, [np.asarray(Image.open(path))], 0.05)
    assert weak.segments_info != expected.segments_info


def test_weak_segments_are_sent_where_that_changes_no_other() -> None:
    assert app.least_score(small_model(merging="pixels", threshold=0.7)) == 0.7
    deeplab = ModelSpec(kind="panoptic_deeplab", categories=())
    assert app.least_score(cast(PanopticModel, SimpleNamespace(spec=deeplab))) == app.LEAST_SCORE


def test_a_broken_model_is_one_message(tmp_path: Path) -> None:
    from click.testing import CliRunner

    done = CliRunner().invoke(app.app, ["--model", str(tmp_path / "none.pt")])
    assert done.exit_code == 1
    assert "none.pt" in done.output
