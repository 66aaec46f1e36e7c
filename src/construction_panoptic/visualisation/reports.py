"""The reports, each an HTML page: the data set, the evaluation, and all validation images."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from construction_panoptic.evaluation.analysis import LOSSES, best_threshold
from construction_panoptic.evaluation.calibration import calibration_error
from construction_panoptic.visualisation import charts, still
from construction_panoptic.visualisation.examples import DRAWN_ERRORS
from construction_panoptic.visualisation.overlays import ClassTable, display_name
from construction_panoptic.visualisation.page import Markup, ReportPicture, render
from construction_panoptic.visualisation.sheets import Example

_COUNTS = ["images_train", "images_val", "segments_train", "segments_val", "rejected"]
_SIZE_SCORES = ["pq", "sq", "rq", "pq_things", "pq_stuff", "ap", "ar"]


def data_report(
    about: Mapping[str, str],
    summary: Mapping[str, Any],
    counts: pd.DataFrame,
    distributions: Mapping[str, Mapping[str, int]],
    suspicious: Sequence[ReportPicture],
    examples: Mapping[str, Sequence[ReportPicture]],
) -> str:
    """Set the report as an HTML page; see `page.about` and `annotations.summary` for what it is made of.

    ``distributions`` say by title how many fall under each label, such as images by their number of segments;
    ``suspicious`` are images worth a look, ``examples`` ground truth of some images by class name.
    """
    present = counts[(counts["images_total"] > 0) | (counts["rejected"] > 0)]
    present = present.sort_values("segments_total", ascending=False, kind="stable")
    return render(
        "data_report.html.j2",
        title="Data report",
        about=about,
        facts=_data_facts(summary),
        class_head=["class", "kind", *map(display_name, _COUNTS)],
        class_rows=[
            [display_name(row["class"]), row["kind"], *(f"{row[name]:,}" for name in _COUNTS)]
            for row in present.to_dict("records")
        ],
        rejected=summary["rejected"]["by_reason"],
        repaired=summary["repaired"]["by_reason"],
        distributions=distributions,
        suspicious=suspicious,
        examples=examples,
    )


def _data_facts(summary: Mapping[str, Any]) -> dict[str, Any]:
    whole, fringe = summary["all"], summary.get("fringe")
    void = whole["void_share"]
    facts = {
        "images": f"{whole['images']:,}",
        "train / val": f"{summary['train']['images']:,} / {summary['val']['images']:,}",
        "groups of look-alikes": f"{summary['groups']:,}",
        "segments": f"{whole['segments']:,}",
        "things": f"{whole['thing_segments']:,}",
        "segments an image": whole["segments_per_image"],
        "void": "–" if void is None else f"{charts.percent_text(void)} %",
        "images without stuff": f"{whole['images_without_stuff']:,}",
        "images without things": f"{whole['images_without_things']:,}",
        "rejected": f"{summary['rejected']['total']:,}",
        "repaired": f"{summary['repaired']['total']:,}",
    }
    if fringe:
        name = f"leftover stuff within {fringe['within_pixels']} px of things, before → after"
        facts[name] = f"{fringe['pixels_before']:,} → {fringe['pixels_after']:,} px"
    return facts


MOST_CONFUSIONS = 15


def evaluation_report(
    about: Mapping[str, str],
    quality: Mapping[str, Any],
    precision: Mapping[str, Any],
    budget: pd.DataFrame,
    confusions: pd.DataFrame,
    sizes: pd.DataFrame,
    calibration: pd.DataFrame,
    box_errors: pd.DataFrame,
    thresholds: pd.DataFrame,
    threshold: float,
    worst: Sequence[Example],
) -> str:
    """Set the report as an HTML page, of what `quality`, `precision`, `analysis`, `calibration` and `thresholds` give.

    ``threshold`` is the one that the predictions were made with; ``worst`` are the images with the lowest PQ.
    """
    colors = {display_name(name): color for name, color in charts.LOSS_COLORS.items()}
    best, tried = best_threshold(thresholds), thresholds.set_index("threshold")["pq"]
    rows = {of: calibration[calibration["of"] == of] for of in ("boxes", "segments")}
    return render(
        "evaluation_report.html.j2",
        title="Evaluation report",
        about=about,
        facts=_facts(quality, precision) | {"score threshold": f"{threshold:g}"},
        loss_colors={"PQ": charts.GREEN, **colors},
        error_colors=colors,
        budget=[
            {
                "name": row["name"],
                "points": {"PQ": row["pq"], **{display_name(name): row[name] for name in LOSSES}},
                "counts": [int(row[name]) for name in ("tp", "fp", "fn")],
            }
            for row in charts.sorted_budget(budget).to_dict("records")
        ],
        confused=[
            (display_name(true), display_name(predicted), f"{count:,}")
            for true, predicted, count in charts.shown_confusions(confusions)[:MOST_CONFUSIONS]
        ],
        confusions=confusions.set_index("true"),
        sizes=[
            [row["size"], f"{row['true_segments']:,}", *(charts.percent_text(row[name]) for name in _SIZE_SCORES)]
            for row in sizes.to_dict("records")
        ],
        calibration_errors={of: calibration_error(found) for of, found in rows.items() if len(found)},
        calibration_chart=Markup(still.svg(charts.calibration_chart(calibration))),
        threshold=threshold,
        threshold_images=int(thresholds["images"].iloc[0]),
        best=best,
        gain=tried[best] - tried[threshold],
        threshold_chart=Markup(still.svg(charts.threshold_chart(thresholds, threshold))),
        thresholds=[
            [f"{row['threshold']:g}", *map(charts.percent_text, (row["pq"], row["pq_things"], row["pq_stuff"])),
             f"{row['segments']:.1f}"]
            for row in thresholds.to_dict("records")
        ],
        box_errors=[
            [row["error"], row["meaning"], f"{row['count']:,}", charts.percent_text(row["delta_ap"])]
            for row in box_errors.to_dict("records")
        ],
        worst={f"{each.title}: PQ {charts.percent_text(each.quality)}": example_pictures(each) for each in worst},
    )  # fmt: skip


def _facts(quality: Mapping[str, Any], precision: Mapping[str, Any]) -> dict[str, str]:
    means = {f"PQ {name} ({quality[name]['n']})": quality[name]["pq"] for name in ("All", "Things", "Stuff")}
    means |= {score.upper(): quality["All"][score] for score in ("sq", "rq")}
    # COCO's -1: there is no such box.
    means |= {f"box {name}": None if precision[name] == -1 else precision[name] for name in ("AP", "AP50")}
    return {name: charts.percent_text(mean) for name, mean in means.items()}


def example_pictures(example: Example) -> list[ReportPicture]:
    """Give the pictures of an example, the image first, with what they are."""
    captions = ("image", "ground truth", "prediction", "errors")
    pictures = zip((example.image, example.truth, example.prediction, example.errors), captions, strict=True)
    return [ReportPicture(picture, caption) for picture, caption in pictures if picture is not None]


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
        colors={display_name(name): color for name, color in charts.LOSS_COLORS.items()},
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
            "sorted_by": -1 if quality is None else quality,
            "quality": charts.percent_text(quality),
            "errors": ", ".join(f"{count} {kind}" for kind, count in counts.items() if count) or "no error",
            # A class and what became of it, such as 3:missed; the filters look for parts of this text.
            "found": " ".join(sorted(set(rows["category_id"].astype(str) + ":" + rows["outcome"]))),
            "pictures": example_pictures(example)[1:],
        }
