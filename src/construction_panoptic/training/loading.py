"""Batches: padding, order, and the processes that load."""

from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset, Sampler

from construction_panoptic.config.training import TrainingSettings
from construction_panoptic.errors import ParameterError
from construction_panoptic.models.protocol import Images
from construction_panoptic.parallel import collectives
from construction_panoptic.training.samples import DetectionSamples, Target

ASPECT_LIMITS = (0.5, 1.0, 2.0)
"""Widths / heights between which images count as of like aspect."""

LONGEST_LOAD = 900
"""Seconds that a process may take for a batch; more is a disk or a process that hangs."""


@dataclass(frozen=True)
class Batch:
    """Images [B, 3, H, W] with their padding mask, as in `Images`, and of each image the target, a dict of tensors (see
    `DetectionSamples`, `PanopticSamples`), and the file name.
    """

    images: Tensor
    padding_mask: Tensor | None
    targets: list[dict[str, Tensor]]
    file_names: list[str]

    def __len__(self) -> int:
        return len(self.file_names)

    def to(self, device: torch.device) -> "Batch":
        """The batch with its tensors on ``device``; copies from pinned memory do not wait."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, from which copies to CUDA are fast; torch's loader calls it."""
        return self._map(lambda tensor: tensor.pin_memory())

    def inputs(self) -> Images:
        """The images as a `PanopticModel` takes them."""
        sizes, originals = ([tuple(target[name].tolist()) for target in self.targets] for name in ("size", "orig_size"))
        return Images(self.images, self.padding_mask, sizes, originals)

    def parts(self, count: int) -> list["Batch"]:
        """The batch in so many parts, or as many as it has images, with the padding that they have here."""
        size, parts = -(-len(self) // count), []
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            mask = None if self.padding_mask is None else self.padding_mask[rows]
            parts.append(Batch(self.images[rows], mask, self.targets[rows], self.file_names[rows]))
        return parts

    def padded(self, height: int, width: int) -> "Batch":
        """The batch with more padding, to at least its own size; `padding_mask` is there if any is added."""
        right, bottom = width - self.images.shape[-1], height - self.images.shape[-2]
        if not right and not bottom:
            return self
        mask = self.padding_mask
        if mask is None:
            mask = torch.zeros(len(self), *self.images.shape[-2:], dtype=torch.bool)
        more = (0, right, 0, bottom)
        return replace(self, images=pad(self.images, more), padding_mask=pad(mask, more, value=True))

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(
            self,
            images=function(self.images),
            padding_mask=None if self.padding_mask is None else function(self.padding_mask),
            targets=[{name: function(value) for name, value in target.items()} for target in self.targets],
        )


def collate(samples: Sequence[tuple[Tensor, Target]]) -> Batch:
    """Pad images (float [3, H, W]) to the largest height and width among them."""
    height, width = (max(image.shape[side] for image, _ in samples) for side in (1, 2))
    images = torch.zeros(len(samples), 3, height, width)
    padding_mask = torch.ones(len(samples), height, width, dtype=torch.bool)
    for index, (image, _) in enumerate(samples):
        images[index, :, : image.shape[1], : image.shape[2]] = image
        padding_mask[index, : image.shape[1], : image.shape[2]] = False
    padded = any(image.shape[1:] != (height, width) for image, _ in samples)
    targets = [{name: value for name, value in target.items() if isinstance(value, Tensor)} for _, target in samples]
    return Batch(images, padding_mask if padded else None, targets, [target["file_name"] for _, target in samples])


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of keys (epoch, index) in an order that depends on the seed and the epoch alone.

    With ``shuffle`` a new permutation each epoch, of which each of ``world_size`` processes takes its part of every
    batch (``batch_size`` counts all); a last batch that is not full is left out, unless it is the only one. Else the
    samples' order, of which each process takes every ``world_size``-th batch. With ``aspects``, width / height of each
    sample, batches are of samples of like aspect, which need less padding; the rest makes up the last batches. With
    ``weights``, how often each sample is wanted in comparison, an epoch has as many samples as without, but some of
    them several times and others not.

    Raises:
        ParameterError: there are fewer samples than processes.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        aspects: Sequence[float] | None = None,
        weights: Sequence[float] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if count < world_size and shuffle:
            raise ParameterError(f"devices: {world_size} processes cannot share {count} training images; use fewer")
        self.count, self.batch_size = count, batch_size
        self.seed, self.shuffle = seed, shuffle
        self.kinds = None if aspects is None else np.digitize(aspects, ASPECT_LIMITS).tolist()
        self.weights = None if weights is None else torch.tensor(weights, dtype=torch.float64)
        self.rank, self.world_size = rank, world_size
        self.epoch = self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch (from 0) of the next pass, and how many of its batches are left out at its beginning."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return len(self._own_batches())

    def _own_batches(self) -> range:
        if self.shuffle:
            return range(max(1, self.count // self.batch_size))
        return range(-(-self.count // self.batch_size))[self.rank :: self.world_size]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = list(range(self.count))
        if self.shuffle:
            generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
            permuted = torch.randperm(self.count, generator=generator)
            if self.weights is not None:
                permuted = permuted[_systematic(self.weights[permuted], generator)]
            order = permuted.tolist()
        if self.kinds is not None:
            order = self._grouped(order, self.kinds)
        for number in self._own_batches()[self.start :]:
            batch = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield [(self.epoch, index) for index in (batch[self.rank :: self.world_size] if self.shuffle else batch)]

    def _grouped(self, order: list[int], kinds: list[int]) -> list[int]:
        """The same samples, those of a kind together as soon as there is a batch of them."""
        waiting: dict[int, list[int]] = {kind: [] for kind in sorted(set(kinds))}
        grouped: list[int] = []
        for index in order:
            group = waiting[kinds[index]]
            group.append(index)
            if len(group) == self.batch_size:
                grouped += group
                group.clear()
        return grouped + [index for group in waiting.values() for index in group]


def _systematic(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Draw as many places as there are, each in proportion to its weight, rounded up or down; in random order."""
    count = len(weights)
    shift = torch.rand(1, generator=generator, dtype=torch.float64)
    points = (torch.arange(count) + shift) * (weights.sum() / count)
    drawn = torch.searchsorted(weights.cumsum(0), points).clamp_(max=count - 1)
    return drawn[torch.randperm(count, generator=generator)]


class BatchLoader(DataLoader[Any]):
    """A torch loader of `Batch` whose order and augmentation follow `set_epoch`."""

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch (from 0) of the next pass, and how many of its batches are left out at its beginning."""
        cast("EpochBatches", self.batch_sampler).set_epoch(epoch, start)


def build_loader(
    samples: Dataset[Any],
    *,
    batch_size: int,
    shuffle: bool,
    seed: int = 0,
    workers: int = 0,
    pin_memory: bool = False,
    start_method: str | None = None,
    aspects: Sequence[float] | None = None,
    weights: Sequence[float] | None = None,
) -> BatchLoader:
    """Build the loader of a training set, or without ``shuffle`` of a validation set; its keys are (epoch, index).

    ``batch_size`` is images a process. Processes that load (``workers``) are kept between epochs and start by
    ``start_method``, the platform's by default; 0 loads in this process. See `EpochBatches` for ``aspects`` and
    ``weights``.
    """
    batches = EpochBatches(
        len(cast("Sized", samples)),
        batch_size * collectives.world_size() if shuffle else batch_size,
        seed=seed,
        shuffle=shuffle,
        aspects=aspects,
        weights=weights,
        rank=collectives.rank(),
        world_size=collectives.world_size(),
    )
    return BatchLoader(
        samples,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        timeout=LONGEST_LOAD if workers else 0,
        multiprocessing_context=start_method if workers else None,
        # A generator of its own: otherwise each pass draws from the global one, which dropout uses.
        generator=torch.Generator().manual_seed(seed),
    )


def loader_of(samples: DetectionSamples, settings: TrainingSettings, *, training: bool) -> BatchLoader:
    """Build the loader of a stage's training or validation images."""
    return build_loader(
        samples,
        batch_size=settings.batch_size if training else settings.validation_batch_size,
        shuffle=training,
        seed=settings.seed,
        workers=settings.workers,
        pin_memory=torch.cuda.is_available() and settings.device != "cpu",
        aspects=samples.aspects if training and settings.aspect_ratio_batches else None,
        weights=samples.repeat_factors(settings.repeat_threshold) if training and settings.repeat_threshold else None,
    )
