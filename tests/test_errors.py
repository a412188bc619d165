"""The tree of errors is what `querybox.errors` draws."""

from __future__ import annotations

import inspect
import re

from querybox import errors
from querybox.errors import QueryboxError


def drawn() -> dict[str, str]:
    """Return parent by child, as the picture has them."""
    assert errors.__doc__ is not None
    parents, above = {}, {-1: ""}
    for line in errors.__doc__.split("```")[1].splitlines()[1:]:
        branches, name = re.match(r"([│├└─ ]*)(\w+)", line).groups()  # type: ignore[union-attr]
        depth = len(branches) // 4
        above[depth] = name
        parents[name] = above[depth - 1]
    return parents


def test_the_drawing_is_exact() -> None:
    classes = {
        name: each
        for name, each in vars(errors).items()
        if inspect.isclass(each) and each.__module__ == errors.__name__
    }
    real = {
        name: next((base.__name__ for base in each.__bases__ if base.__name__ in classes), "")
        for name, each in classes.items()
    }
    assert drawn() == real
    assert all(issubclass(each, QueryboxError) and each.__doc__ for each in classes.values())


def test_every_branch_says_what_it_means() -> None:
    assert errors.__doc__ is not None
    lines = errors.__doc__.split("```")[1].splitlines()[2:-1]
    assert all(re.search(r"Error +\w+", line) for line in lines)
