"""Settings and options that have an effect only with certain values of others: one form of table, and one check.

A table lists pairs: a name, and a condition without which it has no effect. A condition is the name of another one,
which has to be set (neither null nor false, 0 or empty); ``name=value``, for a list one of its items; one of these
after ``not``; or ``a>b``, which compares the numbers of two names. ``or`` combines several. A name may be in several
pairs, all of which count.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TypeAlias, cast

from querybox.errors import ConfigError
from querybox.text import listed

Needs: TypeAlias = Sequence[tuple[str, str]]


def require_effect(subject: str, needs: Needs, given: Collection[str], values: Mapping[str, object]) -> None:
    """Check that everything that was given has an effect.

    Args:
        subject: Beginning of the message.
        needs: The table.
        given: Names that were given explicitly.
        values: Values by name, those of defaults included.

    Raises:
        ConfigError: Something has no effect; the message lists all of it.
    """
    if problems := [f"{subject} {problem}" for problem in without_effect(needs, given, values)]:
        raise ConfigError("; ".join(problems))


def without_effect(needs: Needs, given: Collection[str], values: Mapping[str, object]) -> Iterator[str]:
    """Yield what was given and has no effect, and the cure, for each condition; see `require_effect`."""
    lacking: dict[str, list[str]] = {}
    for name, need in needs:
        if name in given and not any(holds(condition, values) for condition in need.split(" or ")):
            lacking.setdefault(need, []).append(name)
    for need, (name, *more) in lacking.items():
        subject, them = (f"{name}, like {listed(more)},", "them") if more else (name, name)
        others = need.replace("not ", "")
        if ">" in need:
            yield f"{subject} has no effect without {need}: change one of these, or omit {them}"
        elif others == need:
            yield f"{subject} has no effect without {need}: set it as well, or omit {them}"
        else:
            yield f"{subject} has no effect with {others}: omit {'these' if more else 'one of them'}"


def holds(condition: str, values: Mapping[str, object]) -> bool:
    """Return whether one condition holds."""
    if ">" in condition:
        greater, smaller = (cast("float", values[name]) for name in condition.split(">"))
        return greater > smaller
    name, equals, wanted = condition.removeprefix("not ").partition("=")
    value = values.get(name)
    items = value if isinstance(value, list | tuple) else [value]
    return (wanted in map(str, items) if equals else bool(value)) != condition.startswith("not ")
