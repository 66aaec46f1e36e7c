"""Labelling the stuff of images with a DETR that was trained on COCO panoptic."""

from collections.abc import Callable, Sequence
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
from construction_panoptic.config.training import Preprocessing
from construction_panoptic.errors import CheckpointError, InputDataError
from construction_panoptic.models.detr.checkpoint import (
    PUBLISHED_WEIGHTS,
    fetch_weights,
    load_weights,
    panoptic_architecture,
    read_weights,
)
from construction_panoptic.models.detr.model import DetrPanoptic, build_detr_panoptic
from construction_panoptic.models.detr.panoptic_model import query_masks
from construction_panoptic.models.detr.postprocess import QueryMasks, panoptic_result
from construction_panoptic.models.preprocessing import evaluation_resize, normalise
from construction_panoptic.models.protocol import Segmentation
from construction_panoptic.parallel.device import resolve_device


class QueryLabeller(StuffLabeller):
    """What labellers share whose network has queries; those of COCO things that annotated things explain are left out.

    ``_is_thing`` says of each label whether it is one of COCO's things, ``_stuff_of`` gives the stuff id of a label
    that has one, ``_merge`` is `panoptic_result` or the like.
    """

    _settings: StuffSettings
    _is_thing: dict[int, bool]
    _stuff_of: dict[int, int]
    _merge: Callable[..., Segmentation]

    def _maps(self, queries: QueryMasks, things: Mask, processed_size: tuple[int, int]) -> StuffMaps:
        """Merge the queries of one image to stuff, at the size of its things."""
        explained = explained_masks((queries.masks > 0).cpu().numpy(), things, self._settings.explained_fraction)
        labels = zip(queries.labels.tolist(), explained, strict=True)
        used = [not (self._is_thing[label] and known) for label, known in labels]

        def map_of(chosen: QueryMasks) -> LabelMap:
            sizes = {"processed_size": processed_size, "target_size": things.shape}
            result = self._merge(chosen, **sizes, is_thing=self._is_thing)
            stuff_ids = [self._stuff_of.get(segment["category_id"], 0) for segment in result.segments]
            stuff: LabelMap = np.array([0, *stuff_ids], dtype=np.uint8)[result.id_map]
            return stuff

        stuff = map_of(queries.select(torch.tensor(used, dtype=torch.bool, device=queries.masks.device)))
        return StuffMaps(stuff, stuff if all(used) else map_of(queries))


class DetrLabeller(QueryLabeller):
    """DETR's panoptic segmentation as the project's stuff ids.

    Images are resized as in DETR's recipe for evaluation. The model's labels are COCO category ids; each pixel gets the
    stuff class that the taxonomy's ``coco_to_stuff`` gives for its segment's category, COCO's things included, and 0
    where there is none. The pixels of a COCO thing that annotated things explain go to the next best segment. Beside
    the model, memory holds a few images at the network's size, one image's upsampled masks, and a batch's label maps.
    Raises `InputDataError`: the taxonomy maps no COCO category.
    """

    _merge = staticmethod(panoptic_result)

    def __init__(self, settings: StuffSettings, taxonomy: Taxonomy) -> None:
        self._settings, self._stuff_of = settings, taxonomy.stuff_id_of_coco
        if not self._stuff_of:
            raise InputDataError("the taxonomy's coco_to_stuff is empty, so no stuff can be labelled; fill it.")
        self.device, self.batch_size = settings.device, settings.batch_size
        self.identity = digest_of(
            settings.model_dump(exclude={"revision"}), taxonomy.model_dump(), _checkpoint_identity(settings.weights)
        )
        self._sizes = Preprocessing(evaluation_side=settings.side, max_side=settings.max_side)

    @cached_property
    def model(self) -> DetrPanoptic:
        """The network on its device, loaded when it is first used.

        Raises `CheckpointError`: it cannot be loaded, or has fewer classes than the taxonomy's COCO categories need.
        """
        model = load_detr(self._settings.weights)
        if max(self._stuff_of) >= model.detr.num_classes:
            raise CheckpointError(
                f"the stuff model has {model.detr.num_classes} classes, but the taxonomy maps COCO category "
                f"{max(self._stuff_of)}; use a checkpoint of COCO panoptic, such as detr-r101-panoptic."
            )
        self._is_thing = {label: label <= LAST_COCO_THING for label in range(model.detr.num_classes)}
        return model.to(resolve_device(self._settings.device)).to(memory_format=torch.channels_last).eval()

    def read(self, image: ImageToLabel) -> Tensor:
        """Read an image: uint8 [3, h, w] at the network's size."""
        pixels = torch.from_numpy(np.require(read_rgb(image.location), requirements="W")).permute(2, 0, 1)
        return evaluation_resize(pixels, self._sizes)

    @torch.inference_mode()
    def label(self, images: Sequence[Tensor], things: Sequence[Mask]) -> list[StuffMaps]:
        """Label a batch."""
        sizes = [(pixels.shape[1], pixels.shape[2]) for pixels in images]
        features = self.model.features(*self._collate(images, sizes))
        found = query_masks(self.model, features, sizes, self._is_thing, threshold=self._settings.threshold)
        return [self._maps(*of_image) for of_image in zip(found, things, sizes, strict=True)]

    def _collate(self, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor | None]:
        """Normalise and pad: pixels [B, 3, H, W], padding mask [B, H, W] or None if nothing is padded."""
        height, width = map(max, zip(*sizes, strict=True))
        device = next(self.model.parameters()).device
        pixels = torch.zeros(len(images), 3, height, width, device=device).to(memory_format=torch.channels_last)
        padding_mask = torch.ones(len(images), height, width, dtype=torch.bool, device=device)
        for number, (image, (h, w)) in enumerate(zip(images, sizes, strict=True)):
            pixels[number, :, :h, :w] = normalise(image.to(device), self._sizes)
            padding_mask[number, :h, :w] = False
        return pixels, padding_mask if padding_mask.any() else None


def load_detr(weights: str) -> DetrPanoptic:
    """Build the model of a checkpoint: a published panoptic one's name (downloaded once), or a path.

    The weights tell the architecture, except whether the backbone is dilated (DC5): it is if the checkpoint's name has
    ``dc5`` in it, as the published ones do. Raises `CheckpointError`: there is none, or it is none of a DETR panoptic.
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
