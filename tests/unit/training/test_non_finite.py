from dataclasses import replace
from typing import Any

import pytest
import torch

from construction_panoptic.config.training import DetectionSettings
from construction_panoptic.models.detr.model import build_detr
from construction_panoptic.training.loading import Batch, build_loader
from construction_panoptic.training.loop import train
from construction_panoptic.training.samples import DetectionSamples
from construction_panoptic.training.state import own_randomness
from construction_panoptic.training.tasks.detection import DetectionTask
from construction_panoptic.training.tasks.protocol import Loss
from construction_panoptic.training.watch import NonFiniteLossError
from tests.unit.training.conftest import SPEC


class Poisoned(DetectionTask):
    """The loss of batches with one of some images is not finite."""

    poison: tuple[str, ...] = ()

    def losses(self, batch: Batch) -> dict[str, Loss]:
        losses = super().losses(batch)
        if set(self.poison) & set(batch.file_names):
            losses["loss_ce"] = replace(losses["loss_ce"], sum=losses["loss_ce"].sum * float("nan"))
        return losses


class Kit:
    def __init__(self, scene: Any, small_model: dict[str, Any], settings: DetectionSettings) -> None:
        self.scene, self.small_model, self.settings = scene, small_model, settings
        with own_randomness(0):
            self.task = Poisoned(build_detr(**small_model), settings, SPEC)

    def train(self, **other: Any) -> Any:
        samples = DetectionSamples(
            self.scene.detection, self.scene.images, self.settings.augmentation, training=True, seed=0
        )
        loader = build_loader(samples, batch_size=self.settings.batch_size, shuffle=True, seed=0)
        return train(self.task, loader, **other)


def test_a_batch_is_skipped_as_if_it_had_not_been(scene: Any, small_model: dict[str, Any], small_settings: Any) -> None:
    kit = Kit(scene, small_model, small_settings(batch_size=6, epochs=1, on_non_finite="skip", max_skipped=1))
    before = {name: value.clone() for name, value in kit.task.model.state_dict().items()}
    kit.task.poison = ("site__001.png",)
    (result,) = kit.train()
    assert result.metrics["train/skipped_steps"] == 1  # the only batch of the epoch
    after = kit.task.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_skipped_batches_are_counted_beyond_a_resume(
    scene: Any, small_model: dict[str, Any], small_settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings = small_settings(epochs=4, on_non_finite="skip", max_skipped=2, schedule={"kind": "cosine"})
    kit = Kit(scene, small_model, settings)
    kit.task.poison = ("site__003.png",)
    run = kit.train()
    results = [next(run), next(run)]
    assert [result.metrics["train/skipped_steps"] for result in results] == [1.0, 1.0]
    assert results[1].checkpoint["scheduler"]["last_epoch"] == 6
    assert all(bool(value.isfinite().all()) for value in results[1].checkpoint["model"].values())
    warnings = [message for message in caplog.messages if "Skipped" in message]
    assert "site__003.png" in warnings[0]
    assert warnings[1].endswith("Skipped (2 of at most 2).")
    with pytest.raises(NonFiniteLossError, match=r"epoch 3.*site__003\.png"):
        next(run)
    resumed = Kit(scene, small_model, settings)
    resumed.task.poison = ("site__003.png",)
    with pytest.raises(NonFiniteLossError, match="epoch 3"):
        list(resumed.train(resume=results[1].checkpoint))
