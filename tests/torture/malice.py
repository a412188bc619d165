"""Weight files that somebody wrote to have code executed or other files read, at every place that takes weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from malicious_files import FORMATS, OBJECTS, PLACES
from safetensors.torch import save_file
from torch import nn

from querybox import Detector, convert, load
from querybox.checkpoints.backbone import load_backbone
from querybox.checkpoints.files import read_checkpoint_file
from querybox.cli import main
from querybox.errors import CheckpointError
from querybox.modules.backbone import Backbone
from querybox.training.checkpoint import RunCheckpoint
from torture.samples import write_coco
from torture.watch import SECRET, Attempt, fresh

CONTENTS = ("system", "model", "optimizer", "options")
"""Of `OBJECTS`: the harm alone, among tensors, and beside them."""


def command(*words: str) -> None:
    """Run a command line; it tells of an error by its code."""
    code = main(words)
    if code == 2:
        raise CheckpointError("reported by the command line")
    raise AssertionError(f"code {code}")


def train(setting: str, inside: Path) -> None:
    """Start a training that is to begin from the weights."""
    command(
        "train", str(inside / "train.json"), setting, "model.backbone=test_resnet", f"output={inside / 'run'}"
    )


def resume(file: Path) -> None:
    """Go on from the checkpoint of a run."""
    model = nn.Linear(1, 1)
    RunCheckpoint.read(file).restore(model, torch.optim.AdamW(model.parameters()), average=None)


def entrances(file: Path) -> dict[str, Callable[[], object]]:
    """Return all that reads weights, by name."""
    inside, path = file.parent, str(file)
    data, picture = str(inside / "train.json"), str(inside / "images" / "1.png")
    backbone = Backbone("test_resnet")
    return {
        "Detector.load": partial(Detector.load, file),
        "convert": partial(convert, file, inside / "new.safetensors", to="querybox"),
        "backbone_weights": partial(load_backbone, backbone, "test_resnet", path),
        "checkpoint of a run": partial(resume, file),
        "load": partial(load, file),
        "train weights": partial(train, f"weights={path}", inside),
        "train backbone_weights": partial(train, f"model.backbone_weights={path}", inside),
        "querybox info": partial(command, "info", path),
        "querybox predict": partial(command, "predict", path, picture, "--output", str(inside / "out")),
        "querybox evaluate": partial(command, "evaluate", path, data, "--output", str(inside / "out")),
        "querybox trace": partial(command, "trace", picture, "--model", path),
        "querybox inspect": partial(
            command, "inspect", picture, "--model", path, "-o", str(inside / "a.html")
        ),
        "querybox export": partial(command, "export", path, str(inside / "new.onnx"), "--to", "onnx"),
        "querybox convert": partial(command, "convert", path, str(inside / "new.pth"), "--to", "facebook"),
        "querybox benchmark": partial(command, "benchmark", path),
    }


def pickles(folder: Path, long: bool) -> Iterator[Attempt]:
    """Pickles that call, under every ending, at every entrance."""
    for content in CONTENTS:
        for write in FORMATS[: None if long else 1]:
            for suffix in (".pth", ".safetensors", ".bin", ".pt", ".pt2")[: None if long else 4]:
                inside = fresh(folder, write_coco)
                file = inside / f"model{suffix}"
                write(OBJECTS[content](), file)
                for entrance, read in entrances(file).items():
                    name = f"{content}, {write.__name__}, {suffix}, {entrance}"
                    yield Attempt(name=name, read=read, inside=inside)


def shards(folder: Path, long: bool) -> Iterator[Attempt]:
    """Weights whose parts lie elsewhere."""
    (folder / SECRET).mkdir()
    secret = folder / SECRET / "w.safetensors"
    save_file({"w": torch.ones(4)}, secret)
    for place in (f"../{SECRET}/w.safetensors", str(secret), *PLACES):
        inside = fresh(folder, lambda _: None)
        index = inside / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"w": place}}))
        yield Attempt(name=f"index {place!r:.40}", read=partial(read_checkpoint_file, index), inside=inside)
    for place in (f"../{SECRET}/w.safetensors", str(secret)):
        inside = fresh(folder, lambda _: None)
        write_onnx(inside / "model.onnx", place)
        yield Attempt(
            name=f"ONNX data {place!r:.40}", read=partial(load, inside / "model.onnx"), inside=inside
        )


def write_onnx(file: Path, place: str) -> None:
    """Write a model whose only weight lies in another file."""
    import onnx

    weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4])
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", place), ("offset", "0"), ("length", "16")):
        weight.external_data.add(key=key, value=value)
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4]) for name in "xy"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight]
    )
    file.write_bytes(onnx.helper.make_model(graph).SerializeToString())
