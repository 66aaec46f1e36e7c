"""The reports, each an HTML page: the data set, a training, the evaluation, and all validation images."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from PIL import Image

from construction_panoptic.evaluation.analysis import best_thresholds
from construction_panoptic.evaluation.calibration import calibration_error
from construction_panoptic.evaluation.quality import SPLITS
from construction_panoptic.evaluation.tables import SCORES
from construction_panoptic.visualisation import charts, still
from construction_panoptic.visualisation.examples import DRAWN_ERRORS
from construction_panoptic.visualisation.overlays import ClassTable, display_name
from construction_panoptic.visualisation.page import ReportPicture, render
from construction_panoptic.visualisation.sheets import Example

_COUNTS = ["groups", "images_train", "images_val", "segments_train", "segments_val", "rejected"]
_SIZE_SCORES = ["pq", "sq", "rq", "pq_things", "pq_stuff", "ap", "ar"]
_TIMINGS = ("time/epoch_seconds", "train/images_per_second", "train/data_wait_share")
MOST_CONFUSIONS = 15


def data_report(
    about: Mapping[str, str],
    summary: Mapping[str, Any],
    counts: pd.DataFrame,
    distributions: Mapping[str, Mapping[str, int]],
    suspicious: Sequence[ReportPicture],
    examples: Mapping[str, Sequence[ReportPicture]],
    audit: pd.DataFrame,
    truth: Image.Image,
) -> str:
    """Set the report as an HTML page; see `page.about` and `annotations.summary` for what it is made of.

    ``distributions`` say by title how many fall under each label, such as images by their number of segments;
    ``suspicious`` are images worth a look, ``examples`` ground truth of some images by class name. ``audit`` is of
    `audit_split`, ``truth`` shows some images with their ground truth.
    """
    present = counts[(counts["images_total"] > 0) | (counts["rejected"] > 0)]
    present = present.sort_values("segments_total", ascending=False, kind="stable")
    groups = present["class"].map(audit.set_index("name")["groups"]).fillna(0).astype(int)
    classes = present.assign(**{"class": present["class"].map(display_name), "groups": groups})
    return render(
        "data_report.html.j2",
        title="Data report",
        about=about,
        summary=summary,
        count_names=[display_name(name) for name in _COUNTS],
        classes=classes[["class", "kind", *_COUNTS]].to_numpy().tolist(),
        balance=still.svg(charts.class_balance_chart(counts)),
        truth=truth,
        distributions=distributions,
        suspicious=suspicious,
        examples=examples,
    )


def training_report(
    about: Mapping[str, str], history: pd.DataFrame, timings: pd.DataFrame, progress: Image.Image
) -> str:
    """Set the report as an HTML page; see `train` for ``history`` and ``timings``, `ProgressSheet` for ``progress``."""
    seconds, speed, waiting = (timings.get(name, pd.Series(dtype=float)) for name in _TIMINGS)
    facts = {
        "epochs": len(history),
        "minutes": f"{seconds.sum() / 60:.1f}",
        "images a second": f"{speed.median():.3g}" if len(speed) else None,
        "of the time waiting for images": f"{100 * waiting.median():.0f} %" if len(waiting) else None,
    }
    curves = still.svg(charts.training_chart(history))
    return render(
        "training_report.html.j2", title="Training report", about=about, facts=facts, curves=curves, progress=progress
    )


def evaluation_report(
    about: Mapping[str, str],
    quality: Mapping[str, Any],
    precision: Mapping[str, Any],
    examples: Image.Image,
    worst: Sequence[Example],
    qualities: pd.DataFrame,
    precisions: pd.DataFrame,
    budget: pd.DataFrame,
    confusions: pd.DataFrame,
    sizes: pd.DataFrame,
    calibration: pd.DataFrame,
    box_errors: pd.DataFrame,
    thresholds: pd.DataFrame,
) -> str:
    """Set the report as an HTML page, of what `quality`, `precision`, `analysis`, `calibration` and `thresholds` give.

    ``examples`` shows images spread over the validation set, ``worst`` are those with the lowest PQ; ``qualities`` and
    ``precisions`` are of `evaluation.tables`.
    """
    named = qualities.assign(name=qualities["name"].map(display_name), kind=qualities["kind"].fillna(""))
    chosen = best_thresholds(thresholds)
    in_use = " / ".join(f"{threshold:g}" for threshold in chosen["in_use"].unique())
    rows = {of: calibration[calibration["of"] == of] for of in ("boxes", "segments")}
    return render(
        "evaluation_report.html.j2",
        title="Evaluation report",
        about=about,
        facts=_facts(quality, precision) | {"score threshold": in_use},
        pq_chart=still.svg(charts.pq_chart(qualities)),
        examples=examples,
        qualities=named[["name", "kind", *SCORES]].to_numpy().tolist(),
        precisions=precisions.to_numpy().tolist(),
        loss_colors={"PQ": charts.GREEN, **charts.LOSS_COLORS},
        error_colors=charts.LOSS_COLORS,
        budget=charts.sorted_budget(budget).rename(columns={"pq": "PQ"}).to_dict("records"),
        confused=most_confused(confusions),
        confusions=confusions.set_index("true"),
        sizes=sizes[["size", "true_segments", *_SIZE_SCORES]].to_numpy().tolist(),
        calibration_errors={of: calibration_error(found) for of, found in rows.items() if len(found)},
        calibration_chart=still.svg(charts.calibration_chart(calibration)),
        threshold_images=int(thresholds["images"].iloc[0]),
        chosen=chosen.to_dict("records"),
        threshold_chart=still.svg(charts.threshold_chart(thresholds)),
        thresholds=[
            [f"{row['threshold']:g}", row["pq"], row["pq_things"], row["pq_stuff"], f"{row['segments']:.1f}"]
            for row in thresholds.to_dict("records")
        ],
        box_errors=box_errors[["error", "meaning", "count", "delta_ap"]].to_numpy().tolist(),
        worst=worst,
    )


def most_confused(confusions: pd.DataFrame) -> list[list[Any]]:
    """List [class, predicted class, segments] of the pairs of a `confusion_matrix`, most frequent first."""
    pairs = confusions.drop(columns="missed").melt("true", var_name="predicted", value_name="segments")
    confused = (pairs["true"] != pairs["predicted"]) & (pairs["true"] != "spurious") & (pairs["segments"] > 0)
    pairs = pairs[confused].sort_values(["segments", "true", "predicted"], ascending=[False, True, True])
    shown = pairs.head(MOST_CONFUSIONS).assign(**{n: pairs[n].map(display_name) for n in ("true", "predicted")})
    return shown.to_numpy().tolist()


def _facts(quality: Mapping[str, Any], precision: Mapping[str, Any]) -> dict[str, float | None]:
    means = {f"PQ {name} ({quality[name]['n']})": quality[name]["pq"] for name in SPLITS}
    means |= {score.upper(): quality["All"][score] for score in ("sq", "rq")}
    # COCO's -1: there is no such box.
    return means | {f"box {name}": None if precision[name] == -1 else precision[name] for name in ("AP", "AP50")}


MOST_IMAGES = 200  # about 50 kB each
THUMBNAIL_SIDE = 320  # px


def validation_page(
    about: Mapping[str, str],
    truth: Mapping[str, Any],
    segments: pd.DataFrame,
    examples: Mapping[int, float | None],
    drawn: Iterable[Example],
) -> str:
    """Set the page of ``examples``: PQ (0…1 or None) of the images that are shown, by their ids.

    ``drawn`` are these in the same order, each drawn when its turn has come; ``truth`` is COCO panoptic, ``segments``
    are of `match_segments`.
    """
    shown = segments[segments["image_id"].isin(list(examples))]
    names = ClassTable.from_categories(truth["categories"]).names
    occurring = {category: display_name(names[category]) for category in shown["category_id"].unique()}
    return render(
        "validation_images.html.j2",
        title="Validation images",
        about=about,
        colors=charts.LOSS_COLORS,
        classes=sorted(occurring.items(), key=lambda item: item[1]),
        kinds=list(DRAWN_ERRORS),
        left_out=len(truth["images"]) - len(examples),
        cards=_cards(shown, examples, drawn),
    )


def _cards(
    segments: pd.DataFrame, examples: Mapping[int, float | None], drawn: Iterable[Example]
) -> Iterator[dict[str, Any]]:
    for (image_id, quality), example in zip(examples.items(), drawn, strict=True):
        rows = segments[segments["image_id"] == image_id]
        counts = {
            display_name(kind): int(((rows["outcome"] == kind) & (rows["side"] == side)).sum())
            for kind, side in DRAWN_ERRORS.items()
        }
        yield {
            "name": example.title,
            "quality": quality,
            "errors": ", ".join(f"{count} {kind}" for kind, count in counts.items() if count) or "no error",
            # A class and what became of it, such as 3:missed; the filters look for parts of this text.
            "found": " ".join(sorted(set(rows["category_id"].astype(str) + ":" + rows["outcome"]))),
            "pictures": {name: picture for name, picture in example.pictures.items() if name != "Image"},
        }
