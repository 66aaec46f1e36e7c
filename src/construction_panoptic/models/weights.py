"""State dicts: reading them, always with ``weights_only=True``, and loading them into networks that they fit."""

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from construction_panoptic.errors import CheckpointError


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the model's tensors onto the CPU from a ``.safetensors`` file, or from what `torch.save` wrote of a state
    dict, or of a dict that holds one as "model" (as training checkpoints do).

    `CheckpointError`: the file is missing or damaged, holds other objects than tensors and plain values (which are
    never unpickled), or has no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint file.")
    content = _read(path)
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    none = f'{path}: holds no state dict, neither itself nor under "model"'
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{none}.")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{none}: {key!r} has type {type(value).__name__}, not Tensor.")
    return dict(content)


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # The published training script stores its command line, a plain namespace, beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: is not a readable safetensors file ({error}).") from error
    except Exception as error:  # whatever an unpickler meets in a broken file
        raise CheckpointError(
            f"{path}: cannot be read as a checkpoint of plain tensors; it is damaged, not a PyTorch file, or "
            "holds Python objects that are not unpickled for safety. Save its state dict alone with torch.save."
        ) from error


def load_fitting(
    network: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    *,
    sized_by_data: tuple[str, ...] = (),
    optional: tuple[str, ...] = (),
    advice: str,
) -> str:
    """Load a state dict into a network, in place, and say in a line what became of its keys.

    Keys that end in ``sized_by_data`` stay as they are in the network where their number of rows differs. Those that
    begin with ``optional``, and batch counters, which frozen normalisation does without, may be in one of both alone.
    Everything else must fit, or nothing is loaded: a `CheckpointError` names the first keys and gives the ``advice``.
    """
    own = network.state_dict()
    differing = [key for key in own if key in state and state[key].shape != own[key].shape]
    reset = [key for key in differing if key.endswith(sized_by_data) and state[key].shape[1:] == own[key].shape[1:]]
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    problems = []
    if misshaped := [key for key in differing if key not in reset]:
        shapes = [f"{key} is {list(state[key].shape)} there and {list(own[key].shape)} here" for key in misshaped]
        problems.append(f"{len(shapes)} of its keys have another shape: {listed(shapes, 3)}")
    for what, keys in (("lacks", missing), ("has unknown", unexpected)):
        needed = [key for key in keys if not (key.endswith(".num_batches_tracked") or key.startswith(optional))]
        if needed:
            problems.append(f"it {what} {len(needed)} keys: {listed(needed, 3)}")
    if problems:
        raise CheckpointError(f"{source} does not fit the model: {'; '.join(problems)}. {advice}")
    kept = {key: state[key] for key in own if key in state and key not in reset}
    network.load_state_dict(kept, strict=False)
    others = {"reset": reset, "missing": missing, "unexpected": unexpected}
    told = [f"{len(keys)} {what} ({listed(keys)})" for what, keys in others.items() if keys]
    return ", ".join([f"{source}: {len(kept)} keys kept", *told])


def listed(names: Iterable[str], most: int = 10) -> str:
    """The first names."""
    names = list(names)
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
