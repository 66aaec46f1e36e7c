import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from construction_panoptic.models.detr import focal_dice
from construction_panoptic.models.detr.focal_dice import FocalDice

ALPHA = 0.25


def make_masks(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 6 * torch.randn(count, 7, 9, generator=generator, dtype=torch.float64)
    truth = torch.rand(count, 29, 33, generator=generator) > 0.5
    return logits.requires_grad_(), truth


def literal(logits: Tensor, truth: Tensor) -> tuple[Tensor, ...]:
    upsampled = F.interpolate(logits[:, None], size=truth.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    focal = sigmoid_focal_loss(upsampled, truth.double(), alpha=ALPHA, gamma=2)
    probability = upsampled.sigmoid()
    return tuple(x.sum((1, 2)) for x in (focal, probability * truth, probability + truth.double()))


@pytest.mark.parametrize("chunk_pixels", [1, 3 * 29 * 33, 10**6])
def test_sums_and_gradients_are_the_literal_ones_whatever_the_chunks(
    monkeypatch: pytest.MonkeyPatch, chunk_pixels: int
) -> None:
    monkeypatch.setitem(focal_dice.CHUNK_PIXELS, "cpu", chunk_pixels)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    logits, truth = make_masks(5)

    ours, expected = FocalDice.apply(logits, truth, ALPHA), literal(logits, truth)

    weights = torch.randn(3, 5, dtype=torch.float64)
    gradients = [torch.autograd.grad((torch.stack(sums) * weights).sum(), logits)[0] for sums in (ours, expected)]
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-8)
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)


def test_gradient_is_that_of_finite_differences() -> None:
    logits, truth = make_masks(2)
    assert torch.autograd.gradcheck(lambda x: FocalDice.apply(x, truth, ALPHA), (logits,))


@pytest.mark.parametrize("logit", [-200.0, -30.0, 0.0, 30.0, 200.0])
def test_sure_logits_neither_overflow_nor_vanish(logit: float) -> None:
    logits = torch.full((2, 2, 2), logit, requires_grad=True)
    truth = torch.tensor([True, False])[:, None, None].expand(2, 4, 4)

    sums = FocalDice.apply(logits, truth, ALPHA)
    sum(x.sum() for x in sums).backward()

    expected = literal(logits.detach().double(), truth)
    for ours, theirs in zip(sums, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_no_mask_has_no_sums() -> None:
    logits = torch.zeros(0, 2, 2, requires_grad=True)
    sums = FocalDice.apply(logits, torch.zeros(0, 4, 4, dtype=torch.bool), ALPHA)
    assert [len(x) for x in sums] == [0, 0, 0]
