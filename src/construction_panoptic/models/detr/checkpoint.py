"""The published DETR checkpoints, and files of the same layout."""

import hashlib
import logging
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from construction_panoptic.errors import CheckpointError
from construction_panoptic.models.backbones import RESNETS, FoldedBottleneck
from construction_panoptic.models.detr.model import Detr, DetrPanoptic
from construction_panoptic.models.timm_backbones import PREFIX, build_backbone
from construction_panoptic.models.weights import load_fitting, read_weights

logger = logging.getLogger(__name__)

LONGEST_SILENCE = 60.0  # seconds that a server may take to go on with a download

_URL = "https://dl.fbaipublicfiles.com/detr/"
_PREFIX = "detr."
_MASK_BRANCH = ("bbox_attention.", "mask_head.")
_SIZED_BY_DATA = ("class_embed.weight", "class_embed.bias", "query_embed.weight", "anchors.logits")
# Blocks of the third stage, and whether they are bottlenecks.
_BACKBONES = {(depths[2], block is FoldedBottleneck): name for name, (block, depths) in RESNETS.items()}
_BACKBONES[1, False] = "tiny"
_BODY = "detr.backbone.0.body."
_TRANSFORMER = "detr.transformer."

PUBLISHED_WEIGHTS = {
    "detr-r50": "e632da11",
    "detr-r50-dc5": "f0fb7ef5",
    "detr-r101": "2c7b67e5",
    "detr-r101-dc5": "a2e86def",
    "detr-r50-panoptic": "00ce5173",
    "detr-r50-dc5-panoptic": "da08f1b1",
    "detr-r101-panoptic": "40021d53",
}
"""Checkpoints published with the DETR paper, trained on COCO (Apache-2.0): name → the first digits of their SHA-256."""


def fetch_weights(name_or_path: str | Path) -> Path:
    """Give the path of a weights file; one of `PUBLISHED_WEIGHTS` is downloaded into torch's cache.

    `CheckpointError` if there is no such name or file, no network, or a published file has another SHA-256.
    """
    name, path = str(name_or_path), Path(name_or_path)
    if name not in PUBLISHED_WEIGHTS:
        if not path.is_file():
            names = ", ".join(PUBLISHED_WEIGHTS)
            raise CheckpointError(f"weights: there is no file {path}. Give a path, or one of the names {names}.")
        return path
    sha256 = PUBLISHED_WEIGHTS[name]
    path = Path(torch.hub.get_dir()) / "checkpoints" / f"{name}-{sha256}.pth"
    url = _URL + path.name
    if not path.exists():
        _download(name, url, path, sha256)
        return path
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(sha256):
        raise CheckpointError(
            f"{path}: its SHA-256 does not begin with {sha256}, so it is damaged or another "
            f"file. Delete it to download it again from {url}."
        )
    return path


def of_backbone_alone(weights: str | None, backbone: str) -> bool:
    """Whether ``weights`` are those of a backbone of timm's, see `build_timm_backbone`, and not a checkpoint's."""
    if weights is None or not backbone.startswith(PREFIX) or weights in PUBLISHED_WEIGHTS:
        return False
    is_file = Path(weights).is_file()
    return not is_file or not any(key.startswith(("backbone.", _PREFIX)) for key in read_weights(weights))


def fetch_starting_weights(weights: str | None, backbone: str) -> None:
    """Download weights, of a checkpoint or of a backbone of timm's alone, unless they are on this machine."""
    if of_backbone_alone(weights, backbone):
        build_backbone(backbone, weights=weights)
    elif weights is not None:
        fetch_weights(weights)


def _download(name: str, url: str, path: Path, sha256: str) -> None:
    logger.info("Downloading %s to %s", url, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    limit = socket.getdefaulttimeout()
    socket.setdefaulttimeout(LONGEST_SILENCE)  # torch sets none, and would wait for ever
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256, progress=sys.stderr.isatty())
    # URLError and timeouts are OSErrors; torch reports a wrong hash as a RuntimeError.
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"weights {name}: cannot download {url} ({error}). Without network, download that file "
            f"elsewhere and put it at {path}, or give the path of a weights file instead of the name."
        ) from error
    finally:
        socket.setdefaulttimeout(limit)


def panoptic_architecture(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read from the state dict of a DETR panoptic the arguments of `build_detr_panoptic`, all but ``dilation``.

    `KeyError` says which part is missing or unknown.
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
        "anchors": f"{_PREFIX}anchors.logits" in state,
    }


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)})


def load_weights(
    model: Detr | DetrPanoptic, source: str | Path | Mapping[str, Tensor], *, reset_heads: bool = True
) -> str:
    """Load a checkpoint into a model, in place, and say in a line what became of its keys, see `load_fitting`.

    A detector's checkpoint fits a panoptic model too (its mask branch stays as it is), and a panoptic checkpoint fits a
    detector (its mask branch is left out).

    ``source`` is a key of `PUBLISHED_WEIGHTS`, the path of a file for `read_weights`, or a state dict. With
    ``reset_heads`` the class head, or the queries, stay as they are in the model when their number differs (for
    fine-tuning on other classes); without, that is an error as well. `CheckpointError`: the file cannot be read, or
    does not fit the model.
    """
    if isinstance(source, Mapping):
        name, state = "the given state dict", dict(source)
    else:
        path = fetch_weights(source)
        name, state = str(path), read_weights(path)
    of_panoptic = any(key.startswith(_PREFIX) for key in state)
    if isinstance(model, DetrPanoptic) and not of_panoptic:
        state = {_PREFIX + key: value for key, value in state.items()}
    elif isinstance(model, Detr) and of_panoptic:
        state = {key.removeprefix(_PREFIX): value for key, value in state.items()}
    masks_can_lack = isinstance(model, Detr) or not any(key.startswith(_MASK_BRANCH) for key in state)
    report = load_fitting(
        model,
        state,
        name,
        sized_by_data=_SIZED_BY_DATA if reset_heads else (),
        optional=_MASK_BRANCH if masks_can_lack else (),
        advice="Build the model as the checkpoint's was built (backbone, hidden_dim, layers, queries, classes), or "
        "choose another checkpoint.",
    )
    logger.info("Weights from %s", report)
    return report
