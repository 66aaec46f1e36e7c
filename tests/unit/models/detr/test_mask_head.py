from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from construction_panoptic.models.detr.boxes import cell_centres
from construction_panoptic.models.detr.mask_head import MaskAttention, MaskHead

DIM, HEADS, WIDTHS = 32, 8, (24, 16, 12)


def literal_mask_head(
    head: MaskHead, projected: Tensor, attention: Tensor, pyramid: list[Tensor], batch_index: Tensor
) -> Tensor:
    """The head as the paper draws it, one pair at a time on concatenated channels."""
    masks = []
    for maps, image in zip(attention, batch_index.tolist(), strict=True):
        x = torch.cat([projected[image], maps])[None]
        x = F.relu(head.gn1(head.lay1(x)))
        x = F.relu(head.gn2(head.lay2(x)))
        for index, level in enumerate(pyramid):
            adapted = getattr(head, f"adapter{index + 1}")(level[image][None])
            x = adapted + F.interpolate(x, size=adapted.shape[-2:], mode="nearest")
            x = F.relu(getattr(head, f"gn{index + 3}")(getattr(head, f"lay{index + 3}")(x)))
        masks.append(head.out_lay(x)[0, 0])
    return torch.stack(masks)


@pytest.mark.parametrize(
    "sizes",
    [
        [(3, 5), (6, 10), (12, 20), (24, 40)],  # every step doubles
        [(3, 5), (5, 9), (9, 17), (17, 33)],  # as a backbone rounds up
        [(3, 5), (3, 5), (6, 9), (11, 18)],  # a backbone whose last stages have one stride; mixed steps
    ],
)
def test_equals_the_literal_head(sizes: list[tuple[int, int]], randomise_model: Callable[[nn.Module], None]) -> None:
    head = MaskHead(DIM, HEADS, WIDTHS).double()
    randomise_model(head)
    projected = torch.randn(2, DIM, *sizes[0], dtype=torch.float64)
    pyramid = [torch.randn(2, width, *size, dtype=torch.float64) for width, size in zip(WIDTHS, sizes[1:], strict=True)]
    attention = torch.rand(5, HEADS, *sizes[0], dtype=torch.float64)
    batch_index = torch.tensor([1, 0, 0, 1, 0])

    masks = head(attention, head.shared(projected, pyramid), batch_index)
    weight = torch.randn_like(masks)
    gradients = torch.autograd.grad((masks * weight).sum(), list(head.parameters()))

    expected = literal_mask_head(head, projected, attention, pyramid, batch_index)
    torch.testing.assert_close(masks, expected, rtol=1e-9, atol=1e-9)
    expected_gradients = torch.autograd.grad((expected * weight).sum(), list(head.parameters()))
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("focused", [False, True])
def test_attention_maps_share_one_softmax_and_leave_out_padding(
    focused: bool, randomise_model: Callable[[nn.Module], None]
) -> None:
    attention = MaskAttention(DIM, HEADS, focused)
    randomise_model(attention)
    queries, boxes, memory = torch.randn(2, 6, DIM), torch.rand(2, 6, 4), torch.randn(2, DIM, 3, 4)
    padding = torch.zeros(2, 3, 4, dtype=torch.bool)
    padding[1, :, 2:] = True

    scores = attention.scores(queries, boxes, memory, padding)
    maps = attention.normalise(scores.flatten(0, 1)).unflatten(0, (2, 6))

    assert maps.shape == (2, 6, HEADS, 3, 4)
    torch.testing.assert_close(maps.flatten(2).sum(-1), torch.ones(2, 6))
    assert not maps[1, :, :, :, 2:].any()
    focus = torch.zeros(HEADS, 6, 3, 4)
    if attention.focus is not None:
        columns, rows = cell_centres(memory[:1], None)
        focus = attention.focus(queries[:1], boxes[:1], columns, rows)[0].unflatten(-1, (3, 4))
        assert focus.std() > 0.1
    for query in range(6):  # literal dot products of one image without padding
        q = (attention.q_linear(queries[0, query])).view(HEADS, -1)
        k = attention.k_linear(memory[0].permute(1, 2, 0)).view(3, 4, HEADS, -1)
        logits = torch.einsum("nc,hwnc->nhw", q, k) / (DIM / HEADS) ** 0.5 + focus[:, query]
        expected = logits.flatten().softmax(0).view(HEADS, 3, 4)
        torch.testing.assert_close(maps[0, query], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("dim", "heads"), [(64, 8), (128, 8), (48, 4), (256, 8)])
def test_narrow_heads_have_groups_that_divide_their_channels(dim: int, heads: int) -> None:
    head = MaskHead(dim, heads, WIDTHS)
    for module in head.modules():
        if isinstance(module, nn.GroupNorm):
            assert module.num_groups == min(8, module.num_groups)
            assert module.num_channels % module.num_groups == 0
    if dim >= 128 and heads == 8:
        assert {m.num_groups for m in head.modules() if isinstance(m, nn.GroupNorm)} == {8}


def test_weights_start_as_in_the_paper() -> None:
    torch.manual_seed(0)
    head, attention = MaskHead(64, 8, WIDTHS), MaskAttention(64, 8)
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            bound = (3 / fan_in) ** 0.5
            assert 0.9 * bound < module.weight.abs().max() <= bound
            assert module.bias is not None
            assert not module.bias.any()
    for layer in (attention.q_linear, attention.k_linear):
        assert layer.weight.abs().max() <= (6 / 128) ** 0.5
        assert not layer.bias.any()
