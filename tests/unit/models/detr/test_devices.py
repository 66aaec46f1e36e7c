"""Every tensor is made on the device of the inputs: tensors without content stand for those of a GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from construction_panoptic.config.training import MatchSettings
from construction_panoptic.models.detr import losses
from construction_panoptic.models.detr.losses import detection_losses, mask_losses, matched_target_masks
from construction_panoptic.models.detr.matcher import Matches, matching_cost
from construction_panoptic.models.detr.model import build_detr_panoptic

MATCHES: Matches = [(torch.tensor([1, 5]), torch.tensor([1, 0])), (torch.tensor([3]), torch.tensor([0]))]


@pytest.fixture
def on_gpu() -> Iterator[None]:
    """Make tensors of a GPU that need not be there; an operation on tensors of two devices fails as it would."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        yield


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_model_and_losses_stay_on_the_device_of_their_inputs(
    frozen: bool, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_detr_panoptic(6, freeze_detector=frozen, encoder_layers=1, decoder_layers=2, backbone="tiny").train()
    padding = torch.zeros(2, 64, 96, dtype=torch.bool) if padded else None
    features = model.features(torch.zeros(2, 3, 64, 96), padding)
    assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}

    targets = [
        {
            "labels": torch.zeros(count, dtype=torch.int64),
            "boxes": torch.full((count, 4), 0.5),
            "id_map": torch.zeros(64, 96, dtype=torch.int32),
            "segment_ids": torch.ones(count, dtype=torch.int32),
        }
        for count in (2, 1)
    ]
    cost = matching_cost(features.pred_logits[None], features.pred_boxes[None], targets, MatchSettings())
    assert (cost.device.type, cost.shape) == ("cuda", (1, 2, 100, 2))

    # The assignment itself runs on the host and needs numbers.
    monkeypatch.setattr(losses, "match_layers", lambda logits, *_: [MATCHES] * len(logits))
    outputs: dict[str, Any] = {"pred_logits": features.pred_logits, "pred_boxes": features.pred_boxes}
    outputs["aux_outputs"] = features.aux_outputs
    found, *auxiliary = detection_losses(outputs, targets)
    masks = model.masks(features, *(torch.zeros(3, dtype=torch.int64) for _ in range(2)))
    found |= mask_losses(masks, matched_target_masks(targets, MATCHES, (64, 96)))
    assert {"loss_ce", "loss_giou", "loss_mask", "loss_dice"} <= found.keys()
    assert len(auxiliary) == (0 if frozen else 1)
    assert {value.device.type for layer in (found, *auxiliary) for value in layer.values()} == {"cuda"}


@pytest.mark.usefixtures("on_gpu")
def test_a_tensor_on_the_wrong_device_is_found() -> None:
    with pytest.raises(RuntimeError, match="device"):
        torch.zeros(2) + torch.zeros(2, device="cpu")
