"""A model as two files for others: weights as safetensors, and a JSON that says all about them."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from construction_panoptic.config.base import parse
from construction_panoptic.config.model import DetrSettings
from construction_panoptic.config.training import AugmentationSettings
from construction_panoptic.errors import CheckpointError
from construction_panoptic.files import write_bytes, write_json
from construction_panoptic.models.detr.postprocess import TINY_AREA
from construction_panoptic.prediction.models import TrainedModel, assemble

FORMAT_VERSION = 1
WEIGHTS = "model.safetensors"
CONFIG = "config.json"


def model_config(trained: TrainedModel) -> dict[str, Any]:
    """Describe a model: architecture, preprocessing, categories, threshold, inputs and outputs."""
    sizes = trained.augmentation
    return {
        "format": "construction_panoptic",
        "format_version": FORMAT_VERSION,
        "architecture": trained.architecture.model_dump(mode="json"),
        "preprocessing": {
            "evaluation_side": sizes.evaluation_side,
            "max_side": sizes.max_side,
            "mean": list(sizes.mean),
            "std": list(sizes.std),
        },
        "threshold": trained.threshold,
        "tiny_area": TINY_AREA,
        "categories": [dict(category) for category in trained.categories],
        "inputs": {
            "images": "float32 [B, 3, H, W]: RGB in 0…1, shorter side evaluation_side unless the longer one would pass "
            "max_side, minus mean, divided by std, 0 on padding at the right and the bottom",
            "padding_mask": "bool [B, H, W]: true on padding",
        },
        "outputs": {
            "pred_logits": "float32 [B, Q, C + 1]: class scores before softmax; index = category id, last: no object",
            "pred_boxes": "float32 [B, Q, 4]: centre x, centre y, width, height as shares of H and W without padding",
            "pred_masks": "float32 [B, Q, H / 4, W / 4] (rounded up): mask scores before sigmoid",
        },
        "panoptic": "keep queries whose best class is a category with a score above threshold; each pixel goes to the "
        "one with the largest mask score; queries of a stuff class are one segment; drop those of tiny_area pixels or "
        "fewer",
    }


def export_model(trained: TrainedModel, folder: Path | str) -> None:
    """Write ``model.safetensors`` and, last, ``config.json``.

    Args:
        trained: the model.
        folder: made if it is missing.
    """
    folder = Path(folder)
    (folder / CONFIG).unlink(missing_ok=True)
    state = {name: value.detach().cpu().contiguous().clone() for name, value in trained.model.state_dict().items()}
    write_bytes(folder / WEIGHTS, save(state, metadata={"format": "pt"}))
    write_json(folder / CONFIG, model_config(trained), indent=2)


def load_exported(folder: Path | str) -> TrainedModel:
    """Read a model from a folder that `export_model` wrote.

    Raises:
        CheckpointError: a file is missing or damaged, or is of a later format.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        state = load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} lacks {Path(str(error.filename)).name}: export the model again.") from error
    except (ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be read as an exported model ({error}); export it again.") from error
    if config.get("format") != "construction_panoptic" or config.get("format_version", 0) > FORMAT_VERSION:
        raise CheckpointError(f"{folder / CONFIG} is not of this project, or of a later version of it.")
    return assemble(
        state,
        categories=config["categories"],
        architecture=parse(DetrSettings, config["architecture"], "architecture"),
        augmentation=parse(AugmentationSettings, config["preprocessing"], "preprocessing"),
        threshold=float(config["threshold"]),
        source=str(folder),
    )
