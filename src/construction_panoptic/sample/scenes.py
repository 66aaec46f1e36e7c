"""Scenes: things placed on a backdrop, with their exact masks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from construction_panoptic.sample.backdrops import LABELS, LAYOUTS, Backdrop, Layout, draw_backdrop
from construction_panoptic.sample.settings import SampleSettings
from construction_panoptic.sample.shapes import DRAWINGS, WORKER, Drawing, Sprite, draw_sprite
from construction_panoptic.sample.textures import FloatArray, NoiseBank

Alteration = Literal["brighter", "shifted", "recompressed"]
ALTERATIONS: tuple[Alteration, ...] = ("brighter", "shifted", "recompressed")
"""What can differ between a frame and its near-duplicate."""

_ATTEMPTS = 14


@dataclass(frozen=True)
class Instance:
    """A thing in a scene.

    ``coverage`` [H, W] float32 is the share of each pixel inside its full shape, ``visible`` the same for the part
    that no later thing hides. ``outlined_as_seen``: the annotator followed the visible part.
    """

    name: str
    coverage: FloatArray
    visible: FloatArray
    outlined_as_seen: bool

    @property
    def hidden(self) -> float:
        """Share of the full shape that other things hide."""
        return 1 - float(self.visible.sum() / max(1e-6, float(self.coverage.sum())))


@dataclass(frozen=True)
class Scene:
    """``rgb`` [H, W, 3] uint8, ``labels`` [H, W] uint8 index into LABELS (stuff behind the things, and site workers),
    and the things in painting order: a later one lies on top."""

    rgb: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    instances: tuple[Instance, ...]


def _fits(drawing: Drawing, layout: Layout) -> bool:
    return (drawing.indoors and layout.indoors) or (drawing.outdoors and layout.outdoors)


def draw_scene(
    names: Sequence[str], fewest: int, settings: SampleSettings, rng: np.random.Generator, noise: NoiseBank
) -> Scene:
    """Draw one scene with things of the classes ``names``, at least one and where possible ``fewest`` of them."""
    height, width = settings.height, int(rng.choice(settings.widths))
    fitting = [layout for layout in LAYOUTS.values() if any(_fits(DRAWINGS[name], layout) for name in names)]
    layout = fitting[int(rng.integers(len(fitting)))]
    names = [name for name in names if _fits(DRAWINGS[name], layout)]
    backdrop = draw_backdrop(layout, rng, noise, height, width)
    rgb, labels = backdrop.rgb.copy(), backdrop.labels
    if layout.outdoors and rng.random() < settings.worker_share:
        _add_workers(rgb, labels, backdrop, rng, noise)
    instances = _place_things(rgb, names, fewest, backdrop, settings, rng, noise)
    return Scene(_develop(rgb, rng, noise), labels, tuple(instances))


def _add_workers(
    rgb: FloatArray, labels: NDArray[np.uint8], backdrop: Backdrop, rng: np.random.Generator, noise: NoiseBank
) -> None:
    height, width = labels.shape
    for _ in range(int(rng.integers(1, 3))):
        size = float(rng.uniform(0.1, 0.13)) * height
        bottom = float(np.interp(rng.random() * 0.5, (0, 1), backdrop.standing))
        sprite = draw_sprite(
            WORKER,
            rng,
            noise,
            width=size,
            left=float(rng.uniform(0, width - size)),
            bottom=max(bottom, size * 2.6),
        )
        _shadow(rgb, sprite)
        labels[_paste(rgb, sprite) > 0.5] = LABELS.index("person")


def _place_things(
    rgb: FloatArray,
    names: Sequence[str],
    fewest: int,
    backdrop: Backdrop,
    settings: SampleSettings,
    rng: np.random.Generator,
    noise: NoiseBank,
) -> list[Instance]:
    height, width = backdrop.labels.shape
    low, high = settings.things
    wanted = max(low, min(high, fewest)) + int(rng.binomial(high - max(low, min(high, fewest)), 0.4))
    smallest, largest = settings.spans
    typical = smallest + (largest - smallest) * (0.75 if wanted < 3 else 0.5)
    spans = np.sort(rng.triangular(smallest, typical, largest, wanted)) * height
    instances: list[Instance] = []
    # Small things first: they stand farther away, so the larger ones are painted over them.
    for span in spans:
        name = names[int(rng.integers(len(names)))]
        drawing = DRAWINGS[name]
        size = float(span) * drawing.relative_size / np.sqrt(drawing.height)
        for _ in range(_ATTEMPTS):
            left = float(rng.uniform(-0.12 * size, width - 0.88 * size))
            mounted = drawing.mountable and backdrop.mounting is not None and rng.random() < 0.5
            bottom = _bottom(backdrop, float(span) / (largest * height), mounted, rng)
            bottom = min(max(bottom, size * drawing.height * 0.97), height * 0.985)
            sprite = draw_sprite(drawing, rng, noise, width=size, left=left, bottom=bottom)
            coverage = _on_image(sprite, (height, width))
            shown = float(coverage.sum() / sprite.alpha.sum())
            after = [replace(one, visible=one.visible * (1 - coverage)) for one in instances]
            if shown < 1 - settings.hidden_limit or any(one.hidden > settings.hidden_limit for one in after):
                continue
            if not mounted:
                _shadow(rgb, sprite)
            _paste(rgb, sprite)
            as_seen = bool(rng.random() < settings.visible_outline_share)
            instances = [*after, Instance(name, coverage, coverage, as_seen)]
            break
    if not instances:
        raise RuntimeError("no thing could be placed; hidden_limit and spans leave no room")
    return instances


def _bottom(backdrop: Backdrop, nearness: float, mounted: bool, rng: np.random.Generator) -> float:
    """Lower edge of a thing: the larger it looks, the nearer it stands."""
    if mounted and backdrop.mounting is not None:
        return float(rng.uniform(*backdrop.mounting))
    share = np.clip(0.65 * nearness + rng.uniform(-0.1, 0.4), 0, 1)
    return float(np.interp(share, (0, 1), backdrop.standing))


def _window(sprite: Sprite, shape: tuple[int, int]) -> tuple[slice, slice, slice, slice]:
    """Rows and columns of the image, then of the sprite, where they overlap."""
    high, wide = sprite.alpha.shape
    top, left = max(0, sprite.top), max(0, sprite.left)
    bottom, right = min(shape[0], sprite.top + high), min(shape[1], sprite.left + wide)
    return (
        slice(top, max(top, bottom)),
        slice(left, max(left, right)),
        slice(top - sprite.top, max(top, bottom) - sprite.top),
        slice(left - sprite.left, max(left, right) - sprite.left),
    )


def _on_image(sprite: Sprite, shape: tuple[int, int]) -> FloatArray:
    coverage = np.zeros(shape, np.float32)
    rows, columns, sprite_rows, sprite_columns = _window(sprite, shape)
    coverage[rows, columns] = sprite.alpha[sprite_rows, sprite_columns]
    return coverage


def _paste(rgb: FloatArray, sprite: Sprite) -> FloatArray:
    """Blend the sprite into ``rgb`` in place and return its coverage [H, W]."""
    rows, columns, sprite_rows, sprite_columns = _window(sprite, (rgb.shape[0], rgb.shape[1]))
    alpha = sprite.alpha[sprite_rows, sprite_columns, None]
    rgb[rows, columns] = rgb[rows, columns] * (1 - alpha) + sprite.rgb[sprite_rows, sprite_columns] * alpha
    return _on_image(sprite, (rgb.shape[0], rgb.shape[1]))


def _shadow(rgb: FloatArray, sprite: Sprite) -> None:
    """Darken the ground under the sprite in place."""
    rows, columns = np.nonzero(sprite.alpha > 0.5)
    bottom, left, right = (
        sprite.top + rows.max() + 0.5,
        sprite.left + columns.min(),
        sprite.left + columns.max(),
    )
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
    """The same scene in a later frame: ``brighter``, or ``shifted`` by one pixel to the right.

    ``recompressed`` frames are the same scene; the difference comes when the image is encoded.
    """
    if alteration == "brighter":
        return replace(scene, rgb=np.clip(scene.rgb.astype(np.float32) * 1.06 + 3, 0, 255).astype(np.uint8))
    if alteration == "shifted":
        columns = np.maximum(np.arange(scene.labels.shape[1]) - 1, 0)
        instances = tuple(
            replace(one, coverage=one.coverage[:, columns], visible=one.visible[:, columns])
            for one in scene.instances
        )
        return Scene(scene.rgb[:, columns], scene.labels[:, columns], instances)
    return scene
