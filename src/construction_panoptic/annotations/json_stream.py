"""JSON documents with lists that are longer than memory."""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from io import BufferedReader, TextIOWrapper
from json.decoder import WHITESPACE, JSONDecodeError, JSONDecoder  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any, BinaryIO

_LONG = ("images", "annotations")
_CHUNK = 1 << 20  # characters
_LONGEST_VALUE = 1 << 28
_NUMBER_REST = 3  # a number may go on after this many characters that are none by themselves: 1e+5


def json_parts(document: Mapping[str, Any], *, sort_keys: bool = False) -> Iterator[str]:
    """Give the text of a JSON object in parts, together what ``json.dumps`` gives; an iterator becomes a list.

    Raises `ValueError`: NaN or infinity, which JSON does not have.
    """
    before = "{"
    dumps = partial(json.dumps, allow_nan=False, sort_keys=sort_keys)
    for name, value in sorted(document.items()) if sort_keys else document.items():
        yield f"{before}{json.dumps(name)}: "
        before = ", "
        if isinstance(value, Iterator):
            yield "["
            yield from (f"{', ' if position else ''}{dumps(item)}" for position, item in enumerate(value))
            yield "]"
        else:
            yield dumps(value)
    yield "{}" if before == "{" else "}"


def json_members(file: BinaryIO) -> Iterator[tuple[str, Any]]:
    """Give name and value of each member of the JSON object in a file (UTF-8, -16 or -32), as ``json.load`` reads them.

    Names come as often as they are there. A value that is a list is an iterator over its items, to be used before the
    next member is asked for; only an item at a time is in memory. Gives nothing where the document is no object. Raises
    `ValueError`: it is no JSON, or one value is longer than 2^28 characters. `RecursionError`: a value is too deep.
    """
    text = _Text(file)
    if text.next_character() == "{":
        yield from text.members()
    else:
        text.value()
    if text.next_character():
        raise text.error("Extra data")


class JSONDocument(dict[str, Any]):
    """A JSON object in a file, of which the long lists, ``images`` and ``annotations``, are not held but `LongList`.

    Raises `OSError` or `ValueError`: there is no such file, or it is no JSON.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        with path.open("rb") as file:
            for name, value in json_members(file):
                items = isinstance(value, Iterator)
                self[name] = LongList(path, name) if items and name in _LONG else list(value) if items else value


@dataclass(frozen=True)
class LongList(Iterable[Any]):
    """A list in the JSON object in a file, which is read anew whenever it is iterated over."""

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
        self._text, self._place = "", 0
        self._before = 0  # characters of the file that are no longer here
        self._ended = False
        self._decoder = JSONDecoder()

    def next_character(self) -> str:
        """Go to the next character that is no white space, and return it; "" at the end."""
        while True:
            self._place = WHITESPACE.match(self._text, self._place).end()
            if self._place < len(self._text):
                return self._text[self._place]
            if not self._read_on():
                return ""

    def value(self) -> Any:
        """Return the value that begins here."""
        self.next_character()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._place)
            except JSONDecodeError as error:
                if not self._read_on():
                    raise self.error(error.msg, error.pos) from None
                continue
            length = end - self._place
            if end + _NUMBER_REST <= len(self._text) or not self._read_on():
                self._place += length
                return value

    def members(self) -> Iterator[tuple[str, Any]]:
        """Give the members of the object that begins here."""
        for _ in self._parts("}"):
            if self.next_character() != '"':
                raise self.error("Expecting property name enclosed in double quotes")
            name = self.value()
            if self.next_character() != ":":
                raise self.error("Expecting ':' delimiter")
            self._place += 1
            if self.next_character() == "[":
                items = (self.value() for _ in self._parts("]"))
                yield name, items
                deque(items, maxlen=0)
            else:
                yield name, self.value()

    def _parts(self, bracket: str) -> Iterator[None]:
        """Come to each part of what begins here, over commas, and past the bracket that ends it."""
        self._place += 1
        if self.next_character() != bracket:
            yield
            while self.next_character() == ",":
                self._place += 1
                yield
            if self.next_character() != bracket:
                raise self.error("Expecting ',' delimiter")
        self._place += 1

    def _read_on(self) -> bool:
        """Read more, at least as much as there is, so that long values take no longer than they must."""
        if self._ended:
            return False
        rest = self._text[self._place :]
        if len(rest) > _LONGEST_VALUE:
            raise self.error(f"a value is longer than {_LONGEST_VALUE} characters")
        more = self._file.read(max(_CHUNK, len(rest)))
        self._ended = not more
        self._before += self._place
        self._text, self._place = rest + more, 0
        return not self._ended

    def error(self, message: str, place: int | None = None) -> ValueError:
        """Say where in the file something is wrong; by default here."""
        return ValueError(f"{message}: character {self._before + (self._place if place is None else place)}")
