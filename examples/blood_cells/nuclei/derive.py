"""Derive masks of the nuclei of white blood cells from the boxes of the cells, and write them as COCO datasets.

The masks of `train.json`, `val.json` and `test.json` come from this file; README.md says how good they are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image
from scipy import ndimage

from querybox.masks import Rle

HERE = Path(__file__).parent
WHITE_CELL = 2
"""Id of the category whose boxes are searched."""
BLUR = 1.0
"""Standard deviation of the Gaussian filter, in pixels."""
MIN_PIECE = 0.1
"""Minimum area of a piece of a nucleus, relative to its largest piece."""
MAX_HOLE = 30
"""Maximum area of a hole that is filled, in square pixels."""
LEFT_OUT = {
    "train": {
        8,
        36,
        48,
        59,
        69,
        113,
        141,
        158,
        164,
        187,
        196,
        204,
        232,
        281,
        291,
        309,
        318,
        335,
        344,
        353,
        359,
        395,
    },
    "val": {0, 28, 104, 193, 255, 260, 262, 312, 340, 342, 352, 383},
    "test": {15, 62, 184, 225, 227, 253, 271, 284, 323},
}
"""Ids of the images with a mask that is not a nucleus, as seen by eye: ruptured cells, granules as dark as the nucleus,
cytoplasm taken for it, and a platelet with the box of a white cell."""


def nucleus(image: Image.Image, box_xyxy: tuple[int, int, int, int]) -> Bool[np.ndarray, "H W"]:
    """Return the pixels of the nucleus in the box of a white cell: the dark ones of the red channel.

    The nucleus is stained violet, which is dark in the red channel; cytoplasm, red cells and background are bright. It
    may be in several pieces (lobes).
    """
    x0, y0, x1, y1 = box_xyxy
    red = ndimage.gaussian_filter(np.asarray(image.convert("RGB"), dtype=np.float64)[..., 0], BLUR)
    window = red[y0:y1, x0:x1]
    dark = ndimage.binary_opening(window < otsu(window), iterations=2)
    pieces, count = ndimage.label(dark)
    areas = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
    border = np.zeros_like(dark)  # sides of the box inside the image: a piece there is mostly another cell
    border[0], border[-1] = y0 > 0, y1 < image.height
    border[:, 0] |= x0 > 0
    border[:, -1] |= x1 < image.width
    large = areas >= MIN_PIECE * areas.max(initial=0)
    inside = ~np.isin(np.arange(1, count + 1), pieces[border])
    inside[areas.argmax() if count else []] = True
    kept = np.isin(pieces, 1 + np.flatnonzero(large & inside))
    holes, _ = ndimage.label(ndimage.binary_fill_holes(kept) & ~kept)
    small = np.bincount(holes.ravel()) < MAX_HOLE
    small[0] = False
    mask = np.zeros(red.shape, dtype=bool)
    mask[y0:y1, x0:x1] = kept | small[holes]
    return mask


def otsu(values: Float[np.ndarray, "h w"]) -> int:
    """Return the threshold, 0-255, that separates two classes with the largest variance between them (Otsu, 1979)."""
    counts, _ = np.histogram(values, 256, (0, 256))
    below = np.cumsum(counts) / counts.sum()
    mean = np.cumsum(counts * np.arange(256)) / counts.sum()
    variance = (mean[-1] * below - mean) ** 2 / np.maximum(below * (1 - below), 1e-12)
    return int(variance.argmax())


def derive(split: str) -> dict[str, Any]:
    """Return the COCO dataset of a split: the images of `LEFT_OUT` are not in it."""
    data = json.loads((HERE.parent / "annotations" / f"{split}.json").read_text(encoding="utf-8"))
    images = [image for image in data["images"] if image["id"] not in LEFT_OUT[split]]
    annotations: list[dict[str, Any]] = []
    for image in images:
        picture = Image.open(HERE.parent / "images" / image["file_name"])
        for cell in data["annotations"]:
            if cell["image_id"] != image["id"] or cell["category_id"] != WHITE_CELL:
                continue
            x, y, width, height = cell["bbox"]
            corners = (max(x, 0), max(y, 0), min(x + width, picture.width), min(y + height, picture.height))
            x0, y0, x1, y1 = map(int, corners)
            mask = Rle.of(nucleus(picture, (x0, y0, x1, y1)))
            left, top, right, bottom = mask.box_xyxy or (0, 0, 0, 0)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": mask.area,
                    "iscrowd": 0,
                    "segmentation": mask.to_coco(),
                }
            )
    return {
        "info": {"description": f"Nuclei of white blood cells in BCCD, {split}", "url": data["info"]["url"]},
        "licenses": data["licenses"],
        "categories": [{"id": 1, "name": "nucleus"}],
        "images": images,
        "annotations": annotations,
    }


def main() -> None:
    """Write the three datasets beside this file."""
    for split in LEFT_OUT:
        data = derive(split)
        lists = [
            f'"{key}": [\n' + ",\n".join(map(json.dumps, data[key])) + "\n]"
            for key in ("images", "annotations")
        ]
        head = [f'"{key}": {json.dumps(data[key])}' for key in ("info", "licenses", "categories")]
        (HERE / f"{split}.json").write_text("{\n" + ",\n".join(head + lists) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
