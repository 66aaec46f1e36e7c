"""Two processes on the CPU train as one does; all that can go wrong in one of them ends the training."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from construction_panoptic.config.training import DetectionSettings
from construction_panoptic.errors import ParameterError, UserError
from construction_panoptic.parallel.device import process_count
from construction_panoptic.parallel.launcher import launch
from construction_panoptic.signals import Interrupted, StopRequest
from construction_panoptic.training.loading import EpochBatches
from construction_panoptic.training.loop import EpochResult
from tests.unit.training import teamwork
from tests.unit.training.conftest import Scene, assert_equal, through_a_file, write_scene

pytestmark = pytest.mark.medium

# A group norm of one channel a group takes the bias before it away: all gradient that there is is rounding, of which
# AdamW makes whole steps.
NO_GRADIENT = {"mask_head.lay4.bias", "mask_head.lay5.bias"}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return write_scene(tmp_path_factory.mktemp("scene"), 9)


def results(work: Any, arguments: tuple[Any, ...], count: int, stop: StopRequest | None = None) -> list[EpochResult]:
    return list(launch(work, arguments, stop or StopRequest(), "local", count, "cpu"))


@pytest.mark.slow
def test_two_processes_train_as_one_with_batches_twice_as_large(
    scenes: Scene, small_model: dict[str, Any], small_settings: Callable[..., DetectionSettings]
) -> None:
    """Losses, gradients, weights, AP and PQ; with images of two shapes, and without what each process has for itself:
    dropout and the statistics of trained batch normalisation.
    """
    model = {**small_model, "norm": "frozen", "dropout": 0.0}
    rates = {"lr": 1e-4, "lr_backbone": 1e-4}
    two = results(teamwork.train_both, (scenes, model, small_settings(epochs=2, optimizer=rates)), 2)
    one = results(teamwork.train_both, (scenes, model, small_settings(epochs=2, batch_size=4, optimizer=rates)), 1)
    assert [result.epoch for result in two] == [1, 2, 1, 2]
    for ours, theirs in zip(two, one, strict=True):
        assert ours.metrics.keys() == theirs.metrics.keys()
        for name, value in theirs.metrics.items():
            assert ours.metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-6), (ours.epoch, name)
        for name, value in theirs.checkpoint["model"].items():
            if name not in NO_GRADIENT:
                torch.testing.assert_close(ours.checkpoint["model"][name], value, rtol=0, atol=1e-5, msg=name)
    assert {"val/ap", "val/pq", "val/loss", "val/loss_mask"} <= {name for result in two for name in result.metrics}


@pytest.mark.slow
def test_a_training_in_two_processes_resumes_within_an_epoch_bit_for_bit(
    scenes: Scene, small_model: dict[str, Any], small_settings: Callable[..., DetectionSettings]
) -> None:
    """Dropout, which is drawn in each process, is in play."""
    model = {**small_model, "norm": "frozen"}
    whole = results(teamwork.train_detection, (scenes, model, small_settings(epochs=2), None), 2)
    stop = StopRequest()
    run = launch(teamwork.train_detection, (scenes, model, small_settings(epochs=2), None), stop, "local", 2, "cpu")
    first = next(run)
    stop.number = signal.SIGTERM
    rest: list[EpochResult] = []
    with pytest.raises(Interrupted, match=r"SIGTERM: detection: saved after epoch [12] of 2") as interrupted:
        rest.extend(run)
    assert interrupted.value.exit_code == 143
    last = [first, *rest][-1].checkpoint
    saved = through_a_file(last)
    resumed = results(teamwork.train_detection, (scenes, model, small_settings(epochs=2), saved), 2)
    assert len(saved["others"]) == 1
    assert resumed[-1].history == whole[-1].history
    assert_equal(resumed[-1].checkpoint["model"], whole[-1].checkpoint["model"])


@pytest.mark.slow
def test_a_checkpoint_within_an_epoch_of_two_processes_changes_nothing(
    scenes: Scene, small_model: dict[str, Any], small_settings: Callable[..., DetectionSettings]
) -> None:
    """Running statistics, of which each process has its own until the end of the epoch, are in play."""
    assert small_model["norm"] == "batch"
    whole = results(teamwork.train_detection, (scenes, small_model, small_settings(epochs=2), None), 2)
    often = small_settings(epochs=2, checkpoint_every_minutes=1e-9)
    watched = results(teamwork.train_detection, (scenes, small_model, often, None), 2)
    [within, *_] = [result for result in watched if not result.complete and result.checkpoint["under_way"]["step"] == 1]
    saved = through_a_file(within.checkpoint)
    resumed = results(teamwork.train_detection, (scenes, small_model, small_settings(epochs=2), saved), 2)
    for run in (watched, resumed):
        assert run[-1].history == whole[-1].history
        assert_equal(run[-1].checkpoint["model"], whole[-1].checkpoint["model"])


@pytest.mark.slow
def test_two_processes_leave_a_validation_together_and_do_it_again(
    scenes: Scene, small_model: dict[str, Any], small_settings: Callable[..., DetectionSettings]
) -> None:
    """Running statistics, which the processes average before it, are in play."""
    whole = results(teamwork.train_detection, (scenes, small_model, small_settings(epochs=2), None), 2)
    arguments = (scenes, small_model, small_settings(epochs=2))
    run = launch(teamwork.stop_in_the_second_validation, arguments, StopRequest(), "local", 2, "cpu")
    assert next(run).complete
    within = next(run)
    assert (within.complete, within.epoch, within.checkpoint["under_way"]["step"]) == (False, 1, 2)
    with pytest.raises(Interrupted, match=r"SIGTERM: detection: saved after epoch 1 of 2 and step 2"):
        next(run)
    resumed = results(teamwork.train_detection, (scenes, small_model, small_settings(epochs=2), within.checkpoint), 2)
    assert [result.history for result in resumed] == [whole[-1].history]
    assert_equal(resumed[-1].checkpoint["model"], whole[-1].checkpoint["model"])


def test_a_process_that_is_killed_ends_all_and_is_named(tmp_path: Path) -> None:
    run = launch(teamwork.fail, ("killed", tmp_path), StopRequest(), "local", 2, "cpu")
    assert next(run) == 1
    with pytest.raises(UserError, match=r"Process 2 of 2 .*SIGKILL.*last checkpoint is kept"):
        next(run)
    for path in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)


@pytest.mark.slow
def test_processes_that_a_signal_ends_too_early_are_no_error(tmp_path: Path) -> None:
    """Ctrl-C reaches them also while they start, before they leave it to their parent."""
    stop = StopRequest()
    run = launch(teamwork.fail, ("killed", tmp_path), stop, "local", 2, "cpu")
    assert next(run) == 1
    stop.number = signal.SIGINT
    with pytest.raises(Interrupted, match=r"SIGINT: a process .* ended before") as interrupted:
        next(run)
    assert interrupted.value.exit_code == 130


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("bad input", UserError, r"^site\.jpg: not an image$"),
        ("defect", RuntimeError, r"(?s)Process 2 of 2 .*Traceback.*ZeroDivisionError: in the second process"),
    ],
)
def test_an_error_in_one_process_ends_all_and_is_shown(
    tmp_path: Path, how: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        results(teamwork.fail, (how, tmp_path), 2)


@pytest.mark.parametrize("aspects", [None, [0.4, 0.9, 1.5, 3.0, 0.9, 1.5, 0.4, 0.9, 1.5, 0.9, 1.5]])
def test_the_shares_of_a_team_make_up_the_batches_of_one_process(aspects: list[float] | None) -> None:
    def batches(size: int, rank: int, world_size: int, shuffle: bool = True) -> list[list[tuple[int, int]]]:
        made = EpochBatches(11, size, seed=3, shuffle=shuffle, aspects=aspects, rank=rank, world_size=world_size)
        made.set_epoch(5, start=0)
        assert len(list(made)) == len(made)
        return list(made)

    whole = batches(4, 0, 1)
    shares = [batches(4, rank, 2) for rank in range(2)]
    assert [sorted(one + other) for one, other in zip(*shares, strict=True)] == [sorted(batch) for batch in whole]
    assert {len(batch) for share in shares for batch in share} == {2}
    unshuffled = batches(4, 0, 1, shuffle=False)
    first, second = (batches(4, rank, 2, shuffle=False) for rank in range(2))
    assert [first[0], second[0], first[1]] == unshuffled


def test_more_processes_than_images_or_devices_are_refused() -> None:
    with pytest.raises(ParameterError, match="3 processes cannot share 2 training images"):
        EpochBatches(2, 3, world_size=3)
    assert process_count(4, "cpu") == 4
    assert process_count("auto", "cpu") == 1
