"""Regenerate all figures and tables of shapes of the anatomy, and those of guides: ``python -m figures``."""

from __future__ import annotations

from figures import augmentation, collection, make, panoptic, results, schemes, serving, tiles, tracking

if __name__ == "__main__":
    make.main()
    augmentation.main()
    tiles.main()
    tracking.main()
    panoptic.main()
    collection.main()
    schemes.main()
    results.main()
    serving.main()
