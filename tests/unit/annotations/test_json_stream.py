"""Reading JSON in parts is reading it at once."""

import json
import pickle
import tracemalloc
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from construction_panoptic.annotations import json_stream
from construction_panoptic.annotations.json_stream import JSONDocument, LongList, json_members, json_parts

pytestmark = pytest.mark.medium

scalar = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5)
value = st.recursive(scalar, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=3), v, max_size=3))
document = st.dictionaries(st.sampled_from(["images", "annotations", "a\n"]), value, max_size=3) | value
damage = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from('[]{},:"\\0-+eE.1nI \n')), max_size=2)


def read(content: bytes) -> list[tuple[str, Any]] | None:
    """Read a document in parts; None: it is no JSON."""
    try:
        return [
            (name, [*value] if isinstance(value, Iterator) else value) for name, value in json_members(BytesIO(content))
        ]
    except (ValueError, RecursionError):
        return None


def read_at_once(content: bytes) -> list[tuple[str, Any]] | None:
    pairs: list[tuple[str, Any]] = []

    def remember(found: list[tuple[str, Any]]) -> dict[str, Any]:
        pairs[:] = found  # the last one is the document itself
        return dict(found)

    try:
        whole = json.loads(content, object_pairs_hook=remember)
    except (ValueError, RecursionError):
        return None
    return pairs if isinstance(whole, dict) else []


@settings(max_examples=300, deadline=None)
@given(
    content=document,
    changes=damage,
    chunk=st.integers(1, 20),
    indent=st.sampled_from([None, 1]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le"]),
)
@example(
    content={"a\n": 1e300, "images": [12345, -1.5e-7, float("-inf")]},
    changes=[],
    chunk=1,
    indent=None,
    encoding="utf-8",
)
def test_parts_are_the_whole(
    content: Any, changes: list[tuple[float, str]], chunk: int, indent: int | None, encoding: str
) -> None:
    text = json.dumps(content, indent=indent, ensure_ascii=chunk % 2 == 0)
    for place, character in changes:
        text = text[: int(place * len(text))] + character + text[int(place * len(text)) + 1 :]
    encoded = text.encode(encoding, "surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_CHUNK", chunk)
        # Not-a-number differs from itself, its text does not.
        assert repr(read(encoded)) == repr(read_at_once(encoded))


def test_names_that_come_twice_are_given_twice() -> None:
    assert read(b'{"images": [1], "b": 2, "images": [3, 4]}') == [("images", [1]), ("b", 2), ("images", [3, 4])]


def test_lists_that_are_not_looked_at_are_passed_over() -> None:
    assert [name for name, _ in json_members(BytesIO(b'{"a": [1, [2], {}], "b": []}'))] == ["a", "b"]


def test_what_is_wrong_is_said_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "_CHUNK", 10)
    content = json.dumps({"images": list(range(100))}).encode()
    wrong = content.replace(b"57,", b"57;")
    with pytest.raises(ValueError, match=f"Expecting ',' delimiter: character {wrong.index(b';')}"):
        [list(value) for _, value in json_members(BytesIO(wrong))]


def test_long_lists_take_little_memory() -> None:
    item = {"id": 1, "segmentation": [[float(number) for number in range(24)]]}
    content = "".join(json_parts({"annotations": iter([item] * 100_000)})).encode()
    assert len(content) > 15 << 20
    tracemalloc.start()
    count = sum(1 for _, items in json_members(BytesIO(content)) for _ in items)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 100_000
    assert peak < 8 << 20


@pytest.mark.parametrize("document", [{}, {"images": [], "b": [1], "annotations": [{"z": 1.5, "a": "é"}, 2], "a": {}}])
def test_a_document_in_a_file_is_the_one_in_memory(document: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(document))
    found = pickle.loads(pickle.dumps(JSONDocument(tmp_path / "a.json")))
    assert list(found) == list(document)
    for name, value in document.items():
        assert isinstance(found[name], LongList) == (name in ("images", "annotations"))
        assert [*found[name]] == [*found[name]] == [*value], "as often as it is asked for"
    lists = {name: iter(value) for name, value in found.items() if isinstance(value, LongList)}
    assert "".join(json_parts({**found, **lists}, sort_keys=True)) == json.dumps(document, sort_keys=True)


def test_one_value_without_end_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "_LONGEST_VALUE", 5 << 20)
    with pytest.raises(ValueError, match="a value is longer than"):
        list(json_members(BytesIO(b'{"info": "' + b"x" * (20 << 20))))
