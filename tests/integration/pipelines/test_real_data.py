"""The main job on real photographs, where they lie beside the project."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from construction_panoptic.annotations.panoptic_png import decode_id_map
from tests.integration.pipelines.project import Project

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(project: Project, real_data: Path) -> Project:
    real = real_data / "construction_real"
    project.run(params={"raw_data": str(real / "annotated"), "stuff_predictions": str(real / "stuff_predictions")})
    return project


def test_nothing_is_rejected_and_every_thing_is_there(finished: Project) -> None:
    data = finished.folder / "data"
    assert pd.read_csv(data / "02_intermediate" / "rejected_records.csv").empty
    lines = (data / "03_primary" / "converted_images.jsonl").read_text().splitlines()
    segments = [segment for line in lines for segment in json.loads(line)["segments"]]
    assert len(lines) == 6
    assert sum(segment["annotation_id"] is not None for segment in segments) == 8


def test_the_panoptic_files_are_strict(finished: Project) -> None:
    data = finished.folder / "data"
    for side in ("train", "val"):
        panoptic = json.loads((data / f"05_model_input/panoptic_{side}.json").read_text())
        images = {image["id"]: image for image in panoptic["images"]}
        for annotation in panoptic["annotations"]:
            id_map = decode_id_map(data / "03_primary/panoptic" / annotation["file_name"])
            image = images[annotation["image_id"]]
            assert id_map.shape == (image["height"], image["width"])
            assert set(np.unique(id_map)) - {0} == {segment["id"] for segment in annotation["segments_info"]}
            for segment in annotation["segments_info"]:
                rows, columns = np.nonzero(id_map == segment["id"])
                (top, left), (bottom, right) = (rows.min(), columns.min()), (rows.max() + 1, columns.max() + 1)
                assert segment["area"] == len(rows)
                assert segment["bbox"] == [left, top, right - left, bottom - top]


def test_the_image_without_stuff_has_its_thing_and_void(finished: Project) -> None:
    records = [
        json.loads(line)
        for line in (finished.folder / "data/03_primary/converted_images.jsonl").read_text().splitlines()
    ]
    (bare,) = [r for r in records if all(segment["annotation_id"] is not None for segment in r["segments"])]
    id_map = decode_id_map(finished.folder / "data/03_primary/panoptic" / f"{bare['stem']}.png")
    assert bare["segments"]
    assert np.count_nonzero(id_map == 0) == bare["void_pixels"] > 0


def test_it_ends_with_a_pq_table(finished: Project) -> None:
    quality = json.loads((finished.folder / "data/08_reporting/panoptic_quality.json").read_text())
    assert quality["All"]["n"] > 0
    assert 0 <= quality["All"]["pq"] <= 1
