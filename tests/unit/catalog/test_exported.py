from pathlib import Path

import pytest
import torch

from construction_panoptic.catalog.exported import BytesDataset, ExportedModelDataset
from construction_panoptic.config.model import DetrSettings
from construction_panoptic.config.training import AugmentationSettings
from construction_panoptic.models.detr import build_detr_panoptic
from construction_panoptic.prediction.models import TrainedModel


@pytest.fixture
def trained() -> TrainedModel:
    architecture = DetrSettings(
        backbone="tiny", norm="batch", num_queries=3, hidden_dim=16, num_heads=2, encoder_layers=1, decoder_layers=1
    )
    categories = [{"id": 1, "name": "crane", "isthing": 1, "color": [9, 9, 9]}]
    model = build_detr_panoptic(2, **architecture.model_dump())
    return TrainedModel(model, categories, architecture, AugmentationSettings(), 0.5)


def test_an_exported_model_comes_back(trained: TrainedModel, tmp_path: Path) -> None:
    entry = ExportedModelDataset(filepath=str(tmp_path / "model"))
    assert not entry.exists()
    entry.save(trained)
    assert entry.exists()
    loaded = entry.load()
    assert (loaded.architecture, loaded.threshold) == (trained.architecture, 0.5)
    expected = trained.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.model.state_dict().items())
    entry.invalidate()
    assert not entry.exists()


def test_bytes_come_back(tmp_path: Path) -> None:
    entry = BytesDataset(filepath=str(tmp_path / "folder" / "model.onnx"))
    assert not entry.exists()
    entry.save(b"\x00\xff")
    assert entry.load() == b"\x00\xff"
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["model.onnx"]
    entry.invalidate()
    assert not entry.exists()
