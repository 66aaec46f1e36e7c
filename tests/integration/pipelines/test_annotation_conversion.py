"""Nodes of the conversion by themselves; the whole pipeline is in test_main_job."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from kedro.io import DatasetError, MemoryDataset
from kedro.runner import SequentialRunner

from construction_panoptic.annotations.panoptic_png import encode_id_map
from construction_panoptic.annotations.records import ConvertedImages, ConvertedRecord, Segment
from construction_panoptic.catalog.datasets import StreamedJSONDataset
from construction_panoptic.catalog.files import ProjectCatalog
from construction_panoptic.pipelines.annotation_conversion.pipeline import create_pipeline

KEYS = ("yard/a.jpg", "yard/b.jpg")  # one on each side
SKY = sha256(encode_id_map(np.ones((3, 4), np.uint32))).hexdigest()
OUTPUTS = {"detection_train", "detection_val", "panoptic_train", "panoptic_val"}


@pytest.fixture
def converted(tmp_path: Path) -> ConvertedImages:
    """Two images, all of them sky."""
    records = [
        ConvertedRecord(
            key, key[5], f"{key[5]}.jpg", 4, 3, [Segment(1, 1, 12, (0, 0, 4, 3), "0<", 0, None)], 0, png_sha256=SKY
        )
        for key in KEYS
    ]
    for record in records:
        (tmp_path / record.png_file).write_bytes(encode_id_map(np.ones((3, 4), np.uint32)))
    index = tmp_path / "converted.jsonl"
    index.write_text("".join(json.dumps(record.to_dict()) + "\n" for record in records))
    return ConvertedImages(tmp_path, tmp_path, index)


def write_coco(converted: ConvertedImages, folder: Path) -> None:
    taxonomy: dict[str, Any] = {
        "stuff": [{"id": 1, "name": "sky", "color": [0, 0, 9]}],
        "things": [{"id": 2, "name": "crane", "color": [9, 0, 0]}],
    }
    inputs: dict[str, Any] = {
        "converted_images": converted,
        "split": pd.DataFrame({"key": KEYS, "split": ["train", "val"]}),
        "taxonomy": taxonomy,
    }
    memory: dict[str, Any] = {name: MemoryDataset(data) for name, data in inputs.items()}
    catalog = ProjectCatalog(
        memory | {name: StreamedJSONDataset(filepath=str(folder / f"{name}.json")) for name in OUTPUTS}
    )
    SequentialRunner().run(create_pipeline().only_nodes("check_and_write_coco_files"), catalog)


def test_panoptic_files_are_written_when_all_pngs_are_sound(converted: ConvertedImages, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (tmp_path / "b.png").write_bytes(encode_id_map(np.full((3, 4), 2, np.uint32)))
    with pytest.raises(DatasetError, match=r"b\.png: has changed since it was converted"):
        write_coco(converted, folder)
    assert {path.name for path in folder.iterdir()} == {"detection_train.json"}

    (tmp_path / "b.png").write_bytes(encode_id_map(np.ones((3, 4), np.uint32)))
    write_coco(converted, folder)
    assert {path.stem for path in folder.iterdir()} == OUTPUTS
    digests = {
        json.loads((folder / f"panoptic_{side}.json").read_text())["info"]["split_sha256"] for side in ("train", "val")
    }
    assert len(digests) == 1
