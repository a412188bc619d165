"""Regenerate all figures and tables of shapes of the anatomy, and that of augmentations: ``python -m figures``."""

from __future__ import annotations

from figures import augmentation, make

if __name__ == "__main__":
    make.main()
    augmentation.main()
