"""The documentation holds together: pages, links and the names that it explains exist. Its code runs elsewhere:
see documentation.py.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

import yaml

import querybox
from querybox.checkpoints.files import AVERAGE_KEYS
from querybox.data.findings import KINDS
from querybox.training.folder import CHANGEABLE

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))


def test_every_page_is_in_the_navigation_once() -> None:
    listed = list(pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(listed) == sorted(page.relative_to(ROOT / "docs").as_posix() for page in PAGES + NOTEBOOKS)


def pages_of(entry: Any) -> Iterator[str]:
    """Yield the pages of a navigation entry: a page, a titled section, or a list of them."""
    if isinstance(entry, str):
        yield entry
    else:
        for below in entry.values() if isinstance(entry, dict) else entry:
            yield from pages_of(below)


def test_every_guide_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    guides = sorted(path.name for path in (ROOT / "docs" / "guides").glob("*.md"))
    assert [name for name in guides if f"docs/guides/{name}" not in readme] == []


def test_every_local_link_leads_somewhere() -> None:
    pages = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
    broken = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in pages
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text())
        if "://" not in link and not (page.parent / link.partition("#")[0]).exists()
    ]
    assert not broken


def test_every_file_of_the_repository_that_is_named_exists() -> None:
    named = r"`((?:src|tests|benchmarks|docs|examples|figures)/[\w./-]+\.\w+)`"
    missing = [
        f"{page.relative_to(ROOT)}: {file}"
        for page in [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
        for file in re.findall(named, page.read_text(encoding="utf-8"))
        if not (ROOT / file).exists()
    ]
    assert not missing


def test_the_tests_of_the_25_faults_exist() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \|.*\| ([^|]+) \|$", page, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 26))
    named = [re.findall(r"`([\w/]+\.py)::(\w+)`", tests) for _, tests in rows]
    assert all(named)
    functions = {
        file: {
            node.name
            for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
            if isinstance(node, ast.FunctionDef)
        }
        for tests in named
        for file, _ in tests
    }
    assert [(file, test) for tests in named for file, test in tests if test not in functions[file]] == []


def test_every_decision_is_in_the_index() -> None:
    index = (ROOT / "docs" / "decisions" / "index.md").read_text()
    notes = [page.name for page in PAGES if re.match(r"\d{4}-", page.name)]
    assert notes
    assert [note for note in notes if f"({note})" not in index] == []


def test_every_kind_of_finding_in_data_is_in_the_guide() -> None:
    table = (ROOT / "docs" / "guides" / "validate.md").read_text(encoding="utf-8").partition("## Training")[0]
    assert [kind for kind in KINDS if f"`{kind}`" not in table] == []


def test_every_key_of_averaged_weights_is_in_the_guide() -> None:
    guide = (ROOT / "docs" / "guides" / "checkpoints.md").read_text(encoding="utf-8")
    assert [key for key in AVERAGE_KEYS if f"`{key}`" not in guide] == []


def test_every_setting_that_a_resumed_run_may_change_is_in_the_guide() -> None:
    guide = (ROOT / "docs" / "guides" / "interruptions.md").read_text(encoding="utf-8")
    places = {"data.train", "data.val"}  # "the places of the data"
    assert sorted(name for name in CHANGEABLE - places if f"`{name}`" not in guide) == []


def test_the_packages_are_those_that_the_linter_knows() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    layers = [set(layer.split(" | ")) for layer in contract["layers"] if layer != "__main__"]
    page = (ROOT / "docs" / "architecture.md").read_text().partition("## The walk")[0]
    rows = re.findall(r"^\| (`[^|]+`) \|", page, re.MULTILINE)
    assert [set(row.strip("`").split("`, `")) for row in rows] == layers


def test_every_reference_names_something_documented() -> None:
    references = {
        name for page in PAGES for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
    }
    assert references
    assert not [name for name in sorted(references) if not resolve_name(name).__doc__]


def test_every_public_name_is_in_the_reference() -> None:
    text = "".join(page.read_text() for page in PAGES if page.parent.name == "reference")
    documented = [resolve_name(name) for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)]
    modules = {each.__name__ for each in documented if isinstance(each, ModuleType)}
    public = {name: getattr(querybox, name) for name in querybox.__all__}
    absent = [
        name
        for name, value in public.items()
        if not any(value is each for each in documented) and value.__module__ not in modules
    ]
    assert not absent
