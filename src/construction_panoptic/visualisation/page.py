"""Parts of an HTML page without other files, readable on a phone and on a dark ground."""

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from PIL import Image

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
.stack{display:flex;height:.8rem;width:clamp(7rem,30vw,12rem);border-radius:.2rem;overflow:hidden}
.key{display:inline-block;margin-right:1rem}.key i{display:inline-block;width:.8rem;height:.8rem;border-radius:.2rem}
svg{width:100%;max-width:34rem;height:auto;font:12px system-ui,sans-serif}
.grid{font-size:.75rem}.grid td,.grid th{padding:.1rem .3rem;border:1px solid #8882}
.grid th{vertical-align:bottom}.grid thead th{writing-mode:vertical-rl;text-align:left}
.grid th:first-child{position:sticky;left:0;background:Canvas}
"""


class Markup(str):
    """HTML that is put into a page as it is; every other text is escaped."""

    __slots__ = ()


@dataclass(frozen=True)
class ReportPicture:
    """A picture of a report: uint8 [h, w, 3], and what stands below it."""

    picture: Picture
    caption: str


@dataclass(frozen=True)
class Line:
    """A line of a chart: its name, its colour (CSS) and points (x, y)."""

    name: str
    color: str
    points: Sequence[tuple[float, float]]


def html_page(title: str, parts: Iterable[str]) -> str:
    """Set a page in ASCII; it needs nothing outside itself."""
    page = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>{''.join(parts)}</body></html>\n"
    )
    return page.encode("ascii", "xmlcharrefreplace").decode("ascii")


def facts(values: Mapping[str, Any]) -> str:
    """Set numbers in boxes, each over its name."""
    cells = (f"<div><b>{escape(str(value))}</b> {escape(name)}</div>" for name, value in values.items())
    return f'<div class="facts">{"".join(cells)}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str = "") -> str:
    """Set a table that scrolls by itself where it is too wide; ``grid`` is a narrow one with upright headings."""
    titles = "".join(f"<th>{_text(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    if kind == "grid":
        body = body.replace("<tr><td>", "<tr><th>")
    return (
        f'<div class="wide"><table class="{kind}"><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def bars(values: Mapping[str, int]) -> str:
    """Set counts in a table with bars; empty for none."""
    if not values:
        return ""
    most = max(1, *values.values())
    rows = (
        f'<tr><td>{escape(name)}</td><td>{count:,}</td><td style="text-align:left">'
        f'<span class="bar" style="width:{8 * count / most:.2f}rem"></span></td></tr>'
        for name, count in values.items()
    )
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def stacked_bar(shares: Mapping[str, float], colors: Mapping[str, str]) -> Markup:
    """A bar of fixed width whose parts are to each other as ``shares``; what a part is shows on hover."""
    parts = (
        f'<i title="{escape(name, quote=True)} {share:.1f}" style="flex:{share:.4f} 0 0;background:{colors[name]}"></i>'
        for name, share in shares.items()
        if share > 0
    )
    return Markup(f'<span class="stack">{"".join(parts)}</span>')


def legend(colors: Mapping[str, str]) -> str:
    """Name the colours of bars or lines."""
    keys = (
        f'<span class="key"><i style="background:{color}"></i> {escape(name)}</span>' for name, color in colors.items()
    )
    return f"<p>{''.join(keys)}</p>"


def sheet(pictures: Iterable[ReportPicture]) -> str:
    """Set pictures side by side, as many as there is room for; empty for none."""
    figures = [
        f'<figure><img loading="lazy" alt="{escape(item.caption, quote=True)}" '
        f'src="data:image/jpeg;base64,{_jpeg(item.picture)}"><figcaption>{escape(item.caption)}</figcaption></figure>'
        for item in pictures
    ]
    return f'<div class="sheet">{"".join(figures)}</div>' if figures else ""


def line_chart(lines: Sequence[Line], *, x_title: str, y_title: str, y_top: float = 1.0, diagonal: bool = False) -> str:
    """Draw lines over x from 0 to 1 as an SVG picture in the page.

    Args:
        lines: the lines; a point whose y is NaN is left out.
        x_title: what x is.
        y_title: what y is.
        y_top: end of the y axis, which starts at 0.
        diagonal: also draw the line from corner to corner.
    """
    width, height, left, bottom = 420, 260, 46, 40

    def place(x: float, y: float) -> tuple[float, float]:
        return left + x * (width - left - 12), 10 + (1 - y / y_top) * (height - bottom - 10)

    grid, texts = [], []
    for step in range(6):
        x, y = place(step / 5, step / 5 * y_top)
        grid.append(f"M{left} {y:.1f}H{width - 12}M{x:.1f} 10V{height - bottom}")
        texts.append(f'<text x="{x:.1f}" y="{height - bottom + 16}" text-anchor="middle">{step / 5:.1f}</text>')
        texts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{step / 5 * y_top:g}</text>')
    middle = (height - bottom + 10) / 2
    texts.append(f'<text x="{width / 2:g}" y="{height - 6}" text-anchor="middle">{escape(x_title)}</text>')
    texts.append(
        f'<text transform="translate(12 {middle:g}) rotate(-90)" text-anchor="middle">{escape(y_title)}</text>'
    )
    if diagonal:
        (x0, y0), (x1, y1) = place(0, 0), place(1, y_top)
        texts.append(f'<path d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}" stroke="#888" stroke-dasharray="4"/>')
    for line in lines:
        points = [place(x, y) for x, y in line.points if not math.isnan(y)]
        texts.append(
            f'<polyline fill="none" stroke-width="2" stroke="{line.color}" '
            f'points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'
        )
        texts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{line.color}"/>' for x, y in points]
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" fill="currentColor"><title>{escape(y_title)}</title>'
        f'<path d="{"".join(grid)}" stroke="#8884" fill="none"/>{"".join(texts)}</svg>'
        + legend({line.name: line.color for line in lines})
    )


def _text(cell: str) -> str:
    return cell if isinstance(cell, Markup) else escape(cell)


def _jpeg(picture: Picture) -> str:
    image = Image.fromarray(picture)
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=75)
    return base64.b64encode(stream.getvalue()).decode("ascii")
