"""Options that have no effect for some values of others, or for some inputs.

Not among them are those that only permit something (``--trust``, ``--allow-network``), which a script may give for any
input, and upper limits such as ``--batch-size``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from inspect import signature
from typing import ParamSpec, TypeVar

from querybox.needs import Needs, require_effect

P = ParamSpec("P")
R = TypeVar("R")

NEEDS: Mapping[str, Needs] = {
    "evaluate": [("--overlap", "--tile")],
    "predict": [
        ("--overlap", "--tile"),
        ("--workers", "--ray"),
        *((option, "not --ray") for option in ("--overwrite", "--tuned", "--track", "--tracker")),
        *((option, "not --ray") for option in ("--format", "--max-frames", "--duration")),
    ],
    "serve": [
        ("--allow-anonymous", "not --token"),
        ("--allow-anonymous", "not --token-file"),
        ("--max-wait", "not --max-batch=1"),
    ],
    "trace": [("--split", "--annotations"), ("--queries", "not --json")],
    "inspect": [("--split", "--annotations"), ("--overlap", "--tile")],
    "export": [("--split", "--calibrate"), ("--calibrate", "--precision=int8")],
    "benchmark": [("--batch-size", "not --tune"), ("--trust", "not --tune")],
    "info": [("--split", "TARGET"), ("--models", "not TARGET")],
}
"""For each command, options and what they need; see `querybox.needs`."""


def with_needs(command: Callable[P, R]) -> Callable[P, R]:
    """Return a command that raises `ConfigError` if an option that was given has no effect."""
    parameters = signature(command).parameters
    names = {name: option_name(name) for name in parameters}
    name = command.__name__

    @wraps(command)
    def checked(*arguments: P.args, **options: P.kwargs) -> R:
        bound = signature(command).bind(*arguments, **options)
        given = {names[each] for each in bound.arguments}
        bound.apply_defaults()
        values = {names[each]: value for each, value in bound.arguments.items()}
        require_effect(f"querybox {name}:", NEEDS.get(name, ()), given, values)
        return command(*arguments, **options)

    return checked


def option_name(parameter: str) -> str:
    """Return the name of a parameter of a command on the command line."""
    return "TARGET" if parameter == "target" else f"--{parameter.replace('_', '-')}"
