"""Where the library opens images and videos, prints, and runs programs: in one place each, or nowhere."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "querybox"
CALLS = {
    # With a list of formats, of regular files only.
    "Image.open": ["data/bitmaps.py", "data/deep.py", "data/image.py", "data/tiff.py"],
    "av.open": ["inference/video.py", "inference/writers.py"],  # with lists of formats and protocols
    "print": ["cli/streams.py"],  # without control characters
    "sys.stdout.write": [],
    "sys.stderr.write": ["cli/streams.py"],
    "torch.load": [
        "checkpoints/pickled.py",
        "exporting/load.py",
    ],  # with `weights_only`; `exporting.torch.load`
    "torch.export.load": ["exporting/torch.py"],  # of trusted files
    "yaml.load": [
        "data/formats/hugging_face_objects.py",
        "data/formats/yolo_files.py",
        "runfile.py",
    ],  # with a safe loader
    "eval": [],
    "exec": [],
    "os.system": [],
    "os.popen": [],
}
"""Calls, and the files of the library that may make them."""
MODULES = {
    "subprocess": [],
    "pickle": ["data/user_transform.py"],  # pickles a transform of the caller, reads none
    "socket": [],
    "urllib.request": [],
    "defusedxml.ElementTree": ["data/parsing.py"],
}
"""Modules, and the files of the library that may import them."""


def trees() -> Iterator[tuple[str, ast.AST]]:
    for path in sorted(SOURCE.rglob("*.py")):
        yield path.relative_to(SOURCE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("call", CALLS)
def test_calls_are_made_in_their_places_alone(call: str) -> None:
    found = {
        name
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == call
    }
    assert sorted(found) == CALLS[call]


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_imported_in_their_places_alone(module: str) -> None:
    found = {
        name
        for name, tree in trees()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Import) and module in [alias.name for alias in node.names])
        or (isinstance(node, ast.ImportFrom) and node.module == module)
    }
    assert sorted(found) == MODULES[module]


def test_consoles_are_those_that_show_control_characters() -> None:
    made = [
        name
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and node.module == "rich.console"
        and "Console" in [alias.name for alias in node.names]
    ]
    assert made == ["terminal.py", "training/display.py"]  # the second as a type
