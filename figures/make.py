"""All figures, and where they are written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from figures import image, learning, tables, transformer
from figures.sheet import save
from figures.specimen import DINO_WEIGHTS, WEIGHTS, Specimen, specimen

PAGES = Path(__file__).parent.parent / "docs" / "anatomy"
IMAGES = PAGES / "images"
FIGURES: dict[str, Callable[[Specimen], Figure]] = {
    "images": image.images,
    "features": image.features,
    "padding": image.padding,
    "projection": image.projection,
    "positions": image.positions,
    "encoder": transformer.encoder,
    "decoder": transformer.decoder,
    "heads": transformer.heads,
    "matching": learning.matching,
    "targets": learning.targets,
    "losses": learning.losses,
    "step": learning.step,
    "detections": transformer.detections,
}
"""Names of the figures by stage, 0 to 12. A figure is on the page with the same name."""


def main() -> None:
    """Make all figures, and update the tables on the pages."""
    IMAGES.mkdir(exist_ok=True)
    made = specimen()
    for name, draw in FIGURES.items():
        path = IMAGES / f"{name}.png"
        save(draw(made), path, digest(name))
        print(f"{path.relative_to(PAGES.parent.parent)}: {path.stat().st_size / 1000:.0f} kB")
    for name in FIGURES:
        page = PAGES / f"{name}.md"
        page.write_text(tables.update_tables(page.read_text(encoding="utf-8"), made.trace), encoding="utf-8")


def digest(name: str) -> str:
    """Return the SHA-256 of the weights that a figure is made from."""
    result = hashlib.sha256(WEIGHTS.read_bytes())
    if name == "detections":
        result.update(DINO_WEIGHTS.read_bytes())
    return result.hexdigest()
