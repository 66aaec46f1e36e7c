"""The classes: stuff (regions), things (countable objects), and which stuff each COCO class stands for."""

import re
from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, StringConstraints, ValidationError
from pydantic import model_validator as _model_validator

from construction_panoptic.errors import InputDataError

_Channel = Annotated[StrictInt, Field(ge=0, le=255)]
_Name = Annotated[StrictStr, StringConstraints(strip_whitespace=True, min_length=1)]
_SEPARATORS = re.compile(r"[\s\-_]+")

LAST_COCO_THING = 90  # COCO's category ids up to this one are things, those above are stuff


def normalise_name(name: str) -> str:
    """Return a name as names are compared: lower case, runs of spaces, hyphens and underscores as ``_``."""
    return _SEPARATORS.sub("_", name.lower()).strip("_")


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Class(_Entry):
    id: Annotated[StrictInt, Field(ge=1, le=65535)]
    name: _Name
    color: tuple[_Channel, _Channel, _Channel]
    aliases: tuple[_Name, ...] = ()
    """Other names of the class in exports, or classes there that are one here."""

    @property
    def names(self) -> set[str]:
        """Its name and aliases, normalised."""
        return {normalise_name(name) for name in (self.name, *self.aliases)}


class StuffClass(_Class):
    """A stuff class. Ids stop at 255, since stuff label maps are 8-bit."""

    id: Annotated[StrictInt, Field(ge=1, le=255)]


class CocoMapping(_Entry):
    """The project's stuff class that a COCO panoptic class stands for."""

    coco_id: Annotated[StrictInt, Field(ge=1)]
    coco_name: _Name
    stuff: _Name


class Taxonomy(_Entry):
    """All classes of a project.

    Ids are unique over stuff and things (0 is void); names and aliases are unique under `normalise_name`; every
    ``coco_to_stuff`` target is the name of a stuff class.
    """

    stuff: list[StuffClass]
    things: list[_Class] = Field(min_length=1)
    coco_to_stuff: list[CocoMapping] = []

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Taxonomy":
        """Check a parsed taxonomy file and build a taxonomy.

        Raises `InputDataError`, which names the entry: something is missing, of the wrong type, or listed twice.
        """
        if not isinstance(data, dict):
            raise InputDataError("taxonomy: expected an object with `stuff`, `things` and `coco_to_stuff`.")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            problems = [_describe(detail["loc"], detail["msg"], data) for detail in error.errors()]
            shown = "; ".join(problems[:5]) + ("" if len(problems) <= 5 else f"; and {len(problems) - 5} more")
            raise InputDataError(f"taxonomy: {shown}.") from None

    @_model_validator(mode="after")
    def _check_across_entries(self) -> Self:
        classes = [*(("stuff", c) for c in self.stuff), *(("things", c) for c in self.things)]
        problems = [
            *_repeats("id", [(kind, c.id) for kind, c in classes]),
            *_repeats("name", [(kind, name) for kind, c in classes for name in sorted(c.names)]),
            *_repeats("coco_id", [("coco_to_stuff", m.coco_id) for m in self.coco_to_stuff]),
            *_repeats("coco_name", [("coco_to_stuff", normalise_name(m.coco_name)) for m in self.coco_to_stuff]),
        ]
        lost = (f"{m.coco_name!r} is mapped to {m.stuff!r}" for m in self.coco_to_stuff if not self.stuff_id(m.stuff))
        problems += [f"coco_to_stuff: {text}, which is not a stuff class" for text in lost]
        if problems:
            raise ValueError("; ".join(problems[:5]))
        return self

    @cached_property
    def names(self) -> dict[int, str]:
        """The name of each class id, in id order."""
        return {c.id: c.name for c in sorted((*self.stuff, *self.things), key=lambda c: c.id)}

    @cached_property
    def colors(self) -> dict[int, tuple[int, int, int]]:
        """The RGB colour (0 to 255) of each class id."""
        return {c.id: c.color for c in (*self.stuff, *self.things)}

    @cached_property
    def is_thing(self) -> dict[int, bool]:
        """Whether each class id is a thing."""
        return {c.id: False for c in self.stuff} | {c.id: True for c in self.things}

    @cached_property
    def _thing_ids(self) -> dict[str, int]:
        return {name: c.id for c in self.things for name in c.names}

    @cached_property
    def _stuff_ids(self) -> dict[str, int]:
        return {name: c.id for c in self.stuff for name in c.names}

    def thing_id(self, name: str) -> int | None:
        """Return the id of the thing class of this name or alias (see `normalise_name`), or None."""
        return self._thing_ids.get(normalise_name(name))

    def stuff_id(self, name: str) -> int | None:
        """Return the id of the project's own stuff class of this name or alias (see `normalise_name`), or None."""
        return self._stuff_ids.get(normalise_name(name))

    def stuff_id_of_name(self, name: str) -> int | None:
        """Return the stuff id for one of the project's own stuff names or else of COCO's names, or None."""
        wanted = normalise_name(name)
        coco_id = next((m.coco_id for m in self.coco_to_stuff if normalise_name(m.coco_name) == wanted), 0)
        return self._stuff_ids.get(wanted, self.stuff_id_of_coco.get(coco_id))

    @cached_property
    def stuff_id_of_coco(self) -> dict[int, int]:
        """The project's stuff id of each mapped COCO category id."""
        return {m.coco_id: self._stuff_ids[normalise_name(m.stuff)] for m in self.coco_to_stuff}

    def coco_categories(self) -> list[dict[str, Any]]:
        """Return the ``categories`` list of a COCO (panoptic) file, in id order."""
        return [
            {
                "id": class_id,
                "name": name,
                "supercategory": "thing" if self.is_thing[class_id] else "stuff",
                "isthing": int(self.is_thing[class_id]),
                "color": list(self.colors[class_id]),
            }
            for class_id, name in self.names.items()
        ]


def _repeats(field: str, values: list[tuple[str, Any]]) -> Iterator[str]:
    first: dict[Any, str] = {}
    for kind, value in values:
        if value in first:
            where = kind if first[value] == kind else f"{first[value]} and {kind}"
            yield f"{where}: the {field} {value!r} is listed twice"
        first.setdefault(value, kind)


def _describe(location: tuple[Any, ...], message: str, data: dict[str, Any]) -> str:
    """Say where in the file the problem is, with the entry's name where it has one."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    entry = data[location[0]][location[1]] if len(location) > 1 else None
    name = entry.get("name", entry.get("coco_name")) if isinstance(entry, dict) else None
    label = f" ({name})" if isinstance(name, str) else ""
    message = message.removeprefix("Value error, ")
    return f"{path}{label}: {message}" if path else message
