"""A card that does not fit its graph is an error when the file is loaded, and never another answer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from querybox.checkpoints.find import Format
from querybox.errors import CheckpointError
from querybox.exporting import Exported, ExportedModel, load_exported
from querybox.exporting.card import KEY, Card
from querybox.exporting.check import probe
from querybox.exporting.signature import Port, check_outputs, check_signature, input_ports, output_ports
from querybox.structures import Category, Preprocessing

CARD = Card(
    categories=(Category(id=3, name="cat"), Category(id=9, name="dog")),
    class_rows=(0, 2),
    preprocessing=Preprocessing(),
    precision="float32",
)
INPUTS = {"pixels": Port("uint8", (None, 3, None, None)), "sizes": Port("int64", (None, 2))}
OUTPUTS = {
    "scores": Port("float32", (None, None)),
    "labels": Port("int64", (None, None)),
    "boxes_xyxy": Port("float32", (None, None, 4)),
    "logits": Port("float32", (None, None, None)),
    "boxes": Port("float32", (None, None, 4)),
}
MASK_OUTPUTS = {
    "queries": Port("int64", (None, None)),
    "masks": Port("float32", (None, None, None, None)),
}
EDITS: dict[str, dict[str, Any]] = {
    "a class more": {"categories": [{"id": i, "name": str(i)} for i in range(3)], "class_rows": [0, 2, 3]},
    "rows in another order": {"class_rows": [2, 0]},
    "the row of no-object": {"class_rows": [0, 3]},
    "a row that it has not": {"class_rows": [0, 400]},
    "a negative row": {"class_rows": [0, -2]},
    "a row for two classes": {"class_rows": [0, 0]},
    "a row less": {"class_rows": [0]},
    "no classes": {"categories": [], "class_rows": []},
    "a sigmoid": {"no_object": False},
    "no masks": {"masks": False},
    "large images": {"preprocessing": {"short_side": 30_000, "long_side": 30_000}},
    "another format": {"format": "querybox-export-0"},
}
"""What a card may be changed to; see `tests/exporting/conftest.py` for the detector."""


def edited(file: Path, folder: Path, changes: dict[str, Any]) -> Path:
    """Return a copy of an exported model with another card."""
    copy = folder / file.name
    if file.suffix == ".onnx":
        import onnx

        model = onnx.load(file)
        (entry,) = (entry for entry in model.metadata_props if entry.key == KEY)
        entry.value = json.dumps({**json.loads(entry.value), **changes})
        onnx.save(model, copy)
    else:
        import openvino

        model = openvino.Core().read_model(file)
        model.set_rt_info(json.dumps({**json.loads(model.get_rt_info(KEY).value), **changes}), KEY)
        openvino.save_model(model, copy, compress_to_fp16=False)
    return copy


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_a_card_that_does_not_fit_is_refused(
    to: Format, exported: Callable[[Format], Exported], tmp_path: Path
) -> None:
    file = exported(to).files[0]
    assert load_exported(edited(file, tmp_path, {})).card.class_rows == (0, 2)
    for name, changes in EDITS.items():
        with pytest.raises(CheckpointError) as caught:
            pytest.fail(f"{name}: {load_exported(edited(file, tmp_path, changes)).card}")
        assert str(caught.value).startswith(str(tmp_path / file.name))
        assert "\n" not in str(caught.value)


def test_a_program_that_does_not_fit_is_refused(
    exported: Callable[[Format], Exported], loaded: Callable[[Path], ExportedModel]
) -> None:
    engine = loaded(exported("torch").files[0])
    probe(engine, "model.pt2")
    card = Card.from_json(json.dumps({**json.loads(engine.card.to_json()), "class_rows": [2, 0]}), "a")
    with pytest.raises(CheckpointError, match=r"model\.pt2: its detections are not those of its logits"):
        probe(ExportedModel(card, engine.run), "model.pt2")


@pytest.mark.parametrize(
    ("kind", "name", "port"),
    [
        ("inputs", "pixels", Port("float32", (None, 3, None, None))),
        ("inputs", "pixels", Port("uint8", (None, None, None, 3))),
        ("inputs", "pixels", Port("uint8", (None, 3, 640, 640))),
        ("inputs", "pixels", Port("uint8", (None, 3, None))),
        ("inputs", "sizes", Port("int32", (None, 2))),
        ("inputs", "more", Port("int64", ())),
        ("outputs", "boxes", Port("float32", (None, 8, 5))),
        ("outputs", "boxes", Port("float32", (None, 9, 4))),
        ("outputs", "logits", Port("float32", (None, 8, 3))),
        ("outputs", "logits", Port("float64", (None, 8, 4))),
        ("outputs", "labels", Port("float32", (None, 8))),
        ("outputs", "more", Port("float32", ())),
    ],
)
def test_a_declaration_that_does_not_fit_is_refused(kind: str, name: str, port: Port) -> None:
    logits, boxes = Port("float32", (None, 8, 4)), Port("float32", (None, 8, 4))
    ports = {"inputs": dict(INPUTS), "outputs": {**OUTPUTS, "logits": logits, "boxes": boxes}}
    check_signature("a.onnx", CARD, ports["inputs"], ports["outputs"])
    ports[kind][name] = port
    with pytest.raises(CheckpointError, match=r"a\.onnx: .*it does not fit its card: export it again"):
        check_signature("a.onnx", CARD, ports["inputs"], ports["outputs"])
    del ports[kind][name]
    if name != "more":
        with pytest.raises(CheckpointError, match=rf"a\.onnx: has the {kind} .*; expected .*{name}"):
            check_signature("a.onnx", CARD, ports["inputs"], ports["outputs"])


def test_types_and_axes_are_those_that_the_card_describes() -> None:
    assert input_ports(CARD) == INPUTS
    assert output_ports(CARD) == OUTPUTS
    assert output_ports(dataclasses.replace(CARD, masks=True)) == {**OUTPUTS, **MASK_OUTPUTS}
    fixed = dataclasses.replace(CARD, size=(480, 640))
    assert input_ports(fixed) == {"pixels": Port("uint8", (1, 3, 480, 640)), "sizes": Port("int64", (1, 2))}


def outputs(**changed: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the outputs of a run on two images."""
    sizes = {
        "scores": (2, 5),
        "labels": (2, 5),
        "boxes_xyxy": (2, 5, 4),
        "logits": (2, 8, 4),
        "boxes": (2, 8, 4),
    }
    return {
        name: torch.zeros(size, dtype=getattr(torch, OUTPUTS[name].type)) for name, size in sizes.items()
    } | changed


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("logits", torch.zeros(2, 8, 3)),
        ("logits", torch.zeros(2, 7, 4)),
        ("logits", torch.zeros(1, 8, 4)),
        ("logits", torch.zeros(2, 4)),
        ("logits", torch.zeros(2, 8, 4, dtype=torch.float64)),
        ("boxes", torch.zeros(2, 8, 5)),
        ("labels", torch.zeros(2, 5)),
        ("scores", torch.zeros(())),
    ],
)
def test_outputs_that_do_not_fit_are_refused(name: str, tensor: torch.Tensor) -> None:
    check_outputs("a.onnx", CARD, outputs(), batch=2)
    with pytest.raises(CheckpointError, match=r"a\.onnx: .*it does not fit its card"):
        check_outputs("a.onnx", CARD, outputs(**{name: tensor}), batch=2)


@pytest.mark.parametrize(
    "changed",
    [
        {"masks": torch.zeros(2, 5, 3, 4)},
        {"masks": torch.zeros(2, 6, 0, 4)},
        {"masks": torch.zeros(2, 6, 3)},
        {"queries": torch.zeros(2, 5, dtype=torch.long)},
        {"queries": torch.full((2, 6), 8)},
        {"queries": torch.full((2, 6), -1)},
    ],
)
def test_masks_that_do_not_fit_are_refused(changed: dict[str, torch.Tensor]) -> None:
    card = dataclasses.replace(CARD, masks=True)
    right = {"queries": torch.full((2, 6), 7), "masks": torch.zeros(2, 6, 3, 4)}
    check_outputs("a.onnx", card, outputs(**right), batch=2)
    with pytest.raises(CheckpointError, match=r"a\.onnx: '(masks|queries)' .*it does not fit its card"):
        check_outputs("a.onnx", card, outputs(**{**right, **changed}), batch=2)


def test_a_graph_that_fails_is_named() -> None:
    def run(*_: object) -> dict[str, torch.Tensor]:
        raise RuntimeError("Non-zero status code\nof a node")

    with pytest.raises(CheckpointError, match=r"^a\.onnx: cannot be run \(Non-zero status code\): "):
        probe(ExportedModel(CARD, run), "a.onnx")
