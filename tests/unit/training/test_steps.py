"""A batch computed in parts gives the step of the whole batch."""

import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from construction_panoptic.config.training import DetectionSettings
from construction_panoptic.errors import ParameterError
from construction_panoptic.models.detr.model import build_detr, build_detr_panoptic
from construction_panoptic.signals import Interrupted, StopRequest
from construction_panoptic.training import loop
from construction_panoptic.training.loading import BatchLoader, build_loader
from construction_panoptic.training.loop import train
from construction_panoptic.training.samples import PanopticSamples
from construction_panoptic.training.state import own_randomness
from construction_panoptic.training.tasks.detection import DetectionTask
from construction_panoptic.training.tasks.mask_head import MaskHeadTask
from construction_panoptic.training.tasks.protocol import TrainingTask
from tests.unit.training.conftest import SPEC

Make = Callable[..., tuple[TrainingTask, BatchLoader]]


@pytest.fixture
def make(scene: Any, small_model: dict[str, Any], small_settings: Callable[..., DetectionSettings]) -> Make:
    """A task without what a part has for itself (dropout, statistics of normalisation), and batches of six."""

    def build(kind: str, **changes: Any) -> tuple[TrainingTask, BatchLoader]:
        settings = small_settings(**{"batch_size": 6, **changes})
        model = {**small_model, "norm": "frozen", "dropout": 0.0}
        with own_randomness(settings.seed):
            task: TrainingTask
            if kind == "detection":
                task = DetectionTask(build_detr(**model), settings, SPEC)
            else:
                task = MaskHeadTask(build_detr_panoptic(**model), settings, SPEC)
        places = (scene.panoptic, scene.images, scene.pngs, settings.augmentation)
        samples = PanopticSamples(*places, training=True, seed=settings.seed)
        loader = build_loader(samples, batch_size=settings.batch_size, shuffle=True, seed=settings.seed)
        return task, loader

    return build


@pytest.mark.parametrize("kind", ["detection", "mask_head"])
@pytest.mark.parametrize("micro_batches", [2, 4, 6])
def test_gradients_and_losses_are_those_of_the_whole_batch(
    make: Make, kind: str, micro_batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unclipped, plain gradient descent: the weights after a step say what the gradient was."""
    changes = {"epochs": 1, "optimizer": {"lr": 1e-3, "lr_backbone": 1e-3, "clip_max_norm": 0}}

    def trained(parts: int) -> tuple[dict[str, Tensor], dict[str, float]]:
        task, loader = make(kind, micro_batches=parts, **changes)
        before = {name: value.clone() for name, value in task.model.state_dict().items()}
        monkeypatch.setattr(loop, "AdamW", lambda groups, **_: torch.optim.SGD(groups))
        (result,) = train(task, loader)
        return {name: value - before[name] for name, value in result.checkpoint["model"].items()}, result.metrics

    (one, whole), (several, in_parts) = trained(1), trained(micro_batches)
    assert whole.keys() == in_parts.keys()
    for name, value in whole.items():
        assert in_parts[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    assert any(bool(change.any()) for change in one.values())
    for name, change in one.items():
        torch.testing.assert_close(several[name], change, rtol=1e-3, atol=1e-7, msg=name)


def test_a_training_goes_on_with_another_number_of_parts(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """As after the memory has run out."""
    changes = {"batch_size": 3, "epochs": 2}

    def work(resume: Any = None, stop: StopRequest | None = None, **more: Any) -> Any:
        task, loader = make("detection", **changes, **more)
        return train(task, loader, resume=resume, stop=stop, fingerprint={"settings": task.settings.fingerprint()})

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
