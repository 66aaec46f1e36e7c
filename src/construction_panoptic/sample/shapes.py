"""The things that the sample can draw, and how one becomes pixels."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
from PIL import Image

from construction_panoptic.sample import materials, vehicles
from construction_panoptic.sample.painting import FloatArray, NoiseBank, Pen

SUPERSAMPLING = 4
"""Things are drawn this many times larger and averaged down, which smooths their edges."""


@dataclass(frozen=True)
class Drawing:
    """How to draw one class."""

    draw: Callable[[Pen, np.random.Generator], None]
    height: float  # in units of the width
    relative_size: float = 1.0  # multiplies the span that the scene asks for
    indoors: bool = False
    outdoors: bool = True
    mountable: bool = False  # may hang on a wall instead of standing
    truck: bool = False  # a COCO model sees a truck in it


DRAWINGS: dict[str, Drawing] = {
    "aac_blocks": Drawing(materials.aac_blocks, 0.78, 0.95, indoors=True),
    "distribution_transformer": Drawing(materials.distribution_transformer, 1.05),
    "dump_truck_tipper_truck": Drawing(vehicles.dump_truck, 0.56, truck=True),
    "fire_extinguishers": Drawing(
        materials.fire_extinguishers, 2.3, 0.72, indoors=True, outdoors=False, mountable=True
    ),
    "hydra_crane": Drawing(vehicles.hydra_crane, 0.9, 1.1, truck=True),
    "rcc_hume_pipes": Drawing(materials.rcc_hume_pipes, 0.86, 0.95),
    "transit_mixer": Drawing(vehicles.transit_mixer, 0.6, truck=True),
    "vitrified_tiles": Drawing(materials.vitrified_tiles, 0.86, 0.9, indoors=True, outdoors=False),
    "water_tank": Drawing(materials.water_tank, 1.12, 0.9),
    "wheel_loader": Drawing(vehicles.wheel_loader, 0.66, truck=True),
}
WORKER = Drawing(vehicles.worker, 2.6)


@dataclass(frozen=True)
class Sprite:
    """A drawn thing, and the corner in the image where it belongs."""

    rgb: FloatArray  # [h, w, 3] in 0…1
    alpha: FloatArray  # [h, w] in 0…1
    margin: int  # width in pixels of the transparent border around the drawing
    left: int = 0
    top: int = 0

    def placed(self, left: float, bottom: float) -> "Sprite":
        """The same thing with its left and lower edge at these image positions, to the nearest pixel."""
        top = round(bottom) - self.alpha.shape[0] + self.margin
        return replace(self, left=round(left) - self.margin, top=top)


def draw_sprite(drawing: Drawing, rng: np.random.Generator, noise: NoiseBank, width: float) -> Sprite:
    """Draw one thing ``width`` image pixels wide; ``rng`` chooses colours, side and a small tilt."""
    margin = 3 + round(0.05 * width * max(1, drawing.height))
    size = (ceil(width) + 2 * margin, ceil(width * drawing.height) + 2 * margin)
    image = Image.new("RGBA", (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING))
    origin = (margin * SUPERSAMPLING, (size[1] - margin - width * drawing.height) * SUPERSAMPLING)
    drawing.draw(Pen(image, width * SUPERSAMPLING, origin, flip=bool(rng.random() < 0.5)), rng)
    image = image.rotate(float(np.clip(rng.normal(0, 1.2), -3, 3)), Image.Resampling.NEAREST)
    pixels = np.asarray(image.reduce(SUPERSAMPLING)).astype(np.float32) / np.float32(255)
    shape = (size[1], size[0])
    light = 1 + 0.04 * noise.crop(rng, shape, 0.8) + 0.03 * noise.crop(rng, shape, 5)
    light += np.linspace(0.06, -0.08, size[1], dtype=np.float32)[:, None]
    rgb = np.clip(pixels[..., :3] * light[..., None], 0, 1)
    return Sprite(rgb, pixels[..., 3], margin)
