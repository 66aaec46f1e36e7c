import hashlib
import json
from pathlib import Path

from construction_panoptic.annotations.json_stream import JSONDocument
from construction_panoptic.config.training import DetectionSettings
from construction_panoptic.pipelines.training_stage import fingerprint_of


def test_a_fingerprint_is_of_the_data_however_they_are_held(tmp_path: Path) -> None:
    """That of all data at once, which older checkpoints have."""
    data = {
        "info": {"b": 1, "a": "é"},
        "images": [{"id": 2, "file_name": "a.jpg"}],
        "annotations": [],
        "categories": [{}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(data))
    found = [fingerprint_of(d, DetectionSettings()) for d in (data, JSONDocument(tmp_path / "coco.json"))]
    assert found[0] == found[1]
    assert found[0]["data"] == hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    other = fingerprint_of(data | {"images": []}, DetectionSettings())
    assert other["data"] != found[0]["data"]
