import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from construction_panoptic.config.training import Preprocessing
from construction_panoptic.models.preprocessing import evaluation_resize, normalise, resized_size


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [
        # Worked out by hand: longer side cut off to whole pixels; the limit rounds the shorter side.
        ((480, 640), 800, (800, 1066)),
        ((640, 480), 800, (1066, 800)),
        ((427, 640), 800, (800, 1199)),
        ((300, 900), 800, (444, 1332)),  # 1333 * 300 / 900 = 444.33; 444 * 900 / 300 = 1332
        ((900, 301), 800, (1333, 446)),  # 445.81 → 446; 446 * 900 / 301 = 1333.55
        ((500, 500), 608, (608, 608)),
        ((800, 1000), 800, (800, 1000)),
        ((1080, 1920), 800, (750, 1333)),
        ((10, 100_000), 800, (1, 1333)),  # nothing would be left of the shorter side
    ],
)
def test_sizes(size: tuple[int, int], side: int, expected: tuple[int, int]) -> None:
    assert resized_size(size, side, 1333) == expected


@given(st.integers(8, 4000), st.integers(8, 4000), st.integers(8, 800))
def test_sizes_keep_the_limit_and_the_shape(height: int, width: int, side: int) -> None:
    new_height, new_width = resized_size((height, width), side, 1333)
    assert min(new_height, new_width) <= side
    # Rounding the shorter side can carry the longer one past the limit by half a pixel's share of it.
    assert max(new_height, new_width) <= 1333 + max(height, width) / min(height, width)
    assert (new_height - new_width) * (height - width) >= 0


def test_normalise() -> None:
    image = torch.full((3, 2, 2), 255, dtype=torch.uint8)
    image[1] = 0
    values = normalise(image, Preprocessing())
    assert values[:, 0, 0].tolist() == pytest.approx([(1 - 0.485) / 0.229, -0.456 / 0.224, (1 - 0.406) / 0.225])


def test_evaluation_resize() -> None:
    settings = Preprocessing(evaluation_side=40, max_side=50)
    assert evaluation_resize(torch.zeros(3, 60, 80, dtype=torch.uint8), settings).shape == (3, 38, 50)
