"""Faults of datasets: each row of what they must survive is made, and what happens is held against it."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from report_pages import without_charts

from querybox import evaluate, train, validate
from querybox.cli import main as command_line
from querybox.data import read_coco, read_dataset
from querybox.data.findings import UNREADABLE
from querybox.data.formats.voc import VocFiles, read_voc
from querybox.data.formats.yolo import yolo_splits
from querybox.data.records import require_usable
from querybox.data.validate import Report, SplitReport
from querybox.diagnosis.record import read_record
from querybox.errors import ConfigError
from querybox.training.loop import Trainer
from querybox.training.update import Update
from torture import images
from torture.case import Case, require
from torture.data_sets import (
    Document,
    bytes_of,
    change,
    corrupt,
    refusal,
    settings,
    tiny_detector,
    write_coco,
)


def only_split(report: Report) -> SplitReport:
    """Return what was found in the only split."""
    (split,) = report.splits.values()
    return split


def counts(path: Path) -> dict[str, int]:
    """Validate a dataset of one split, and count what was found by its kind."""
    return {found.kind: found.count for found in only_split(validate(path)).findings}


def found_exactly(folder: Path, long: bool) -> str:
    """Corrupt some files among many, and find exactly these, looking at each image once."""
    total = 10_000 if long else 1_000
    path = write_coco(folder, total)
    spoiled = sorted(np.random.default_rng(1).choice(total, total // 100, replace=False).tolist())
    for way, number in enumerate(spoiled):
        corrupt(folder / "images" / f"{number + 1}.jpg", way)
    before, looked = bytes_of(folder), []
    start = time.perf_counter()
    report = only_split(validate(path, callback=lambda record: looked.append(record.id)))
    seconds = time.perf_counter() - start
    found = sorted(number for one in report.findings if one.kind in UNREADABLE for number in one.image_ids)
    require(found == [number + 1 for number in spoiled], f"found {len(found)} of {len(spoiled)}")
    require(looked == list(range(1, total + 1)), f"looked {len(looked)} times at {total} images")
    require(report.usable and report.images == total - len(spoiled), f"{report.images} images are left")
    require(bytes_of(folder) == before, "source bytes changed")
    return f"{len(found)} of {len(spoiled)} among {total:,} found, none else, in one pass, {seconds:.1f} s"


def trained_without(folder: Path, _: bool) -> str:
    """Train on a set with two corrupt images of forty."""
    path = write_coco(folder / "data", 40)
    for way, number in enumerate((7, 31)):
        corrupt(folder / "data" / "images" / f"{number}.jpg", way)
    before = bytes_of(folder / "data")
    with without_charts():
        result = train(settings(path, folder, data={"val": str(path)}))
    text = (result.run_dir / "report.html").read_text(encoding="utf-8")
    listed = [number for number in range(1, 41) if f"images/{number}.jpg" in text]
    require(listed == [7, 31], f"the report lists {listed}")
    require(bytes_of(folder / "data") == before, "source bytes changed")
    return "the run finishes without the 2, its report lists exactly them, no source byte changes"


def too_many(folder: Path, _: bool) -> str:
    """Start a training on a set of which more than 5 % are corrupt."""
    path = write_coco(folder / "data", 40)
    for number in (3, 4, 5):
        corrupt(folder / "data" / "images" / f"{number}.jpg", number)
    message = refusal(lambda: train(settings(path, folder)))
    require("3 of 40" in message and "max_corrupt" in message, message)
    require(not (folder / "run").exists(), "a run folder was made")
    allowed = only_split(validate(path, max_corrupt=0.1))
    require(allowed.usable, "the setting does not allow more")
    return "3 of 40 refused before step 0; allowed with max_corrupt = 0.1"


def deleted(folder: Path, _: bool) -> str:
    """Delete images while a training is under way, without and with loader workers."""
    update = Trainer.update
    for workers in (0, 2):
        path = write_coco(folder / f"data{workers}", 12)
        place = folder / f"data{workers}" / "images"

        def updating(self: Trainer, *arguments: Any, place: Path = place) -> Update:
            done = update(self, *arguments)
            for number in (2, 9):
                (place / f"{number}.jpg").unlink(missing_ok=True)
            return done

        Trainer.update = updating  # type: ignore[assignment,method-assign]
        try:
            run = train(
                settings(
                    path,
                    folder / str(workers),
                    epochs=2,
                    data={"max_corrupt": 0.5, "workers": workers},
                )
            )
        finally:
            Trainer.update = update  # type: ignore[method-assign]
        lost = sorted(read_record(run.run_dir).lost)
        require(lost == [2, 9], f"{workers} workers: recorded {lost}")
    return "2 of 12 deleted, with 0 and 2 workers: the runs finish, their records name both"


def predicted_past(folder: Path, _: bool) -> str:
    """Predict on a folder with a broken image."""
    write_coco(folder, 3)
    corrupt(folder / "images" / "2.jpg", 0)
    tiny_detector().save(folder / "model.safetensors")
    words = ["predict", str(folder / "model.safetensors"), str(folder / "images"), "--output"]
    code = command_line([*words, str(folder / "found")])
    drawn = sorted(file.name for file in (folder / "found").glob("*.jpg"))
    require((code, drawn) == (1, ["1.jpg", "3.jpg"]), f"exit code {code}, drawn {drawn}")
    return "the others are predicted on, exit code 1"


def evaluated_without(folder: Path, _: bool) -> str:
    """Evaluate on a set with a broken image."""
    path = write_coco(folder, 20)
    corrupt(folder / "images" / "5.jpg", 2)
    result = evaluate(tiny_detector(), path)
    require(result.images == 19 and list(result.unreadable) == [5], f"{result.images}, {result.unreadable}")
    return "19 of 20 images count, the other is named"


def ids_kept(folder: Path, _: bool) -> str:
    """Carry category ids with gaps through a detector."""
    ids = {"red": 0, "blue": 90}
    path = write_coco(folder, 2)

    def spoil(content: Document) -> None:
        content["categories"] = [{"id": number, "name": name} for name, number in ids.items()]
        for item in content["annotations"]:
            item["category_id"] = 90 * (item["category_id"] - 1)

    data = read_dataset(change(path, spoil))
    results = evaluate(tiny_detector(("blue", "red")), data).to_coco()
    seen = {result["category_id"] for result in results}
    back = [data.categories[int(image.labels[0])].id for image in data.images]
    require(seen <= {0, 90} and back == [90, 0], f"ids {seen}, objects {back}")
    return "ids 0 and 90 come back unchanged"


def not_understood(folder: Path, _: bool) -> str:
    """Read files that are broken, of another shape, or made to do harm."""
    write_coco(folder, 1)
    (folder / "labels").mkdir()
    (folder / "Annotations").mkdir()
    (folder / "secret").write_text("secret")
    entity = f'<!DOCTYPE a [<!ENTITY e SYSTEM "file://{folder / "secret"}">]><annotation><size>&e;</size></annotation>'
    laughs = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><annotation>&b;</annotation>'
    contents = {
        "data.json": ("{", "[]", "null", "[" * 100_000, '{"a":' * 100_000, '{"images": [NaN]}', "\0"),
        "Annotations/1.xml": ("", "<a>" * 100_000, entity, laughs, "<annotation><object/></annotation>"),
        "labels/1.txt": ("0 20 15 10 10", "0 1.5 0.5 0.2 0.2", "0 0.5 0.5", "x", "7 0.5 0.5 0.1 0.1"),
    }
    (folder / "classes.txt").write_text("red\nblue\n")
    readers = (
        partial(read_coco, folder / "data.json"),
        lambda: read_voc(VocFiles(folder, folder / "Annotations")),
        yolo_splits(folder)["all"],
    )
    read = 0
    for (name, texts), reader in zip(contents.items(), readers, strict=True):
        for text in texts:
            (folder / name).write_text(text)
            message = refusal(lambda reader=reader: require_usable(reader()))  # type: ignore[misc]
            require(name in message and "secret" not in message.partition(name)[2], f"{name}: {message}")
            read += 1
    return f"{read} files, each the library's own error with file and place"


def all_listed(folder: Path, _: bool) -> str:
    """Read a file with unknown categories and repeated ids."""

    def spoil(content: Document) -> None:
        content["images"] += content["images"][:2]
        content["annotations"] += content["annotations"][3:5]
        for item, category in zip(content["annotations"][6:9], (77, 78, 79), strict=True):
            item["category_id"] = category

    path = change(write_coco(folder, 10), spoil)
    message = refusal(lambda: read_dataset(path))
    parts = ["1 occurs 2", "2 occurs 2", "4 occurs 2", "5 occurs 2"]
    parts += [f"has category id {number}" for number in (77, 78, 79)]
    missing = [part for part in parts if part not in message]
    require(not missing and "data.json" in message, f"not listed: {missing}")
    return "2 image ids, 2 annotation ids, 3 unknown categories: all in one message"


def boxes_counted(folder: Path, _: bool) -> str:
    """Read boxes with every fault that a box can have."""
    boxes = {
        "nan_box": [float("nan"), 0, 5, 5],
        "infinite_box": [0, 0, float("inf"), 5],
        "zero_size_box": [3, 3, 0, 5],
        "negative_size_box": [9, 9, -4, 5],
        "outside_box": [60, 60, 5, 5],
        "clipped_box": [40, 20, 100, 100],
    }

    def spoil(content: Document) -> None:
        for item, box in zip(content["annotations"], boxes.values(), strict=False):
            item["bbox"] = box

    path = change(write_coco(folder, 8), spoil)
    found = counts(path)
    require({kind: found.get(kind) for kind in boxes} == dict.fromkeys(boxes, 1), f"counted {found}")
    visible = read_dataset(path).images[5].boxes_xyxy.tolist()
    require(visible == [[40, 20, 48, 32]], f"clipped to {visible}")
    return "6 kinds, each counted once; the clipped box keeps its visible part"


def left_unsaid(folder: Path, _: bool) -> str:
    """Read annotations of absent images and such without area and iscrowd."""

    def spoil(content: Document) -> None:
        content["annotations"][0]["image_id"] = 999
        del content["annotations"][1]["area"], content["annotations"][2]["iscrowd"]

    path = change(write_coco(folder, 4), spoil)
    found = counts(path)
    wanted = {"absent_image": 1, "no_area": 1, "no_iscrowd": 1, "negative": 1}
    require(found == wanted, f"counted {found}")
    require(read_dataset(path).images[1].areas.tolist() == [320.0], "the area is not computed")
    return "1 absent image, 1 area computed, 1 iscrowd taken for 0, 1 image left without objects: all counted"


def crowds(folder: Path, _: bool) -> str:
    """Train and evaluate with crowd regions and images without objects."""

    def spoil(content: Document) -> None:
        for item in content["annotations"][:3]:
            item["iscrowd"] = 1
        del content["annotations"][3:6]

    path = change(write_coco(folder / "data", 12), spoil)
    found = counts(path)
    require((found["crowd"], found["negative"]) == (3, 3), f"counted {found}")
    data = read_dataset(path)
    result = evaluate(tiny_detector(), data)
    require((result.images, result.objects, result.crowds) == (12, 6, 3), f"{result.objects} objects")
    return "3 crowds are no objects, 3 images without objects count as negatives"


def nothing_to_learn(folder: Path, _: bool) -> str:
    """Start a training without annotations, and one with more objects than queries."""

    def crowded(content: Document) -> None:
        item = content["annotations"][0]
        content["annotations"] += [{**item, "id": 100 + number} for number in range(8)]

    empty = change(write_coco(folder / "none", 4), lambda content: content.update(annotations=[]))
    message = refusal(lambda: train(settings(empty, folder)))
    require("no objects to train on" in message and not (folder / "run").exists(), message)
    full = change(write_coco(folder / "full", 4), crowded)
    run = train(settings(full, folder))
    text = (run.run_dir / "validation.json").read_text(encoding="utf-8")
    require("image 1: 9 objects, 6 queries" in text, "no warning of lost boxes")
    return "no annotation: refused before step 0; 9 objects for 6 queries: image 1 and its 3 lost boxes named"


def other_classes(folder: Path, _: bool) -> str:
    """Hold a detector and a run against data whose classes are others, or in another order."""

    def rename(content: Document) -> None:
        content["categories"][1]["name"] = "green"

    path = write_coco(folder / "data", 4)
    run = train(settings(path, folder))
    other = change(write_coco(folder / "other", 4), rename)
    try:
        evaluate(run.detector, other)
    except ConfigError as error:
        require("'blue'" in str(error) and "'green'" in str(error), str(error))
    else:
        require(False, "evaluated on other classes")
    change(path, rename)
    message = refusal(lambda: train(settings(path, folder), resume=True))
    require("--weights" in message and "green" in message, message)
    return "evaluation and resuming refused with both names; --weights, named there, keeps classes by name"


CASES = [
    Case(
        name="corrupt files in a large set",
        required="found exactly, in one pass; source bytes never change",
        run=found_exactly,
    ),
    Case(
        name="training with corrupt images",
        required="finishes without them; the report lists exactly those",
        run=trained_without,
    ),
    Case(
        name="more than 5 % corrupt (a setting)",
        required="refused before step 0",
        run=too_many,
    ),
    Case(
        name="image deleted during the run",
        required="recorded, excluded from the loss",
        run=deleted,
    ),
    Case(
        name="broken image among those to predict on",
        required="named, the others predicted on, exit code",
        run=predicted_past,
    ),
    Case(
        name="broken image among those to evaluate on",
        required="named, does not count",
        run=evaluated_without,
    ),
    *images.CASES,
    Case(
        name="category ids with gaps, 0 included",
        required="round trip unchanged",
        run=ids_kept,
    ),
    Case(
        name="broken JSON, XML bombs and entities, labels outside 0-1",
        required="the library's own error with file and position",
        run=not_understood,
    ),
    Case(
        name="unknown category, duplicate ids",
        required="error that lists all of them",
        run=all_listed,
    ),
    Case(
        name="annotation of an absent image; no area, no iscrowd",
        required="counted; computed",
        run=left_unsaid,
    ),
    Case(
        name="zero-size, negative, NaN, infinite, outside boxes",
        required="dropped or clipped, counted per kind",
        run=boxes_counted,
    ),
    Case(
        name="crowd boxes; images without objects",
        required="ignored; kept as negatives",
        run=crowds,
    ),
    Case(
        name="no annotation; more objects than queries",
        required="error before step 0; warning",
        run=nothing_to_learn,
    ),
    Case(
        name="class names unlike the checkpoint's",
        required="error, with the flag that remaps by name",
        run=other_classes,
    ),
]
