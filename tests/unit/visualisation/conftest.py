import colorsys
from typing import Any

import pytest

from construction_panoptic.visualisation import ClassTable


def make_classes(things: int, stuff: int) -> ClassTable:
    """Stuff has the ids 1 … ``stuff``, things follow; colours are far apart; names have up to five words."""
    words = ("concrete", "mixer", "machine", "for", "ceilings")
    ids = range(1, things + stuff + 1)
    names = {i: "_".join([f"class{i}", *words[: i % 5]]) for i in ids}
    colors = {}
    for i in ids:
        red, green, blue = colorsys.hsv_to_rgb(i * 0.618 % 1, 0.9, 0.5 + 0.1 * (i % 4))
        colors[i] = (round(255 * red), round(255 * green), round(255 * blue))
    return ClassTable(names, colors, {i: i > stuff for i in ids})


@pytest.fixture
def classes() -> ClassTable:
    """Two stuff classes (1 sky, 2 ground) and two thing classes (3 wheel_loader, 4 crane)."""
    return ClassTable(
        {1: "sky", 2: "ground", 3: "wheel_loader", 4: "crane"},
        {1: (70, 130, 180), 2: (160, 120, 60), 3: (220, 40, 40), 4: (40, 160, 40)},
        {1: False, 2: False, 3: True, 4: True},
    )


@pytest.fixture
def many_classes() -> ClassTable:
    """48 thing and 16 stuff classes."""
    return make_classes(48, 16)


@pytest.fixture
def quality() -> dict[str, Any]:
    """A result with a PQ of 0 (ground) and an absent class (crane), both 0 in ``per_class``."""
    zero = {"pq": 0.0, "sq": 0.0, "rq": 0.0}
    return {
        "All": {"pq": 0.4, "sq": 0.56, "rq": 0.48, "n": 3},
        "Things": {"pq": 0.72, "sq": 0.8, "rq": 0.9, "n": 1},
        "Stuff": {"pq": 0.24, "sq": 0.4, "rq": 0.3, "n": 2},
        "per_class": {
            "1": {"pq": 0.48, "sq": 0.8, "rq": 0.6, "isthing": False, "present": True},
            "2": {**zero, "isthing": False, "present": True},
            "3": {"pq": 0.72, "sq": 0.8, "rq": 0.9, "isthing": True, "present": True},
            "4": {**zero, "isthing": True, "present": False},
        },
    }
