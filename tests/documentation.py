"""Runs the code of README.md and docs/, in a folder with small stand-ins for the files that they speak of.

- Python blocks run as they are; those of one page share their names.
- YAML blocks that begin with ``# some.yaml`` are checked as run files and written to that file.
- In bash blocks the ``querybox`` commands run, a launcher before them left out.

A full-size training would take hours, so run files and ``querybox train`` get the settings `SMALL` on top.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import re
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from PIL import Image
from report_pages import without_charts
from squares import crossing, write
from sybil import Example
from tiny_models import TINY

EXAMPLE = Path(__file__).parent.parent / "examples" / "blood_cells"
MODEL = {**TINY, "backbone_weights": None, "queries": 100}
SMALL: dict[str, dict[str, Any]] = {
    "model": MODEL,
    "data": {"image_size": 60, "workers": 0},
    "train": {"epochs": 1, "batch_size": 4},
}
LAUNCHER = re.compile(r"^(accelerate launch|torchrun) .*?-m querybox")
SCALE = 8  # how much smaller the stand-ins for the example's images are


def enter(namespace: dict[str, Any]) -> None:
    """Make the folder and go there; called before the first block of a page."""
    import torch
    from traces import made_once

    page = namespace["page"] = contextlib.ExitStack()
    page.enter_context(contextlib.chdir(page.enter_context(tempfile.TemporaryDirectory())))
    page.enter_context(mock.patch("querybox.benchmark.MIN_SECONDS", 0.0))
    page.enter_context(mock.patch("querybox.benchmark.ProcessPoolExecutor", in_this_process))
    page.enter_context(made_once())  # of the model of all pages
    page.enter_context(without_charts())
    shutil.copytree(stand_ins(), ".", dirs_exist_ok=True)
    torch.manual_seed(0)


@cache
def stand_ins() -> Path:
    """Return a folder with the stand-ins, which is written once."""
    import torch

    from querybox import Detector, Preprocessing, read_dataset
    from querybox.object_sides import ObjectSides

    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    cells, mine = folder / "examples" / "blood_cells", folder / "my_data"
    copy_dataset(cells)
    shutil.copytree(cells, mine)
    for name, split in (("photos", "train"), ("new_photos", "test")):
        copy_dataset(folder / name, (split,))
    for run_file in EXAMPLE.glob("*.yaml"):
        shutil.copy(run_file, cells)
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (80, 60), "pink").save(folder / name)
    write(folder / "clip.mp4", crossing(5), codec="mpeg4")
    torch.manual_seed(0)
    detector = Detector.from_recipe("detr_r50", categories=read_dataset(mine, "val").categories, **MODEL)
    sides = ObjectSides(original=12.0, resized=12.0)
    detector.preprocessing = Preprocessing(short_side=60, long_side=100, object_sides=sides)
    detector.save(folder / "model.safetensors")
    detector.save(cells / "weights.safetensors")
    return folder


def in_this_process(workers: int, *, mp_context: object) -> ThreadPoolExecutor:
    """Stand in for a pool of processes, each of which would import everything anew."""
    return ThreadPoolExecutor(workers)


def leave(namespace: dict[str, Any]) -> None:
    """Go back and remove the folder; called after the last block of a page."""
    namespace["page"].close()


def copy_dataset(folder: Path, splits: Sequence[str] = ("train", "val", "test")) -> None:
    """Write four images of each of these splits of the example to `folder`, at 1 / `SCALE` of their size."""
    for split in splits:
        content = json.loads((EXAMPLE / "annotations" / f"{split}.json").read_text())
        content["images"] = content["images"][:4]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [each for each in content["annotations"] if each["image_id"] in kept]
        for each in content["annotations"]:
            each["bbox"] = [value / SCALE for value in each["bbox"]]
            each["area"] /= SCALE**2
        for image in content["images"]:
            image["width"], image["height"] = image["width"] // SCALE, image["height"] // SCALE
            picture = Image.open(EXAMPLE / "images" / image["file_name"])
            target = folder / "images" / image["file_name"]
            target.parent.mkdir(parents=True, exist_ok=True)
            picture.resize((image["width"], image["height"])).save(target)
        annotations = folder / "annotations" / f"{split}.json"
        annotations.parent.mkdir(parents=True, exist_ok=True)
        annotations.write_text(json.dumps(content))


def write_public_checkpoint(file: Path) -> None:
    """Write a small stand-in for facebookresearch's COCO model, with random weights."""
    import torch

    from querybox.checkpoints import coco
    from querybox.models import find
    from querybox.models.layouts.facebook import FACEBOOK

    small = {**MODEL, "backbone": "resnet18", "heads": 8, "unused_rows": coco.UNUSED_ROWS}
    detector = find("detr_r50").replace(**small).build(coco.CATEGORIES)
    torch.save({"model": FACEBOOK.to_theirs(detector.state_dict())}, file)


def run_commands(example: Example) -> None:
    """Run the ``querybox`` commands of a bash block; they have to succeed."""
    from querybox.cli import main

    public = Path("detr-r50.pth")
    if public.name in example.parsed and not public.exists():
        write_public_checkpoint(public)
    for line in example.parsed.replace("\\\n", " ").splitlines():
        words = shlex.split(LAUNCHER.sub("querybox", line), comments=True)
        if words[:1] != ["querybox"]:
            continue
        if words[1:2] == ["train"] and "--help" not in words:
            words += [
                f"{part}.{key}={json.dumps(value)}" for part in SMALL for key, value in SMALL[part].items()
            ]
            if words[2] == "photos":
                words.append("recipe=detr_r50")  # that which is chosen otherwise takes a minute to export
        assert main(words[1:]) == 0, f"failed: {line}"


def write_run_file(example: Example) -> None:
    """Check a YAML block as a run file, and write a small one in its place."""
    from querybox import RunSettings

    name = re.match(r"# (\S+\.yaml)\n", example.parsed)
    if name is None:
        return
    values = yaml.safe_load(example.parsed)
    RunSettings.parse(values, where=name[1])
    for part, settings in SMALL.items():
        values[part] = {**values.get(part, {}), **settings}
    Path(name[1]).write_text(yaml.safe_dump(values))
