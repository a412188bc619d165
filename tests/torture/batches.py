"""What shares a batch with an image must not matter: detections, AP, and the same of exported engines."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import get_args

import torch
from PIL import Image

from querybox import Detector, export, load, read_dataset
from querybox.checkpoints.find import EXPORTED, Format
from querybox.data import DetectionData
from querybox.evaluation.evaluate import coco_metrics
from querybox.exporting.write import FIXED
from querybox.inference.detections import Detections
from querybox.inference.engine import Engine
from querybox.inference.options import Options
from querybox.inference.predict import detect_frames
from querybox.inference.sources import Frame, find_sources, read_frames
from querybox.structures import Preprocessing
from torture.case import Case, require

ROOT = Path(__file__).parents[2]
CELLS = ROOT / "examples" / "blood_cells"
SAMPLE = ROOT / "tests" / "data" / "coco_sample"
MODELS = {"DINO": CELLS / "weights.safetensors", "DETR": CELLS / "detr.safetensors"}
SIZES = Preprocessing(short_side=96, long_side=160)
"""To which images are made smaller, so that hundreds of them cost little."""
SIDES = (64, 96, 128, 192)
"""Of the images, in pixels: few, so that many share a shape."""
LONG, SHORT = 500, 8
"""Images."""
COUNTED = 0.05
"""Detections that score less are noise."""
SCORE, BOX = 1e-4, 0.05
"""How far a score, and a corner in pixels, may be off."""
MOST = 8
"""Images in a batch."""


def write_dataset(folder: Path, count: int) -> DetectionData:
    """Write images of many sizes, cells with their boxes and photographs without any, and read them."""
    random = Random(0)
    cells = [
        json.loads((CELLS / "annotations" / f"{split}.json").read_text())
        for split in ("test", "val", "train")
    ]
    pictures = [
        (CELLS / "images" / each["file_name"], part, each["id"]) for part in cells for each in part["images"]
    ]
    pictures = [(file, None, 0) for file in sorted(SAMPLE.rglob("*.jpg"))] + pictures
    document = {"categories": cells[0]["categories"], "images": [], "annotations": []}
    (folder / "images").mkdir()
    for number in range(count):
        file, part, image_id = pictures[number % len(pictures)]
        size = random.choice(SIDES), random.choice(SIDES)
        with Image.open(file) as picture:
            scale = size[0] / picture.width, size[1] / picture.height
            picture.convert("RGB").resize(size).save(folder / "images" / f"{number}.png")
        document["images"].append(
            {"id": number, "file_name": f"{number}.png", "width": size[0], "height": size[1]}
        )
        for each in part["annotations"] if part else ():
            if each["image_id"] == image_id:
                box = [value * scale[place % 2] for place, value in enumerate(each["bbox"])]
                document["annotations"].append(
                    {"image_id": number, "category_id": each["category_id"], "bbox": box}
                )
    (folder / "all.json").write_text(json.dumps(document))
    return read_dataset(folder / "all.json")


@cache
def detector_of(name: str) -> Detector:
    """Return a shipped detector that takes small images."""
    detector = Detector.load(MODELS[name])
    detector.preprocessing = dataclasses.replace(
        detector.preprocessing, short_side=SIZES.short_side, long_side=SIZES.long_side
    )
    return detector


def frames_of(data: DetectionData) -> Iterator[Frame]:
    """Yield the images, in order."""
    return read_frames(find_sources([record.path for record in data.images]))


def one_by_one(engine: Engine, frames: Sequence[Frame]) -> list[Detections]:
    """Return the detections in every image, found in a batch of its own."""
    return list(detect_frames(engine, frames, Options(threshold=0.0, batch_size=1)))


def together(engine: Engine, frames: Sequence[Frame], seed: int) -> list[Detections]:
    """Return the detections in every image, found in random company: any order, batches of any size to `MOST`."""
    random = Random(seed)
    places = random.sample(range(len(frames)), len(frames))
    found: dict[int, Detections] = {}
    while len(found) < len(frames):
        some = places[len(found) : len(found) + random.randrange(MOST, 12 * MOST)]
        size = random.randrange(2, MOST + 1)
        answers = detect_frames(
            engine, [frames[place] for place in some], Options(threshold=0.0, batch_size=size)
        )
        found |= dict(zip(some, answers, strict=True))
    return [found[place] for place in range(len(frames))]


def unlike(one: Detections, other: Detections) -> tuple[float, float]:
    """Return by how much scores and corners differ, at most, from those of the likest detection of the same class."""
    score = box = 0.0
    for row in range(int((one.scores >= COUNTED).sum())):
        scores = (other.scores - one.scores[row]).abs()
        boxes = (other.boxes_xyxy - one.boxes_xyxy[row]).abs().amax(1)
        distances = (
            scores / SCORE + boxes / BOX + torch.where(other.labels == one.labels[row], 0.0, torch.inf)
        )
        nearest = int(distances.argmin())
        score, box = max(score, float(scores[nearest])), max(box, float(boxes[nearest]))
    return score, box


def apart(alone: Sequence[Detections], mixed: Sequence[Detections]) -> tuple[float, float]:
    """Return by how much scores and corners of any image differ, at most, looked at from both sides."""
    pairs = [*zip(alone, mixed, strict=True), *zip(mixed, alone, strict=True)]
    scores, boxes = zip(*(unlike(*pair) for pair in pairs), strict=True)
    return max(scores), max(boxes)


def same_in_any_batch(model: str, folder: Path, long: bool) -> str:
    """Compare the detections in random company with those of one image at a time, and with a repetition."""
    engine = detector_of(model)
    frames = list(frames_of(write_dataset(folder, LONG if long else SHORT)))
    alone, mixed, again = (
        one_by_one(engine, frames),
        together(engine, frames, seed=1),
        together(engine, frames, seed=1),
    )
    score, box = apart(alone, mixed)
    repeated = sum(
        torch.equal(one.scores, other.scores) and torch.equal(one.boxes_xyxy, other.boxes_xyxy)
        for one, other in zip(mixed, again, strict=True)
    )
    counted = sum(int((found.scores >= COUNTED).sum()) for found in alone)
    happened = (
        f"{len(frames)} images, {counted:,} detections over {COUNTED}: scores differ by {score:.1e}, corners by "
        f"{box:.4f} px at most; {repeated} bit-identical when repeated"
    )
    require(counted > 0 and score <= SCORE and box <= BOX and repeated == len(frames), happened)
    return happened


def precision(engine: Engine, data: DetectionData, batch_size: int) -> float:
    """Return the AP of an engine."""
    found = detect_frames(engine, frames_of(data), Options(threshold=0.0, batch_size=batch_size))
    by_id = {record.id: one for record, one in zip(data.images, found, strict=True)}
    return coco_metrics(data, by_id).metrics["AP"]


def same_precision(model: str, folder: Path, long: bool) -> str:
    """Compare the AP at several batch sizes."""
    data = write_dataset(folder, LONG if long else SHORT)
    values = {size: precision(detector_of(model), data, size) for size in (1, 4, 8)}
    spread = max(values.values()) - min(values.values())
    happened = (
        f"AP {', '.join(f'{value:.4f} at {size}' for size, value in values.items())}: {spread:.1e} apart"
    )
    require(min(values.values()) > 0.001 and spread <= 0.0005, happened)
    return happened


def same_when_exported(model: str, folder: Path, long: bool) -> str:
    """Compare the AP of exported engines at several batch sizes with that of the detector."""
    if not long:
        return "in the long form alone"
    data = write_dataset(folder, LONG)
    detector = detector_of(model)
    expected = precision(detector, data, 8)
    frames = list(frames_of(data))[: LONG // 5]
    reported, held = [f"AP {expected:.4f}"], expected > 0.001
    for to in (each for each in get_args(Format) if each not in FIXED):
        file = folder / f"model{EXPORTED[to]}"
        export(detector, file, to=to)
        engine = load(file, trusted=True)
        off = max(abs(precision(engine, data, size) - expected) for size in (1, 2, 8))
        score, box = apart(one_by_one(engine, frames), together(engine, frames, seed=2))
        reported.append(
            f"{to}: {off:.1e} off, in random batches scores by {score:.1e}, corners by {box:.4f} px"
        )
        held &= off <= 0.001 and score <= SCORE and box <= BOX
    require(held, "; ".join(reported))
    return "; ".join(reported)


CASES = [
    *(
        Case(
            name=f"{model} in random batches of 1 to {MOST} images, mixed sizes",
            required=f"as one at a time: scores within {SCORE}, boxes within {BOX} px; bit-identical when repeated",
            run=partial(same_in_any_batch, model),
        )
        for model in MODELS
    ),
    *(
        Case(
            name=f"{model} at batch 1, 4, 8",
            required="AP equal within 0.0005",
            run=partial(same_precision, model),
        )
        for model in MODELS
    ),
    Case(
        name="DINO exported, at batch 1, 2, 8",
        required="AP within 0.001 of the detector's; random batches as above",
        run=partial(same_when_exported, "DINO"),
    ),
]
