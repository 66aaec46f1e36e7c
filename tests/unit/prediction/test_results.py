import json
import re
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle_codec

from construction_panoptic.annotations.formats.reading import read_exports
from construction_panoptic.annotations.images import read_rgb
from construction_panoptic.annotations.panoptic_png import decode_id_map
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.config.base import Execution
from construction_panoptic.config.prediction import PredictionSettings
from construction_panoptic.errors import ParameterError
from construction_panoptic.evaluation.inference import ImageFiles
from construction_panoptic.evaluation.predictions import predict_images, read_predictions
from construction_panoptic.models.protocol import PanopticModel
from construction_panoptic.prediction.results import is_complete, views, write_results
from construction_panoptic.prediction.running import PredictedPicture, RejectedFile, predict_source
from construction_panoptic.prediction.sources import find_files
from construction_panoptic.prediction.tables import rejected_table, seen_table
from construction_panoptic.prediction.videos import read_frames
from construction_panoptic.training.loading import build_loader
from tests.unit.prediction.conftest import write_video
from tests.unit.small_model import CATEGORIES

pytestmark = pytest.mark.medium

SETTINGS = PredictionSettings(device="cpu", batch_size=3)


def predict(trained: PanopticModel, source: Path, out: Path, settings: PredictionSettings = SETTINGS) -> None:
    write_results(predict_source(trained, find_files(source), settings), out)


@pytest.fixture
def out(trained: PanopticModel, site: Path, tmp_path: Path) -> Path:
    predict(trained, site, tmp_path / "out")
    return tmp_path / "out"


def test_images_are_predicted_as_in_evaluation(trained: PanopticModel, site: Path) -> None:
    images = [{"id": k, "file_name": name} for k, name in enumerate(["a.jpg", "a.png", "north/b.JPG"], 1)]
    loader = build_loader(ImageFiles({"images": images}, site, trained.prepare), batch_size=1, shuffle=False)
    expected = list(predict_images(trained, loader))
    files = [file for image in images for file in find_files(site) if file.name == image["file_name"]]
    items = list(predict_source(trained, files, SETTINGS.model_copy(update={"batch_size": 1})))
    assert any(len(prediction.segments_info) > 1 for prediction in expected)
    for item, prediction in zip(items, expected, strict=True):
        assert isinstance(item, PredictedPicture)
        assert item.prediction == prediction.packed()


@pytest.mark.slow
def test_processes_predict_as_one_does(trained: PanopticModel, site: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as many as each of two processes has
    found = []
    for count in (1, 2):
        settings = SETTINGS.model_copy(update={"batch_size": 2, "execution": Execution(workers=count)})
        items = predict_source(trained, find_files(site), settings)
        found.append([item.prediction if isinstance(item, PredictedPicture) else item for item in items])
    torch.set_num_threads(threads)
    assert len(found[0]) == 13
    assert found[0] == found[1]


def test_stuff_has_no_boxes_in_the_pictures(trained: PanopticModel, site: Path) -> None:
    item = next(iter(predict_source(trained, find_files(site), SETTINGS)))
    assert isinstance(item, PredictedPicture)

    def drawn(kinds: set[bool]) -> Any:
        chosen: list[Any] = [category["id"] for category in CATEGORIES if bool(category["isthing"]) in kinds]
        boxes = [{"bbox": [4 * each, 4, 20, 20], "category_id": each, "score": 0.99} for each in chosen]
        assert boxes or not kinds
        return views(replace(item, prediction=replace(item.prediction, boxes=boxes)))["boxes"]

    np.testing.assert_array_equal(drawn({True, False}), drawn({True}))
    np.testing.assert_array_equal(drawn({False}), drawn(set()))
    assert not np.array_equal(drawn({True}), drawn(set()))


def test_the_panoptic_files_fit_the_images(out: Path, site: Path) -> None:
    data = json.loads((out / "panoptic" / "predictions.json").read_text())
    names = [image["file_name"] for image in data["images"]]
    frames = [f"film.mp4/frame_{number:06d}" for number in range(7)]
    assert names == ["a.jpg", "a.png", *frames, "north/b.JPG"]
    assert len({annotation["file_name"] for annotation in data["annotations"]}) == 10
    for image, annotation in zip(data["images"], data["annotations"], strict=True):
        id_map = decode_id_map(out / "panoptic" / annotation["file_name"])
        assert id_map.shape == (image["height"], image["width"])
        if "film" not in image["file_name"]:
            assert id_map.shape == read_rgb(site / image["file_name"]).shape[:2]
        assert set(np.unique(id_map)) - {0} == {segment["id"] for segment in annotation["segments_info"]}


def test_each_image_has_two_views_under_the_name_of_its_png(out: Path) -> None:
    for view in ("masks", "boxes"):
        pictures = sorted((out / view).glob("*.jpg"))
        assert [path.stem for path in pictures] == ["a", "a__2", "north__b"]
        for path in pictures:
            assert (out / "panoptic" / f"{path.stem}.png").is_file()
            with Image.open(path) as picture:
                assert min(picture.size) == 384
    assert (out / "masks" / "a.jpg").read_bytes() != (out / "boxes" / "a.jpg").read_bytes()


def test_a_video_keeps_its_frames_times_and_rate(out: Path, site: Path) -> None:
    original = list(read_frames(site / "film.mp4"))
    for view in ("masks", "boxes"):
        frames = list(read_frames(out / view / "film.mp4"))
        assert [frame.rate for frame in frames] == [frame.rate for frame in original]
        times = [float(frame.time) for frame in original]
        assert [float(frame.time) for frame in frames] == pytest.approx(times, abs=1e-4)


def test_every_nth_frame_keeps_the_speed_of_the_video(trained: PanopticModel, site: Path, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"every_nth_frame": 3})
    predict(trained, site / "film.mp4", tmp_path / "out", settings)
    original = list(read_frames(site / "film.mp4"))
    frames = list(read_frames(tmp_path / "out" / "masks" / "film.mp4"))
    times = [float(original[number].time) for number in (0, 3, 6)]
    assert [float(frame.time) for frame in frames] == pytest.approx(times, abs=1e-4)


def test_bad_files_are_listed(out: Path) -> None:
    rejected = rejected_table(out)
    assert rejected[["file", "reason"]].values.tolist() == [
        ["bad.jpg", "unreadable_image"],
        ["bad.mp4", "unreadable_video"],
        ["north/empty.png", "unreadable_image"],
    ]
    assert "site/bad.jpg" in rejected["detail"][0]


def test_a_video_that_breaks_off_keeps_its_first_frames(trained: PanopticModel, tmp_path: Path) -> None:
    from construction_panoptic.prediction.videos import VideoWriter
    from tests.unit.prediction.conftest import pixels

    path = tmp_path / "film.mp4"
    with VideoWriter(path, Fraction(5)) as video:
        for number in range(30):
            video.write(pixels(number), Fraction(number, 5))
    content = bytearray(path.read_bytes())
    begin = content.index(b"mdat") + 4
    middle = begin + (content.index(b"moov") - begin) // 2
    # The sizes of the packets in the second half become impossible.
    content[middle : content.index(b"moov") - 4] = b"\xff" * (content.index(b"moov") - 4 - middle)
    path.write_bytes(content)
    items = list(predict_source(trained, find_files(path), SETTINGS))
    assert isinstance(items[0], PredictedPicture)
    assert isinstance(items[-1], RejectedFile)
    assert "after" in items[-1].detail


def test_the_table_counts_what_the_pngs_show(out: Path) -> None:
    table = seen_table(out)
    assert table.columns.tolist() == ["image", "class", "kind", "count", "area_share", "best_score"]
    assert list(table["image"].unique()) == ["a.jpg", "a.png", "film.mp4", "north/b.JPG"]
    data = json.loads((out / "panoptic" / "predictions.json").read_text())
    classes = {category["id"]: category["name"] for category in data["categories"]}
    for image, annotation in zip(data["images"], data["annotations"], strict=True):
        if "film" in image["file_name"]:
            continue
        id_map = decode_id_map(out / "panoptic" / annotation["file_name"])
        rows = table[table["image"] == image["file_name"]]
        assert rows["count"].sum() == len(annotation["segments_info"])
        assert rows["area_share"].sum() == pytest.approx((id_map > 0).mean(), abs=1e-5)
        for row in rows[rows["count"] > 0].to_dict("records"):
            found = [s for s in annotation["segments_info"] if classes[s["category_id"]] == row["class"]]
            assert row["count"] == len(found)
            assert row["best_score"] == pytest.approx(max(s["score"] for s in found), abs=1e-4)


def test_the_table_has_a_video_once(out: Path) -> None:
    data = json.loads((out / "panoptic" / "predictions.json").read_text())
    frames = [each for each in data["annotations"] if "film" in each["file_name"]]
    maps = [decode_id_map(out / "panoptic" / frame["file_name"]) for frame in frames]
    rows = seen_table(out).query("image == 'film.mp4'")
    segments = [segment for frame in frames for segment in frame["segments_info"]]
    assert rows["area_share"].sum() == pytest.approx((np.stack(maps) > 0).mean(), abs=1e-5)
    assert len(rows) == len({segment["category_id"] for segment in segments})
    for row in rows.to_dict("records"):
        found = [s for s in segments if f"class {s['category_id']}" == row["class"]]
        assert row["best_score"] == pytest.approx(max(s["score"] for s in found), abs=1e-4)
        things = {s["track_id"] for s in found if s["isthing"]}
        assert row["count"] == (len(things) if row["kind"] == "thing" else 1)


def test_an_image_without_anything_has_a_row(trained: PanopticModel, site: Path, tmp_path: Path) -> None:
    predict(trained, site / "a.jpg", tmp_path / "out", SETTINGS.model_copy(update={"threshold": 0.9999}))
    (row,) = seen_table(tmp_path / "out").to_dict("records")
    assert (row["image"], row["count"], row["area_share"]) == ("a.jpg", 0, 0.0)
    assert pd.isna(row["class"])


def test_a_second_prediction_removes_what_the_first_wrote_and_nothing_else(
    trained: PanopticModel, out: Path, site: Path
) -> None:
    (out / "masks" / "mine.jpg").write_bytes(b"kept")
    predict(trained, site / "a.jpg", out)
    assert {path.name for path in (out / "masks").iterdir()} == {"a.jpg", "mine.jpg"}
    assert {path.name for path in (out / "boxes").iterdir()} == {"a.jpg"}
    assert [path.name for path in (out / "panoptic").glob("*.png")] == ["a.png"]
    assert is_complete(out)


def test_results_that_were_interrupted_do_not_count(trained: PanopticModel, out: Path, site: Path) -> None:
    def broken() -> object:
        yield from predict_source(trained, find_files(site / "film.mp4"), SETTINGS)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_results(broken(), out)  # type: ignore[arg-type]
    assert not is_complete(out)
    assert not list(out.rglob(".*"))


@pytest.mark.parametrize(
    ("chosen", "ids"),
    [
        ({"classes": ("class 1", "class 3")}, {1, 3}),
        ({"things_only": True}, {3, 4, 5}),
        ({"classes": ("class 1", "class 4"), "things_only": True}, {4}),
    ],
)
def test_only_the_chosen_classes_are_kept(
    trained: PanopticModel, site: Path, chosen: dict[str, Any], ids: set[int]
) -> None:
    files = [*find_files(site / "*.jpg"), *find_files(site / "a.png")]
    settings = SETTINGS.model_copy(update={"threshold": 0.0})
    every = [item for item in predict_source(trained, files, settings) if isinstance(item, PredictedPicture)]
    some = predict_source(trained, files, settings.model_copy(update=chosen))
    for whole, item in zip(every, (item for item in some if isinstance(item, PredictedPicture)), strict=True):
        before, found = whole.prediction, item.prediction
        assert found.segments_info == [s for s in before.segments_info if s["category_id"] in ids]
        assert found.boxes == [box for box in before.boxes if box["category_id"] in ids]
        kept = np.isin(before.id_map, [s["id"] for s in found.segments_info])
        np.testing.assert_array_equal(found.id_map, before.id_map * kept)


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"classes": ("klass 1",)}, "the model has no class 'klass 1'; did you mean class 1?"),
        ({"classes": ("class 1",), "things_only": True}, "class 1 are stuff; nothing would be left"),
    ],
)
def test_classes_that_cannot_be_kept_are_an_error(trained: PanopticModel, chosen: dict[str, Any], words: str) -> None:
    with pytest.raises(ParameterError, match=re.escape(words)):
        predict_source(trained, [], SETTINGS.model_copy(update=chosen))


def test_videos_of_one_name_have_results_of_their_own(trained: PanopticModel, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("clip.mp4", "clip.mov", "site.avi"):
        write_video(tmp_path / "in" / name, [Fraction(0)], Fraction(5))
    predict(trained, tmp_path / "in", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out" / "masks").iterdir()} == {"clip.mp4", "clip.mp4.mp4", "site.mp4"}


@pytest.mark.parametrize("shapes", ["masks", "polygons"])
def test_what_goes_to_cvat_is_read_back(trained: PanopticModel, site: Path, tmp_path: Path, shapes: str) -> None:
    predict(trained, site, tmp_path / "out", SETTINGS.model_copy(update={"cvat": shapes}))
    assert "cvat.zip" in json.loads((tmp_path / "out" / "index.json").read_text())["files"]
    (tmp_path / "exports").mkdir()
    shutil.copy(tmp_path / "out" / "cvat.zip", tmp_path / "exports")
    stuff = [{key: c[key] for key in ("id", "name", "color")} for c in CATEGORIES if not c["isthing"]]
    things = [{key: c[key] for key in ("id", "name", "color")} for c in CATEGORIES if c["isthing"]]
    exports = read_exports(tmp_path / "exports", Taxonomy.from_dict({"stuff": stuff, "things": things}))
    assert exports.rejected.empty

    annotations = exports.annotations.frame()
    expected: dict[str, set[tuple[int, bytes]]] = {}
    found: dict[str, set[tuple[int, bytes]]] = {}
    for each in read_predictions(tmp_path / "out" / "panoptic"):
        name = f"{each.file_name}.jpg" if "/frame_" in each.file_name else each.file_name
        expected[name] = {(s["category_id"], (each.id_map == s["id"]).tobytes()) for s in each.segments_info}
    for image in exports.images.itertuples():
        size = [image.height, image.width]
        rows = annotations[annotations["key"] == image.key]
        masks = [rle_codec.decode({"size": size, "counts": rle}).astype(bool).tobytes() for rle in rows["rle"]]
        found[str(image.file_name)] = set(zip(rows["category_id"], masks, strict=True))
    assert found == expected

    predict(trained, site / "a.jpg", tmp_path / "out")
    assert not (tmp_path / "out" / "cvat.zip").exists()
