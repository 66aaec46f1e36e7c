"""From pixels to a network's input: the resize and the normalisation that training and everything after it share."""

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from construction_panoptic.config.training import Preprocessing


def resized_size(size: tuple[int, int], side: int, max_side: int | None = None) -> tuple[int, int]:
    """Height and width with the shorter side of ``side`` pixels unless the longer one would pass ``max_side``.

    Rounded as in DETR: the limit rounds the shorter side to the nearest pixel, the longer side is cut off. Of an image
    so narrow that nothing would be left of the shorter side, that one is 1 and the longer one ``max_side``.
    """
    shorter, longer = float(min(size)), float(max(size))
    if max_side is not None and longer / shorter * side > max_side:
        side = round(max_side * shorter / longer)
    if side == 0 and max_side is not None:
        side, other = 1, max_side
    else:
        other = int(side * longer / shorter)
    return (side, other) if size[0] <= size[1] else (other, side)


def evaluation_resize(image: Tensor, settings: Preprocessing) -> Tensor:
    """Resize a uint8 image [3, H, W] to the size used in evaluation and prediction, bilinear with antialiasing."""
    height, width = int(image.shape[-2]), int(image.shape[-1])
    size = resized_size((height, width), settings.evaluation_side, settings.max_side)
    return transforms.resize(image, list(size), InterpolationMode.BILINEAR, antialias=True)


def normalise(image: Tensor, settings: Preprocessing) -> Tensor:
    """Turn a uint8 image [3, H, W] into float32 with the mean and deviation of the settings taken out."""
    pixels = transforms.to_dtype(image, torch.float32, scale=True)
    return transforms.normalize(pixels, list(settings.mean), list(settings.std), inplace=True)


def prepare(image: Tensor, settings: Preprocessing) -> Tensor:
    """Turn uint8 [3, H, W], RGB, into the network's input, float32 [3, h, w]."""
    return normalise(evaluation_resize(image, settings), settings)
