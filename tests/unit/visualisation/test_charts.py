import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from construction_panoptic.visualisation import (
    ClassTable,
    class_balance_chart,
    pq_chart,
    size_histogram,
    training_curves,
)


def bars(figure: go.Figure) -> list[go.Bar]:
    return [trace for trace in figure.data if isinstance(trace, go.Bar)]


def texts(figure: go.Figure) -> list[go.Scatter]:
    return [trace for trace in figure.data if trace.type == "scatter" and trace.mode == "text"]


def names_on(figure: go.Figure, trace: Any) -> list[str]:
    """The class names at the axis of a trace, by its rows."""
    axis = figure.layout["yaxis" + trace.yaxis[1:]]
    return [axis.ticktext[axis.tickvals.index(row)].strip() for row in trace.y]


def test_pq_bars_have_the_values_and_the_order(quality: dict[str, Any], classes: ClassTable) -> None:
    figure = pq_chart(quality, classes)
    things, stuff = bars(figure)
    assert names_on(figure, things) == ["wheel loader", "crane"]
    assert names_on(figure, stuff) == ["sky", "ground"]
    assert things.x == (pytest.approx(72), None)
    assert stuff.x == (pytest.approx(48), 0)
    assert stuff.text == ("48.0", "0.0")
    assert list(things.customdata[0]) == ["wheel loader", pytest.approx(80), pytest.approx(90)]
    assert figure.layout.title.text.startswith("PQ: All 40.0 (3 classes), Things 72.0")
    assert [note.text for note in figure.layout.annotations] == ["Things", "Stuff"]
    assert things.marker.color[0] != stuff.marker.color[0]
    top, bottom = figure.layout.yaxis.range[1], figure.layout.yaxis.range[0]
    assert top < things.y[0] < things.y[-1] < bottom


def test_an_absent_class_is_blank_and_a_zero_is_not(quality: dict[str, Any], classes: ClassTable) -> None:
    figure = pq_chart(quality, classes)
    things, stuff = bars(figure)
    assert things.x[1] is None
    assert things.text[1] is None
    blank_things, blank_stuff = texts(figure)
    assert names_on(figure, blank_things) == ["crane"]
    assert [text.strip() for text in blank_things.text] == ["n/a"]
    assert not blank_stuff.y
    assert pq_chart(quality, classes, present=[1, 2]).data[0].x == (None, None)
    assert stuff.x[1] == 0


def test_64_classes_fit_on_a_screen(many_classes: ClassTable) -> None:
    rng = np.random.default_rng(0)
    per_class = {str(i): {"pq": float(rng.random()), "sq": 0.9, "rq": 0.5} for i in range(1, 65)}
    figure = pq_chart({"All": {"pq": 0.5}, "per_class": per_class}, many_classes)
    assert [len(trace.y) for trace in bars(figure)] == [24, 24, 16]
    assert figure.layout.height <= 800
    values = [value for trace in bars(figure)[:2] for value in trace.x]
    assert values == sorted(values, reverse=True)
    assert sorted(values) == pytest.approx(sorted(100 * per_class[str(i)]["pq"] for i in range(17, 65)))
    domains = [figure.layout[f"xaxis{k}"].domain for k in ("", 2, 3)]
    assert domains[0][1] < domains[1][0] < domains[1][1] < domains[2][0]
    assert all(len(name) <= 29 for axis in ("yaxis", "yaxis2") for name in figure.layout[axis].ticktext)


def test_one_class_and_none() -> None:
    one = ClassTable({5: "crane"}, {5: (1, 2, 3)}, {5: True})
    figure = pq_chart({"All": {"pq": 1.0, "n": 1}, "per_class": {"5": {"pq": 1.0, "sq": 1.0, "rq": 1.0}}}, one)
    assert bars(figure)[0].x == (100.0,)
    empty = pq_chart({"All": {}, "per_class": {}}, ClassTable({}, {}, {}))
    assert "n/a" in empty.layout.annotations[0].text


def counts(train: list[int], val: list[int]) -> pd.DataFrame:
    return pd.DataFrame({"class_id": [1, 2, 3], "segments_train": train, "segments_val": val})


def test_class_balance_has_both_sides(classes: ClassTable) -> None:
    figure = class_balance_chart(counts([8, 10, 5], [2, 0, 1]), classes)
    train_things, val_things, train_stuff, val_stuff = bars(figure)
    assert names_on(figure, train_things) == ["wheel loader", "crane"]
    assert train_things.x == (5, None)
    assert val_things.x == (1, None)
    assert names_on(figure, train_stuff) == ["ground", "sky"]
    assert train_stuff.x == (10, 8)
    assert val_stuff.x == (None, 2)
    assert [text.strip() for trace in texts(figure) for text in trace.text] == [
        "5 / 1",
        "0 / 0",
        "10 / 0",
        "8 / 2",
    ]
    assert [trace.name for trace in figure.data if trace.showlegend] == ["training", "validation"]
    assert figure.layout.xaxis.type is None
    assert figure.layout.xaxis.range[1] > 10
    assert "3 of 4 classes" in figure.layout.title.text


def test_a_skewed_balance_has_a_logarithmic_axis(classes: ClassTable) -> None:
    figure = class_balance_chart(counts([1, 5000, 2], [0, 900, 1]), classes)
    assert figure.layout.xaxis.type == figure.layout.xaxis2.type == "log"
    low, high = figure.layout.xaxis.range
    assert 10**low < 1
    assert 10**high > 5000
    assert "log" in figure.layout.xaxis.title.text
    assert all(value is None or value > 0 for trace in figure.data for value in trace.x)


def test_images_can_be_counted_too(classes: ClassTable) -> None:
    table = pd.DataFrame({"class_id": [3], "images_train": [7], "images_val": [3]})
    figure = class_balance_chart(table, classes, unit="images")
    assert bars(figure)[0].x == (7, None)
    assert figure.layout.title.text.startswith("Images per class")


def history(epochs: int) -> pd.DataFrame:
    epoch = np.arange(1, epochs + 1)
    return pd.DataFrame(
        {
            "epoch": epoch,
            "train/loss": 10 / epoch,
            "val/loss": 12 / epoch,
            "train/loss_bbox": 1 / epoch,
            "val/ap": np.where(epoch % 2 == 0, epoch / (2 * epochs), np.nan),
            "train/lr": 1e-4,
        }
    )


def test_curves_have_their_points() -> None:
    figure = training_curves(history(40), "detection")
    assert [note.text for note in figure.layout.annotations] == [
        "Total loss",
        "Box L1 loss",
        "Validation box AP (%)",
        "Learning rate",
    ]
    train, val = figure.data[:2]
    assert train.y == pytest.approx(10 / np.arange(1, 41))
    assert val.y == pytest.approx(12 / np.arange(1, 41))
    metric = next(trace for trace in figure.data if trace.name == "AP")
    assert list(metric.x) == list(range(2, 41, 2))
    assert metric.y[-1] == pytest.approx(50)
    star = next(trace for trace in figure.data if trace.marker.symbol == "star")
    assert (star.x[0], star.y[0], star.name) == (40, pytest.approx(50), "best: 50.0 in epoch 40")
    shown = [trace.name for trace in figure.data if trace.showlegend is not False]
    assert len(shown) == len(set(shown))
    assert {"train", "validation", "AP"} <= set(shown)


def test_one_epoch_is_a_visible_point() -> None:
    figure = training_curves(history(1).drop(columns="val/ap"), "detection")
    assert all("markers" in trace.mode for trace in figure.data)


def test_a_history_without_curves_says_so() -> None:
    figure = training_curves(pd.DataFrame({"epoch": [1, 2]}), "mask_head")
    assert not figure.data
    assert "nothing was logged" in figure.layout.annotations[0].text


def test_size_histogram(classes: ClassTable) -> None:
    figure = size_histogram(pd.DataFrame({"category_id": [1, 3, 3], "area": [1, 16, 17]}), classes)
    things, stuff = figure.data
    assert things.x == ("1", "2", "4")
    assert list(things.y) == [0, 0, 2]
    assert list(stuff.y) == [1, 0, 0]


def test_charts_are_plain_json_and_a_page_by_themselves(
    quality: dict[str, Any], classes: ClassTable, tmp_path: Path
) -> None:
    """Kedro-Viz and older plotly.js read lists, not plotly 6's packed arrays; NaN is no JSON."""
    figures = {
        "pq": pq_chart(quality, classes),
        "balance": class_balance_chart(counts([1, 5000, 2], [0, 900, 1]), classes),
        "curves": training_curves(history(10), "detection"),
        "sizes": size_histogram(pd.DataFrame({"category_id": [1, 3], "area": [1, 16]}), classes),
    }

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    for name, figure in figures.items():
        text = figure.to_json()
        assert "bdata" not in text
        json.loads(text, parse_constant=refuse)
        figure.write_html(tmp_path / f"{name}.html")
        assert (tmp_path / f"{name}.html").stat().st_size > 1_000_000
