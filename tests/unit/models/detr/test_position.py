import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from construction_panoptic.models.detr.transformer import sine_position_embedding


def by_formula(rows: int, columns: int, channels: int) -> Tensor:
    """Equation by equation for one image without padding."""
    half = channels // 2
    out = torch.zeros(channels, rows, columns)
    for y in range(rows):
        for x in range(columns):
            for offset, place, count in ((0, y + 1, rows), (half, x + 1, columns)):
                scaled = place / (count + 1e-6) * 2 * math.pi
                for i in range(half):
                    angle = scaled / 10_000 ** (2 * (i // 2) / half)
                    out[offset + i, y, x] = math.sin(angle) if i % 2 == 0 else math.cos(angle)
    return out


def test_equals_the_formula() -> None:
    embedding = sine_position_embedding(torch.zeros(1, 3, 5, dtype=torch.bool), 12)
    torch.testing.assert_close(embedding[0], by_formula(3, 5, 12), rtol=0, atol=1e-6)


def test_an_image_is_embedded_the_same_in_any_padding() -> None:
    mask = torch.ones(2, 6, 9, dtype=torch.bool)
    mask[0, :4, :7] = False
    mask[1, :6, :2] = False

    embedding = sine_position_embedding(mask, 16)

    torch.testing.assert_close(embedding[0, :, :4, :7], by_formula(4, 7, 16), rtol=0, atol=1e-6)
    torch.testing.assert_close(embedding[1, :, :6, :2], by_formula(6, 2, 16), rtol=0, atol=1e-6)


def test_equals_hugging_faces(make_batch: Callable[..., tuple[Tensor, Tensor]]) -> None:
    modeling = pytest.importorskip("transformers.models.detr.modeling_detr")
    _, mask = make_batch([(11, 7), (5, 13)])
    theirs = modeling.DetrSinePositionEmbedding(32, normalize=True)(
        shape=torch.Size([2, 1, *mask.shape[1:]]), device="cpu", dtype=torch.float32, mask=~mask
    )
    torch.testing.assert_close(sine_position_embedding(mask, 64), theirs, rtol=0, atol=1e-6)
