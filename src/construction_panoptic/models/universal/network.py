"""The network: a model of `transformers`, called alike whatever its family."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from construction_panoptic.errors import ParameterError
from construction_panoptic.models.universal.hub import ONE_SIZE, config_of, loaded, loaded_model

logger = logging.getLogger(__name__)

STRIDE = 4
"""Pixels a cell of the masks, in each direction."""
_MULTIPLE = 32  # of the sides of images of any size
_TASK = "the task is panoptic"  # OneFormer's text


class Universal(nn.Module):
    """A panoptic model of `transformers`; ``task`` is OneFormer's as token ids, empty for others."""

    def __init__(self, body: nn.Module, task: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.body, self.task = body, task
        config: Any = body.config
        self.side: int | None = config.image_size if config.model_type in ONE_SIZE else None
        """Side of the square images that it takes, pixels; None if it takes any size."""
        own = config.decoder_config if config.model_type == "maskformer" else config
        self.queries: int = own.num_queries
        """Number of queries, the most segments found in an image."""

    def forward(self, images: Tensor, padding_mask: Tensor | None = None) -> dict[str, Tensor]:
        """Predict classes and masks; see `layers`, of which these are the last."""
        return self.layers(images, padding_mask)[-1]

    def layers(self, images: Tensor, padding_mask: Tensor | None = None) -> list[dict[str, Tensor]]:
        """Predict classes and masks after each layer of the decoder that predicts, the last one last.

        Of images as in `Images` it gives for each layer ``pred_logits`` [B, Q, C + 1], the last class is no object, and
        ``pred_masks`` [B, Q, H / 4, W / 4] (rounded up), logits.
        """
        height, width = images.shape[-2:]
        padded = [self.side or -(-length // _MULTIPLE) * _MULTIPLE for length in (height, width)]
        right_and_below = (0, padded[1] - width, 0, padded[0] - height)
        pixels = F.pad(images, right_and_below)
        if self.side is not None:
            found = self._of_eomt(pixels)
        else:
            outside = images.new_zeros(images.shape[0], height, width) if padding_mask is None else padding_mask.float()
            inside = 1 - F.pad(outside, right_and_below, value=1.0)
            found = self._of_others(pixels, inside.long())
        rows, columns = -(-height // STRIDE), -(-width // STRIDE)
        return [
            {"pred_logits": logits.float(), "pred_masks": masks[..., :rows, :columns].float()}
            for masks, logits in found
        ]

    def set_mask_annealing(self, done: float) -> None:
        """Set how often EoMT's blocks attend within their masks, when the fraction ``done`` of a training is done.

        The blocks let go of the masks one after the other, (1 - x) ** 0.9 of them at the fraction x of a sixth of the
        training each, the first of four blocks in the second sixth, as published (Kerssies et al. 2025, 2503.19108,
        and its configurations). Other models have no such thing.
        """
        if self.side is None:
            return
        probabilities: Tensor = self.body.attn_mask_probs  # type: ignore[assignment]
        blocks = len(probabilities)
        begun = done * (blocks + 2) - torch.arange(1, blocks + 1, device=probabilities.device)
        probabilities.copy_((1 - begun.clamp(0, 1)) ** 0.9)

    def _of_eomt(self, pixels: Tensor) -> list[tuple[Tensor, Tensor]]:
        """EoMT keeps its layers' predictions to itself: what it predicts is listened to."""
        found: list[tuple[Tensor, Tensor]] = []
        predict: Any = self.body.predict

        def listened(hidden: Tensor) -> tuple[Tensor, Tensor]:
            found.append(predict(hidden))
            return found[-1]

        self.body.predict = listened  # type: ignore[assignment]
        try:
            self.body(pixel_values=pixels)
        finally:
            del self.body.predict
        return found

    def _of_others(self, pixels: Tensor, inside: Tensor) -> list[tuple[Tensor, Tensor]]:
        more: dict[str, Any] = {"output_auxiliary_logits": True}
        if self.task:
            more["task_inputs"] = torch.tensor([self.task] * len(pixels), device=pixels.device)
        if self.body.config.model_type == "maskformer":  # type: ignore[union-attr]
            more["output_hidden_states"] = True  # its layers' predictions come of them
        outputs = self.body(pixel_values=pixels, pixel_mask=inside, **more)
        auxiliary = getattr(outputs, "auxiliary_logits", None) or getattr(outputs, "auxiliary_predictions", None) or []
        last = {name: outputs[name] for name in ("masks_queries_logits", "class_queries_logits")}
        return [(layer["masks_queries_logits"], layer["class_queries_logits"]) for layer in [*auxiliary, last]]


def pretrained(folder: Path, num_classes: int) -> tuple[Universal, dict[str, Any]]:
    """Load a model for ``num_classes`` classes, of which its own layer of classes knows nothing yet.

    Gives the network, and its architecture, plain data from which `of_architecture` builds it again.
    `CheckpointError`: it cannot be loaded, is of another kind, or lacks weights.
    """
    config = config_of(folder, str(folder))
    names = {number: str(number) for number in range(num_classes)}
    changed: dict[str, Any] = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    if config.model_type not in ONE_SIZE:
        changed["use_auxiliary_loss"] = True  # layers' predictions are given
    if config.model_type == "oneformer":
        changed["is_training"] = False  # or it wants a text for each image
    body, reset = loaded_model(folder, ignore_mismatched_sizes=True, **changed)
    logger.info("Fine-tuning %s from %s; reset: %s.", config.model_type, folder, ", ".join(reset) or "nothing")
    task: list[int] = []
    if config.model_type == "oneformer":
        tokens = loaded(folder, "AutoTokenizer")(
            _TASK, padding="max_length", max_length=config.task_seq_len, truncation=True
        )
        task = [token * seen for token, seen in zip(tokens["input_ids"], tokens["attention_mask"], strict=True)]
    architecture = {"config": json.loads(body.config.to_json_string(use_diff=False)), "task": task}
    return Universal(body, tuple(task)), architecture


def of_architecture(architecture: Mapping[str, Any]) -> Universal:
    """Build the network of an architecture with random weights.

    `ParameterError`: `transformers` is not installed, or it does not know the architecture.
    """
    try:
        import transformers
    except ImportError as error:
        raise ParameterError("this model needs transformers: pip install '.[transformers]'.") from error
    config = dict(architecture["config"])
    try:
        made = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
        body = transformers.AutoModelForUniversalSegmentation.from_config(made, trust_remote_code=False)
    except (KeyError, ValueError, TypeError) as error:
        raise ParameterError(f"transformers {transformers.__version__} does not build this model: {error}") from error
    return Universal(body, tuple(architecture["task"]))
