"""Labelling the stuff of images with a DETR that was trained on COCO panoptic."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from construction_panoptic.annotations.images import read_rgb
from construction_panoptic.annotations.stuff.fringe import (
    Mask,
    OutlinedThings,
    StuffOfImage,
    fringe_pixels,
    leftover_classes,
)
from construction_panoptic.annotations.stuff.ready import Labels, encode_labels
from construction_panoptic.annotations.taxonomy import LAST_COCO_THING, Taxonomy
from construction_panoptic.errors import CheckpointError, InputDataError, ParameterError
from construction_panoptic.models.detr.checkpoint import (
    PUBLISHED_WEIGHTS,
    fetch_weights,
    load_weights,
    panoptic_architecture,
    read_weights,
)
from construction_panoptic.models.detr.model import DetrPanoptic, build_detr_panoptic
from construction_panoptic.models.detr.postprocess import PanopticResult, panoptic_result
from construction_panoptic.models.detr.segmenting import segment_images
from construction_panoptic.models.preprocessing import resized_size as network_size

_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # ImageNet's
_READERS = 2


@dataclass(frozen=True)
class _Prepared:
    """An image at the size that the network sees, uint8 [3, h, w], its own (height, width), its things."""

    pixels: Tensor
    size: tuple[int, int]
    things: Mask | None = None

    @property
    def processed_size(self) -> tuple[int, int]:
        height, width = self.pixels.shape[-2:]
        return int(height), int(width)


class DetrStuffLabeller:
    """Gives label maps of images of any size: DETR's panoptic segmentation, as the project's stuff ids.

    Images are resized as in DETR's recipe for evaluation. The model's labels are COCO category ids; each
    pixel gets the stuff class that the taxonomy's ``coco_to_stuff`` gives for its segment's category, COCO's
    things included, and 0 where there is none. Masks are computed for the kept queries only. Beside the
    model, memory holds a few images at the network's size, one image's upsampled masks, and a batch's label
    maps.

    Args:
        model: trained on COCO panoptic; it is moved to ``device`` and put into eval mode.
        taxonomy: the project's classes.
        threshold: smallest class probability of a query that is kept, exclusive, in 0…1.
        side: the shorter side of the image that the network sees, in pixels.
        max_side: its longer side at most, in pixels.
        device: where the model runs.
        batch_size: images that the network sees at once.
        explained_fraction: a COCO thing of which annotated things cover more than this share is not used: its
            pixels go to the next best segment. 0…1; 1 uses all.
        fringe_distance: how far from a thing a pixel may be to count as its fringe, in pixels.

    Attributes:
        model: the model.

    Raises:
        CheckpointError: the model has fewer classes than the COCO categories in the taxonomy need.
        InputDataError: the taxonomy maps no COCO category.
        ParameterError: a number that cannot work.
    """

    def __init__(
        self,
        model: DetrPanoptic,
        taxonomy: Taxonomy,
        *,
        threshold: float = 0.85,
        side: int = 800,
        max_side: int = 1333,
        device: torch.device | str = "cpu",
        batch_size: int = 1,
        explained_fraction: float = 0.5,
        fringe_distance: int = 10,
    ) -> None:
        if not 0 <= threshold < 1:
            raise ParameterError(f"threshold is {threshold}; give a probability in 0…1, such as 0.85.")
        if not 1 <= side <= max_side:
            raise ParameterError(f"side is {side} and max_side {max_side}; give 1 <= side <= max_side.")
        if batch_size < 1:
            raise ParameterError(f"batch_size is {batch_size}; give 1 or more.")
        stuff_of = taxonomy.stuff_id_of_coco
        if not stuff_of:
            raise InputDataError("the taxonomy's coco_to_stuff is empty, so no stuff can be labelled; fill it.")
        labels = model.detr.num_classes
        if max(stuff_of) >= labels:
            raise CheckpointError(
                f"the stuff model has {labels} classes, but the taxonomy maps COCO category {max(stuff_of)}; "
                "use a checkpoint that was trained on COCO panoptic, such as detr-r101-panoptic."
            )
        self.model = model.to(device).to(memory_format=torch.channels_last).eval()
        self._device = torch.device(device)
        self._threshold, self._side, self._max_side = threshold, side, max_side
        self._batch_size = batch_size
        self._explained_fraction, self._fringe_distance = explained_fraction, fringe_distance
        self._leftover = leftover_classes(taxonomy)
        self._is_thing = {label: label <= LAST_COCO_THING for label in range(labels)}
        self._stuff_of_label = np.zeros(labels, dtype=np.uint8)
        for coco_id, stuff_id in stuff_of.items():
            self._stuff_of_label[coco_id] = stuff_id

    def labels(self, image: NDArray[np.uint8], things: Mask | None = None) -> Labels:
        """Label one image.

        Args:
            image: uint8 [H, W, 3], RGB, upright.
            things: bool [H, W], True on annotated things; None: there are none.

        Returns:
            uint8 [H, W] stuff ids, 0 = none.

        Raises:
            ValueError: another shape or dtype.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
            raise ValueError(f"an image is uint8 [H, W, 3], not {image.dtype} {image.shape}")
        return self._batch_labels([self._prepare(image, things)])[0][0]

    def label(self, images: Iterable[tuple[str, str | Path]]) -> Iterator[tuple[str, Labels]]:
        """Label images one batch at a time, in order, while the next ones are being read.

        Args:
            images: key and location (see `annotations.images`) of each.

        Yields:
            The key, and uint8 [H, W] stuff ids (0 = none) at the image's upright size.

        Raises:
            ImageError: an image cannot be read.
        """
        for key, (labels, _, _) in self._labelled(images, lambda _: None):
            yield key, labels

    def label_around(
        self, images: Iterable[tuple[str, str | Path]], things_of: Callable[[str], Mask | None]
    ) -> Iterator[StuffOfImage]:
        """Label images as `label` does, without the COCO things that annotated things explain.

        Args:
            images: key and location of each.
            things_of: gives the annotated things of an image key, bool [H, W]; called from threads.

        Yields:
            The stuff of each image, in order.

        Raises:
            ImageError: an image cannot be read.
        """
        for key, found in self._labelled(images, things_of):
            yield StuffOfImage(key, *found)

    def _labelled(
        self, images: Iterable[tuple[str, str | Path]], things_of: Callable[[str], Mask | None]
    ) -> Iterator[tuple[str, tuple[Labels, int, int]]]:
        prepared = self._read_ahead(iter(images), things_of)
        while batch := list(islice(prepared, self._batch_size)):
            keys, inputs = zip(*batch, strict=True)
            yield from zip(keys, self._batch_labels(inputs), strict=True)

    def _read_ahead(
        self, images: Iterator[tuple[str, str | Path]], things_of: Callable[[str], Mask | None]
    ) -> Iterator[tuple[str, _Prepared]]:
        waiting: deque[tuple[str, Future[_Prepared]]] = deque()
        with ThreadPoolExecutor(_READERS) as pool:
            try:
                for key, location in images:
                    waiting.append((key, pool.submit(self._read, key, location, things_of)))
                    if len(waiting) > self._batch_size:
                        first, future = waiting.popleft()
                        yield first, future.result()
                for key, future in waiting:
                    yield key, future.result()
            finally:
                for _, future in waiting:
                    future.cancel()

    def _read(self, key: str, location: str | Path, things_of: Callable[[str], Mask | None]) -> _Prepared:
        return self._prepare(read_rgb(location), things_of(key))

    def _prepare(self, image: NDArray[np.uint8], things: Mask | None) -> _Prepared:
        height, width = image.shape[:2]
        pixels = torch.from_numpy(np.require(image, requirements="W")).permute(2, 0, 1)
        size = network_size((height, width), self._side, self._max_side)
        return _Prepared(transforms.resize(pixels, list(size), antialias=True), (height, width), things)

    @torch.inference_mode()
    def _batch_labels(self, batch: Sequence[_Prepared]) -> list[tuple[Labels, int, int]]:
        """Labels of each image, and its fringe with all segments and with those that are used, in pixels."""
        images, padding_mask = self._collate(batch)
        with_all: dict[int, Labels] = {}

        def choose(number: int, masks: Tensor, categories: Tensor) -> Tensor:
            used = ~self._explained(masks, categories, batch[number].things)
            if not used.all():
                with_all[number] = self._labels_of(self._segment(masks, categories, batch[number]))
            return used

        results, _ = segment_images(
            self.model,
            images,
            padding_mask,
            processed_sizes=[item.processed_size for item in batch],
            target_sizes=[item.size for item in batch],
            is_thing=self._is_thing,
            threshold=self._threshold,
            choose=choose,
        )
        found = []
        for number, (item, result) in enumerate(zip(batch, results, strict=True)):
            labels = self._labels_of(result)
            after = self._fringe(labels, item)
            before = self._fringe(with_all[number], item) if number in with_all else after
            found.append((labels, before, after))
        return found

    def _explained(self, masks: Tensor, categories: Tensor, things: Mask | None) -> Tensor:
        """Tell which COCO things annotated things explain: bool [K], from mask logits [K, h, w]."""
        explained = torch.zeros(len(masks), dtype=torch.bool, device=masks.device)
        if things is None or not things.any():
            return explained
        height, width = masks.shape[-2:]
        shares = Image.fromarray(things.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
        inside = masks > 0
        covered = (inside * torch.from_numpy(np.array(shares)).to(masks)).sum(dim=(1, 2))
        is_thing = categories <= LAST_COCO_THING
        return is_thing & (covered > self._explained_fraction * inside.sum(dim=(1, 2)))

    def _segment(self, masks: Tensor, categories: Tensor, item: _Prepared) -> PanopticResult:
        return panoptic_result(
            masks,
            torch.ones_like(categories, dtype=torch.float32),
            categories,
            processed_size=item.processed_size,
            target_size=item.size,
            is_thing=self._is_thing,
        )

    def _labels_of(self, result: PanopticResult) -> Labels:
        stuff_ids = self._stuff_of_label[[segment["category_id"] for segment in result.segments]]
        labels: Labels = np.concatenate([[0], stuff_ids]).astype(np.uint8)[result.id_map.numpy()]
        return labels

    def _fringe(self, labels: Labels, item: _Prepared) -> int:
        if item.things is None:
            return 0
        return fringe_pixels(labels, item.things, self._leftover, self._fringe_distance)

    def _collate(self, batch: Sequence[_Prepared]) -> tuple[Tensor, Tensor | None]:
        """Normalise and pad: images [B, 3, H, W], padding mask [B, H, W] or None if nothing is padded."""
        height, width = (max(side) for side in zip(*(item.processed_size for item in batch), strict=True))
        images = torch.zeros(len(batch), 3, height, width, device=self._device)
        images = images.to(memory_format=torch.channels_last)
        padding_mask = torch.ones(len(batch), height, width, dtype=torch.bool, device=self._device)
        for number, item in enumerate(batch):
            h, w = item.processed_size
            pixels = transforms.to_dtype(item.pixels.to(self._device), torch.float32, scale=True)
            images[number, :, :h, :w] = transforms.normalize(pixels, _MEAN, _STD)
            padding_mask[number, :h, :w] = False
        return images, padding_mask if any(item.processed_size != (height, width) for item in batch) else None


def load_labeller(
    weights: str | Path,
    taxonomy: Taxonomy,
    *,
    dilation: bool | None = None,
    **settings: Any,
) -> DetrStuffLabeller:
    """Build the labeller of a checkpoint.

    Args:
        weights: the name of a published panoptic checkpoint (``detr-r101-panoptic``, …; downloaded once), or
            the path of one of that layout. The model's architecture is read from the checkpoint itself.
        taxonomy: the project's classes.
        dilation: whether the backbone is dilated (DC5), the one thing that weights do not tell. By default so
            if the checkpoint's name has ``dc5`` in it, as the published ones do.
        **settings: the keyword arguments of `DetrStuffLabeller`.

    Raises:
        CheckpointError: no such checkpoint, or it is none of a DETR panoptic on COCO's categories.
        InputDataError, ParameterError: see `DetrStuffLabeller`.
    """
    name = str(weights)
    if name in PUBLISHED_WEIGHTS and not PUBLISHED_WEIGHTS[name].panoptic:
        panoptic = ", ".join(key for key, known in PUBLISHED_WEIGHTS.items() if known.panoptic)
        raise CheckpointError(f"weights: {name} has no masks, so it cannot label stuff; choose one of {panoptic}.")
    path = fetch_weights(weights)
    if dilation is None:
        dilation = "dc5" in path.stem.lower()
    try:
        architecture = panoptic_architecture(read_weights(path))
    except KeyError as error:
        raise CheckpointError(
            f"{path}: not a DETR panoptic checkpoint, since {error.args[0]} is missing; choose one, such as "
            "detr-r101-panoptic."
        ) from None
    model = build_detr_panoptic(**architecture, dilation=dilation)
    load_weights(model, path, reset_heads=False)
    return DetrStuffLabeller(model, taxonomy, **settings)


def label_block(labeller: DetrStuffLabeller, block: Sequence[tuple[str, str, OutlinedThings]]) -> list[StuffOfImage]:
    """Label images of which key, location and annotated things are given; the labels come as files.

    A block has whole batches, so that its images are padded as in one process.
    """
    images, things = [image[:2] for image in block], {key: outlined for key, _, outlined in block}
    found = labeller._labelled(images, lambda key: things[key].mask())
    return [StuffOfImage(key, encode_labels(labels), before, after) for key, (labels, before, after) in found]
