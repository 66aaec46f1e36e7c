"""JSON documents with lists that are longer than memory."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from io import BufferedReader, TextIOWrapper
from json.decoder import WHITESPACE, JSONDecodeError, JSONDecoder  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any, BinaryIO

_CHUNK = 1 << 20  # characters
_LONGEST_VALUE = 1 << 28
_NUMBER_REST = 3  # a number may go on after this many characters that are none by themselves: 1e+5


def json_parts(document: Mapping[str, Any], *, sort_keys: bool = False) -> Iterator[str]:
    """Give the text of a JSON object in parts; together they are what ``json.dumps`` gives.

    Args:
        document: its values are JSON types; one that is an iterator becomes a list, item by item.
        sort_keys: as of ``json.dumps``.

    Raises:
        ValueError: NaN or infinity, which JSON does not have.
    """
    before = "{"
    dumps = partial(json.dumps, allow_nan=False, sort_keys=sort_keys)
    for name, value in sorted(document.items()) if sort_keys else document.items():
        yield f"{before}{json.dumps(name)}: "
        before = ", "
        if isinstance(value, Iterator):
            yield "["
            for position, item in enumerate(value):
                yield f"{', ' if position else ''}{dumps(item)}"
            yield "]"
        else:
            yield dumps(value)
    yield "{}" if before == "{" else "}"


def json_members(file: BinaryIO) -> Iterator[tuple[str, Any]]:
    """Give name and value of each member of the JSON object in a file, as ``json.load`` reads them.

    Args:
        file: UTF-8, -16 or -32, at its beginning.

    Yields:
        Names as often as they come. A value that is a list is an iterator over its items, to be used before the next
        member is asked for; only an item at a time is in memory. Nothing where the document is no object.

    Raises:
        ValueError: the text is no JSON, or one value is longer than 2^28 characters.
        RecursionError: a value is too deep.
    """
    text = _Text(file)
    if text.next_character() != "{":
        text.value()
        text.end()
        return
    text.skip()
    if text.next_character() != "}":
        yield from text.members()
    text.skip()
    text.end()


class JSONDocument(Mapping[str, Any]):
    """A JSON object in a file, of which long lists are not held.

    Args:
        path: the file.
        long: names of lists. Each is an iterable that reads the file anew whenever it is iterated over.

    Raises:
        OSError, ValueError: there is no such file, or it is no JSON.
    """

    def __init__(self, path: Path, long: Collection[str] = ("images", "annotations")) -> None:
        self._members: dict[str, Any] = {}
        with path.open("rb") as file:
            for name, value in json_members(file):
                if isinstance(value, Iterator):
                    self._members[name] = LongList(path, name) if name in long else list(value)
                else:
                    self._members[name] = value

    def __getitem__(self, name: str) -> Any:
        return self._members[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)


@dataclass(frozen=True)
class LongList(Iterable[Any]):
    """A list in the JSON object in a file."""

    path: Path
    name: str

    def __iter__(self) -> Iterator[Any]:
        with self.path.open("rb") as file:
            for name, value in json_members(file):
                if name == self.name:
                    yield from value
                    return


class _Text:
    """The part of a text that is being parsed."""

    def __init__(self, file: BinaryIO) -> None:
        buffered = BufferedReader(file)  # type: ignore[type-var]
        encoding = json.detect_encoding(buffered.peek(4))
        self._file = TextIOWrapper(buffered, encoding, "surrogatepass", newline="")
        self._text = ""
        self._place = 0
        self._before = 0  # characters of the file that are no longer here
        self._ended = False
        self._decoder = JSONDecoder()

    def next_character(self) -> str:
        """Return the next character that is no white space; "" at the end."""
        while True:
            self._place = WHITESPACE.match(self._text, self._place).end()
            if self._place < len(self._text):
                return self._text[self._place]
            if not self._read_on():
                return ""

    def skip(self) -> None:
        self._place += 1

    def value(self) -> Any:
        """Return the value that begins here."""
        self.next_character()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._place)
            except JSONDecodeError as error:
                if not self._read_on():
                    raise self._error(error.msg, error.pos) from None
                continue
            length = end - self._place
            if end + _NUMBER_REST <= len(self._text) or not self._read_on():
                self._place += length
                return value

    def members(self) -> Iterator[tuple[str, Any]]:
        """Give the members from here to the brace."""
        while True:
            if self.next_character() != '"':
                raise self._error("Expecting property name enclosed in double quotes", self._place)
            name = self.value()
            if self.next_character() != ":":
                raise self._error("Expecting ':' delimiter", self._place)
            self.skip()
            if self.next_character() == "[":
                items = self._items()
                yield name, items
                for _ in items:
                    pass
            else:
                yield name, self.value()
            if not self._goes_on("}"):
                return

    def _items(self) -> Iterator[Any]:
        self.skip()
        if self.next_character() != "]":
            yield self.value()
            while self._goes_on("]"):
                yield self.value()
        self.skip()

    def _goes_on(self, bracket: str) -> bool:
        found = self.next_character()
        if found not in (",", bracket):
            raise self._error("Expecting ',' delimiter", self._place)
        if found == ",":
            self.skip()
        return found == ","

    def end(self) -> None:
        """Check that nothing follows."""
        if self.next_character():
            raise self._error("Extra data", self._place)

    def _read_on(self) -> bool:
        """Read more, at least as much as there is, so that long values take no longer than they must."""
        if self._ended:
            return False
        rest = self._text[self._place :]
        if len(rest) > _LONGEST_VALUE:
            raise self._error(f"a value is longer than {_LONGEST_VALUE} characters", self._place)
        more = self._file.read(max(_CHUNK, len(rest)))
        self._ended = not more
        self._before += self._place
        self._text, self._place = rest + more, 0
        return not self._ended

    def _error(self, message: str, place: int) -> ValueError:
        return ValueError(f"{message}: character {self._before + place}")
