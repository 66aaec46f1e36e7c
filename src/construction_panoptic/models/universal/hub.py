"""Models of `transformers` from the Hugging Face hub or a folder: safetensors alone, and no code of theirs."""

from pathlib import Path
from typing import Any

import torch

from construction_panoptic.errors import CheckpointError, ParameterError, first_line
from construction_panoptic.models.weights import listed

ONE_SIZE = ("eomt", "eomt_dinov3")
"""Model types that take square images of one size, padded without a mask."""
ANY_SIZE = ("mask2former", "maskformer", "oneformer")
FILES = ["*.json", "model*.safetensors", "*.txt", "README.md"]  # of a repository on the hub


def weights_folder(weights: str, revision: str | None, group: str) -> Path:
    """Give the folder of a model; one of the hub is downloaded once. Messages name the ``group`` of parameters.

    `ParameterError`: `transformers` is not installed, or a folder is to have a revision; `CheckpointError`: the model
    cannot be had.
    """
    try:
        import transformers  # noqa: F401
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError
    except ImportError as error:
        raise ParameterError(
            f"{group}.weights: {weights} needs transformers: pip install '.[transformers]'."
        ) from error
    if Path(weights).is_dir():
        if revision is not None:
            raise ParameterError(f"{group}.revision: {weights} is a folder, which has none; remove the parameter.")
        return Path(weights)
    try:
        return Path(snapshot_download(weights, revision=revision, allow_patterns=FILES))
    except HFValidationError as error:  # no name that a model of the hub can have
        raise CheckpointError(f"{group}.weights: there is no folder {weights}.") from error
    except Exception as error:  # the hub's client raises many kinds
        raise CheckpointError(
            f"{group}.weights: there is no folder {weights}, and the Hugging Face hub does not give it "
            f"({first_line(error)}). Without network, copy the folder from where `hf download {weights} --local-dir "
            "<folder>` works, and give its path."
        ) from error


def config_of(folder: Path, weights: str) -> Any:
    """Read the configuration of a model; `CheckpointError` if it is none, or of a type that is not known here."""
    config = loaded(folder, "AutoConfig")
    if config.model_type not in ONE_SIZE + ANY_SIZE:
        known = ", ".join(sorted(ONE_SIZE + ANY_SIZE))
        raise CheckpointError(f"{weights} is a {config.model_type}, which is none of {known}.")
    return config


def loaded(folder: Path, auto_class: str, **options: Any) -> Any:
    """Load a part of a model with a class of `transformers`; `CheckpointError` if it cannot be loaded."""
    import transformers
    from safetensors import SafetensorError

    try:
        return getattr(transformers, auto_class).from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **options
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} cannot be loaded as a panoptic model of transformers with weights in safetensors "
            f"({first_line(error)})."
        ) from error


def loaded_model(folder: Path, **options: Any) -> tuple[Any, list[str]]:
    """Load a model in float32; gives it, and the keys whose weights have another shape, if ``options`` allow them.

    `CheckpointError` if it cannot be loaded, or weights are missing.
    """
    options |= {"use_safetensors": True, "dtype": torch.float32, "output_loading_info": True}
    model, info = loaded(folder, "AutoModelForUniversalSegmentation", **options)
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("criterion."))
    if missing:
        raise CheckpointError(f"{folder}: the weights lack {listed(missing)}.")
    return model, sorted({str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"]})


def terms_of(weights: str, revision: str | None, group: str) -> dict[str, str]:
    """Give the ``licence`` of a model and, of one of the hub, its ``revision``; see `weights_folder`."""
    folder = weights_folder(weights, revision, group)
    terms = {"licence": licence_of(folder)}
    return terms if folder == Path(weights) else {**terms, "revision": folder.name}


def licence_of(folder: Path) -> str:
    """Read the licence of weights from the front matter of their model card, README.md."""
    import yaml
    from huggingface_hub.repocard import metadata_load

    try:
        card = metadata_load(folder / "README.md") or {}
    except (OSError, ValueError, yaml.YAMLError):
        card = {}
    licence = card.get("license_name") if card.get("license") == "other" else card.get("license")
    return str(licence or card.get("license") or "unknown: no model card names it")
