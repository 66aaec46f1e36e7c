import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from construction_panoptic.errors import CheckpointError
from construction_panoptic.evaluation.predictions import ImageFiles, predict_images
from construction_panoptic.prediction.exported import export_model, load_exported
from construction_panoptic.prediction.models import TrainedModel, load_model
from construction_panoptic.training.loading import build_loader


@pytest.fixture
def folder(trained: TrainedModel, tmp_path: Path) -> Path:
    export_model(trained, tmp_path / "export")
    return tmp_path / "export"


def test_the_exported_model_predicts_the_same(trained: TrainedModel, folder: Path, site: Path) -> None:
    found = []
    for model in (trained, load_exported(folder), load_model(folder)):
        loader = build_loader(ImageFiles([site / "a.jpg"], model.augmentation), batch_size=1, shuffle=False)
        found += list(predict_images(model.model, loader, categories=model.categories, threshold=model.threshold))
    assert found[0].segments_info
    assert found[0] == found[1] == found[2]


def test_the_weights_have_the_published_names(trained: TrainedModel, folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    assert {"detr.class_embed.weight", "bbox_attention.q_linear.weight", "mask_head.lay1.weight"} <= state.keys()
    assert all(torch.equal(value, state[name]) for name, value in trained.model.state_dict().items())


def test_the_config_says_all_that_is_needed(trained: TrainedModel, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"]["num_queries"] == 9
    assert config["preprocessing"]["evaluation_side"] == 64
    assert config["categories"] == list(trained.categories)
    assert config["threshold"] == 0.2


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_and_damaged_files_are_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"{")
    with pytest.raises(CheckpointError, match="cannot be read as an exported model"):
        load_exported(folder)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match="export the model again"):
        load_exported(folder)
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match="export the model again"):
        load_exported(folder)


def test_a_later_format_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "format_version": 2}))
    with pytest.raises(CheckpointError, match="later version"):
        load_exported(folder)
