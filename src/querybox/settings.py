"""Strict, immutable settings. Unknown keys are errors that suggest the closest valid key."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, NoReturn, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from querybox.errors import ConfigError

PathText = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]
"""A path or a name. An empty one would be the current folder, and the system knows none with a null character."""


class Settings(BaseModel):
    """Base class of settings: frozen, without unknown keys, with validated defaults and finite numbers."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    def __init__(self, /, **values: Any) -> None:
        """Create the settings from values by name.

        Raises:
            ConfigError: A name is unknown or a value is invalid; the message lists all of them.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise self.config_error(error) from None

    # Groups of settings inside others are validated together with them, so that one message lists all problems.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @field_validator("*", mode="before")
    @classmethod
    def check_numbers(cls, value: object, info: Any) -> object:
        """Reject true and false for numbers, for which pydantic would take 1 and 0.

        `info` is a `ValidationInfo`, which beartype cannot check.
        """
        kinds = set(kinds_of(cls.model_fields[info.field_name].annotation))
        if {int, float} & kinds and bool not in kinds and holds_bool(value):
            raise ValueError("input should be a number")
        return value

    def __setattr__(self, name: str, _: object) -> NoReturn:
        """Raise an error, because settings are immutable.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            f"{type(self).__name__}: got a new value for '{name}', but settings cannot be changed; make a copy with "
            f"other values: settings.replace({name}=...)"
        )

    @classmethod
    def config_error(cls, error: ValidationError, where: str = "") -> ConfigError:
        """Return an error that lists the problems that pydantic found."""
        known = sorted(cls.keys())
        problems: dict[tuple[int | str, ...], str] = {}
        found = error.errors()
        for problem in found:
            if problem["type"] == "too_short" and any(
                is_below(each["loc"], problem["loc"]) for each in found
            ):
                continue  # pydantic counts valid items alone
            place = without_alternatives(problem["loc"], known)
            if place in problems:  # another alternative of a union
                problems[place] += f", or {reason(problem)}"
            else:
                problems[place] = describe({**problem, "loc": place}, known)
        return ConfigError((f"{where}: " if where else "") + "; ".join(problems.values()))

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "") -> Self:
        """Create the settings from nested values, such as a YAML mapping.

        Args:
            values: Nested mapping of setting names to values.
            where: Source of the values for messages: a file or ``"command line"``.

        Raises:
            ConfigError: A key is unknown or a value is invalid; the message lists all of them.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise cls.config_error(error, where) from None

    def replace(self, **values: Any) -> Self:
        """Return a copy in which the top-level settings `values` are replaced and validated.

        Settings that were not set explicitly remain unset.

        Raises:
            ConfigError: A key is unknown or a value is invalid.
        """
        return self.parse({**self.model_dump(exclude_unset=True), **values})

    @classmethod
    def keys(cls, prefix: str = "") -> Iterator[str]:
        """Yield the dotted name of every setting, e.g. ``"train.lr"``."""
        for name, field in cls.model_fields.items():
            yield prefix + name
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, Settings):
                yield from kind.keys(f"{prefix}{name}.")


def kinds_of(annotation: object) -> Iterator[object]:
    """Yield the types in an annotation, such as int and None in ``tuple[int, ...] | None``."""
    arguments = get_args(annotation)
    for argument in arguments:
        yield from kinds_of(argument)
    if not arguments:
        yield annotation


@cache
def type_adapter(checked: Any) -> Any:  # beartype knows no type of it
    """Return the `TypeAdapter` of a type, which takes milliseconds to make."""
    return TypeAdapter(checked)


def holds_bool(value: object) -> bool:
    """Return whether a value is true or false, or a list with one of them."""
    return any(map(holds_bool, value)) if isinstance(value, list | tuple) else isinstance(value, bool)


def describe(problem: Mapping[str, Any], known: list[str]) -> str:
    """Return a pydantic error in one line: location, value, expectation."""
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        section, _, leaf = key.rpartition(".")
        siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == section}
        close = [siblings[name] for name in difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.6)]
        close = close or [name for name in known if name.endswith(f".{leaf}")]  # right name, wrong section
        hint = (
            f"Did you mean '{close[0]}'?"
            if close
            else f"Known settings there: {', '.join(siblings.values())}."
        )
        return f"unknown setting '{key}'. {hint}"
    if problem["type"] == "missing":
        return f"setting '{key}' is missing"
    if problem["type"] == "model_type" and key in known:
        settings = [name for name in known if name.startswith(f"{key}.")]
        return f"setting '{key}' got {problem['input']!r}; it is a group of settings: set one of {', '.join(settings)}"
    if problem["type"] == "value_error" and isinstance(problem["input"], Mapping):
        return f"settings '{key}': {reason(problem)}" if key else reason(problem)
    if problem["type"] == "string_unicode":
        return (
            f"setting '{key}' got {problem['input']!r}, which is not UTF-8; expected a path in UTF-8: rename the file "
            "or folder, or make a link to it"
        )
    return f"setting '{key}' got {problem['input']!r}: {reason(problem)}"


def is_below(location: tuple[int | str, ...], other: tuple[int | str, ...]) -> bool:
    """Return whether a location is inside another one."""
    return len(location) > len(other) == sum(a == b for a, b in zip(location, other, strict=False))


def reason(problem: Mapping[str, Any]) -> str:
    """Return what pydantic says of a value, as the end of a sentence."""
    message = problem["msg"].removeprefix("Value error, ")
    return f"{message[0].lower()}{message[1:]}"


def without_alternatives(location: tuple[int | str, ...], known: list[str]) -> tuple[int | str, ...]:
    """Drop the names of the alternatives of a union, which pydantic appends to the name of a setting."""
    for length in range(1, len(location)):
        name = ".".join(map(str, location[:length]))
        if name in known and not any(each.startswith(f"{name}.") for each in known):
            return (*location[:length], *(part for part in location[length:] if isinstance(part, int)))
    return location
