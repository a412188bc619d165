"""Held-out parts: deterministic, near the fraction, and without copies of an image in both parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from dataset_writers import changed

from querybox.data.findings import FindingCollector
from querybox.data.holdout import hold_out, original_name
from querybox.data.records import DetectionData, ImageRecord
from querybox.structures import Category


def dataset(
    names: Sequence[str], labels: Sequence[Sequence[int]] | None = None, classes: int = 1
) -> DetectionData:
    images = []
    for number, name in enumerate(names, start=1):
        own = labels[number - 1] if labels else [0]
        boxes = np.tile([[0.0, 0.0, 4.0, 4.0]], (len(own), 1))
        images.append(
            ImageRecord(
                id=number,
                path=Path("photos") / name,
                width=8,
                height=8,
                boxes_xyxy=boxes,
                labels=np.array(own, dtype=np.int64),
                crowd=np.zeros(len(own), dtype=bool),
                areas=np.full(len(own), 16.0),
            )
        )
    categories = tuple(Category(id=label + 1, name=f"class {label}") for label in range(classes))
    return DetectionData(source=Path("photos"), categories=categories, images=tuple(images))


def names(data: DetectionData) -> list[str]:
    return [image.path.name for image in data.images]


def test_a_part_has_the_findings_about_its_images() -> None:
    """Others would be a large fraction of a small part: of its boxes, or of its images, which may be too many."""
    data = dataset([f"{name}.jpg" for name in "abcdefghijklmnopqrstuvwxy"])
    findings = FindingCollector(data.source)
    for image in data.images:
        findings.add("clipped_box", image.path.name, image_id=image.id)
    findings.add("broken_image", "z.jpg", image_id=26)
    findings.add("subpixel_box", "a.jpg", image_id=1, count=3)
    rest, held = hold_out(replace(data, findings=findings.by_kind()), 0.2)
    assert rest.faulty_boxes == {"clipped_box": 20}
    assert held.faulty_boxes == {"clipped_box": 5}
    assert {place.what for finding in held.findings for place in finding.places} == set(names(held))
    assert (rest.unreadable, held.unreadable) == ({"broken_image": 1}, {})
    assert names(rest)[0] == "a.jpg"
    assert [finding.count for finding in rest.findings if finding.kind == "subpixel_box"] == [3]


def test_every_image_is_in_one_part() -> None:
    data = dataset([f"{name}.jpg" for name in "abcdefghijklmnopqrstuvwxy"])
    rest, held = hold_out(data, 0.2)
    assert len(held.images) == 5
    assert sorted(names(rest) + names(held)) == names(data)
    assert names(rest) == sorted(names(rest))  # the order of the dataset


def test_parts_depend_on_names_alone() -> None:
    files = [f"{name}.jpg" for name in "abcdefghijklmnopqrstuvwxy"]
    _, held = hold_out(dataset(files), 0.2)
    _, reversed_held = hold_out(dataset(files[::-1]), 0.2)
    assert sorted(names(held)) == sorted(names(reversed_held))


def test_videos_in_folders_of_the_same_name_are_told_apart() -> None:
    data = dataset([f"MOT17-{video}/img1/{frame:06}.jpg" for video in range(10) for frame in range(20)])
    rest, held = hold_out(data, 0.2)
    assert len(held.images) == 40
    videos = [{image.path.parts[-3] for image in part.images} for part in (rest, held)]
    assert not videos[0] & videos[1]
    moved = replace(data, images=tuple(changed(image, path="x" / image.path) for image in data.images))
    assert names(hold_out(moved, 0.2)[1]) == names(held)


def test_copies_by_roboflow_stay_together() -> None:
    files = [f"photo-{n}_jpg.rf.{copy}{n}.jpg" for n in range(40) for copy in ("0a1b", "9f8e", "77aa")]
    rest, held = hold_out(dataset(files), 0.2)
    originals = [{original_name(image.path) for image in part.images} for part in (rest, held)]
    assert not originals[0] & originals[1]
    assert 20 <= len(held.images) <= 28  # of 120


def test_original_name() -> None:
    assert original_name(Path("Raccoon-1_jpg.rf.0a1b2c.jpg")) == "raccoon-1"
    assert original_name(Path("raccoon-1.jpg")) == "raccoon-1"
    assert original_name(Path("a_png_jpg.rf.Zz9.png")) == "a_png"


def test_videos_stay_whole() -> None:
    files = [f"clip{video}_frame_{n:04}.jpg" for video in range(10) for n in range(30)]
    rest, held = hold_out(dataset(files), 0.2)
    videos = [{name[:5] for name in names(part)} for part in (rest, held)]
    assert len(videos[1]) == 2
    assert not videos[0] & videos[1]


def test_one_video_is_cut_into_few_blocks() -> None:
    files = [f"frame_{n:04}.jpg" for n in range(400)]
    _, held = hold_out(dataset(files), 0.2)
    numbers = sorted(int(name[6:10]) for name in names(held))
    borders = sum(after - before > 1 for before, after in pairwise(numbers))
    assert 70 <= len(numbers) <= 90
    assert borders <= 10


def test_numbers_are_ordered_as_numbers() -> None:
    _, held = hold_out(dataset([f"{n}.jpg" for n in range(1, 201)]), 0.2)
    numbers = sorted(int(name[:-4]) for name in names(held))
    assert sum(after - before > 1 for before, after in pairwise(numbers)) <= 10


def test_sequences_of_one_class_are_divided() -> None:
    files = [f"{name}_{n}.jpg" for name in ("ace", "jack", "king", "nine", "queen", "ten") for n in range(20)]
    labels = [[number // 20] for number in range(120)]
    rest, held = hold_out(dataset(files, labels, classes=6), 0.2)
    for part in rest, held:
        assert {int(label) for image in part.images for label in image.labels} == set(range(6))
    assert 20 <= len(held.images) <= 28


def test_the_only_image_of_a_class_is_trained_on() -> None:
    labels = [[0]] * 9 + [[1]]
    rest, _ = hold_out(dataset([f"{name}.jpg" for name in "abcdefghij"], labels, classes=2), 0.2)
    assert any(1 in image.labels for image in rest.images)


@pytest.mark.parametrize("crowd", range(10))
def test_a_crowd_region_is_no_object_of_its_class(crowd: int) -> None:
    data = dataset([f"{name}.jpg" for name in "abcdefghij"], [[0]] * 10, classes=2)
    for image in data.images[crowd], data.images[crowd - 1]:
        image.labels[:] = 1
    data.images[crowd].crowd[:] = True
    rest, _ = hold_out(data, 0.2)
    assert data.images[crowd - 1] in rest.images


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.99])
def test_no_part_is_empty(count: int, fraction: float) -> None:
    for files in ([f"{name}.jpg" for name in "abcde"[:count]], [f"a_jpg.rf.{n}.jpg" for n in range(count)]):
        rest, held = hold_out(dataset(files), fraction)
        assert rest.images
        assert held.images
