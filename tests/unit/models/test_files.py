import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from construction_panoptic.errors import CheckpointError, ParameterError
from construction_panoptic.models.detr import DetrModel
from construction_panoptic.models.files import export_model, load_exported, load_model, model_of, spec_of
from construction_panoptic.models.protocol import Images, PanopticModel
from tests.unit.small_model import small_model


@pytest.fixture
def model() -> DetrModel:
    return small_model(merging="masks", quality_stuff=0.1)


@pytest.fixture
def checkpoint(model: DetrModel) -> dict[str, Any]:
    spec = model.spec.model_dump(mode="json")
    return {"stage": "mask_head", "model": model.network.state_dict(), "extra": {"spec": spec}}


@pytest.fixture
def folder(model: DetrModel, tmp_path: Path) -> Path:
    export_model(model, tmp_path / "export")
    return tmp_path / "export"


def seen(model: PanopticModel) -> Any:
    image = model.prepare(torch.randint(0, 256, (3, 80, 120), generator=torch.Generator().manual_seed(0)).byte())
    return model.segment(Images(image[None], None, [(64, 96)], [(80, 120)]))[0]


def assert_same(first: PanopticModel, second: PanopticModel) -> None:
    assert first.spec == second.spec
    assert first.network.state_dict().keys() == second.network.state_dict().keys()
    one, other = seen(first), seen(second)
    assert one.segments
    assert (one.segments, one.boxes) == (other.segments, other.boxes)
    assert np.array_equal(one.id_map, other.id_map)
    assert not second.network.training


def test_a_checkpoint_describes_its_model(model: DetrModel, checkpoint: dict[str, Any], tmp_path: Path) -> None:
    torch.save(checkpoint, tmp_path / "best.pt")
    assert_same(model, load_model(tmp_path / "best.pt"))


@pytest.mark.parametrize("oldest", [True, False])
def test_checkpoints_from_before_there_were_specs(oldest: bool) -> None:
    """The oldest have architecture and sizes among the settings, and no threshold."""
    model = small_model(threshold=0.85 if oldest else 0.2)
    augmentation = {**model.spec.preprocessing.model_dump(mode="json"), "sides": [64], "flip": 0.5}
    architecture = model.spec.architecture
    old: dict[str, Any] = {"stage": "mask_head", "model": model.network.state_dict()}
    old["extra"] = {"categories": list(model.spec.categories)}
    if oldest:
        old |= {"fingerprint": {"model": architecture}, "settings": {"augmentation": augmentation}}
        assert model_of(old).spec == model.spec
        assert spec_of(old | {"stage": "detection"}) == model.spec  # the mask head starts from a detector
    else:
        old["extra"] |= {"model": architecture, "augmentation": augmentation, "threshold": 0.2}
        assert_same(model, model_of(old))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": None}, r"best\.pt lacks weights"),
        ({"extra": {}}, r"best\.pt lacks categories, architecture, preprocessing"),
        ({"stage": "detection"}, r"checkpoint of the detection training, which has no masks"),
    ],
)
def test_what_cannot_segment_is_refused(checkpoint: dict[str, Any], change: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        model_of(checkpoint | change, "best.pt")


def test_a_spec_that_does_not_fit_is_refused(checkpoint: dict[str, Any]) -> None:
    spec = checkpoint["extra"]["spec"]
    spec["architecture"]["num_queries"] = 10
    with pytest.raises(CheckpointError, match=r"(?s)does not fit.*query_embed"):
        model_of(checkpoint)
    spec["architecture"]["querys"] = 10
    with pytest.raises(ParameterError, match=r"model\.querys: there is no such parameter"):
        model_of(checkpoint)
    spec["kind"] = "detx"
    with pytest.raises(CheckpointError, match=r"the kind 'detx'; did you mean detr"):
        model_of(checkpoint)


def test_no_model_says_where_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no model at .*best\.pt: train one"):
        load_model(tmp_path / "best.pt")


def test_the_exported_model_segments_the_same(model: DetrModel, folder: Path) -> None:
    assert_same(model, load_exported(folder))
    assert_same(model, load_model(folder))


def test_the_weights_have_the_published_names(model: DetrModel, folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    assert {"detr.class_embed.weight", "bbox_attention.q_linear.weight", "mask_head.lay1.weight"} <= state.keys()
    assert all(torch.equal(value, state[name]) for name, value in model.network.state_dict().items())


def test_the_config_says_all_that_is_needed(model: DetrModel, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"]["num_queries"] == 9
    assert config["preprocessing"]["evaluation_side"] == 64
    assert config["categories"] == list(model.spec.categories)
    assert (config["threshold"], config["merging"], config["quality_stuff"]) == (0.2, "masks", 0.1)
    assert list(config["outputs"]) == ["pred_logits", "pred_boxes", "pred_masks"]


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
