"""Which figures there are, and where they go."""

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
"""By stage, 0 to 12. The figure of a name is on the page of that name."""


def main() -> None:
    """Make all of them."""
    IMAGES.mkdir(exist_ok=True)
    made = specimen()
    for name, draw in FIGURES.items():
        path = IMAGES / f"{name}.png"
        save(draw(made), path, digest(name))
        print(f"{path.relative_to(PAGES.parent.parent)}: {path.stat().st_size / 1000:.0f} kB")
    for name in FIGURES:
        page = PAGES / f"{name}.md"
        page.write_text(tables.renewed(page.read_text(), made.trace))


def digest(name: str) -> str:
    """Return the SHA-256 of the weights that a figure is made of."""
    found = hashlib.sha256(WEIGHTS.read_bytes())
    if name == "detections":
        found.update(DINO_WEIGHTS.read_bytes())
    return found.hexdigest()
