"""Hold out a part of a dataset, so that near-duplicates of one picture are never in both parts.

The choice depends on file names and classes alone: the same files give the same parts on every machine.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from querybox.data.records import DetectionData, ImageRecord

Groups = Mapping[str, Sequence[ImageRecord]]

BLOCKS = 8
"""A long numbered sequence is cut into blocks, about this many of which are held out."""

_ROBOFLOW = re.compile(r"(_(jpe?g|png|bmp|webp))?\.rf\.[0-9a-zA-Z]+$", re.IGNORECASE)
_LAST_NUMBER = re.compile(r"^(.*?)(\d+)(\D*)$")


def hold_out(data: DetectionData, fraction: float) -> tuple[DetectionData, DetectionData]:
    """Return the remaining and the held-out images of a dataset, each in the order of the dataset.

    Images that show the same thing stay together: the augmented copies that Roboflow writes of one image
    (`name_jpg.rf.<hash>`), and the frames of a video, which are recognised by names that differ in their last number. A
    sequence that is longer than the part to hold out, or without which a class would be in one part only, is cut into
    blocks of consecutive numbers.

    Args:
        data: The dataset, with at least two images.
        fraction: Fraction of the images to hold out, above 0 and below 1; each part gets at least one image. Groups are
            not divided, so that the fraction is met approximately.
    """
    target = min(max(1, round(fraction * len(data.images))), len(data.images) - 1)
    sequences = group_sequences(data.images)
    held_out: set[int] = set()
    if max(map(len, sequences.values())) <= target:
        held_out = choose(sequences, target)
    if not held_out or classes_in_one_part(data, held_out):
        held_out = choose(cut_into_blocks(sequences, max(1, target // BLOCKS)), target)
    if not held_out:  # there are only copies of one image
        held_out = choose({f"{image.path.name} {image.id}": [image] for image in data.images}, target)
    return divide(data, held_out)


def divide(data: DetectionData, held_out: Container[int]) -> tuple[DetectionData, DetectionData]:
    """Return the remaining images and those with the ids `held_out`, each part with the findings about its images.

    Findings about no image, or about one that was excluded before, stay with the remaining images.
    """
    rest, held = [], []
    for finding in data.findings:
        places = tuple(place for place in finding.places if place.image_id in held_out)
        others = tuple(place for place in finding.places if place.image_id not in held_out)
        count = sum(place.count for place in places)
        if count:
            held.append(replace(finding, count=count, places=places))
        if finding.count > count:
            rest.append(replace(finding, count=finding.count - count, places=others))
    remaining = {image.id for image in data.images if image.id not in held_out}
    return (
        replace(data.only(remaining), findings=tuple(rest)),
        replace(data.only(held_out), findings=tuple(held)),
    )


def original_name(path: Path) -> str:
    """Return the name without suffix of the image that a file shows, in lower case: without what Roboflow appends."""
    return _ROBOFLOW.sub("", path.stem).lower()


def group_sequences(images: Sequence[ImageRecord]) -> dict[str, list[ImageRecord]]:
    """Group images whose folders are the same and whose names differ in the last number alone, in order of it."""
    groups: dict[str, list[tuple[int, str, ImageRecord]]] = defaultdict(list)
    place = places({image.path.parent for image in images})
    for image in images:
        name = original_name(image.path)
        matched = _LAST_NUMBER.match(name)
        prefix, number = (f"{matched[1]}#{matched[3]}", int(matched[2])) if matched else (name, 0)
        groups[f"{place[image.path.parent]}/{prefix}"].append((number, name, image))
    return {
        key: [image for *_, image in sorted(members, key=lambda member: (member[:2], member[2].path.name))]
        for key, members in sorted(groups.items())
    }


def places(folders: set[Path]) -> dict[Path, str]:
    """Return each folder within the one that all are in, wherever that is; if there is one folder, its name."""
    levels = zip(*(folder.parts for folder in folders), strict=False)
    shared = len([*takewhile(lambda names: len(set(names)) == 1, levels)])
    return {
        folder: "/".join(folder.parts[shared:]) if len(folders) > 1 else folder.name for folder in folders
    }


def classes_of(image: ImageRecord) -> set[int]:
    """Return the labels of the objects of an image, without those that it has in crowd regions alone."""
    return set(image.labels[~image.crowd].tolist())


def cut_into_blocks(sequences: Groups, size: int) -> dict[str, list[ImageRecord]]:
    """Cut sequences into blocks of at least `size` images, without separating copies of one image."""
    blocks: dict[str, list[ImageRecord]] = {}
    for key, images in sequences.items():
        block: list[ImageRecord] = []
        previous = ""
        for image in images:
            name = original_name(image.path)
            if not block or (len(block) >= size and name != previous):
                block = blocks.setdefault(f"{key}/{name}", [])
            block.append(image)
            previous = name
    return blocks


def choose(groups: Groups, target: int) -> set[int]:
    """Return the ids of the images of some groups, close to `target` in number; none if there is only one group.

    Groups are taken in the order of a hash of their names: first one for each class, the rarest first, then others. No
    class is taken as a whole.
    """
    order = sorted(groups, key=lambda key: hashlib.sha256(key.encode(errors="surrogatepass")).digest())
    classes = {key: set().union(*map(classes_of, groups[key])) for key in order}
    remaining = Counter(label for key in order for label in classes[key])
    groups_of: dict[int, list[str]] = defaultdict(list)
    for key in order:
        for label in classes[key]:
            groups_of[label].append(key)
    chosen: dict[str, None] = {}
    missing = target

    def take(key: str, limit: float) -> bool:
        nonlocal missing
        if key in chosen or len(groups[key]) > limit or any(remaining[label] < 2 for label in classes[key]):
            return False
        chosen[key] = None
        missing -= len(groups[key])
        remaining.subtract(classes[key])
        return True

    for label in sorted(groups_of, key=lambda label: (len(groups_of[label]), label)):
        if not any(key in chosen for key in groups_of[label]):
            any(take(key, missing) for key in groups_of[label])
    for key in order:
        take(key, 2 * missing)  # closer to the target than without
    if not chosen and len(order) > 1:
        chosen[min(order, key=lambda key: len(groups[key]))] = None
    return {image.id for key in chosen for image in groups[key]}


def classes_in_one_part(data: DetectionData, held_out: set[int]) -> bool:
    """Return whether a class that several images have is missing in one of the two parts."""
    total: dict[int, int] = defaultdict(int)
    held: dict[int, int] = defaultdict(int)
    for image in data.images:
        for label in classes_of(image):
            total[label] += 1
            held[label] += image.id in held_out
    return any(count > 1 and held[label] in (0, count) for label, count in total.items())
