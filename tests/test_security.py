"""Where the library opens images and videos, prints, and runs programs: in one place each, or nowhere."""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "querybox"
CALLS = {
    # With a list of formats, of regular files only.
    "Image.open": ["data/bitmaps.py", "data/deep.py", "data/image.py", "data/tiff.py"],
    "av.open": [
        "inference/reader.py",
        "inference/video.py",
        "inference/video_file.py",
    ],  # with lists of formats and protocols
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
        "data/formats/shard_urls.py",
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
    "socket": ["serving/address.py", "serving/server.py"],  # the socket of `querybox serve`
    "urllib.request": [],
    "defusedxml.ElementTree": ["data/parsing.py"],
}
"""Modules, and the files of the library that may import them."""


@cache
def calls_and_imports() -> tuple[dict[str, set[str]], list[tuple[str, str, list[str]]]]:
    """Return the files by what they call, and (file, module, names) of every import."""
    calls: dict[str, set[str]] = defaultdict(set)
    imports = []
    for path in sorted(SOURCE.rglob("*.py")):
        file = path.relative_to(SOURCE).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                calls[ast.unparse(node.func)].add(file)
            elif isinstance(node, ast.ImportFrom):
                imports.append((file, node.module or "", [alias.name for alias in node.names]))
            elif isinstance(node, ast.Import):
                imports += [(file, alias.name, []) for alias in node.names]
    return calls, imports


@pytest.mark.parametrize("call", CALLS)
def test_calls_are_made_in_their_places_alone(call: str) -> None:
    calls, _ = calls_and_imports()
    assert sorted(calls.get(call, ())) == CALLS[call]


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_imported_in_their_places_alone(module: str) -> None:
    _, imports = calls_and_imports()
    assert sorted({file for file, name, _ in imports if name == module}) == MODULES[module]


def test_consoles_are_those_that_show_control_characters() -> None:
    _, imports = calls_and_imports()
    made = [file for file, module, names in imports if module == "rich.console" and "Console" in names]
    assert made == ["terminal.py", "training/display.py"]  # the second as a type
