"""Scenes: things placed on a backdrop, with their exact masks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from construction_panoptic.config.sample import SampleSettings
from construction_panoptic.errors import ParameterError
from construction_panoptic.sample.backdrops import LABELS, LAYOUTS, Backdrop, Layout, draw_backdrop
from construction_panoptic.sample.painting import FloatArray, NoiseBank
from construction_panoptic.sample.shapes import DRAWINGS, WORKER, Sprite, draw_sprite

Alteration = Literal["brighter", "shifted", "recompressed"]
ALTERATIONS: tuple[Alteration, ...] = get_args(Alteration)
"""What can differ between a frame and its near-duplicate."""

_ATTEMPTS = 14


@dataclass(frozen=True)
class Instance:
    """A thing, or a site worker, in a scene."""

    name: str
    coverage: FloatArray  # [H, W], fraction of each pixel inside its full shape
    visible: FloatArray  # the same for the part that no later thing hides
    bottom: float  # its lower edge, in pixels
    outlined_as_seen: bool = False  # the annotator followed the visible part

    @property
    def hidden(self) -> float:
        """Fraction of the full shape that other things hide."""
        return 1 - float(self.visible.sum() / max(1e-6, float(self.coverage.sum())))


@dataclass(frozen=True)
class Scene:
    """A picture and what it shows."""

    rgb: NDArray[np.uint8]  # [H, W, 3]
    labels: NDArray[np.uint8]  # [H, W], index into LABELS: stuff behind the things, and site workers
    instances: tuple[Instance, ...]  # in painting order: a later one lies on top


def draw_scene(
    names: Sequence[str], settings: SampleSettings, rng: np.random.Generator, noise: NoiseBank, *, fewest: int = 1
) -> Scene:
    """Draw one scene with things of the classes ``names``; ``fewest`` of them if they find room.

    Raises `ParameterError`: if not even one thing finds room.
    """

    def fit(layout: Layout) -> list[str]:
        drawings = ((name, DRAWINGS[name]) for name in names)
        return [name for name, d in drawings if (d.indoors and layout.indoors) or (d.outdoors and layout.outdoors)]

    height, width = settings.height, int(rng.choice(settings.widths))
    fitting = [layout for layout in LAYOUTS.values() if fit(layout)]
    weights = np.array([layout.weight for layout in fitting])
    layout = fitting[int(rng.choice(len(fitting), p=weights / weights.sum()))]
    stage = _Stage(draw_backdrop(layout, rng, noise, height, width), settings, rng, noise)
    if layout.outdoors and rng.random() < settings.worker_fraction:
        stage.add_workers(int(rng.integers(1, 3)))
    stage.add_things(fit(layout), fewest)
    things = tuple(one for one in stage.placed if one.name in DRAWINGS)
    if not things:
        raise ParameterError("no thing found room in a sample image; make spans smaller or hidden_limit larger")
    return Scene(_develop(stage.rgb, rng, noise), stage.labels, things)


class _Stage:
    """A backdrop on which workers and things are put one after the other, the farthest first."""

    def __init__(
        self, backdrop: Backdrop, settings: SampleSettings, rng: np.random.Generator, noise: NoiseBank
    ) -> None:
        self.rgb, self.labels = backdrop.rgb.copy(), backdrop.labels.copy()
        self.placed: list[Instance] = []
        self._backdrop, self._settings, self._rng, self._noise = backdrop, settings, rng, noise

    def add_workers(self, count: int) -> None:
        height, width = self.labels.shape
        for _ in range(count):
            size = self._rng.uniform(0.1, 0.13) * height
            bottom = float(np.interp(self._rng.uniform(0, 0.4), (0, 1), self._backdrop.standing))
            left = self._rng.uniform(0, width - size)
            sprite = draw_sprite(WORKER, self._rng, self._noise, size).placed(left, max(bottom, size * 2.6))
            coverage = _on_image(sprite.alpha, sprite, self.labels.shape)
            if self._accepts(coverage, coverage, bottom):
                self._put(sprite, Instance("person", coverage, coverage, bottom), shadow=True)
                self.labels[coverage > 0.5] = LABELS.index("person")

    def add_things(self, names: Sequence[str], fewest: int) -> None:
        height, width = self.labels.shape
        rng, (smallest, largest) = self._rng, self._settings.spans
        most = self._settings.things[1]
        fewest = min(most, max(fewest, self._settings.things[0]))
        wanted = fewest + int(rng.binomial(most - fewest, 0.4))
        typical = smallest + (largest - smallest) * (0.75 if wanted < 3 else 0.5)
        # Small things first: they stand farther away, so the larger ones are painted over them.
        for span in np.sort(rng.triangular(smallest, typical, largest + 1e-6, wanted)):
            name = names[int(rng.integers(len(names)))]
            drawing = DRAWINGS[name]
            size = float(span) * height * drawing.relative_size / np.sqrt(drawing.height)
            sprite = draw_sprite(drawing, rng, self._noise, size)
            mounting = self._backdrop.mounting if drawing.mountable else None
            if mounting is not None and rng.random() >= 0.5:
                mounting = None
            for _ in range(_ATTEMPTS):
                left = rng.uniform(-0.12 * size, max(0.0, width - 0.88 * size))
                if mounting is not None:
                    bottom = rng.uniform(*mounting)
                else:  # the larger it looks, the nearer it stands
                    nearness = np.clip(0.65 * float(span) / largest + rng.uniform(-0.1, 0.4), 0, 1)
                    bottom = float(np.interp(nearness, (0, 1), self._backdrop.standing))
                bottom = min(max(bottom, size * drawing.height * 0.97), height * 0.985)
                sprite = sprite.placed(left, bottom)
                coverage = _on_image(sprite.alpha, sprite, self.labels.shape)
                if self._accepts(coverage, sprite.alpha, bottom):
                    as_seen = bool(rng.random() < self._settings.visible_outline_fraction)
                    self._put(sprite, Instance(name, coverage, coverage, bottom, as_seen), shadow=mounting is None)
                    break

    def _accepts(self, coverage: FloatArray, shape: FloatArray, bottom: float) -> bool:
        """Whether enough of a thing is in the image, and it hides nothing nearer and nothing too much."""
        limit = self._settings.hidden_limit
        if coverage.sum() < (1 - limit) * shape.sum():
            return False
        for other in self.placed:
            hides = float((other.visible * coverage).sum())
            if hides > 2 and bottom < other.bottom + 1:
                return False
            if float(other.visible.sum()) - hides < (1 - limit) * float(other.coverage.sum()):
                return False
        return True

    def _put(self, sprite: Sprite, instance: Instance, *, shadow: bool) -> None:
        if shadow:
            _shadow(self.rgb, sprite)
        alpha = instance.coverage[..., None]
        self.rgb = self.rgb * (1 - alpha) + _on_image(sprite.rgb, sprite, self.labels.shape) * alpha
        hidden = [replace(one, visible=one.visible * (1 - instance.coverage)) for one in self.placed]
        self.placed = [*hidden, instance]


def _on_image(pixels: FloatArray, sprite: Sprite, shape: tuple[int, ...]) -> FloatArray:
    """Set a sprite's pixels [h, w, …] in an image of zeros [H, W, …]."""
    image = np.zeros((*shape, *pixels.shape[2:]), np.float32)
    high, wide = sprite.alpha.shape
    top, left = max(0, sprite.top), max(0, sprite.left)
    bottom, right = max(top, min(shape[0], sprite.top + high)), max(left, min(shape[1], sprite.left + wide))
    inside = pixels[top - sprite.top : bottom - sprite.top, left - sprite.left : right - sprite.left]
    image[top:bottom, left:right] = inside
    return image


def _shadow(rgb: FloatArray, sprite: Sprite) -> None:
    """Darken the ground under the sprite in place."""
    rows, columns = np.nonzero(sprite.alpha > 0.5)
    bottom, left, right = (sprite.top + rows.max() + 0.5, sprite.left + columns.min(), sprite.left + columns.max())
    y, x = np.ogrid[: rgb.shape[0], : rgb.shape[1]]
    reach = max(2.0, (right - left) * 0.62)
    distance = ((x - (left + right) / 2) / reach) ** 2 + ((y - bottom) / max(1.5, reach * 0.16)) ** 2
    rgb *= 1 - 0.45 * np.exp(-(distance**2)).astype(np.float32)[..., None]


def _develop(rgb: FloatArray, rng: np.random.Generator, noise: NoiseBank) -> NDArray[np.uint8]:
    """Exposure, colour cast and sensor noise of a camera."""
    cast = 1 + rng.normal(0, 0.02, 3) + rng.normal(0, 0.05)
    grain = noise.crop(rng, (rgb.shape[0], rgb.shape[1]), 0) * 0.008
    return np.clip((rgb * cast.astype(np.float32) + grain[..., None]) * 255, 0, 255).astype(np.uint8)


def altered(scene: Scene, alteration: Alteration) -> Scene:
    """The same scene in a later frame: ``brighter``, or ``shifted`` by half a pixel to the right; else as it is."""
    if alteration == "brighter":
        return replace(scene, rgb=np.clip(scene.rgb.astype(np.float32) * 1.06 + 3, 0, 255).astype(np.uint8))
    if alteration == "shifted":
        instances = tuple(
            replace(one, coverage=_half_right(one.coverage), visible=_half_right(one.visible))
            for one in scene.instances
        )
        rgb = np.rint(_half_right(scene.rgb.astype(np.float32))).astype(np.uint8)
        return replace(scene, rgb=rgb, instances=instances)
    return scene


def _half_right(values: FloatArray) -> FloatArray:
    """Move an [H, W, …] image by half a pixel; the left column stays."""
    columns = np.maximum(np.arange(values.shape[1]) - 1, 0)
    return (values + values[:, columns]) * np.float32(0.5)
