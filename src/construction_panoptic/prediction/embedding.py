"""What a network makes of images, for distances between them."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from construction_panoptic.annotations.images import read_rgb
from construction_panoptic.config.prediction import PredictionSettings
from construction_panoptic.evaluation.inference import image_sample, on_device
from construction_panoptic.evaluation.predictions import evaluating
from construction_panoptic.models.protocol import PanopticModel, device_of
from construction_panoptic.parallel.device import autocast
from construction_panoptic.parallel.model_pool import map_on_devices
from construction_panoptic.training.loading import collate

CELLS = 8
"""Cells along each side of an image."""


def embed_images(model: PanopticModel, files: Sequence[Path], settings: PredictionSettings) -> Tensor:
    """Give the mean of the model's `features` in each of 8 by 8 cells of each image, float32 [N, 64, C].

    `InputDataError`: a file is missing, or no image.
    """
    embed = partial(_embed, model, settings.device, settings.precision)
    found = map_on_devices(embed, files, execution=settings.execution, device=settings.device)
    return torch.from_numpy(np.stack(list(tqdm(found, "embedding", len(files), unit="image", disable=None))))


class Novelty:
    """How unlike all images added so far each of some images is.

    The novelty of an image is the mean over its cells of the distance to the nearest cell added. Its unit is the root
    mean square distance of two cells taken at random: channels are divided by their standard deviation in the images
    added first, and distances by ``sqrt(2 C)``. To add the image of the highest novelty again and again is the choice
    of Sener and Savarese (2018, arXiv 1708.00489), for the parts of images.
    """

    def __init__(self, images: Tensor, known: Tensor) -> None:
        """Take the cells, float32 [N, 64, C], of the images, and of those added first, [M, 64, C], M > 0."""
        first = known.flatten(0, 1)
        scale = (first.std(0, correction=0) + 1e-6) * (2 * first.shape[1]) ** 0.5
        self._cells = images / scale
        self._distances = torch.full(images.shape[:2], torch.inf)
        self._add(first / scale)

    @property
    def of_each(self) -> NDArray[np.float64]:
        """The novelty of each image, [N]; 0 where all that is in it is in the others."""
        novelty: NDArray[np.float64] = self._distances.double().mean(1).numpy()
        return novelty

    def add(self, number: int) -> None:
        """Add the image of a number."""
        self._add(self._cells[number])

    def _add(self, cells: Tensor) -> None:
        for own, distances in zip(self._cells, self._distances, strict=True):
            torch.minimum(distances, torch.cdist(own, cells).amin(1), out=distances)


@torch.no_grad()
def _embed(model: PanopticModel, device: str, precision: str, file: Path) -> NDArray[np.float32]:
    network = on_device(model, device).network
    batch = collate([image_sample(read_rgb(file), file.name, 1, model.prepare)])
    with evaluating(network), autocast(device_of(network), precision):
        features = model.features(batch.to(device_of(network)).inputs())
    cells: NDArray[np.float32] = F.adaptive_avg_pool2d(features[0].float(), CELLS).flatten(1).T.cpu().numpy()
    return cells
