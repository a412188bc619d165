"""Strict settings: immutable values whose unknown keys are errors that name the nearest right one."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from querybox.errors import ConfigError


class Settings(BaseModel):
    """Base of all settings: frozen, no unknown keys, defaults checked as values are."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True
    )

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "") -> Self:
        """Build the settings from plain `values`, such as a YAML mapping.

        Args:
            values: Nested mapping of setting names to values.
            where: What is being read, for the message: a file or ``"command line"``.

        Raises:
            ConfigError: A key is unknown or a value does not fit; the message lists every such key.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            known = sorted(cls.keys())
            problems = [describe(problem, known) for problem in error.errors()]
            raise ConfigError((f"{where}: " if where else "") + "; ".join(problems)) from None

    def replace(self, **values: Any) -> Self:
        """Return a copy with the top-level settings in `values` changed, checked like new ones.

        Settings that nobody set remain unset.

        Raises:
            ConfigError: A key is unknown or a value does not fit.
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


def describe(problem: Mapping[str, Any], known: list[str]) -> str:
    """Say one pydantic error in one line: where, what it got, what it expected."""
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        section, _, leaf = key.rpartition(".")
        beside = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == section}
        near = [beside[name] for name in difflib.get_close_matches(leaf, beside, n=1, cutoff=0.6)]
        near = near or [name for name in known if name.endswith(f".{leaf}")]  # right name, wrong section
        hint = (
            f"Did you mean '{near[0]}'?" if near else f"Known settings there: {', '.join(beside.values())}."
        )
        return f"unknown setting '{key}'. {hint}"
    if problem["type"] == "missing":
        return f"setting '{key}' is missing"
    reason = problem["msg"].removeprefix("Value error, ")
    return f"setting '{key}' got {problem['input']!r}: {reason[0].lower()}{reason[1:]}"
