"""Models in files: checkpoints of a training, and exported folders of weights and a description for others."""

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from construction_panoptic.config.base import parse
from construction_panoptic.config.training import Preprocessing
from construction_panoptic.errors import CheckpointError, first_line
from construction_panoptic.files import write_bytes, write_json
from construction_panoptic.models.build import build
from construction_panoptic.models.protocol import PanopticModel
from construction_panoptic.models.spec import ModelSpec

FORMAT, FORMAT_VERSION = "construction_panoptic", 1
WEIGHTS, CONFIG = "model.safetensors", "config.json"


def load_model(path: Path | str) -> PanopticModel:
    """Read a model from a checkpoint of its training, or from an exported model's folder; or a `CheckpointError`."""
    path = Path(path)
    if path.is_dir():
        return load_exported(path)
    if not path.is_file():
        raise CheckpointError(
            f"There is no model at {path}: train one, or give the best.pt of a training or an exported model's folder."
        )
    return model_of(read_checkpoint(path), str(path))


def model_of(checkpoint: Mapping[str, Any], source: str = "the checkpoint") -> PanopticModel:
    """Build the model of a checkpoint; `CheckpointError` if it lacks weights or has no masks, or as `spec_of`."""
    if not checkpoint.get("model"):
        raise CheckpointError(f"{source} lacks weights: it is not a checkpoint of a panoptic model.")
    if checkpoint.get("stage") == "detection":
        raise CheckpointError(
            f"{source} is a checkpoint of the detection training, which has no masks. Give the mask head's best.pt."
        )
    return build(spec_of(checkpoint, source), checkpoint["model"], source)


def spec_of(checkpoint: Mapping[str, Any], source: str = "the checkpoint") -> ModelSpec:
    """Give the spec of a checkpoint's model; `CheckpointError` if it does not describe its model."""
    extra = checkpoint.get("extra") or {}
    if "spec" in extra:
        return parse(ModelSpec, extra["spec"], "spec")
    # Checkpoints from before there were specs.
    found: dict[str, Any] = {
        "categories": extra.get("categories"),
        "architecture": extra.get("model") or (checkpoint.get("fingerprint") or {}).get("model"),
        "preprocessing": extra.get("augmentation") or (checkpoint.get("settings") or {}).get("augmentation"),
    }
    missing = [name for name, part in found.items() if not part]
    if missing:
        raise CheckpointError(f"{source} lacks {', '.join(missing)}: it is not a checkpoint of a panoptic model.")
    found["preprocessing"] = {name: found["preprocessing"][name] for name in Preprocessing.model_fields}
    return parse(ModelSpec, found | ({"threshold": extra["threshold"]} if "threshold" in extra else {}), "spec")


def read_checkpoint(path: Path, *, checked: bool = False) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, memory-mapped, with ``weights_only=True``.

    ``checked`` also compares all of it with its check sums (CRC-32), which torch does not. `CheckpointError` if the
    file is damaged, or holds anything but plain data.
    """
    try:
        with zipfile.ZipFile(path) as parts:
            if checked and (damaged := parts.testzip()) is not None:
                raise zipfile.BadZipFile(f"{damaged} in it does not have its check sum")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (FileNotFoundError, PermissionError, MemoryError):
        raise
    except Exception as error:  # damage shows in many ways
        # Torch's own words on objects that it refuses are how to read them after all.
        unsafe = isinstance(error, pickle.UnpicklingError)
        reason = "it is damaged, or holds more than plain data" if unsafe else first_line(error)
        raise CheckpointError(f"{path} is not a readable checkpoint ({reason}). {_advice(path)}") from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint. {_advice(path)}")
    return checkpoint


def _advice(path: Path) -> str:
    best = path.with_name("best.pt")
    if path.name == "last.pt" and best.is_file():
        return f"Copy {best.name} over it to go on from the best epoch, or remove it to train from the beginning."
    return "Give another file; or, if a training made it, remove it to train from the beginning."


def export_model(model: PanopticModel, folder: Path | str) -> None:
    """Write ``model.safetensors`` and, last, ``config.json``: the spec, and what `PanopticModel.describe` says."""
    folder = Path(folder)
    (folder / CONFIG).unlink(missing_ok=True)
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.network.state_dict().items()}
    write_bytes(folder / WEIGHTS, save(state, metadata={"format": "pt"}))
    config = {"format": FORMAT, "format_version": FORMAT_VERSION, **model.spec.model_dump(mode="json")}
    write_json(folder / CONFIG, config | model.describe(), indent=2)


def load_exported(folder: Path | str) -> PanopticModel:
    """Read a model that `export_model` wrote; `CheckpointError` if a file is missing, damaged, or of a later format."""
    folder = Path(folder)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        state = load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} lacks {Path(str(error.filename)).name}: export the model again.") from error
    except (ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be read as an exported model ({error}); export it again.") from error
    if config.get("format") != FORMAT or config.get("format_version", 0) > FORMAT_VERSION:
        raise CheckpointError(f"{folder / CONFIG} is not of this project, or of a later version of it.")
    spec = {name: config[name] for name in ModelSpec.model_fields if name in config}
    return build(parse(ModelSpec, spec, str(folder / CONFIG)), state, str(folder))
