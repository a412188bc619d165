"""Small sound files of every kind that is read, and how each is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import annotation_writers
import torch
from dataset_writers import Drawn
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import PUBLIC
from torch import Tensor, nn

from querybox import Detector, read_dataset
from querybox.checkpoints import native
from querybox.checkpoints.huggingface_folder import model_config, preprocessor_config
from querybox.checkpoints.read import read_checkpoint
from querybox.data.image import read_image, read_size
from querybox.models import DETR, DINO, Recipe
from querybox.models.layouts.facebook import FACEBOOK
from querybox.models.layouts.huggingface import HUGGINGFACE
from querybox.models.layouts.idea import IDEA
from querybox.modules.meta import shapes_only
from querybox.pixels import ORIENTATION
from querybox.structures import Category, Preprocessing
from querybox.training.checkpoint import Progress, RunCheckpoint
from torture import more_samples

MODEL = {**PUBLIC, "feedforward": 8, "queries": 5}
NAMES = ("cat", "dog")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Files of one kind."""

    name: str
    shares: int
    """Number of mutants of this kind, relative to the others."""
    write: Callable[[Path], dict[str, str]]
    """Writes the files into an empty folder; returns which are spoiled, by name, and how (see `MUTATIONS`)."""
    read: Callable[[Path, Path], object]
    """Reads them, given the folder and the file that was spoiled."""


def write_pictures(folder: Path) -> None:
    """Write two images of 8 x 6 pixels, 1.png and 2.png."""
    folder.mkdir(parents=True)
    for number in (1, 2):
        Image.new("RGB", (8, 6), (90 * number, 40, 0)).save(folder / f"{number}.png")


def write_coco(folder: Path) -> dict[str, str]:
    """Write a COCO file with two images and three boxes."""
    write_pictures(folder / "images")
    boxes = [(1, 1, [0.5, 1, 4, 3]), (1, 2, [2, 2, 6, 4]), (2, 2, [0, 0, 8, 6])]
    document = {
        "info": {"year": 2026},
        "categories": [{"id": number, "name": name} for number, name in enumerate(NAMES, start=1)],
        "images": [{"id": n, "file_name": f"{n}.png", "width": 8, "height": 6} for n in (1, 2)],
        "annotations": [
            {"id": n, "image_id": image, "category_id": label, "bbox": box, "area": 12.0, "iscrowd": 0}
            for n, (image, label, box) in enumerate(boxes)
        ],
    }
    (folder / "train.json").write_text(json.dumps(document))
    return {"train.json": "json"}


def write_voc(folder: Path) -> dict[str, str]:
    """Write a VOC folder with two images and a list of them."""
    write_pictures(folder / "JPEGImages")
    (folder / "Annotations").mkdir()
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for number in (1, 2):
        (folder / "Annotations" / f"{number}.xml").write_text(
            f"""<?xml version="1.0" encoding="utf-8"?>
<annotation><filename>{number}.png</filename>
<size><width>8</width><height>6</height><depth>3</depth></size>
<object><name>cat</name><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>5.5</xmax><ymax>6</ymax></bndbox></object>
</annotation>
"""
        )
    (folder / "ImageSets" / "Main" / "train.txt").write_text("1\n2\n")
    return {"Annotations/1.xml": "xml", "Annotations/2.xml": "xml", "ImageSets/Main/train.txt": "lines"}


def write_yolo(folder: Path) -> dict[str, str]:
    """Write a YOLO folder whose images are listed in a file."""
    write_pictures(folder / "images" / "train")
    (folder / "labels" / "train").mkdir(parents=True)
    for number in (1, 2):
        (folder / "labels" / "train" / f"{number}.txt").write_text("0 0.5 0.5 0.25 0.5\n1 0.25 0.5 0.5 1\n")
    (folder / "train.txt").write_text("images/train/1.png\n./images/train/2.png\n")
    (folder / "data.yaml").write_text(
        "path: .\ntrain: train.txt\nval: images/train\nnames:\n  0: cat\n  1: dog\n"
    )
    return {"data.yaml": "yaml", "train.txt": "lines", "labels/train/1.txt": "lines"}


DRAWN = (
    Drawn(name="1.png", size=(8, 6), objects=[("cat", (0.5, 1, 4.5, 4)), ("dog", (2, 2, 8, 6))]),
    Drawn(name="2.png", size=(8, 6), objects=[("dog", (0, 0, 8, 6))]),
)


def write_tensorflow_csv(folder: Path) -> dict[str, str]:
    """Write a CSV file with two images and three boxes."""
    annotation_writers.write_tensorflow_csv(folder, "train", DRAWN)
    return {"train/_annotations.csv": "csv"}


def write_labelme(folder: Path) -> dict[str, str]:
    """Write a JSON file for each of two images, the second one with all kinds of shapes."""
    annotation_writers.write_labelme(folder, ".", DRAWN)
    points = {"circle": [[3, 3], [4, 4]], "polygon": [[1, 1], [5, 1], [3, 4]], "point": [[2, 2]]}
    shapes = [
        {"label": "cat", "points": points[kind], "shape_type": kind, "group_id": None} for kind in points
    ]
    (folder / "2.json").write_text(json.dumps(annotation_writers.labelme(DRAWN[1], shapes)))
    return {"1.json": "json", "2.json": "json"}


def write_cvat(folder: Path) -> dict[str, str]:
    """Write an XML file with all kinds of shapes and a track."""
    frame = Drawn(name="frame_000002.png", size=(8, 6))
    annotation_writers.write_cvat(folder, ".", [*DRAWN, frame])
    shapes = (
        '<polygon label="cat" points="1,1;5,1;3,4"/>\n<ellipse label="cat" cx="4" cy="3" rx="2" ry="1" rotation="9"/>\n'
        '<mask label="dog" rle="1" left="1" top="1" width="2" height="2"/>\n<tag label="dog"/>\n'
        '<box label="dog" xtl="1" ytl="1" xbr="3" ybr="2" rotation="30.5"/>\n'
    )
    image = annotation_writers.cvat_image(DRAWN[0], [shapes], more='subset="train"')
    track = (
        '<track id="0" label="cat">\n<box frame="2" xtl="1" ytl="1" xbr="3" ybr="2" outside="0"/>\n</track>\n'
    )
    meta = "<task><subset>train</subset>\n<labels><label><name>cat</name><type>any</type></label></labels></task>\n"
    (folder / "annotations.xml").write_text(annotation_writers.cvat(f"{image}\n{track}", meta))
    return {"annotations.xml": "xml"}


def write_label_studio(folder: Path) -> dict[str, str]:
    """Write tasks with a rotated rectangle, a polygon, an ellipse and a keypoint."""
    annotation_writers.write_label_studio(folder, "export", DRAWN)
    values: dict[str, dict[str, Any]] = {
        "polygonlabels": {"points": [[10, 20], [30, 5], [25, 40]]},
        "ellipselabels": {"x": 50, "y": 50, "radiusX": 10, "radiusY": 20, "rotation": 3},
        "keypointlabels": {"x": 50, "y": 50, "width": 0.5},
    }
    size = {"original_width": 8, "original_height": 6, "image_rotation": 0}
    regions = [{**size, "type": kind, "value": {**values[kind], kind: ["cat"]}} for kind in values]
    regions.append(annotation_writers.label_studio_box(DRAWN[0], "dog", (1, 1, 3, 2), rotation=20))
    task = annotation_writers.label_studio_task(DRAWN[0], regions)
    (folder / "export.json").write_text(json.dumps([task]))
    return {"export.json": "json"}


def write_createml(folder: Path) -> dict[str, str]:
    """Write a list of two images with three boxes."""
    annotation_writers.write_createml(folder, "train", DRAWN)
    return {"train/_annotations.createml.json": "json"}


def write_open_images(folder: Path) -> dict[str, str]:
    """Write boxes of two images, and the names of their classes."""
    annotation_writers.write_open_images(folder, "train", DRAWN)
    return {"train-annotations-bbox.csv": "csv", "class-descriptions-boxable.csv": "csv"}


def write_hugging_face(folder: Path) -> dict[str, str]:
    """Write metadata with numbers of classes, whose names are in a README."""
    annotation_writers.write_hugging_face(folder, "train", DRAWN)
    objects = {
        "bbox": [[0.5, 1, 4, 3], [2, 2, 6, 4]],
        "category": [0, 1],
        "area": [12, 24],
        "iscrowd": [0, 1],
    }
    line = json.dumps({"file_name": "1.png", "width": 8, "height": 6, "objects": objects})
    (folder / "train" / "metadata.jsonl").write_text(line)
    (folder / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: objects\n    sequence:\n    - name: category\n      dtype:\n"
        "        class_label:\n          names:\n            '0': cat\n            '1': dog\n---\n"
    )
    return {"train/metadata.jsonl": "json", "README.md": "yaml"}


def write_images(folder: Path) -> dict[str, str]:
    """Write a gradient in the formats and modes that people have."""
    gradient = Image.linear_gradient("L").resize((24, 16))
    colours = Image.merge(
        "RGB", (gradient, gradient.rotate(180), gradient.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    )
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    deep = gradient.convert("I").point(lambda value: value * 257).convert("I;16")
    options: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "turned.jpg": (colours, {"exif": turned}),
        "progressive.jpg": (colours, {"progressive": True}),
        "cmyk.jpg": (colours.convert("CMYK"), {}),
        "rgb.png": (colours, {"exif": turned}),
        "palette.png": (colours.quantize(8), {"transparency": 1}),
        "bit.png": (gradient.convert("1"), {}),
        "deep.png": (deep, {}),
        "animated.gif": (colours, {"save_all": True, "append_images": [colours.rotate(90)]}),
        "lossless.webp": (colours, {"lossless": True}),
        "animated.webp": (colours, {"save_all": True, "append_images": [colours.rotate(90)]}),
        "packed.tiff": (colours, {"compression": "tiff_lzw"}),
        "deep.tiff": (deep, {}),
        "plain.bmp": (colours, {}),
        "plain.ppm": (colours, {}),
    }
    for name, (image, how) in options.items():
        image.save(folder / name, **how)
    return dict.fromkeys(options, "bytes")


def write_ours(folder: Path) -> dict[str, str]:
    """Write a detector, and its card by itself: `read_ours` puts that into the file, under a checksum that fits."""
    detector = Detector.from_recipe("detr_r50", num_classes=2, **MODEL | {"backbone": "test_resnet"})
    detector.preprocessing = Preprocessing(short_side=32, long_side=64)
    detector.save(folder / "model.safetensors")
    _, card = native.read(folder / "model.safetensors")
    (folder / "card.json").write_text(json.dumps(card))
    return {"model.safetensors": "safetensors", "card.json": "json"}


def read_ours(folder: Path, spoiled: Path) -> None:
    """Read a detector."""
    Detector.load(sealed(folder, spoiled))


def write_run(folder: Path) -> dict[str, str]:
    """Write the checkpoint of a run, and its card by itself."""
    model, optimizer = small_run()
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = RunCheckpoint.of(Progress(step=3), model, optimizer, average=model, scaler=None, settings={})
    state.write(folder / "model.safetensors")
    _, card = native.read(folder / "model.safetensors", mark="querybox-run-1")
    (folder / "card.json").write_text(json.dumps(card))
    return {"model.safetensors": "safetensors", "card.json": "json"}


def read_run(folder: Path, spoiled: Path) -> None:
    """Resume a run."""
    model, optimizer = small_run()
    checkpoint = RunCheckpoint.read(sealed(folder, spoiled, mark="querybox-run-1"))
    checkpoint.restore(model, optimizer, average=model)


def small_run() -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a model and its optimizer."""
    model = nn.Linear(3, 2)
    return model, torch.optim.AdamW(model.parameters())


def sealed(folder: Path, spoiled: Path, mark: str = native.FORMAT) -> Path:
    """Return the file to read: the spoiled one, or a new one around the spoiled card, as an attacker would write it."""
    if spoiled.suffix == ".safetensors":
        return spoiled
    card, tensors = spoiled.read_text(errors="replace"), load_file(folder / "model.safetensors")
    metadata = {
        "format": mark,
        "checksum": native.checksum(sorted(tensors.items()), card),
        "card": card,
    }
    save_file(tensors, folder / "sealed.safetensors", metadata=metadata)
    return folder / "sealed.safetensors"


def tiny_state(recipe: Recipe) -> dict[str, Tensor]:
    """Return all tensors of a model, those of the backbone shrunk to one number."""
    with shapes_only():
        wanted = recipe.build(
            [Category(id=label, name=name) for label, name in enumerate(NAMES)]
        ).state_dict()
    shapes = {name: (1,) if name.startswith("backbone.") else tensor.shape for name, tensor in wanted.items()}
    return {name: torch.ones(shape) for name, shape in shapes.items()}


def write_pickled(folder: Path) -> dict[str, str]:
    """Write what the authors of DETR and DINO publish, as a zip file and as it was before."""
    detr = FACEBOOK.to_theirs(tiny_state(DETR().replace(**MODEL)))
    dino = IDEA.to_theirs(tiny_state(DINO().replace(**MODEL)))
    torch.save({"model": detr, "epoch": 3}, folder / "detr.pth")
    torch.save({"model": detr}, folder / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"model": dino, "optimizer": {"state": {0: torch.ones(2)}}}, folder / "dino.bin")
    return {"detr.pth": "zip", "old.pth": "bytes", "dino.bin": "zip"}


def write_folder(folder: Path) -> dict[str, str]:
    """Write a folder of transformers: weights, configuration, and an index of the same weights in two files."""
    recipe = DETR().replace(**MODEL)
    tensors = HUGGINGFACE.to_theirs(tiny_state(recipe))
    save_file(tensors, folder / "model.safetensors")
    files = {
        "config.json": model_config(recipe, NAMES),
        "preprocessor_config.json": preprocessor_config(Preprocessing(), DETR),
    }
    parts = {f"part-{part}.safetensors": list(tensors)[part::2] for part in (0, 1)}
    files["model.safetensors.index.json"] = {
        "weight_map": {name: file for file, names in parts.items() for name in names}
    }
    for file, names in parts.items():
        save_file({name: tensors[name] for name in names}, folder / file)
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values))
    return {"model.safetensors": "safetensors", **dict.fromkeys(files, "json")}


def read_folder(folder: Path, spoiled: Path) -> None:
    """Read the weights, through the index where that is spoiled."""
    read_checkpoint(spoiled if spoiled.name.endswith("index.json") else folder / "model.safetensors")


SAMPLES = (
    Sample(name="COCO", shares=22, write=write_coco, read=lambda _, file: read_dataset(file)),
    Sample(name="Pascal VOC", shares=18, write=write_voc, read=lambda folder, _: read_dataset(folder)),
    Sample(
        name="YOLO",
        shares=18,
        write=write_yolo,
        read=lambda folder, _: (read_dataset(folder, "train"), read_dataset(folder, "val")),
    ),
    *(
        Sample(name=name, shares=3, write=write, read=lambda folder, _: read_dataset(folder))
        for name, write in {
            "TensorFlow CSV": write_tensorflow_csv,
            "labelme": write_labelme,
            "CVAT": write_cvat,
            "Label Studio": write_label_studio,
            "CreateML": write_createml,
            "Open Images": write_open_images,
            "Hugging Face imagefolder": write_hugging_face,
            "VGG Image Annotator": more_samples.write_via,
            "Supervisely": more_samples.write_supervisely,
            "KITTI": more_samples.write_kitti,
            "VisDrone": more_samples.write_visdrone,
            "WIDER FACE": more_samples.write_wider_face,
            "Parquet": more_samples.write_parquet,
        }.items()
    ),
    Sample(
        name="images", shares=20, write=write_images, read=lambda _, file: (read_size(file), read_image(file))
    ),
    Sample(name="querybox's own weights", shares=5, write=write_ours, read=read_ours),
    Sample(name="checkpoint of a run", shares=4, write=write_run, read=read_run),
    Sample(name=".pth and .bin", shares=8, write=write_pickled, read=lambda _, file: read_checkpoint(file)),
    Sample(name="Hugging Face folder", shares=5, write=write_folder, read=read_folder),
)
