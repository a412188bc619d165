"""Matplotlib with its default settings, whatever `matplotlibrc` the current folder or the user has."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from types import ModuleType


def import_matplotlib() -> ModuleType:
    """Import matplotlib without reading a `matplotlibrc` in the current folder, which may be from a stranger."""
    if "matplotlib" not in sys.modules and os.path.lexists("matplotlibrc"):
        with contextlib.chdir(sys.prefix):
            import matplotlib
    else:
        import matplotlib
    return matplotlib


@contextlib.contextmanager
def default_style() -> Iterator[None]:
    """Draw figures with matplotlib's defaults, which do not run LaTeX."""
    matplotlib = import_matplotlib()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield
