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
from querybox.data.class_names import CLASSES, names_text
from querybox.data.formats.panoptic_png import colours, segment_id
from querybox.data.holdout import hold_out
from querybox.data.records import DetectionData, ImageRecord
from querybox.data.shards import ImageFile, ShardImage
from querybox.errors import ConfigError, DataError, DiskFullError
from querybox.files import atomic, comparable, contents, move, numbered, write_text
from querybox.masks import mask_numbers, rasterised
from querybox.structures import Category
from querybox.temporary import temporary_folder
from querybox.text import counted, listed, to_json

ANNOTATIONS, PANOPTIC = "_annotations.coco.json", "panoptic.json"
CURE = "split it without shards"
"""What to do if shards cannot express a dataset."""
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
    copied; the dataset itself is not changed. An image with several ids remains one file, and is several in shards.
    Everything that is read of a dataset is written: classes, also of stuff, boxes, clipped to their image, masks,
    areas, crowd regions, and the segments of panoptic datasets, whose other pixels remain void. So are `info`, the
    licences, and the URLs of images of COCO files. What is not read is not written: attributes (in Pascal
    VOC `pose`, `truncated`, `occluded`, `difficult`), keypoints, supercategories, and ids of annotations.

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
            is not empty, or `shards` is below 1 or cannot express the dataset.
        DataError: Image files are missing, or there are too few objects for one in each part.
        DiskFullError: There is no space for the parts.
    """
    if shards is not None:
        require_number("split", "shards", shards, 1, whole=True)
        require_shardable(data)
    if not (val > 0 and test >= 0 and val + test < 1):
        raise ConfigError(
            f"split got val={val:g} and test={test:g}; expected fractions of the images, below 1 in total"
        )
    if folder.exists() and (not folder.is_dir() or contents(folder)):
        raise ConfigError(f"{folder}: is not empty; expected a new folder: pass another one, or remove it")
    require_files(data)
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
    if empty := [name for name, part in parts.items() if not part.num_objects]:
        raise DataError(
            f"{data.source}: has {counted(data.num_objects, 'object')}, so that {listed(empty)} would have none; "
            "expected some in each part: annotate more images"
        )
    write_parts(parts, folder, shards, read_attribution(data))
    return parts


def write_parts(
    parts: Mapping[str, DetectionData], folder: Path, shards: int | None, origin: Attribution
) -> None:
    """Write the parts of a dataset, which appear in `folder` once all are complete.

    Otherwise a split that is killed would look like one into fewer parts, or of fewer images.

    Raises:
        DiskFullError: There is no space for the parts.
    """
    with temporary_folder(folder / "train") as draft:
        try:
            for name, part in parts.items():
                if shards is None:
                    write_split(part, draft / name, origin)
                else:
                    write_shards(part, draft, name, shards, origin)
        except DiskFullError as error:
            raise DiskFullError(str(error).replace(str(draft), str(folder))) from error
        # Images to train on last: without them nothing takes it for a whole one.
        for path in sorted(draft.iterdir(), key=lambda path: path.name.startswith("train")):
            move(path, folder / path.name)


def require_shardable(data: DetectionData) -> None:
    """Check that shards can express a dataset.

    Raises:
        ConfigError: It is panoptic, or has a class of stuff or with a name that `classes.txt` cannot hold.
    """
    if data.panoptic:
        raise ConfigError(
            f"{data.source}: is panoptic, which shards cannot express; expected objects: {CURE}"
        )
    if stuff := [category.name for category in data.categories if category.stuff]:
        raise ConfigError(
            f"{data.source}: has classes of stuff ({listed(stuff)}), which shards cannot express; expected things: "
            f"{CURE}"
        )
    names_text([category.name for category in data.categories], data.source, CURE)


def require_files(data: DetectionData) -> None:
    """Check that all image files exist.

    Raises:
        DataError: Some are missing.
    """
    if missing := [str(image.path) for image in data.images if image.is_missing]:
        raise DataError(
            f"{data.source}: {len(missing):,} of {counted(len(data.images), 'image file')} are missing: "
            f"{listed(missing)}; expected all of them: restore them, or remove them from the annotations"
        )


def write_split(data: DetectionData, folder: Path, origin: Attribution = UNKNOWN) -> None:
    """Write the images of one split and their annotations to a new folder."""
    folder.mkdir(parents=True)
    names = file_names(data)
    for name, file in {names[image.id]: image.file for image in data.images}.items():
        write_image(file, folder / name)
    if data.panoptic:
        write_panoptic(data, folder / PANOPTIC, names, origin)
    else:
        write_text(folder / ANNOTATIONS, to_json(coco_document(data, names, origin)) + "\n")


def write_panoptic(data: DetectionData, file: Path, names: Mapping[int, str], origin: Attribution) -> None:
    """Write a panoptic dataset: the PNG of each image in a folder with the name of the JSON file, and this file."""
    folder = file.with_suffix("")
    folder.mkdir()
    annotations = []
    pngs = numbered([f"{names[image.id]}.png" for image in data.images])  # an image may have several ids
    for image, name in zip(data.images, pngs, strict=True):
        masks = [
            rasterised(mask, (image.height, image.width)) for mask in image.masks or () if mask is not None
        ]
        numbers = mask_numbers(masks, (image.height, image.width))
        with atomic(folder / name, durable=False) as temporary:
            Image.fromarray(colours(numbers, len(masks))).save(temporary, "png")
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
    """Link, copy or write an image file to a new path.

    Raises:
        DiskFullError: There is no space for it.
    """
    if isinstance(image, ShardImage):
        with atomic(path, durable=False) as temporary:
            temporary.write_bytes(read_content(image))
        return
    try:
        os.link(os.path.realpath(image), path)  # a link to a relative link would lead nowhere
    except FileExistsError:
        raise  # a copy would overwrite it, and with it the image of the dataset that it is a link to
    except OSError:  # another file system, or one without links
        with atomic(path, durable=False) as temporary:
            shutil.copy2(image, temporary)


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
    classes = names_text([each.name for each in data.categories], data.source, CURE)
    write_text(folder / CLASSES, classes)
    if origin.dataset:
        write_text(folder / ORIGIN, to_json(origin.dataset, indent=1) + "\n")
    names = sample_names(data)
    for number, start in enumerate(range(0, len(data.images), images)):
        with atomic(folder / f"{name}-{number:06d}.tar") as path, tarfile.TarFile(path, "w") as tar:
            for image in data.images[start : start + images]:
                name_of_image, name_of_annotation = names[image.id]
                add_member(tar, name_of_image, read_content(image.file))
                annotation = {**origin.images.get(image.id, {}), **sample_annotation(image, data)}
                add_member(tar, name_of_annotation, to_json(annotation).encode())


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
    """Return a file name for each image by id: its own, after those of its folders as far as names would repeat.

    Images with the same file have one name. Those whose paths some file system takes for the same, or whose names
    repeat even after those of all folders, are numbered.
    """
    paths = {comparable(str(image.path)): image.path for image in reversed(data.images)}  # the first of each
    folders = {key: [folder.name for folder in path.parents][:-1] for key, path in paths.items()}
    prefixes = dict.fromkeys(paths, "")
    repeated = list(paths)
    while repeated:
        counts = Counter(comparable(f"{prefixes[key]}{path.name}") for key, path in paths.items())
        repeated = [
            key
            for key, path in paths.items()
            if folders[key] and counts[comparable(f"{prefixes[key]}{path.name}")] > 1
        ]
        for key in repeated:
            prefixes[key] = f"{folders[key].pop(0)}_{prefixes[key]}"
    files = {image.file: f"{prefixes[comparable(str(image.path))]}{image.path.name}" for image in data.images}
    unique = dict(zip(files, numbered(list(files.values())), strict=True))
    return {image.id: unique[image.file] for image in data.images}


def sample_names(data: DetectionData) -> dict[int, tuple[str, str]]:
    """Return the names of each image and of its annotation in a shard by id, which differ in their suffix alone."""
    parts = {number: os.path.splitext(name) for number, name in file_names(data).items()}  # noqa: PTH122 - strings
    counts = Counter(comparable(stem) for stem, _ in parts.values())
    annotations = numbered(
        [
            f"{stem}{'' if counts[comparable(stem)] == 1 else f'_{number}'}.json"
            for number, (stem, _) in parts.items()
        ]
    )
    return {
        number: (f"{name.removesuffix('.json')}{suffix}", name)
        for (number, (_, suffix)), name in zip(parts.items(), annotations, strict=True)
    }


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
        "categories": [coco_category(category) for category in data.categories],
    }


def coco_category(category: Category) -> dict[str, Any]:
    """Return the entry of a class in the list `categories` of COCO's files; without `isthing`, it is one of things."""
    return {"id": category.id, "name": category.name, **({"isthing": 0} if category.stuff else {})}


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
