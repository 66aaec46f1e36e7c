"""The charts, each of a table; `still.svg` draws them for a page, `interactive.draw` for Kedro-Viz and notebooks."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from construction_panoptic.evaluation.analysis import LOSSES
from construction_panoptic.evaluation.quality import SPLITS
from construction_panoptic.evaluation.tables import SCORES
from construction_panoptic.parallel.workers import blocks_of
from construction_panoptic.visualisation.overlays import display_name

# Colours of Okabe and Ito (2008): distinct for colour-blind readers, and on white as on dark ground.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
BROWN, GREY = "#8C564B", "#888888"
LOSS_COLORS = dict(zip(LOSSES, (SKY, PURPLE, ORANGE, RED), strict=True))

# Rows of one column of bars; more classes are set in several columns.
ROWS_PER_COLUMN = 26
MOST_COLUMNS = 4


class Bars(NamedTuple):
    """Bars of one kind, a value and a hover text for each row; at a thickness of 1 they touch."""

    name: str
    color: str
    values: Sequence[float]
    hover: Sequence[str]
    thickness: float = 0.8


class BarColumn(NamedTuple):
    """One column of a bar chart, its rows from top to bottom; ``notes`` stand at the ends of the bars."""

    title: str
    labels: Sequence[str]
    bars: Sequence[Bars]
    notes: Sequence[str] = ()

    def ends(self) -> list[float]:
        """Give the end of the longest bar of each row."""
        return [max(values) for values in zip(*(bars.values for bars in self.bars), strict=True)]


class BarChart(NamedTuple):
    """Horizontal bars from ``span[0]`` to ``span[1]``, in columns beside each other."""

    title: str
    x_title: str
    columns: Sequence[BarColumn]
    span: tuple[float, float]
    log: bool = False
    stacked: bool = False


class Curve(NamedTuple):
    """Points of one name and colour; ``hover`` has a text a point, if it says more than x and y."""

    name: str
    color: str
    x: Sequence[float]
    y: Sequence[float]
    style: Literal["line", "dashed", "star"] = "line"
    hover: Sequence[str] = ()


class Panel(NamedTuple):
    """One of the small charts of a `CurveChart`; its y axis starts at 0, or is logarithmic."""

    title: str
    curves: Sequence[Curve]
    top: float | None = None
    log: bool = False


class CurveChart(NamedTuple):
    """Panels with one x axis, from ``span[0]`` to ``span[1]``; ``integers``: x takes integers only."""

    title: str
    x_title: str
    panels: Sequence[Panel]
    span: tuple[float, float]
    integers: bool = False

    def grid(self) -> tuple[int, int]:
        """Give the number of panels beside each other, and of rows of them."""
        across = min(len(self.panels), 4 if len(self.panels) > 6 else 3)
        return across, -(-len(self.panels) // across)


class Matrix(NamedTuple):
    """Counts of pairs, those of a row as parts of the row."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    counts: Sequence[Sequence[int]]


class _Row(NamedTuple):
    name: str
    is_thing: bool
    numbers: tuple[float, ...]


def pq_chart(qualities: pd.DataFrame) -> BarChart:
    """Chart the PQ of every class of a `quality_table`, best first, things and stuff apart."""
    classes = qualities.iloc[len(SPLITS) :]
    rows = [
        _Row(display_name(name), kind == "thing", (100 * pq, 100 * sq, 100 * rq))
        for name, kind, pq, sq, rq in classes[["name", "kind", *SCORES]].itertuples(index=False)
    ]
    columns = []
    for title, group in _columns(sorted(rows, key=lambda row: (-row.numbers[0], row.name))):
        hover = ["{}<br>PQ {:.1f}<br>SQ {:.1f}<br>RQ {:.1f}".format(row.name, *row.numbers) for row in group]
        values = [row.numbers[0] for row in group]
        bars = Bars("PQ", BLUE if group[0].is_thing else GREEN, values, hover)
        columns.append(BarColumn(title, [row.name for row in group], [bars], [f"{value:.1f}" for value in values]))
    things = sum(row.is_thing for row in rows)
    counts = len(rows), things, len(rows) - things
    means = zip(SPLITS, qualities["pq"].iloc[: len(SPLITS)], counts, strict=True)
    texts = [f"{split} {percent_text(pq)} ({n} class{'' if n == 1 else 'es'})" for split, pq, n in means]
    return BarChart(f"PQ: {', '.join(texts)}", "PQ (%)", columns, (0, 118))


def percent_text(fraction: float | None) -> str:
    """Give a fraction in percent with one digit, or "n/a" for None and NaN."""
    return "n/a" if fraction is None or np.isnan(fraction) else f"{100 * fraction:.1f}"


def class_balance_chart(counts: pd.DataFrame) -> BarChart:
    """Chart how many segments of each class the training and the validation set have, most frequent first.

    ``counts`` has a row a class: ``class``, ``kind`` (thing, stuff), ``segments_train``, ``segments_val``. The axis is
    logarithmic if the most frequent class has 20 times the median or more, which would hide the rare ones.
    """
    names = ["class", "kind", "segments_train", "segments_val"]
    rows = [
        _Row(display_name(name), kind == "thing", (train, val))
        for name, kind, train, val in counts[names].itertuples(index=False)
        if train + val > 0
    ]
    most = [max(row.numbers) for row in rows]
    log = bool(rows) and max(most) >= 20 * float(np.median(most))
    columns = []
    for title, group in _columns(sorted(rows, key=lambda row: (-sum(row.numbers), row.name))):
        train, val = zip(*(row.numbers for row in group), strict=True)
        hover = [f"{row.name}: {row.numbers[0]} training, {row.numbers[1]} validation" for row in group]
        # The thin bar of the validation set lies over the thick one of the training set.
        bars = [Bars("training", BLUE, train, hover), Bars("validation", ORANGE, val, hover, 0.35)]
        notes = ["{} / {}".format(*row.numbers) for row in group]
        columns.append(BarColumn(title, [row.name for row in group], bars, notes))
    title = f"Segments per class: training / validation ({len(rows)} of {len(counts)} classes occur)"
    top = max(most, default=1)
    span = (0.7, top * 12.0) if log else (0.0, top * 1.45)
    return BarChart(title, "segments (log scale)" if log else "segments", columns, span, log)


def _columns(rows: Sequence[_Row]) -> list[tuple[str, list[_Row]]]:
    """Set rows in titled columns, things before stuff, each short enough for a screen."""
    kinds = {"Things": [row for row in rows if row.is_thing], "Stuff": [row for row in rows if not row.is_thing]}
    limit = ROWS_PER_COLUMN
    while sum(-(-len(group) // limit) for group in kinds.values()) > MOST_COLUMNS:
        limit += 1
    columns = []
    for title, group in kinds.items():
        count = max(1, -(-len(group) // limit))
        for number, part in enumerate(blocks_of(group, -(-len(group) // count))):
            columns.append((f"{title}, continued" if number else title, part))
    return columns


_LOSSES = {
    "loss": "Total loss",
    "loss_ce": "Classification loss",
    "loss_bbox": "Box L1 loss",
    "loss_giou": "Box GIoU loss",
    "class_error": "Class error (%)",
    "cardinality_error": "Cardinality error (queries)",
    "loss_mask": "Mask focal loss",
    "loss_dice": "Mask Dice loss",
}
# AP and PQ select the best checkpoint.
_METRICS = {
    "Validation box AP (%)": {"val/ap": ("AP", GREEN), "val/ap50": ("AP50", PURPLE), "val/ap75": ("AP75", SKY)},
    "Validation PQ (%)": {
        "val/pq": ("PQ", GREEN),
        "val/pq_things": ("PQ things", PURPLE),
        "val/pq_stuff": ("PQ stuff", SKY),
    },
}


def training_chart(history: pd.DataFrame) -> CurveChart:
    """Chart losses, errors, validation metrics and learning rates against the epoch, a panel each.

    ``history`` has a row an epoch: ``epoch``, ``train/<loss>``, ``val/<loss>``, as fractions ``val/ap`` … or ``val/pq``
    …, ``train/lr``, ``train/lr_backbone``, as far as they were logged. Of an epoch logged twice the last row counts.
    """
    history = history.drop_duplicates("epoch", keep="last").sort_values("epoch")
    further = [name.removeprefix("train/") for name in history.columns if name.startswith("train/loss")]
    panels = []
    for loss in dict.fromkeys([*_LOSSES, *further]):
        curves = _curves(history, {f"train/{loss}": ("train", BLUE), f"val/{loss}": ("validation", ORANGE)})
        panels.append(Panel(_LOSSES.get(loss, display_name(loss)), curves))
    for name, metrics in _METRICS.items():
        curves = _curves(history, metrics, 100)
        if curves and curves[0].name in ("AP", "PQ"):
            place = int(np.argmax(curves[0].y))
            epoch, value = curves[0].x[place], curves[0].y[place]
            curves.append(Curve(f"best: {value:.1f} in epoch {epoch:g}", RED, [epoch], [value], "star"))
        panels.append(Panel(name, curves))
    rates = {"train/lr": ("learning rate", BROWN), "train/lr_backbone": ("learning rate, backbone", GREY)}
    positive = history.replace(0, np.nan)  # a schedule may end with 0, for which a logarithmic axis has no place
    panels.append(Panel("Learning rate", _curves(positive, rates), log=True))
    first, last = (float(history["epoch"].min()), float(history["epoch"].max())) if len(history) else (1.0, 1.0)
    room = max(0.5, 0.03 * (last - first))
    panels = [panel for panel in panels if panel.curves]
    return CurveChart("Losses, metrics and learning rates", "epoch", panels, (first - room, last + room), integers=True)


def _curves(history: pd.DataFrame, wanted: Mapping[str, tuple[str, str]], scale: float = 1) -> list[Curve]:
    """Give a curve for each of the wanted columns (with its name and colour) that has finite values."""
    curves = []
    for column in [column for column in wanted if column in history.columns]:
        points = history[["epoch", column]].replace([np.inf, -np.inf], np.nan).dropna()
        if len(points):
            curves.append(Curve(*wanted[column], points["epoch"].tolist(), (points[column] * scale).tolist()))
    return curves


def loss_budget_chart(budget: pd.DataFrame) -> BarChart:
    """Chart a `loss_budget` as one bar for All, Things, Stuff and each class, best class first."""
    rows = sorted_budget(budget)
    labels = [display_name(name) for name in rows["name"]]
    bars = []
    for part, color in {"pq": GREEN, **LOSS_COLORS}.items():
        name = "PQ" if part == "pq" else display_name(part)
        hover = [f"{label}<br>{name} {value:.1f}" for label, value in zip(labels, rows[part], strict=True)]
        bars.append(Bars(name, color, rows[part].tolist(), hover))
    return BarChart("What costs PQ", "points", [BarColumn("", labels, bars)], (0, 100), stacked=True)


def confusion_chart(confusions: pd.DataFrame) -> Matrix:
    """Chart a `confusion_matrix`."""
    confusions = confusions.set_index("true")
    rows, columns = ([display_name(str(name)) for name in axis] for axis in (confusions.index, confusions.columns))
    title = "Classes of the ground truth (rows) and what they were predicted as"
    return Matrix(title, rows, columns, confusions.to_numpy().tolist())


def threshold_chart(thresholds: pd.DataFrame) -> CurveChart:
    """Chart the PQ of a `threshold_curve` against the score threshold, and mark those in use."""
    curves = [
        Curve(name, color, thresholds["threshold"].tolist(), (100 * thresholds[column]).tolist())
        for name, column, color in (("PQ", "pq", GREEN), ("things", "pq_things", BLUE), ("stuff", "pq_stuff", ORANGE))
        if thresholds[column].notna().any()
    ]
    used = thresholds.loc[thresholds["in_use_things"] | thresholds["in_use_stuff"], "threshold"]
    in_use = [Curve(f"in use: {each:g}", GREY, [each] * 2, [0, 100], "dashed") for each in used]
    title = "PQ of training images by the least score of a segment"
    return CurveChart(title, "threshold", [Panel("PQ", [*curves, *in_use], top=100)], (0, 1))


def calibration_chart(calibration: pd.DataFrame) -> CurveChart:
    """Chart the fraction of boxes and segments that are right against their score; see `calibration_table`."""
    curves = [Curve("ideal", GREY, [0, 1], [0, 1], "dashed")]
    for of, color in (("boxes", BLUE), ("segments", ORANGE)):
        rows = calibration[calibration["of"] == of]
        columns = [rows[name].tolist() for name in ("score", "right", "count")]
        hover = [f"score {x:.2f}, right {y:.0%} of {count:,} {of}" for x, y, count in zip(*columns, strict=True)]
        curves.append(Curve(of, color, columns[0], columns[1], hover=hover))
    title = "What scores mean: the fraction that is right, by score"
    return CurveChart(title, "score", [Panel("fraction that is right", curves, top=1)], (0, 1))


def sorted_budget(budget: pd.DataFrame) -> pd.DataFrame:
    """The rows of All, Things and Stuff that are not empty, then the classes, best first."""
    classes = budget.iloc[3:].sort_values("pq", ascending=False, kind="stable")
    return pd.concat([budget.iloc[:3].dropna(subset="pq"), classes])
