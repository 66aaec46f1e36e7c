"""A small DETR panoptic with random weights that sees something."""

from typing import Any

import torch

from construction_panoptic.config.training import Preprocessing
from construction_panoptic.models.detr import DetrModel, DetrPanoptic
from construction_panoptic.models.spec import ModelSpec

CATEGORIES = tuple(
    {"id": i, "name": f"class {i}", "supercategory": "x", "isthing": int(i > 2), "color": [40 * i, 200, 90]}
    for i in range(1, 6)
)
ARCHITECTURE = {
    "backbone": "tiny",
    "norm": "batch",
    "num_queries": 9,
    "hidden_dim": 32,
    "num_heads": 4,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "feedforward_dim": 32,
    "dropout": 0.0,
}


def small_model(**spec: Any) -> DetrModel:
    """The model in eval mode; it keeps some queries at the threshold 0.2."""
    torch.manual_seed(1)
    sizes = Preprocessing(evaluation_side=64, max_side=128)
    settings: dict[str, Any] = {"architecture": ARCHITECTURE, "categories": CATEGORIES, "preprocessing": sizes}
    model = DetrModel.from_spec(ModelSpec(**({**settings, "threshold": 0.2} | spec)))
    network = model.network
    assert isinstance(network, DetrPanoptic)
    # Random heads give every query the same class, box and mask; larger weights give each its own.
    with torch.no_grad():
        network.detr.class_embed.weight.mul_(20)
        network.detr.query_embed.weight.mul_(10)
        network.bbox_attention.q_linear.weight.mul_(10)
        network.mask_head.lay1.weight[:, 32:].mul_(1000)
    network.eval()
    return model
