"""Find blood cells in test images with the shipped weights, draw them, and score the whole test split.

Run by `make demo`. Nothing is downloaded.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import querybox as qb
from querybox.data import read_image

HERE = Path(__file__).parent
WEIGHTS = HERE / "weights.safetensors"
PICTURES = HERE.parent.parent / "runs" / "demo"


def main() -> None:
    """Predict, draw, evaluate; say where everything is."""
    if not WEIGHTS.is_file():
        sys.exit(f"{WEIGHTS}: the example's weights are missing; train them: see {HERE / 'README.md'}")
    print(f"Reading {WEIGHTS} ...")
    detector = qb.load(WEIGHTS)
    data = qb.read_dataset(HERE, "test")

    print("Finding cells in six test images ...")
    PICTURES.mkdir(parents=True, exist_ok=True)
    for found in detector.predict([image.path for image in data.images[:6]], threshold=0.4):
        picture = PICTURES / f"{Path(found.source).stem}.png"
        qb.draw(read_image(found.source), found).save(picture)
        cells = ", ".join(f"{count} {name}" for name, count in Counter(found.names).most_common())
        print(f"  {Path(found.source).name}: {cells or 'nothing'} -> {picture}")

    print(f"Scoring all {len(data.images)} test images ...")
    evaluation = qb.evaluate(detector, data)
    print(f"  AP {evaluation.metrics['AP']:.3f}, AP50 {evaluation.metrics['AP50']:.3f}")
    for result in evaluation.categories:
        print(f"  {result.category.name}: AP50 {result.AP50:.3f} over {result.objects} cells")
    print(f"The pictures are in {PICTURES}")


if __name__ == "__main__":
    main()
