import base64
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kedro.io import DatasetError
from PIL import Image

from construction_panoptic.annotations.panoptic_png import encode_id_map
from construction_panoptic.annotations.records import ConvertedImage, ConvertedRecord, Segment
from construction_panoptic.annotations.stuff.label_maps import StuffOfImage, decode_labels, encode_labels
from construction_panoptic.catalog.datasets import (
    ConvertedImagesDataset,
    FolderDataset,
    GeneratedFilesDataset,
    PredictionsDataset,
    StuffLabelsDataset,
)
from construction_panoptic.errors import InputDataError, user_error
from construction_panoptic.files import write_bytes


def giving(*items: Any) -> Callable[[Any], Iterator[Any]]:
    """Give the items, whatever is finished."""
    return lambda finished: iter(items)


def converted(stem: str, image: Path | bytes) -> ConvertedImage:
    id_map = np.full((4, 6), 1, dtype=np.uint32)
    segment = Segment(id=1, category_id=3, area=24, bbox=(0, 0, 6, 4), counts="0h0", iscrowd=0, annotation_id=None)
    record = ConvertedRecord(f"a/{stem}.png", stem, f"{stem}.png", 6, 4, [segment], 0)
    return ConvertedImage(record, encode_id_map(id_map), image)


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), "red").save(path)
    return path


@pytest.fixture
def images(tmp_path: Path) -> ConvertedImagesDataset:
    return ConvertedImagesDataset(
        filepath=str(tmp_path / "primary" / "index.jsonl"), image_folder="images", png_folder="panoptic"
    )


def test_images_are_linked_and_records_come_back(images: ConvertedImagesDataset, tmp_path: Path) -> None:
    source = picture(tmp_path / "raw" / "x.png")
    images.save(giving(converted("x", source), converted("y", source.read_bytes())))
    loaded = images.load()
    assert [record.stem for record in loaded] == ["x", "y"]
    assert [record.stem for record in loaded] == ["x", "y"], "it can be iterated again"
    assert (loaded.image_folder / "x.png").stat().st_ino == source.stat().st_ino
    assert (loaded.image_folder / "y.png").read_bytes() == source.read_bytes()
    assert {path.name for path in loaded.png_folder.iterdir()} == {"x.png", "y.png"}


def test_a_second_conversion_leaves_nothing_of_the_first(images: ConvertedImagesDataset, tmp_path: Path) -> None:
    source = picture(tmp_path / "raw" / "x.png")
    images.save(giving(converted("x", source), converted("y", source)))
    images.save(giving(converted("y", source)))
    assert {path.name for path in images.load().image_folder.iterdir()} == {"y.png"}
    assert source.is_file()


def test_an_interrupted_conversion_does_not_exist(images: ConvertedImagesDataset, tmp_path: Path) -> None:
    source = picture(tmp_path / "raw" / "x.png")
    images.save(giving(converted("x", source)))

    def stops(_: Any) -> Iterator[ConvertedImage]:
        yield converted("x", source)
        raise RuntimeError("power cut")

    with pytest.raises(DatasetError):
        images.save(stops)
    assert not images.exists()


def test_generated_files_replace_generated_files_only(tmp_path: Path) -> None:
    dataset = GeneratedFilesDataset(filepath=str(tmp_path), guarded=["exports"])
    dataset.save([("exports/a/1.txt", b"1"), ("exports/b/2.txt", b"2")])
    assert dataset.exists()
    dataset.save([("exports/a/3.txt", b"3")])
    assert sorted(p.name for p in (tmp_path / "exports").rglob("*.txt")) == ["3.txt"]


def test_files_of_other_people_are_never_touched(tmp_path: Path) -> None:
    mine = tmp_path / "exports" / "mine" / "coco.json"
    mine.parent.mkdir(parents=True)
    mine.write_text("{}")
    dataset = GeneratedFilesDataset(filepath=str(tmp_path), guarded=["exports"])
    with pytest.raises(DatasetError) as caught:
        dataset.save([("exports/a/1.txt", b"1")])
    cause = user_error(caught.value)
    assert isinstance(cause, InputDataError)
    assert str(mine) in str(cause)
    assert mine.read_text() == "{}"
    assert not (tmp_path / "exports" / "a").exists()


def test_half_generated_files_do_not_exist_and_can_be_replaced(tmp_path: Path) -> None:
    dataset = GeneratedFilesDataset(filepath=str(tmp_path), guarded=["exports"])

    def stops() -> Iterator[tuple[str, bytes]]:
        yield "exports/a/1.txt", b"1"
        raise RuntimeError("power cut")

    with pytest.raises(DatasetError):
        dataset.save(stops())
    assert not dataset.exists()
    dataset.save([("exports/a/2.txt", b"2")])
    assert [p.name for p in (tmp_path / "exports").rglob("*.txt")] == ["2.txt"]


def test_stuff_labels_come_back(tmp_path: Path) -> None:
    dataset = StuffLabelsDataset(filepath=str(tmp_path / "labels"))
    labels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    dataset.save(giving(StuffOfImage("a/x.jpg", encode_labels(labels), digest="1"), StuffOfImage("a/y.jpg", None)))
    folder = dataset.load()
    np.testing.assert_array_equal(decode_labels(folder.content("a/x.jpg") or b""), labels)
    assert folder.content("a/y.jpg") is None
    assert dataset.exists()
    shown = Image.open(io.BytesIO(base64.b64decode(dataset.preview())))
    assert shown.width == 960


def test_a_folder_lists_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "wheel_loader").mkdir()
    dataset = FolderDataset(filepath=str(tmp_path))
    assert dataset.load() == tmp_path
    assert json.loads(dataset.preview())["holds"] == ["wheel_loader/"]
    with pytest.raises(DatasetError):
        dataset.save(tmp_path)


def test_the_fringe_is_summed_over_images(tmp_path: Path) -> None:
    dataset = StuffLabelsDataset(filepath=str(tmp_path / "labels"))
    png = encode_labels(np.ones((4, 6), dtype=np.uint8))
    stuff = [
        StuffOfImage("a/x.jpg", png, 9, 2, "1"),
        StuffOfImage("a/y.jpg", None),
        StuffOfImage("a/z.jpg", png, 1, 0, "2"),
    ]
    dataset.save(giving(*stuff))
    assert dataset.load().fringe() == {"pixels_before": 10, "pixels_after": 2}


def test_predictions_are_linked_beside_those_of_other_recipes(tmp_path: Path) -> None:
    shared, own = (PredictionsDataset(filepath=str(tmp_path / name)) for name in ("shared", "own"))
    assert not own.exists()
    for names in (("a.png", "b.png"), ("b.png",)):
        shutil.rmtree(tmp_path / "shared", ignore_errors=True)
        for name in (*names, "boxes.jsonl", "predictions.json"):
            write_bytes(tmp_path / "shared" / name, name.encode())
        own.save(shared.load())
        assert own.exists()
        assert {path.name for path in own.load().iterdir()} == {*names, "boxes.jsonl", "predictions.json"}
        assert (tmp_path / "own/b.png").samefile(tmp_path / "shared/b.png")
