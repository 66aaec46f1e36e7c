"""What all parameter groups have in common: strict checking, old names, and messages for people."""

import logging
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from construction_panoptic.errors import ParameterError

logger = logging.getLogger(__name__)

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Threshold = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(gt=0)]
NotNegativeInt = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Device = Annotated[
    str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="'auto' takes CUDA if there is one, else the CPU.")
]
Precision = Annotated[
    Literal["auto", "fast", "float32", "bfloat16"],
    Field(
        description="Arithmetic of the network; 'auto' is bfloat16 autocast on CUDA, float32 on a CPU, 'fast' bfloat16 "
        "on CPUs with AVX512-BF16 (Intel Xeon since 2023, AMD since Zen 4) too."
    ),
]


class Settings(BaseModel):
    """A group of parameters; unknown names are errors, names of earlier versions warn."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    old_names: ClassVar[Mapping[str, str | None]] = {}
    """Name in an earlier version → name now; None: it does nothing now."""

    @model_validator(mode="before")
    @classmethod
    def _take_old_names(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        for name, now in cls.old_names.items():
            if name in data and now is None:
                logger.warning("The parameter %s does nothing any more; please remove it.", name)
            elif name in data:
                logger.warning("The parameter %s is now called %s; please rename it.", name, now)
        named = {cls.old_names.get(name, name): value for name, value in data.items()}
        return {name: value for name, value in named.items() if name is not None}


class Execution(Settings):
    """The processes that do the work; the result is the same with any."""

    engine: Literal["local", "ray"] = "local"
    """Processes of this machine, or tasks of a Ray cluster (RAY_ADDRESS, else local)."""
    workers: PositiveInt | Literal["auto"] = "auto"
    """Processes or tasks at a time; 'auto': one a GPU for networks, else one a CPU core."""


ONE_PROCESS = Execution(workers=1)

AnySettings = TypeVar("AnySettings", bound=BaseModel)


def parse(model: type[AnySettings], data: Mapping[str, Any] | AnySettings | None, group: str) -> AnySettings:
    """Check a group of parameters, given as nested dicts, and give it as typed settings; these stay as they are.

    None means every default. Messages call the group by its name, such as ``detection``. Raises `ParameterError`: a
    line for each mistake, e.g. ``detection.optimizer.lr: …``.
    """
    if isinstance(data, model):
        return data
    if data is not None and not isinstance(data, Mapping):
        raise ParameterError(f"{group}: a group of parameters is needed, not {data!r}")
    try:
        return model.model_validate(dict(data or {}))
    except ValidationError as error:
        raise ParameterError("\n".join(_describe(detail, model, group) for detail in error.errors())) from None


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest the known name that looks most like ``name``, else list all."""
    names = list(known)
    close = get_close_matches(name, names, n=1) or [other for other in names if other.endswith(f".{name}")]
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(names)}"


def _describe(detail: Any, model: type[BaseModel], group: str) -> str:
    location = [str(part) for part in detail["loc"]]
    name = ".".join([group, *location])
    if detail["type"] == "extra_forbidden":
        return f"{name}: there is no such parameter; {nearest(location[-1], _group(model, location[:-1]).model_fields)}"
    if detail["type"] == "tuple_type":
        return f"{name}: a list is needed, such as [{detail['input']}], not {detail['input']!r}"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] in {"value_error", "missing"}:
        return f"{name}: {message}"
    return f"{name}: {message[:1].lower()}{message[1:]}, not {detail['input']!r}"


def _group(model: type[BaseModel], location: list[str]) -> type[BaseModel]:
    for part in location:
        annotation = model.model_fields[part].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return model
