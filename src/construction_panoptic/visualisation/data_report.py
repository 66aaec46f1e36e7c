"""The data report: one HTML page without other files, readable on a phone."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd
from PIL import Image

from construction_panoptic.visualisation.classes import display_name
from construction_panoptic.visualisation.overlays import Picture

PICTURE_SIDE = 420  # px, the longest side of a picture in the page
_STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.45 system-ui,sans-serif;margin:0 auto;max-width:70rem;padding:1rem;overflow-wrap:anywhere}
h1{font-size:1.5rem}h2{font-size:1.2rem;margin-top:2rem}h3{font-size:1rem;margin:1.2rem 0 .3rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem}
th,td{padding:.2rem .6rem;text-align:right;border-bottom:1px solid #8884;white-space:nowrap}
th:first-child,td:first-child{text-align:left}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(9rem,1fr));gap:.6rem}
.facts div{border:1px solid #8886;border-radius:.5rem;padding:.5rem}.facts b{display:block;font-size:1.2rem}
.sheet{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(17rem,100%),1fr));gap:.8rem}
figure{margin:0}figure img{width:100%;height:auto;border-radius:.3rem}figcaption{font-size:.8rem}
.bar{display:inline-block;height:.7rem;background:#3b7dd8;border-radius:.2rem;vertical-align:middle}
"""


@dataclass(frozen=True)
class ReportPicture:
    """A picture of the report: uint8 [h, w, 3], and what stands below it."""

    picture: Picture
    caption: str


def data_report(
    summary: Mapping[str, Any],
    counts: pd.DataFrame,
    distributions: Mapping[str, Mapping[str, int]],
    suspicious: Sequence[ReportPicture],
    examples: Mapping[str, Sequence[ReportPicture]],
) -> str:
    """Set the report.

    Args:
        summary: the content of ``dataset_summary.json``.
        counts: a row a class, see `annotations.summary.class_counts`.
        distributions: by title, how many fall under each label, such as images by their number of segments.
        suspicious: images worth a look.
        examples: by class name, ground truth of some of its images.

    Returns:
        An HTML page in ASCII; pictures are inside.
    """
    present = counts[(counts["images_total"] > 0) | (counts["rejected"] > 0)]
    parts = [
        "<h1>Data report</h1>",
        _facts(summary),
        "<h2>Classes</h2>",
        _class_table(present),
        "<h2>Rejected records</h2>",
        _bars(summary["rejected"]["by_reason"]) or "<p>Nothing was rejected.</p>",
        *(f"<h2>{escape(title)}</h2>{_bars(values)}" for title, values in distributions.items()),
        "<h2>Worth a look</h2>",
        _sheet(suspicious) or "<p>No image stands out.</p>",
        "<h2>Ground truth by class</h2>",
        *(f"<h3>{escape(display_name(name))}</h3>{_sheet(pictures)}" for name, pictures in examples.items()),
    ]
    page = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Data report</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    return page.encode("ascii", "xmlcharrefreplace").decode("ascii")


def _facts(summary: Mapping[str, Any]) -> str:
    whole, fringe = summary["all"], summary.get("fringe", {})
    void = whole["void_share"]
    facts = {
        "images": f"{whole['images']:,}",
        "train / val": f"{summary['train']['images']:,} / {summary['val']['images']:,}",
        "groups of look-alikes": f"{summary['groups']:,}",
        "segments": f"{whole['segments']:,}",
        "things": f"{whole['thing_segments']:,}",
        "segments an image": whole["segments_per_image"],
        "void": "–" if void is None else f"{100 * void:.1f} %",
        "images without stuff": f"{whole['images_without_stuff']:,}",
        "images without things": f"{whole['images_without_things']:,}",
        "rejected": f"{summary['rejected']['total']:,}",
    }
    if fringe:
        name = f"leftover stuff within {fringe['within_pixels']} px of things, before → after"
        facts[name] = f"{fringe['pixels_before']:,} → {fringe['pixels_after']:,} px"
    cells = (f"<div><b>{escape(str(value))}</b>{escape(name)}</div>" for name, value in facts.items())
    return f'<div class="facts">{"".join(cells)}</div>'


def _class_table(counts: pd.DataFrame) -> str:
    columns = ["images_train", "images_val", "segments_train", "segments_val", "rejected"]
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in ["class", "kind", *columns])
    rows = [
        f"<tr><td>{escape(display_name(str(row['class'])))}</td><td>{escape(str(row['kind']))}</td>"
        + "".join(f"<td>{int(row[name]):,}</td>" for name in columns)
        + "</tr>"
        for _, row in counts.sort_values("segments_total", ascending=False, kind="stable").iterrows()
    ]
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _bars(values: Mapping[str, int]) -> str:
    if not values:
        return ""
    most = max(1, *values.values())
    rows = (
        f'<tr><td>{escape(name)}</td><td>{count:,}</td><td style="text-align:left">'
        f'<span class="bar" style="width:{8 * count / most:.2f}rem"></span></td></tr>'
        for name, count in values.items()
    )
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def _sheet(pictures: Iterable[ReportPicture]) -> str:
    figures = [
        f'<figure><img loading="lazy" alt="{escape(item.caption, quote=True)}" '
        f'src="data:image/jpeg;base64,{_jpeg(item.picture)}"><figcaption>{escape(item.caption)}</figcaption></figure>'
        for item in pictures
    ]
    return f'<div class="sheet">{"".join(figures)}</div>' if figures else ""


def _jpeg(picture: Picture) -> str:
    image = Image.fromarray(picture)
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=75)
    return base64.b64encode(stream.getvalue()).decode("ascii")
