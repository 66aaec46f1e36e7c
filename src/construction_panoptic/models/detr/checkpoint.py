"""Loading weights, always with ``weights_only=True``: the published DETR checkpoints, and files of the same layout."""

import argparse
import hashlib
import logging
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from construction_panoptic.errors import CheckpointError
from construction_panoptic.models.detr.model import Detr, DetrPanoptic

logger = logging.getLogger(__name__)

LONGEST_SILENCE = 60.0  # seconds that a server may take to go on with a download

_URL = "https://dl.fbaipublicfiles.com/detr/"
_DETECTOR_PREFIX = "detr."
_MASK_BRANCH = ("bbox_attention.", "mask_head.")
_COUNTERS = ".num_batches_tracked"
_SIZED_BY_DATA = ("class_embed.weight", "class_embed.bias", "query_embed.weight")
_SHOWN = 3
# Blocks of the third stage, and whether they are bottlenecks.
_BACKBONES = {
    (2, False): "resnet18",
    (6, False): "resnet34",
    (6, True): "resnet50",
    (23, True): "resnet101",
    (1, False): "tiny",
}
_BODY = "detr.backbone.0.body."
_TRANSFORMER = "detr.transformer."


@dataclass(frozen=True)
class PublishedWeights:
    """A checkpoint published with the DETR paper, trained on COCO (Apache-2.0); ``panoptic``: with a mask branch."""

    file_name: str
    sha256_prefix: str
    panoptic: bool

    @property
    def url(self) -> str:
        """Where the file is published."""
        return _URL + self.file_name


PUBLISHED_WEIGHTS: dict[str, PublishedWeights] = {
    name: PublishedWeights(f"{name}-{sha256_prefix}.pth", sha256_prefix, panoptic=name.endswith("-panoptic"))
    for name, sha256_prefix in {
        "detr-r50": "e632da11",
        "detr-r50-dc5": "f0fb7ef5",
        "detr-r101": "2c7b67e5",
        "detr-r101-dc5": "a2e86def",
        "detr-r50-panoptic": "00ce5173",
        "detr-r50-dc5-panoptic": "da08f1b1",
        "detr-r101-panoptic": "40021d53",
    }.items()
}
"""The published checkpoints by the names that `fetch_weights` and `load_weights` take."""


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did, in the model's key names.

    Keys ``kept`` are the checkpoint's; ``reset`` (class head or queries of another number) and ``missing`` keep the
    model's own values; for ``unexpected`` ones of the checkpoint the model has no place.
    """

    source: str
    kept: tuple[str, ...]
    reset: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        """One line, with every key but the kept ones."""
        parts = [f"{self.source}: {len(self.kept)} keys kept"]
        for what in ("reset", "missing", "unexpected"):
            keys = getattr(self, what)
            parts.append(f"{len(keys)} {what}" + (f" ({', '.join(keys)})" if keys else ""))
        return ", ".join(parts)


def fetch_weights(name_or_path: str | Path) -> Path:
    """Give the path of a weights file; a published one, a key of `PUBLISHED_WEIGHTS`, is downloaded into torch's
    cache.

    Raises:
        CheckpointError: no such name or file, no network, or a published file whose SHA-256 is wrong.
    """
    if str(name_or_path) not in PUBLISHED_WEIGHTS:
        path = Path(name_or_path)
        if not path.is_file():
            names = ", ".join(PUBLISHED_WEIGHTS)
            raise CheckpointError(f"weights: there is no file {path}. Give a path, or one of the names {names}.")
        return path
    weights = PUBLISHED_WEIGHTS[str(name_or_path)]
    path = Path(torch.hub.get_dir()) / "checkpoints" / weights.file_name
    if not path.exists():
        _download(str(name_or_path), weights, path)
        return path
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(weights.sha256_prefix):
        raise CheckpointError(
            f"{path}: its SHA-256 does not begin with {weights.sha256_prefix}, so it is damaged or another "
            f"file. Delete it to download it again from {weights.url}."
        )
    return path


def _download(name: str, weights: PublishedWeights, path: Path) -> None:
    logger.info("Downloading %s to %s", weights.url, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    limit = socket.getdefaulttimeout()
    socket.setdefaulttimeout(LONGEST_SILENCE)  # torch sets none, and would wait for ever
    try:
        torch.hub.download_url_to_file(
            weights.url, str(path), hash_prefix=weights.sha256_prefix, progress=sys.stderr.isatty()
        )
    # URLError and timeouts are OSErrors; torch reports a wrong hash as a RuntimeError.
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"weights {name}: cannot download {weights.url} ({error}). Without network, download that file "
            f"elsewhere and put it at {path}, or give the path of a weights file instead of the name."
        ) from error
    finally:
        socket.setdefaulttimeout(limit)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the model's tensors onto the CPU from a ``.safetensors`` file, or from what `torch.save` wrote of a state
    dict, or of a dict that holds one as "model" (as training checkpoints do).

    Raises:
        CheckpointError: the file is missing or damaged, holds other objects than tensors and plain values (which are
            never unpickled), or has no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint file.")
    content = _read(path)
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f'{path}: holds no state dict, neither itself nor under "model".')
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f'{path}: holds no state dict, neither itself nor under "model": '
                f"{key!r} has type {type(value).__name__}, not Tensor."
            )
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
        reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
        raise CheckpointError(
            f"{path}: cannot be read as a checkpoint of plain tensors; it is damaged, not a PyTorch file, or "
            "holds Python objects that are not unpickled for safety. Save its state dict alone with "
            f"torch.save. ({reason})"
        ) from error


def panoptic_architecture(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read from the state dict of a DETR panoptic the arguments of `build_detr_panoptic`, all but ``dilation``.

    Raises:
        KeyError: a part is missing or unknown; says which.
    """
    blocks = _count(state, f"{_BODY}layer3."), f"{_BODY}layer1.0.conv3.weight" in state
    if blocks not in _BACKBONES:
        raise KeyError(f"a known backbone ({_BODY}layer3)")
    outputs, hidden_dim = state["detr.class_embed.weight"].shape
    return {
        "num_classes": outputs - 1,
        "backbone": _BACKBONES[blocks],
        "num_queries": len(state["detr.query_embed.weight"]),
        "hidden_dim": hidden_dim,
        # The mask head's first layer sees the image's channels and one attention map a head.
        "num_heads": len(state["mask_head.lay1.weight"]) - hidden_dim,
        "encoder_layers": _count(state, f"{_TRANSFORMER}encoder.layers."),
        "decoder_layers": _count(state, f"{_TRANSFORMER}decoder.layers."),
        "feedforward_dim": len(state[f"{_TRANSFORMER}decoder.layers.0.linear1.weight"]),
        # Only an encoder that normalises first has a last normalisation.
        "pre_norm": f"{_TRANSFORMER}encoder.norm.weight" in state,
    }


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)})


def load_weights(
    model: Detr | DetrPanoptic, source: str | Path | Mapping[str, Tensor], *, reset_heads: bool = True
) -> LoadReport:
    """Load a checkpoint into a model, in place, and say what became of each key.

    A detector's checkpoint fits a panoptic model too (its mask branch stays as it is), and a panoptic checkpoint fits a
    detector (its mask branch is left out). Batch counters, which frozen normalisation does without, may be there or
    not. Everything else must fit, or nothing is loaded.

    ``source`` is a key of `PUBLISHED_WEIGHTS`, the path of a file for `read_weights`, or a state dict. With
    ``reset_heads`` the class head, or the queries, stay as they are in the model when their number differs (for
    fine-tuning on other classes); without, that is an error as well.

    Raises:
        CheckpointError: the file cannot be read, or does not fit the model; the message names the first keys.
    """
    if isinstance(source, Mapping):
        name, state = "the given state dict", dict(source)
    else:
        path = fetch_weights(source)
        name, state = str(path), read_weights(path)
    state = _with_keys_of(model, state)
    own = model.state_dict()
    differing = [key for key in own if key in state and state[key].shape != own[key].shape]
    reset = [key for key in differing if reset_heads and _only_count_differs(key, state[key], own[key])]
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]

    bare_state = not any(key.startswith(_MASK_BRANCH) for key in state)
    lacking = [key for key in missing if not (key.endswith(_COUNTERS) or (bare_state and key.startswith(_MASK_BRANCH)))]
    unknown = [
        key
        for key in unexpected
        if not (key.endswith(_COUNTERS) or (isinstance(model, Detr) and key.startswith(_MASK_BRANCH)))
    ]
    problems = []
    if misshaped := [key for key in differing if key not in reset]:
        shapes = [f"{key} is {list(state[key].shape)} there and {list(own[key].shape)} here" for key in misshaped]
        problems.append(f"{len(shapes)} of its keys have another shape: {_first(shapes)}")
    for what, keys in (("lacks", lacking), ("has unknown", unknown)):
        if keys:
            problems.append(f"it {what} {len(keys)} keys: {_first(keys)}")
    if problems:
        raise CheckpointError(
            f"{name} does not fit the model: {'; '.join(problems)}. Build the model as the checkpoint's was "
            "built (backbone, hidden_dim, layers, queries, classes), or choose another checkpoint."
        )
    kept = [key for key in own if key in state and key not in reset]
    model.load_state_dict({key: state[key] for key in kept}, strict=False)
    report = LoadReport(name, tuple(kept), tuple(reset), tuple(missing), tuple(unexpected))
    logger.info("Weights from %s", report)
    return report


def _with_keys_of(model: Detr | DetrPanoptic, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add or take away the prefix that tells a panoptic model's detector from a bare one."""
    panoptic_state = any(key.startswith(_DETECTOR_PREFIX) for key in state)
    if isinstance(model, DetrPanoptic) and not panoptic_state:
        return {_DETECTOR_PREFIX + key: value for key, value in state.items()}
    if isinstance(model, Detr) and panoptic_state:
        return {key.removeprefix(_DETECTOR_PREFIX): value for key, value in state.items()}
    return state


def _only_count_differs(key: str, theirs: Tensor, ours: Tensor) -> bool:
    return key.endswith(_SIZED_BY_DATA) and theirs.dim() == ours.dim() and theirs.shape[1:] == ours.shape[1:]


def _first(items: list[str]) -> str:
    return ", ".join(items[:_SHOWN]) + (", …" if len(items) > _SHOWN else "")
