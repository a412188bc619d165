"""The rules of the house: one API, one version, short files and functions, text that fits any machine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path

import pytest
import yaml

import querybox

ROOT = Path(__file__).parent.parent
PYTHON_FILES = sorted(
    path
    for folder in ("src", "tests", "benchmarks", "figures", "examples")
    for path in (ROOT / folder).rglob("*.py")
)
MAX_FILE = 400
MAX_FUNCTION = 50
EXCUSE = "# Long because"
OTHER_OPENERS = ("Image", "av", "os")
"""Modules whose `open` takes no encoding."""


def test_the_public_api_is_exact() -> None:
    assert querybox.__all__ == [
        "Category",
        "Criterion",
        "Detections",
        "Detector",
        "DetectorOutput",
        "HungarianMatcher",
        "ImageBatch",
        "LiveStream",
        "Predictions",
        "Preprocessing",
        "QueryboxError",
        "RunSettings",
        "Target",
        "convert",
        "diagnose",
        "draw",
        "evaluate",
        "export",
        "load",
        "models",
        "predict",
        "read_dataset",
        "train",
        "validate",
    ]
    assert set(dir(querybox)) == {*querybox.__all__, "__version__"}


def test_every_public_name_is_there_and_documented() -> None:
    assert not [name for name in querybox.__all__ if not getattr(querybox, name).__doc__]


def test_functions_keep_the_names_that_they_share_with_modules() -> None:
    import querybox.evaluation.evaluate
    import querybox.inference.draw

    assert callable(querybox.draw)
    assert callable(querybox.evaluate)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'detect'"):
        querybox.detect  # noqa: B018


def test_importing_the_package_does_not_wait_for_pytorch() -> None:
    code = "import querybox, querybox.cli, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_data_are_read_without_torchvision() -> None:
    """Its import would add half to the start of `querybox validate`, and of workers that are not forked."""
    sources = {path: path.read_text(encoding="utf-8") for path in (ROOT / "src/querybox/data").rglob("*.py")}
    assert sources
    assert not [path for path, text in sources.items() if re.search(r"(?m)^(from|import) torchvision", text)]


def test_the_version_is_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert querybox.__version__ == version("querybox") == project["version"]


def test_every_python_that_the_package_names_is_tested() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [line.rpartition(" ")[2] for line in project["classifiers"] if "Python :: 3." in line]
    assert matrix["python"] == named
    assert project["requires-python"] == f">={named[0]}"


def test_the_changelog_tells_of_this_version() -> None:
    release = querybox.__version__.partition(".dev")[0]
    heading = "Unreleased" if release != querybox.__version__ else release
    assert f"## [{heading}]" in (ROOT / "CHANGELOG.md").read_text()


def test_files_and_functions_can_be_taken_in_at_a_glance() -> None:
    """A file or function that is longer says why, in a comment that begins with `EXCUSE`."""
    long = [found for path in PYTHON_FILES for found in too_long(path)]
    assert not long, f"longer than {MAX_FILE} lines a file, {MAX_FUNCTION} a function: {long}"


def too_long(path: Path) -> list[str]:
    """Describe the file, and each of its functions, that is too long without an excuse."""
    name, text = path.relative_to(ROOT), path.read_text()
    lines = text.splitlines()
    long = [
        f"{name}:{node.lineno} {node.name}: {code_lines(node)} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and code_lines(node) > MAX_FUNCTION
        and not any(EXCUSE in line for line in lines[node.lineno - 1 : node.end_lineno])
    ]
    head = takewhile(lambda line: not line.startswith(("import", "from")), lines)
    if len(lines) > MAX_FILE and not any(EXCUSE in line for line in head):
        long.append(f"{name}: {len(lines)} lines")
    return long


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of `function` without its docstring."""
    first = function.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = (first.end_lineno or 0) - first.lineno + 1 if is_docstring else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def test_text_files_have_a_stated_encoding() -> None:
    """Without one, Windows reads and writes them in the encoding of its region."""
    files = [path for path in PYTHON_FILES if "tests" not in path.relative_to(ROOT).parts]
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and opens_text(node)
        if not any(keyword.arg == "encoding" for keyword in node.keywords)
    ]
    assert not found


def opens_text(call: ast.Call) -> bool:
    """Return whether a call is `open`, `path.open`, `path.read_text` or `path.write_text`, and not of a binary file."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if isinstance(function, ast.Attribute) and name in ("read_text", "write_text"):
        return True
    if name != "open" or (
        isinstance(function, ast.Attribute) and ast.unparse(function.value) in OTHER_OPENERS
    ):
        return False
    modes = [each.value for each in call.args if isinstance(each, ast.Constant)]
    return not any("b" in str(mode) for mode in modes)


def test_tracked_text_names_no_machine() -> None:
    """Paths of one machine and hosts of one mirror mean nothing on another."""
    folders = "|".join(["work", "root", "home/[a-z]+", "opt", "Users"])
    hosts = "|".join([r"pypi\.org", r"pythonhosted\.org", r"index-url"])
    foreign = re.compile(rf"(?<![\w.~-])/(?:{folders})/|{hosts}")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in tracked_text()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if path != Path(__file__) and foreign.search(line)
    ]
    assert not found


def tracked_text() -> list[Path]:
    """Files under version control, less pictures, weights and large data."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    text = {
        ".cfg",
        ".csv",
        ".ini",
        ".json",
        ".md",
        ".py",
        ".sh",
        ".toml",
        ".txt",
        ".xml",
        ".yaml",
        ".yml",
        "",
    }
    paths = [ROOT / name for name in listing.stdout.split("\0") if name]
    return [
        path for path in paths if path.is_file() and path.suffix in text and path.stat().st_size < 1_000_000
    ]
