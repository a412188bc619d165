"""Chromium and axe-core for tests, which are skipped without them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from figures.chromium import NEEDED, Page, chromium, find_program

__all__ = ["Page", "chromium", "find_chromium", "run_axe"]


def find_chromium() -> str:
    """Return the browser's program."""
    return find_program() or pytest.skip(NEEDED)


def run_axe(page: Page) -> list[dict[str, Any]]:
    """Return what axe-core has to say against a page."""
    package = importlib.util.find_spec("axe_core_python")
    if package is None or package.origin is None:
        pytest.skip("needs axe-core: pip install axe-core-python")
    page.run(Path(package.origin).with_name("axe.min.js").read_text() + "; 0")
    return list(page.run("axe.run().then(({ violations }) => violations)"))
