"""The tree of errors is what `querybox.errors` draws."""

from __future__ import annotations

import inspect
import pickle
import re
from pathlib import Path

import pytest

import querybox
from querybox import errors
from querybox.errors import DataError, DiskFullError, ImageError, QueryboxError


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


def test_paths_with_spaces_are_quoted(tmp_path: Path) -> None:
    folder = tmp_path / "my photos"
    with pytest.raises(DataError, match=f"^'{re.escape(str(folder))}': no such file"):
        querybox.read_dataset(folder)
    folder.mkdir()
    with pytest.raises(DataError, match=f"^'{re.escape(str(folder))}': contains no dataset"):
        querybox.read_dataset(folder)
    for error in (
        ImageError(f"{folder}: is bad", "other_size"),
        DiskFullError(f"{folder}: is full"),
        DataError(f"{folder}/a: no such file"),
    ):
        assert str(error).startswith(f"'{folder}")
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(DataError("setting 'x' of y: is bad")) == "setting 'x' of y: is bad"
