"""JSON documents with lists that are longer than memory."""

import json
from collections.abc import Iterator, Mapping
from typing import Any


def json_parts(document: Mapping[str, Any]) -> Iterator[str]:
    """Give the text of a JSON object in parts; together they are what ``json.dumps`` gives.

    Args:
        document: its values are JSON types; one that is an iterator becomes a list, item by item.

    Raises:
        ValueError: NaN or infinity, which JSON does not have.
    """
    before = "{"
    for name, value in document.items():
        yield f"{before}{json.dumps(name)}: "
        before = ", "
        if isinstance(value, Iterator):
            yield "["
            for position, item in enumerate(value):
                yield f"{', ' if position else ''}{json.dumps(item, allow_nan=False)}"
            yield "]"
        else:
            yield json.dumps(value, allow_nan=False)
    yield "{}" if before == "{" else "}"
