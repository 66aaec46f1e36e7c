"""A trained model with all that it takes to use it: categories, image sizes, normalisation, threshold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from construction_panoptic.config.base import parse
from construction_panoptic.config.model import DetrSettings
from construction_panoptic.config.training import AugmentationSettings
from construction_panoptic.errors import CheckpointError
from construction_panoptic.evaluation.predictions import THRESHOLD
from construction_panoptic.models.detr import DetrPanoptic, build_detr_panoptic


@dataclass(frozen=True)
class TrainedModel:
    """A model ready to predict.

    Attributes:
        model: in eval mode, on the CPU unless it was moved.
        categories: COCO categories with ``id``, ``name``, ``isthing``, ``color``.
        architecture: what the model was built from.
        augmentation: of it, the evaluation sizes and the normalisation are used.
        threshold: score above which a segment is kept by default, 0…1.
    """

    model: DetrPanoptic
    categories: Sequence[Mapping[str, Any]]
    architecture: DetrSettings
    augmentation: AugmentationSettings
    threshold: float = THRESHOLD


def trained_model(checkpoint: Mapping[str, Any], source: str = "the checkpoint") -> TrainedModel:
    """Build the model of a checkpoint that the mask-head training wrote.

    Raises:
        CheckpointError: the checkpoint is of another stage, or does not describe its model.
    """
    extra = checkpoint.get("extra") or {}
    architecture = extra.get("model") or (checkpoint.get("fingerprint") or {}).get("model")
    augmentation = extra.get("augmentation") or (checkpoint.get("settings") or {}).get("augmentation")
    missing = [
        name
        for name, part in {
            "weights": checkpoint.get("model"),
            "categories": extra.get("categories"),
            "architecture": architecture,
            "image sizes": augmentation,
        }.items()
        if not part
    ]
    if missing:
        raise CheckpointError(
            f"{source} lacks {', '.join(missing)}: it is not a checkpoint of the mask head's training. "
            "Give data/06_models/mask_head/best.pt."
        )
    if checkpoint.get("stage", "mask_head") != "mask_head":
        raise CheckpointError(
            f"{source} is a checkpoint of the {checkpoint['stage']} training, which has no masks. "
            "Give the mask head's, data/06_models/mask_head/best.pt."
        )
    return assemble(
        checkpoint["model"],
        categories=extra["categories"],
        architecture=parse(DetrSettings, architecture, "model"),
        augmentation=parse(AugmentationSettings, augmentation, "augmentation"),
        threshold=float(extra.get("threshold", THRESHOLD)),
        source=source,
    )


def assemble(
    state: Mapping[str, torch.Tensor],
    *,
    categories: Sequence[Mapping[str, Any]],
    architecture: DetrSettings,
    augmentation: AugmentationSettings,
    threshold: float,
    source: str,
) -> TrainedModel:
    """Build the network and fill in its weights.

    Raises:
        CheckpointError: weights are missing, left over or of another shape.
    """
    num_classes = max(int(category["id"]) for category in categories) + 1
    model = build_detr_panoptic(num_classes, **architecture.model_dump())
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:
        raise CheckpointError(f"{source} does not fit the model that it describes: {error}") from error
    return TrainedModel(model.eval(), categories, architecture, augmentation, threshold)


def load_model(path: Path | str) -> TrainedModel:
    """Read a model from a checkpoint of the mask head's training, or from a folder of ``model_export``.

    Raises:
        CheckpointError: there is nothing, or it is not such a model.
    """
    from construction_panoptic.catalog.checkpoints import read_checkpoint
    from construction_panoptic.prediction.exported import load_exported

    path = Path(path)
    if path.is_dir():
        return load_exported(path)
    if not path.is_file():
        raise CheckpointError(f"There is no model at {path}. Train one (kedro run), or say where it is: --model PATH.")
    return trained_model(read_checkpoint(path), str(path))


@dataclass(frozen=True)
class ModelToServe:
    """A model to be served by MLflow, and its name in the model registry (None: it is not registered)."""

    trained: TrainedModel
    name: str | None
