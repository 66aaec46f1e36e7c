import itertools
import json
import logging
import random
import re
import signal
import time
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from construction_panoptic.errors import CheckpointError, ParameterError, UserError
from construction_panoptic.models.detr.model import DetrPanoptic, build_detr, build_detr_panoptic
from construction_panoptic.models.universal.network import pretrained
from construction_panoptic.parallel import collectives
from construction_panoptic.signals import Interrupted, StopRequest
from construction_panoptic.training.loading import Batch, BatchLoader, build_loader
from construction_panoptic.training.loop import EpochResult, train
from construction_panoptic.training.progress import Progress
from construction_panoptic.training.samples import DetectionSamples, PanopticSamples
from construction_panoptic.training.state import own_randomness
from construction_panoptic.training.tasks.detection import DetectionTask
from construction_panoptic.training.tasks.mask_head import MaskHeadTask
from construction_panoptic.training.tasks.panoptic_deeplab import PanopticDeeplabTask, build_network
from construction_panoptic.training.tasks.protocol import Loss, TrainingTask
from construction_panoptic.training.tasks.universal import UniversalTask
from construction_panoptic.training.watch import NonFiniteLossError
from tests.unit.training.conftest import (
    DEEPLAB_SPEC,
    NUM_CLASSES,
    SPEC,
    UNIVERSAL_SPEC,
    as_bytes,
    assert_equal,
    deeplab_settings,
    through_a_file,
    universal_settings,
)
from tests.unit.universal_models import write_model

pytestmark = pytest.mark.medium


class Kit:
    """Builds equal stages and loaders again and again, as separate processes would."""

    def __init__(self, scene: Any, small_model: dict[str, Any], small_settings: Any) -> None:
        self.scene, self.small_model, self.small_settings = scene, small_model, small_settings

    def loader(self, settings: Any, kind: str, workers: int = 0) -> BatchLoader:
        samples: Any
        if kind == "detection":
            samples = DetectionSamples(
                self.scene.detection,
                self.scene.images,
                settings.augmentation,
                training=True,
                seed=settings.seed,
            )
        else:
            samples = PanopticSamples(
                self.scene.panoptic,
                self.scene.images,
                self.scene.pngs,
                settings.augmentation,
                training=True,
                seed=settings.seed,
            )
        return build_loader(samples, batch_size=settings.batch_size, shuffle=True, seed=settings.seed, workers=workers)

    def task(self, settings: Any, kind: str) -> TrainingTask:
        with own_randomness(settings.seed):
            if kind == "detection":
                return DetectionTask(build_detr(**self.small_model), settings, SPEC)
            if kind == "panoptic_deeplab":
                own = deeplab_settings(settings)
                return PanopticDeeplabTask(build_network(NUM_CLASSES, own), own, DEEPLAB_SPEC)
            if kind == "universal":
                folder = self.scene.images.parent / "eomt"
                network = pretrained(folder if folder.exists() else write_model(folder, "eomt"), NUM_CLASSES)[0]
                return UniversalTask(network, universal_settings(settings), UNIVERSAL_SPEC)
            return MaskHeadTask(build_detr_panoptic(**self.small_model), settings, SPEC)

    def train(
        self, kind: str = "detection", workers: int = 0, changes: Any = None, validate: Any = None, **other: Any
    ) -> Generator[EpochResult, None, None]:
        """``validate`` gets the model."""
        task = self.task(self.small_settings(**(changes or {})), kind)
        if validate is not None:
            other["validate"] = lambda: validate(task.model)
        return train(task, self.loader(task.settings, kind, workers), **other)


@pytest.fixture
def kit(scene: Any, small_model: dict[str, Any], small_settings: Any) -> Kit:
    return Kit(scene, small_model, small_settings)


@pytest.mark.parametrize("kind", ["detection", "mask_head", "panoptic_deeplab", "universal"])
def test_resumed_training_equals_an_uninterrupted_one_bit_for_bit(kit: Kit, kind: str) -> None:
    changes = {"schedule": {"kind": "cosine", "warmup_epochs": 1}}
    whole = [result.checkpoint for result in kit.train(kind, changes=changes)]
    assert [checkpoint["finished"] for checkpoint in whole] == [False, False, True]
    for killed_after in (1, 2):
        resumed = kit.train(kind, changes=changes, resume=through_a_file(whole[killed_after - 1]))
        results = []
        for result in resumed:
            results.append(result)
            # What the caller does between epochs with the global generators must not matter.
            torch.rand(3)
            np.random.rand(3)  # noqa: NPY002
            random.random()
        assert [result.epoch for result in results] == list(range(killed_after + 1, 4))
        for result in results:
            assert_equal(result.checkpoint, whole[result.epoch - 1])


def test_kill_within_an_epoch_and_other_workers_change_nothing(kit: Kit) -> None:
    whole = [result.checkpoint for result in kit.train()]
    run = kit.train(workers=2)
    saved = through_a_file(next(run).checkpoint)
    run.close()
    results = list(kit.train(workers=1, resume=saved))
    assert_equal(results[-1].checkpoint, whole[-1])


def test_dropout_and_batch_statistics_are_in_play(kit: Kit) -> None:
    """The bit-for-bit tests would prove little without them."""
    first, second = (result.checkpoint["model"] for result in list(kit.train())[:2])
    statistics = [name for name in first if name.endswith("running_mean")]
    assert statistics
    assert not torch.equal(first[statistics[0]], second[statistics[0]])
    plain = Kit(kit.scene, {**kit.small_model, "dropout": 0.0}, kit.small_settings)
    without = next(plain.train()).checkpoint["model"]
    assert not torch.equal(without["class_embed.weight"], first["class_embed.weight"])


def test_checkpoint_is_plain_and_loads_into_the_model(kit: Kit) -> None:
    results = list(kit.train(fingerprint={"data": "abc", "sizes": (1, 2)}, extra={"classes": ["a"]}))
    checkpoint = through_a_file(results[-1].checkpoint)
    assert set(checkpoint) == {
        "format_version", "stage", "epoch", "under_way", "finished", "model", "optimizer", "scheduler", "rng", "others",
        "history", "timings", "best", "settings", "fingerprint", "extra",
    }  # fmt: skip
    assert (checkpoint["stage"], checkpoint["epoch"], checkpoint["finished"]) == ("detection", 3, True)
    assert checkpoint["fingerprint"] == {"data": "abc", "sizes": [1, 2]}
    assert checkpoint["extra"] == {"classes": ["a"]}
    json.dumps([checkpoint["settings"], checkpoint["history"]])
    build_detr(**kit.small_model).load_state_dict(checkpoint["model"], strict=True)


def test_a_given_checkpoint_does_not_change_later(kit: Kit) -> None:
    run = kit.train()
    first = next(run).checkpoint
    copy = through_a_file(first)
    list(run)
    assert_equal(through_a_file(first), copy)


def test_callers_random_numbers_are_left_alone(kit: Kit) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    run = kit.train()
    next(run)
    assert torch.equal(torch.rand(2), expected)


def test_metrics_and_history(kit: Kit) -> None:
    results = list(kit.train(changes={"schedule": {"drop_epoch": 2}}))
    names = {
        "train/loss", "train/loss_ce", "train/loss_bbox", "train/loss_giou", "train/class_error",
        "train/cardinality_error", "train/gradient_norm",
        "train/loss_ce_aux", "train/loss_bbox_aux", "train/loss_giou_aux", "train/lr", "train/lr_backbone",
    }  # fmt: skip
    timings = {"epoch", "train/images_per_second", "train/data_wait_share", "time/epoch_seconds"}
    for result in results:
        assert set(result.metrics) == names
        assert all(type(value) is float for value in result.metrics.values())
        assert [set(row) for row in result.timings] == [timings] * result.epoch
        assert 0 <= result.timings[-1]["train/data_wait_share"] <= 1
    assert [result.metrics["train/lr"] for result in results] == pytest.approx([1e-3, 1e-3, 1e-4])
    assert results[-1].history == [{"epoch": result.epoch, **result.metrics} for result in results]


def test_validation_and_the_best_epoch(kit: Kit) -> None:
    seen: list[tuple[bool, bool]] = []
    values = {1: 0.2, 2: 0.5, 3: 0.5, 4: 0.4, 5: 0.3}

    def validate(model: nn.Module) -> dict[str, float]:
        seen.append((model.training, torch.is_grad_enabled()))
        return {"val/ap": values[len(seen)], "test/other": 1.0}

    def run(changes: dict[str, Any], **other: Any) -> list[EpochResult]:
        seen.clear()
        return list(kit.train(changes={"epochs": 5, **changes}, validate=validate, **other))

    results = run({})
    assert seen == [(False, False)] * 5
    assert [result.best is not None for result in results] == [True, True, False, False, False]
    assert results[1].best is not None
    assert_equal(results[1].best, results[1].checkpoint)
    assert results[-1].checkpoint["best"] == {"epoch": 2, "value": 0.5}
    assert results[0].metrics["test/other"] == 1.0
    assert "time/validation_seconds" in results[0].timings[0]

    results = run({"validate_every": 3})
    assert ["val/ap" in result.metrics for result in results] == [False, False, True, False, True]
    assert [result.best is not None for result in results] == [False, False, True, False, True]

    with pytest.raises(ParameterError, match=r"mask_head: there is no metric 'val/pq' to monitor; there are .*val/ap"):
        run({}, kind="mask_head")


def test_best_survives_a_resume(kit: Kit) -> None:
    def run(resume: Any) -> Generator[EpochResult, None, None]:
        values = iter([0.9, 0.1, 0.2]) if resume is None else iter([0.1, 0.2])
        return kit.train(validate=lambda _: {"val/ap": next(values)}, resume=resume)

    first = run(None)
    saved = through_a_file(next(first).checkpoint)
    assert [result.best for result in run(saved)] == [None, None]


def test_other_fingerprint_starts_over(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    saved = next(kit.train(fingerprint={"data": {"train": "a"}})).checkpoint
    with caplog.at_level(logging.WARNING):
        results = list(kit.train(fingerprint={"data": {"train": "b"}}, resume=saved))
    assert [result.epoch for result in results] == [1, 2, 3]
    assert "other data.train: training starts over" in caplog.text


def test_finished_training_gives_its_last_epoch_again(kit: Kit) -> None:
    last = list(kit.train())[-1]
    (again,) = kit.train(resume=through_a_file(last.checkpoint))
    assert again.best is None
    assert (again.epoch, again.metrics, again.history) == (3, last.metrics, last.history)
    assert_equal(again.checkpoint, last.checkpoint)


def test_a_training_can_be_made_longer_or_cut_short(kit: Kit) -> None:
    whole = [result.checkpoint for result in kit.train(changes={"epochs": 4})]
    three = list(kit.train())
    assert three[-1].checkpoint["finished"]
    (longer,) = kit.train(changes={"epochs": 4}, resume=three[-1].checkpoint)
    assert_equal(longer.checkpoint["model"], whole[-1]["model"])
    (shorter,) = kit.train(changes={"epochs": 2}, resume=whole[2])
    assert shorter.checkpoint["finished"]
    assert shorter.epoch == 3


def test_checkpoint_of_another_model_is_refused(kit: Kit) -> None:
    saved = next(kit.train()).checkpoint
    other = Kit(kit.scene, {**kit.small_model, "hidden_dim": 48}, kit.small_settings)
    with pytest.raises(CheckpointError, match="does not fit the model"):
        next(other.train(resume=saved))


class Recording(DetectionTask):
    """Keeps the images of every step."""

    seen: list[Batch]

    def losses(self, batch: Batch) -> dict[str, Loss]:
        self.seen.append(batch)
        return super().losses(batch)


def test_each_epoch_has_its_own_order_and_augmentation(kit: Kit) -> None:
    settings = kit.small_settings()
    task = Recording(build_detr(**kit.small_model), settings, SPEC)
    task.seen = []
    list(train(task, kit.loader(settings, "detection")))
    epochs = [task.seen[start : start + 3] for start in (0, 3, 6)]
    orders = [[name for batch in epoch for name in batch.file_names] for epoch in epochs]
    assert [sorted(order) for order in orders] == [sorted(orders[0])] * 3
    assert len({tuple(order) for order in orders}) > 1
    boxes = [
        {
            name: target["boxes"].tolist()
            for batch in epoch
            for name, target in zip(batch.file_names, batch.targets, strict=True)
        }
        for epoch in epochs
    ]
    assert boxes[0] != boxes[1] != boxes[2] != boxes[0]


class Poisoned(DetectionTask):
    """Makes one term of the loss of one image's batch not finite."""

    poison: str

    def losses(self, batch: Batch) -> dict[str, Loss]:
        losses = super().losses(batch)
        if self.poison in batch.file_names:
            losses["loss_bbox"] = replace(losses["loss_bbox"], sum=losses["loss_bbox"].sum * float("inf"))
        return losses


def test_non_finite_loss_stops_and_names_the_batch(kit: Kit) -> None:
    settings = kit.small_settings()
    task = Poisoned(build_detr(**kit.small_model), settings, SPEC)
    task.poison = "nothing"
    run = train(task, kit.loader(settings, "detection"))
    good = next(run).checkpoint
    task.poison = "site__003.png"
    with pytest.raises(NonFiniteLossError, match=r"epoch 2, step [123], images .*site__003\.png.*loss_bbox inf"):
        next(run)
    assert all(bool(value.isfinite().all()) for value in good["model"].values())


def test_non_finite_outputs_stop_and_name_the_batch(kit: Kit) -> None:
    settings = kit.small_settings()
    task = kit.task(settings, "detection")
    run = train(task, kit.loader(settings, "detection"))
    next(run)
    with torch.no_grad():
        next(iter(task.model.parameters())).fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match=r"epoch 2, step 1, images site__\d+\.png, site__\d+\.png"):
        next(run)


class Stopping(DetectionTask):
    """Is asked to stop in a step."""

    stop: StopRequest
    steps = 0

    def losses(self, batch: Batch) -> dict[str, Loss]:
        self.steps += 1
        if self.steps == 5:
            self.stop.number = signal.SIGTERM
        return super().losses(batch)


def test_a_request_to_stop_saves_the_step_that_it_comes_in(kit: Kit) -> None:
    settings = kit.small_settings()
    whole = [result.checkpoint for result in kit.train()]
    with own_randomness(settings.seed):
        task = Stopping(build_detr(**kit.small_model), settings, SPEC)
    task.stop = StopRequest()
    run = train(task, kit.loader(settings, "detection"), stop=task.stop)
    assert next(run).complete
    within = next(run)
    assert (within.complete, within.metrics, within.best, within.epoch) == (False, {}, None, 1)
    with pytest.raises(Interrupted, match=r"saved after epoch 1 of 3 and step 2 of the next epoch\.$"):
        next(run)
    assert task.steps == 5
    resumed = list(kit.train(resume=through_a_file(within.checkpoint)))
    assert [result.epoch for result in resumed] == [2, 3]
    for result in resumed:
        assert_equal(result.checkpoint, whole[result.epoch - 1])


@pytest.mark.parametrize(("kind", "workers"), [("detection", 0), ("mask_head", 0), ("detection", 2)])
def test_resumed_within_an_epoch_equals_an_uninterrupted_one_bit_for_bit(kit: Kit, kind: str, workers: int) -> None:
    """The clock makes a checkpoint due after every second step."""
    changes: dict[str, Any] = {"schedule": {"kind": "cosine", "warmup_epochs": 1}}
    whole = [result.checkpoint for result in kit.train(kind, changes=changes)]
    often = {**changes, "checkpoint_every_minutes": 2}
    results = list(kit.train(kind, workers, often, clock=itertools.count(step=60).__next__))
    assert [(result.epoch, result.complete) for result in results] == [
        (0, False), (1, True), (1, False), (2, True), (2, False), (3, True)
    ]  # fmt: skip
    for result in results:
        if result.complete:
            assert_equal(result.checkpoint | {"settings": {}}, whole[result.epoch - 1] | {"settings": {}})
            continue
        assert result.checkpoint["under_way"]["step"] == 2
        assert len(result.history) == result.epoch
        torch.rand(3)  # the caller's generators are its own
        resumed = list(kit.train(kind, workers, changes, resume=through_a_file(result.checkpoint)))
        assert_equal(resumed[0].checkpoint, whole[result.epoch])
        assert_equal(resumed[-1].checkpoint, whole[-1])
        assert [len(row.timings) for row in resumed] == list(range(result.epoch + 1, 4))


def test_equal_results_are_saved_as_equal_bytes(kit: Kit) -> None:
    """Whether or not the training was resumed, and whatever was timed."""

    def validate(model: nn.Module) -> dict[str, float]:
        return {"val/ap": float(next(model.parameters()).abs().sum())}

    whole = list(kit.train(fingerprint={"data": "abc"}, validate=validate))
    saved = through_a_file(whole[0].checkpoint)
    resumed = list(kit.train(fingerprint={"data": "abc"}, validate=validate, resume=saved))
    assert as_bytes(resumed[-1].checkpoint) == as_bytes(whole[-1].checkpoint)
    monitored = [result.best for result in whole if result.best]
    assert as_bytes(monitored[-1]) == as_bytes([result.best for result in resumed if result.best][-1])


class Greedy(DetectionTask):
    """Needs more memory than there is."""

    def losses(self, batch: Batch) -> dict[str, Loss]:
        torch.empty(2**50)
        return super().losses(batch)


def test_too_little_memory_is_an_error_for_people(kit: Kit) -> None:
    """Also in a process that only sends its parent a message."""
    settings = kit.small_settings()
    task = Greedy(build_detr(**kit.small_model), settings, SPEC)
    with pytest.raises(UserError, match=r"Memory has run out\. .* a larger micro_batches "):
        next(train(task, kit.loader(settings, "detection")))


def test_a_request_to_stop_as_the_last_validation_ends_comes_after_the_epoch(kit: Kit) -> None:
    stop = StopRequest()

    def validate(model: nn.Module) -> dict[str, float]:
        stop.number = signal.SIGINT
        return {"val/ap": 0.5}

    run = kit.train(changes={"epochs": 1}, validate=validate, stop=stop)
    assert next(run).checkpoint["finished"]
    with pytest.raises(Interrupted, match="saved after epoch 1 of 1"):
        next(run)


@pytest.mark.parametrize("kind", ["detection", "mask_head"])
def test_a_validation_that_is_left_is_done_again(kit: Kit, kind: str) -> None:
    """Bit for bit, in trained batch normalisation too, and whatever the validation draws at random."""

    def train(stop: StopRequest, seen: list[int], **other: Any) -> Generator[EpochResult, None, None]:
        passes = itertools.count(1)

        def validate(model: nn.Module) -> dict[str, float]:
            epoch, score = next(passes), 0.0
            for number in collectives.until_stopped(range(4), stop):
                seen.append(number)
                score += float(next(iter(model.parameters())).sum()) + float(torch.rand(()))
                if epoch == 2 and number == 1 and not other:
                    stop.number = signal.SIGTERM
            return {"val/ap": score, "val/pq": score}

        return kit.train(kind, validate=validate, stop=stop, **other)

    whole = list(train(StopRequest(), [], resume=None))
    stop, seen = StopRequest(), list[int]()
    run = train(stop, seen)
    assert next(run).complete
    within = next(run)
    assert seen == [0, 1, 2, 3, 0, 1]
    assert (within.complete, within.metrics, within.best, within.epoch) == (False, {}, None, 1)
    with pytest.raises(Interrupted, match="saved after epoch 1 of 3 and step 3 of the next epoch") as interrupted:
        next(run)
    assert interrupted.value.exit_code == 143
    again: list[int] = []
    resumed = list(train(StopRequest(), again, resume=through_a_file(within.checkpoint)))
    assert again == [0, 1, 2, 3] * 2
    assert [as_bytes(result.best) for result in resumed] == [as_bytes(result.best) for result in whole[1:]]
    assert as_bytes(resumed[-1].checkpoint) == as_bytes(whole[-1].checkpoint)


def test_one_line_an_epoch_is_logged(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        list(kit.train())
    lines = [line for line in caplog.messages if "epoch " in line]
    assert len(lines) == 3
    assert lines[1].startswith("detection: epoch 2/3: train/loss ")
    assert lines[2].endswith("0:00:00 left)")


def test_both_stages_learn_a_few_images(kit: Kit) -> None:
    kit = Kit(kit.scene, {**kit.small_model, "hidden_dim": 64, "dropout": 0.0}, kit.small_settings)
    still = {"sides": [72], "max_side": 112, "flip": 0, "crop": 0, "evaluation_side": 72}
    changes: dict[str, Any] = {
        "epochs": 15,
        "augmentation": still,
        "optimizer": {"lr": 2e-3, "lr_backbone": 2e-3, "clip_max_norm": 1.0},
    }
    results = list(kit.train(changes=changes))
    assert results[-1].metrics["train/loss"] < 0.75 * results[0].metrics["train/loss"]

    changes = {**changes, "batch_size": 1, "optimizer": {"lr": 5e-3, "clip_max_norm": 0}}
    settings = kit.small_settings(**changes)
    task = kit.task(settings, "mask_head")
    assert isinstance(task.model, DetrPanoptic)
    detector = results[-1].checkpoint["model"]
    task.model.detr.load_state_dict(detector)
    results = list(train(task, kit.loader(settings, "panoptic")))
    losses = [result.metrics["train/loss"] for result in results]
    assert losses[-1] < 0.92 * losses[0]
    trained = results[-1].checkpoint["model"]
    assert all(torch.equal(trained[f"detr.{name}"], value) for name, value in detector.items())


def test_before_training_its_size_is_logged_and_soon_its_time(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        bar = Progress("toy", epochs=3, steps=20, device=torch.device("cpu"), done=1)
        bar.start_epoch(1, 2)
        for _ in range(18):
            bar.step({})
            time.sleep(0.002)
    first, second = caplog.messages
    assert first == f"toy: 2 epochs of 20 steps on CPU, {torch.get_num_threads()} threads."
    assert re.fullmatch(r"toy: 0\.00\d+ s a step: about 0:00:00 of training, and validation\.", second)
