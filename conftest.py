"""For every test: querybox is imported with its shapes checked; see tests/shape_checks.py."""

from __future__ import annotations

from jaxtyping import install_import_hook

install_import_hook("querybox", "shape_checks.check")
