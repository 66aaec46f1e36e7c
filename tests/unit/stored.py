"""Tables of annotations for functions that read them from a file."""

from io import BytesIO

import pandas as pd

from construction_panoptic.annotations.tables import StoredTable


def stored(rows: pd.DataFrame) -> StoredTable:
    """A table of these rows in a file."""
    return StoredTable(BytesIO(rows.to_parquet(index=False)))
