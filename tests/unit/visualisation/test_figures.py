from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from construction_panoptic.visualisation import (
    ClassTable,
    class_balance_figure,
    pq_figure,
    training_figure,
)


def bar_widths(ax: Axes) -> dict[str, float]:
    """Length of the bar of each class name; without a bar the class is missing."""
    names = [label.get_text() for label in ax.get_yticklabels()]
    patches = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    return {names[round(patch.get_y() + patch.get_height() / 2)]: patch.get_width() for patch in patches}


def assert_readable(figure: Figure) -> None:
    """All texts are within the figure, and the names of one axis do not run into one another."""
    FigureCanvasAgg(figure).draw()
    width, height = figure.get_size_inches() * figure.dpi
    for ax in figure.axes:
        low, high = sorted(ax.get_ylim())
        labels = [
            label
            for place, label in zip(ax.get_yticks(), ax.get_yticklabels(), strict=True)
            if low <= place <= high and label.get_text()
        ]
        for text in [*labels, *ax.texts, ax.title]:
            if not text.get_text():
                continue
            box = text.get_window_extent()
            assert box.x0 >= -1, text
            assert box.y0 >= -1, text
            assert box.x1 <= width + 1, text
            assert box.y1 <= height + 1, text
        boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.y0)
        assert all(lower.y1 <= upper.y0 + 1 for lower, upper in pairwise(boxes))


def test_pq_figure_has_bars_only_for_present_classes(quality: dict[str, Any], classes: ClassTable) -> None:
    figure = pq_figure(quality, classes)
    things, stuff = figure.axes
    assert bar_widths(things) == {"wheel loader": pytest.approx(72)}
    assert bar_widths(stuff) == {"sky": pytest.approx(48), "ground": 0}
    assert [text.get_text() for text in things.texts] == ["72.0", "n/a"]
    assert "Things 72.0" in figure.get_suptitle()
    assert_readable(figure)


def test_class_balance_figure(classes: ClassTable) -> None:
    counts = pd.DataFrame({"class_id": [1, 2, 3], "train": [1, 4000, 2], "val": [0, 9, 1]})
    figure = class_balance_figure(counts, classes)
    things, stuff = figure.axes
    assert stuff.get_xscale() == things.get_xscale() == "log"
    assert [text.get_text() for text in stuff.texts] == ["4000 / 9", "1 / 0"]
    assert [patch.get_width() for patch in stuff.patches if isinstance(patch, Rectangle)] == [4000, 1, 9, 0]
    assert_readable(figure)


@pytest.mark.parametrize("draw", [pq_figure, class_balance_figure])
def test_64_classes_are_readable(draw: Callable[..., Figure], many_classes: ClassTable) -> None:
    rng = np.random.default_rng(0)
    per_class = {str(i): dict.fromkeys(("pq", "sq", "rq"), float(rng.random())) for i in range(1, 65)}
    table = pd.DataFrame({"class_id": range(1, 65), "train": range(64), "val": range(64)})
    figure = draw({"All": {"pq": 0.5}, "per_class": per_class} if draw is pq_figure else table, many_classes)
    assert sum(len(ax.get_yticklabels()) for ax in figure.axes) == 64
    assert_readable(figure)


def test_one_class_is_readable() -> None:
    one = ClassTable({5: "crane"}, {5: (1, 2, 3)}, {5: True})
    figure = class_balance_figure(pd.DataFrame({"class_id": [5], "train": [0], "val": [0]}), one)
    assert_readable(figure)
    assert not class_balance_figure(pd.DataFrame({"class_id": [], "train": [], "val": []}), ClassTable({}, {}, {})).axes


@pytest.mark.parametrize("epochs", [1, 3, 300])
def test_training_figure(epochs: int) -> None:
    epoch = np.arange(1, epochs + 1)
    history = pd.DataFrame({"epoch": epoch, "train/loss": 5 / epoch, "val/pq": 1 - 1 / (epoch + 1), "train/lr": 1e-4})
    figure = training_figure(history, "mask_head")
    loss, pq, rate = figure.axes
    assert loss.lines[0].get_ydata() == pytest.approx(5 / epoch)
    assert pq.lines[0].get_ydata() == pytest.approx(100 * (1 - 1 / (epoch + 1)))
    assert pq.lines[1].get_xdata() == [epochs]
    assert rate.get_yscale() == "log"
    assert_readable(figure)
    low, high = loss.get_xlim()
    ticks = [tick for tick in loss.get_xticks() if low <= tick <= high]
    assert ticks
    assert all(float(tick).is_integer() for tick in ticks)


def test_training_figure_of_nothing() -> None:
    figure = training_figure(pd.DataFrame({"epoch": [1]}), "detection")
    assert "nothing was logged" in figure.texts[0].get_text()
