"""Labelling the stuff of images with a panoptic model of `transformers`: EoMT, Mask2Former, MaskFormer, OneFormer."""

import logging
import re
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from construction_panoptic.annotations.digests import digest_of
from construction_panoptic.annotations.stuff.detr_labeller import QueryLabeller
from construction_panoptic.annotations.stuff.fringe import Mask
from construction_panoptic.annotations.stuff.labeller import StuffMaps
from construction_panoptic.annotations.taxonomy import LAST_COCO_THING, Taxonomy, normalise_name
from construction_panoptic.config.conversion import StuffSettings
from construction_panoptic.errors import CheckpointError
from construction_panoptic.models.detr.mask_merging import merged_masks
from construction_panoptic.models.detr.postprocess import QueryMasks, keep_queries
from construction_panoptic.models.universal.hub import (
    ONE_SIZE,
    config_of,
    licence_of,
    listed,
    loaded,
    loaded_model,
    weights_folder,
)
from construction_panoptic.parallel.device import resolve_device

logger = logging.getLogger(__name__)

_SUFFIXES = re.compile(r"(_(other|merged|stuff))+$")


class UniversalLabeller(QueryLabeller):
    """A panoptic model of `transformers`, whose classes become stuff by their names.

    Masks of the queries with a class probability above ``settings.threshold`` are merged mask by mask, see
    `merged_masks`; what no mask claims is void. Raises `ParameterError`: `transformers` is not installed, or a folder
    is to have a revision. `CheckpointError`: the model cannot be had, is of another kind, or has no class that the
    taxonomy knows.
    """

    _merge = staticmethod(partial(merged_masks, least_quality=(0.0, 0.0)))

    def __init__(self, settings: StuffSettings, taxonomy: Taxonomy) -> None:
        self.device, self.batch_size = settings.device, settings.batch_size
        folder = weights_folder(settings.weights, settings.revision, "stuff")
        # Of the hub, all processes take the commit that this one has found.
        commit = None if folder == Path(settings.weights) else folder.name
        self._settings = settings.model_copy(update={"revision": commit})
        config = config_of(folder, settings.weights)
        names = {int(label): str(name) for label, name in config.id2label.items()}
        self._stuff_of, self._is_thing = stuff_of_names(names, taxonomy, settings.weights)
        files = [] if commit else sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
        states = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
        self.identity = digest_of("universal", self._settings.model_dump(), taxonomy.model_dump(), states)
        logger.info("%s labels stuff; the licence of its weights: %s", settings.weights, licence_of(folder))

    @cached_property
    def _model(self) -> tuple[Any, Any, dict[str, Any]]:
        """The network on its device, its image processor, and how that is called; loaded when they are first used."""
        folder = weights_folder(self._settings.weights, self._settings.revision, "stuff")
        model, _ = loaded_model(folder)
        config, side, longest = model.config, self._settings.side, self._settings.max_side
        options: dict[str, Any] = {"return_tensors": "pt", "input_data_format": "channels_last"}
        if config.model_type in ONE_SIZE:
            side = longest = config.image_size
            options |= {"do_pad": True, "do_split_image": False}
        options["size"] = {"shortest_edge": side, "longest_edge": longest}
        if config.model_type == "oneformer":
            import transformers

            # Without the names of classes, which it would download and needs for training alone.
            images = loaded(folder, "AutoImageProcessor", class_info_file=None)
            tokens = loaded(folder, "AutoTokenizer")
            processor = transformers.OneFormerProcessor(images, tokens, task_seq_length=config.task_seq_len)
        else:
            processor = loaded(folder, "AutoImageProcessor")
        return model.to(resolve_device(self._settings.device)).eval(), processor, options

    @torch.inference_mode()
    def label(self, images: Sequence[NDArray[np.uint8]], things: Sequence[Mask]) -> list[StuffMaps]:
        """Label a batch."""
        model, processor, options = self._model
        task = {"task_inputs": ["panoptic"] * len(images)} if model.config.model_type == "oneformer" else {}
        batch = processor(images=[np.array(image) for image in images], **task, **options)
        inputs = {name: batch[name] for name in ("pixel_values", "pixel_mask", "task_inputs") if name in batch}
        outputs = model(**{name: tensor.to(model.device) for name, tensor in inputs.items()})
        height, width = batch["pixel_values"].shape[-2:]
        rows, columns = outputs.masks_queries_logits.shape[-2:]
        found = []
        for number, (image, mask) in enumerate(zip(images, things, strict=True)):
            h, w = _processed_size(image, batch, number, options)
            kept, scores, labels = keep_queries(outputs.class_queries_logits[number], self._settings.threshold)
            masks = outputs.masks_queries_logits[number, kept, : -(-h * rows // height), : -(-w * columns // width)]
            found.append(self._maps(QueryMasks(masks, scores, labels), mask, (h, w)))
        return found


def stuff_of_names(names: dict[int, str], taxonomy: Taxonomy, model: str) -> tuple[dict[int, int], dict[int, bool]]:
    """Find the stuff of a model's classes by their names, and warn of those that the taxonomy does not know.

    Names are the taxonomy's own of stuff, or COCO's, with or without their endings (``sky``, ``sky-other-merged``).
    Gives the stuff id of each label that has one; and for each label, whether it is one of COCO's things. Raises
    `CheckpointError`: no name is known.
    """
    coco = [(m.coco_name, taxonomy.stuff_id(m.stuff), m.coco_id <= LAST_COCO_THING) for m in taxonomy.coco_to_stuff]
    known = (
        {_short(name): (stuff_id, is_thing) for name, stuff_id, is_thing in coco}
        | {normalise_name(name): (stuff_id, is_thing) for name, stuff_id, is_thing in coco}
        | {normalise_name(own.name): (own.id, False) for own in taxonomy.stuff}
    )
    found = {label: known.get(normalise_name(name)) or known.get(_short(name)) for label, name in names.items()}
    stuff_of = {label: of_class[0] for label, of_class in found.items() if of_class and of_class[0]}
    unknown = [name for label, name in names.items() if label not in stuff_of]
    if not stuff_of:
        raise CheckpointError(
            f"{model}: the taxonomy knows none of its classes ({listed(unknown)}); add their names to coco_to_stuff, "
            "or use a model of COCO panoptic."
        )
    if unknown:
        text = "The taxonomy does not know %d of the %d classes of %s; what they cover is void: %s"
        logger.warning(text, len(unknown), len(names), model, listed(unknown))
    return stuff_of, {label: bool(of_class and of_class[1]) for label, of_class in found.items()}


def _processed_size(image: NDArray[np.uint8], batch: Any, number: int, options: dict[str, Any]) -> tuple[int, int]:
    """Size of an image in its batch, without padding."""
    from transformers.image_transforms import get_size_with_aspect_ratio

    if "pixel_mask" in batch:
        mask = batch["pixel_mask"][number]
        return int(mask[:, 0].sum()), int(mask[0].sum())
    size = options["size"]
    height, width = get_size_with_aspect_ratio(image.shape[:2], size["shortest_edge"], size["longest_edge"])
    return int(height), int(width)


def _short(name: str) -> str:
    return _SUFFIXES.sub("", normalise_name(name))
