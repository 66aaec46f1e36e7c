"""A batch computed in parts gives the step of the whole batch."""

import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from construction_panoptic.config.training import DetectionSettings
from construction_panoptic.errors import ParameterError
from construction_panoptic.models.detr.model import build_detr, build_detr_panoptic
from construction_panoptic.signals import Interrupted, StopRequest
from construction_panoptic.training.loading import BatchLoader, build_loader
from construction_panoptic.training.loop import _start, train
from construction_panoptic.training.samples import PanopticSamples
from construction_panoptic.training.state import own_randomness
from construction_panoptic.training.steps import EpochSteps
from construction_panoptic.training.tasks.stages import DetectionStage, MaskHeadStage, Stage

Make = Callable[..., tuple[Stage, BatchLoader, DetectionSettings]]


@pytest.fixture
def make(scene: Any, small_model: dict[str, Any], small_settings: Callable[..., DetectionSettings]) -> Make:
    """A stage without what a part has for itself (dropout, statistics of normalisation), and batches of six."""

    def build(kind: str, **changes: Any) -> tuple[Stage, BatchLoader, DetectionSettings]:
        settings = small_settings(**{"batch_size": 6, **changes})
        model = {**small_model, "norm": "frozen", "dropout": 0.0}
        with own_randomness(settings.seed):
            stage: Stage
            if kind == "detection":
                stage = DetectionStage(build_detr(**model), settings)
            else:
                stage = MaskHeadStage(build_detr_panoptic(**model), settings)
        places = (scene.panoptic, scene.images, scene.pngs, settings.augmentation)
        samples = PanopticSamples(*places, training=True, seed=settings.seed)
        loader = build_loader(samples, batch_size=settings.batch_size, shuffle=True, seed=settings.seed)
        return stage, loader, settings

    return build


@pytest.mark.parametrize("kind", ["detection", "mask_head"])
@pytest.mark.parametrize("micro_batches", [2, 4, 6])
def test_gradients_and_losses_are_those_of_the_whole_batch(make: Make, kind: str, micro_batches: int) -> None:
    def computed(parts: int) -> tuple[nn.Module, dict[str, Tensor]]:
        stage, loader, settings = make(kind, micro_batches=parts)
        training = _start(stage, loader, settings)
        stage.model.train()
        return stage.model, EpochSteps(training, loader)._gradients(next(iter(loader)))

    (one, whole), (several, in_parts) = computed(1), computed(micro_batches)
    assert whole.keys() == in_parts.keys()
    for name in whole.keys() - {"class_error"}:  # a mean of shares, each of another number of queries
        torch.testing.assert_close(in_parts[name], whole[name], rtol=1e-5, atol=1e-6, msg=name)
    learning = [name for name, parameter in one.named_parameters() if parameter.grad is not None]
    assert learning
    for name in learning:
        expected, found = one.get_parameter(name).grad, several.get_parameter(name).grad
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6, msg=name)


def test_a_training_goes_on_with_another_number_of_parts(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """As after the memory has run out."""
    changes = {"batch_size": 3, "epochs": 2}

    def work(resume: Any = None, stop: StopRequest | None = None, **more: Any) -> Any:
        stage, loader, settings = make("detection", **changes, **more)
        return train(
            stage, loader, settings, resume=resume, stop=stop, fingerprint={"settings": settings.fingerprint()}
        )

    *_, whole = work()
    stop = StopRequest()
    run = work(stop=stop)
    stop.number = signal.SIGTERM
    left = next(run)
    with pytest.raises(Interrupted):
        next(run)
    *_, resumed = work(left.checkpoint, micro_batches=3)
    assert "starts over" not in caplog.text
    assert resumed.checkpoint["settings"]["micro_batches"] == 3
    for name in ("train/loss", "train/gradient_norm", "train/loss_giou"):
        assert resumed.metrics[name] == pytest.approx(whole.metrics[name], rel=1e-3)


def test_more_parts_than_images_are_refused(small_settings: Callable[..., DetectionSettings]) -> None:
    with pytest.raises(ParameterError, match=r"detection: micro_batches \(3\) is above batch_size \(2\)"):
        small_settings(micro_batches=3)
