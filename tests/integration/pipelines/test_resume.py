"""A job that is killed goes on where it was, and ends with the same results."""

import signal
from pathlib import Path

import pytest

from tests.torture import Kill, Step, torture

pytestmark = pytest.mark.slow


def kills(steps: list[Step]) -> list[list[Kill]]:
    """One in each stage, and one while a checkpoint is written."""
    named = {step.node: step for step in steps}
    return [
        [
            Kill(named["annotation_conversion.merge_things_over_stuff"], signal.SIGKILL, 0.5),
            Kill(named["detr.detection.train_detector"], signal.SIGKILL, None),
            Kill(named["detr.mask_head.train_mask_head"], signal.SIGTERM, 0.5),
            Kill(named["detr.panoptic_evaluation.measure_panoptic_quality"], signal.SIGKILL, 0.5),
        ]
    ]


def test_a_job_that_is_killed_again_and_again_ends_with_the_same_bytes(tmp_path: Path) -> None:
    assert torture(tmp_path, kills) == []
