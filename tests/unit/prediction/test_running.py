from collections.abc import Iterator

import pytest
import torch

from construction_panoptic.models.protocol import PanopticModel
from construction_panoptic.prediction.running import predict_pixels
from tests.unit.prediction.conftest import pixels


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_changes_the_last_bits_alone(trained: PanopticModel) -> None:
    images = torch.randn(2, 3, 160, 224, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 160, 224, dtype=torch.bool)
    found = []
    for count in (1, 2, 1):
        torch.set_num_threads(count)
        with torch.no_grad():
            found.append(trained.network(images, mask))
    for name in ("pred_logits", "pred_boxes", "pred_masks"):
        one, two, again = (outputs[name] for outputs in found)
        assert torch.equal(one, again), name
        assert float((one - two).abs().max()) <= 1e-4 * float(one.abs().max()), name


def test_one_image_at_a_time_sees_the_same(trained: PanopticModel) -> None:
    several = [pixels(5), pixels(6, 90, 60)]
    together = list(predict_pixels(trained, several))
    for image, expected in zip(several, together, strict=True):
        (alone,) = predict_pixels(trained, [image])
        assert (alone.png, alone.segments_info) == (expected.png, expected.segments_info)
    assert [prediction.image_id for prediction in together] == [1, 2]
