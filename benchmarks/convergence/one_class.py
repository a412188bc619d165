"""A dataset that no setting was tuned on: a single class of a COCO folder."""

from __future__ import annotations

import json
from pathlib import Path


def one_class(source: Path, category: str, folder: Path) -> Path:
    """Write a copy of the COCO folder `source` with the objects of one class only, and return the new folder.

    All images are kept; those without the class are negatives. Images are linked, not copied.

    Raises:
        SystemExit: There is no such folder, or it has no such class.
    """
    files = sorted((source / "annotations").glob("instances*.json"))
    if not files:
        raise SystemExit(f"{source}: has no annotations/instances*.json; expected a COCO folder")
    for file in files:
        content = json.loads(file.read_text(encoding="utf-8"))
        wanted = [each for each in content["categories"] if each["name"] == category]
        if not wanted:
            raise SystemExit(f"{file}: has no category '{category}'")
        content["categories"] = wanted
        content["annotations"] = [
            each for each in content["annotations"] if each["category_id"] == wanted[0]["id"]
        ]
        target = folder / "annotations" / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(content), encoding="utf-8")
    for images in source.iterdir():
        link = folder / images.name
        if images.is_dir() and not link.exists():
            link.symlink_to(images.resolve(), target_is_directory=True)
    return folder
