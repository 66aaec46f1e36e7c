"""The recipe `universal`: a panoptic model of `transformers` is fine-tuned, its queries matched with the segments."""

from typing import Any

import torch
from torch import Tensor

from construction_panoptic.config.training import UniversalTrainingSettings
from construction_panoptic.models.spec import ModelSpec
from construction_panoptic.models.universal.losses import Truth, layer_losses, query_counts, truth_of
from construction_panoptic.models.universal.model import UniversalModel
from construction_panoptic.models.universal.network import Universal
from construction_panoptic.training.loading import Batch
from construction_panoptic.training.optimisation import backbone_and_rest
from construction_panoptic.training.tasks.protocol import Loss, TrainingTask

_PRETRAINED = ("pixel_level_module.encoder.", "body.embeddings.", "body.layers.")
"""Parts with the rate of the backbone; of EoMT the whole transformer."""


class UniversalTask(TrainingTask):
    """Fine-tuning of a model of `transformers`, with losses after every layer that predicts.

    ``spec`` says its categories, and how segments are made in validation.
    """

    name, monitor = "universal", "val/pq"
    model: Universal
    settings: UniversalTrainingSettings

    def __init__(self, model: Universal, settings: UniversalTrainingSettings, spec: ModelSpec) -> None:
        self.model, self.settings = model, settings
        self._segmenter = UniversalModel(model, spec)

    def before_step(self, done: float) -> None:
        """Anneal the masks of EoMT."""
        if self.settings.mask_annealing:
            self.model.set_mask_annealing(done)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """See `TrainingTask`; what was pretrained before the decoder has the rate of the backbone."""
        return backbone_and_rest(self.model, self.settings.optimizer, _PRETRAINED)

    def normalisers(self, batch: Batch) -> dict[str, float]:
        """``queries``: weights of the classes of all queries; ``segments``: the number of targets."""
        truths = self._truths(batch)
        return {
            "queries": query_counts(truths, self.model.queries, self.settings.losses.no_object),
            "segments": float(sum(len(truth.labels) for truth in truths)),
        }

    def losses(self, batch: Batch) -> dict[str, Loss]:
        """``loss_ce``, ``loss_mask``, ``loss_dice``; with ``_aux`` those of the earlier layers, summed."""
        return self._losses(self.model.layers(batch.images, batch.padding_mask), batch)

    def predict(self, batch: Batch) -> tuple[dict[str, Loss], list[Any]]:
        """Losses, and the `Segmentation` of each image."""
        layers = self.model.layers(batch.images, batch.padding_mask)
        return self._losses(layers, batch), self._segmenter.segment_outputs(layers[-1], batch.inputs())

    def _losses(self, layers: list[dict[str, Tensor]], batch: Batch) -> dict[str, Loss]:
        truths = self._truths(batch)
        *earlier, last = (layer_losses(layer, truths, self.settings.losses) for layer in layers)
        losses = {}
        for name, value in last.items():
            normaliser, weight = "queries" if name == "ce" else "segments", getattr(self.settings.losses, name)
            losses[f"loss_{name}"] = Loss(value, normaliser, weight)
            if earlier:
                auxiliary = torch.stack([layer[name] for layer in earlier]).sum()
                losses[f"loss_{name}_aux"] = Loss(auxiliary, normaliser, weight)
        return losses

    def _truths(self, batch: Batch) -> list[Truth]:
        height, width = batch.images.shape[-2:]
        return [truth_of(target, (height, width)) for target in batch.targets]
