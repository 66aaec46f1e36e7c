import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from construction_panoptic.catalog.checkpoints import read_checkpoint
from construction_panoptic.cli import cli
from construction_panoptic.config.base import parse
from construction_panoptic.config.model import DetrSettings
from construction_panoptic.config.training import DetectionSettings
from construction_panoptic.errors import CheckpointError
from construction_panoptic.models.detr.model import build_detr
from construction_panoptic.training.faults import replay
from construction_panoptic.training.loading import Batch, build_loader
from construction_panoptic.training.loop import train
from construction_panoptic.training.samples import DetectionSamples
from construction_panoptic.training.state import own_randomness
from construction_panoptic.training.tasks.stages import DetectionStage
from construction_panoptic.training.watch import NonFiniteLossError


class Poisoned(DetectionStage):
    """The loss of batches with one of some images is not finite."""

    poison: tuple[str, ...] = ()

    def step(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, terms = super().step(batch)
        return (loss * float("nan") if set(self.poison) & set(batch.file_names) else loss), terms


class Kit:
    def __init__(self, scene: Any, small_model: dict[str, Any], settings: DetectionSettings) -> None:
        self.scene, self.small_model, self.settings = scene, small_model, settings
        with own_randomness(0):
            self.stage = Poisoned(build_detr(**small_model), settings)

    def train(self, **other: Any) -> Any:
        samples = DetectionSamples(
            self.scene.detection, self.scene.images, self.settings.augmentation, training=True, seed=0
        )
        loader = build_loader(samples, batch_size=self.settings.batch_size, shuffle=True, seed=0)
        model = {name: value for name, value in self.small_model.items() if name != "num_classes"}
        fingerprint = {"model": parse(DetrSettings, model, "model").model_dump(mode="json")}
        extra = {"categories": self.scene.detection["categories"]}
        return train(self.stage, loader, self.settings, fingerprint=fingerprint, extra=extra, **other)


def test_a_batch_is_skipped_as_if_it_had_not_been(scene: Any, small_model: dict[str, Any], small_settings: Any) -> None:
    kit = Kit(scene, small_model, small_settings(batch_size=6, epochs=1, on_non_finite="skip", max_skipped=1))
    before = {name: value.clone() for name, value in kit.stage.model.state_dict().items()}
    kit.stage.poison = ("site__001.png",)
    with pytest.raises(Exception, match="no metric 'train/loss'"):  # the only batch of the epoch
        list(kit.train())
    after = kit.stage.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_skipped_batches_are_counted_beyond_a_resume(
    scene: Any, small_model: dict[str, Any], small_settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings = small_settings(epochs=4, on_non_finite="skip", max_skipped=2, schedule={"kind": "cosine"})
    kit = Kit(scene, small_model, settings)
    kit.stage.poison = ("site__003.png",)
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
    resumed.stage.poison = ("site__003.png",)
    with pytest.raises(NonFiniteLossError, match="epoch 3"):
        list(resumed.train(resume=results[1].checkpoint))


def test_the_batch_that_stops_training_can_be_replayed(
    scene: Any, small_model: dict[str, Any], small_settings: Any, tmp_path: Path
) -> None:
    """The loss overflows float32; its terms, with dropout in them, are the same again."""
    path = tmp_path / "models" / "failed.pt"
    kit = Kit(scene, small_model, small_settings(failed_batch=str(path), losses={"bbox": 1e39}))
    with pytest.raises(NonFiniteLossError) as caught:
        next(kit.train())
    message = str(caught.value)
    assert message.endswith(f"kedro replay {path}")
    values = replay(read_checkpoint(path))
    assert values["loss"] == float("inf")
    for name in ("loss_ce", "loss_bbox", "loss_giou"):
        stated = re.search(rf"{name} ([\d.]+)", message)
        assert stated is not None
        assert f"{values[name]:.4g}" == stated[1]

    done = CliRunner().invoke(cli, ["replay", str(path)])
    assert done.exit_code == 0, done.output
    assert re.search(r"detection, epoch 1, images site__\d+\.png, site__\d+\.png\n +loss +inf", done.output)


def test_outputs_that_are_not_finite_are_traced_to_a_module(
    scene: Any, small_model: dict[str, Any], small_settings: Any, tmp_path: Path
) -> None:
    path = tmp_path / "failed.pt"
    kit = Kit(scene, small_model, small_settings(failed_batch=str(path)))
    with torch.no_grad():
        kit.stage.model.get_parameter("transformer.decoder.norm.weight").fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match="kedro replay"):
        next(kit.train())
    values = replay(read_checkpoint(path))
    assert values["first_module"] == "transformer.decoder.norm"
    assert "error" in values
    with own_randomness(0):
        sound = build_detr(**small_model).state_dict()
    assert "error" not in replay(read_checkpoint(path), sound)


def test_other_files_are_no_batches(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a saved batch"):
        replay({"model": {"a": torch.ones(1)}})
    torch.save({"model": None}, tmp_path / "other.pt")
    done = CliRunner().invoke(cli, ["replay", str(tmp_path / "other.pt")])
    assert done.exit_code == 1
    assert "other.pt: this is not a saved batch" in done.output
