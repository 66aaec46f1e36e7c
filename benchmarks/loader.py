"""Training samples from JPEG and panoptic PNG, with the recipe's augmentation.

The peer is a literal loader: a mask for every segment, cut out of the whole image, each of them flipped,
resized and cropped beside a PIL image that becomes float first and is normalised then. Both sides draw the
same random numbers in the same order.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as pil_transforms
from PIL import Image
from torch import Tensor

from benchmarks.conversion import convert_all
from benchmarks.inputs import write_exports
from benchmarks.measuring import Benchmark, Options, Outputs, Step, main
from construction_panoptic.config.training import AugmentationSettings
from construction_panoptic.training.augmentations import resized_size
from construction_panoptic.training.samples import PanopticSamples

SEED = 5


def prepare(options: Options) -> None:
    write_exports(options)
    convert_all(options)


def _settings(options: Options) -> AugmentationSettings:
    if options.small:
        return AugmentationSettings(sides=(120, 160), max_side=333, first_sides=(100, 125), crop_min=96, crop_max=150)
    return AugmentationSettings()


class LiteralLoader:
    """Reads and augments as the published code does, one operation on the whole image at a time."""

    def __init__(self, options: Options) -> None:
        self.folder = Path(options.folder)
        data = json.loads((self.folder / "panoptic.json").read_text(encoding="utf-8"))
        self.images = sorted(data["images"], key=lambda image: image["id"])
        self.annotations = {annotation["image_id"]: annotation for annotation in data["annotations"]}
        self.settings = _settings(options)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image_id = self.images[index]["id"]
        annotation = self.annotations[image_id]
        with Image.open(self.folder / "images" / self.images[index]["file_name"]) as file:
            image = file.convert("RGB")
        with Image.open(self.folder / "panoptic" / annotation["file_name"]) as file:
            colours = np.asarray(file, dtype=np.uint32)
        ids = colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]
        wanted = np.array([segment["id"] for segment in annotation["segments_info"]])
        masks = torch.as_tensor(ids == wanted[:, None, None], dtype=torch.uint8)
        labels = torch.tensor([segment["category_id"] for segment in annotation["segments_info"]])
        image, masks, labels = self._augment(image, masks, labels, np.random.default_rng([SEED, 0, image_id]))
        pixels = pil_transforms.to_tensor(image)
        pixels = pil_transforms.normalize(pixels, list(self.settings.mean), list(self.settings.std))
        return {"image": pixels, "masks": masks.bool(), "labels": labels, "boxes": _boxes_of(masks)}

    def _augment(
        self, image: Image.Image, masks: Tensor, labels: Tensor, random: np.random.Generator
    ) -> tuple[Image.Image, Tensor, Tensor]:
        settings = self.settings
        if random.random() < settings.flip:
            image, masks = pil_transforms.hflip(image), masks.flip(-1)
        if random.random() < settings.crop:
            image, masks = self._resize(image, masks, int(random.choice(settings.first_sides)), None)
            width = int(random.integers(settings.crop_min, min(image.width, settings.crop_max), endpoint=True))
            height = int(random.integers(settings.crop_min, min(image.height, settings.crop_max), endpoint=True))
            top = int(random.integers(0, image.height - height, endpoint=True))
            left = int(random.integers(0, image.width - width, endpoint=True))
            image = pil_transforms.crop(image, top, left, height, width)
            masks = masks[:, top : top + height, left : left + width]
            image, masks, labels = self._drop(image, masks, labels)
        image, masks = self._resize(image, masks, int(random.choice(settings.sides)), settings.max_side)
        return self._drop(image, masks, labels)

    def _resize(self, image: Image.Image, masks: Tensor, side: int, max_side: int | None) -> tuple[Image.Image, Tensor]:
        size = resized_size((image.height, image.width), side, max_side)
        image = pil_transforms.resize(image, list(size))
        return image, F.interpolate(masks[:, None].float(), size=size, mode="nearest")[:, 0] > 0.5

    def _drop(self, image: Image.Image, masks: Tensor, labels: Tensor) -> tuple[Image.Image, Tensor, Tensor]:
        keep = masks.flatten(1).any(1)
        return image, masks[keep], labels[keep]


def _boxes_of(masks: Tensor) -> Tensor:
    """Boxes [N, 4], centre and size as fractions of the image, of masks [N, H, W] on grids of the whole image."""
    height, width = masks.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    inside = masks.bool()

    def extreme(grid: Tensor) -> tuple[Tensor, Tensor]:
        placed = inside * grid
        return placed.masked_fill(~inside, 1e8).flatten(1).min(-1).values, placed.flatten(1).max(-1).values

    (x0, x1), (y0, y1) = extreme(x), extreme(y)
    corners = torch.stack([x0, y0, x1 + 1, y1 + 1], dim=1) / torch.tensor([width, height, width, height])
    return torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=1)


def peer(options: Options) -> Step:
    loader = LiteralLoader(options)
    return lambda: _outputs([loader[index] for index in range(len(loader.images))])


def ours(options: Options) -> Step:
    folder = Path(options.folder)
    samples = PanopticSamples(
        json.loads((folder / "panoptic.json").read_text()),
        folder / "images",
        folder / "panoptic",
        _settings(options),
        training=True,
        seed=SEED,
    )

    def step() -> Outputs:
        return _outputs([{"image": image, **target} for image, target in (samples[i] for i in range(len(samples)))])

    return step


def _outputs(samples: list[dict[str, Any]]) -> Outputs:
    """What both sides share: sizes of the images, sums of their pixels, labels, and pixels of each segment."""
    return {
        "sizes": torch.tensor([sample["image"].shape[-2:] for sample in samples]),
        "labels": torch.cat([sample["labels"] for sample in samples]),
        "mean_colours": torch.stack([sample["image"].mean(dim=(1, 2)) for sample in samples]),
        "areas": torch.cat([_areas(sample) for sample in samples]),
    }


def _areas(sample: dict[str, Any]) -> Tensor:
    if "masks" in sample:
        return sample["masks"].flatten(1).sum(1)
    counts = torch.bincount(sample["id_map"].flatten().long(), minlength=int(sample["segment_ids"].max()) + 1)
    return counts[sample["segment_ids"]]


BENCHMARK = Benchmark(
    name="loader",
    workload="Training loader, 20 images of 0.74 megapixels, JPEG and panoptic PNG, recipe augmentation, one process",
    peer="literal loader",
    sides={"peer": peer, "ours": ours},
    prepare=prepare,
)

if __name__ == "__main__":
    main(BENCHMARK)
