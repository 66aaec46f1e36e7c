import io
import logging
import random
from typing import Any

import numpy as np
import pytest
import torch

from construction_panoptic.training.state import (
    FORMAT_VERSION,
    differing,
    improved,
    own_randomness,
    random_state,
    resumable,
    set_random_state,
    snapshot,
)


def draw() -> list[float]:
    from_numpy = np.random.rand()  # noqa: NPY002
    return [torch.rand(1).item(), from_numpy, random.random(), torch.randn(1).item(), random.gauss(0, 1)]


def test_random_state_is_plain_and_comes_back() -> None:
    random.gauss(0, 1)
    stream = io.BytesIO()
    torch.save(snapshot(random_state()), stream)
    expected = draw()
    assert draw() != expected
    stream.seek(0)
    set_random_state(torch.load(stream, weights_only=True))
    assert draw() == expected


def test_own_randomness_leaves_the_callers_alone() -> None:
    before = random_state()
    expected = draw()
    set_random_state(before)
    with own_randomness(7):
        first = draw()
        middle = random_state()
        second = draw()
    with own_randomness(7):
        assert draw() == first
    with own_randomness(middle):
        assert draw() == second
    assert draw() == expected
    set_random_state(before)
    with pytest.raises(KeyError), own_randomness(7):
        raise KeyError
    assert draw() == expected


def test_snapshot_copies_tensors_and_is_plain() -> None:
    weights = torch.ones(3, requires_grad=True)
    copied = snapshot({"w": weights, "nested": [(1, 2.5)], "array": np.float32(2), "none": None})
    with torch.no_grad():
        weights += 1
    assert copied["w"].tolist() == [1, 1, 1]
    assert not copied["w"].requires_grad
    assert copied["nested"] == [[1, 2.5]]
    assert type(copied["array"]) is float
    with pytest.raises(TypeError, match="cannot hold set"):
        snapshot({"x": {1, 2}})


def test_differing_names_entries_by_path() -> None:
    stored = {"a": 1, "b": {"c": 2, "d": [1, 2]}, "gone": 1}
    assert differing(stored, {"a": 1, "b": {"c": 3, "d": [1, 2]}, "new": 1}) == ["b.c", "gone", "new"]
    assert differing(stored, dict(stored)) == []


def test_resumable(caplog: pytest.LogCaptureFixture) -> None:
    checkpoint: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "fingerprint": {"data": "x", "lr": [1, 2]},
    }
    assert resumable(checkpoint, {"data": "x", "lr": (1, 2)})
    with caplog.at_level(logging.WARNING):
        assert not resumable(checkpoint, {"data": "y", "lr": (1, 2)})
        assert not resumable({**checkpoint, "format_version": 0}, {"data": "x", "lr": [1, 2]})
    assert "other data: training starts over" in caplog.text
    assert "format 0, not 1" in caplog.text


def test_improved() -> None:
    nan = float("nan")
    assert improved(0.0, None)
    assert improved(nan, None)
    assert improved(0.0, nan)
    assert not improved(nan, nan)
    assert not improved(nan, 0.0)
    assert improved(0.2, 0.1)
    assert not improved(0.2, 0.2)
