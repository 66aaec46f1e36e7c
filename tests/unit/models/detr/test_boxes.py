import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from construction_panoptic.models.detr.boxes import LEAST_SIZE, Anchors, BoxHead, Focus, cell_centres
from construction_panoptic.models.detr.model import Detr, build_detr

HEADS = 4


def detr_with_anchors(**layers: int) -> tuple[Detr, Anchors]:
    torch.manual_seed(0)
    sizes = {"num_queries": 2, "hidden_dim": 32, "num_heads": HEADS, "feedforward_dim": 48}
    architecture: dict[str, Any] = {**sizes, **layers, "backbone": "tiny", "norm": "batch", "anchors": True}
    detr = build_detr(5, **architecture).eval()
    assert detr.anchors is not None
    return detr, detr.anchors


def test_focus_is_the_logarithm_of_a_gaussian_for_each_head() -> None:
    torch.manual_seed(0)
    focus = Focus(8, HEADS)
    for layer in (focus.offset, focus.scale):
        nn.init.normal_(layer.weight, std=0.1)
    queries, boxes = torch.randn(2, 3, 8), torch.rand(2, 3, 4)
    boxes[0, 0, 2:] = 0.01
    columns, rows = torch.tensor([[0.1, 0.5, 0.9], [0.2, 0.6, 1.0]]), torch.tensor([[0.25, 0.75], [0.3, 0.7]])

    found = focus(queries, boxes, columns, rows)

    assert found.shape == (2, HEADS, 3, 6)
    for image, head, query, row, column in product(range(2), range(HEADS), range(3), range(2), range(3)):
        exponent = 0.0
        for axis, cell in enumerate((columns[image, column], rows[image, row])):
            half = boxes[image, query, 2 + axis].item() / 2
            offset = focus.offset(queries[image, query])[2 * head + axis].item()
            scale = focus.scale(queries[image, query])[2 * head + axis].item()
            centre = boxes[image, query, axis].item() + offset * half
            exponent -= (cell.item() - centre) ** 2 / (2 * (max(half, LEAST_SIZE / 2) * math.exp(scale)) ** 2)
        assert found[image, head, query, 3 * row + column].item() == pytest.approx(exponent, rel=1e-4, abs=1e-5)


def test_a_box_is_counted_from_the_earlier_one() -> None:
    head, queries = BoxHead(8), torch.randn(2, 3, 8)
    alone = head(queries)
    torch.testing.assert_close(head(queries, torch.full((2, 3, 4), 0.5)), alone)
    for parameter in head.layers[-1].parameters():
        nn.init.zeros_(parameter)
    earlier = torch.rand(2, 3, 4)
    torch.testing.assert_close(head(queries, earlier), earlier, atol=2e-4, rtol=0)
    assert head(queries, torch.tensor([0.0, 1.0, 0.0, 1.0]).expand(2, 3, 4)).isfinite().all()


def test_anchors_start_all_over_the_image() -> None:
    boxes = Anchors(200, 8, HEADS, layers=1)(2)

    assert boxes.shape == (2, 200, 4)
    assert boxes[..., :2].min() < 0.1
    assert boxes[..., :2].max() > 0.9
    torch.testing.assert_close(boxes[..., 2:], torch.full((2, 200, 2), 0.4))


def test_cell_centres_leave_padding_out() -> None:
    padding_mask = torch.zeros(2, 4, 5, dtype=torch.bool)
    padding_mask[1, :, 2:] = padding_mask[1, 3:] = True

    columns, rows = cell_centres(torch.zeros(2, 8, 4, 5), padding_mask)

    torch.testing.assert_close(columns[0], torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]))
    torch.testing.assert_close(columns[1, :2], torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(rows[0], torch.tensor([0.125, 0.375, 0.625, 0.875]))
    torch.testing.assert_close(rows[1, :3], torch.tensor([1 / 6, 0.5, 5 / 6]))
    assert torch.equal(cell_centres(torch.zeros(2, 8, 4, 5), None)[0][1], columns[0])


@torch.no_grad()
def test_each_layer_refines_the_boxes_of_the_one_before() -> None:
    detr, anchors = detr_with_anchors(encoder_layers=1, decoder_layers=3)
    step = torch.tensor([0.5, 0.0, 0.0, -0.5])
    state = detr.bbox_embed.layers[-1].state_dict()
    detr.bbox_embed.layers[-1].load_state_dict({"weight": torch.zeros_like(state["weight"]), "bias": step})

    outputs = detr.features(torch.randn(2, 3, 64, 96), all_layers=True).outputs

    boxes = [*(layer["pred_boxes"] for layer in outputs["aux_outputs"]), outputs["pred_boxes"]]
    for steps, found in enumerate(boxes, start=1):
        expected = (anchors.logits + steps * step).sigmoid().expand(2, -1, -1)
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


@torch.no_grad()
def test_a_query_sees_what_is_near_its_box() -> None:
    detr, anchors = detr_with_anchors(encoder_layers=0, decoder_layers=1)
    left, right = [0.1, 0.5, 0.1, 0.5], [0.9, 0.5, 0.1, 0.5]
    anchors.logits.copy_(torch.tensor([left, right]).logit())
    memory, position = torch.randn(1, 32, 4, 12), torch.zeros(1, 32, 4, 12)
    changed = memory.clone()
    changed[..., 8:] = torch.randn(1, 32, 4, 4)

    def decode(features: Tensor) -> Tensor:
        anchored = (anchors, detr.bbox_embed)
        return detr.transformer(features, None, detr.query_embed.weight, position, anchors=anchored)[0][0, 0]

    difference = (decode(changed) - decode(memory)).abs().amax(1)
    assert difference[0] < 1e-4
    assert difference[1] > 0.01
