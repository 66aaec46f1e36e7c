from pathlib import Path

import torch

from construction_panoptic.catalog.exported import BytesDataset, ExportedModelDataset
from tests.unit.small_model import small_model


def test_an_exported_model_comes_back(tmp_path: Path) -> None:
    model = small_model()
    entry = ExportedModelDataset(filepath=str(tmp_path / "model"))
    assert not entry.exists()
    entry.save(model)
    assert entry.exists()
    loaded = entry.load()
    assert loaded.spec == model.spec
    expected = model.network.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.network.state_dict().items())


def test_bytes_come_back(tmp_path: Path) -> None:
    entry = BytesDataset(filepath=str(tmp_path / "folder" / "model.onnx"))
    assert not entry.exists()
    entry.save(b"\x00\xff")
    assert entry.load() == b"\x00\xff"
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["model.onnx"]
