"""Pictures of data and results: overlays and sheets, interactive charts (plotly), still ones (matplotlib).

Functions take the classes as an object with ``names``, ``colors`` and ``is_thing`` by category id, such as
the project's taxonomy, and return a picture or figure; saving is left to the caller.
"""

from construction_panoptic.visualisation.charts import (
    class_balance_chart,
    pq_chart,
    size_histogram,
    training_curves,
)
from construction_panoptic.visualisation.classes import Classes, ClassTable, display_name, legend_entries
from construction_panoptic.visualisation.figures import class_balance_figure, pq_figure, training_figure
from construction_panoptic.visualisation.overlays import boxes_overlay, panoptic_overlay
from construction_panoptic.visualisation.sheets import CELL_SIDE, Example, example_sheet, mosaic

__all__ = [
    "CELL_SIDE",
    "ClassTable",
    "Classes",
    "Example",
    "boxes_overlay",
    "class_balance_chart",
    "class_balance_figure",
    "display_name",
    "example_sheet",
    "legend_entries",
    "mosaic",
    "panoptic_overlay",
    "pq_chart",
    "pq_figure",
    "size_histogram",
    "training_curves",
    "training_figure",
]
