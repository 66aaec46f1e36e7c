"""Both engines draw what a chart says, so that it can be read."""

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from construction_panoptic.evaluation.tables import SCORES, quality_table
from construction_panoptic.visualisation import ClassTable, interactive, still
from construction_panoptic.visualisation.charts import (
    BarChart,
    CurveChart,
    calibration_chart,
    class_balance_chart,
    loss_budget_chart,
    pq_chart,
    training_chart,
)
from tests.unit.visualisation.test_error_charts import CALIBRATION, budget


def balance(train: list[int], val: list[int]) -> BarChart:
    names = [f"class_with_a_name_{k}" for k in range(len(train))]
    table = pd.DataFrame({"class": names, "kind": "thing", "segments_train": train, "segments_val": val})
    return class_balance_chart(table)


def training(epochs: int) -> CurveChart:
    epoch = np.arange(1, epochs + 1)
    losses = {"train/loss": 5 / epoch, "val/loss": 6 / epoch}
    return training_chart(pd.DataFrame({"epoch": epoch, **losses, "val/pq": 1 - 1 / (epoch + 1), "train/lr": 1e-4}))


def full(classes: ClassTable) -> BarChart:
    """64 classes."""
    rng = np.random.default_rng(0)
    means = [{"name": name, "pq": 0.5} for name in ("All", "Things", "Stuff")]
    kinds = {i: "thing" if classes.is_thing[i] else "stuff" for i in range(1, 65)}
    rows = [
        {"name": classes.names[i], "kind": kind, **dict.fromkeys(SCORES, rng.random())} for i, kind in kinds.items()
    ]
    return pq_chart(pd.DataFrame([*means, *rows]))


def bar_lengths(ax: Axes) -> dict[str, float]:
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
            if text.get_text():
                box = text.get_window_extent()
                assert min(box.x0, box.y0) >= -1, text
                assert box.x1 <= width + 1, text
                assert box.y1 <= height + 1, text
        boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.y0)
        assert all(lower.y1 <= upper.y0 + 1 for lower, upper in pairwise(boxes))


def test_bars_have_their_lengths_and_names(quality: dict[str, Any], classes: ClassTable) -> None:
    chart = pq_chart(quality_table(quality, classes.names))
    figure = still.draw(chart)
    things, stuff = figure.axes
    assert bar_lengths(things) == {"wheel loader": pytest.approx(72)}
    assert bar_lengths(stuff) == {"sky": pytest.approx(48), "ground": 0}
    assert [text.get_text() for text in stuff.texts] == ["48.0", "0.0"]
    assert figure.get_suptitle() == chart.title
    drawn = interactive.draw(chart)
    [bar] = [trace for trace in drawn.data if isinstance(trace, go.Bar) and trace.xaxis == "x2"]
    assert bar.x == (pytest.approx(48), 0)
    assert [drawn.layout.yaxis2.ticktext[place].strip() for place in bar.y] == ["sky", "ground"]
    assert drawn.layout.yaxis2.range[1] < bar.y[0] < bar.y[-1] < drawn.layout.yaxis2.range[0]
    assert [note.text for note in drawn.layout.annotations] == ["Things", "Stuff"]


def test_a_logarithmic_axis_has_no_zero() -> None:
    chart = balance([5000, 2, 1], [900, 1, 0])
    assert [ax.get_xscale() for ax in still.draw(chart).axes] == ["log"]
    drawn = interactive.draw(chart)
    assert drawn.layout.xaxis.type == "log"
    assert all(value is None or value > 0 for trace in drawn.data for value in trace.x)
    low, high = drawn.layout.xaxis.range
    assert 10**low < 1
    assert 10**high > 5000


def test_stacked_bars_fill_the_axis() -> None:
    chart = loss_budget_chart(budget())
    drawn = interactive.draw(chart)
    assert drawn.layout.barmode == "stack"
    assert [sum(bar.x[k] for bar in drawn.data) for k in range(4)] == pytest.approx([100] * 4)
    rights = [
        patch.get_x() + patch.get_width() for patch in still.draw(chart).axes[0].patches if isinstance(patch, Rectangle)
    ]
    assert max(rights) == pytest.approx(100)


def test_64_classes_fit_on_a_screen(many_classes: ClassTable) -> None:
    chart = full(many_classes)
    assert_readable(still.draw(chart))
    figure = interactive.draw(chart)
    assert figure.layout.height <= 800
    domains = [figure.layout[f"xaxis{k}"].domain for k in ("", 2, 3)]
    assert domains[0][1] < domains[1][0] < domains[1][1] < domains[2][0]
    assert all(len(name) <= 29 for axis in ("yaxis", "yaxis2") for name in figure.layout[axis].ticktext)


@pytest.mark.parametrize("chart", [balance([1], [0]), balance([4000, 2], [9, 1]), loss_budget_chart(budget())])
def test_bars_are_readable(chart: BarChart) -> None:
    assert_readable(still.draw(chart))


@pytest.mark.parametrize("epochs", [1, 3, 300])
def test_curves_are_drawn_over_whole_epochs(epochs: int) -> None:
    figure = still.draw(training(epochs))
    loss, pq, rate = figure.axes
    epoch = np.arange(1, epochs + 1)
    assert loss.lines[0].get_ydata() == pytest.approx(5 / epoch)
    assert loss.lines[1].get_ydata() == pytest.approx(6 / epoch)
    assert pq.lines[1].get_xdata() == [epochs]
    assert rate.get_yscale() == "log"
    assert_readable(figure)
    low, high = loss.get_xlim()
    ticks = [tick for tick in loss.get_xticks() if low <= tick <= high]
    assert ticks
    assert all(float(tick).is_integer() for tick in ticks)
    drawn = interactive.draw(training(epochs))
    assert drawn.data[0].y == pytest.approx(5 / epoch)
    assert [trace.name for trace in drawn.data if trace.marker.symbol == "star"] == [drawn.data[3].name]
    assert drawn.layout.yaxis3.type == "log"


def test_nothing_to_draw_is_said() -> None:
    nothing = training_chart(pd.DataFrame({"epoch": [1]}))
    assert "nothing was logged" in still.draw(nothing).texts[0].get_text()
    assert "nothing was logged" in interactive.draw(nothing).layout.annotations[0].text
    assert not still.draw(balance([], [])).axes
    assert "0 of 0" in interactive.draw(balance([], [])).layout.annotations[0].text


def test_figures_are_plain_json(quality: dict[str, Any], classes: ClassTable) -> None:
    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    for chart in (
        pq_chart(quality_table(quality, classes.names)),
        balance([8, 1], [2, 0]),
        training(10),
        calibration_chart(CALIBRATION),
    ):
        text = interactive.draw(chart).to_json()
        assert "bdata" not in text
        json.loads(text, parse_constant=refuse)


def test_a_chart_for_a_page_has_its_text_and_colour() -> None:
    svg = still.svg(calibration_chart(CALIBRATION))
    assert svg.startswith("<svg")
    assert "boxes</text>" in svg
    assert "currentColor" in svg
    assert svg == still.svg(calibration_chart(CALIBRATION))
