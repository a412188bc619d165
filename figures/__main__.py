"""Regenerate every figure and every table of shapes in docs/anatomy: ``python -m figures``."""

from __future__ import annotations

from figures import make

if __name__ == "__main__":
    make.main()
