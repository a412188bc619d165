"""Write a dataset: a folder for each split with its images and a COCO file, as Roboflow exports it, or shards."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from querybox.arguments import require_number
from querybox.data.attribution import UNKNOWN, Attribution, read_attribution
from querybox.data.formats.panoptic_png import colours, segment_id
from querybox.data.holdout import hold_out
from querybox.data.records import DetectionData, ImageRecord
from querybox.data.shards import ImageFile, ShardImage
from querybox.errors import ConfigError
from querybox.files import atomic, write_text
from querybox.masks import mask_numbers, rasterised
from querybox.text import counted, to_json

ANNOTATIONS, PANOPTIC = "_annotations.coco.json", "panoptic.json"
SEGMENT = ("category_id", "bbox", "area", "iscrowd")
"""Keys of a segment in COCO's panoptic format, besides its id."""
ORIGIN = "info.json"
"""Name of the file beside shards with what COCO files have in themselves; see `Attribution.dataset`."""
NOT_READ = ("keypoints", "ignored_region", "unsupported_shape")
"""Kinds of findings about content of a dataset that is not read, and is therefore in none of its parts."""


def split_dataset(
    data: DetectionData, folder: Path, *, val: float = 0.2, test: float = 0.0, shards: int | None = None
) -> dict[str, DetectionData]:
    """Split a dataset and write the parts to a new folder, which can be read like any dataset.

    See `hold_out` for the images that stay together. Image files are linked (hard links) where possible, otherwise
    copied; the dataset itself is not changed. Everything that is read of a dataset is written: classes, also of stuff,
    boxes, clipped to their image, masks, areas, crowd regions, and the segments of panoptic datasets, whose other
    pixels remain void. So are `info`, the licences, and the URLs of images of COCO files. What is not read, such as
    attributes and keypoints, is not written.

    Args:
        data: The dataset.
        folder: The folder to write to; it must not exist, or be empty.
        val: Fraction of the images for validation.
        test: Fraction of the images for the final test, 0 for none.
        shards: Number of images in each shard of WebDataset; None to write folders of images.

    Returns:
        The parts, ``train``, ``val`` and ``test``.

    Raises:
        ConfigError: The fractions are not above 0 or leave nothing to train on, there are too few images, the folder
            is not empty, or `shards` is below 1 or the dataset panoptic.
    """
    if shards is not None:
        require_number("split", "shards", shards, 1, whole=True)
        if data.panoptic:
            raise ConfigError(
                f"{data.source}: is panoptic, which shards cannot express; expected objects: split it without shards"
            )
    if not (val > 0 and test >= 0 and val + test < 1):
        raise ConfigError(
            f"split got val={val:g} and test={test:g}; expected fractions of the images, below 1 in total"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: is not empty; expected a new folder: pass another one, or remove it")
    parts: dict[str, DetectionData] = {}
    needed = 3 if test else 2
    if len(data.images) < needed:
        raise ConfigError(
            f"{data.source}: has {counted(len(data.images), 'image')}; expected at least {needed} to split it"
        )
    rest, parts["val"] = hold_out(data, val)
    if test:
        if len(rest.images) < 2:
            raise ConfigError(
                f"{data.source}: has too few images for val={val:g} and test={test:g}; lower them"
            )
        rest, parts["test"] = hold_out(rest, test / (1 - val))
    parts = {"train": rest, **parts}
    origin = read_attribution(data)
    for name, part in parts.items():
        if shards is None:
            write_split(part, folder / name, origin)
        else:
            write_shards(part, folder, name, shards, origin)
    return parts


def write_split(data: DetectionData, folder: Path, origin: Attribution = UNKNOWN) -> None:
    """Write the images of one split and their annotations to a new folder."""
    folder.mkdir(parents=True)
    names = file_names(data)
    for image in data.images:
        write_image(image.file, folder / names[image.id])
    if data.panoptic:
        write_panoptic(data, folder / PANOPTIC, names, origin)
    else:
        write_text(folder / ANNOTATIONS, to_json(coco_document(data, names, origin)) + "\n")


def write_panoptic(data: DetectionData, file: Path, names: Mapping[int, str], origin: Attribution) -> None:
    """Write a panoptic dataset: the PNG of each image in a folder with the name of the JSON file, and this file."""
    folder = file.with_suffix("")
    folder.mkdir()
    annotations = []
    for image in data.images:
        masks = [
            rasterised(mask, (image.height, image.width)) for mask in image.masks or () if mask is not None
        ]
        name = f"{names[image.id]}.png"
        numbers = mask_numbers(masks, (image.height, image.width))
        Image.fromarray(colours(numbers, len(masks))).save(folder / name)
        segments = [
            {"id": segment_id(number), **{key: item[key] for key in SEGMENT}}
            for number, item in enumerate(coco_annotations(image, data), start=1)
        ]
        annotations.append({"image_id": image.id, "file_name": name, "segments_info": segments})
    document = {**coco_document(data, names, origin), "annotations": annotations}
    for category in document["categories"]:
        category.setdefault("isthing", 1)
    write_text(file, to_json(document) + "\n")


def read_content(image: ImageFile) -> bytes:
    """Return the content of an image file."""
    return image.read().content if isinstance(image, ShardImage) else image.read_bytes()


def write_image(image: ImageFile, path: Path) -> None:
    """Link, copy or write an image file to a new path."""
    if isinstance(image, ShardImage):
        path.write_bytes(read_content(image))
        return
    try:
        os.link(image, path)
    except OSError:  # another file system, or one without links
        shutil.copy2(image, path)


def write_shards(
    data: DetectionData, folder: Path, name: str, images: int, origin: Attribution = UNKNOWN
) -> None:
    """Write the images of one split and their annotations as shards, and the names of the classes beside them.

    Args:
        data: The split.
        folder: The folder of the shards of all splits.
        name: The split, with which the names of the shards begin.
        images: Number of images in each shard.
        origin: See `read_attribution`.
    """
    write_text(folder / "classes.txt", "".join(f"{category.name}\n" for category in data.categories))
    if origin.dataset:
        write_text(folder / ORIGIN, to_json(origin.dataset, indent=1) + "\n")
    names = file_names(data)
    stems = Counter(os.path.splitext(each)[0] for each in names.values())  # noqa: PTH122 - strings
    for number, start in enumerate(range(0, len(data.images), images)):
        with atomic(folder / f"{name}-{number:06d}.tar") as path, tarfile.TarFile(path, "w") as tar:
            for image in data.images[start : start + images]:
                stem, suffix = os.path.splitext(names[image.id])  # noqa: PTH122
                stem = stem if stems[stem] == 1 else f"{stem}_{image.id}"
                add_member(tar, f"{stem}{suffix}", read_content(image.file))
                annotation = {**origin.images.get(image.id, {}), **sample_annotation(image, data)}
                add_member(tar, f"{stem}.json", to_json(annotation).encode())


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to a tar, which is the same tar whenever it is written."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, BytesIO(content))


def sample_annotation(image: ImageRecord, data: DetectionData) -> dict[str, Any]:
    """Return the annotation of an image in a shard: its size, and its objects as in COCO, with names of classes."""
    objects = coco_annotations(image, data)
    for item, label in zip(objects, image.labels.tolist(), strict=True):
        del item["image_id"], item["category_id"]
        item["category"] = data.categories[label].name
    return {"width": image.width, "height": image.height, "annotations": objects}


def file_names(data: DetectionData) -> dict[int, str]:
    """Return a file name for each image by id: its own, after those of its folders as far as names would repeat."""
    names = {image.id: image.path.name for image in data.images}
    for depth in range(1, max((len(image.path.parents) for image in data.images), default=1)):
        counts = Counter(name.lower() for name in names.values())
        if max(counts.values(), default=0) < 2:
            break
        for image in data.images:
            if counts[names[image.id].lower()] > 1:
                names[image.id] = f"{image.path.parents[depth - 1].name}_{names[image.id]}"
    return names


def coco_document(data: DetectionData, names: Mapping[int, str], origin: Attribution) -> dict[str, Any]:
    """Return a dataset in COCO's format.

    Args:
        data: The dataset.
        names: File names of the images by id.
        origin: See `read_attribution`.
    """
    annotations = [annotation for image in data.images for annotation in coco_annotations(image, data)]
    return {
        **origin.dataset,
        "images": [
            {
                "id": image.id,
                "file_name": names[image.id],
                "width": image.width,
                "height": image.height,
                **origin.images.get(image.id, {}),
            }
            for image in data.images
        ],
        "annotations": [{"id": number, **item} for number, item in enumerate(annotations, start=1)],
        "categories": [
            {"id": category.id, "name": category.name, **({"isthing": 0} if category.stuff else {})}
            for category in data.categories
        ],
    }


def coco_annotations(image: ImageRecord, data: DetectionData) -> list[dict[str, Any]]:
    """Return the objects of an image in COCO's format, without ids."""
    masks = image.masks or [None] * len(image.labels)
    return [
        {
            "image_id": image.id,
            "category_id": data.categories[label].id,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": area,
            "iscrowd": int(crowd),
            **({} if mask is None else {"segmentation": mask.to_coco()}),
        }
        for (x0, y0, x1, y1), label, area, crowd, mask in zip(
            image.boxes_xyxy.tolist(),
            image.labels.tolist(),
            image.areas.tolist(),
            image.crowd.tolist(),
            masks,
            strict=True,
        )
    ]
