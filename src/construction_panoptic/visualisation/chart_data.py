"""What the charts show, apart from how they are drawn: rows, groups and curves."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import pandas as pd

from construction_panoptic.errors import InputDataError
from construction_panoptic.visualisation.classes import Classes, display_name

Stage = Literal["detection", "mask_head"]

# Colours of Okabe and Ito (2008): distinct for colour-blind readers, and on white as on dark ground.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
BROWN = "#8C564B"
THING_COLOR, STUFF_COLOR = BLUE, GREEN
TRAIN_COLOR, VAL_COLOR, BEST_COLOR = BLUE, ORANGE, RED

# Rows of one column of bars; more classes are set in several columns.
ROWS_PER_COLUMN = 26
MOST_COLUMNS = 4


@dataclass(frozen=True)
class QualityRow:
    """PQ, SQ and RQ of a class in percent; None where the class is absent from the validation set."""

    category_id: int
    name: str
    is_thing: bool
    pq: float | None
    sq: float | None
    rq: float | None


@dataclass(frozen=True)
class CountRow:
    """How many segments or images of a class are on each side of the split."""

    category_id: int
    name: str
    is_thing: bool
    train: int
    val: int


Row = TypeVar("Row", QualityRow, CountRow)


@dataclass(frozen=True)
class Column(Generic[Row]):
    """One column of a bar chart: a title and the rows from top to bottom."""

    title: str
    rows: Sequence[Row]


def quality_rows(
    panoptic_quality: Mapping[str, Any], classes: Classes, present: Collection[int] | None = None
) -> list[QualityRow]:
    """Read the scores of every class, best first, absent classes last.

    Args:
        panoptic_quality: panopticapi's result layout with fractions; see ``charts.pq_chart``.
        classes: names and kinds; a class of the taxonomy that the result lacks counts as absent.
        present: the category ids to be shown with a value; None = as the result says.
    """
    per_class = {int(key): value for key, value in panoptic_quality["per_class"].items()}
    rows = []
    for category_id in sorted(classes.names.keys() | per_class.keys()):
        score = per_class.get(category_id)
        here = _takes_part(score) if present is None else category_id in present and score is not None
        pq, sq, rq = (
            (None if not here or score is None or score[key] is None else 100 * float(score[key]))
            for key in ("pq", "sq", "rq")
        )
        name = display_name(classes.names.get(category_id, str(category_id)))
        rows.append(QualityRow(category_id, name, _is_thing(category_id, score, classes), pq, sq, rq))
    return sorted(rows, key=lambda row: (row.pq is None, -(row.pq or 0), row.name))


def _takes_part(score: Mapping[str, Any] | None) -> bool:
    return score is not None and bool(score.get("present", score.get("n", 1))) and score["pq"] is not None


def _is_thing(category_id: int, score: Mapping[str, Any] | None, classes: Classes) -> bool:
    return bool(classes.is_thing.get(category_id, (score or {}).get("isthing", True)))


def quality_title(panoptic_quality: Mapping[str, Any]) -> str:
    """Give the means in percent on one line, with the number of classes in each."""
    parts = []
    for key in ("All", "Things", "Stuff"):
        mean = panoptic_quality.get(key) or {}
        number = mean.get("n")
        of = "" if number is None else f" ({number} class{'' if number == 1 else 'es'})"
        parts.append(f"{key} {percent_text(mean.get('pq'))}{of}")
    return "PQ: " + ", ".join(parts)


def percent_text(fraction: float | None) -> str:
    """Give a fraction in percent with one digit, or "n/a" for None and NaN."""
    return "n/a" if fraction is None or np.isnan(fraction) else f"{100 * fraction:.1f}"


def count_rows(
    counts: pd.DataFrame, classes: Classes, unit: Literal["segments", "images"] = "segments"
) -> list[CountRow]:
    """Read the counts of every class, most frequent first; a class that is not in ``counts`` has zero.

    Args:
        counts: a row a class: ``class_id`` (or ``category_id``) and ``<unit>_train``, ``<unit>_val`` (or
            ``train``, ``val``).
        classes: names and kinds.
        unit: what is counted.

    Raises:
        InputDataError: a column is missing.
    """
    identity = _column(counts, "class_id", "category_id")
    train, val = (_column(counts, f"{unit}_{side}", side) for side in ("train", "val"))
    found = {int(i): (int(t), int(v)) for i, t, v in zip(counts[identity], counts[train], counts[val], strict=True)}
    rows = [
        CountRow(
            i,
            display_name(classes.names.get(i, str(i))),
            classes.is_thing.get(i, True),
            *found.get(i, (0, 0)),
        )
        for i in sorted(classes.names.keys() | found.keys())
    ]
    return sorted(rows, key=lambda row: (-(row.train + row.val), row.name))


def _column(table: pd.DataFrame, *names: str) -> str:
    for name in names:
        if name in table.columns:
            return name
    raise InputDataError(f"the table has no column {' or '.join(names)}; it has {', '.join(table.columns)}")


def is_skewed(rows: Sequence[CountRow]) -> bool:
    """Whether a linear axis would hide the rare classes: the largest count is 20 times the median or more."""
    totals = [max(row.train, row.val) for row in rows if row.train + row.val > 0]
    return bool(totals) and max(totals) >= 20 * float(np.median(totals))


def columns_of(rows: Sequence[Row], things: str = "Things", stuff: str = "Stuff") -> list[Column[Row]]:
    """Set rows in columns, things before stuff, each column short enough for a screen."""
    groups = [
        (title, [row for row in rows if row.is_thing is kind]) for title, kind in ((things, True), (stuff, False))
    ]
    groups = [(title, group) for title, group in groups if group]
    limit = ROWS_PER_COLUMN
    while sum(-(-len(group) // limit) for _, group in groups) > MOST_COLUMNS:
        limit += 1
    columns = []
    for title, group in groups:
        number = -(-len(group) // limit)
        length = -(-len(group) // number)
        columns += [
            Column(title if start == 0 else f"{title}, continued", group[start : start + length])
            for start in range(0, len(group), length)
        ]
    return columns


@dataclass(frozen=True)
class Curve:
    """One line of a panel: its name, colour and points."""

    name: str
    color: str
    epochs: list[float]
    values: list[float]


@dataclass(frozen=True)
class Panel:
    """One small chart of the training curves."""

    title: str
    curves: Sequence[Curve]
    log: bool = False
    selecting: str | None = None

    def highest(self) -> float:
        """Give the highest finite value of all curves, 1 if there is none above 0."""
        values = [value for curve in self.curves for value in curve.values if 0 < value < np.inf]
        return max(values, default=1.0)

    def best(self) -> tuple[float, float] | None:
        """Give epoch and value of the highest point of the curve that selects the best checkpoint, if any."""
        for curve in self.curves:
            if curve.name == self.selecting:
                position = int(np.argmax(curve.values))
                return curve.epochs[position], curve.values[position]
        return None


# (title, columns without "train/" or "val/") of the losses, in the order of the recipe's loss.
_LOSSES: dict[Stage, list[tuple[str, str]]] = {
    "detection": [
        ("Total loss", "loss"),
        ("Classification loss", "loss_ce"),
        ("Box L1 loss", "loss_bbox"),
        ("Box GIoU loss", "loss_giou"),
        ("Class error (%)", "class_error"),
        ("Cardinality error (queries)", "cardinality_error"),
    ],
    "mask_head": [
        ("Total loss", "loss"),
        ("Mask focal loss", "loss_mask"),
        ("Mask Dice loss", "loss_dice"),
    ],
}
# (title, [(column, name, colour)]); the first metric selects the best checkpoint.
_METRICS: dict[Stage, tuple[str, list[tuple[str, str, str]]]] = {
    "detection": (
        "Validation box AP (%)",
        [("val/ap", "AP", GREEN), ("val/ap50", "AP50", PURPLE), ("val/ap75", "AP75", SKY)],
    ),
    "mask_head": (
        "Validation PQ (%)",
        [("val/pq", "PQ", GREEN), ("val/pq_things", "PQ things", PURPLE), ("val/pq_stuff", "PQ stuff", SKY)],
    ),
}
_RATES = [("lr", "learning rate", BROWN), ("lr_backbone", "learning rate, backbone", "#999999")]


def curve_panels(history: pd.DataFrame, stage: Stage) -> list[Panel]:
    """Arrange what was logged in panels; what was not logged, or only as NaN, is left out.

    Args:
        history: a row an epoch: ``epoch``, ``train/<loss>``, ``val/<loss>``, as fractions ``val/ap``
            (detection) or ``val/pq`` (mask head), ``train/lr``, ``train/lr_backbone``. Of an epoch that was
            logged twice, after a resume, the last row counts.
        stage: which training it was.

    Raises:
        InputDataError: there is no column ``epoch``.
    """
    _column(history, "epoch")
    history = history.drop_duplicates("epoch", keep="last").sort_values("epoch")
    panels = []
    for title, column in _LOSSES[stage]:
        sides = (("train", "train", TRAIN_COLOR), ("val", "validation", VAL_COLOR))
        panels.append(
            Panel(title, _curves(history, [(f"{side}/{column}", name, color) for side, name, color in sides]))
        )
    title, metrics = _METRICS[stage]
    panels.append(Panel(title, _curves(history, metrics, 100), selecting=metrics[0][1]))
    rates = [(prefix + column, name, color) for column, name, color in _RATES for prefix in ("train/", "")]
    panels.append(Panel("Learning rate", _curves(history, rates), log=True))
    return [panel for panel in panels if panel.curves]


def epoch_span(panels: Sequence[Panel]) -> tuple[float, float]:
    """Give the range of epochs that all panels share, with a little room at both ends."""
    epochs = [epoch for panel in panels for curve in panel.curves for epoch in curve.epochs]
    room = max(0.5, 0.03 * (max(epochs) - min(epochs)))
    return min(epochs) - room, max(epochs) + room


def _curves(history: pd.DataFrame, wanted: list[tuple[str, str, str]], scale: float = 1) -> list[Curve]:
    curves = []
    for column, name, color in wanted:
        if column not in history.columns:
            continue
        points = history[["epoch", column]].dropna()
        values = [float(value) * scale for value in points[column]]
        if values:
            curves.append(Curve(name, color, [float(epoch) for epoch in points["epoch"]], values))
    return curves


def size_table(areas: pd.DataFrame, classes: Classes) -> pd.DataFrame:
    """Count segments by the square root of their area, in bins that double from 1 pixel on (2^k to 2^(k+1)).

    Args:
        areas: a row a segment: ``category_id`` and ``area`` in pixels, at least 1.
        classes: kinds of the categories.

    Returns:
        Columns ``side`` (lower limit of the bin in pixels), ``things``, ``stuff``; one row at least.

    Raises:
        InputDataError: a column is missing.
    """
    categories, area = areas[_column(areas, "category_id")], areas[_column(areas, "area")]
    bins = np.floor(0.5 * np.log2(area.to_numpy(dtype=float).clip(1))).astype(int)
    thing = np.array([classes.is_thing.get(int(category), True) for category in categories], dtype=bool)
    first, last = (int(bins.min()), int(bins.max())) if len(bins) else (0, 0)
    counts = {
        name: np.bincount(bins[kind] - first, minlength=last - first + 1)
        for name, kind in (("things", thing), ("stuff", ~thing))
    }
    return pd.DataFrame({"side": 2.0 ** np.arange(first, last + 1), **counts})
