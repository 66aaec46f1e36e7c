"""Drawings of building materials and site equipment, in units of their width, standing on the lower edge."""

from itertools import pairwise

import numpy as np

from construction_panoptic.sample.painting import Colour, Pen, pick, shade, vary


def aac_blocks(pen: Pen, rng: np.random.Generator) -> None:
    """A stack of pale aerated-concrete blocks on a pallet, seen from a corner (height 0.78)."""
    pale = vary(rng, (222, 222, 226), 6)
    joint = shade(pale, 0.6)
    rows = int(rng.integers(3, 5))
    deep, top, base = 0.26, 0.14, 0.7
    front = 1 - deep
    pen.rectangle(0.02, base, front, 0.78, (128, 92, 56))
    pen.polygon([(front, base), (0.98, base - top), (0.98, 0.66), (front, 0.78)], (98, 70, 44))
    pen.polygon([(0.0, top), (deep, 0.0), (1.0, 0.0), (front, top)], shade(pale, 1.13))
    pen.polygon([(front, top), (1.0, 0.0), (1.0, base - top), (front, base)], shade(pale, 0.72))
    pen.rectangle(0.0, top, front, base, pale)
    height = (base - top) / rows
    for row in range(rows + 1):
        y = top + row * height
        pen.line([(0.0, y), (front, y)], 0.018, joint)
        pen.line([(front, y), (1.0, y - top)], 0.016, shade(joint, 0.8))
        if row < rows:
            start = 0.0 if row % 2 else 0.125
            for x in np.arange(start, front + 0.01, 0.247):
                pen.line([(x, y), (x, y + height)], 0.018, joint)
            middle = front + deep * (0.5 if row % 2 else 0.25)
            rise = top * (middle - front) / deep
            pen.line([(middle, y - rise), (middle, y + height - rise)], 0.016, shade(joint, 0.8))
    for share in (0.35, 0.68):
        pen.line([(front * share, top), (front * share + deep, 0.0)], 0.014, joint)


def _pipe(pen: Pen, x: float, y: float, radius: float, concrete: Colour) -> None:
    """One pipe with its open end at (x, y)."""
    for step in range(9, -1, -1):
        share = step / 9
        tone = shade(concrete, 0.66 + 0.12 * (1 - share))
        pen.ellipse(x + 0.2 * share, y - 0.12 * share, radius, radius, tone)
    pen.ellipse(x, y, radius, radius, shade(concrete, 1.1))
    pen.ellipse(x, y, radius * 0.74, radius * 0.74, (44, 42, 44))
    pen.ellipse(x + radius * 0.12, y + radius * 0.14, radius * 0.56, radius * 0.56, (24, 23, 26))


def rcc_hume_pipes(pen: Pen, rng: np.random.Generator) -> None:
    """Concrete pipes with open ends, stacked as a pyramid or side by side (height 0.86)."""
    concrete = pick(rng, ((176, 172, 164), (164, 164, 162)), 7)
    radius = 0.2
    low = 0.86 - radius
    spots = [(radius, low), (3 * radius - 0.01, low)]
    if rng.random() < 0.75:
        pen.polygon([(radius, low), (3 * radius, low), (2 * radius, low - 0.34)], (50, 48, 50))
        spots.append((2 * radius, low - 0.34))
    for x, y in sorted(spots, reverse=True):
        _pipe(pen, x, y, radius, concrete)
    if len(spots) == 3:
        _pipe(pen, 2 * radius, low - 0.34, radius, concrete)


def water_tank(pen: Pen, rng: np.random.Generator) -> None:
    """A black plastic water tank with ribs, a dome and a lid (height 1.12)."""
    black = vary(rng, (58, 60, 70), 4)
    pen.barrel([(0.0, 0.5, 0.14), (0.07, 0.5, 0.15)], shade(black, 1.3))
    pen.barrel([(0.06, 0.5, 0.17), (0.12, 0.5, 0.32), (0.2, 0.5, 0.44), (0.28, 0.5, 0.48)], black)
    ribs = int(rng.integers(4, 6))
    edges = np.linspace(0.28, 1.12, ribs + 1)
    for low, high in pairwise(edges):
        bend = low + (high - low) * 0.72
        pen.barrel([(low, 0.5, 0.46), (low + 0.02, 0.5, 0.5), (bend, 0.5, 0.5), (high, 0.5, 0.46)], black)
        pen.rectangle(0.05, bend + 0.01, 0.95, bend + 0.045, shade(black, 0.5))
        pen.rectangle(0.2, low + 0.03, 0.3, bend - 0.02, shade(black, 2.1))
    pen.rectangle(0.36, edges[1] + 0.03, 0.78, edges[2] - 0.08, (226, 226, 214))


def fire_extinguishers(pen: Pen, rng: np.random.Generator) -> None:
    """A red fire extinguisher with hose and label (height 2.3)."""
    red = vary(rng, (214, 22, 26), 7)
    pen.barrel([(0.52, 0.46, 0.12), (0.6, 0.46, 0.26), (0.72, 0.46, 0.36), (0.85, 0.46, 0.38), (2.2, 0.46, 0.38)], red)
    pen.barrel([(2.18, 0.46, 0.38), (2.3, 0.46, 0.34)], (60, 16, 18))
    pen.rectangle(0.36, 0.3, 0.56, 0.56, (46, 46, 48))
    pen.polygon([(0.3, 0.22), (0.92, 0.06), (0.95, 0.18), (0.5, 0.32), (0.3, 0.34)], (40, 40, 42))
    pen.line([(0.56, 0.4), (0.86, 0.5), (0.94, 0.9), (0.92, 1.55)], 0.13, (30, 30, 32))
    pen.polygon([(0.85, 1.5), (0.99, 1.5), (1.0, 1.8), (0.84, 1.8)], (24, 24, 26))
    pen.rectangle(0.16, 1.05, 0.7, 1.6, (240, 236, 222))
    pen.rectangle(0.22, 1.15, 0.64, 1.25, shade(red, 0.9))
    pen.rectangle(0.22, 1.36, 0.56, 1.42, (90, 90, 90))


def vitrified_tiles(pen: Pen, rng: np.random.Generator) -> None:
    """Glossy rose tiles with pale joints, a panel that leans back (height 0.86)."""
    rose = pick(rng, ((206, 132, 118), (214, 142, 108), (198, 120, 126)), 6)
    joint = (246, 238, 228)
    columns, rows = 3, int(rng.integers(2, 4))
    corners = np.array([(0.1, 0.0), (0.92, 0.0), (1.0, 0.8), (0.0, 0.8)])

    def at(u: float, v: float) -> tuple[float, float]:
        top = corners[0] + (corners[1] - corners[0]) * u
        bottom = corners[3] + (corners[2] - corners[3]) * u
        x, y = top + (bottom - top) * v
        return float(x), float(y)

    pen.polygon([at(0, 0), at(1, 0), at(1, 1), at(0, 1)], joint)
    pen.polygon([(0.0, 0.8), (1.0, 0.8), (0.98, 0.86), (0.02, 0.86)], shade(rose, 0.55))
    gap_u, gap_v = 0.018, 0.022
    for row in range(rows):
        for column in range(columns):
            u0, u1 = column / columns + gap_u, (column + 1) / columns - gap_u
            v0, v1 = row / rows + gap_v, (row + 1) / rows - gap_v
            tone = shade(rose, rng.uniform(0.9, 1.06))
            pen.polygon([at(u0, v0), at(u1, v0), at(u1, v1), at(u0, v1)], tone)
            middle = u0 + (u1 - u0) * rng.uniform(0.35, 0.5)
            gloss = shade(tone, 1.22)
            pen.polygon([at(u0, v0), at(middle, v0), at(u0, v0 + (v1 - v0) * 0.7)], gloss)


def distribution_transformer(pen: Pen, rng: np.random.Generator) -> None:
    """A grey-green transformer with cooling fins and three bushings (height 1.05)."""
    green = vary(rng, (112, 146, 128), 7)
    pen.rectangle(0.1, 0.96, 0.9, 1.05, (70, 70, 72))
    pen.rectangle(0.14, 0.36, 0.86, 0.98, green)
    for left in (0.0, 0.72):
        for step in range(5):
            x = left + 0.056 * step
            pen.rectangle(x, 0.44, x + 0.034, 0.92, shade(green, 1.18))
            pen.rectangle(x + 0.034, 0.44, x + 0.056, 0.92, shade(green, 0.5))
    pen.rectangle(0.1, 0.34, 0.9, 0.41, shade(green, 0.78))
    for x in (0.3, 0.48, 0.66):
        for step, half in enumerate((0.035, 0.06, 0.06, 0.07)):
            pen.ellipse(x, 0.1 + 0.075 * step, half, 0.04, (152, 70, 42))
        pen.rectangle(x - 0.015, 0.02, x + 0.015, 0.1, (210, 190, 130))
    pen.rectangle(0.4, 0.52, 0.6, 0.64, (238, 206, 40))
    pen.polygon([(0.5, 0.535), (0.54, 0.62), (0.46, 0.62)], (30, 30, 30))
    pen.barrel([(0.74, 0.25, 0.08), (0.96, 0.25, 0.08)], shade(green, 0.92), upright=False)
