"""Samples from COCO detection and panoptic files; each depends on the seed, the epoch and the image alone."""

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from construction_panoptic.annotations.images import read_rgb
from construction_panoptic.annotations.panoptic_png import decode_id_map
from construction_panoptic.config.training import AugmentationSettings
from construction_panoptic.errors import InputDataError
from construction_panoptic.models.preprocessing import normalise, resized_size
from construction_panoptic.training import augmentations as transforms
from construction_panoptic.training.augmentations import Annotated

Json = Mapping[str, Any]
Target = dict[str, Any]
SampleKey = int | tuple[int, int]  # an index, or (epoch, index)


def check_size(path: Path, shape: Sequence[int], stated: Sequence[int]) -> None:
    """Raise an `InputDataError` if an image is not of the size (height, width) that the annotations state."""
    if (shape[0], shape[1]) != tuple(stated):
        raise InputDataError(
            f"{path}: {shape[1]} x {shape[0]} pixels, but the annotations say {stated[1]} x {stated[0]}; "
            "run the conversion again"
        )


class DetectionSamples(Dataset[tuple[Tensor, Target]]):
    """Images and boxes of a COCO detection file.

    A sample is ``(image, target)``: image float32 [3, H, W], normalised; target with ``image_id`` int64, ``file_name``,
    ``boxes`` float32 [N, 4] (centre x, centre y, width, height as fractions of the image), ``labels`` int64 [N],
    ``orig_size`` and ``size`` int64 [2] (height, width in pixels, before and after the transforms). Crowds are no
    targets. A key is (epoch, index), or an index alone, in epoch 0.

    With ``training`` they are augmented at random, from ``seed``; otherwise resized to the evaluation size.
    ``cache_mb`` is memory for decoded images and id maps, MiB, in each process that loads.

    Raises:
        InputDataError: the file is not of its kind, or an annotation names an unknown image or category; for a sample,
            a file is missing, unreadable, or not of the size that the annotations state.
    """

    # Objects are in flat arrays: image i has those from ``starts[i]`` to ``starts[i + 1]``.

    def __init__(
        self,
        data: Mapping[str, Any],
        image_folder: Path | str,
        settings: AugmentationSettings | None = None,
        *,
        training: bool = False,
        seed: int = 0,
        cache_mb: int = 0,
    ) -> None:
        missing = [name for name in ("images", "annotations") if name not in data]
        if missing:
            raise InputDataError(f"the annotations: no {' and no '.join(missing)} in it; is it a COCO file?")
        self.image_folder = Path(image_folder)
        self.settings = settings or AugmentationSettings()
        self.training, self.seed = training, seed
        things = frozenset(category["id"] for category in data.get("categories", ()) if category.get("isthing"))
        self._augmentations = transforms.build_augmentations(self.settings, things)
        self._cache_room = cache_mb * 2**20
        self._cache: dict[int, tuple[Tensor, Tensor | None]] = {}
        images = sorted(map(itemgetter("id", "file_name", "height", "width"), data["images"]), key=itemgetter(0))
        if not images:
            raise InputDataError("the annotations: there are no images in it")
        self.image_ids = np.array([image[0] for image in images], dtype=np.int64)
        self.file_names = [str(image[1]) for image in images]
        self.sizes = np.array([image[2:] for image in images], dtype=np.int32)
        self._set_objects(data["annotations"])
        if data.get("categories"):
            self._check_labels(max(category["id"] for category in data["categories"]))

    def __len__(self) -> int:
        return len(self.file_names)

    @property
    def aspects(self) -> list[float]:
        """Width / height of each image as it is on disk."""
        return (self.sizes[:, 1] / self.sizes[:, 0]).tolist()

    def repeat_factors(self, threshold: float) -> list[float]:
        """How often to show each image, at least 1: ``sqrt(threshold / f)`` (LVIS, Gupta et al. 2019, section 4.1).

        ``f`` is the fraction of images that have the image's rarest class.
        """
        images = np.repeat(np.arange(len(self)), np.diff(self.starts))
        pairs = np.unique(np.stack([images, self.labels]), axis=1)
        fraction = np.bincount(pairs[1]) / len(self)
        factors = np.ones(len(self))
        np.maximum.at(factors, pairs[0], np.sqrt(threshold / fraction[pairs[1]]))
        return factors.tolist()

    def _check_labels(self, last: int) -> None:
        wrong = np.flatnonzero((self.labels < 0) | (self.labels > last))
        if len(wrong):
            image = int(np.searchsorted(self.starts, wrong[0], side="right")) - 1
            raise InputDataError(
                f"the annotations: category id {self.labels[wrong[0]]} in {self.file_names[image]} is not in the "
                f"taxonomy, whose ids end at {last}; run the conversion again with it"
            )

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, Target]:
        """The image as float32 [3, H, W], normalised, and its target; see the class."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        sample = self._read(index)
        if self.training:
            random = np.random.default_rng([self.seed, epoch, int(self.image_ids[index])])
            for augmentation in self._augmentations:
                sample = augmentation(sample, lambda: self._read(int(random.integers(len(self)))), random)
        else:
            size = resized_size(sample.size, self.settings.evaluation_side, self.settings.max_side)
            sample = transforms.resize(sample, size)
        sample = transforms.drop_empty(sample)
        target: Target = {
            "image_id": torch.tensor(int(self.image_ids[index])),
            "file_name": self.file_names[index],
            "boxes": transforms.normalised_boxes(sample.boxes, sample.size),
            "labels": sample.labels,
            "orig_size": torch.from_numpy(self.sizes[index]).long(),
            "size": torch.tensor(sample.size),
        }
        if sample.id_map is not None:
            target["id_map"] = sample.id_map
            target["segment_ids"] = sample.segment_ids
        return normalise(sample.image, self.settings), target

    def _read(self, index: int) -> Annotated:
        pixels = self._cache.get(index)
        if pixels is None:
            path = self.image_folder / self.file_names[index]
            image = read_rgb(path)
            check_size(path, image.shape, self.sizes[index])
            pixels = torch.from_numpy(image.copy()).permute(2, 0, 1), self._read_id_map(index)
            size = sum(part.nbytes for part in pixels if part is not None)
            if size <= self._cache_room:
                self._cache_room -= size
                self._cache[index] = pixels
        objects = slice(self.starts[index], self.starts[index + 1])
        return Annotated(
            image=pixels[0],
            boxes=torch.from_numpy(self.boxes[objects].copy()),
            labels=torch.from_numpy(self.labels[objects].copy()),
            id_map=pixels[1],
            segment_ids=None if pixels[1] is None else torch.from_numpy(self.segment_ids[objects].copy()),
        )

    def _set_objects(self, annotations: Iterable[Json]) -> None:
        rows = array("d")
        places = {number: index for index, number in enumerate(self.image_ids.tolist())}
        for image, item in self._objects(annotations, places):
            x, y, width, height = item["bbox"]
            rows.extend((image, item["category_id"], item["id"], x, y, width, height))
        table = np.array(rows).reshape(-1, 7)
        table = table[np.argsort(table[:, 0], kind="stable")]
        images, self.labels, self.segment_ids = table[:, :3].T.astype(np.int64, order="C")
        self.starts = np.searchsorted(images, np.arange(len(self) + 1))
        corners = table[:, 3:].astype(np.float32)
        corners[:, 2:] += corners[:, :2]
        self.boxes = corners.clip(0, self.sizes[images][:, [1, 0, 1, 0]]).astype(np.float32)

    def _objects(self, annotations: Iterable[Json], places: Mapping[int, int]) -> Iterator[tuple[int, Json]]:
        """Each object and the place of its image; ``places`` is by image id."""
        for item in annotations:
            if item["image_id"] not in places:
                raise InputDataError(
                    f"the annotations: annotation {item['id']} is of the unknown image {item['image_id']}"
                )
            if not item.get("iscrowd", 0):
                yield places[item["image_id"]], item

    def _read_id_map(self, index: int) -> Tensor | None:  # noqa: ARG002
        return None


class PanopticSamples(DetectionSamples):
    """Images, boxes and segments of a COCO panoptic file, whose PNGs are in ``png_folder``.

    A sample is that of `DetectionSamples` and in its target ``id_map`` int32 [H, W] (segment ids of each pixel, 0 =
    void) and ``segment_ids`` int64 [N]. Crowds are no targets, though their pixels stay in the id map.

    Raises:
        InputDataError: as `DetectionSamples`; or an image has no annotation, or two.
    """

    def __init__(
        self,
        data: Mapping[str, Any],
        image_folder: Path | str,
        png_folder: Path | str,
        settings: AugmentationSettings | None = None,
        **options: Any,
    ) -> None:
        self.png_folder = Path(png_folder)
        self.png_names: list[str] = []
        super().__init__(data, image_folder, settings, **options)

    def _objects(self, annotations: Iterable[Json], places: Mapping[int, int]) -> Iterator[tuple[int, Json]]:
        names: dict[int, str] = {}
        for annotation in annotations:
            place = places.get(annotation["image_id"])
            if place is None:
                continue
            if "segments_info" not in annotation or place in names:
                problem = "has no segments_info; is it COCO panoptic?" if place not in names else "comes twice"
                raise InputDataError(f"the annotations: annotation of {self.file_names[place]} {problem}")
            names[place] = str(annotation["file_name"])
            yield from ((place, item) for item in annotation["segments_info"] if not item.get("iscrowd", 0))
        for place, (image_id, name) in enumerate(zip(self.image_ids.tolist(), self.file_names, strict=True)):
            if place not in names:
                raise InputDataError(f"the annotations: image {name} (id {image_id}) has no annotation")
        self.png_names = [names[place] for place in range(len(names))]

    def _read_id_map(self, index: int) -> Tensor | None:
        path = self.png_folder / self.png_names[index]
        id_map = decode_id_map(path)
        check_size(path, id_map.shape, self.sizes[index])
        return torch.from_numpy(id_map.astype(np.int32))
