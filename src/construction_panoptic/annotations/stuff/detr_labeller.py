"""Labelling the stuff of images with a DETR that was trained on COCO panoptic."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from construction_panoptic.annotations.digests import digest_of
from construction_panoptic.annotations.images import read_rgb
from construction_panoptic.annotations.stuff.fringe import Mask, explained_masks
from construction_panoptic.annotations.stuff.label_maps import LabelMap
from construction_panoptic.annotations.stuff.labeller import ImageToLabel, StuffLabeller, StuffMaps
from construction_panoptic.annotations.taxonomy import LAST_COCO_THING, Taxonomy
from construction_panoptic.config.conversion import StuffSettings
from construction_panoptic.errors import CheckpointError, InputDataError
from construction_panoptic.models.detr.checkpoint import (
    PUBLISHED_WEIGHTS,
    fetch_weights,
    load_weights,
    panoptic_architecture,
    read_weights,
)
from construction_panoptic.models.detr.model import DetrPanoptic, build_detr_panoptic
from construction_panoptic.models.detr.panoptic_model import QueryMasks, query_masks
from construction_panoptic.models.detr.postprocess import panoptic_result
from construction_panoptic.models.preprocessing import evaluation_resize, normalise
from construction_panoptic.models.protocol import Segmentation
from construction_panoptic.models.spec import Preprocessing
from construction_panoptic.parallel.device import resolve_device


@dataclass(frozen=True)
class _Resized:
    """An image at the size that the network sees, uint8 [3, h, w], and its own (height, width)."""

    pixels: Tensor
    original_size: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.pixels.shape[-2:]
        return int(height), int(width)


class DetrLabeller(StuffLabeller):
    """DETR's panoptic segmentation as the project's stuff ids.

    Images are resized as in DETR's recipe for evaluation. The model's labels are COCO category ids; each pixel gets the
    stuff class that the taxonomy's ``coco_to_stuff`` gives for its segment's category, COCO's things included, and 0
    where there is none. The pixels of a COCO thing that annotated things explain go to the next best segment. Beside
    the model, memory holds a few images at the network's size, one image's upsampled masks, and a batch's label maps.

    ``model`` is used in place of the checkpoint's. Whether the backbone is dilated (DC5) is the one thing that weights
    do not tell: it is if the checkpoint's name has ``dc5`` in it, as the published ones do. Raises `InputDataError`:
    the taxonomy maps no COCO category.
    """

    def __init__(self, settings: StuffSettings, taxonomy: Taxonomy, model: DetrPanoptic | None = None) -> None:
        self._stuff_of_coco = taxonomy.stuff_id_of_coco
        if not self._stuff_of_coco:
            raise InputDataError("the taxonomy's coco_to_stuff is empty, so no stuff can be labelled; fill it.")
        self.device, self.batch_size = settings.device, settings.batch_size
        self.identity = digest_of(
            settings.model_dump(exclude={"revision"}), taxonomy.model_dump(), _checkpoint_identity(settings.weights)
        )
        self._sizes = Preprocessing(evaluation_side=settings.side, max_side=settings.max_side)
        self._settings, self._given = settings, model

    @cached_property
    def model(self) -> DetrPanoptic:
        """The network on its device, loaded when it is first used.

        Raises:
            CheckpointError: it cannot be loaded, or has fewer classes than the COCO categories in the taxonomy need.
        """
        model = load_detr(self._settings.weights) if self._given is None else self._given
        if max(self._stuff_of_coco) >= model.detr.num_classes:
            raise CheckpointError(
                f"the stuff model has {model.detr.num_classes} classes, but the taxonomy maps COCO category "
                f"{max(self._stuff_of_coco)}; use a checkpoint that was trained on COCO panoptic, such as "
                "detr-r101-panoptic."
            )
        return model.to(resolve_device(self._settings.device)).to(memory_format=torch.channels_last).eval()

    @cached_property
    def _is_thing(self) -> dict[int, bool]:
        return {label: label <= LAST_COCO_THING for label in range(self.model.detr.num_classes)}

    def read(self, image: ImageToLabel) -> _Resized:
        """Read an image at the network's size."""
        pixels = torch.from_numpy(np.require(read_rgb(image.location), requirements="W")).permute(2, 0, 1)
        return _Resized(evaluation_resize(pixels, self._sizes), (int(pixels.shape[1]), int(pixels.shape[2])))

    @torch.inference_mode()
    def label(self, images: Sequence[_Resized], things: Sequence[Mask]) -> list[StuffMaps]:
        """Label a batch."""
        pixels, padding_mask = self._collate(images)
        found = query_masks(
            self.model,
            self.model.features(pixels, padding_mask),
            [image.size for image in images],
            self._is_thing,
            threshold=self._settings.threshold,
        )
        return [
            stuff_of_queries(
                queries,
                mask,
                merge=panoptic_result,
                processed_size=image.size,
                target_size=image.original_size,
                is_thing=self._is_thing,
                stuff_of=self._stuff_of_coco,
                explained_fraction=self._settings.explained_fraction,
            )
            for queries, image, mask in zip(found, images, things, strict=True)
        ]

    def _collate(self, images: Sequence[_Resized]) -> tuple[Tensor, Tensor | None]:
        """Normalise and pad: pixels [B, 3, H, W], padding mask [B, H, W] or None if nothing is padded."""
        height, width = (max(side) for side in zip(*(image.size for image in images), strict=True))
        device = next(self.model.parameters()).device
        pixels = torch.zeros(len(images), 3, height, width, device=device).to(memory_format=torch.channels_last)
        padding_mask = torch.ones(len(images), height, width, dtype=torch.bool, device=device)
        for number, image in enumerate(images):
            h, w = image.size
            pixels[number, :, :h, :w] = normalise(image.pixels.to(device), self._sizes)
            padding_mask[number, :h, :w] = False
        return pixels, padding_mask if padding_mask.any() else None


def stuff_of_queries(
    queries: QueryMasks,
    things: Mask,
    *,
    merge: Callable[..., Segmentation],
    processed_size: Sequence[int],
    target_size: Sequence[int],
    is_thing: Mapping[int, bool],
    stuff_of: Mapping[int, int],
    explained_fraction: float,
) -> StuffMaps:
    """Merge the queries of one image to stuff, without the COCO things that annotated things explain.

    ``merge`` is `panoptic_result` or the like; ``stuff_of`` gives the stuff id of a label that has one.
    """
    explained = explained_masks((queries.masks > 0).cpu().numpy(), things, explained_fraction)
    used = [not (is_thing[label] and known) for label, known in zip(queries.labels.tolist(), explained, strict=True)]

    def labels_of(chosen: QueryMasks) -> LabelMap:
        result = merge(
            chosen.masks,
            chosen.scores,
            chosen.labels,
            processed_size=processed_size,
            target_size=target_size,
            is_thing=is_thing,
        )
        stuff_ids = [stuff_of.get(segment["category_id"], 0) for segment in result.segments]
        labels: LabelMap = np.array([0, *stuff_ids], dtype=np.uint8)[result.id_map]
        return labels

    labels = labels_of(queries.select(torch.tensor(used, dtype=torch.bool, device=queries.masks.device)))
    return StuffMaps(labels, labels if all(used) else labels_of(queries))


def load_detr(weights: str) -> DetrPanoptic:
    """Build the model of a checkpoint, whose architecture is read from the checkpoint itself.

    ``weights`` is a published panoptic checkpoint's name (``detr-r101-panoptic``, …; downloaded once), or a path.
    Raises `CheckpointError`: no such checkpoint, or it is none of a DETR panoptic.
    """
    if weights in PUBLISHED_WEIGHTS and not weights.endswith("-panoptic"):
        panoptic = ", ".join(name for name in PUBLISHED_WEIGHTS if name.endswith("-panoptic"))
        raise CheckpointError(f"weights: {weights} has no masks, so it cannot label stuff; choose one of {panoptic}.")
    path = fetch_weights(weights)
    try:
        architecture = panoptic_architecture(read_weights(path))
    except KeyError as error:
        raise CheckpointError(
            f"{path}: not a DETR panoptic checkpoint, since {error.args[0]} is missing; choose one, such as "
            "detr-r101-panoptic."
        ) from None
    model = build_detr_panoptic(**architecture, dilation="dc5" in path.stem.lower())
    load_weights(model, path, reset_heads=False)
    return model


def _checkpoint_identity(weights: str) -> list[Any]:
    """What tells one checkpoint from another: a published name, or a file's path, size and time."""
    path = Path(weights)
    return [weights, path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else [weights]
