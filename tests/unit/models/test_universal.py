"""Panoptic models of `transformers`: predictions, losses, annealing, and the way from a folder and back."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from scipy.optimize import linear_sum_assignment

from construction_panoptic.config.training import UniversalLossSettings
from construction_panoptic.errors import CheckpointError, ParameterError
from construction_panoptic.models.build import build
from construction_panoptic.models.protocol import Images
from construction_panoptic.models.spec import ModelSpec
from construction_panoptic.models.universal.hub import weights_folder
from construction_panoptic.models.universal.losses import Truth, layer_losses, match, query_counts, truth_of
from construction_panoptic.models.universal.model import UniversalModel
from construction_panoptic.models.universal.network import Universal, of_architecture, pretrained
from tests.unit.universal_models import EOMT_SIDE, FAMILIES, write_model

pytestmark = pytest.mark.medium

CLASSES = 5  # ids 1 to 4
CATEGORIES = tuple({"id": number, "name": f"c{number}", "isthing": int(number > 2)} for number in range(1, CLASSES))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {family: write_model(folder / family, family) for family in FAMILIES}


def photographs(count: int = 2, height: int = 48, width: int = 60) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_are_those_of_transformers(folders: dict[str, Path], family: str) -> None:
    network, _ = pretrained(folders[family], CLASSES)
    network.eval()
    images = photographs()
    layers = network.layers(images)
    assert all(layer["pred_logits"].shape == (2, network.queries, CLASSES + 1) for layer in layers)
    assert all(layer["pred_masks"].shape == (2, network.queries, 12, 15) for layer in layers)
    assert len(layers) > 1
    side = EOMT_SIDE if family == "eomt" else 64
    pixels = F.pad(images, (0, side - 60, 0, side - 48))
    inside = F.pad(torch.ones(2, 48, 60, dtype=torch.int64), (0, side - 60, 0, side - 48))
    inputs: dict[str, Any] = {} if family == "eomt" else {"pixel_mask": inside}
    if family == "oneformer":
        tokens = transformers.AutoTokenizer.from_pretrained(folders[family])
        text = tokens(["the task is panoptic"], padding="max_length", max_length=12, truncation=True)
        task = torch.tensor(text["input_ids"]) * torch.tensor(text["attention_mask"])
        inputs["task_inputs"] = task.expand(2, -1)
    if family == "maskformer":
        inputs["output_hidden_states"] = True
    with torch.no_grad():
        expected = network.body(pixel_values=pixels, **inputs)
    torch.testing.assert_close(layers[-1]["pred_logits"], expected.class_queries_logits)
    torch.testing.assert_close(layers[-1]["pred_masks"], expected.masks_queries_logits[..., :12, :15])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_builds_the_same_model(folders: dict[str, Path], family: str) -> None:
    network, architecture = pretrained(folders[family], CLASSES)
    spec = ModelSpec(kind="universal", architecture=architecture, categories=CATEGORIES, merging="masks")
    again = build(ModelSpec.model_validate(spec.model_dump(mode="json")), network.state_dict())
    with torch.no_grad():
        ours, theirs = network.eval()(photographs()), again.network(photographs())
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_weights_that_fit_are_kept_and_the_classes_are_new(folders: dict[str, Path]) -> None:
    published = transformers.AutoModelForUniversalSegmentation.from_pretrained(folders["mask2former"]).state_dict()
    own = pretrained(folders["mask2former"], CLASSES)[0].body.state_dict()
    changed = {name for name in published if own[name].shape != published[name].shape}
    assert changed == {"class_predictor.weight", "class_predictor.bias", "criterion.empty_weight"}
    assert all(torch.equal(own[name], published[name]) for name in published.keys() - changed)


def test_a_folder_without_a_panoptic_model_is_refused(tmp_path: Path) -> None:
    transformers.ResNetConfig().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is a resnet, which is none of eomt"):
        pretrained(tmp_path, CLASSES)
    with pytest.raises(ParameterError, match="does not build this model"):
        of_architecture({"config": {"model_type": "no-such-thing"}, "task": []})


def test_a_path_that_is_not_there_is_no_model_of_the_hub(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^universal\.weights: there is no folder .*/nowhere\.$"):
        weights_folder(str(tmp_path / "nowhere"), None, "universal")


def test_annealing_lets_go_of_the_masks_block_by_block() -> None:
    small: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "num_blocks": 4}
    config = transformers.EomtConfig(**small, num_queries=3, image_size=64, patch_size=16)
    network = Universal(transformers.EomtForUniversalSegmentation(config))

    def probabilities(done: float) -> list[float]:
        network.set_mask_annealing(done)
        return network.body.attn_mask_probs.tolist()  # type: ignore[operator]

    # As published: of 88,700 steps blocks 1 to 4 begin at 14,782, 29,564, 44,346 and 59,128.
    assert probabilities(0.0) == probabilities(1 / 6) == [1.0] * 4
    assert probabilities(0.25) == pytest.approx([0.5**0.9, 1, 1, 1])
    assert probabilities(0.625) == pytest.approx([0, 0, 0.25**0.9, 1])
    assert probabilities(5 / 6) == pytest.approx([0] * 4)
    assert probabilities(1.0) == [0.0] * 4


def test_images_are_segmented_with_boxes_of_their_segments(folders: dict[str, Path]) -> None:
    network, architecture = pretrained(folders["mask2former"], CLASSES)
    spec = ModelSpec(kind="universal", architecture=architecture, categories=CATEGORIES, merging="masks")
    model = UniversalModel(network.eval(), spec)
    images = Images(photographs(), None, [(48, 60), (40, 60)], [(96, 120), (80, 120)])
    found = model.segment(images, {"threshold": 0.0})
    assert [segmentation.id_map.shape for segmentation in found] == [(96, 120), (80, 120)]
    assert all(len(segmentation.boxes) == len(segmentation.segments) > 0 for segmentation in found)
    for segment, box in zip(found[0].segments, found[0].boxes, strict=True):
        rows, columns = np.nonzero(found[0].id_map == segment["id"])
        sides = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert box == {"bbox": sides, "category_id": segment["category_id"], "score": segment["score"]}
    [at_zero, at_most], _ = (list(each) for each in model.segment_at(images, [0.0, 0.99]))
    np.testing.assert_array_equal(at_zero.id_map, found[0].id_map)
    assert len(at_most.segments) < len(at_zero.segments)


def test_the_features_are_the_scores_of_the_classes(folders: dict[str, Path]) -> None:
    network, architecture = pretrained(folders["mask2former"], CLASSES)
    spec = ModelSpec(kind="universal", architecture=architecture, categories=CATEGORIES, merging="masks")
    model = UniversalModel(network.eval(), spec)
    with torch.no_grad():
        images = Images(photographs(), None, [(48, 60)] * 2, [(48, 60)] * 2)
        outputs, features = model.outputs(images), model.features(images)
    assert features.shape == (2, CLASSES, 12, 15)
    probability = outputs["pred_logits"][1].softmax(-1)[:, 3]
    expected = sum(p * mask.sigmoid() for p, mask in zip(probability, outputs["pred_masks"][1], strict=True))
    torch.testing.assert_close(features[1, 3], expected)


def test_the_truth_is_the_segment_of_a_cells_middle_pixel() -> None:
    id_map = torch.zeros(6, 8, dtype=torch.int32)
    id_map[:, :4], id_map[0, 4:] = 7, 9  # 9 is between the middles; the rest is void
    target = {"id_map": id_map, "segment_ids": torch.tensor([9, 7]), "labels": torch.tensor([1, 2])}
    truth = truth_of(target, (8, 12))
    assert truth.labels.tolist() == [2]
    assert truth.masks.tolist() == [[[1, 0, 0], [0, 0, 0]]]
    assert truth.known.tolist() == [[True, False, False], [False, False, False]]


SETTINGS = UniversalLossSettings()


def case(seed: int) -> tuple[dict[str, torch.Tensor], Truth]:
    generator = torch.Generator().manual_seed(seed)
    outputs = {
        "pred_logits": torch.randn(1, 6, CLASSES + 1, generator=generator),
        "pred_masks": torch.randn(1, 6, 5, 7, generator=generator) * 3,
    }
    owner = torch.randint(0, 4, (5, 7), generator=generator)  # 0 is void
    masks = torch.stack([owner == number for number in (1, 2, 3)]).float()
    return outputs, Truth(torch.tensor([1, 3, 2]), masks, owner > 0)


@pytest.mark.parametrize("seed", range(3))
def test_losses_equal_transformers_where_nothing_is_void(seed: int) -> None:
    """Beside the costs and losses of transformers' Mask2Former, at all cells in place of its random points."""
    from transformers.models.mask2former.modeling_mask2former import (
        Mask2FormerLoss,
        dice_loss,
        pair_wise_sigmoid_cross_entropy_loss,
        sigmoid_cross_entropy_loss,
    )

    outputs, truth = case(seed)
    owner = torch.where(truth.known, truth.masks.argmax(0), 0)
    masks = torch.stack([owner == number for number in range(3)]).float()
    truth = Truth(truth.labels, masks, torch.ones_like(truth.known))
    cells, flat = outputs["pred_masks"][0].flatten(1), masks.flatten(1)
    queries, segments = match(outputs["pred_logits"][0], cells, truth.labels, flat, SETTINGS)
    probability = cells.sigmoid()
    dice = 1 - (2 * probability @ flat.T + 1) / (probability.sum(1)[:, None] + flat.sum(1) + 1)
    cost = 5 * pair_wise_sigmoid_cross_entropy_loss(cells, flat) + 5 * dice
    cost = cost - 2 * outputs["pred_logits"][0].softmax(-1)[:, truth.labels]
    rows, columns = linear_sum_assignment(cost.numpy())
    assert queries.tolist() == rows.tolist()
    assert segments.tolist() == columns.tolist()

    ours = layer_losses(outputs, [truth], SETTINGS)
    config = transformers.Mask2FormerConfig(
        no_object_weight=0.1, id2label={number: str(number) for number in range(CLASSES)}
    )
    theirs: Any = Mask2FormerLoss(config, {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0})
    ce = theirs.loss_labels(outputs["pred_logits"], [truth.labels], [(queries, segments)])["loss_cross_entropy"]
    # Of void cells there are none here, so that the queries alone divide.
    assert float(ours["ce"] / query_counts([truth], 6, 0.1)) == pytest.approx(float(ce), rel=1e-5)
    own, true = cells[queries], flat[segments]
    assert float(ours["mask"]) == pytest.approx(float(sigmoid_cross_entropy_loss(own, true, 1)), rel=1e-5)
    assert float(ours["dice"]) == pytest.approx(float(dice_loss(own, true, 1)), rel=1e-5)


def test_void_takes_no_part() -> None:
    outputs, truth = case(0)
    changed = {name: value.clone() for name, value in outputs.items()}
    changed["pred_masks"][0, :, ~truth.known] = 50 * torch.randn(6, int((~truth.known).sum())).sign() - 60
    before, after = (layer_losses(found, [truth], SETTINGS) for found in (outputs, changed))
    assert {name: float(value) for name, value in before.items()} == {
        name: pytest.approx(float(value)) for name, value in after.items()
    }
    # A query of which most is void may be any class.
    queries, _ = match(
        outputs["pred_logits"][0],
        outputs["pred_masks"][0][:, truth.known],
        truth.labels,
        truth.masks[:, truth.known],
        SETTINGS,
    )
    free = next(query for query in range(6) if query not in queries.tolist())
    outputs["pred_masks"][0, free] = torch.where(truth.known, -1.0, 1.0)
    outputs["pred_logits"][0, free] = torch.tensor([9.0, 0, 0, 0, 0, 0])
    sure = layer_losses(outputs, [truth], SETTINGS)
    outputs["pred_logits"][0, free] = torch.tensor([0, 0, 0, 0, 0, 9.0])
    assert float(layer_losses(outputs, [truth], SETTINGS)["ce"]) == pytest.approx(float(sure["ce"]))


def test_the_loss_of_a_batch_is_the_sum_of_its_parts_and_an_image_may_be_empty() -> None:
    (first, truth), (second, other) = case(1), case(2)
    empty = Truth(other.labels[:0], other.masks[:0], torch.zeros_like(other.known))
    both = {name: torch.cat([first[name], second[name]]).requires_grad_() for name in first}
    together = layer_losses(both, [truth, empty], SETTINGS)
    parts = [layer_losses(first, [truth], SETTINGS), layer_losses(second, [empty], SETTINGS)]
    for name, value in together.items():
        assert float(value.detach()) == pytest.approx(sum(float(part[name].detach()) for part in parts))
    sum(together.values(), torch.zeros(())).backward()
    assert all(value.grad is not None and bool(value.grad.isfinite().all()) for value in both.values())


def test_outputs_that_are_not_finite_are_said_so() -> None:
    outputs, truth = case(0)
    outputs["pred_masks"][0, 2, 0, 0] = torch.nan
    with pytest.raises(FloatingPointError):
        layer_losses(outputs, [Truth(truth.labels, truth.masks, torch.ones_like(truth.known))], SETTINGS)
