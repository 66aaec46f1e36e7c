"""Places of a construction project: what lies behind the things, with its stuff labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from construction_panoptic.sample.painting import Colour, FloatArray, NoiseBank, Point, pick, shade, vary

SUPERSAMPLING = 3

# COCO panoptic name: (COCO id, is a thing in COCO, noise), for all that the stuff predictions may contain. The noise of
# such a region: (grain in pixels at 96 pixels height, strength in 0…255 units).
_REGIONS: dict[str, tuple[int, bool, tuple[tuple[float, float], ...]]] = {
    "person": (1, True, ()),
    "truck": (8, True, ()),
    "gravel": (125, False, ((0, 17), (0.8, 12))),
    "road": (149, False, ((0, 5), (5, 4))),
    "sand": (154, False, ((0.8, 6), (5, 7))),
    "wall-brick": (171, False, ((0, 6), (5, 5))),
    "wall-tile": (176, False, ((0, 2), (12, 4))),
    "window-other": (181, False, ((5, 7),)),
    "tree-merged": (184, False, ((0.8, 15), (2, 19))),
    "fence-merged": (185, False, ((0, 4), (5, 4))),
    "ceiling-merged": (186, False, ((0, 2), (12, 4))),
    "sky-other-merged": (187, False, ((12, 4),)),
    "floor-other-merged": (190, False, ((0.8, 3), (5, 5))),
    "pavement-merged": (191, False, ((0, 5), (5, 5))),
    "grass-merged": (193, False, ((0, 12), (2, 10))),
    "dirt-merged": (194, False, ((0.8, 9), (2, 9), (12, 7))),
    "building-other-merged": (197, False, ((0, 3), (5, 4))),
    "wall-other-merged": (199, False, ((0.8, 3), (12, 6))),
}
COCO_CATEGORIES = {name: (coco_id, is_thing) for name, (coco_id, is_thing, _) in _REGIONS.items()}
LABELS = ("void", *_REGIONS)
"""Names of the values of a label map; 0 is void."""


@dataclass(frozen=True)
class Backdrop:
    """A place without things."""

    rgb: FloatArray  # [H, W, 3] in 0…1
    labels: NDArray[np.uint8]  # [H, W], index into LABELS
    standing: tuple[float, float]  # highest and lowest position in pixels on which a thing may stand
    mounting: tuple[float, float] | None = None  # the same for things on a wall


class Canvas:
    """Paints colour and labels together, in fractions of the image (x and y from 0 to 1)."""

    def __init__(self, rng: np.random.Generator, noise: NoiseBank, height: int, width: int) -> None:
        self.rng, self.noise = rng, noise
        self.height, self.width = height, width
        # Lines and grain are stated for images 96 pixels high.
        self.unit = height / 96
        size = (width * SUPERSAMPLING, height * SUPERSAMPLING)
        self._image, self._label_image = Image.new("RGB", size), Image.new("L", size)
        self._draw, self._label_draw = ImageDraw.Draw(self._image), ImageDraw.Draw(self._label_image)

    def _pixels(self, points: Sequence[Point]) -> list[Point]:
        return [(x * self.width * SUPERSAMPLING, y * self.height * SUPERSAMPLING) for x, y in points]

    def region(self, label: str, points: Sequence[Point], colour: Colour) -> None:
        """Fill a polygon and label it."""
        self.detail(points, colour)
        self._label_draw.polygon(self._pixels(points), fill=LABELS.index(label))

    def detail(self, points: Sequence[Point], colour: Colour) -> None:
        """Fill a polygon without changing labels."""
        self._draw.polygon(self._pixels(points), fill=colour)

    def line(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """Draw a line without changing labels; ``width`` in pixels of an image 96 pixels high."""
        self._draw.line(self._pixels(points), fill=colour, width=max(1, round(width * self.unit * SUPERSAMPLING)))

    def edge(self, level: float, roughness: float) -> list[Point]:
        """A wavy line over the whole width around ``level``; both in fractions of the image's height."""
        xs = np.linspace(0, 1, 25)
        waves = self.noise.crop(self.rng, (1, 25), 2)[0] + 0.6 * self.noise.crop(self.rng, (1, 25), 0.8)[0]
        return [(float(x), float(level + roughness * wave)) for x, wave in zip(xs, waves, strict=True)]

    def _clouds(self, shape: tuple[int, ...]) -> FloatArray:
        """How white each pixel of the sky is [H, W], 0 to 1: soft and wider than high."""
        height, width = shape
        wide = (height, -(-width // 2))
        billows = self.noise.crop(self.rng, wide, 5 * self.unit) + 0.35 * self.noise.crop(self.rng, wide, 2 * self.unit)
        cover = self.rng.uniform(0.4, 2.4)
        return np.clip((np.repeat(billows, 2, axis=1)[:, :width] - cover) * 1.1, 0, 0.85)

    def finish(self) -> tuple[FloatArray, NDArray[np.uint8]]:
        """Average down, add the grain of each region, and return (rgb [H, W, 3] 0…1, labels [H, W])."""
        rgb = np.asarray(self._image.reduce(SUPERSAMPLING), np.float32)
        labels = np.asarray(self._label_image)[SUPERSAMPLING // 2 :: SUPERSAMPLING, SUPERSAMPLING // 2 :: SUPERSAMPLING]
        grain = np.zeros(labels.shape, np.float32)
        sky = labels == LABELS.index("sky-other-merged")
        rgb[sky] += (248 - rgb[sky]) * self._clouds(labels.shape)[sky, None]
        for value in np.unique(labels[labels > 0]):
            inside = labels == value
            for scale, strength in _REGIONS[LABELS[value]][2]:
                grain[inside] += strength * self.noise.crop(self.rng, labels.shape, scale * self.unit)[inside]
        return np.clip((rgb + grain[..., None]) / 255, 0, 1), labels.copy()


def box(left: float, top: float, right: float, bottom: float) -> list[Point]:
    """Corners of a rectangle."""
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _sky(canvas: Canvas, bottom: float) -> None:
    rng = canvas.rng
    high = pick(rng, ((86, 150, 220), (112, 170, 226), (150, 184, 214), (176, 190, 204)))
    low = pick(rng, ((206, 224, 240), (224, 228, 232), (238, 226, 210)))
    for step in range(32):
        r, g, b = (round(a + (z - a) * (step / 31)) for a, z in zip(high, low, strict=True))
        canvas.region("sky-other-merged", box(0, bottom * step / 32, 1, bottom + 0.15), (r, g, b))


def _trees(canvas: Canvas, top: float, bottom: float) -> None:
    colour = pick(canvas.rng, ((62, 104, 48), (78, 116, 50), (50, 92, 58)))
    canvas.region("tree-merged", [*canvas.edge(top, 0.03), (1, bottom), (0, bottom)], colour)
    for x in canvas.rng.uniform(0, 1, 9):
        y = canvas.rng.uniform(top + 0.05, bottom)
        canvas.detail([(x - 0.05, y), (x, y - 0.06), (x + 0.05, y), (x, y + 0.03)], shade(colour, 0.8))


def _ground(canvas: Canvas, label: str, top: float, roughness: float = 0.008) -> None:
    rng = canvas.rng
    colours: dict[str, tuple[Colour, ...]] = {
        "dirt-merged": ((150, 112, 78), (164, 128, 92), (138, 106, 82)),
        "sand": ((204, 178, 132), (196, 166, 118)),
        "gravel": ((148, 142, 134), (160, 150, 138)),
        "pavement-merged": ((150, 148, 146), (164, 160, 154)),
        "road": ((98, 98, 102), (86, 88, 92)),
        "grass-merged": ((104, 140, 62), (122, 150, 70), (92, 128, 60)),
    }
    colour = pick(rng, colours[label])
    canvas.region(label, [*canvas.edge(top, roughness), (1, 1), (0, 1)], colour)
    if label == "pavement-merged":
        vanish = rng.uniform(0.2, 0.8)
        for x in np.linspace(-1.2, 2.2, 12):
            canvas.line([(vanish + (x - vanish) * 0.35, top + 0.02), (x, 1)], 0.6, shade(colour, 0.84))
        for depth in (0.16, 0.38, 0.68):
            canvas.line([(0, top + (1 - top) * depth), (1, top + (1 - top) * depth)], 0.7, shade(colour, 0.84))
    elif label in ("dirt-merged", "sand"):
        for _ in range(int(rng.integers(1, 4))):
            y, lean = rng.uniform(top + 0.1, 0.95), rng.uniform(-0.15, 0.15)
            track = [(0, y), (0.4, y + lean * 0.3), (1, y + lean)]
            canvas.line(track, rng.uniform(1, 2.4), shade(colour, 0.87))


def _building(canvas: Canvas, left: float, top: float, right: float, bottom: float) -> None:
    """A concrete frame or a finished facade with rows of windows."""
    rng = canvas.rng
    facade = pick(rng, ((188, 176, 160), (172, 176, 184), (196, 164, 142), (150, 154, 160)))
    canvas.region("building-other-merged", box(left, top, right, bottom), facade)
    canvas.detail(box(right - 0.05, top, right, bottom), shade(facade, 0.8))
    glass = pick(rng, ((66, 84, 108), (52, 58, 66), (88, 112, 132)))
    floors = max(2, round((bottom - top) / 0.105))
    columns = max(2, round((right - left) / 0.11))
    tall, wide = (bottom - top) / floors, (right - left - 0.05) / columns
    for floor in range(floors):
        y = top + floor * tall
        canvas.line([(left, y), (right, y)], 0.8, shade(facade, 0.75))
        for column in range(columns):
            x = left + column * wide
            canvas.detail(box(x + 0.24 * wide, y + 0.26 * tall, x + 0.78 * wide, y + 0.78 * tall), glass)


def _fence(canvas: Canvas, top: float, bottom: float) -> None:
    """Corrugated sheets between posts."""
    rng = canvas.rng
    sheet = pick(rng, ((92, 146, 152), (70, 128, 150), (120, 150, 168)), 6)
    canvas.region("fence-merged", box(0, top, 1, bottom), sheet)
    slat = rng.uniform(0.022, 0.032)
    for x in np.arange(rng.uniform(-slat, 0), 1, slat):
        canvas.detail(box(x, top, x + slat * 0.45, bottom), shade(sheet, 0.78))
    for x in np.arange(rng.uniform(0, 0.3), 1, 0.33):
        canvas.detail(box(x, top - 0.015, x + 0.018, bottom), shade(sheet, 0.45))
    canvas.line([(0, top), (1, top)], 1.5, shade(sheet, 1.25))


def _bricks(canvas: Canvas, top: float, bottom: float) -> None:
    rng = canvas.rng
    brick = pick(rng, ((166, 84, 62), (148, 78, 64), (180, 104, 74)))
    canvas.region("wall-brick", box(0, top, 1, bottom), brick)
    tall = rng.uniform(0.045, 0.06)
    long = tall * 2.4 * canvas.height / canvas.width
    joint = (206, 188, 170)
    for row, y in enumerate(np.arange(bottom, top, -tall)):
        for x in np.arange(-long if row % 2 else -long / 2, 1, long):
            if rng.random() < 0.35:
                canvas.detail(box(x, max(top, y - tall), x + long, y), shade(brick, rng.uniform(0.82, 1.14)))
            canvas.line([(x, max(top, y - tall)), (x, y)], 0.5, joint)
        canvas.line([(0, y), (1, y)], 0.6, joint)


def _open_site(canvas: Canvas) -> float:
    horizon = canvas.rng.uniform(0.34, 0.54)
    _sky(canvas, horizon)
    if canvas.rng.random() < 0.5:
        _trees(canvas, horizon - canvas.rng.uniform(0.14, 0.22), horizon + 0.03)
    _ground(canvas, str(canvas.rng.choice(["dirt-merged", "sand", "dirt-merged", "gravel"])), horizon)
    return horizon


def _building_site(canvas: Canvas) -> float:
    rng = canvas.rng
    horizon = rng.uniform(0.4, 0.56)
    _sky(canvas, horizon)
    top = rng.uniform(0.0, horizon - 0.26)
    width = rng.uniform(0.4, 0.75)
    left = float(rng.choice([0.0, 1 - width, rng.uniform(0.1, 0.3)]))
    _building(canvas, left, top, min(1.0, left + width), horizon + 0.03)
    if left + width < 0.75 and rng.random() < 0.4:
        _building(canvas, left + width, min(horizon - 0.18, top + 0.16), 1, horizon + 0.03)
    _ground(canvas, str(rng.choice(["dirt-merged", "pavement-merged", "road", "gravel"])), horizon)
    return horizon


def _fenced_site(canvas: Canvas) -> float:
    rng = canvas.rng
    horizon = rng.uniform(0.42, 0.56)
    top = horizon - rng.uniform(0.2, 0.28)
    _sky(canvas, top)
    if rng.random() < 0.45:
        _trees(canvas, max(0.03, top - rng.uniform(0.14, 0.2)), top + 0.03)
    _fence(canvas, top, horizon + 0.02)
    _ground(canvas, str(rng.choice(["gravel", "dirt-merged", "pavement-merged"])), horizon)
    return horizon


def _meadow(canvas: Canvas) -> float:
    rng = canvas.rng
    horizon = rng.uniform(0.36, 0.52)
    _sky(canvas, horizon)
    if rng.random() < 0.5:
        width = rng.uniform(0.36, 0.6)
        left = float(rng.choice([0.0, 1 - width]))
        _building(canvas, left, horizon - rng.uniform(0.2, 0.3), left + width, horizon + 0.03)
    _ground(canvas, "grass-merged", horizon)
    return horizon


def _brick_yard(canvas: Canvas) -> float:
    rng = canvas.rng
    horizon = rng.uniform(0.46, 0.62)
    top = 0.0
    if rng.random() < 0.4:
        top = rng.uniform(0.14, 0.22)
        _sky(canvas, top)
    _bricks(canvas, top, horizon + 0.02)
    if top:
        canvas.line([(0, top), (1, top)], 2, (190, 182, 172))
    _ground(canvas, str(rng.choice(["pavement-merged", "gravel", "dirt-merged"])), horizon, 0.0)
    return horizon


def _room(canvas: Canvas) -> float:
    """A room under fit-out: ceiling with panels, walls, tiled floor."""
    rng = canvas.rng
    horizon, top = rng.uniform(0.56, 0.7), rng.uniform(0.14, 0.24)
    left, right = rng.uniform(0.0, 0.18), rng.uniform(0.82, 1.0)
    tiled = rng.random() < 0.3
    label = "wall-tile" if tiled else "wall-other-merged"
    wall = pick(rng, ((218, 212, 190), (198, 210, 214), (226, 206, 180), (196, 204, 176)))
    outer_top, outer_floor = top - 0.16, horizon + 0.22
    canvas.region(label, box(0, 0, 1, 1), shade(wall, 0.88))
    canvas.region(label, box(left, top, right, horizon), wall)
    if tiled:
        for x in np.arange(left, right, 0.09):
            canvas.line([(x, top), (x, horizon)], 0.5, shade(wall, 0.84))
        for y in np.arange(horizon, top, -0.09):
            canvas.line([(left, y), (right, y)], 0.5, shade(wall, 0.84))
    ceiling = vary(rng, (240, 240, 244), 4)
    above = [(0, outer_top), (left, top), (right, top), (1, outer_top), (1, -1), (0, -1)]
    canvas.region("ceiling-merged", above, ceiling)
    for x in np.linspace(-0.4, 1.4, 9):
        canvas.line([(left + (right - left) * x, top), (1.5 * x - 0.25, top - 0.24)], 0.6, shade(ceiling, 0.8))
    canvas.line([(0, top * 0.45), (1, top * 0.45)], 0.6, shade(ceiling, 0.8))
    lamp, high, low = rng.uniform(0.25, 0.6), top * 0.3, top * 0.6
    canvas.detail([(lamp, low), (lamp + 0.2, low), (lamp + 0.22, high), (lamp - 0.02, high)], (255, 252, 226))
    floor = pick(rng, ((124, 108, 96), (104, 112, 122), (140, 116, 88)))
    below = [(0, outer_floor), (left, horizon), (right, horizon), (1, outer_floor), (1, 2), (0, 2)]
    canvas.region("floor-other-merged", below, floor)
    for x in np.linspace(-1, 2, 13):
        far = (left + (right - left) * x, horizon + (0.0 if 0 <= x <= 1 else 0.5))
        canvas.line([far, (0.5 + (x - 0.5) * 2.2, 1.1)], 0.6, shade(floor, 0.8))
    for depth in (0.12, 0.32, 0.62):
        y = horizon + (1 - horizon) * depth
        inset = max(0.0, 1 - depth * (1 - horizon) / 0.22)
        canvas.line([(left * inset, y), (1 - (1 - right) * inset, y)], 0.6, shade(floor, 0.8))
    canvas.line([(left, horizon), (right, horizon)], 1.2, shade(wall, 0.6))
    if rng.random() < 0.55:
        x, y = rng.uniform(left + 0.08, right - 0.45), top + 0.07
        wide, tall = rng.uniform(0.26, 0.36), rng.uniform(0.22, 0.28)
        canvas.detail(box(x - 0.02, y - 0.02, x + wide + 0.02, y + tall + 0.025), (250, 250, 250))
        canvas.region("window-other", box(x, y, x + wide, y + tall), pick(rng, ((158, 204, 236), (126, 180, 226))))
        canvas.line([(x + wide / 2, y), (x + wide / 2, y + tall)], 1.2, (250, 250, 250))
    return horizon


@dataclass(frozen=True)
class Layout:
    """A kind of place."""

    paint: Callable[[Canvas], float]  # draws it and returns at which fraction of the height its floor begins
    indoors: bool = False
    outdoors: bool = True
    wall: bool = False
    weight: float = 1.0  # how often it is chosen, relative to other fitting places


LAYOUTS: dict[str, Layout] = {
    "open_site": Layout(_open_site),
    "building_site": Layout(_building_site),
    "fenced_site": Layout(_fenced_site),
    "meadow": Layout(_meadow),
    "brick_yard": Layout(_brick_yard, indoors=True, wall=True),
    "room": Layout(_room, indoors=True, outdoors=False, wall=True, weight=2.5),
}


def draw_backdrop(layout: Layout, rng: np.random.Generator, noise: NoiseBank, height: int, width: int) -> Backdrop:
    """Paint a place of ``height`` × ``width`` pixels."""
    canvas = Canvas(rng, noise, height, width)
    horizon = layout.paint(canvas)
    rgb, labels = canvas.finish()
    standing = (height * (horizon + 0.06), height * 0.97)
    mounting = (height * (horizon - 0.12), height * (horizon - 0.03)) if layout.wall else None
    return Backdrop(rgb, labels, standing, mounting)
