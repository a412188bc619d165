"""Windows has no limits of resources and no signals to kill processes with, which these tests need."""

from __future__ import annotations

import sys

if sys.platform == "win32":
    collect_ignore = ["test_torture.py"]
