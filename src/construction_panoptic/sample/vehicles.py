"""Drawings of machines, each facing right, in units of their width, standing on the lower edge."""

import numpy as np

from construction_panoptic.sample.painting import Colour, Pen, pick, shade, vary

GLASS: Colour = (150, 190, 205)
FRAME: Colour = (52, 52, 56)


def wheel_loader(pen: Pen, rng: np.random.Generator) -> None:
    """A yellow wheel loader, bucket down or raised (height 0.66)."""
    yellow = vary(rng, (240, 190, 20), 8)
    dark = shade(yellow, 0.72)
    lift = rng.uniform(0, 0.24)
    pen.polygon([(0.02, 0.26), (0.1, 0.2), (0.42, 0.2), (0.42, 0.48), (0.04, 0.48)], yellow)
    pen.rectangle(0.03, 0.3, 0.1, 0.44, FRAME)
    for step in range(3):
        pen.rectangle(0.14 + 0.06 * step, 0.26, 0.17 + 0.06 * step, 0.36, dark)
    pen.rectangle(0.36, 0.38, 0.66, 0.5, dark)
    pen.polygon([(0.54, 0.26), (0.7, 0.3), (0.72, 0.46), (0.54, 0.46)], yellow)
    pen.polygon([(0.34, 0.02), (0.56, 0.02), (0.6, 0.3), (0.34, 0.3)], FRAME)
    pen.polygon([(0.37, 0.06), (0.45, 0.06), (0.45, 0.27), (0.37, 0.27)], GLASS)
    pen.polygon([(0.47, 0.06), (0.54, 0.06), (0.57, 0.27), (0.47, 0.27)], shade(GLASS, 1.12))
    pen.rectangle(0.32, 0.0, 0.59, 0.035, yellow)
    tip = 0.46 - lift
    pen.line([(0.6, 0.3), (0.76, 0.3 - lift * 0.5), (0.86, tip)], 0.075, yellow)
    pen.line([(0.62, 0.38), (0.84, tip + 0.02)], 0.03, FRAME)
    bucket = [(0.82, tip - 0.12), (0.9, tip - 0.04), (1.0, tip + 0.12), (0.98, tip + 0.17), (0.84, tip + 0.16)]
    pen.polygon(bucket, (112, 104, 92))
    pen.polygon([(0.84, tip - 0.08), (0.97, tip + 0.12), (0.86, tip + 0.12)], (72, 68, 62))
    for x in (0.2, 0.64):
        pen.wheel(x, 0.515, 0.145, yellow)


def hydra_crane(pen: Pen, rng: np.random.Generator) -> None:
    """An orange pick-and-carry crane with a long boom and a hook (height 0.9)."""
    orange = vary(rng, (236, 104, 22), 8)
    dark = shade(orange, 0.7)
    raised = rng.uniform(0.0, 0.22)
    tip = (0.95, 0.06 + raised)
    pen.rectangle(0.06, 0.62, 0.78, 0.76, orange)
    pen.rectangle(0.06, 0.7, 0.78, 0.74, dark)
    pen.polygon([(0.05, 0.5), (0.22, 0.46), (0.22, 0.66), (0.05, 0.66)], dark)
    pen.polygon([(0.24, 0.4), (0.44, 0.4), (0.5, 0.64), (0.24, 0.64)], FRAME)
    pen.polygon([(0.27, 0.44), (0.42, 0.44), (0.46, 0.58), (0.27, 0.58)], GLASS)
    pen.polygon([(0.56, 0.56), (0.76, 0.58), (0.78, 0.66), (0.56, 0.66)], orange)
    middle = (0.1 + 0.6 * (tip[0] - 0.1), 0.5 + 0.6 * (tip[1] - 0.5))
    pen.line([(0.1, 0.5), middle], 0.13, orange)
    pen.line([middle, tip], 0.085, shade(orange, 1.12))
    pen.line([(0.14, 0.5), (middle[0] - 0.04, middle[1] + 0.03)], 0.025, dark)
    pen.line([(0.5, 0.6), (0.44, 0.36 + raised * 0.4)], 0.05, (120, 120, 124))
    pen.ellipse(*tip, 0.05, 0.05, dark)
    drop = tip[1] + rng.uniform(0.18, 0.3)
    pen.line([tip, (tip[0], drop)], 0.035, FRAME)
    pen.polygon([(tip[0] - 0.05, drop), (tip[0] + 0.05, drop), (tip[0], drop + 0.1)], (60, 60, 64))
    pen.line([(0.72, 0.68), (0.8, 0.72)], 0.04, FRAME)
    for x in (0.22, 0.65):
        pen.wheel(x, 0.78, 0.12, shade(orange, 1.1))


def _cab(pen: Pen, colour: Colour, left: float, top: float, bottom: float) -> None:
    right = 0.985
    pen.polygon([(left, top), (right - 0.07, top), (right, top + 0.15), (right, bottom), (left, bottom)], colour)
    upper, lower = top + 0.035, top + 0.15
    pen.polygon([(left + 0.06, upper), (right - 0.085, upper), (right - 0.03, lower), (left + 0.06, lower)], GLASS)
    pen.rectangle(left + 0.06, top + 0.2, right - 0.06, top + 0.215, shade(colour, 0.7))
    pen.rectangle(left, bottom - 0.05, right, bottom, shade(colour, 0.55))
    pen.rectangle(right - 0.03, bottom - 0.1, right, bottom - 0.06, (250, 240, 190))


def transit_mixer(pen: Pen, rng: np.random.Generator) -> None:
    """A concrete truck: white drum with spiral stripes and a green cab (height 0.6)."""
    green = pick(rng, ((24, 140, 84), (18, 122, 98), (44, 152, 64)))
    drum = vary(rng, (226, 226, 218), 6)
    pen.rectangle(0.03, 0.42, 0.97, 0.5, FRAME)
    pen.polygon([(0.0, 0.3), (0.08, 0.26), (0.1, 0.46), (0.03, 0.46)], shade(green, 0.7))
    pen.rectangle(0.6, 0.28, 0.7, 0.46, shade(green, 0.8))
    along = (0.03, 0.1, 0.24, 0.4, 0.54, 0.66, 0.7)
    centres = (0.13, 0.14, 0.18, 0.22, 0.27, 0.32, 0.335)
    halves = (0.075, 0.1, 0.165, 0.195, 0.165, 0.09, 0.06)
    pen.barrel(list(zip(along, centres, halves, strict=True)), drum, upright=False)
    for x in (0.12, 0.28, 0.44, 0.58):
        centre, half = (float(np.interp(x, along, values)) for values in (centres, halves))
        above, below = x - 0.035, x + 0.07  # the stripe leans
        upper = [(above, centre - half * 0.94), (above + 0.045, centre - half * 0.92)]
        pen.polygon([*upper, (below + 0.045, centre + half * 0.9), (below, centre + half * 0.92)], green)
    pen.ellipse(0.03, 0.13, 0.025, 0.075, (70, 70, 70))
    _cab(pen, green, 0.73, 0.13, 0.48)
    for x in (0.15, 0.31, 0.83):
        pen.wheel(x, 0.505, 0.092, (170, 170, 168))


def dump_truck(pen: Pen, rng: np.random.Generator) -> None:
    """A tipper truck with a ribbed blue box and a heap of sand (height 0.56)."""
    blue = pick(rng, ((28, 78, 176), (38, 92, 196), (22, 62, 150)))
    cab = pick(rng, ((236, 236, 232), (222, 226, 232)), 5)
    heap = pick(rng, ((176, 136, 84), (150, 122, 92)))
    left, middle, right = rng.uniform(0.0, 0.06, 3)
    pen.polygon([(0.06, 0.14), (0.18, 0.06 + left), (0.34, middle), (0.5, 0.05 + right), (0.62, 0.14)], heap)
    pen.rectangle(0.04, 0.4, 0.97, 0.46, FRAME)
    pen.polygon([(0.0, 0.12), (0.67, 0.12), (0.65, 0.4), (0.06, 0.4)], blue)
    pen.polygon([(0.0, 0.12), (0.67, 0.12), (0.67, 0.155), (0.01, 0.155)], shade(blue, 1.25))
    for x in np.linspace(0.12, 0.58, 5):
        pen.rectangle(x, 0.16, x + 0.025, 0.39, shade(blue, 0.68))
    pen.polygon([(0.63, 0.07), (0.77, 0.07), (0.77, 0.1), (0.66, 0.12)], shade(blue, 0.85))
    _cab(pen, cab, 0.7, 0.1, 0.45)
    for x in (0.14, 0.32, 0.83):
        pen.wheel(x, 0.465, 0.095, (150, 150, 150))


def worker(pen: Pen, rng: np.random.Generator) -> None:
    """A site worker with a high-visibility vest and a hard hat (height 2.6)."""
    vest = pick(rng, ((255, 128, 10), (206, 240, 30)), 6)
    trousers = pick(rng, ((40, 48, 84), (58, 54, 60)), 6)
    hat = pick(rng, ((250, 250, 245), (250, 214, 20)), 4)
    skin = pick(rng, ((208, 160, 128), (142, 96, 68)), 6)
    pen.rectangle(0.24, 1.45, 0.47, 2.55, trousers)
    pen.rectangle(0.53, 1.45, 0.76, 2.55, shade(trousers, 0.85))
    pen.rectangle(0.2, 2.46, 0.48, 2.6, (40, 34, 30))
    pen.rectangle(0.53, 2.46, 0.82, 2.6, (40, 34, 30))
    pen.line([(0.22, 0.75), (0.1, 1.45)], 0.17, shade(vest, 0.85))
    pen.line([(0.78, 0.75), (0.9, 1.45)], 0.17, shade(vest, 0.85))
    pen.polygon([(0.16, 0.64), (0.84, 0.64), (0.8, 1.58), (0.2, 1.58)], vest)
    pen.rectangle(0.19, 1.05, 0.81, 1.15, (236, 236, 224))
    pen.rectangle(0.2, 1.3, 0.8, 1.4, (236, 236, 224))
    pen.ellipse(0.5, 0.36, 0.19, 0.26, skin)
    pen.ellipse(0.5, 0.2, 0.24, 0.2, hat)
    pen.rectangle(0.24, 0.22, 0.78, 0.28, hat)
