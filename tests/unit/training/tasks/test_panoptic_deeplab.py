from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from construction_panoptic.config.training import PanopticDeeplabTrainingSettings
from construction_panoptic.errors import CheckpointError, ParameterError
from construction_panoptic.models.detr.model import build_detr
from construction_panoptic.models.panoptic_deeplab import deeplab_losses, make_targets, normalisers
from construction_panoptic.models.protocol import Segmentation
from construction_panoptic.models.timm_backbones import PACKAGED, build_timm_backbone
from construction_panoptic.training.loading import Batch, collate
from construction_panoptic.training.samples import PanopticSamples
from construction_panoptic.training.tasks.panoptic_deeplab import PanopticDeeplabTask, build_network
from construction_panoptic.training.tasks.protocol import total_loss
from construction_panoptic.training.watch import NonFiniteLossError
from tests.unit.training.conftest import DEEPLAB_SPEC, NUM_CLASSES, deeplab_settings

Build = Callable[..., PanopticDeeplabTrainingSettings]


@pytest.fixture
def settings(small_settings: Any) -> Build:
    return lambda **changes: deeplab_settings(small_settings(), **changes)


@pytest.fixture
def whole(scene: Any, settings: Build) -> Batch:
    samples = PanopticSamples(scene.panoptic, scene.images, scene.pngs, settings().augmentation)
    return collate([samples[index] for index in range(6)])


def task_of(settings: PanopticDeeplabTrainingSettings) -> PanopticDeeplabTask:
    return PanopticDeeplabTask(build_network(NUM_CLASSES, settings), settings, DEEPLAB_SPEC)


def test_losses_are_those_of_the_model(whole: Batch, settings: Build) -> None:
    own = settings(losses={"semantic": 2.0, "center": 3.0, "offset": 4.0})
    task = task_of(own)
    is_thing = torch.tensor([False, False, True, True, True])
    height, width = whole.images.shape[-2:]
    targets = make_targets(whole.targets, (height, width), is_thing, own.targets)
    outputs = task.model(whole.images, whole.padding_mask)
    counts = normalisers(targets, own.losses)
    expected = {
        f"loss_{name}": value.item() / counts[name]
        for name, value in deeplab_losses(outputs, targets, own.losses).items()
    }
    total, terms = total_loss(task.losses(whole), task.normalisers(whole))
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-5)
    weighted = [2 * expected["loss_semantic"], 3 * expected["loss_center"], 4 * expected["loss_offset"]]
    assert total.item() == pytest.approx(sum(weighted), rel=1e-5)
    total.backward()
    assert all(parameter.grad is not None for parameter in task.model.parameters())


def test_targets_are_those_of_the_batch_at_hand(whole: Batch, settings: Build) -> None:
    """They are kept from one use to the next."""
    task = task_of(settings())
    first, second, *_ = whole.parts(6)
    alone = task_of(settings()).normalisers(second)
    assert task.normalisers(first) != alone
    assert task.normalisers(second) == alone
    more = second.padded(second.images.shape[-2] + 8, second.images.shape[-1])
    task.losses(more)


def test_validation_losses_are_those_of_the_whole_set(whole: Batch, settings: Build) -> None:
    task = task_of(settings(precision="float32"))
    task.model.eval()
    seen: dict[int, Any] = {}

    def measure(predictions: Any) -> dict[str, float]:
        seen.update(predictions)
        return {}

    with torch.no_grad():
        total, terms = total_loss(task.losses(whole), task.normalisers(whole))
        metrics = task.validate(whole.parts(6), measure)
    assert metrics == pytest.approx(
        {"val/loss": total.item(), **{f"val/{name}": term.item() for name, term in terms.items()}}, rel=1e-4
    )
    assert list(seen) == [1, 2, 3, 4, 5, 6]
    assert all(isinstance(prediction, Segmentation) for prediction in seen.values())


def test_outputs_that_are_not_finite_stop(whole: Batch, settings: Build) -> None:
    task = task_of(settings())
    nn.init.constant_(task.model.center.weight, float("nan"))
    with pytest.raises(NonFiniteLossError, match=r"panoptic_deeplab: in validation, images site__001\.png, "):
        task.validate([whole], lambda predictions: {"images": float(len(list(predictions)))})


def test_a_model_of_other_classes_goes_on_from_an_own_checkpoint(tmp_path: Path, settings: Build) -> None:
    trained = build_network(NUM_CLASSES, settings(seed=1))
    torch.save({"model": trained.state_dict()}, tmp_path / "best.pt")
    same = build_network(NUM_CLASSES, settings(weights=str(tmp_path / "best.pt")))
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in trained.state_dict().items())
    other = build_network(9, settings(weights=str(tmp_path / "best.pt"))).state_dict()
    differing = {name for name, value in trained.state_dict().items() if not torch.equal(value, other[name])}
    assert differing == {"semantic.classes.weight", "semantic.classes.bias"}


def test_the_backbone_of_a_detr_is_taken(tmp_path: Path, settings: Build, small_model: dict[str, Any]) -> None:
    detr = build_detr(**small_model)
    torch.save({"model": detr.state_dict()}, tmp_path / "detr.pth")
    network = build_network(NUM_CLASSES, settings(weights=str(tmp_path / "detr.pth")))
    own, theirs = network.state_dict(), detr.state_dict()
    name = "body.layer4.0.conv1.weight"
    assert torch.equal(own[f"backbone.{name}"], theirs[f"backbone.0.{name}"])


def test_weights_that_do_not_fit_are_an_error(tmp_path: Path, settings: Build, small_model: dict[str, Any]) -> None:
    torch.save({"model": build_network(NUM_CLASSES, settings()).state_dict()}, tmp_path / "best.pt")
    wider = settings().model.model_dump() | {"channels": 24}
    with pytest.raises(CheckpointError, match=r"best\.pt does not fit the model: .* another shape: decoder"):
        build_network(NUM_CLASSES, settings(model=wider, weights=str(tmp_path / "best.pt")))
    torch.save({"model": build_detr(**small_model | {"backbone": "resnet18"}).state_dict()}, tmp_path / "detr.pth")
    with pytest.raises(CheckpointError, match=r"detr\.pth does not fit"):
        build_network(NUM_CLASSES, settings(weights=str(tmp_path / "detr.pth")))
    with pytest.raises(CheckpointError, match="there is no file nowhere"):
        build_network(NUM_CLASSES, settings(weights="nowhere.pt"))


def test_weights_of_a_backbone_of_timms(tmp_path: Path, settings: Build) -> None:
    pytest.importorskip(PACKAGED.replace("-", "_").removesuffix("_model") + "_model")
    model = settings().model.model_dump() | {"backbone": "timm/tf_efficientnet_lite0", "norm": "frozen"}
    network = build_network(NUM_CLASSES, settings(model=model, weights=PACKAGED))
    expected = build_timm_backbone("tf_efficientnet_lite0", weights=PACKAGED).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in network.backbone.state_dict().items())
    torch.save({"model": network.state_dict()}, tmp_path / "best.pt")
    again = build_network(NUM_CLASSES, settings(seed=7, model=model, weights=str(tmp_path / "best.pt")))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in network.state_dict().items())


def test_what_makes_segments_is_no_part_of_the_fingerprint(settings: Build) -> None:
    grouping = settings().model.model_dump() | {"grouping": {"center_threshold": 0.3}}
    assert settings(threshold=0.5, model=grouping).fingerprint() == settings().fingerprint()
    assert settings(losses={"center": 1.0}).fingerprint() != settings().fingerprint()
    with pytest.raises(ParameterError, match="compile"):
        settings(compile=True)
