from pathlib import Path
from typing import Any

import pytest
import torch

from construction_panoptic.errors import CheckpointError
from construction_panoptic.prediction.models import TrainedModel, load_model, trained_model


@pytest.fixture
def checkpoint(trained: TrainedModel) -> dict[str, Any]:
    return {
        "stage": "mask_head",
        "model": trained.model.state_dict(),
        "extra": {
            "categories": list(trained.categories),
            "model": trained.architecture.model_dump(mode="json"),
            "augmentation": trained.augmentation.model_dump(mode="json"),
            "threshold": 0.2,
        },
    }


def assert_same(first: TrainedModel, second: TrainedModel) -> None:
    assert first.architecture == second.architecture
    assert first.augmentation == second.augmentation
    assert first.threshold == second.threshold
    assert list(first.categories) == list(second.categories)
    state = first.model.state_dict()
    assert state.keys() == second.model.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in second.model.state_dict().items())


def test_a_checkpoint_describes_its_model(trained: TrainedModel, checkpoint: dict[str, Any], tmp_path: Path) -> None:
    torch.save(checkpoint, tmp_path / "best.pt")
    loaded = load_model(tmp_path / "best.pt")
    assert_same(loaded, trained)
    assert not loaded.model.training


def test_a_checkpoint_of_before_is_described_by_its_fingerprint(
    trained: TrainedModel, checkpoint: dict[str, Any]
) -> None:
    extra = checkpoint["extra"]
    old = {
        **checkpoint,
        "extra": {"categories": extra["categories"]},
        "fingerprint": {"model": extra["model"]},
        "settings": {"augmentation": extra["augmentation"]},
    }
    loaded = trained_model(old)
    assert loaded.threshold == 0.85
    assert_same(loaded, TrainedModel(**{**vars(trained), "threshold": 0.85}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": None}, r"best\.pt lacks weights"),
        ({"extra": {}}, r"best\.pt lacks categories, architecture, image sizes"),
        ({"stage": "detection"}, r"checkpoint of the detection training, which has no masks"),
    ],
)
def test_what_cannot_predict_is_refused(checkpoint: dict[str, Any], change: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        trained_model(checkpoint | change, "best.pt")


def test_weights_that_do_not_fit_are_refused(checkpoint: dict[str, Any]) -> None:
    checkpoint["extra"]["model"]["num_queries"] = 10
    with pytest.raises(CheckpointError, match=r"(?s)does not fit.*query_embed"):
        trained_model(checkpoint)


def test_no_model_says_where_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no model at .*best\.pt.*kedro run.*--model"):
        load_model(tmp_path / "best.pt")
